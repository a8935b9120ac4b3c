//! Goes on after an attempt that was cut off: its session is ended first, and what it has replayed must still be there.

use std::time::{Duration, Instant};

use lifeboat_engine::process::boot_id;
use lifeboat_engine::step::{StepContext, StepError};
use serde::{Deserialize, Serialize};

use super::super::codes;
use super::super::connect::{Client, QUICK};
use super::super::dump::Restored;
use super::apply::own_log;
use super::archive::number;
use super::events::End;
use super::plan::Plan;

/// The session of a replay holds this lock of the server until it ends, by whatever it ends.
pub(super) const LOCK: &str = "lifeboat_replay";
/// Under this key the first attempt records the server before it replays anything.
const BEGUN: &str = "begun";
const POLL: Duration = Duration::from_millis(100);
/// How long taking a large transaction back may last.
const ENDS_WITHIN: Duration = Duration::from_secs(600);

/// Ends the session of an attempt whose program is gone, and waits for its end: the server finishes what it was given last, a
/// commit perhaps, without noticing that nobody listens.
pub(super) async fn end_session(ctx: &StepContext, client: &mut Client) -> Result<(), StepError> {
    let deadline = Instant::now() + ENDS_WITHIN;
    loop {
        let [id] = client.one(&format!("select ifnull(is_used_lock('{LOCK}'), '')")).await?;
        if id.is_empty() {
            return Ok(());
        }
        match client.run(&format!("kill {id}"), QUICK).await {
            // It has ended in between.
            Err(error) if error.number() == Some(1094) => {}
            other => drop(other?),
        }
        if Instant::now() >= deadline || ctx.cancel.is_cancelled() {
            let message =
                format!("the session {id} of an earlier attempt still takes back what it had begun");
            return Err(StepError::transient(codes::LB2057, message)
                .help("nothing was replayed by this attempt; look at it: show processlist"));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The server as it was before anything was replayed into it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Begun {
    /// The machine of Lifeboat since its start.
    boot: String,
    /// When the server was started, in seconds of its own clock.
    started: String,
    /// The number of the log file that it wrote.
    file: u64,
    /// `innodb_flush_log_at_trx_commit` and `sync_binlog`.
    flush: String,
    sync: String,
}

impl Begun {
    async fn read(client: &mut Client) -> Result<Self, StepError> {
        let [started, flush, sync] = client
            .one(
                "select unix_timestamp() - cast(variable_value as unsigned), @@innodb_flush_log_at_trx_commit, @@sync_binlog \
                 from information_schema.global_status where variable_name = 'UPTIME'",
            )
            .await?;
        let [file] = client.one("show master status").await?;
        Ok(Self { boot: boot_id(), started, file: number(&file).unwrap_or(0), flush, sync })
    }

    /// Says whether a server with these settings, that was killed, has exactly the transactions that its binary log has.
    fn outlives_kill(&self, now: &Self) -> bool {
        let machine_stayed = self.boot == now.boot;
        match self.flush.as_str() {
            "0" => false,
            "1" if self.sync == "1" => true,
            // Written when it was committed, though not to the disk itself.
            _ => machine_stayed,
        }
    }
}

/// Records the server once, before the first transaction is replayed into it.
pub(super) async fn begin(ctx: &StepContext, client: &mut Client) -> Result<(), StepError> {
    if ctx.recorded(BEGUN).is_some() {
        return Ok(());
    }
    let begun = Begun::read(client).await?;
    ctx.record(BEGUN, serde_json::to_value(begun).expect("plain data is JSON")).await
}

/// Refuses to go on where what was replayed may be gone again.
pub(super) async fn check(
    ctx: &StepContext,
    client: &mut Client,
    restored: &Restored,
    (plan, before): (&Plan, usize),
) -> Result<(), StepError> {
    const ANEW: &str = "restore the dump into a fresh server, and replay into that";
    let refuse = |code, message: String| Err(StepError::permanent(code, message).help(ANEW));
    if before == 0 {
        return Ok(());
    }
    if was_killed(ctx, client).await? {
        return refuse(
            codes::LB2056,
            "the server, or its machine, went down during an earlier attempt, and by its settings \
             (innodb_flush_log_at_trx_commit, sync_binlog) it may have lost transactions that it says it has"
                .to_owned(),
        );
    }
    if before == plan.steps.len() {
        return Ok(());
    }
    if plan.steps[..before].iter().map(|step| step.transaction.temporary).sum::<i64>() > 0 {
        return refuse(
            codes::LB2053,
            "an earlier attempt was cut off, and what it had in temporary tables is gone".to_owned(),
        );
    }
    if !restored.not_transactional.is_empty() {
        return refuse(
            codes::LB2053,
            format!(
                "an earlier attempt was cut off, and half a statement may be in tables without transactions: {}",
                restored.not_transactional.join(", ")
            ),
        );
    }
    Ok(())
}

/// Says whether the server has not ended in order since the first attempt, and may have forgotten something.
async fn was_killed(ctx: &StepContext, client: &mut Client) -> Result<bool, StepError> {
    let Some(begun) = ctx.recorded(BEGUN).and_then(|value| Begun::deserialize(value).ok()) else {
        return Ok(false);
    };
    let now = Begun::read(client).await?;
    // A server begins a file whenever it starts.
    if begun.file == now.file || begun.outlives_kill(&now) {
        return Ok(false);
    }
    // Out of reach, they prove nothing; then all that is left is when it started, to a second.
    let Some(log) = own_log(client).await? else { return Ok(begun.started != now.started) };
    let written = begun.file..now.file;
    let since: Vec<_> =
        log.iter().filter(|(name, _)| number(name).is_some_and(|at| written.contains(&at))).collect();
    let all_there = now.file.checked_sub(begun.file) == Some(since.len() as u64);
    Ok(!all_there || since.iter().any(|(_, file)| file.end == End::Open))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_server_still_has_depends_on_its_settings_and_the_machine() {
        let server = |boot: &str, flush: &str, sync: &str| Begun {
            boot: boot.into(),
            started: "1".into(),
            file: 1,
            flush: flush.into(),
            sync: sync.into(),
        };
        let now = server("a", "1", "0");
        for (begun, outlives) in [
            (server("a", "0", "1"), false),
            (server("a", "2", "0"), true),
            (server("a", "1", "0"), true),
            (server("b", "1", "1"), true),
            (server("b", "1", "0"), false),
            (server("b", "2", "1"), false),
        ] {
            assert_eq!(begun.outlives_kill(&now), outlives, "{begun:?}");
        }
    }
}
