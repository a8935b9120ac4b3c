//! Changes of data: in one transaction, compared row by row with a snapshot, with a way back that was tried.

mod capture;
mod kind;
mod ledger;
mod reach;
mod reverse;
mod tables;
mod work;

pub(super) use kind::Change;
