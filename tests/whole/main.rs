//! The built program, run as its users run it.

mod calls;
mod crash;
mod language;
mod people;
mod project;
mod runs;
