//! Lets MariaDB's own programs replay a plan, and reads afterwards what the server has logged of it.

use std::fs::File;
use std::io::{BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use lifeboat_engine::model::evidence::{Check, Progress, Unit};
use lifeboat_engine::resource::Mariadb;
use lifeboat_engine::step::{StepContext, StepError};
use serde_json::Value;

use super::super::connect::{Client, Login, PATIENCE, QUICK, text};
use super::super::{codes, tools};
use super::again;
use super::events::{self, LogFile};
use super::gtid::{Gtid, State};
use super::plan::Plan;
use crate::process::{self, Command, Output};
use crate::store::blocking;

const TICK: Duration = Duration::from_millis(500);
/// The client's last error, if it has run everything.
const ALL: &str = "Lifeboat: all is replayed";

/// One replay.
pub(super) struct Apply<'a> {
    pub(super) ctx: &'a StepContext,
    pub(super) mariadb: &'a Mariadb,
    pub(super) login: &'a Login,
    pub(super) plan: &'a Plan,
}

impl Apply<'_> {
    /// Replays all but the first transactions: one program reads all files, one connection takes them.
    ///
    /// At the end of its input the client would run what it has of a statement, as if it were whole: half a definition of a
    /// table, which no rollback takes back, if the reader is killed. So it never sees an end: it holds its input open itself,
    /// and the last statement, which is only sent when the reader has ended well, makes it end.
    pub(super) async fn run(&self, skip: usize) -> Result<(), StepError> {
        let no_pipe = |error: &std::io::Error| {
            StepError::transient(codes::LB2053, "no pipe can be made").caused_by(error)
        };
        let (reading, writing) = os_pipe::pipe().map_err(|error| no_pipe(&error))?;
        let endless = endless(&reading).map_err(|error| no_pipe(&error))?;
        let last_word = File::from(OwnedFd::from(writing.try_clone().map_err(|error| no_pipe(&error))?));
        drop(reading);
        let log = self.reader(skip)?.stdout_to(File::from(OwnedFd::from(writing)));
        let client = tools::client(self.mariadb, "mariadb", self.login)
            .await?
            .args(["--binary-mode", "--batch", "--max-allowed-packet=1G"])
            .arg(format!("--init-command=set {PATIENCE}, @lifeboat = get_lock('{}', 0)", again::LOCK))
            .stdin_from(endless)
            .quiet_stderr();
        // Ends the client without ending the step.
        let apart = self.ctx.look(Value::Null, self.ctx.link());
        let read = async {
            let log = log.run(self.ctx).await;
            match log.as_ref().is_ok_and(|output| output.exit_code == 0) {
                true => say(last_word).await,
                false => apart.cancel.cancel(),
            }
            log
        };
        let both = async { tokio::join!(client.run(&apart), read) };
        let (client, log) = self.watched(both).await;
        match client {
            Ok(client) if said_all(&client) => check("mariadb-binlog", log?),
            // The reader ends by a broken pipe when the client does: the client's word comes first.
            Ok(client) => Err(stopped("mariadb", &client)),
            Err(error) if error.code == process::codes::LB1004 && !self.ctx.cancel.is_cancelled() => {
                check("mariadb-binlog", log?).and(Err(error))
            }
            Err(error) => Err(error),
        }
    }

    fn reader(&self, skip: usize) -> Result<Command, StepError> {
        let first = &self.plan.steps[skip];
        let mut log = tools::bare(self.mariadb, "mariadb-binlog")?
            .arg("--verify-binlog-checksum")
            .arg(format!("--start-position={}", first.transaction.offset));
        if let Some(stop) = self.plan.stop {
            log = log.arg(format!("--stop-position={stop}"));
        }
        Ok(log.arg("--").args(self.plan.pieces[first.piece..].iter().map(|piece| &piece.path)))
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

/// Opens a pipe for reading and writing: who has it never finds it ended.
fn endless(pipe: &os_pipe::PipeReader) -> std::io::Result<File> {
    File::options().read(true).write(true).open(format!("/proc/self/fd/{}", pipe.as_raw_fd()))
}

/// Ends the client with an error that nothing else makes.
async fn say(mut last_word: File) {
    let written = blocking(move || {
        // It fails if the client has ended already, which then says why.
        drop(writeln!(last_word, "\nsignal sqlstate '45000' set message_text = '{ALL}';"));
        Ok(())
    });
    drop(written.await);
}

fn said_all(output: &Output) -> bool {
    output.exit_code != 0 && tools::said(output).ends_with(ALL)
}

fn check(program: &str, output: Output) -> Result<(), StepError> {
    if output.exit_code == 0 { Ok(()) } else { Err(stopped(program, &output)) }
}

fn stopped(program: &str, output: &Output) -> StepError {
    let message = format!("the replay stopped: {program}: {}", tools::said(output));
    if tools::lost_server(output) {
        return tools::server_ended(message, "it goes on behind the last transaction that is there");
    }
    let mut error = StepError::permanent(codes::LB2053, message)
        .help("what was replayed until then is there: mend the cause and retry, which goes on behind it, or restore the dump again");
    error.causes = tools::shown(output);
    error
}

/// Compares what the server has written into its own binary log with the plan, transaction by transaction.
pub(super) async fn logged(client: &mut Client, plan: &Plan) -> Result<Option<Check>, StepError> {
    // A server whose files are out of reach is held against its last transactions only.
    let Some(log) = own_log(client).await? else { return Ok(None) };
    let found: Vec<Gtid> = log
        .iter()
        .flat_map(|(_, file)| file.transactions.iter().map(|transaction| transaction.gtid))
        .collect();
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

/// Reads the binary log of a server with the names of its files; `None` if it is out of reach.
pub(super) async fn own_log(client: &mut Client) -> Result<Option<Vec<(String, LogFile)>>, StepError> {
    let [base] = client.one("select @@log_bin_basename").await?;
    let rows = client.rows("show binary logs", QUICK).await?;
    let names: Vec<_> = rows.iter().map(|row| text(row, 0)).collect();
    let dir = Path::new(&base).parent().unwrap_or(Path::new("/")).to_path_buf();
    blocking(move || Ok(read_all(&dir, names))).await
}

fn read_all(dir: &Path, names: Vec<String>) -> Option<Vec<(String, LogFile)>> {
    let read = |name: String| {
        let file = File::open(dir.join(&name)).ok()?;
        Some((name, events::read(BufReader::with_capacity(256 * 1024, file)).ok()?))
    };
    names.into_iter().map(read).collect()
}
