//! `list`: runbooks, those that come with the program, and the drill calendar.

use jiff::Timestamp;
use lifeboat_engine::model::{Mode, RunOutcome};
use lifeboat_engine::project::Project;
use lifeboat_engine::report::human::{self, Moment};
use lifeboat_engine::runs::{Filter, Index, RunSummary, Standing};
use lifeboat_engine::spec::{DrillSpec, RunbookSpec};
use serde_json::{Value, json};

use crate::args::{Format, ListArgs};
use crate::commands::files::warn;
use crate::exit::{Exit, Failure, Outcome};
use crate::render;

/// One entry of the calendar, and when it was last done.
struct Due<'a> {
    drill: &'a DrillSpec,
    /// The newest drill that has ended, however it did.
    last: Option<RunSummary>,
    /// The newest drill that succeeded: only that counts.
    proven_ms: Option<i64>,
    now_ms: i64,
}

/// Lists the runbooks, and which drills are due.
pub(crate) fn list(project: &Project, args: &ListArgs, format: Format) -> Outcome {
    let calendar = calendar(project)?;
    let overdue = calendar.iter().any(Due::is_overdue);
    if format == Format::Json {
        crate::say::put!("{}", render::json(&as_json(project, &calendar, args))?);
    } else if args.overdue {
        calendar.iter().filter(|due| due.is_overdue()).for_each(|due| crate::say::putln!("{}", due.line()));
    } else {
        in_words(project, &calendar);
    }
    warn(&project.problems);
    Ok(if args.overdue && overdue { Exit::Objective } else { Exit::Success })
}

fn in_words(project: &Project, calendar: &[Due<'_>]) {
    let width = project.runbook_names().map(String::len).max().unwrap_or(0);
    for runbook in project.runbooks.values() {
        let environments: Vec<_> = runbook.environments.iter().map(|it| it.value.as_str()).collect();
        crate::say::putln!("{:width$}  {}  ({})", runbook.name.value, runbook.title, environments.join(", "));
    }
    if !project.shipped.is_empty() {
        crate::say::putln!("\ncome with Lifeboat, for any environment:");
    }
    for runbook in project.shipped.values() {
        crate::say::putln!("{:width$}  {}", runbook.name.value, runbook.title);
    }
    if !calendar.is_empty() {
        crate::say::putln!("\ndrills:");
    }
    for due in calendar {
        crate::say::putln!("{}", due.line());
    }
}

fn as_json(project: &Project, calendar: &[Due<'_>], args: &ListArgs) -> Vec<Value> {
    let describe = |runbook: &RunbookSpec, shipped: bool| {
        let name = &runbook.name.value;
        let wanted = |due: &&Due<'_>| &due.drill.runbook.value == name && (!args.overdue || due.is_overdue());
        let drills: Vec<_> = calendar.iter().filter(wanted).map(Due::to_json).collect();
        let environments: Vec<_> = runbook.environments.iter().map(|it| &it.value).collect();
        json!({
            "runbook": name, "title": runbook.title, "environments": environments,
            "shipped": shipped, "drills": drills,
        })
    };
    let own = project.runbooks.values().map(|runbook| describe(runbook, false));
    let shipped = project.shipped.values().map(|runbook| describe(runbook, true));
    let all = own.chain(shipped);
    all.filter(|it| !args.overdue || it["drills"].as_array().is_some_and(|drills| !drills.is_empty()))
        .collect()
}

fn calendar(project: &Project) -> Result<Vec<Due<'_>>, Failure> {
    let spec = &project.spec;
    // Looking at a calendar writes nothing: without a state directory nothing was ever drilled.
    let index = if spec.drills.is_empty() || !spec.state_dir.exists() {
        None
    } else {
        let state = crate::group::state(project)?;
        Some(Index::open(&state).map_err(|error| render::runs(&error))?)
    };
    let now_ms = Timestamp::now().as_millisecond();
    let due = |drill| due(drill, index.as_ref(), now_ms);
    spec.drills.iter().map(due).collect()
}

fn due<'a>(drill: &'a DrillSpec, index: Option<&Index>, now_ms: i64) -> Result<Due<'a>, Failure> {
    let filter = Filter {
        runbook: Some(drill.runbook.value.clone()),
        environment: Some(drill.environment.value.clone()),
        mode: Some(Mode::Drill),
        standing: Some(Standing::Ended),
    };
    let runs = match index {
        Some(index) => index.list(&filter, usize::MAX).map_err(|error| render::runs(&error))?,
        None => Vec::new(),
    };
    let proven = runs.iter().find(|run| run.outcome == Some(RunOutcome::Succeeded));
    let proven_ms = proven.and_then(|run| run.ended_ms);
    Ok(Due { drill, proven_ms, last: runs.into_iter().next(), now_ms })
}

impl Due<'_> {
    /// When the next one must have succeeded.
    fn due_ms(&self) -> Option<i64> {
        let every = i64::try_from(self.drill.every.0.as_millis()).unwrap_or(i64::MAX);
        self.proven_ms.map(|at| at.saturating_add(every))
    }

    fn is_overdue(&self) -> bool {
        self.due_ms().is_none_or(|due| due < self.now_ms)
    }

    fn line(&self) -> String {
        let DrillSpec { runbook, environment, every, .. } = self.drill;
        let last = match &self.last {
            None => "never drilled".to_owned(),
            Some(run) => {
                format!("last {}: {}", Moment(run.ended_ms.unwrap_or(run.declared_ms)).full(), verdict(run))
            }
        };
        let due = match self.due_ms() {
            None => "OVERDUE: it has never succeeded".to_owned(),
            Some(due) if self.is_overdue() => {
                format!("OVERDUE for {}", human::duration(self.now_ms - due))
            }
            Some(due) => format!("due {}", Moment(due).full()),
        };
        let next = format!("lifeboat drill {} --env {}", runbook.value, environment.value);
        let hint = if self.is_overdue() { format!("\n    {next}") } else { String::new() };
        format!("  {} in {}, every {every}: {last}; {due}{hint}", runbook.value, environment.value)
    }

    fn to_json(&self) -> Value {
        let time = |ms: i64| Moment(ms).timestamp().to_string();
        json!({
            "environment": self.drill.environment.value,
            "every": self.drill.every,
            "last": self.last.as_ref().map(|run| json!({
                "run": run.run,
                "ended": run.ended_ms.map(time),
                "outcome": run.outcome,
                "verdict": verdict(run),
            })),
            "due": self.due_ms().map(time),
            "overdue": self.is_overdue(),
        })
    }
}

/// Says how a drill ended and whether it was quick enough.
fn verdict(run: &RunSummary) -> String {
    let outcome = match run.outcome {
        None => "open",
        Some(RunOutcome::Succeeded) => "succeeded",
        Some(RunOutcome::Failed) => "failed",
        Some(RunOutcome::Aborted) => "aborted",
    };
    let span = |ms: u64| human::duration(i64::try_from(ms).unwrap_or(i64::MAX));
    match (run.rto_ms, run.rto_used_ms) {
        (Some(limit), Some(used)) => {
            let met = if u64::try_from(used).unwrap_or(0) <= limit { "met" } else { "missed" };
            format!("{outcome}, RTO {met} ({} of {})", human::duration(used), span(limit))
        }
        (Some(limit), None) => format!("{outcome}, RTO of {} not measured", span(limit)),
        (None, _) => outcome.to_owned(),
    }
}
