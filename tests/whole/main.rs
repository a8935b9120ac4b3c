//! The built program, run as its users run it.

mod asking;
mod calendar;
mod calls;
mod canary;
mod checking;
mod crash;
mod design;
mod documents;
mod evidence;
mod hostile;
mod init;
mod inputs;
mod language;
mod locks;
mod loops;
mod notices;
mod people;
mod plan;
mod project;
mod receiver;
mod restore;
mod runs;
mod shipped;
mod terminal;
mod undo;
