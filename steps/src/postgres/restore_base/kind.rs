use std::path::Path;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::resource::{Postgres, ResourceKind};
use lifeboat_engine::step::{Effect, Finding, FindingState, KindSpec, PreflightFacts, Preview};
use lifeboat_engine::step::{StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::super::backup::is_unmarked;
use super::super::tools::Tools;
use super::super::{account, local, preflight, server};
use super::fill::{Restored, restore};
use super::places::{Mapping, Places};
use super::source::{self, Source, check_delta, check_space};
use super::target::{Existing, Found, Target};
use super::unpack::Unpacked;
use crate::postgres::backup_manifest::Manifest;
use crate::probe::measure;
use crate::store::{Store, blocking};

/// Under this key the step finds, after a crash, that it had finished.
const FINISHED: &str = "finished";

/// Unpacks a base backup into a data directory.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct RestoreBase;

#[derive(Deserialize)]
struct Params {
    store: String,
    backup: String,
    cluster: String,
    existing: Existing,
    #[serde(flatten)]
    mapping: Mapping,
}

/// Measures what stands in a directory, for people.
async fn measured(dir: &Path) -> String {
    let dir = dir.to_owned();
    let found = blocking(move || Ok(measure(&dir))).await.ok().flatten();
    found.map_or_else(|| "empty".to_owned(), |found| found.to_string())
}

/// Says whether the place is free. A server there may yet be stopped by an earlier step.
async fn place(cluster: &str, postgres: &Postgres, (target, existing): (Target, Existing)) -> Vec<Finding> {
    const WHAT: &str = "place";
    let at = target.data_dir.display().to_string();
    if let Err(error) = target.check_servers(postgres) {
        let finding = Finding::failed(cluster, WHAT, &error).state(FindingState::Warning);
        return vec![finding.help("an earlier step of the plan must stop it")];
    }
    let finding = match (blocking(move || target.look()).await, existing) {
        (Ok(Found::Foreign(names)), Existing::Refuse) => {
            let detail = format!("{at} is not empty ({})", names.join(", "));
            Finding::ok(cluster, WHAT, detail)
                .state(FindingState::Failed)
                .help("`existing: move_aside` on the step keeps what is there under another name")
        }
        (Ok(Found::Foreign(_)), Existing::MoveAside) => {
            Finding::ok(cluster, WHAT, format!("{at} is not empty and will be moved aside"))
        }
        (Ok(Found::Foreign(_)), Existing::Delta) => {
            Finding::ok(cluster, WHAT, format!("{at} is not empty and will be restored over"))
        }
        (Ok(_), _) => Finding::ok(cluster, WHAT, format!("{at} is free")),
        (Err(error), _) => Finding::failed(cluster, WHAT, &error),
    };
    vec![finding]
}

/// What a finished attempt leaves in the journal, so that a repetition does nothing.
#[derive(Serialize, Deserialize)]
struct Finished {
    backup: String,
    inode: u64,
    done: Done,
}

const DOC: &str = "\
Before anything is touched: the backup has a valid marker and all its objects; the programs found are of its major \
version; no server runs on the data directory, and none where this one will listen; the directory is empty or absent, \
or is moved aside (`existing: move_aside`), never deleted; the disk has room.

Each object is read once: decompressed, unpacked and hashed as it streams. Every file is compared with \
`backup_manifest` by size and SHA-256; where the manifest has none, the object is compared with the marker. \
`global/pg_control` is put in place last, after everything else is durable, so that a restore that was cut off cannot be \
started. After a failure the place is as it was before.

Tablespaces go where `tablespaces` or `tablespace_dir` says, else to the directory that they had on the source, if that \
is empty or absent. A directory with files is refused; with `existing: move_aside` it is renamed like the data \
directory if the cluster that is replaced uses it, and never otherwise. The links of every cluster go on to name its own \
directories, also after an undo.

`existing: delta` restores over what an earlier restore has left in the directory, a restore that was recovered to the \
wrong moment for example, as long as no server was promoted on it: files that the backup does not have are removed, and \
of the others only what differs is written. The backup is still read whole. What the earlier restore had is gone; after a \
failure the directory is left for the next attempt, and no server starts on it.

If the run is aborted, the earlier directory is put back. A complete restore is kept beside it, as nobody knows who has \
used it meanwhile; half a one is deleted. If a server runs on the directory, nothing is touched and the undo fails: a \
`postgres.recover` or `postgres.promote` of the same run stops its own.";

#[async_trait]
impl StepKind for RestoreBase {
    fn spec(&self) -> KindSpec {
        KindSpec::new(
            "postgres.restore_base",
            "Unpacks a base backup into an empty data directory.",
            Effect::Idempotent,
        )
        .doc(DOC)
        .param(Field::required("store", Type::reads(ResourceKind::Store), "Where the backup is."))
        .param(Field::required(
            "backup",
            Type::String,
            "The label of the backup, as `postgres.select_backup` gives it.",
        ))
        .param(Field::required(
            "cluster",
            Type::writes(ResourceKind::Postgres),
            "The cluster whose data directory is filled.",
        ))
        .param(Field::defaulted(
            "existing",
            Type::choice(&["refuse", "move_aside", "delta"]),
            "refuse",
            "What to do if the data directory is not empty: stop, rename it to `<data_dir>.pre-<run>`, or restore over \
             what an earlier restore has left.",
        ))
        .param(Field::optional(
            "tablespaces",
            Type::Map(Box::new(Type::Path)),
            "Where tablespaces go, by OID or by their directory on the source; to that same directory if absent.",
        ))
        .param(Field::optional(
            "tablespace_dir",
            Type::Path,
            "A directory below which each tablespace that `tablespaces` does not name gets one, named by its OID.",
        ))
        .output("data_dir", Type::Path, "The directory that was filled.")
        .output("bytes", Type::Integer, "Size of the restored files in bytes.")
        .output("kept_bytes", Type::Integer, "How much of it stood there already and was not written.")
        .output("files", Type::Integer, "Number of restored files.")
        .output("seconds", Type::Number, "How long it took.")
        .output("system_id", Type::String, "The system identifier of the restored cluster.")
        .undoes(
            "the earlier data directory is put back; what was restored is kept as `<data_dir>.undone-<run>`",
        )
        .destroys("the data directory of `cluster` (with `existing: move_aside` it is renamed, not deleted)")
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let (_, data_dir) = local::data_dir(ctx, &params.cluster)?;
        let target = Target::new(ctx, &params.cluster, data_dir)?;
        let found = blocking(move || target.look()).await?;
        let mut preview = Preview::default();
        let place = data_dir.display();
        preview.actions.push(format!("unpack base backup `{}` into {place}", params.backup));
        match (found, params.existing) {
            (Found::Foreign(_), Existing::MoveAside) => {
                let there = measured(data_dir).await;
                preview
                    .destroys
                    .push(format!("`{}`: {place} ({there}) becomes {place}.pre-<run>", params.cluster));
            }
            (Found::Foreign(names), Existing::Refuse) => {
                let there = names.join(", ");
                preview.destroys.push(format!(
                    "`{}`: nothing; the step is refused while {place} holds {there}",
                    params.cluster
                ));
            }
            (Found::Foreign(_), Existing::Delta) => {
                let there = measured(data_dir).await;
                let cluster = &params.cluster;
                preview
                    .destroys
                    .push(format!("`{cluster}`: the earlier restore in {place} ({there}) is overwritten"));
            }
            (Found::Nothing | Found::Empty | Found::Own, _) => {
                preview
                    .destroys
                    .push(format!("`{}`: nothing, {place} is empty or absent now", params.cluster));
            }
        }
        Ok(preview)
    }

    async fn preflight(&self, ctx: &StepContext, _: &PreflightFacts) -> Result<Vec<Finding>, StepError> {
        /// The backup is chosen by an earlier step, as a rule.
        #[derive(Deserialize)]
        struct Known {
            store: String,
            cluster: String,
            backup: Option<String>,
            existing: Existing,
        }
        let known: Known = ctx.params()?;
        let (postgres, data_dir) = local::data_dir(ctx, &known.cluster)?;
        let store = Store::of(ctx, &known.store).await?;
        let (cluster, backup) = (known.cluster.as_str(), known.backup.as_deref());
        let mut findings =
            preflight::restore(preflight::Wanted { store, cluster, postgres, data_dir, backup }).await?;
        let target = Target::new(ctx, &known.cluster, data_dir)?;
        findings.extend(place(cluster, postgres, (target, known.existing)).await);
        Ok(findings)
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let (postgres, data_dir) = local::data_dir(ctx, &params.cluster)?;
        let target = Target::new(ctx, &params.cluster, data_dir)?;
        if let Some(done) = finished_before(ctx, &params, &target) {
            return Ok(done);
        }
        let begun = Instant::now();
        let source = source::open(ctx, (&params.store, &params.backup)).await?;
        Tools::find_major(postgres, source.details.major)?;
        let owner = account::owner(postgres)?;
        // Refused below; of what a killed one has left, nobody is to write there any more.
        server::running(ctx, data_dir).await?;
        target.check_servers(postgres)?;
        let places = Places::plan(ctx, target, (&source.tablespaces, &params.mapping))?;
        check_space(&places, &source)?;
        places.check_free(params.existing)?;
        if params.existing == Existing::Delta {
            check_delta(postgres, &places.data, &source)?;
        }
        places.record(ctx).await?;
        places.make_room(ctx, params.existing).await?;
        match restore(ctx, &places, (owner, params.existing), source).await {
            Ok(restored) => finish(ctx, &params, &places, &restored, begun.elapsed()).await,
            Err(error) => {
                // An interrupted attempt leaves what it has to the next one, which empties it or goes on with it.
                if !ctx.cancel.is_cancelled()
                    && params.existing != Existing::Delta
                    && let Err(left) = places.give_up(ctx).await
                {
                    tracing::warn!("{left}");
                }
                Err(error)
            }
        }
    }

    async fn undo(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let (_, data_dir) = local::data_dir(ctx, &params.cluster)?;
        Places::placed(ctx, Target::new(ctx, &params.cluster, data_dir)?)?.undo(ctx, filled(ctx)).await
    }
}

/// Returns the inode of the directory that this step has filled.
fn filled(ctx: &StepContext) -> Option<u64> {
    let finished: Finished = serde_json::from_value(ctx.recorded(FINISHED)?.clone()).ok()?;
    Some(finished.inode)
}

/// Returns the results of an attempt of this step that had finished when Lifeboat died.
fn finished_before(ctx: &StepContext, params: &Params, target: &Target) -> Option<Done> {
    let finished: Finished = serde_json::from_value(ctx.recorded(FINISHED)?.clone()).ok()?;
    let same = finished.backup == params.backup && Some(finished.inode) == target.inode();
    if same {
        // It may have died before it could be noted.
        let places = Places::placed(ctx, target.clone());
        places.and_then(|places| places.note_finished(&params.backup)).ok();
    }
    same.then_some(finished.done)
}

async fn finish(
    ctx: &StepContext,
    params: &Params,
    places: &Places,
    restored: &Restored,
    took: Duration,
) -> Result<Done, StepError> {
    let done = report(places, restored, took);
    let inode = places.data.inode().unwrap_or_default();
    let finished = Finished { backup: params.backup.clone(), inode, done };
    let value = serde_json::to_value(&finished).expect("results are JSON");
    ctx.record(FINISHED, value).await?;
    // The journal comes first: until it knows, a repetition begins again.
    places.note_finished(&params.backup)?;
    Ok(finished.done)
}

fn report(places: &Places, restored: &Restored, took: Duration) -> Done {
    let Restored { source, base, wal } = restored;
    let (files, bytes) = (base.files + wal.files, base.bytes + wal.bytes);
    let seconds = took.as_secs_f64();
    let outputs = json!({
        "data_dir": places.data.data_dir, "bytes": bytes, "kept_bytes": base.kept, "files": files, "seconds": seconds,
        "system_id": source.details.system_id,
    });
    let mut done = local::done(outputs);
    done.checks = checks(source, base);
    done.facts.insert("backup".into(), source.marker.label.clone());
    done.facts.insert("backup stop time".into(), source.details.stop_time.to_string());
    done.facts.insert("Postgres".into(), source.details.version.clone());
    done.facts.insert("rate".into(), format!("{:.1} MB/s", bytes as f64 / 1e6 / seconds.max(1e-3)));
    if let Some(aside) = places.data.aside() {
        done.facts.insert("moved aside".into(), aside.display().to_string());
    }
    for space in &places.spaces {
        let dir = space.target.data_dir.display();
        let aside = space.target.aside().map(|aside| format!(", what was there is now {}", aside.display()));
        let fact = format!("{dir}{}", aside.unwrap_or_default());
        done.facts.insert(format!("tablespace {}", space.oid), fact);
    }
    done.warnings.extend(source.warnings.iter().cloned());
    if source.warnings.is_empty() && !source.manifest.as_ref().is_some_and(Manifest::has_checksums) {
        done.warnings.push(
            "the backup's manifest has no SHA-256 checksums: restored files were compared by size, and the objects \
             by their SHA-256"
                .to_owned(),
        );
    }
    done
}

/// Every one of these has passed, or the step would have failed.
fn checks(source: &Source, base: &Unpacked) -> Vec<Check> {
    let objects = source.marker.objects.len();
    let mut checks = Vec::new();
    if !is_unmarked(&source.marker.label) {
        checks.push(Check {
            name: "objects of the backup match its marker".into(),
            expected: format!(
                "{objects} objects with size, and SHA-256 of the object or of every file in it"
            ),
            actual: format!("{objects} objects"),
            passed: true,
        });
    }
    if let Some(manifest) = &source.manifest {
        let files = manifest.files.len();
        let how = if manifest.has_checksums() { "size and SHA-256" } else { "size" };
        checks.push(Check {
            name: "restored files match backup_manifest".into(),
            expected: format!("{files} files with {how}"),
            actual: format!("{} files", base.seen.len()),
            passed: base.seen.len() == files,
        });
    }
    checks
}
