//! `mariadb.dump`

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Instant;

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::resource::{Mariadb, ResourceKind};
use lifeboat_engine::step::{
    Effect, Finding, KindSpec, PreflightFacts, Preview, StepContext, StepError, StepKind,
};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::json;

use super::super::connect::{Client, Login, PATIENT, QUICK, literal, server, text};
use super::super::facts::{self, Facts};
use super::super::structure::Structure;
use super::super::{codes, tools};
use super::details::{DATA, DumpDetails, STATE, USERS};
use super::scan::{Scan, Scanned};
use crate::backup::{self, Begun};
use crate::probe::program_found;
use crate::process::Command;
use crate::sql::done;
use crate::store::{
    BackupKind, Digest, HashingReader, HashingWriter, Marker, Meter, ObjectEntry, Partial, Store, blocking,
    copy,
};

/// Dumps databases.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Dump;

#[derive(Clone, Debug, Deserialize)]
struct Params {
    server: String,
    databases: Option<Vec<String>>,
    store: String,
    users: bool,
}

/// Fast enough to keep up with the server.
const LEVEL: i32 = 3;
/// Not part of any dump: the server's own, and what a restore leaves.
const SYSTEM: [&str; 5] = ["mysql", "information_schema", "performance_schema", "sys", STATE];

const DOC: &str = "\
Runs `mariadb-dump` in one transaction (`--single-transaction`), with routines, events, triggers, binary values as \
hexadecimal and utf8mb4, and streams it compressed into the store. The rows of every table are counted in the stream, the \
last line must say that the dump is complete, the file is read back whole, and the marker `lifeboat.json` is written last.

The recovery point of a dump is when its snapshot was taken, `taken_at`, not when it was finished. The place in the binary \
log at that snapshot, `position` and `gtid`, is where `mariadb.replay_binlog` goes on; a server without a binary log gives \
none, with a warning.

What must not happen meanwhile: a change of structure (`ALTER`, `CREATE`, `DROP`, `RENAME`, `TRUNCATE`), which no \
transaction holds together; the step compares the structure before and after and fails if it changed. Tables that are not \
InnoDB are in no snapshot either: they are named in a warning.

With `users` the accounts of the server are dumped beside it, with the hashes of their passwords. The password of the \
login is given to the programs in memory, never as an argument.";

#[async_trait]
impl StepKind for Dump {
    fn spec(&self) -> KindSpec {
        KindSpec::new("mariadb.dump", "Dumps databases in one snapshot into a store.", Effect::Idempotent)
            .doc(DOC)
            .param(Field::required("server", Type::reads(ResourceKind::Mariadb), "The server."))
            .param(Field::optional(
                "databases",
                Type::list(Type::String),
                "The databases; all but the server's own if absent, as a later replay of the binary log needs it.",
            ))
            .param(Field::required("store", Type::writes(ResourceKind::Store), "Where the dump goes."))
            .param(Field::defaulted("users", Type::Boolean, true, "Whether accounts are dumped beside it."))
            .output("backup", Type::String, "The label of the dump in the store.")
            .output("taken_at", Type::Timestamp, "All that was committed before it is in the dump.")
            .output("databases", Type::list(Type::String), "What it holds.")
            .output("position", Type::Any, "`file` and `offset` in the binary log; null if there is none.")
            .output("gtid", Type::String, "The last transactions in it; empty if there are none.")
            .output("bytes", Type::Integer, "Bytes in the store.")
            .output("sql_bytes", Type::Integer, "Bytes of SQL.")
            .output("tables", Type::Integer, "How many tables it has.")
            .output("rows", Type::Any, "How many rows they have; null if they could not be counted.")
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let what = params.databases.map_or("all databases".to_owned(), |names| names.join(", "));
        Ok(Preview {
            actions: vec![
                format!("mariadb-dump --single-transaction --master-data=2 of {what}"),
                format!("publish it as mariadb/<label> in `{}`", params.store),
            ],
            destroys: Vec::new(),
        })
    }

    async fn preflight(&self, ctx: &StepContext, _: &PreflightFacts) -> Result<Vec<Finding>, StepError> {
        let params: Params = ctx.params()?;
        let program = tools::program(server(ctx, &params.server)?, "mariadb-dump");
        Ok(vec![match program {
            Ok(path) => program_found(&params.server, &path.to_string_lossy()),
            Err(error) => Finding::failed(&params.server, "programs", &error),
        }])
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let store = Store::of_for_writing(ctx, &params.store).await?;
        match backup::begin(ctx, &store, BackupKind::MariadbDump).await? {
            Begun::Published(marker) => finish(&marker),
            Begun::New(partial) => take(ctx, &params, partial).await,
        }
    }
}

/// One dump in the making.
struct Work<'a> {
    ctx: &'a StepContext,
    mariadb: &'a Mariadb,
    login: Login,
}

async fn take(ctx: &StepContext, params: &Params, partial: Partial) -> Result<Done, StepError> {
    let (started_at, begun) = (Timestamp::now(), Instant::now());
    let work = Work { ctx, mariadb: server(ctx, &params.server)?, login: Login::of(ctx, &params.server)? };
    let mut client = work.login.database(None).connect().await?;
    let facts = facts::read(&mut client).await?;
    let all = databases(&mut client).await?;
    let chosen = choose(params, &all)?;
    let structure = Structure::read(&mut client, &chosen).await?;
    let not_transactional = not_transactional(&mut client, &chosen).await?;
    let accounts = accounts(&mut client, params.users).await?;
    let taken_at = now(&mut client).await?;
    let mut objects = Vec::new();
    let (object, scanned, sql_bytes) = work.data(&facts, &chosen, partial.path()).await?;
    objects.push(object);
    check_whole(&scanned, facts.logs)?;
    if params.users {
        objects.push(work.users(partial.path()).await?);
    }
    check_unchanged(&structure, &Structure::read(&mut client, &chosen).await?)?;
    if self::accounts(&mut client, params.users).await? != accounts {
        return Err(changed("the accounts of the server"));
    }
    let [names] = client.one("select @@lower_case_table_names").await?;
    let details = DumpDetails {
        resource: params.server.clone(),
        taken_at,
        server_version: facts.version,
        server_id: facts.server_id,
        hostname: facts.hostname,
        lower_case_table_names: names.parse().unwrap_or(0),
        whole_server: chosen == all,
        databases: chosen,
        position: scanned.position,
        gtid: scanned.gtid.filter(|gtid| !gtid.is_empty()),
        counts: scanned.rows,
        structure,
        not_transactional,
        users: params.users,
        sql_bytes,
        seconds: begun.elapsed().as_secs(),
    };
    let details = serde_json::to_value(details).expect("plain data is JSON");
    let marker = blocking(move || partial.publish((started_at, Timestamp::now()), objects, details)).await?;
    finish(&marker)
}

/// Returns the databases that are not the server's own.
pub(in super::super) async fn databases(client: &mut Client) -> Result<Vec<String>, StepError> {
    let rows = client.rows("select schema_name from information_schema.schemata order by 1", QUICK).await?;
    let names = rows.iter().map(|row| text(row, 0));
    Ok(names.filter(|name| !SYSTEM.contains(&name.as_str())).collect())
}

fn choose(params: &Params, all: &[String]) -> Result<Vec<String>, StepError> {
    let refuse = |message: String| {
        Err(StepError::permanent(codes::LB2020, message).help("correct `databases`; nothing was written"))
    };
    let Some(wanted) = &params.databases else {
        return match all.is_empty() {
            true => refuse("the server has no databases but its own".to_owned()),
            false => Ok(all.to_vec()),
        };
    };
    let mut chosen = wanted.clone();
    chosen.sort();
    chosen.dedup();
    match chosen.iter().find(|name| !all.contains(name)) {
        Some(name) => refuse(format!("the server has no database `{name}` that can be dumped")),
        None if chosen.is_empty() => refuse("`databases` names none".to_owned()),
        None => Ok(chosen),
    }
}

async fn not_transactional(client: &mut Client, databases: &[String]) -> Result<Vec<String>, StepError> {
    let names: Vec<_> = databases.iter().map(|name| literal(name)).collect();
    let sql = format!(
        "select concat(table_schema, '.', table_name, ' (', ifnull(engine, 'unknown'), ')')
         from information_schema.tables where table_schema in ({}) and table_type = 'BASE TABLE'
         and ifnull(engine, '') <> 'InnoDB' order by 1",
        names.join(", ")
    );
    let rows = client.rows(&sql, PATIENT).await?;
    Ok(rows.iter().map(|row| text(row, 0)).collect())
}

/// Returns what the accounts were, to find out whether they changed.
async fn accounts(client: &mut Client, wanted: bool) -> Result<String, StepError> {
    if !wanted {
        return Ok(String::new());
    }
    let sql = "checksum table mysql.global_priv, mysql.db, mysql.tables_priv, mysql.columns_priv, \
               mysql.procs_priv, mysql.roles_mapping";
    let rows = client.rows(sql, QUICK).await?;
    Ok(rows.iter().map(|row| text(row, 1)).collect::<Vec<_>>().join(" "))
}

async fn now(client: &mut Client) -> Result<Timestamp, StepError> {
    let [seconds] = client.one("select unix_timestamp(sysdate(6))").await?;
    let micros = seconds.parse::<f64>().map(|seconds| (seconds * 1e6) as i64).ok();
    micros.and_then(|micros| Timestamp::from_microsecond(micros).ok()).ok_or_else(|| {
        StepError::permanent(codes::LB2020, format!("the server's time `{seconds}` cannot be read"))
    })
}

impl Work<'_> {
    async fn command(&self) -> Result<Command, StepError> {
        let command = tools::client(self.mariadb, "mariadb-dump", &self.login).await?;
        Ok(command.args(["--default-character-set=utf8mb4"]))
    }

    /// Dumps the databases. Returns what it said of itself, and its bytes before compression.
    async fn data(
        &self,
        facts: &Facts,
        databases: &[String],
        dir: &Path,
    ) -> Result<(ObjectEntry, Scanned, u64), StepError> {
        let mut command = self.command().await?.args([
            "--single-transaction",
            "--quick",
            "--routines",
            "--events",
            "--triggers",
            "--hex-blob",
            "--no-autocommit",
            "--max-allowed-packet=1G",
        ]);
        if facts.logs {
            command = command.args(["--master-data=2", "--gtid"]);
        }
        let command = command.arg("--databases").arg("--").args(databases);
        self.stream(command, &dir.join(DATA), "dumping").await
    }

    async fn users(&self, dir: &Path) -> Result<ObjectEntry, StepError> {
        let command = self.command().await?.args(["--system=users", "--insert-ignore"]);
        let (object, scanned, _) = self.stream(command, &dir.join(USERS), "dumping accounts").await?;
        match scanned.complete {
            true => Ok(object),
            false => Err(cut_off("the dump of the accounts")),
        }
    }

    /// Runs a program and takes its output through the scan and the compression into a file, which is read back.
    async fn stream(
        &self,
        command: Command,
        path: &Path,
        note: &str,
    ) -> Result<(ObjectEntry, Scanned, u64), StepError> {
        let (reading, writing) = os_pipe::pipe()
            .map_err(|error| StepError::transient(codes::LB2020, "no pipe can be made").caused_by(&error))?;
        let meter = Meter::bytes(self.ctx, None, note);
        let path = path.to_owned();
        let packed = blocking(move || pack(reading, &path, &meter));
        let command = command.stdout_to(File::from(OwnedFd::from(writing)));
        let (output, packed) = tokio::join!(command.run(self.ctx), packed);
        let output = output?;
        // A store that takes no more ends the program, too.
        let packed = packed?;
        match output.exit_code {
            0 => Ok(packed),
            _ if tools::lost_server(&output) => {
                let error = tools::server_ended(
                    format!("the dump stopped: {}", tools::said(&output)),
                    "nothing was published, and it dumps again",
                );
                Err(StepError { kind: FailureKind::Transient, ..error })
            }
            code => Err(refused(code, &output.stderr.last_lines(8))),
        }
    }
}

/// Compresses what comes out of a pipe into a new file, and reads it back.
fn pack(from: impl Read, path: &Path, meter: &Meter) -> Result<(ObjectEntry, Scanned, u64), StepError> {
    let unwritable = |error: &std::io::Error| {
        StepError::transient(codes::LB2020, format!("{} cannot be written", path.display()))
            .help("the store needs room and must be writable; nothing was published")
            .caused_by(error)
    };
    // Hashes of passwords are in it.
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o640).open(path);
    let file = HashingWriter::new(file.map_err(|error| unwritable(&error))?);
    let mut encoder = zstd::stream::write::Encoder::new(file, LEVEL).map_err(|error| unwritable(&error))?;
    encoder.include_checksum(true).map_err(|error| unwritable(&error))?;
    let mut from = HashingReader::new(from);
    let mut scan = Scan::new(encoder);
    copy(&mut from, &mut scan, meter)
        .map_err(|error| StepError { message: format!("{}: {}", path.display(), error.message), ..error })?;
    let (encoder, scanned) = scan.finish();
    let file = encoder.finish().map_err(|error| unwritable(&error))?;
    let (raw, packed) = (from.finish().1, file.finish().1);
    read_back(path, &raw, meter)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok((ObjectEntry { name, size: packed.size, sha256: packed.sha256 }, scanned, raw.size))
}

/// What was written must unpack into what the program said.
fn read_back(path: &Path, raw: &Digest, meter: &Meter) -> Result<(), StepError> {
    let failed = |error: &std::io::Error| {
        StepError::transient(codes::LB2021, format!("{} cannot be read back", path.display()))
            .caused_by(error)
    };
    let file = File::open(path).map_err(|error| failed(&error))?;
    let decoder = zstd::stream::read::Decoder::new(file).map_err(|error| failed(&error))?;
    let found = crate::store::digest_of(decoder, &meter.uncounted())?;
    match found == *raw {
        true => Ok(()),
        false => Err(StepError::transient(
            codes::LB2021,
            format!("{} does not unpack into what was written", path.display()),
        )
        .help("the disk or the memory of this machine is not to be trusted; nothing was published")),
    }
}

fn check_whole(scanned: &Scanned, logs: bool) -> Result<(), StepError> {
    if !scanned.complete {
        return Err(cut_off("the dump"));
    }
    if logs && scanned.position.is_none() {
        return Err(StepError::permanent(
            codes::LB2021,
            "the dump does not say where the binary log stood, so that no log could be replayed after it",
        )
        .help("the account needs the rights RELOAD and BINLOG MONITOR; nothing was published"));
    }
    Ok(())
}

fn cut_off(what: &str) -> StepError {
    StepError::transient(
        codes::LB2021,
        format!("{what} was cut off: its last line does not say that it is complete"),
    )
    .help("nothing was published; look at the server's log, and run the step again")
}

fn check_unchanged(before: &Structure, after: &Structure) -> Result<(), StepError> {
    const SHOWN: usize = 10;
    let differences = before.differences(after);
    if differences.is_empty() {
        return Ok(());
    }
    let mut error = changed("the structure of the databases");
    error.causes = differences.into_iter().take(SHOWN).collect();
    Err(error)
}

fn changed(what: &str) -> StepError {
    StepError::transient(codes::LB2022, format!("{what} changed while they were dumped"))
        .help("nothing was published; dump when nobody migrates")
}

/// What the program said decides whether a repetition can help.
fn refused(exit_code: i32, lines: &[String]) -> StepError {
    let text = lines.join("\n");
    let message = format!("mariadb-dump ended with exit code {exit_code}: {text}");
    // 1044, 1045, 1142, 1227: rights. 1146, 1356: something that is named is not there.
    let rights = ["(1044)", "(1045)", "(1142)", "(1227)", "1044:", "1045:", "1142:", "1227:"];
    if rights.iter().any(|number| text.contains(number)) {
        return StepError::permanent(codes::LB2020, message)
            .help("the account needs SELECT, SHOW VIEW, TRIGGER, EVENT, LOCK TABLES, PROCESS, RELOAD and BINLOG MONITOR, and SELECT on mysql.* for `users`");
    }
    if text.contains("1412") {
        return changed("the definition of a table");
    }
    if text.contains("1356") || text.contains("1146") {
        return StepError::permanent(codes::LB2020, message)
            .help("a view refers to something that is not there any more: mend or drop it");
    }
    StepError::transient(codes::LB2020, message).help("nothing was published; look at the server's log")
}

fn finish(marker: &Marker) -> Result<Done, StepError> {
    let details: DumpDetails = marker.details()?;
    let rows = details.counts.as_ref().map(|counts| counts.values().sum::<u64>());
    let mut done = done(json!({
        "backup": marker.label, "taken_at": details.taken_at, "databases": details.databases,
        "position": details.position, "gtid": details.gtid.clone().unwrap_or_default(), "bytes": marker.bytes(),
        "sql_bytes": details.sql_bytes, "tables": details.structure.count("table"), "rows": rows,
    }));
    done.facts.insert("server".into(), format!("MariaDB {}", details.server_version));
    done.facts.insert("seconds".into(), details.seconds.to_string());
    done.checks.push(Check {
        name: "the dump is complete and unpacks".into(),
        expected: "its last line and its checksum".into(),
        actual: format!("{} bytes of SQL", details.sql_bytes),
        passed: true,
    });
    done.warnings = warnings(&details);
    Ok(done)
}

fn warnings(details: &DumpDetails) -> Vec<String> {
    let mut warnings = Vec::new();
    if details.position.is_none() {
        warnings.push(
            "the server keeps no binary log: nothing after this dump can be brought back (set `log_bin`)"
                .to_owned(),
        );
    }
    if !details.not_transactional.is_empty() {
        warnings.push(format!(
            "these tables are in no transaction and may have changed during the dump: {}",
            details.not_transactional.join(", ")
        ));
    }
    if details.counts.is_none() {
        warnings.push("rows could not be counted in what this mariadb-dump writes".to_owned());
    }
    if !details.whole_server {
        warnings.push(
            "other databases of the server are not in it, so that no binary log can be replayed after it"
                .to_owned(),
        );
    }
    warnings
}
