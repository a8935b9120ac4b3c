//! Executes plans.
//!
//! The [`Dispatcher`] alone owns the [`RunState`]: it turns inputs into events and actions, is synchronous and does
//! no I/O. The [`driver`] makes its events durable, performs its actions and feeds it what happens. The executor
//! runs attempts and talks to the dispatcher through messages only.

mod answer;
mod away;
pub mod cleanup;
mod dispatcher;
pub mod driver;
mod executor;
mod herald;
mod identities;
mod link;
mod names;
mod poll;
mod preflight;
mod preview;
mod retry;
mod settle;
mod state;
mod unit;
mod verdict;
mod within;

pub use answer::{check_answer, wanted};
pub use away::Away;
pub(crate) use dispatcher::USUAL;
pub use dispatcher::{Action, Dispatcher, Input, Situation};
pub use identities::lock_identities;
pub use preflight::{Preflight, Probed, Told, preflight};
pub use preview::{Fate, StepPreview, preview};
pub(crate) use retry::longest_delay;
pub use state::{Phase, RunState, StepPhase, StepState};
pub use unit::Unit;
pub use verdict::{Hearing, Unapprovable, Verdict, unapprovable};
