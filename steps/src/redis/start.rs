//! Stops and starts the server of a Redis resource.

use std::time::{Duration, Instant};

use lifeboat_engine::model::evidence::{Progress, Unit as Counted};
use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::resource::Manager;
use lifeboat_engine::step::{StepContext, StepError};

use super::client::{Client, server};
use super::codes;
use super::config::required;
use super::info::Info;
use crate::process::{Identity, identity};
use crate::service::{STOP_PATIENCE, Started, Unit};

const POLL: Duration = Duration::from_millis(100);
const STOPS_WITHIN: Duration = Duration::from_secs(60);

/// Stops the server in a way that it writes nothing, and waits until nobody answers.
pub(super) async fn stop(
    ctx: &StepContext,
    (name, manager): (&str, &Manager),
    client: Option<Client>,
) -> Result<(), StepError> {
    let unit = Unit { name, manager };
    if let Some(mut client) = client {
        // With save points a server writes its dump when it is told to end.
        client.command::<()>(&["CONFIG", "SET", "save", ""]).await?;
        // Redis 7 can be configured to save on a signal all the same; older ones do not know the setting.
        let _ = client.try_command::<()>(&["CONFIG", "SET", "shutdown-on-sigterm", "nosave"]).await;
        if let Manager::Process { .. } = manager {
            // The answer is a closed connection.
            let _ = client.try_command::<()>(&["SHUTDOWN", "NOSAVE"]).await;
        }
    }
    unit.stop(ctx, STOP_PATIENCE).await?;
    let deadline = Instant::now() + STOPS_WITHIN;
    while Client::connect_if_up(ctx, name).await?.is_some() {
        if Instant::now() >= deadline || ctx.cancel.is_cancelled() {
            let message = format!("the Redis server `{name}` still answers after it was stopped");
            return Err(StepError::transient(codes::LB1307, message)
                .help("something starts it again: stop that first, or correct `service` of the resource"));
        }
        tokio::time::sleep(POLL).await;
    }
    wait_for_writers(ctx, name, deadline).await
}

/// Waits until nobody writes a dump in the data directory any more: the process that does so for a server outlives one that is
/// killed, and gives its file the name of the dump in the end, over whatever has that name then.
async fn wait_for_writers(ctx: &StepContext, name: &str, deadline: Instant) -> Result<(), StepError> {
    let (dir, _) = required(ctx, server(ctx, name)?, name)?;
    loop {
        let is_server = |program: &str| ["redis", "valkey", "keydb"].iter().any(|it| program.starts_with(it));
        let writes = |process: &Identity| dir.join(format!("temp-{}.rdb", process.pid)).exists();
        let Some(writer) = identity::working_in(dir, is_server).into_iter().find(writes) else {
            return Ok(());
        };
        if Instant::now() >= deadline || ctx.cancel.is_cancelled() {
            let message = format!(
                "process {} still writes a dump in {}, for a server that is gone",
                writer.pid,
                dir.display()
            );
            return Err(StepError::transient(codes::LB1307, message)
                .help("nothing was replaced yet: wait until it has ended, or end it, and retry"));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Starts the server and waits until it has loaded its data.
pub(super) async fn start(
    ctx: &StepContext,
    (name, manager): (&str, &Manager),
    patience: Duration,
) -> Result<(Client, Info, Duration), StepError> {
    let begun = Instant::now();
    let started = Unit { name, manager }.start(ctx).await?;
    loop {
        if let Some((client, info)) = look(ctx, name).await? {
            if !info.flag("loading") {
                return Ok((client, info, begun.elapsed()));
            }
            report(ctx, &info);
        }
        if let Started::Process(server) = &started
            && !server.identity.is_alive()
        {
            let mut error = not_up(name, "ended while it was starting");
            error.causes = server.log_tail(10);
            return Err(error.help(format!("its whole log is {}", server.log_file().display())));
        }
        if begun.elapsed() >= patience {
            return Err(not_up(name, "has not loaded its data within `load_timeout`"));
        }
        tokio::select! {
            () = ctx.cancelled() => return Err(not_up(name, "was not waited for")),
            () = tokio::time::sleep(POLL) => {}
        }
    }
}

/// Asks a server that is coming up; connections that break meanwhile are part of that.
async fn look(ctx: &StepContext, name: &str) -> Result<Option<(Client, Info)>, StepError> {
    let asked = async {
        match Client::connect_if_up(ctx, name).await? {
            Some(mut client) => client.info().await.map(|info| Some((client, info))),
            None => Ok(None),
        }
    };
    match asked.await {
        Err(error) if error.kind == FailureKind::Transient => Ok(None),
        other => other,
    }
}

fn report(ctx: &StepContext, info: &Info) {
    if let Some(done) = info.number("loading_loaded_bytes") {
        let total = info.number("loading_total_bytes");
        ctx.progress(Progress { done, total, unit: Counted::Bytes, note: "loading".into() });
    }
}

fn not_up(name: &str, problem: &str) -> StepError {
    StepError::uncertain(codes::LB1309, format!("the Redis server `{name}` {problem}"))
        .help("look at the log of the server; `lifeboat retry` places the snapshot and starts it again")
}
