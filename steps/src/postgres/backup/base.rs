use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::{Check, Progress, Unit};
use lifeboat_engine::resource::{Postgres, ResourceKind, System};
use lifeboat_engine::step::{
    Effect, Finding, KindSpec, PreflightFacts, Preview, StepContext, StepError, StepKind,
};
use lifeboat_engine::value::{Field, Span, Type};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::checks::{self, Source};
use super::program::{Checkpoint, Compression, Program};
use super::verify::{Expected, Verified, verify, wal_needed};
use crate::postgres::connect::Login;
use crate::postgres::details::BaseDetails;
use crate::postgres::inventory::{Inventory, Snapshots};
use crate::postgres::tools::Tools;
use crate::postgres::wal::{self, Segment, SegmentSize};
use crate::postgres::{codes, local};
use crate::probe::{bytes, program_found};
use crate::store::{self, BackupKind, Marker, Meter, Owner, Partial, Store, blocking};

/// `postgres.base_backup`
#[derive(Clone, Copy, Debug)]
pub struct BaseBackup;

/// The details of a `postgres.base` marker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupDetails {
    #[serde(flatten)]
    pub base: BaseDetails,
    /// Files of the data directory, and their bytes uncompressed.
    pub files: u64,
    pub data_bytes: u64,
    pub wal_start_segment: String,
    pub wal_stop_segment: String,
    /// Whether the WAL that it needs was proven to be in the archive of the same store.
    pub archived: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tablespaces: Vec<Tablespace>,
    /// How long it took, verification included.
    #[serde(default)]
    pub seconds: u64,
}

/// Data that lies outside the data directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    pub oid: String,
    pub location: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Params {
    cluster: String,
    store: String,
    label: Option<String>,
    checkpoint: Checkpoint,
    compression: Compression,
    archiving: Archiving,
    archive_timeout: Span,
    counts: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Archiving {
    Required,
    Optional,
}

/// Under this key a step finds its label again.
const LABEL: &str = "label";

const DOC: &str = "\
Runs `pg_basebackup` (tar, WAL streamed, SHA-256 manifest) into `base/<label>.partial` of the store and reads \
everything back: every archive to its end marks, every file against the server's manifest, every WAL segment from \
start to stop. Then it waits until that WAL is in the store's archive and publishes the backup: the marker \
`lifeboat.json` last, everything synced, one rename.

Before it begins: the role may replicate, `wal_level` and WAL senders suffice, the archiver does not fail, the \
programs are of the server's major version, the store has room. A failed or interrupted backup leaves nothing that \
counts; the next attempt uses the same label, and one that is published already is success.

Beside it `inventory.json` says what the databases held just before: roles, tables, columns, functions and all else that is \
defined, and the rows of each table (`counts: false` leaves them out). `postgres.verify` compares a restored server with it.

Configuration files outside the data directory are not in it; a warning names them.";

#[async_trait]
impl StepKind for BaseBackup {
    fn spec(&self) -> KindSpec {
        let checkpoint = Type::choice(&["fast", "spread"]);
        let compression = Type::choice(&["zstd", "gzip", "none"]);
        let archiving = Type::choice(&["required", "optional"]);
        KindSpec::new(
            "postgres.base_backup",
            "Takes a verified base backup of a Postgres cluster.",
            Effect::Idempotent,
        )
        .doc(DOC)
        .param(Field::required("cluster", Type::reads(ResourceKind::Postgres), "The cluster to back up."))
        .param(Field::required("store", Type::writes(ResourceKind::Store), "Where the backup goes."))
        .param(Field::optional("label", Type::String, "The name of the backup; time and run if absent."))
        .param(Field::defaulted("checkpoint", checkpoint, "fast", "Whether the first checkpoint is hurried."))
        .param(Field::defaulted(
            "compression",
            compression,
            "zstd",
            "How it is stored; gzip before version 15.",
        ))
        .param(Field::defaulted(
            "archiving",
            archiving,
            "required",
            "Whether a server without archiving is refused.",
        ))
        .param(Field::defaulted(
            "archive_timeout",
            Type::Duration,
            "2m",
            "How long the archiver may take at the end.",
        ))
        .param(Field::defaulted(
            "counts",
            Type::Boolean,
            true,
            "Whether the rows of every table are counted, for proof after a restore.",
        ))
        .output("label", Type::String, "The name of the backup.")
        .output("system_id", Type::String, "The system identifier of the cluster.")
        .output("timeline", Type::Integer, "The timeline on which it was made.")
        .output("start_lsn", Type::String, "Where replay begins.")
        .output("stop_lsn", Type::String, "Where the data is consistent.")
        .output("stop_time", Type::Timestamp, "Later targets can be reached from it.")
        .output("bytes", Type::Integer, "Bytes in the store.")
        .output("data_bytes", Type::Integer, "Bytes of the data directory, uncompressed.")
        .output("files", Type::Integer, "Files of the data directory.")
        .output("wal_start_segment", Type::String, "The first WAL segment that it needs.")
        .output("wal_stop_segment", Type::String, "The last WAL segment that it needs.")
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let store = store_resource(ctx, &params.store)?;
        Ok(Preview {
            actions: vec![
                "pg_basebackup -F tar -X stream --manifest-checksums=SHA256".to_owned(),
                format!("verify, wait for its WAL, publish as base/<label> in {}", store.url),
            ],
            destroys: vec![],
        })
    }

    async fn preflight(&self, ctx: &StepContext, _: &PreflightFacts) -> Result<Vec<Finding>, StepError> {
        const WHAT: &str = "base backup";
        let params: Params = ctx.params()?;
        let postgres = local::cluster(ctx, &params.cluster)?;
        // A login that fails has its own finding.
        let Ok(login) = Login::of(ctx, postgres) else { return Ok(Vec::new()) };
        let source = match checks::inspect(&login).await {
            Ok(source) => source,
            Err(error) if error.code == codes::LB1240 || error.code == codes::LB1241 => return Ok(Vec::new()),
            Err(error) if crate::tls::codes::ALL.contains(&error.code) => return Ok(Vec::new()),
            Err(error) => return Ok(vec![Finding::failed(&params.cluster, WHAT, &error)]),
        };
        let archiving = if source.archiving { "it archives its log" } else { "it does not archive its log" };
        let detail = format!("can be taken of {}, {archiving}", bytes(source.bytes));
        let program = match Tools::find_clients_major(postgres, source.major) {
            Ok(tools) => program_found(&params.cluster, &tools.program("pg_basebackup").to_string_lossy()),
            Err(error) => Finding::failed(&params.cluster, "programs", &error),
        };
        Ok(vec![Finding::ok(&params.cluster, WHAT, detail), program])
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let cluster = ctx.system(&params.cluster, |system| match system {
            System::Postgres(postgres) => Some(postgres),
            _ => None,
        })?;
        let store = Store::of_for_writing(ctx, &params.store).await?;
        let label = label(ctx, &params).await?;
        if let Some(marker) = published(ctx, &store, &label).await? {
            return done(&marker, Vec::new());
        }
        Run { ctx, params: &params, cluster, store, label }.run().await
    }
}

fn store_resource<'a>(
    ctx: &'a StepContext,
    name: &str,
) -> Result<&'a lifeboat_engine::resource::Store, StepError> {
    ctx.system(name, |system| match system {
        System::Store(store) => Some(store),
        _ => None,
    })
}

/// The label given, or one that is recorded before it is used, so that every attempt has the same.
async fn label(ctx: &StepContext, params: &Params) -> Result<String, StepError> {
    if let Some(label) = &params.label {
        return Ok(label.clone());
    }
    if let Some(label) = ctx.recorded(LABEL).and_then(Value::as_str) {
        return Ok(label.to_owned());
    }
    let label = store::new_label(Timestamp::now(), &ctx.info.run);
    ctx.record(LABEL, label.as_str()).await?;
    Ok(label)
}

/// Returns the backup if an earlier attempt of this very step has published it.
async fn published(ctx: &StepContext, store: &Store, label: &str) -> Result<Option<Marker>, StepError> {
    let (store, label) = (store.clone(), label.to_owned());
    let owner = Owner::of(&ctx.info);
    blocking(move || match store::read_marker(&store, BackupKind::PostgresBase, &label) {
        Ok(marker) if marker.run == owner.run && marker.step == owner.step => {
            store::verify_sizes(&store, &marker)?;
            Ok(Some(marker))
        }
        // Anything else that has the name is refused when the backup begins.
        Ok(_) => Ok(None),
        Err(error) if error.code == store::codes::LB1104 => Ok(None),
        Err(error) => Err(error),
    })
    .await
}

/// One attempt.
struct Run<'a> {
    ctx: &'a StepContext,
    params: &'a Params,
    cluster: &'a Postgres,
    store: Store,
    label: String,
}

impl Run<'_> {
    async fn run(&self) -> Result<Done, StepError> {
        let login = Login::of(self.ctx, self.cluster)?;
        let source = checks::inspect(&login).await?;
        let (postgres, major) = (self.cluster.clone(), source.major);
        blocking(move || Tools::find_clients_major(&postgres, major)).await?;
        let mut warnings = self.warnings(&source)?;
        let compression = self.params.compression.for_major(source.major);
        warnings.extend(checks::space(&self.store, source.bytes, compression != Compression::None)?);
        let (store, label, owner) = (self.store.clone(), self.label.clone(), Owner::of(&self.ctx.info));
        let partial = blocking(move || store.begin(BackupKind::PostgresBase, &label, &owner)).await?;
        let program = Program {
            postgres: self.cluster,
            login: &login,
            major: source.major,
            checkpoint: self.params.checkpoint,
            compression,
        };
        match self.make(&login, &source, (&program, partial)).await {
            Ok((marker, more)) => {
                warnings.extend(more);
                done(&marker, warnings)
            }
            Err((partial, error)) => {
                // What cannot be removed now is removed by the next attempt.
                if let Some(partial) = partial {
                    blocking(move || partial.discard()).await.ok();
                }
                Err(error)
            }
        }
    }

    /// Returns the partial backup along with an error.
    async fn make(
        &self,
        login: &Login,
        source: &Source,
        (program, partial): (&Program<'_>, Partial),
    ) -> Result<(Marker, Vec<String>), (Option<Partial>, StepError)> {
        let begun = Instant::now();
        match self.prove(login, source, (program, &partial)).await {
            Err(error) => Err((Some(partial), error)),
            Ok((verified, stop_time, warnings)) => {
                let details = details(source, &verified, (stop_time, begun.elapsed()));
                let times = (source.now, stop_time);
                let partial = partial.counting(Meter::bytes(self.ctx, Some(sent(&verified)), "sending"));
                blocking(move || {
                    let details = serde_json::to_value(&details).expect("details are plain data");
                    partial.publish(times, verified.objects, details)
                })
                .await
                .map(|marker| (marker, warnings))
                .map_err(|error| (None, error))
            }
        }
    }

    async fn prove(
        &self,
        login: &Login,
        source: &Source,
        (program, partial): (&Program<'_>, &Partial),
    ) -> Result<(Verified, Timestamp, Vec<String>), StepError> {
        let (inventory, warnings) = self.take(login, (program, partial)).await?;
        let stop_time = checks::server_time(login).await?;
        let dir = partial.path().to_owned();
        let meter = Meter::bytes(self.ctx, Some(size_of(&dir)), "verifying");
        let expected = Expected { system: source.system, size: source.segment_size };
        let verified = blocking(move || {
            let mut verified = verify(&dir, expected, &meter)?;
            if let Some(inventory) = inventory {
                verified.objects.push(inventory.write(&dir)?);
                verified.objects.sort_by(|a, b| a.name.cmp(&b.name));
            }
            Ok(verified)
        })
        .await?;
        if source.archiving {
            let needed = wal_needed(&verified.wal, source.segment_size).collect();
            self.wait_for_wal(login, source, needed).await?;
        }
        Ok((verified, stop_time, warnings))
    }

    /// Runs the program, and meanwhile reads what the databases held before it began. That cannot be had at the price of the
    /// backup: what fails there is a warning.
    async fn take(
        &self,
        login: &Login,
        (program, partial): (&Program<'_>, &Partial),
    ) -> Result<(Option<Inventory>, Vec<String>), StepError> {
        let stop = AtomicBool::new(false);
        let snapshots = Snapshots::take(login).await;
        let read = async {
            match snapshots {
                Ok(snapshots) => snapshots.read(self.params.counts, &stop).await,
                Err(error) => Err(error),
            }
        };
        let taken = async {
            let taken = program.take(self.ctx, partial).await;
            stop.store(taken.is_err(), Ordering::Relaxed);
            taken
        };
        let (taken, read) = tokio::join!(taken, read);
        let told = taken?;
        Ok(match read {
            Ok(inventory) => {
                let left_out = inventory.left_out.iter().map(|left| format!("the inventory lacks {left}"));
                let warnings = told.into_iter().chain(left_out).collect();
                (Some(inventory), warnings)
            }
            Err(error) if self.ctx.cancel.is_cancelled() => return Err(error),
            Err(error) => {
                let why = format!("the backup has no inventory for later comparison: {}", error.message);
                (None, told.into_iter().chain([why]).collect())
            }
        })
    }

    fn warnings(&self, source: &Source) -> Result<Vec<String>, StepError> {
        let mut warnings = Vec::new();
        if !source.archiving {
            if self.params.archiving == Archiving::Required {
                return Err(checks::unfit("archive_mode is off, so that nothing after the backup could be restored")
                    .help(
                        "set archive_mode = on and archive_command = 'lifeboat wal put --config FILE %p %f', restart; \
                         or give the step `archiving: optional`",
                    ));
            }
            warnings
                .push("archive_mode is off: only the moment of the backup itself can be restored".to_owned());
        }
        for file in &source.outside {
            warnings.push(format!("{file} lies outside the data directory and is not in the backup"));
        }
        Ok(warnings)
    }

    /// Waits until every segment that the backup needs is in the archive.
    async fn wait_for_wal(
        &self,
        login: &Login,
        source: &Source,
        mut needed: Vec<Segment>,
    ) -> Result<(), StepError> {
        let deadline = Instant::now() + self.params.archive_timeout.0;
        loop {
            let (store, system, size) = (self.store.clone(), source.system, source.segment_size);
            needed = blocking(move || still_missing(&store, system, (needed, size))).await?;
            let Some(first) = needed.first() else { return Ok(()) };
            let name = first.name(size);
            if Instant::now() >= deadline {
                return Err(not_archived(&name, self.params.archive_timeout, &self.store)
                    .help(checks::archiver_state(login).await?));
            }
            self.ctx.progress(Progress {
                done: 0,
                total: None,
                unit: Unit::Items,
                note: format!("waiting for {name} in the archive"),
            });
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
                () = self.ctx.cancelled() => return Err(interrupted()),
            }
        }
    }
}

fn sent(verified: &Verified) -> u64 {
    verified.objects.iter().map(|object| object.size).sum()
}

fn still_missing(
    store: &Store,
    system: wal::SystemId,
    (needed, size): (Vec<Segment>, SegmentSize),
) -> Result<Vec<Segment>, StepError> {
    let mut missing = Vec::new();
    for segment in needed {
        if !wal::is_archived(store, system, &segment.name(size))? {
            missing.push(segment);
        }
    }
    Ok(missing)
}

fn interrupted() -> StepError {
    StepError::transient(store::codes::LB1109, "interrupted before the backup was published")
}

fn not_archived(name: &str, waited: Span, store: &Store) -> StepError {
    StepError::transient(
        codes::LB1216,
        format!("the WAL segment {name}, which the backup needs, was not in {store} after {waited}"),
    )
}

fn size_of(dir: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let files = entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'));
    files.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

fn details(source: &Source, verified: &Verified, (stop_time, took): (Timestamp, Duration)) -> BackupDetails {
    let (wal, size) = (verified.wal, source.segment_size);
    BackupDetails {
        base: BaseDetails {
            system_id: source.system.to_string(),
            major: source.major,
            version: source.version.clone(),
            timeline: wal.timeline,
            start_lsn: wal.start.to_string(),
            stop_lsn: wal.end.to_string(),
            start_time: source.now,
            stop_time,
            wal_segment_size: size.bytes(),
        },
        files: verified.files,
        data_bytes: verified.data_bytes,
        wal_start_segment: Segment::at(wal.timeline, wal.start, size).name(size),
        wal_stop_segment: Segment::before(wal.timeline, wal.end, size).name(size),
        archived: source.archiving,
        tablespaces: source.tablespaces.clone(),
        seconds: took.as_secs(),
    }
}

fn done(marker: &Marker, warnings: Vec<String>) -> Result<Done, StepError> {
    let details: BackupDetails = marker.details()?;
    let base = &details.base;
    let outputs = json!({
        "label": marker.label,
        "system_id": base.system_id,
        "timeline": base.timeline,
        "start_lsn": base.start_lsn,
        "stop_lsn": base.stop_lsn,
        "stop_time": base.stop_time.to_string(),
        "bytes": marker.bytes(),
        "data_bytes": details.data_bytes,
        "files": details.files,
        "wal_start_segment": details.wal_start_segment,
        "wal_stop_segment": details.wal_stop_segment,
    });
    let Value::Object(outputs) = outputs else { unreachable!("written as an object") };
    let facts = BTreeMap::from([
        ("server version".to_owned(), base.version.clone()),
        ("seconds".to_owned(), details.seconds.to_string()),
    ]);
    Ok(Done { outputs, checks: evidence(&details), facts, warnings, ..Done::default() })
}

/// What was proven before the backup was published; a failure of any of it has ended the step.
fn evidence(details: &BackupDetails) -> Vec<Check> {
    let check = |name: &str, expected: &str, actual: String| Check {
        name: name.to_owned(),
        expected: expected.to_owned(),
        actual,
        passed: true,
    };
    let wal = format!("{} to {}", details.wal_start_segment, details.wal_stop_segment);
    let mut checks = vec![
        check(
            "files match the server's manifest",
            "count, size and SHA-256 equal",
            format!("{} files, {} bytes", details.files, details.data_bytes),
        ),
        check("WAL of the backup is in it", "every segment from start to stop", wal.clone()),
    ];
    if details.archived {
        checks.push(check("WAL of the backup is archived", "every segment from start to stop", wal));
    }
    checks
}
