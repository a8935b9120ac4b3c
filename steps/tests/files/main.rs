//! Real directory trees: backed up, chosen, restored, exchanged, written from templates; and those that do harm.

mod choosing;
mod hostile;
mod killed;
mod restore;
#[path = "../support/mod.rs"]
pub mod support;
mod template;
