//! Child processes: commands that end with their step, and servers that outlive it.
//!
//! [`Command`] runs a program in a process group of its own, streams its output to the step and ends the whole
//! group when the step must end. [`Server`] starts a program in a session of its own and records it durably before
//! it executes. [`identity`] tells a process from a later one with the same number. No other module of this
//! workspace starts programs.

pub mod codes;
mod command;
mod environment;
pub mod identity;
mod os_user;
mod output;
mod running;
mod secret_file;
mod server;
mod spawn;
mod variables;

pub use command::{Command, Output};
pub use identity::{Identity, Stopped};
pub use os_user::OsUser;
pub use output::Kept;
pub(crate) use server::is_stage;
pub use server::{Server, ServerSpec};
pub use variables::connection_url;
pub(crate) use variables::secret_value;
