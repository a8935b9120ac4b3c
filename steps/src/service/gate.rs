//! `access.close` and `access.open`: who reaches a service, and the proof from outside.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::{Check, Progress, Unit as Counted};
use lifeboat_engine::resource::{Gate, ResourceKind, System};
use lifeboat_engine::step::{Effect, KindSpec, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Span, Type};
use serde::Deserialize;
use serde_json::{Value, json};

use super::codes;
use crate::process::Command;

/// Keeps people out.
#[derive(Debug)]
pub(super) struct Close;

/// Lets people in.
#[derive(Debug)]
pub(super) struct Open;

/// How a gate should stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Open,
}

#[derive(Deserialize)]
struct Params {
    gate: String,
    passes: u32,
    timeout: Span,
}

const POLL: Duration = Duration::from_millis(200);
const PER_REQUEST: Duration = Duration::from_secs(5);

const DOC: &str = "\
The service's `gate` in the environment says how: a `file` that is there while access is closed, which the web server or \
the application looks for, or commands to `close` and to `open`. Then the address `check` is asked from outside, as a \
visitor would, until it answers 503 (closed) or a status from 200 to 299 (open): a file that nobody looks at closes \
nothing. A gate that stands as it should already, seen from outside as well, is left alone.";

impl State {
    fn is_seen(self, status: u16) -> bool {
        match self {
            Self::Closed => status == 503,
            Self::Open => (200..300).contains(&status),
        }
    }

    fn in_words(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
        }
    }

    fn wanted(self) -> &'static str {
        match self {
            Self::Closed => "503",
            Self::Open => "200 to 299",
        }
    }

    fn describe(self, gate: &Gate) -> Vec<String> {
        let action = match (&gate.file, self) {
            (Some(file), Self::Closed) => format!("make {}", file.display()),
            (Some(file), Self::Open) => format!("remove {}", file.display()),
            (None, Self::Closed) => gate.close.join(" "),
            (None, Self::Open) => gate.open.join(" "),
        };
        vec![action, format!("ask {} until it answers {}", gate.check, self.wanted())]
    }
}

fn spec(name: &str, summary: &str) -> KindSpec {
    KindSpec::new(name, summary, Effect::Idempotent)
        .doc(DOC)
        .param(Field::required("gate", Type::writes(ResourceKind::Service), "The service that has the gate."))
        .param(Field::defaulted(
            "timeout",
            Type::Duration,
            "30s",
            "How long it may take until it is seen from outside.",
        ))
        .param(Field::defaulted(
            "passes",
            Type::Integer,
            3,
            "How often in a row it must be seen: behind a balancer one of several servers may still answer otherwise.",
        ))
        .output("changed", Type::Boolean, "False if it stood so already.")
        .output("status", Type::Integer, "What a visitor is answered.")
}

fn gate_of<'a>(ctx: &'a StepContext, name: &str) -> Result<&'a Gate, StepError> {
    let service = ctx.system(name, |system| match system {
        System::Service(service) => Some(service),
        _ => None,
    })?;
    service.gate.as_ref().ok_or_else(|| {
        StepError::permanent(codes::LB1505, format!("the service `{name}` has no `gate` in this environment"))
            .help(
                "give it `gate: { file: /run/app/closed, check: \"https://…\" }`; `lifeboat explain LB1505`",
            )
    })
}

#[async_trait]
impl StepKind for Close {
    fn spec(&self) -> KindSpec {
        spec("access.close", "Closes the access to a service, and proves it from outside.")
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        preview(ctx, State::Closed)
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        set(ctx, State::Closed).await
    }
}

#[async_trait]
impl StepKind for Open {
    fn spec(&self) -> KindSpec {
        spec("access.open", "Opens the access to a service, and proves it from outside.")
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        preview(ctx, State::Open)
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        set(ctx, State::Open).await
    }
}

fn preview(ctx: &StepContext, state: State) -> Result<Preview, StepError> {
    let params: Params = ctx.params()?;
    Ok(Preview { actions: state.describe(gate_of(ctx, &params.gate)?), destroys: Vec::new() })
}

async fn set(ctx: &StepContext, state: State) -> Result<Done, StepError> {
    let params: Params = ctx.params()?;
    let gate = gate_of(ctx, &params.gate)?;
    let stands = gate.file.as_ref().is_none_or(|file| file.exists() == (state == State::Closed));
    if stands {
        let mut seen = Seen { state, row: 0, passes: params.passes.max(1) };
        while let Ok(status) = ask(&gate.check).await
            && state.is_seen(status)
        {
            if seen.count(status) {
                return Ok(done(state, false, status));
            }
            pause(ctx).await;
        }
    }
    act(ctx, gate, state).await?;
    let seen = Seen { state, row: 0, passes: params.passes.max(1) };
    let status = wait(ctx, (&params.gate, gate), seen, params.timeout.0).await?;
    Ok(done(state, true, status))
}

/// How often in a row a gate was seen as it should stand.
struct Seen {
    state: State,
    row: u32,
    passes: u32,
}

impl Seen {
    /// Counts an answer; true once it was seen often enough.
    fn count(&mut self, status: u16) -> bool {
        self.row = if self.state.is_seen(status) { self.row + 1 } else { 0 };
        self.row >= self.passes
    }
}

async fn pause(ctx: &StepContext) {
    tokio::select! {
        () = ctx.cancelled() => {}
        () = tokio::time::sleep(POLL) => {}
    }
}

async fn act(ctx: &StepContext, gate: &Gate, state: State) -> Result<(), StepError> {
    if let Some(file) = &gate.file {
        return act_on_file(file, state).map_err(|error| {
            StepError::transient(codes::LB1507, format!("{} cannot be changed: {error}", file.display()))
                .help("its directory must exist, and the user of Lifeboat write there")
        });
    }
    let words = match state {
        State::Closed => &gate.close,
        State::Open => &gate.open,
    };
    let (program, args) =
        words.split_first().map_or(("", &[] as &[String]), |(first, rest)| (first.as_str(), rest));
    let output = Command::new(program).args(args).run(ctx).await?;
    if output.exit_code == 0 {
        return Ok(());
    }
    let message = format!("`{}` ended with exit code {}", words.join(" "), output.exit_code);
    let mut error = StepError::permanent(codes::LB1507, message);
    error.causes = output.stderr.last_lines(8);
    Err(error.help("try it by hand as the same user; the access may stand either way"))
}

fn act_on_file(file: &Path, state: State) -> io::Result<()> {
    match state {
        State::Closed => {
            let made = File::options().create(true).append(true).mode(0o644).open(file)?;
            made.sync_all()
        }
        State::Open => match std::fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    }?;
    // After a power cut it must stand as it was left.
    file.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

async fn wait(
    ctx: &StepContext,
    (name, gate): (&str, &Gate),
    mut seen: Seen,
    patience: Duration,
) -> Result<u16, StepError> {
    let begun = Instant::now();
    loop {
        let last = match ask(&gate.check).await {
            Ok(status) if seen.count(status) => return Ok(status),
            Ok(status) => format!("status {status}"),
            Err(error) => {
                seen.row = 0;
                error
            }
        };
        // What is as it should be is waited for, however slowly it comes often enough.
        if (seen.row == 0 && begun.elapsed() >= patience) || ctx.cancel.is_cancelled() {
            return Err(not_seen((name, gate), seen.state, &last));
        }
        let (done, total) = (begun.elapsed().as_secs(), Some(patience.as_secs()));
        ctx.progress(Progress { done, total, unit: Counted::Seconds, note: format!("from outside: {last}") });
        pause(ctx).await;
    }
}

fn not_seen((name, gate): (&str, &Gate), state: State, seen: &str) -> StepError {
    let message = format!(
        "the access to `{name}` is not {} as seen from outside: {} gave {seen}, not {}",
        state.in_words(),
        gate.check,
        state.wanted()
    );
    let help = match state {
        State::Closed => "does the web server look at the gate, and was it reloaded since it does?",
        State::Open => "does the service run and answer? Look with `service.status` and its log",
    };
    StepError::transient(codes::LB1506, message).help(help)
}

fn done(state: State, changed: bool, status: u16) -> Done {
    let Value::Object(outputs) = json!({ "changed": changed, "status": status }) else {
        unreachable!("an object was written")
    };
    let check = Check {
        name: format!("access is {} as seen from outside", state.in_words()),
        expected: state.wanted().to_owned(),
        actual: status.to_string(),
        passed: true,
    };
    Done { outputs, checks: vec![check], ..Done::default() }
}

/// Asks once, as a visitor without a cache would.
async fn ask(address: &str) -> Result<u16, String> {
    let client = reqwest::Client::builder()
        .timeout(PER_REQUEST)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .map_err(|error| error.to_string())?;
    let request = client.get(address).header("cache-control", "no-cache");
    let answer = request.send().await.map_err(|error| super::health::causes(&error.without_url()))?;
    Ok(answer.status().as_u16())
}
