//! What people read of a run: the report, and the live view of one that is open.
//!
//! Both are computed from the plan, the events and a point in time, and from nothing else: the same input gives
//! the same report. Nothing here reads a clock or a file. `fold` reads the events once; `objectives`, `loss`,
//! `path`, `timeline`, `evidence` and `standing` each answer one question of the report. `sections` lays it out
//! as a [`page::Page`], which a terminal, Markdown and HTML render alike, so that all tell the same story.

mod elements;
mod evidence;
mod findings;
mod fold;
mod gantt;
mod gaps;
mod html;
pub mod human;
mod loss;
mod markdown;
pub mod model;
mod objectives;
pub mod page;
mod path;
mod sections;
mod source;
mod standing;
mod status;
mod timeline;
mod undo;

#[cfg(test)]
pub(crate) mod tests;

pub use elements::typed;
pub use html::html;
pub use markdown::markdown;
pub use model::{Owner, RunReport, State, Verdict};
pub use sections::{page, summary};
pub use source::Source;
pub use standing::next_point;
pub use status::{Current, LiveStatus, NeedsPerson, Next, progress_words};
