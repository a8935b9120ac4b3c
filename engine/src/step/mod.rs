//! What a step kind is, and what it is given to work with.
//!
//! Kinds live outside the engine and reach it through a [`Registry`]. The step says what happened and classifies
//! its failure; the engine decides about retries, time limits and cancellation.

mod context;
mod error;
mod kind;
mod preflight;
mod registry;
mod work_dir;

/// A text that a step records under this key is a note: people read it in the run's record.
pub const NOTE: &str = "note";

pub use context::{StepContext, StepInfo, StepLink, StepParts};
pub use error::StepError;
pub use kind::{Effect, KindSpec, ParamProblem, Preview, Probe, StepKind};
pub use preflight::{Finding, FindingState, PreflightFacts, Refusal, ResourceProbe, Setting};
pub use registry::Registry;
pub use work_dir::WorkDir;
