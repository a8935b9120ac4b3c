//! The variables that every program of a step is given: PATH, HOME, LANG and facts about the run, nothing else.

use std::collections::BTreeMap;
use std::ffi::OsString;

use lifeboat_engine::model::outcome::Mode;
use lifeboat_engine::step::{StepError, StepInfo};

use super::OsUser;

const FALLBACK_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Returns the variables that a program starts from.
pub(super) fn base(
    info: &StepInfo,
    user: Option<&OsUser>,
) -> Result<BTreeMap<OsString, OsString>, StepError> {
    let mut variables = facts(info)?;
    variables.insert("PATH".into(), inherited("PATH", FALLBACK_PATH));
    variables.insert("LANG".into(), inherited("LANG", "C.UTF-8"));
    let home = user.map_or_else(|| inherited("HOME", "/"), |user| user.home.clone().into_os_string());
    variables.insert("HOME".into(), home);
    Ok(variables)
}

fn inherited(name: &str, otherwise: &str) -> OsString {
    std::env::var_os(name).filter(|value| !value.is_empty()).unwrap_or_else(|| otherwise.into())
}

fn facts(info: &StepInfo) -> Result<BTreeMap<OsString, OsString>, StepError> {
    let mode = match info.mode {
        Mode::Recovery => "recovery",
        Mode::Drill => "drill",
    };
    let facts = [
        ("LIFEBOAT_RUN", info.run.to_string()),
        ("LIFEBOAT_RUNBOOK", info.runbook.clone()),
        ("LIFEBOAT_ENVIRONMENT", info.environment.clone()),
        ("LIFEBOAT_MODE", mode.to_owned()),
        ("LIFEBOAT_STEP", info.step.to_string()),
        ("LIFEBOAT_ATTEMPT", info.attempt.to_string()),
        ("LIFEBOAT_INCIDENT_AT", info.incident_at.to_string()),
        ("LIFEBOAT_IDEMPOTENCY_KEY", info.idempotency_key()),
        ("LIFEBOAT_PROJECT_DIR", info.project_dir.display().to_string()),
        ("LIFEBOAT_WORK_DIR", info.work_dir.path()?.display().to_string()),
    ];
    Ok(facts.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
}
