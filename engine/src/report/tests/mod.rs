//! What the report says of runs that people will have.

pub(crate) mod fixture;
mod properties;
mod runs;
mod snapshots;
mod verdicts;
