//! The words of a run: ids, events, outcomes and evidence. Imports no other module of the engine.

pub mod event;
pub mod evidence;
pub mod ids;
pub mod occasion;
pub mod outcome;
pub mod request;

pub use event::{Event, EventClass, EventKind};
pub use evidence::{
    Check, Confidence, Created, CreatedKind, OutputFile, Progress, RecoveryPoint, Stream, Unit,
};
pub use ids::{Attempt, RunId, Seq, StepId};
pub use occasion::Occasion;
pub use outcome::{Failure, FailureKind, Mode, Outcome, RunOutcome};
pub use request::Request;
