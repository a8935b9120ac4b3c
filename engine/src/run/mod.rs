//! Executes plans.
//!
//! The [`Dispatcher`] alone owns the [`RunState`]: it turns inputs into events and actions, is synchronous and does
//! no I/O. The [`driver`] makes its events durable, performs its actions and feeds it what happens. The executor
//! runs attempts and talks to the dispatcher through messages only.

pub mod cleanup;
mod dispatcher;
pub mod driver;
mod executor;
mod link;
mod names;
mod poll;
mod preview;
mod retry;
mod settle;
mod state;
mod unit;

pub use dispatcher::{Action, Dispatcher, Input, Situation};
pub use preview::{StepPreview, preview};
pub use state::{Phase, RunState, StepPhase, StepState};
pub use unit::Unit;
