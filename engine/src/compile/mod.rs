//! From what the files say to what will run. Finds every problem it can before it gives up.
//!
//! [`analyse`](analysis::analyse) checks a runbook against the environments it may run in; [`compile`] does the same
//! for one environment, binds the inputs and makes a [`Plan`]. [`fence`] keeps exercises away from protected systems.

mod analysis;
mod backups;
mod bodies;
mod calls;
mod cycle;
mod elements;
mod expressions;
mod fence;
pub mod graph;
mod inline;
mod locks;
mod made;
mod needs;
mod order;
mod plan;
mod precedence;
mod promises;
mod repeat;
mod resources;
mod scopes;
mod shape;
mod time;
mod undo;

pub use analysis::{check, check_all};
pub(crate) use fence::written;
pub(crate) use fence::written_paths;
pub use fence::{fence, written_identities};
pub use plan::{CompileRequest, Compiled, compile};
pub use promises::check_promises;
pub(crate) use shape::role;
pub use shape::shape;
