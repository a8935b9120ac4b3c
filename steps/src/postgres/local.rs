//! Postgres resources that have their data directory on this machine.

use std::path::Path;

use lifeboat_engine::resource::{Postgres, System};
use lifeboat_engine::step::{StepContext, StepError};

use super::codes;
pub(super) use crate::sql::done;

/// Returns a resource as a Postgres cluster.
pub fn cluster<'a>(ctx: &'a StepContext, name: &str) -> Result<&'a Postgres, StepError> {
    ctx.system(name, |system| match system {
        System::Postgres(postgres) => Some(postgres),
        _ => None,
    })
}

/// Returns a Postgres cluster and its data directory; a remote one is refused.
pub fn data_dir<'a>(ctx: &'a StepContext, name: &str) -> Result<(&'a Postgres, &'a Path), StepError> {
    let postgres = cluster(ctx, name)?;
    match &postgres.data_dir {
        Some(dir) => Ok((postgres, dir)),
        None => Err(StepError::permanent(
            codes::LB1249,
            format!("the Postgres resource `{name}` has no data directory on this machine"),
        )
        .help("set `data_dir` (and `os_user`) on the resource, or run Lifeboat where the server is")),
    }
}
