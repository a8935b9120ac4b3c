//! What is known of a run before it begins: what each step will do, what is skipped, how long it will take, and whether
//! the objective can be met.
//!
//! Nothing here writes: [`History`] reads the journals of earlier runs as they lie, [`Forecast`] is pure, and an
//! [`Outlook`] is a plan with all of it, for people and for programs.

mod forecast;
mod history;
mod model;
mod notes;
mod page;
mod schedule;
pub mod schema;

#[cfg(test)]
mod tests;

pub use forecast::{CanMeet, Expected, Forecast, MilestoneForecast, PathPart, Source, Wait, Worst};
pub use history::{History, Took};
pub use model::{Action, Basis, Destruction, Outlook, StepOutlook, Times};
pub use page::{Manner, lines};
