//! `postgres.verify`: finds out whether the data of a server is whole.

mod amcheck;
mod catalog;
mod kind;

pub(super) use kind::Verify;
