//! What the files of a project say, with positions: nothing is resolved yet, nothing is decided.
//!
//! [`Reader`] checks a YAML tree against [`Type`](crate::value::Type)s and collects every problem. On top of it stand
//! the three documents: [`RunbookSpec`], [`EnvironmentSpec`] and [`ProjectSpec`].

mod calendar;
mod environment;
mod inputs;
mod keys;
mod manager;
mod project;
mod reader;
mod repetition;
mod resources;
mod retry;
mod runbook;
pub mod schema;
mod step;
mod tls;

pub use calendar::{DrillSpec, NoticeSpec, ScheduleSpec, When};
pub use environment::{EnvironmentSpec, ResourceSpec};
pub use inputs::read_inputs;
pub use keys::Spanned;
pub(crate) use keys::is_misspelt;
pub use project::{PersonSpec, ProjectSpec, find_project};
pub use reader::{Reader, Site, SiteKind};
pub use resources::{RESOURCE_KINDS, resource_fields};
pub use runbook::{InputSpec, LockSpec, OutputSpec, RunbookSpec};
pub use step::{
    Body, CallSpec, Common, GroupSpec, ItemSpec, NeedSpec, Repetition, StepSpec, UndoSpec, UntilSpec,
};
