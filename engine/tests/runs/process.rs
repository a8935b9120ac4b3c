//! What a process that drives a run is made of, as far as these tests need it.

use std::path::Path;
use std::sync::Arc;

use lifeboat_engine::clock::{Clock, SystemClock};
use lifeboat_engine::journal::{self, Header, Journal};
use lifeboat_engine::model::event::EventKind;
use lifeboat_engine::model::{Attempt, Request, RunId, StepId, Stream};
use lifeboat_engine::plan::Plan;
use lifeboat_engine::redact::Redactor;
use lifeboat_engine::run::RunState;
use lifeboat_engine::run::driver::{OutputSink, Patience, RequestSource, Setup};
use lifeboat_engine::secret::Secrets;
use lifeboat_engine::step::Registry;
use tokio::sync::mpsc;

struct NoOutput;

impl OutputSink for NoOutput {
    fn line(&self, _: &StepId, _: Attempt, _: Stream, line: &str) -> String {
        line.to_owned()
    }
}

struct NoRequests;

impl RequestSource for NoRequests {
    fn poll(&mut self) -> Vec<(uuid::Uuid, Request)> {
        Vec::new()
    }

    fn done(&mut self, _: uuid::Uuid) {}
}

/// Makes the journal of a new run, with the event that declares it.
pub(crate) async fn declare(dir: &Path, plan: &Plan, clock: Arc<dyn Clock>, declared: EventKind) -> Journal {
    let header = Header {
        run: RunId::generate(),
        engine: "test".into(),
        created_ms: clock.now_ms(),
        plan: plan.clone(),
    };
    let journal = Journal::create(dir, header, clock).unwrap();
    journal.append(vec![declared]).await.unwrap();
    journal
}

/// A process that goes on with a run where its journal stands, that nobody speaks to, and that leaves when only a person can
/// help.
pub(crate) fn setup(dir: &Path, plan: &Plan, registry: Registry, journal: Journal) -> Setup {
    let mut state = RunState::new(plan);
    journal::read(dir).unwrap().1.iter().for_each(|event| state.apply(&event.kind).unwrap());
    Setup {
        run: journal.header().run,
        plan: Arc::new(plan.clone()),
        registry: Arc::new(registry),
        journal,
        state,
        dir: dir.to_owned(),
        secrets: Arc::new(Secrets::default()),
        redactor: Redactor::default(),
        output: Arc::new(NoOutput),
        clock: Arc::new(SystemClock),
        reporters: Vec::new(),
        controls: mpsc::channel(1).1,
        requests: Box::new(NoRequests),
        when_held: Patience::Leave,
        when_waiting: Patience::Leave,
    }
}
