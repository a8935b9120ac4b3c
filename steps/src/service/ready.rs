//! Waits until a service answers at its `ready` address.

use std::time::{Duration, Instant};

use lifeboat_engine::model::evidence::{Progress, Unit as Counted};
use lifeboat_engine::step::{StepContext, StepError};

use super::codes;
use super::unit::{Started, Unit};

const POLL: Duration = Duration::from_millis(200);
const PER_REQUEST: Duration = Duration::from_secs(5);
const SHOWN_LINES: usize = 10;

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

/// Polls until the address answers, the service's process ends, or `patience` is over. Returns the time it took.
pub(super) async fn wait(
    ctx: &StepContext,
    unit: &Unit<'_>,
    (address, patience): (&str, Duration),
    started: &Started,
) -> Result<Duration, StepError> {
    let begun = Instant::now();
    loop {
        let answer = tokio::select! {
            () = ctx.cancelled() => return Err(not_ready(unit, address, "the step had to end", started)),
            answer = ask(address) => answer,
        };
        let Err(last) = answer else { return Ok(begun.elapsed()) };
        if let Started::Process(server) = started
            && !server.identity.is_alive()
        {
            let message = format!("the service `{}` ended while it was starting", unit.name);
            let mut error = StepError::permanent(codes::LB1503, message);
            error.causes = server.log_tail(SHOWN_LINES);
            return Err(error.help(format!("its whole log is {}", server.log_file().display())));
        }
        if begun.elapsed() >= patience {
            return Err(not_ready(unit, address, &last, started));
        }
        let (done, total) = (begun.elapsed().as_secs(), Some(patience.as_secs()));
        ctx.progress(Progress { done, total, unit: Counted::Seconds, note: format!("not ready: {last}") });
        tokio::time::sleep(POLL).await;
    }
}

fn not_ready(unit: &Unit<'_>, address: &str, last: &str, started: &Started) -> StepError {
    let message = format!("the service `{}` is not ready: {address} gave {last}", unit.name);
    let mut error = StepError::transient(codes::LB1502, message);
    if let Started::Process(server) = started {
        error.causes = server.log_tail(SHOWN_LINES);
        error = error.help(format!(
            "look at its log, {}; raise `ready_timeout` if it needs longer",
            server.log_file().display()
        ));
    }
    error
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
