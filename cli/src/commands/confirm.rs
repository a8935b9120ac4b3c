//! The one question before a run that destroys something in a protected environment.

use lifeboat_engine::clock::{Clock, SystemClock};
use lifeboat_engine::compile::written_identities;
use lifeboat_engine::model::Mode;
use lifeboat_engine::plan::Plan;
use lifeboat_engine::run::StepPreview;

use crate::commands::execute::ask;
use crate::exit::{Exit, Failure};

/// How long a token holds.
const SECONDS: i64 = 3600;

/// Says whether a run of the plan must be confirmed.
pub(crate) fn is_needed(plan: &Plan) -> bool {
    let destroys = plan.everything().any(|step| !step.destroys.is_empty());
    plan.protected && plan.mode == Mode::Recovery && destroys
}

/// Lists everything that is destroyed or moved aside: as exactly as the kind of a step can tell, by its preview.
pub(crate) fn destroyed(plan: &Plan, previews: &[StepPreview]) -> Vec<String> {
    let mut all = Vec::new();
    for (step, preview) in plan.everything().zip(previews) {
        let exact = &preview.preview.destroys;
        if exact.is_empty() || step.destroys.is_empty() {
            all.extend(step.destroys.iter().cloned());
        } else {
            all.extend(exact.iter().map(|what| format!("{}: {what}", step.id)));
        }
    }
    all
}

/// Returns the token that confirms this very plan for an hour: environment, digest, second.
pub(crate) fn token(plan: &Plan) -> String {
    token_at(plan, &plan.digest(), seconds_now())
}

fn seconds_now() -> i64 {
    SystemClock.now_ms() / 1000
}

fn token_at(plan: &Plan, digest: &str, second: i64) -> String {
    format!("{}@{}.{second:x}", plan.environment, &digest[..12])
}

/// Lets the run go on if nothing must be confirmed, the token is right, or a person types the environment's name.
///
/// Returns what was confirmed: the systems that are written, as they were found now.
pub(crate) fn confirm(
    plan: &Plan,
    given: Option<&str>,
    previews: impl FnOnce() -> Result<Vec<StepPreview>, Failure>,
) -> Result<Vec<String>, Failure> {
    if !is_needed(plan) {
        return Ok(Vec::new());
    }
    let targets = targets(plan);
    if let Some(given) = given {
        let help = "`lifeboat plan` with the same arguments prints a new one";
        check(plan, &plan.digest(), given, seconds_now()).map_err(|failure| failure.help(help))?;
        return Ok(targets);
    }
    let environment = &plan.environment;
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    crate::say::say!("`{environment}` is protected, and this destroys or moves aside, on {host}:");
    for what in destroyed(plan, &previews()?) {
        crate::say::say!("  {what}");
    }
    answered(plan, "look at it with `lifeboat plan`, which prints the token for --confirm")?;
    Ok(targets)
}

/// Lets a run be resumed if the systems that it writes are still those that were confirmed. Otherwise asks again.
///
/// Returns what was confirmed now, if that was necessary.
pub(crate) fn confirm_again(
    plan: &Plan,
    before: &[String],
    given: Option<&str>,
    resume: &str,
) -> Result<Option<Vec<String>>, Failure> {
    let now = targets(plan);
    if before.is_empty() || before == now {
        return Ok(None);
    }
    let gone = before.iter().filter(|target| !now.contains(target));
    let new = now.iter().filter(|target| !before.contains(target));
    let environment = &plan.environment;
    crate::say::say!("what this run writes in `{environment}` is not what was confirmed when it began:");
    gone.for_each(|target| crate::say::say!("  no more: {target}"));
    new.for_each(|target| crate::say::say!("  instead: {target}"));
    let digest = plan.digest_with(&now);
    let command = format!("{resume} --confirm {}", token_at(plan, &digest, seconds_now()));
    match given {
        Some(given) => {
            let help = format!("if this is right: {command}");
            check(plan, &digest, given, seconds_now()).map_err(|failure| failure.help(help))?;
        }
        None => answered(plan, &format!("if this is right: {command}"))?,
    }
    Ok(Some(now))
}

fn targets(plan: &Plan) -> Vec<String> {
    written_identities(plan).into_iter().collect()
}

/// Asks a person to type the name of the environment.
fn answered(plan: &Plan, help: &str) -> Result<(), Failure> {
    let environment = &plan.environment;
    match ask(&format!("type {environment} to go on: ")) {
        Some(answer) if answer == *environment => Ok(()),
        Some(_) => Err(Failure::new(Exit::Refused, "not confirmed; nothing has happened")),
        None => Err(Failure::new(
            Exit::Refused,
            format!("`{environment}` is protected and there is no terminal to ask"),
        )
        .help(help.to_owned())),
    }
}

fn check(plan: &Plan, digest: &str, given: &str, now: i64) -> Result<(), Failure> {
    let second = given.rsplit_once('.').and_then(|(_, second)| i64::from_str_radix(second, 16).ok());
    let refuse =
        |why: &str| Err(Failure::new(Exit::Refused, format!("the token does not confirm this run: {why}")));
    match second {
        Some(second) if given != token_at(plan, digest, second) => {
            refuse("it is of another plan, another environment or other systems")
        }
        Some(second) if second > now => refuse("it is from the future; compare the clocks"),
        Some(second) if now - second > SECONDS => refuse("it is older than an hour"),
        Some(_) => Ok(()),
        None => refuse("it is not complete"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let empty = serde_json::json!({
            "format": 1, "project": "p", "project_dir": "/p", "runbook": "r", "title": "R", "owner": null,
            "environment": "production", "protected": true, "mode": "recovery", "commit": null,
            "objective": { "rto": null, "rpo": null }, "milestones": {}, "roles": {}, "inputs": {}, "vars": {},
            "resources": {}, "secrets": {}, "auto_approvals": false, "steps": [], "groups": [], "sources": {},
        });
        serde_json::from_value(empty).unwrap()
    }

    #[test]
    fn a_token_holds_for_an_hour_and_for_nothing_else() {
        let plan = plan();
        let digest = plan.digest();
        let token = token_at(&plan, &digest, 1_000_000);
        let why = |given: &str, now: i64| check(&plan, &digest, given, now).err().map(|it| it.message);
        assert_eq!(why(&token, 1_000_000), None);
        assert_eq!(why(&token, 1_003_600), None);
        assert!(why(&token, 1_003_601).is_some_and(|why| why.ends_with("it is older than an hour")));
        assert!(why(&token, 999_999).is_some_and(|why| why.contains("future")));
        assert!(why("production", 1_000_000).is_some_and(|why| why.ends_with("not complete")));
        let other = Plan { runbook: "other".into(), ..plan.clone() };
        let other = token_at(&other, &other.digest(), 1_000_000);
        assert!(why(&other, 1_000_000).is_some_and(|why| why.contains("of another plan")));
    }

    #[test]
    fn a_run_is_confirmed_again_only_if_its_systems_have_changed() {
        let plan = plan();
        let same = confirm_again(&plan, &[], None, "lifeboat resume x").map_err(|it| it.message);
        assert_eq!(same, Ok(None), "nothing had to be confirmed");
        let gone = ["/srv/old".to_owned()];
        let token = token_at(&plan, &plan.digest_with(&[]), seconds_now());
        let again = confirm_again(&plan, &gone, Some(&token), "lifeboat resume x").map_err(|it| it.message);
        assert_eq!(again, Ok(Some(Vec::new())));
        assert!(confirm_again(&plan, &gone, Some("production@0.0"), "lifeboat resume x").is_err());
    }
}
