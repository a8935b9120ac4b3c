//! Runs of the engine over step kinds of the tests' own.

mod calls;
mod dispatch;
mod drive;
mod elements;
mod joins;
mod plans;
mod undo;
mod world;
