//! Makes one set of objects like another: a directory and a store, either way, or two stores.

mod compare;
mod kind;
mod plan;
mod side;
mod staging;

pub(super) use kind::Sync;
