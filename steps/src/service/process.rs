//! Services that Lifeboat starts itself.

use std::path::PathBuf;
use std::time::Duration;

use lifeboat_engine::resource::Manager;
use lifeboat_engine::step::{StepContext, StepError};

use super::codes;
use super::unit::{Unit, default_file};
use crate::process::{Command, Identity, Server, ServerSpec, identity};

/// How long a process has between TERM and KILL if the environment does not say.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_secs(15);
const TERM: i32 = 15;

/// Returns the process of a service if it runs.
pub(super) fn running(unit: &Unit<'_>, ctx: &StepContext) -> Option<Identity> {
    identity::load(&pid_file(unit, ctx)).filter(Identity::is_alive)
}

pub(super) async fn start(unit: &Unit<'_>, ctx: &StepContext) -> Result<Server, StepError> {
    let Manager::Process { command, dir, os_user, env, log_file, .. } = unit.manager else {
        unreachable!("only called for processes")
    };
    let Some((program, args)) = command.split_first() else {
        let message = format!("the service `{}` has no `command`, so it cannot be started", unit.name);
        return Err(StepError::permanent(codes::LB1504, message)
            .help("add `command: [program, argument]` to the resource in the environment's file"));
    };
    let mut program = Command::new(program).args(args).os_user(os_user.as_deref()).env_values(ctx, env)?;
    if let Some(dir) = dir {
        program = program.dir(dir);
    }
    let spec = ServerSpec {
        id: format!("service:{}", unit.name),
        what: format!("process of the service {}", unit.name),
        log_file: log_file.clone().unwrap_or_else(|| default_file(ctx, unit.name, "log")),
        stop_signal: TERM,
    };
    Server::start(program.pid_file(pid_file(unit, ctx)), spec, ctx).await
}

pub(super) async fn stop(unit: &Unit<'_>, ctx: &StepContext, patience: Duration) -> Result<bool, StepError> {
    let Some(found) = running(unit, ctx) else { return Ok(false) };
    let stopped = identity::stop(&found, TERM, patience).await?;
    // If it cannot be removed it names a process that is gone, which is harmless.
    let _ = std::fs::remove_file(pid_file(unit, ctx));
    Ok(stopped != crate::process::Stopped::WasGone)
}

fn pid_file(unit: &Unit<'_>, ctx: &StepContext) -> PathBuf {
    match unit.manager {
        Manager::Process { pid_file: Some(path), .. } => path.clone(),
        _ => default_file(ctx, unit.name, "pid"),
    }
}
