//! What the report says of runs that people will have.

mod elements;
mod fixture;
mod properties;
mod runs;
mod snapshots;
mod verdicts;
