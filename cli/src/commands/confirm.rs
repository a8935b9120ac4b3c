//! The one question before a run that destroys something in a protected environment.

use lifeboat_engine::clock::{Clock, SystemClock};
use lifeboat_engine::model::Mode;
use lifeboat_engine::plan::Plan;

use crate::commands::execute::ask;
use crate::exit::{Exit, Failure};

/// How long a token holds.
const MINUTES: i64 = 60;

/// Says whether a run of the plan must be confirmed.
pub(crate) fn is_needed(plan: &Plan) -> bool {
    plan.protected && plan.mode == Mode::Recovery && plan.steps.iter().any(|step| !step.destroys.is_empty())
}

/// Returns the token that confirms this very plan for an hour: environment, digest, minute.
pub(crate) fn token(plan: &Plan) -> String {
    token_at(plan, SystemClock.now_ms() / 60_000)
}

fn token_at(plan: &Plan, minute: i64) -> String {
    format!("{}@{}.{minute:x}", plan.environment, &plan.digest()[..12])
}

/// Lets the run go on if nothing must be confirmed, the token is right, or a person types the environment's name.
pub(crate) fn confirm(plan: &Plan, given: Option<&str>) -> Result<(), Failure> {
    if !is_needed(plan) {
        return Ok(());
    }
    if let Some(given) = given {
        return check(plan, given, SystemClock.now_ms() / 60_000);
    }
    let environment = &plan.environment;
    anstream::eprintln!("`{environment}` is protected, and this destroys or moves aside:");
    for what in plan.steps.iter().flat_map(|step| &step.destroys) {
        anstream::eprintln!("  {what}");
    }
    match ask(&format!("type {environment} to go on: ")) {
        Some(answer) if answer == *environment => Ok(()),
        Some(_) => Err(Failure::new(Exit::Refused, "not confirmed; nothing has happened")),
        None => Err(Failure::new(
            Exit::Refused,
            format!("`{environment}` is protected and there is no terminal to ask"),
        )
        .help("look at it with `lifeboat plan`, which prints the token for --confirm")),
    }
}

fn check(plan: &Plan, given: &str, now: i64) -> Result<(), Failure> {
    let minute = given.rsplit_once('.').and_then(|(_, minute)| i64::from_str_radix(minute, 16).ok());
    let refuse = |why: &str| {
        Err(Failure::new(Exit::Refused, format!("the token does not confirm this run: {why}"))
            .help("`lifeboat plan` with the same arguments prints a new one"))
    };
    match minute {
        Some(minute) if given != token_at(plan, minute) => refuse("it is of another plan or environment"),
        Some(minute) if !(0..=MINUTES).contains(&(now - minute)) => refuse("it is older than an hour"),
        Some(_) => Ok(()),
        None => refuse("it is not complete"),
    }
}
