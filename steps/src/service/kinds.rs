use std::time::Duration;

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::resource::{ResourceKind, Service, System};
use lifeboat_engine::step::{Effect, KindSpec, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Span, Type};
use serde::Deserialize;
use serde_json::{Value, json};

use super::ready;
use super::unit::{Started, Unit};

/// Starts a service and waits until it is ready.
#[derive(Debug)]
pub(super) struct Start;

/// Stops a service and waits until it has ended.
#[derive(Debug)]
pub(super) struct Stop;

/// Stops a service if it runs, starts it and waits until it is ready.
#[derive(Debug)]
pub(super) struct Restart;

/// Says whether a service runs and is ready.
#[derive(Debug)]
pub(super) struct Status;

#[derive(Deserialize)]
struct Params {
    service: String,
    ready_timeout: Option<Span>,
}

impl Params {
    fn patience(&self) -> Duration {
        self.ready_timeout.map_or(Duration::from_secs(60), |span| span.0)
    }
}

const START_DOC: &str = "\
A service that runs already is not started again, and must be ready too. With `ready` in the environment, the step waits
until that address answers with a status from 200 to 299; a process that ends meanwhile fails the step at once, with the
last lines of its log. Without `ready`, a warning says that nothing proves that it serves.

A service with `manager: process` runs in a session of its own, outlives the step, and is recorded before its program
executes; in a drill it is ended with everything else that the run created.";

const RESTART_DOC: &str = "\
Stops the service as `service.stop` does, then starts it and waits for it as `service.start` does. One that did not run
is started.";

fn ready_timeout() -> Field {
    Field::defaulted("ready_timeout", Type::Duration, "60s", "How long to wait for its `ready` address.")
}

fn service(ctx: &StepContext, name: &str) -> Result<Service, StepError> {
    let found = ctx.system(name, |system| match system {
        System::Service(service) => Some(service),
        _ => None,
    });
    found.cloned()
}

fn done(outputs: Value) -> Done {
    let Value::Object(outputs) = outputs else { unreachable!("an object was written") };
    Done { outputs, ..Done::default() }
}

/// Starts a service unless it runs, and waits until it is ready.
async fn bring_up(ctx: &StepContext, params: &Params, service: &Service) -> Result<Done, StepError> {
    let unit = Unit { name: &params.service, manager: &service.manager };
    let started = unit.start(ctx).await?;
    let waited = match &service.ready {
        Some(address) => ready::wait(ctx, &unit, (address, params.patience()), &started).await?,
        None => Duration::ZERO,
    };
    let fresh = !matches!(started, Started::AlreadyRunning);
    let mut done = done(json!({ "started": fresh, "ready_seconds": waited.as_secs_f64() }));
    if let Started::Process(server) = &started {
        done.facts.insert("process".into(), server.identity.pid.to_string());
        done.facts.insert("log".into(), server.log_file().display().to_string());
    }
    if service.ready.is_none() {
        let note = format!("`{}` has no `ready` address: that it serves was not checked", params.service);
        done.warnings.push(note);
    }
    Ok(done)
}

#[async_trait]
impl StepKind for Start {
    fn spec(&self) -> KindSpec {
        KindSpec::new("service.start", "Starts a service and waits until it is ready.", Effect::Idempotent)
            .doc(START_DOC)
            .param(Field::required("service", Type::writes(ResourceKind::Service), "The service."))
            .param(ready_timeout())
            .output("started", Type::Boolean, "False if it ran already.")
            .output("ready_seconds", Type::Number, "How long it took to become ready.")
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let service = service(ctx, &params.service)?;
        let unit = Unit { name: &params.service, manager: &service.manager };
        Ok(Preview { actions: vec![unit.describe_start()], destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        bring_up(ctx, &params, &service(ctx, &params.service)?).await
    }
}

#[async_trait]
impl StepKind for Stop {
    fn spec(&self) -> KindSpec {
        KindSpec::new("service.stop", "Stops a service and waits until it has ended.", Effect::Idempotent)
            .doc(
                "A service that does not run is no error. A process gets TERM and, after `stop_timeout` of its \
                 resource (15 seconds if absent), KILL, as does what is left of its group.",
            )
            .param(Field::required("service", Type::writes(ResourceKind::Service), "The service."))
            .output("was_running", Type::Boolean, "Whether it ran.")
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let service = service(ctx, &params.service)?;
        let unit = Unit { name: &params.service, manager: &service.manager };
        Ok(Preview { actions: vec![unit.describe_stop()], destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let service = service(ctx, &params.service)?;
        let unit = Unit { name: &params.service, manager: &service.manager };
        Ok(done(json!({ "was_running": unit.stop(ctx).await? })))
    }
}

#[async_trait]
impl StepKind for Restart {
    fn spec(&self) -> KindSpec {
        let summary = "Stops a service if it runs, starts it and waits until it is ready.";
        KindSpec::new("service.restart", summary, Effect::Idempotent)
            .doc(RESTART_DOC)
            .param(Field::required("service", Type::writes(ResourceKind::Service), "The service."))
            .param(ready_timeout())
            .output("started", Type::Boolean, "Always true.")
            .output("ready_seconds", Type::Number, "How long it took to become ready.")
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let service = service(ctx, &params.service)?;
        let unit = Unit { name: &params.service, manager: &service.manager };
        Ok(Preview { actions: vec![unit.describe_stop(), unit.describe_start()], destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let service = service(ctx, &params.service)?;
        Unit { name: &params.service, manager: &service.manager }.stop(ctx).await?;
        bring_up(ctx, &params, &service).await
    }
}

#[async_trait]
impl StepKind for Status {
    fn spec(&self) -> KindSpec {
        KindSpec::new("service.status", "Says whether a service runs and is ready.", Effect::Read)
            .doc("Never fails because the service is down: use its outputs in a condition.")
            .param(Field::required("service", Type::reads(ResourceKind::Service), "The service."))
            .output("running", Type::Boolean, "Whether its manager says that it runs.")
            .output(
                "ready",
                Type::Boolean,
                "Whether its `ready` address answers; as `running` if it has none.",
            )
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let service = service(ctx, &params.service)?;
        let unit = Unit { name: &params.service, manager: &service.manager };
        let running = unit.is_running(ctx).await?;
        let answers = match &service.ready {
            Some(address) => ready::ask(address).await.is_ok(),
            None => running,
        };
        Ok(done(json!({ "running": running, "ready": answers })))
    }
}
