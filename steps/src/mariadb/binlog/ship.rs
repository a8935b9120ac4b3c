//! `mariadb.ship_binlogs`

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::resource::{Mariadb, ResourceKind};
use lifeboat_engine::step::{Effect, KindSpec, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::json;

use super::super::connect::{Client, Login, PATIENT, QUICK, literal, number as number_of, server, text};
use super::super::facts::{self, Facts};
use super::super::{codes, tools};
use super::archive::{Archive, Shipped, number};
use super::events::{self, BadLog, End};
use super::gtid::State;
use crate::home::Home;
use crate::sql::done;
use crate::store::{Meter, Store, blocking, digest_of};

/// Ships finished files of the binary log.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct ShipBinlogs;

#[derive(Clone, Deserialize)]
struct Params {
    server: String,
    store: String,
    stream: Option<String>,
    rotate: bool,
    dir: Option<PathBuf>,
}

const DOC: &str = "\
Brings every finished file of the server's binary log into the store, that is not there yet: read through the server \
(`mariadb-binlog --raw`), each event's checksum compared, compressed, and described by an object that is written last. The \
file that the server still writes is never shipped; with `rotate` the server is asked to begin a new one first (`FLUSH BINARY \
LOGS`, if anything was written since), so that everything committed before the step is shipped: `covered_until`.

Each file must go on where the one before it ends, in number and in transactions, and the file after it must begin where it \
ends. If a file is missing, because the server has purged it before it was shipped, the others are shipped and the step \
fails: no replay can pass the gap, and only a new dump closes it. A file in the store is never replaced: another one of the \
same name is an error. Encrypted files (`encrypt_binlog`) are of use to the server that wrote them alone, and are refused.

What is lost in the worst case is what is committed between two of these steps, the time one takes, and one that fails.";

#[async_trait]
impl StepKind for ShipBinlogs {
    fn spec(&self) -> KindSpec {
        KindSpec::new(
            "mariadb.ship_binlogs",
            "Ships finished binary log files of a server into a store.",
            Effect::Idempotent,
        )
        .doc(DOC)
        .param(Field::required("server", Type::reads(ResourceKind::Mariadb), "The server."))
        .param(Field::required("store", Type::writes(ResourceKind::Store), "Where the files go."))
        .param(Field::optional(
            "stream",
            Type::String,
            "The name of this log in the store; that of the server's resource if absent.",
        ))
        .param(Field::defaulted(
            "rotate",
            Type::Boolean,
            true,
            "Whether the server begins a new file first, if it has written anything.",
        ))
        .param(Field::optional(
            "dir",
            Type::Path,
            "Where files are put meanwhile; the state of the run if absent.",
        ))
        .output("shipped", Type::list(Type::String), "The files that were shipped now.")
        .output("bytes", Type::Integer, "Their bytes.")
        .output("newest", Type::String, "The newest file in the store; empty if there is none.")
        .output("gtid", Type::String, "The last transactions in the store.")
        .output(
            "covered_until",
            Type::Any,
            "All that was committed before it is in the store; null if nothing is.",
        )
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let rotate = params.rotate.then(|| "FLUSH BINARY LOGS, if anything was written".to_owned());
        let ship = format!("mariadb-binlog --raw of every finished file that `{}` lacks", params.store);
        Ok(Preview { actions: rotate.into_iter().chain([ship]).collect(), destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let store = Store::of_for_writing(ctx, &params.store).await?;
        let mariadb = server(ctx, &params.server)?;
        let login = Login::of(ctx, &params.server)?.database(None);
        let mut client = login.connect().await?;
        let facts = facts::read(&mut client).await?;
        facts::check_place(mariadb, &facts)?;
        check_logs(&facts)?;
        let [encrypts] = client.one("select @@encrypt_binlog").await?;
        if encrypts == "1" {
            return Err(encrypted("the server encrypts its binary log (`encrypt_binlog`)".to_owned()));
        }
        let stream = params.stream.clone().unwrap_or_else(|| params.server.clone());
        let archive = Archive::new(&store, &stream, facts.server_id)?;
        let home = Home::choose(ctx, params.dir.as_deref(), None, codes::LB2040)?;
        Work { ctx, params, mariadb, login, archive, home }.run(&mut client).await
    }
}

fn check_logs(facts: &Facts) -> Result<(), StepError> {
    if facts.logs {
        return Ok(());
    }
    Err(StepError::permanent(codes::LB2040, "the server keeps no binary log")
        .help("set `log_bin` in its configuration and restart it; until then only dumps bring anything back"))
}

/// Events of an encrypted file can be read with the keys of that server only; even a copy through the server cannot.
fn encrypted(message: String) -> StepError {
    StepError::permanent(codes::LB2058, message)
        .help("nothing was shipped: set `encrypt_binlog = OFF`, restart the server and take a new dump; until then only dumps bring anything back")
}

/// A file as the server lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listed {
    name: String,
    size: u64,
}

struct Work<'a> {
    ctx: &'a StepContext,
    params: Params,
    mariadb: &'a Mariadb,
    login: Login,
    archive: Archive,
    home: Home,
}

impl Work<'_> {
    async fn run(&self, client: &mut Client) -> Result<Done, StepError> {
        let known = self.known().await?;
        let covered_until = self.rotate(client, known.last()).await?;
        let listed = list(client).await?;
        check_known(&known, &listed)?;
        let Some((active, finished)) = listed.split_last() else {
            return Err(StepError::permanent(codes::LB2040, "the server lists no binary log files"));
        };
        let stored: BTreeMap<_, _> = known.iter().map(|shipped| (shipped.number(), shipped)).collect();
        let missing: Vec<_> = finished
            .iter()
            .filter(|file| number(&file.name).is_some_and(|at| !stored.contains_key(&at)))
            .collect();
        let next = begins_after(client, &active.name).await?;
        let shipped = match missing.is_empty() {
            true => {
                self.home.remove_leftover(self.ctx).await?;
                Vec::new()
            }
            false => self.ship(&missing, finished.last().zip(covered_until)).await?,
        };
        let all: Vec<&Shipped> = known.iter().chain(&shipped).collect();
        let done = self.finish(&all, &shipped, (active, next))?;
        Ok(with_coverage(done, covered_until.or(all.last().map(|file| file.covered_until))))
    }

    async fn known(&self) -> Result<Vec<Shipped>, StepError> {
        let archive = self.archive.clone();
        blocking(move || archive.list()).await
    }

    /// Lets the server begin a new file, if it has written into the last one. Returns the moment before which everything
    /// is in finished files, if the server was asked to.
    async fn rotate(
        &self,
        client: &mut Client,
        newest: Option<&Shipped>,
    ) -> Result<Option<Timestamp>, StepError> {
        let now = Timestamp::now();
        let [gtid] = client.one("select @@gtid_binlog_pos").await?;
        let written = State::parse(&gtid).unwrap_or_default();
        let nothing_new = newest.is_some_and(|shipped| shipped.after.position() == written.position());
        if self.params.rotate && !nothing_new {
            client.run("flush binary logs", PATIENT).await?;
        }
        Ok((self.params.rotate || nothing_new).then_some(now))
    }

    async fn ship(
        &self,
        missing: &[&Listed],
        covered: Option<(&Listed, Timestamp)>,
    ) -> Result<Vec<Shipped>, StepError> {
        self.home.make(self.ctx, None).await?;
        let total = missing.iter().map(|file| file.size).sum();
        let meter = Meter::bytes(self.ctx, Some(total), "shipping");
        let mut shipped = Vec::new();
        for file in missing {
            let path = self.fetch(file).await?;
            let (archive, name, size, meter) =
                (self.archive.clone(), file.name.clone(), file.size, meter.clone());
            // The newest finished file ended when the server was asked to begin another one, or before.
            let covered_until = covered.filter(|(newest, _)| newest == file).map(|(_, until)| until);
            let one = blocking(move || {
                let mut described = describe(&path, (&name, size), &meter)?;
                described.covered_until = covered_until.unwrap_or(described.covered_until);
                archive.put(&path, &described, &meter)?;
                std::fs::remove_file(&path).ok();
                Ok(described)
            });
            shipped.push(one.await?);
        }
        self.home.remove(self.ctx).await?;
        Ok(shipped)
    }

    /// Reads a file through the server, which decrypts it and lets only what is durable be seen.
    async fn fetch(&self, file: &Listed) -> Result<PathBuf, StepError> {
        let path = self.home.path.join(&file.name);
        // A half of an earlier attempt.
        std::fs::remove_file(&path).ok();
        tools::client(self.mariadb, "mariadb-binlog", &self.login).await?
            .args(["--read-from-remote-server", "--raw"])
            .arg(format!("--result-file={}/", self.home.path.display()))
            .arg("--")
            .arg(&file.name)
            .run_checked(self.ctx)
            .await
            .map_err(|error| {
                let help = "the account needs REPLICATION SLAVE; a file that was purged meanwhile is found by the next attempt";
                StepError { code: codes::LB2040, ..error.help(help) }
            })?;
        Ok(path)
    }

    /// Every file must go on where the one before it ended, up to the one that the server writes.
    fn finish(
        &self,
        all: &[&Shipped],
        shipped: &[Shipped],
        (active, next): (&Listed, State),
    ) -> Result<Done, StepError> {
        let mut gaps: Vec<String> = Vec::new();
        let is_new = |file: &Shipped| shipped.iter().any(|new| new.name == file.name);
        for pair in all.windows(2) {
            // An old gap was told when it was found.
            if is_new(pair[0]) || is_new(pair[1]) {
                gaps.extend(pair[0].gap_before(pair[1]));
            }
        }
        let newest = all.last();
        if let Some(newest) = newest.filter(|newest| is_new(newest)) {
            let follows = Some(newest.number() + 1) == number(&active.name) && newest.after == next;
            if !follows {
                gaps.push(format!(
                    "{} ends at [{}], and {}, which the server writes, begins after [{next}]",
                    newest.name, newest.after, active.name
                ));
            }
        }
        if !gaps.is_empty() {
            let mut error = StepError::permanent(
                codes::LB2042,
                format!("files of the binary log are missing between those in the store: {}", gaps.join("; ")),
            )
            .help("what is there was shipped, but no replay can pass the gap: take a new dump now (`mariadb.dump`)");
            error.causes = gaps;
            return Err(error);
        }
        let mut done = done(json!({
            "shipped": shipped.iter().map(|file| &file.name).collect::<Vec<_>>(),
            "bytes": shipped.iter().map(|file| file.size).sum::<u64>(),
            "newest": newest.map_or("", |file| &file.name),
            "gtid": newest.map_or(String::new(), |file| file.after.to_string()),
            "covered_until": null,
        }));
        done.facts.insert("the server writes".into(), active.name.clone());
        let transactions: u64 = shipped.iter().map(|file| file.transactions).sum();
        done.facts.insert("transactions shipped".into(), transactions.to_string());
        Ok(done)
    }
}

fn with_coverage(mut done: Done, until: Option<Timestamp>) -> Done {
    done.outputs.insert("covered_until".into(), json!(until));
    done
}

async fn list(client: &mut Client) -> Result<Vec<Listed>, StepError> {
    let rows = client.rows("show binary logs", QUICK).await?;
    let mut all: Vec<_> =
        rows.iter().map(|row| Listed { name: text(row, 0), size: number_of(row, 1) }).collect();
    match all.iter().find(|file| number(&file.name).is_none()) {
        Some(odd) => Err(StepError::permanent(
            codes::LB2040,
            format!("`{}` is no name of a binary log file", odd.name.escape_debug()),
        )),
        None => {
            all.sort_by_key(|file| number(&file.name));
            Ok(all)
        }
    }
}

/// Files that are in the store and on the server must be the same ones.
fn check_known(known: &[Shipped], listed: &[Listed]) -> Result<(), StepError> {
    let Some((active, finished)) = listed.split_last() else { return Ok(()) };
    for file in finished {
        let same_name = known.iter().find(|shipped| shipped.name == file.name);
        if let Some(shipped) = same_name.filter(|shipped| shipped.size != file.size) {
            return Err(StepError::permanent(
                codes::LB2043,
                format!(
                    "{} has {} bytes on the server and {} in the store: they are different files",
                    file.name, file.size, shipped.size
                ),
            )
            .help("the numbering was begun again, or two servers have one server_id: ship into another `stream`"));
        }
    }
    let (newest, active) = (known.last().map_or(0, Shipped::number), number(&active.name).unwrap_or(0));
    if newest >= active {
        return Err(StepError::permanent(
            codes::LB2043,
            format!("the store has files up to number {newest}, and the server writes number {active}: its numbering was begun again"),
        )
        .help("ship into another `stream`, and take a new dump"));
    }
    Ok(())
}

/// Asks the server what the files before one hold.
async fn begins_after(client: &mut Client, name: &str) -> Result<State, StepError> {
    let sql = format!("show binlog events in {} limit 5", literal(name));
    let rows = client.rows(&sql, PATIENT).await?;
    let list = rows.iter().find(|row| text(row, 2) == "Gtid_list").map(|row| text(row, 5));
    let inner = list.as_deref().map(|list| list.trim_matches(['[', ']']).to_owned());
    inner.and_then(|list| State::parse(&list)).ok_or_else(|| {
        StepError::permanent(codes::LB2041, format!("{name} does not say which transactions are before it"))
            .help("only logs of MariaDB 10.0 and later can be shipped")
    })
}

/// Reads a file that was fetched: it must be whole, and no longer written.
fn describe(path: &Path, (name, size): (&str, u64), meter: &Meter) -> Result<Shipped, StepError> {
    let bad = |problem: String| {
        StepError::transient(codes::LB2041, format!("{name} was not shipped: {problem}"))
            .help("nothing of it is in the store; the next attempt reads it again")
    };
    let open = || File::open(path).map_err(|error| bad(format!("it cannot be read: {error}")));
    let log = events::read(BufReader::with_capacity(256 * 1024, open()?)).map_err(|error| match error {
        BadLog::Encrypted => encrypted(format!("{name} is encrypted")),
        other => bad(other.to_string()),
    })?;
    if log.before.is_none() {
        return Err(bad("it does not say which transactions are before it".to_owned()));
    }
    // Whoever did not end in order leaves an open file; then the file after it proves that it is whole.
    if let End::Rotated(next) = &log.end
        && number(next) != number(name).map(|at| at + 1)
    {
        return Err(bad(format!("it says that {next} follows")));
    }
    if log.size != size {
        return Err(bad(format!("it has {} bytes, and the server says {size}", log.size)));
    }
    let digest = digest_of(open()?, &meter.uncounted())?;
    Ok(Shipped::new(name, &log, digest.sha256))
}
