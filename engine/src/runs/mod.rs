//! The state directory: what runs leave on disk beside their journals, and who may touch it.
//!
//! ```text
//! <state directory>/            0700
//!   runs/<run id>/
//!     journal.db                the truth about the run
//!     lock                      held by the process that owns the run
//!     children.lock             held by every child of a run, so that survivors are found
//!     inbox/                    requests of other processes to the owner
//!     output/<step>/<attempt>/  stdout and stderr
//!     work/<step>/              each step's own
//!   locks/                      what open runs write to
//!   index.db                    derived; deleted and rebuilt at will
//! ```
//!
//! Everything here blocks on the disk.

pub mod codes;
pub(crate) mod durable;
mod error;
mod find;
mod follow;
mod inbox;
mod index;
mod locks;
mod output;
mod owner;
mod past;
mod run_dir;
mod state_dir;
mod survivors;

pub use error::{Candidate, Error};
pub use follow::Piece;
pub use inbox::{Inbox, Pending, RequestId};
pub use index::{Filter, Index, RunSummary, Standing};
pub use locks::{HolderState, ResourceLocks, Wanted};
pub use output::{Lost, NAMES as OUTPUT_NAMES, OutputFiles};
pub use owner::{Holder, Ousted, RunLock};
pub use past::Past;
pub use run_dir::RunDir;
pub use state_dir::{FileSystemProbe, StateDir, StateGroup, SystemProbe};
pub use survivors::{Ended, Manner, end_descendants, end_survivors};
