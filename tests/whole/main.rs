//! The built program, run as its users run it.

mod crash;
mod language;
mod people;
mod project;
mod restore;
mod runs;
