//! Real Redis servers: copied, restored, asked and emptied; faults of theirs, of their files and of the program.

mod asking;
mod faults;
mod killed;
mod restore;
#[path = "../support/mod.rs"]
pub mod support;
mod tls;
