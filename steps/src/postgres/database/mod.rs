//! Single databases of a server: made, renamed, exchanged, dropped.
//!
//! A database is known by its oid, which a rename does not change. So an attempt that was cut off finds out from the
//! server where it stood, and never takes a database of somebody else for its own.

mod create;
mod drop;
mod facts;
mod made;
mod moves;
mod swap;

pub(super) use create::CreateDatabase;
pub(super) use drop::DropDatabase;
pub(super) use facts::{Facts, PATIENT, check_name, connect_beside, find, quoted, stamped, text};
pub(super) use made::{Making, clean_up, end_making, made_is_gone, moves_are_back, record_moves};
pub(super) use moves::{Move, Moves, Sessions, Stand};
pub(super) use swap::SwapDatabase;
