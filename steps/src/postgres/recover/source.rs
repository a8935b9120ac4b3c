//! What a recovery starts from, and the WAL that there is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use lifeboat_engine::resource::Postgres;
use lifeboat_engine::step::{StepContext, StepError};
use serde::Deserialize;

use super::super::controldata::ControlData;
use super::super::details::BaseDetails;
use super::super::isolation::Isolation;
use super::super::restore_note::RestoreNote;
use super::super::tools::Tools;
use super::super::unsynced;
use super::super::wal::{Archive, Continuity, Lsn, Segment, SegmentSize, SystemId};
use super::super::{account, codes, local};
use crate::process::OsUser;
use crate::store::{BackupKind, Store, blocking, read_marker};

/// The parameters of the step.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Params {
    pub(super) store: String,
    pub(super) cluster: String,
    pub(super) target_time: Option<Timestamp>,
    pub(super) timeline: String,
}

/// A restored base backup and the WAL that can follow it.
pub(super) struct Source<'a> {
    pub(super) params: Params,
    pub(super) postgres: &'a Postgres,
    pub(super) data_dir: PathBuf,
    pub(super) tools: Tools,
    pub(super) owner: Option<OsUser>,
    pub(super) control: ControlData,
    pub(super) wal: Wal,
}

/// The WAL of the source, as it was listed before the recovery.
pub(super) struct Wal {
    pub(super) store: Store,
    pub(super) backup: String,
    pub(super) details: BaseDetails,
    pub(super) system_id: SystemId,
    pub(super) size: SegmentSize,
    pub(super) archive: Archive,
    pub(super) continuity: Continuity,
    /// Segments that the backup brought along.
    pub(super) local: BTreeSet<String>,
}

impl Wal {
    /// Returns the first segment that is needed to get to the end of the archive and is nowhere.
    pub(super) fn first_gap(&self) -> Option<&str> {
        self.continuity.missing.iter().find(|name| !self.local.contains(*name)).map(String::as_str)
    }

    /// Returns where the log begins that this recovery reads.
    pub(super) fn start(&self) -> Lsn {
        self.details.start_lsn.parse().unwrap_or_default()
    }
}

impl<'a> Source<'a> {
    /// Looks at the data directory, the backup it came from and the archive. Starts nothing.
    pub(super) async fn open(ctx: &'a StepContext) -> Result<Self, StepError> {
        let params: Params = ctx.params()?;
        let (postgres, data_dir) = local::data_dir(ctx, &params.cluster)?;
        let owner = account::owner(postgres)?;
        unsynced::refuse_lost(data_dir)?;
        let label = label_of(ctx, data_dir)?;
        let store = Store::of(ctx, &params.store).await?;
        let timeline = timeline(&params.timeline)?;
        let dir = data_dir.to_path_buf();
        let wal = blocking(move || read_wal(store, &label, timeline, &dir)).await?;
        let tools = Tools::find_major(postgres, wal.details.major)?;
        let control = ControlData::read(&tools, data_dir)?;
        if control.system_id != wal.details.system_id {
            return Err(foreign(data_dir, &format!("has the system identifier {}", control.system_id)));
        }
        check_target(&params, &wal)?;
        let data_dir = data_dir.to_path_buf();
        Ok(Self { params, postgres, data_dir, tools, owner, control, wal })
    }
}

/// Finds the backup that the directory was restored from. Only such a directory may be recovered: replaying WAL
/// over a server's own data would put it on a timeline of its own.
fn label_of(ctx: &StepContext, data_dir: &Path) -> Result<String, StepError> {
    if let Some(note) = RestoreNote::read(data_dir) {
        if note.finished {
            return Ok(note.backup);
        }
        return Err(foreign(data_dir, "was not restored to its end"));
    }
    match Isolation::read(data_dir) {
        Some(isolation) if isolation.run == ctx.info.run.to_string() => Ok(isolation.backup),
        _ => Err(foreign(data_dir, "was not filled by `postgres.restore_base`")),
    }
}

fn foreign(data_dir: &Path, why: &str) -> StepError {
    StepError::permanent(codes::LB1263, format!("{} cannot be recovered: it {why}", data_dir.display()))
        .help("run a `postgres.restore_base` step into this data directory first; nothing was touched")
}

/// `current` is the timeline of the backup; a number names another one whose history holds it.
fn timeline(text: &str) -> Result<Option<u32>, StepError> {
    match text {
        "current" => Ok(None),
        number => number.parse().map(Some).map_err(|_| {
            StepError::permanent(
                codes::LB1269,
                format!("`timeline: {text}` is neither `current` nor a number"),
            )
            .help("`latest` is refused: it would follow whatever was archived last, a drill included")
        }),
    }
}

fn read_wal(store: Store, label: &str, timeline: Option<u32>, data_dir: &Path) -> Result<Wal, StepError> {
    let marker = read_marker(&store, BackupKind::PostgresBase, label)?;
    let details: BaseDetails = marker.details()?;
    let odd = |what: &str| {
        StepError::permanent(codes::LB1269, format!("the marker of backup `{label}` has an odd {what}"))
            .help("restore from another backup")
    };
    let system_id: SystemId = details.system_id.parse().map_err(|_| odd("system identifier"))?;
    let start: Lsn = details.start_lsn.parse().map_err(|_| odd("start position"))?;
    let size = SegmentSize::new(details.wal_segment_size)?;
    let archive = Archive::list(&store, system_id)?;
    let history = archive.history(&store, system_id, timeline.unwrap_or(details.timeline))?;
    if !history.contains(details.timeline, start) {
        return Err(StepError::permanent(
            codes::LB1269,
            format!(
                "timeline {} does not hold backup `{label}` of timeline {}",
                history.timeline, details.timeline
            ),
        )
        .help("use `timeline: current`, or restore a backup that was made before the timelines parted"));
    }
    let first = Segment::at(details.timeline, start, size);
    let continuity = archive.continuity(first.number, &history, size);
    let local = local_segments(data_dir);
    Ok(Wal { store, backup: label.to_owned(), details, system_id, size, archive, continuity, local })
}

fn local_segments(data_dir: &Path) -> BTreeSet<String> {
    let Ok(entries) = std::fs::read_dir(data_dir.join("pg_wal")) else { return BTreeSet::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn check_target(params: &Params, wal: &Wal) -> Result<(), StepError> {
    let Some(target) = params.target_time else { return Ok(()) };
    let stop = wal.details.stop_time;
    if target > stop {
        return Ok(());
    }
    Err(StepError::permanent(
        codes::LB1269,
        format!("the target {target} is not after the end of backup `{}` ({stop})", wal.backup),
    )
    .help(
        "restore an older backup: `postgres.select_backup` with this `target_time` finds the one that fits",
    ))
}
