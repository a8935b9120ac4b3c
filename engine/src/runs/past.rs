use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::StateDir;
use crate::journal::Reader;
use crate::model::event::{AttemptResult, EventKind};

/// No more journals than this are opened to find what is asked for.
const JOURNALS: usize = 100;

/// What earlier runs of the project have measured.
#[derive(Clone, Debug)]
pub struct Past {
    state: Option<PathBuf>,
}

impl Past {
    /// Nothing is known of earlier runs.
    pub const UNKNOWN: Self = Self { state: None };

    /// The runs of the state directory that holds this directory of a run.
    pub fn beside(run_dir: &Path) -> Self {
        Self { state: run_dir.parent().and_then(Path::parent).map(ToOwned::to_owned) }
    }

    /// The runs of a state directory.
    pub fn of(state_dir: &Path) -> Self {
        Self { state: Some(state_dir.to_owned()) }
    }

    /// Returns the outputs of steps of a kind that succeeded, newest run first, at most so many. Blocks. Writes nothing; runs that
    /// are open, and journals that cannot be read, are passed over.
    pub fn outputs_of(&self, kind: &str, limit: usize) -> Vec<Map<String, Value>> {
        let mut found = Vec::new();
        let state = self.state.as_deref().and_then(StateDir::look);
        let runs = state.and_then(|state| state.runs().ok()).unwrap_or_default();
        for run in runs.iter().take(JOURNALS) {
            if found.len() >= limit {
                break;
            }
            let Ok(Some(reader)) = Reader::open_at_rest(run.path()) else { continue };
            let used = reader.header().plan.steps.iter().any(|step| step.uses == kind);
            if used && reader.is_finished().unwrap_or(false) {
                found.extend(of_run(&reader, kind));
            }
        }
        found.truncate(limit);
        found
    }
}

fn of_run(reader: &Reader, kind: &str) -> Vec<Map<String, Value>> {
    let plan = &reader.header().plan;
    let is_kind =
        |id: &crate::model::StepId| plan.steps.iter().any(|step| step.uses == kind && step.id == id.whole());
    let outputs =
        reader.essential().unwrap_or_default().into_iter().rev().filter_map(|event| match event.kind {
            EventKind::AttemptFinished { step, result: AttemptResult::Succeeded { done }, .. }
                if is_kind(&step) =>
            {
                Some(done.outputs)
            }
            _ => None,
        });
    outputs.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::journal::test_support::{TickClock, declared, finished, header, plan};
    use crate::journal::{Header, Journal};
    use crate::model::event::Done;
    use crate::model::{RunId, RunOutcome, StepId};
    use crate::plan::{Plan, PlannedStep};
    use crate::runs::SystemProbe;

    fn steps() -> Vec<PlannedStep> {
        let step = |id: &str, uses: &str| {
            let step = json!({
                "id": id, "title": "A", "place": "x.yaml:1", "group": null, "always": false, "needs": [],
                "conditions": [], "uses": uses, "with": {}, "effect": "read", "expect": [], "timeout": null,
                "retry": crate::plan::Retry::default(), "budget": null,
                "milestone": null, "recovered": false, "on_error": "abort", "destroys": [], "writes": [],
                "reads": [], "restores": false
            });
            serde_json::from_value(step).unwrap()
        };
        vec![step("one", "restore"), step("other", "look")]
    }

    fn ended(step: &str, outputs: Value) -> EventKind {
        let outputs = outputs.as_object().cloned().unwrap();
        let result = AttemptResult::Succeeded { done: Done { outputs, ..Done::default() } };
        EventKind::AttemptFinished { step: StepId::new(step).unwrap(), attempt: 1, result }
    }

    async fn ran(state: &StateDir, events: Vec<EventKind>) -> PathBuf {
        let run = RunId::generate();
        let dir = state.create_run(run).unwrap();
        let header = Header { run, plan: Plan { steps: steps(), ..plan() }, ..header() };
        let journal = Journal::create(dir.path(), header, TickClock::starting_at(1_000)).unwrap();
        journal.append(std::iter::once(declared()).chain(events).collect()).await.unwrap();
        drop(journal);
        dir.path().to_owned()
    }

    #[tokio::test]
    async fn outputs_of_ended_runs_are_found_newest_first() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().join("state");
        let state = StateDir::open(&root, &SystemProbe).unwrap();
        let over = || finished(RunOutcome::Succeeded);
        ran(&state, vec![ended("one", json!({ "n": 1 })), ended("one[3]", json!({ "n": 2 })), over()]).await;
        ran(&state, vec![ended("other", json!({ "n": 3 })), over()]).await;
        ran(&state, vec![ended("one", json!({ "n": 4 })), over()]).await;
        let open = ran(&state, vec![ended("one", json!({ "n": 5 }))]).await;
        let found = |past: &Past, limit| {
            past.outputs_of("restore", limit).iter().map(|it| it["n"].as_u64().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(found(&Past::beside(&open), 10), [4, 2, 1], "also those of elements, none of an open run");
        assert_eq!(found(&Past::of(&root), 2), [4, 2]);
        assert!(found(&Past::UNKNOWN, 10).is_empty());
        assert!(found(&Past::beside(Path::new("/nowhere/runs/x")), 10).is_empty());
    }
}
