//! The system user that owns a server.

use std::os::unix::fs::MetadataExt;

use lifeboat_engine::resource::Postgres;
use lifeboat_engine::step::StepError;

use super::codes;
use crate::process::OsUser;

/// Returns the user that must own the server of a resource and its files, or `None` if that is whoever runs
/// Lifeboat. As root it is `os_user`, or else the owner of the data directory; root itself is refused.
pub fn owner(postgres: &Postgres) -> Result<Option<OsUser>, StepError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let name = match &postgres.os_user {
        Some(name) => name.clone(),
        None => owner_of_data(postgres)?,
    };
    let user = OsUser::lookup(&name)?;
    if user.uid != 0 {
        return Ok(Some(user));
    }
    Err(StepError::permanent(codes::LB1248, "Postgres refuses to run as root")
        .help("set `os_user: postgres` on the resource in the environment's file"))
}

fn owner_of_data(postgres: &Postgres) -> Result<String, StepError> {
    let unknown = || {
        StepError::permanent(
            codes::LB1248,
            "Lifeboat runs as root, and the Postgres resource does not say which system user owns the server",
        )
        .help("add `os_user: postgres` to the resource in the environment's file")
    };
    let dir = postgres.data_dir.as_ref().ok_or_else(unknown)?;
    let uid = std::fs::metadata(dir).map_err(|_| unknown())?.uid();
    name_of(uid)
}

/// Returns the name of a user of this machine by its number.
pub(super) fn name_of(uid: u32) -> Result<String, StepError> {
    match OsUser::by_uid(uid) {
        Some(user) => Ok(user.name),
        None => Err(StepError::permanent(
            codes::LB1248,
            format!("this machine has no name for the user id {uid}"),
        )
        .help("set `os_user` on the resource; `getent passwd` shows the users of this machine")),
    }
}
