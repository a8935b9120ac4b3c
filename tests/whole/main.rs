//! The built program, run as its users run it.

mod calls;
mod checking;
mod crash;
mod documents;
mod hostile;
mod init;
mod language;
mod people;
mod project;
mod restore;
mod runs;
