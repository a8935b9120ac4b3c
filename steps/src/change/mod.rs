//! What the kinds that change rows have in common: their parameters, what they refuse, what comes of them.
//!
//! How rows are locked, watched and brought back is each server's own.

mod family;
mod outcome;
mod params;

pub(crate) use family::{Codes, Family};
pub(crate) use outcome::{Difference, Made, digest, summary};
pub(crate) use params::Params;
