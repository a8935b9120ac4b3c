//! Runs of the engine over step kinds of the tests' own.

mod calls;
mod crashes;
mod dispatch;
mod drive;
mod elements;
mod oracle;
mod plans;
mod undo;
mod world;
