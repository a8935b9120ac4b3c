//! Rows of one table, from a recovered copy into the live database.

mod kind;
mod merge;
mod new_table;
mod orphans;
mod proof;
mod shape;
mod undo;

pub(super) use kind::RecoverTable;
