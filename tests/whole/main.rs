//! The built program, run as its users run it.

mod calls;
mod crash;
mod design;
mod documents;
mod init;
mod language;
mod loops;
mod people;
mod project;
mod restore;
mod runs;
