use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::resource::{ResourceKind, Service, System};
use lifeboat_engine::step::{Effect, KindSpec, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Span, Type};
use serde::Deserialize;
use serde_json::{Value, json};

use super::health::{self, Expected, Wait};
use super::standing::Standing;
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
    #[serde(flatten)]
    times: Times,
}

#[derive(Deserialize)]
struct StopParams {
    service: String,
    stop_timeout: Span,
}

/// How long a service may take to become ready, and how long it must stay so.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Times {
    ready_timeout: Span,
    stable_for: Span,
}

impl Times {
    /// Returns what is expected of a service with this `ready` address.
    pub(super) fn expected<'a>(&self, ready: Option<&'a str>) -> Expected<'a> {
        Expected { ready, patience: self.ready_timeout.0, stable: self.stable_for.0 }
    }
}

const START_DOC: &str = "\
A service that runs already is not started again, and must be ready too. With `ready` in the environment, the step waits
until that address answers with a status from 200 to 299; a container that has a health check of its own must pass it as
well. Then it must stay so for `stable_for`, as the same process: one that answers once and dies, or that its manager starts
again and again, is not up. A service that ends meanwhile fails the step at once, with the last lines of its log. Without
`ready` and health check, a warning says that nothing proves that it serves.

A service with `manager: process` runs in a session of its own, outlives the step, and is recorded before its program
executes; in a drill it is ended with everything else that the run created.";

const RESTART_DOC: &str = "\
Stops the service as `service.stop` does, then starts it and waits for it as `service.start` does. One that did not run
is started.";

pub(super) fn ready_timeout() -> Field {
    Field::defaulted("ready_timeout", Type::Duration, "60s", "How long it may take to become ready.")
}

pub(super) fn stable_for() -> Field {
    Field::defaulted(
        "stable_for",
        Type::Duration,
        "1s",
        "How long it must then stay ready, as the same process.",
    )
}

fn stop_timeout() -> Field {
    let summary =
        "How long to wait for systemd or docker to stop it; a process has `stop_timeout` of its resource.";
    Field::defaulted("stop_timeout", Type::Duration, "2m", summary)
}

pub(super) fn service(ctx: &StepContext, name: &str) -> Result<Service, StepError> {
    let found = ctx.system(name, |system| match system {
        System::Service(service) => Some(service),
        _ => None,
    });
    found.cloned()
}

pub(super) fn done(outputs: Value) -> Done {
    let Value::Object(outputs) = outputs else { unreachable!("an object was written") };
    Done { outputs, ..Done::default() }
}

/// Says that nothing proves that a service serves, if that is so.
pub(super) fn unproven(name: &str, service: &Service, standing: &Standing) -> Option<String> {
    let unproven = service.ready.is_none() && standing.health.is_none();
    unproven.then(|| format!("`{name}` has no `ready` address: that it serves was not checked"))
}

/// Starts a service unless it runs, and waits until it is ready.
async fn bring_up(ctx: &StepContext, params: &Params, service: &Service) -> Result<Done, StepError> {
    let unit = Unit { name: &params.service, manager: &service.manager };
    let started = unit.start(ctx).await?;
    let expected = params.times.expected(service.ready.as_deref());
    let (waited, standing) = Wait::new(ctx, unit, expected, &started).run().await?;
    let fresh = !matches!(started, Started::AlreadyRunning);
    let mut done = done(json!({ "started": fresh, "ready_seconds": waited.as_secs_f64() }));
    if let Started::Process(server) = &started {
        done.facts.insert("process".into(), server.identity.pid.to_string());
        done.facts.insert("log".into(), server.log_file().display().to_string());
    }
    done.warnings.extend(unproven(&params.service, service, &standing));
    Ok(done)
}

#[async_trait]
impl StepKind for Start {
    fn spec(&self) -> KindSpec {
        KindSpec::new("service.start", "Starts a service and waits until it is ready.", Effect::Idempotent)
            .doc(START_DOC)
            .param(Field::required("service", Type::writes(ResourceKind::Service), "The service."))
            .param(ready_timeout())
            .param(stable_for())
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
                 resource (15 seconds if absent), KILL, as does what is left of its group. systemd and docker have \
                 limits of their own for that, and are waited for as long as `stop_timeout` says; the step fails if the \
                 service runs afterwards, for example because something starts it again.",
            )
            .param(Field::required("service", Type::writes(ResourceKind::Service), "The service."))
            .param(stop_timeout())
            .output("was_running", Type::Boolean, "Whether it ran.")
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: StopParams = ctx.params()?;
        let service = service(ctx, &params.service)?;
        let unit = Unit { name: &params.service, manager: &service.manager };
        Ok(Preview { actions: vec![unit.describe_stop()], destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: StopParams = ctx.params()?;
        let service = service(ctx, &params.service)?;
        let unit = Unit { name: &params.service, manager: &service.manager };
        Ok(done(json!({ "was_running": unit.stop(ctx, params.stop_timeout.0).await? })))
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
            .param(stable_for())
            .param(stop_timeout())
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
        let stop: StopParams = ctx.params()?;
        let unit = Unit { name: &params.service, manager: &service.manager };
        unit.stop(ctx, stop.stop_timeout.0).await?;
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
                "Whether its `ready` address answers and its container's health check passes; as `running` if it has \
                 neither.",
            )
            .output("main_process", Type::String, "Its main process as the manager knows it; empty if there is none.")
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        #[derive(Deserialize)]
        struct Which {
            service: String,
        }
        let params: Which = ctx.params()?;
        let service = service(ctx, &params.service)?;
        let unit = Unit { name: &params.service, manager: &service.manager };
        let standing = Standing::of(&unit, ctx).await?;
        let answers = match &service.ready {
            Some(address) => health::ask(address).await.is_ok(),
            None => standing.running,
        };
        let ready = answers && standing.is_healthy();
        Ok(done(json!({ "running": standing.running, "ready": ready, "main_process": standing.main })))
    }
}
