//! `postgres.dump`

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::resource::{Postgres, ResourceKind};
use lifeboat_engine::step::{
    Effect, Finding, KindSpec, PreflightFacts, Preview, StepContext, StepError, StepKind,
};
use lifeboat_engine::value::{Field, Span, Type};
use serde::Deserialize;
use serde_json::json;

use super::super::catalogue::{self, Catalogue, Counts};
use super::super::connect::{Client, Login};
use super::super::libpq::{Libpq, size_of, tools_for, watched};
use super::super::tools::Tools;
use super::super::{codes, local};
use super::archive;
use super::details::{DumpDetails, Format, GLOBALS};
use super::source::{self, Snapshot, Source};
use crate::backup::{self, Begun};
use crate::probe::{bytes, program_found};
use crate::store::{BackupKind, Marker, Meter, ObjectEntry, Partial, Store, blocking, digest_of};

/// Dumps one database.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Dump;

#[derive(Clone, Debug, Deserialize)]
struct Params {
    cluster: String,
    database: Option<String>,
    store: String,
    format: Format,
    jobs: u32,
    compression: Compression,
    counts: bool,
    globals: bool,
    lock_timeout: Span,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Compression {
    Zstd,
    Gzip,
    None,
}

impl Compression {
    fn arg(self, tool_major: u32) -> &'static str {
        match (self, tool_major) {
            (Self::Zstd, 16..) => "zstd:3",
            (Self::None, _) => "0",
            (Self::Gzip | Self::Zstd, _) => "3",
        }
    }
}

const DOC: &str = "\
Runs `pg_dump` (an archive, never plain SQL) in a snapshot that the step itself takes, counts the rows of every table \
in that same snapshot, and writes down what the database consists of. Then it reads the dump back whole with \
`pg_restore`, and publishes it: the marker `lifeboat.json` last.

The recovery point of a dump is when its snapshot was taken, `taken_at`, not when the dump was finished: later changes \
are not in it. `format: directory` uses `jobs` connections at once; `custom` is one file. With `globals` the roles of the \
server are kept beside it as SQL without passwords, for people.

The programs are of the server's major version, or newer. Settings made with `ALTER DATABASE … SET` are in no dump; they \
are noted, and `postgres.restore_dump` names them.";

#[async_trait]
impl StepKind for Dump {
    fn spec(&self) -> KindSpec {
        KindSpec::new(
            "postgres.dump",
            "Dumps a database into a store, and reads it back.",
            Effect::Idempotent,
        )
        .doc(DOC)
        .param(Field::required("cluster", Type::reads(ResourceKind::Postgres), "The server."))
        .param(Field::optional("database", Type::String, "The database; that of the resource if not given."))
        .param(Field::required("store", Type::writes(ResourceKind::Store), "Where the dump goes."))
        .param(Field::defaulted(
            "format",
            Type::choice(&["custom", "directory"]),
            "custom",
            "One file, or a directory that several connections write.",
        ))
        .param(Field::defaulted(
            "jobs",
            Type::Integer,
            2,
            "How many tables are dumped at once; for `directory`.",
        ))
        .param(Field::defaulted(
            "compression",
            Type::choice(&["zstd", "gzip", "none"]),
            "zstd",
            "How it is stored; gzip before version 16.",
        ))
        .param(Field::defaulted(
            "counts",
            Type::Boolean,
            true,
            "Whether rows are counted, for proof after a restore.",
        ))
        .param(Field::defaulted(
            "lock_timeout",
            Type::Duration,
            "1m",
            "How long to wait for a table that somebody has locked against readers.",
        ))
        .param(Field::defaulted("globals", Type::Boolean, true, "Whether roles are kept beside it."))
        .output("backup", Type::String, "The label of the dump in the store.")
        .output("taken_at", Type::Timestamp, "All that was committed before it is in the dump.")
        .output("database", Type::String, "The database.")
        .output("bytes", Type::Integer, "Bytes in the store.")
        .output("database_bytes", Type::Integer, "Bytes of the database on disk, indexes included.")
        .output("tables", Type::Integer, "How many tables have rows counted in it.")
        .output("rows", Type::Integer, "How many rows those are.")
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let database =
            params.database.clone().unwrap_or(local::cluster(ctx, &params.cluster)?.database.clone());
        let format = if params.format == Format::Custom { "c" } else { "d" };
        Ok(Preview {
            actions: vec![
                format!("pg_dump -F{format} of `{database}` in one snapshot"),
                format!("read it back with pg_restore, publish as dump/<label> in `{}`", params.store),
            ],
            destroys: Vec::new(),
        })
    }

    async fn preflight(&self, ctx: &StepContext, _: &PreflightFacts) -> Result<Vec<Finding>, StepError> {
        let params: Params = ctx.params()?;
        let postgres = local::cluster(ctx, &params.cluster)?;
        // A login that fails has its own finding.
        let Ok(client) = login(ctx, postgres, &params)?.connect().await else { return Ok(Vec::new()) };
        let source = source::read(&client).await?;
        Ok(vec![match tools_for(postgres, source.major).await {
            Ok(tools) => program_found(&params.cluster, &tools.program("pg_dump").to_string_lossy()),
            Err(error) => Finding::failed(&params.cluster, "programs", &error),
        }])
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let store = Store::of_for_writing(ctx, &params.store).await?;
        match backup::begin(ctx, &store, BackupKind::PostgresDump).await? {
            Begun::Published(marker) => done(&marker, Vec::new()),
            Begun::New(partial) => match Ready::look(ctx, &params, &store).await {
                Ok(ready) => take(ctx, &params, (ready, partial)).await,
                Err(error) => {
                    // Nothing was written; what cannot be removed now is removed by the next attempt.
                    blocking(move || partial.discard()).await.ok();
                    Err(error)
                }
            },
        }
    }
}

fn login(ctx: &StepContext, postgres: &Postgres, params: &Params) -> Result<Login, StepError> {
    let login = Login::of(ctx, postgres)?;
    Ok(match &params.database {
        Some(database) => login.database(database),
        None => login,
    })
}

/// What was read in the snapshot.
struct Read {
    source: Source,
    snapshot: Snapshot,
    catalogue: Catalogue,
    counts: Option<Counts>,
}

/// What must be there before anything is written.
struct Ready {
    login: Login,
    client: Client,
    source: Source,
    tools: Tools,
    warnings: Vec<String>,
}

impl Ready {
    async fn look(ctx: &StepContext, params: &Params, store: &Store) -> Result<Self, StepError> {
        let postgres = local::cluster(ctx, &params.cluster)?;
        let login = login(ctx, postgres, params)?;
        let client = login.connect().await?;
        let source = source::read(&client).await?;
        let mut warnings = warnings(&source);
        warnings.extend(room(store, source.bytes)?);
        let tools = tools_for(postgres, source.major).await?;
        Ok(Self { login, client, source, tools, warnings })
    }
}

async fn take(
    ctx: &StepContext,
    params: &Params,
    (ready, partial): (Ready, Partial),
) -> Result<Done, StepError> {
    let (started_at, begun) = (Timestamp::now(), Instant::now());
    let postgres = local::cluster(ctx, &params.cluster)?;
    let Ready { login, client, source, tools, warnings } = ready;
    let libpq = Libpq::new(postgres, &login);
    let program = Program { ctx, params, tools: &tools, libpq: &libpq, database: &login.database };
    let read = program.dump(&client, source, partial.path()).await?;
    drop(client);
    if params.globals {
        program.globals(partial.path()).await?;
    }
    let path = partial.path().join(params.format.object());
    let dump = archive::Dump { name: params.format.object(), path: &path };
    let contents = archive::contents(ctx, &tools, dump).await?;
    archive::read_whole(ctx, &tools, dump).await?;
    let details = DumpDetails {
        resource: params.cluster.clone(),
        database: login.database.clone(),
        taken_at: read.snapshot.taken_at,
        server_major: read.source.major,
        server_version: read.source.version,
        tool_major: tools.version.major,
        format: params.format,
        encoding: read.source.encoding,
        collate: read.source.collate,
        ctype: read.source.ctype,
        database_bytes: read.source.bytes,
        owners: read.source.owners,
        grantees: read.source.grantees,
        extensions: read.source.extensions,
        settings: read.source.settings,
        counts: read.counts,
        catalogue: read.catalogue,
        entries: contents.entries,
        seconds: begun.elapsed().as_secs(),
    };
    let marker = publish(ctx, partial, started_at, details).await?;
    done(&marker, warnings)
}

fn warnings(source: &Source) -> Vec<String> {
    let settings = &source.settings;
    let told = || format!("these settings of the database are in no dump: {}", settings.join("; "));
    (!settings.is_empty()).then(told).into_iter().collect()
}

/// Refuses a store that is certain to be too small: even well compressed rows take a tenth of the database.
fn room(store: &Store, database: u64) -> Result<Option<String>, StepError> {
    let place = store.work_dir().display().to_string();
    let free = crate::probe::free_space(store.work_dir()).map_err(|error| {
        StepError::permanent(codes::LB1283, format!("the free space of {place} cannot be found"))
            .caused_by(&error)
    })?;
    let found = format!("{place} has {} free for a dump of a database of {}", bytes(free), bytes(database));
    if free < database / 10 {
        return Err(
            StepError::permanent(codes::LB1283, found).help("make room (`df -h`), or use a larger store")
        );
    }
    Ok((free < database / 2).then_some(found))
}

/// The programs that make one dump.
struct Program<'a> {
    ctx: &'a StepContext,
    params: &'a Params,
    tools: &'a Tools,
    libpq: &'a Libpq<'a>,
    database: &'a str,
}

impl Program<'_> {
    /// Dumps, and meanwhile reads in the same snapshot what the dump must hold.
    async fn dump(&self, client: &Client, source: Source, dir: &Path) -> Result<Read, StepError> {
        let snapshot = source::snapshot(client, self.params.lock_timeout.0).await?;
        let stop = AtomicBool::new(false);
        let dumped = async {
            let dumped = self.write(&snapshot, dir).await;
            stop.store(dumped.is_err(), Ordering::Relaxed);
            dumped
        };
        let counted = async {
            let catalogue = catalogue::read(client).await?;
            let counts = match self.params.counts {
                true => Some(catalogue::count_rows(self.ctx, client, &stop).await?),
                false => None,
            };
            Ok::<_, StepError>((catalogue, counts))
        };
        let (dumped, counted) = tokio::join!(dumped, counted);
        // What fails here ends the snapshot, and then pg_dump only complains of that.
        let (catalogue, counts) = counted.map_err(locked)?;
        dumped?;
        Ok(Read { source, snapshot, catalogue, counts })
    }

    async fn write(&self, snapshot: &Snapshot, dir: &Path) -> Result<(), StepError> {
        let compression = self.params.compression.arg(self.tools.version.major);
        let patience = format!("--lock-wait-timeout={}", self.params.lock_timeout.0.as_millis());
        let command = self.libpq.command(self.tools, "pg_dump", self.database).await?.args([
            &patience,
            "-Z",
            compression,
            "--snapshot",
            &snapshot.id,
        ]);
        let path = dir.join(self.params.format.object());
        let (command, incoming) = match self.params.format {
            Format::Custom => (command.arg("-Fc").stdout_to(new_file(&path)?), None),
            Format::Directory => {
                let incoming = self.incoming(dir)?;
                let jobs = self.params.jobs.clamp(1, 64).to_string();
                (command.args(["-Fd", "-j", &jobs, "-f"]).arg(incoming.join("out")), Some(incoming))
            }
        };
        let watch = incoming.as_ref().map_or(path.clone(), |incoming| incoming.join("out"));
        let output = watched(self.ctx, (&watch, "pg_dump"), command.run(self.ctx)).await?;
        if output.exit_code != 0 {
            return Err(refused("pg_dump", output.exit_code, &output.stderr.last_lines(8)));
        }
        match incoming {
            Some(incoming) => take_over(&incoming, &path).map_err(|error| unwritable(&path, &error)),
            None => Ok(()),
        }
    }

    /// Makes a directory that the program's user can write.
    fn incoming(&self, dir: &Path) -> Result<PathBuf, StepError> {
        let incoming = dir.join("incoming");
        let made = std::fs::DirBuilder::new().mode(0o700).create(&incoming).and_then(|()| {
            let owner = self.libpq.user();
            owner.map_or(Ok(()), |user| chown(&incoming, Some(user.uid), Some(user.gid)))
        });
        made.map_err(|error| unwritable(&incoming, &error))?;
        Ok(incoming)
    }

    /// Writes the roles down.
    async fn globals(&self, dir: &Path) -> Result<(), StepError> {
        let command = self
            .libpq
            .command(self.tools, "pg_dumpall", self.database)
            .await?
            .args(["--globals-only", "--no-role-passwords"])
            .stdout_to(new_file(&dir.join(GLOBALS))?);
        let output = command.run(self.ctx).await?;
        if output.exit_code == 0 {
            return Ok(());
        }
        Err(refused("pg_dumpall", output.exit_code, &output.stderr.last_lines(8)))
    }
}

fn new_file(path: &Path) -> Result<File, StepError> {
    let opened = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o640).open(path);
    opened.map_err(|error| unwritable(path, &error))
}

fn unwritable(path: &Path, error: &std::io::Error) -> StepError {
    StepError::permanent(codes::LB1278, format!("{} cannot be written", path.display()))
        .help("the store must be writable, and its directories open to the server's user (`chmod o+x`)")
        .caused_by(error)
}

/// Moves the files to where they will be published, as our own.
fn take_over(incoming: &Path, path: &Path) -> std::io::Result<()> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let out = incoming.join("out");
    for entry in std::fs::read_dir(&out)? {
        let entry = entry?;
        chown(entry.path(), Some(uid), Some(gid))?;
        std::fs::set_permissions(entry.path(), std::fs::Permissions::from_mode(0o640))?;
    }
    chown(&out, Some(uid), Some(gid))?;
    std::fs::set_permissions(&out, std::fs::Permissions::from_mode(0o750))?;
    std::fs::rename(&out, path)?;
    std::fs::remove_dir(incoming)
}

/// What the program said decides whether a repetition can help.
fn refused(program: &str, exit_code: i32, lines: &[String]) -> StepError {
    let text = lines.join("\n");
    let message = format!("{program} ended with exit code {exit_code}: {text}");
    if text.contains("does not support compression") {
        return StepError::permanent(codes::LB1278, message)
            .help("this installation lacks that compression; give the step `compression: gzip`");
    }
    if text.contains("permission denied for") || text.contains("row-level security") {
        return StepError::permanent(codes::LB1278, message)
            .help("dump as a superuser or as a role that may read everything (grant pg_read_all_data)");
    }
    if text.contains("No space left") {
        return StepError::transient(codes::LB1278, message).help("make room in the store (`df -h`)");
    }
    if text.contains("LOCK TABLE") {
        return StepError::transient(codes::LB1815, message).help(LOCKED);
    }
    StepError::transient(codes::LB1278, message).help("the server's log may say more; nothing was published")
}

const LOCKED: &str = "somebody holds a lock on a table: select * from pg_stat_activity where wait_event_type = 'Lock' or state like \
                      'idle in%'; end that, or raise `lock_timeout`; nothing was published";

/// What the step itself reads waits for the same locks.
fn locked(error: StepError) -> StepError {
    match error.message.contains("[SQLSTATE 55P03]") {
        true => StepError::transient(codes::LB1815, error.message).help(LOCKED),
        false => error,
    }
}

async fn publish(
    ctx: &StepContext,
    partial: Partial,
    started_at: Timestamp,
    details: DumpDetails,
) -> Result<Marker, StepError> {
    let total = size_of(partial.path()) + size_of(&partial.path().join(details.format.object()));
    let hashing = Meter::bytes(ctx, Some(total), "hashing");
    let partial = partial.counting(Meter::bytes(ctx, None, "sending"));
    blocking(move || {
        let mut objects = Vec::new();
        list(partial.path(), "", &mut objects, &hashing)?;
        let details = serde_json::to_value(details).expect("details are plain data");
        partial.publish((started_at, Timestamp::now()), objects, details)
    })
    .await
}

/// Hashes every file of the backup.
fn list(dir: &Path, prefix: &str, objects: &mut Vec<ObjectEntry>, meter: &Meter) -> Result<(), StepError> {
    let failed = |error: &std::io::Error| unwritable(dir, error);
    for entry in std::fs::read_dir(dir).map_err(|error| failed(&error))? {
        let entry = entry.map_err(|error| failed(&error))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let path = entry.path();
        if path.is_dir() {
            list(&path, &format!("{prefix}{name}/"), objects, meter)?;
            continue;
        }
        let file = File::open(&path).map_err(|error| failed(&error))?;
        let digest = digest_of(file, meter)?;
        objects.push(ObjectEntry {
            name: format!("{prefix}{name}"),
            size: digest.size,
            sha256: digest.sha256,
        });
    }
    objects.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(())
}

fn done(marker: &Marker, warnings: Vec<String>) -> Result<Done, StepError> {
    let details: DumpDetails = marker.details()?;
    let counts = details.counts.unwrap_or_default();
    let mut done = local::done(json!({
        "backup": marker.label, "taken_at": details.taken_at, "database": details.database,
        "bytes": marker.bytes(), "database_bytes": details.database_bytes,
        "tables": counts.len(), "rows": counts.values().sum::<u64>(),
    }));
    done.facts.insert("server".into(), format!("Postgres {}", details.server_version));
    done.facts.insert("seconds".into(), details.seconds.to_string());
    done.checks.push(Check {
        name: "pg_restore reads the whole dump".into(),
        expected: "every entry".into(),
        actual: format!("{} entries", details.entries),
        passed: true,
    });
    done.warnings = warnings;
    Ok(done)
}
