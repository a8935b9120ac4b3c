use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use crate::journal::Reader;
use crate::model::{Event, EventKind, Outcome, StepId};
use crate::plan::Plan;
use crate::runs::StateDir;

/// This many of the last runs count: what was so long ago says little about today.
const RUNS: usize = 10;
/// No more journals than this are opened to find them.
const JOURNALS: usize = 200;

/// How long steps took in the last runs of the same runbook, in the same environment and mode.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    took: BTreeMap<StepId, Vec<i64>>,
    /// How many runs were read.
    pub runs: usize,
}

/// How long a step took in several runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Took {
    /// Milliseconds from its start to its end, waits for retries and people included.
    pub median_ms: i64,
    /// In how many runs it succeeded.
    pub runs: usize,
}

impl History {
    /// Reads the journals in a state directory. Writes nothing there, not even what SQLite would; runs that are open, and
    /// journals that cannot be read, are passed over.
    pub fn read(state_dir: &Path, plan: &Plan) -> Self {
        let mut history = Self::default();
        let Some(runs) = StateDir::look(state_dir).and_then(|state| state.runs().ok()) else {
            return history;
        };
        for run in runs.iter().take(JOURNALS) {
            if history.runs == RUNS {
                break;
            }
            let Ok(Some(reader)) = Reader::open_at_rest(run.path()) else { continue };
            let earlier = &reader.header().plan;
            let same = earlier.runbook == plan.runbook
                && earlier.environment == plan.environment
                && earlier.mode == plan.mode;
            if !same || !reader.is_finished().unwrap_or(false) {
                continue;
            }
            if let Ok(events) = reader.essential() {
                history.add(&events);
            }
        }
        history
    }

    /// Adds the events of one run that has ended.
    pub fn add(&mut self, events: &[Event]) {
        let mut started: HashMap<StepId, i64> = HashMap::new();
        for event in events {
            match &event.kind {
                // A step that is repeated for the elements of a list begins with the first of them.
                EventKind::AttemptStarted { step, .. } => {
                    started.entry(step.whole()).or_insert(event.at_ms);
                }
                EventKind::StepFinished { step, outcome: Outcome::Succeeded } if step.element().is_none() => {
                    if let Some(from) = started.get(step) {
                        let took = (event.at_ms - from).max(0);
                        self.took.entry(step.clone()).or_default().push(took);
                    }
                }
                _ => {}
            }
        }
        self.runs += 1;
    }

    /// Returns how long a step took. `None` if it has not succeeded in any of the runs.
    pub fn of(&self, step: &StepId) -> Option<Took> {
        let mut took = self.took.get(step)?.clone();
        took.sort_unstable();
        let (low, high) = (took[(took.len() - 1) / 2], took[took.len() / 2]);
        Some(Took { median_ms: low + (high - low) / 2, runs: took.len() })
    }
}
