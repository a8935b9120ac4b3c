//! Waits until a service is healthy, and stays so for a while.

use std::time::{Duration, Instant};

use lifeboat_engine::model::evidence::{Progress, Unit as Counted};
use lifeboat_engine::step::{StepContext, StepError};

use super::codes;
use super::standing::Standing;
use super::unit::{Started, Unit};

const POLL: Duration = Duration::from_millis(200);
const PER_REQUEST: Duration = Duration::from_secs(5);
/// Asking a manager starts a program.
const ASK_MANAGER: Duration = Duration::from_secs(1);
const SHOWN_LINES: usize = 10;

/// What is expected of a service that was started or reloaded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected<'a> {
    /// The address that answers when it is ready.
    pub(super) ready: Option<&'a str>,
    /// How long it may take to become ready.
    pub(super) patience: Duration,
    /// How long it must then stay so.
    pub(super) stable: Duration,
}

/// Asks once; the error says what came instead of a status from 200 to 299.
pub(super) async fn ask(address: &str) -> Result<(), String> {
    let client = reqwest::Client::builder()
        .timeout(PER_REQUEST)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .map_err(|error| causes(&error))?;
    let response = client.get(address).send().await.map_err(|error| causes(&error.without_url()))?;
    if response.status().is_success() { Ok(()) } else { Err(format!("status {}", response.status())) }
}

/// A service on its way up.
pub(super) struct Wait<'a> {
    ctx: &'a StepContext,
    unit: Unit<'a>,
    expected: Expected<'a>,
    started: &'a Started,
    begun: Instant,
    /// Since when it has been healthy without a break, and as which process.
    healthy: Option<(Instant, String)>,
    /// How often it was healthy and then not.
    relapses: u32,
    standing: Standing,
    asked: Option<Instant>,
}

impl<'a> Wait<'a> {
    pub(super) fn new(
        ctx: &'a StepContext,
        unit: Unit<'a>,
        expected: Expected<'a>,
        started: &'a Started,
    ) -> Self {
        let standing = Standing::default();
        let begun = Instant::now();
        Self { ctx, unit, expected, started, begun, healthy: None, relapses: 0, standing, asked: None }
    }

    /// Polls until the service has been healthy for as long as it must, until its process ends, or until the time is over.
    /// Returns how long it took to become healthy, and as what it stands.
    pub(super) async fn run(mut self) -> Result<(Duration, Standing), StepError> {
        loop {
            let last = tokio::select! {
                () = self.ctx.cancelled() => return Err(self.not_ready("the step had to end").await),
                last = self.look() => last?,
            };
            if let Some((since, _)) = &self.healthy
                && since.elapsed() >= self.expected.stable
                && self.asked.is_some_and(|asked| asked >= *since + self.expected.stable)
            {
                return Ok((*since - self.begun, self.standing));
            }
            if self.healthy.is_none() && self.begun.elapsed() >= self.expected.patience {
                return Err(self.not_ready(&last).await);
            }
            self.report(&last);
            tokio::time::sleep(POLL).await;
        }
    }

    /// Looks once at the process and at the address; returns what there is to say.
    async fn look(&mut self) -> Result<String, StepError> {
        self.look_at_process().await?;
        let answer = match self.expected.ready {
            Some(address) => ask(address).await.map_err(|why| format!("{address} gave {why}")),
            None => Ok(()),
        };
        let health = self.standing.health.as_deref().filter(|_| !self.standing.is_healthy());
        let problem = answer.err().or(health.map(|health| format!("its own health check says `{health}`")));
        match problem {
            None => {
                let main = &self.standing.main;
                self.healthy.get_or_insert_with(|| (Instant::now(), main.clone()));
                Ok("it is up; seeing whether it stays so".to_owned())
            }
            Some(problem) => {
                self.relapses += u32::from(self.healthy.take().is_some());
                Ok(format!("not ready: {problem}"))
            }
        }
    }

    /// Fails if the process has ended, or is another one since the service was healthy.
    async fn look_at_process(&mut self) -> Result<(), StepError> {
        let due = self.healthy.as_ref().map(|(since, _)| *since + self.expected.stable);
        let soon = self.asked.is_none_or(|asked| asked.elapsed() >= ASK_MANAGER)
            || due.is_some_and(|due| Instant::now() >= due);
        if let Started::Process(server) = self.started
            && !server.identity.is_alive()
        {
            return Err(self.ended().await);
        }
        if !soon {
            return Ok(());
        }
        self.standing = Standing::of(&self.unit, self.ctx).await?;
        self.asked = Some(Instant::now());
        let replaced = self.healthy.as_ref().is_some_and(|(_, main)| *main != self.standing.main);
        if !self.standing.running || replaced {
            return Err(self.ended().await);
        }
        Ok(())
    }

    fn report(&self, note: &str) {
        let (done, total) = (self.begun.elapsed().as_secs(), Some(self.expected.patience.as_secs()));
        self.ctx.progress(Progress { done, total, unit: Counted::Seconds, note: note.to_owned() });
    }

    async fn ended(&self) -> StepError {
        let when = match (&self.healthy, self.started) {
            (Some(_), _) => "just after it had become ready",
            (None, Started::AlreadyRunning) => "while the step waited for it to be ready",
            (None, _) => "while it was starting",
        };
        let message = format!("the service `{}` ended {when}", self.unit.name);
        let error = StepError::permanent(codes::LB1503, message);
        self.with_log(error, "its log says why; mend that and retry").await
    }

    async fn not_ready(&self, last: &str) -> StepError {
        let name = self.unit.name;
        let mut message = format!("the service `{name}` is not ready: {last}");
        if self.relapses > 0 {
            let times =
                if self.relapses == 1 { "once".to_owned() } else { format!("{} times", self.relapses) };
            message = format!("{message}; it was ready {times} and did not stay so");
        }
        let error = StepError::transient(codes::LB1502, message);
        self.with_log(error, "look at its log; raise `ready_timeout` if it needs longer").await
    }

    /// Adds the end of the log, and where the whole of it is.
    async fn with_log(&self, mut error: StepError, help: &str) -> StepError {
        if let Started::Process(server) = self.started {
            error.causes = server.log_tail(SHOWN_LINES);
            return error.help(format!("{help}; its whole log is {}", server.log_file().display()));
        }
        error.causes = self.unit.last_lines(self.ctx).await;
        error.help(help)
    }
}

pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
