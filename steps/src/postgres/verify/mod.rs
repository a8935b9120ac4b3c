//! `postgres.verify`: finds out whether the data of a server is whole.

mod against;
mod amcheck;
mod files;
mod findings;
mod kind;
mod reading;
mod relations;
mod surroundings;

pub(super) use kind::Verify;
