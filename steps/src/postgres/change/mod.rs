//! Changes of data: in one transaction, watched row by row, with a way back.

mod capture;
mod kind;
mod ledger;
mod reverse;

pub(super) use kind::Change;
