//! The built program, run as its users run it.

// Public, so that what is not used here is no dead code.
#[path = "../../steps/tests/support/faulty_disk.rs"]
pub mod faulty_disk;
#[path = "../../steps/tests/support/moto.rs"]
pub mod moto;
#[path = "../../steps/tests/support/port.rs"]
pub mod port;
#[path = "../../steps/tests/support/proxy.rs"]
pub mod proxy;

mod asking;
mod calendar;
mod calls;
mod canary;
mod checking;
mod checklist;
mod configuration;
mod crash;
mod crowded;
mod decisions;
mod design;
mod documents;
mod evidence;
mod faults;
mod following;
mod hostile;
mod init;
mod inputs;
mod language;
mod locks;
mod loops;
mod matrix;
mod notices;
mod ownership;
mod peers;
mod people;
mod plan;
mod project;
mod receiver;
mod recipes;
mod refusals;
mod restore;
mod runs;
mod services;
mod shipped;
mod signals;
mod terminal;
mod undo;
