//! Lets MariaDB's own programs replay a plan, and reads afterwards what the server has logged of it.

use std::fs::File;
use std::io::BufReader;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use lifeboat_engine::model::evidence::{Check, Progress, Unit};
use lifeboat_engine::resource::Mariadb;
use lifeboat_engine::step::{StepContext, StepError};

use super::super::connect::{Client, Login, QUICK, text};
use super::super::{codes, tools};
use super::events;
use super::gtid::{Gtid, State};
use super::plan::Plan;
use crate::process::Output;
use crate::store::blocking;

const TICK: Duration = Duration::from_millis(500);

/// One replay.
pub(super) struct Apply<'a> {
    pub(super) ctx: &'a StepContext,
    pub(super) mariadb: &'a Mariadb,
    pub(super) login: &'a Login,
    pub(super) plan: &'a Plan,
}

impl Apply<'_> {
    /// Replays all but the first transactions: one program reads all files, one connection takes them.
    pub(super) async fn run(&self, skip: usize) -> Result<(), StepError> {
        let (reading, writing) = os_pipe::pipe()
            .map_err(|error| StepError::transient(codes::LB2053, "no pipe can be made").caused_by(&error))?;
        let first = &self.plan.steps[skip];
        let mut log = tools::bare(self.mariadb, "mariadb-binlog")?
            .arg("--verify-binlog-checksum")
            .arg(format!("--start-position={}", first.transaction.offset));
        if let Some(stop) = self.plan.stop {
            log = log.arg(format!("--stop-position={stop}"));
        }
        let files = self.plan.pieces[first.piece..].iter().map(|piece| &piece.path);
        let log = log.arg("--").args(files).stdout_to(File::from(OwnedFd::from(writing)));
        let client = tools::client(self.mariadb, "mariadb", self.login)
            .await?
            .args(["--binary-mode", "--batch", "--max-allowed-packet=1G"])
            .stdin_from(File::from(OwnedFd::from(reading)));
        let both = async { tokio::join!(client.run(self.ctx), log.run(self.ctx)) };
        let (client, log) = self.watched(both).await;
        // The reader ends by a broken pipe when the client does: the client's word comes first.
        check("mariadb", client?)?;
        check("mariadb-binlog", log?)
    }

    /// Shows how far the server has come meanwhile.
    async fn watched<T>(&self, work: impl Future<Output = T>) -> T {
        let mut ticks = tokio::time::interval(TICK);
        let mut client = self.login.connect().await.ok();
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = ticks.tick() => {
                    let Some(asked) = client.as_mut() else { continue };
                    match asked.one::<1>("select @@gtid_binlog_pos").await {
                        Ok([gtid]) => self.report(&gtid),
                        Err(_) => client = None,
                    }
                }
            }
        }
    }

    fn report(&self, gtid: &str) {
        let state = State::parse(gtid).unwrap_or_default();
        let at = |last: Gtid| self.plan.steps.iter().rposition(|step| step.transaction.gtid == last);
        let done = state.all().filter_map(at).max().map_or(0, |at| at + 1);
        self.ctx.progress(Progress {
            done: done as u64,
            total: Some(self.plan.steps.len() as u64),
            unit: Unit::Items,
            note: "replaying transactions".into(),
        });
    }
}

fn check(program: &str, output: Output) -> Result<(), StepError> {
    if output.exit_code == 0 {
        return Ok(());
    }
    let mut error = StepError::permanent(
        codes::LB2053,
        format!("the replay stopped: {program}: {}", tools::said(&output)),
    )
    .help("what was replayed until then is there: mend the cause and retry, which goes on behind it, or restore the dump again");
    error.causes = tools::shown(&output);
    Err(error)
}

/// Compares what the server has written into its own binary log with the plan, transaction by transaction.
pub(super) async fn logged(client: &mut Client, plan: &Plan) -> Result<Option<Check>, StepError> {
    let [base] = client.one("select @@log_bin_basename").await?;
    let rows = client.rows("show binary logs", QUICK).await?;
    let names: Vec<_> = rows.iter().map(|row| text(row, 0)).collect();
    let dir = Path::new(&base).parent().unwrap_or(Path::new("/")).to_path_buf();
    let found = blocking(move || Ok(read_all(&dir, &names))).await?;
    // A server whose files are out of reach is held against its last transactions only.
    let Some(found) = found else { return Ok(None) };
    let planned: Vec<Gtid> = plan.steps.iter().map(|step| step.transaction.gtid).collect();
    let differs = planned.iter().zip(&found).position(|(planned, found)| planned != found);
    let actual = match differs {
        Some(at) => format!(
            "{} of {}; number {} is {}, not {}",
            found.len(),
            planned.len(),
            at + 1,
            found[at],
            planned[at]
        ),
        None => format!("{} transactions", found.len()),
    };
    Ok(Some(Check {
        name: "transactions in the server's own log".into(),
        expected: format!("{} transactions", planned.len()),
        actual,
        passed: planned == found,
    }))
}

fn read_all(dir: &Path, names: &[String]) -> Option<Vec<Gtid>> {
    let mut all = Vec::new();
    for name in names {
        let file = File::open(dir.join(name)).ok()?;
        let log = events::read(BufReader::with_capacity(256 * 1024, file)).ok()?;
        all.extend(log.transactions.iter().map(|transaction| transaction.gtid));
    }
    Some(all)
}
