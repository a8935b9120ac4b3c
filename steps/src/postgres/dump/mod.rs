//! Dumps of single databases: taken with `pg_dump` into a store, brought back with `pg_restore` into new databases.

mod archive;
mod details;
mod fit;
mod publish;
mod restore;
mod source;
mod stage;
mod take;

pub(super) use restore::RestoreDump;
pub(super) use take::Dump;
