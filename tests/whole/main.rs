//! The built program, run as its users run it.

mod calls;
mod crash;
mod documents;
mod init;
mod language;
mod people;
mod project;
mod restore;
mod runs;
mod undo;
