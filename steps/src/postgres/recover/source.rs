//! What a recovery starts from, and the WAL that there is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lifeboat_engine::resource::Postgres;
use lifeboat_engine::step::{ParamProblem, StepContext, StepError};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::backup::{Described, described};
use super::super::controldata::ControlData;
use super::super::details::BaseDetails;
use super::super::isolation::Isolation;
use super::super::recovery_target::{RecoveryTarget, TargetParams};
use super::super::restore_note::RestoreNote;
use super::super::tools::Tools;
use super::super::unsynced;
use super::super::wal::{Archive, Continuity, History, Lsn, Segment, SegmentSize, SystemId};
use super::super::{account, codes, local, timeline};
use super::surviving::{self, Surviving};
use crate::process::OsUser;
use crate::store::{BackupKind, Store, blocking, catalogue};

/// The parameters of the step.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Params {
    pub(super) store: String,
    pub(super) cluster: String,
    #[serde(flatten)]
    target: TargetParams,
    timeline: Option<Timeline>,
    surviving_wal: Option<String>,
}

/// As it is written: a number, also as text, or `current`.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Timeline {
    Number(u32),
    Text(String),
}

/// Finds what is wrong with a timeline that is written out.
pub(super) fn check_timeline(with: &Map<String, Value>) -> Option<ParamProblem> {
    let value = with.get("timeline").filter(|value| !value.is_null())?;
    let known = match value {
        Value::String(text) => text == "current" || text.parse::<u32>().is_ok_and(|number| number > 0),
        value => value.as_u64().is_some_and(|number| number > 0 && u32::try_from(number).is_ok()),
    };
    (!known).then(|| ParamProblem {
        param: "timeline".into(),
        message: format!("`timeline: {value}` is neither `current` nor the number of a timeline"),
        help: Some(
            "`latest` is refused: it would follow whatever was archived last, a drill included".into(),
        ),
    })
}

/// A restored base backup and the WAL that can follow it.
pub(super) struct Source<'a> {
    pub(super) params: Params,
    pub(super) target: RecoveryTarget,
    pub(super) postgres: &'a Postgres,
    pub(super) data_dir: PathBuf,
    pub(super) tools: Tools,
    pub(super) owner: Option<OsUser>,
    pub(super) control: ControlData,
    pub(super) wal: Wal,
    pub(super) surviving: Surviving,
}

/// The WAL of the source, as it was listed before the recovery.
#[derive(Clone)]
pub(super) struct Wal {
    pub(super) store: Store,
    pub(super) backup: String,
    pub(super) details: BaseDetails,
    pub(super) system_id: SystemId,
    pub(super) size: SegmentSize,
    pub(super) archive: Archive,
    /// That of the timeline that is followed.
    pub(super) history: History,
    pub(super) continuity: Continuity,
    /// Segments that the backup brought along, or that the lost server had.
    pub(super) local: BTreeSet<String>,
}

impl Wal {
    /// Returns the first segment that is needed to get to the end of the archive and is nowhere.
    pub(super) fn first_gap(&self) -> Option<&str> {
        self.continuity.missing.iter().find(|name| !self.local.contains(*name)).map(String::as_str)
    }

    /// Returns the timeline as the server is told it. Its own needs no history file.
    pub(super) fn timeline_setting(&self) -> String {
        match self.history.timeline {
            own if own == self.details.timeline => "current".to_owned(),
            number => number.to_string(),
        }
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
        let target = params.target()?;
        let timeline = params.timeline.as_ref().map(|timeline| match timeline {
            Timeline::Number(number) => number.to_string(),
            Timeline::Text(text) => text.clone(),
        });
        let timeline = Follow::of(timeline.as_deref(), &target)?;
        let place = params.surviving_wal()?;
        let (dir, run) = (data_dir.to_path_buf(), ctx.info.run);
        let (wal, surviving) = blocking(move || {
            let mut wal = read_wal(store, &label, timeline, &dir)?;
            let surviving = Surviving::find(&place, &wal, (&dir, &run))?;
            wal.local.extend(surviving.names(&wal));
            Ok((wal, surviving))
        })
        .await?;
        let tools = Tools::find_major(postgres, wal.details.major)?;
        let control = ControlData::read(&tools, data_dir)?;
        if control.system_id != wal.details.system_id {
            return Err(foreign(data_dir, &format!("has the system identifier {}", control.system_id)));
        }
        check_target(&target, &wal)?;
        let data_dir = data_dir.to_path_buf();
        Ok(Self { params, target, postgres, data_dir, tools, owner, control, wal, surviving })
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

impl Params {
    /// Returns the one target that is asked for.
    pub(super) fn target(&self) -> Result<RecoveryTarget, StepError> {
        self.target.resolve()
    }

    /// Returns where WAL of the lost server is looked for.
    fn surviving_wal(&self) -> Result<surviving::Place, StepError> {
        let text = self.surviving_wal.as_deref().unwrap_or(surviving::Place::DEFAULT);
        surviving::Place::parse(text).map_err(|problem| {
            StepError::permanent(codes::LB1836, problem)
                .help("give the data directory of the lost server, or its `pg_wal`")
        })
    }
}

/// Which timeline is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Follow {
    /// That of the backup.
    Current,
    Number(u32),
    /// The newest one, if it is certain that it is the right one.
    Newest,
}

impl Follow {
    fn of(text: Option<&str>, target: &RecoveryTarget) -> Result<Self, StepError> {
        let refused = |message: String, help: &str| {
            Err(StepError::permanent(codes::LB1269, message).help(help.to_owned()))
        };
        match (text, target) {
            (None | Some("current"), RecoveryTarget::Immediate) => Ok(Self::Current),
            (Some(text), RecoveryTarget::Immediate) => refused(
                format!("the end of the backup is on its own timeline, and `timeline` is `{text}`"),
                "leave `timeline` out",
            ),
            (None, _) => Ok(Self::Newest),
            (Some("current"), _) => Ok(Self::Current),
            (Some(number), _) => match number.parse() {
                Ok(number) => Ok(Self::Number(number)),
                Err(_) => refused(
                    format!("`timeline: {number}` is neither `current` nor a number"),
                    "`latest` is refused: it would follow whatever was archived last, a drill included",
                ),
            },
        }
    }
}

fn read_wal(store: Store, label: &str, follow: Follow, data_dir: &Path) -> Result<Wal, StepError> {
    let Described { store, marker, .. } = described(store, label)?;
    let details: BaseDetails = marker.details()?;
    let odd = |what: &str| {
        StepError::permanent(codes::LB1269, format!("the marker of backup `{label}` has an odd {what}"))
            .help("restore from another backup")
    };
    let system_id: SystemId = details.system_id.parse().map_err(|_| odd("system identifier"))?;
    let start: Lsn = details.start_lsn.parse().map_err(|_| odd("start position"))?;
    let size = SegmentSize::new(details.wal_segment_size)?;
    let archive = Archive::list(&store, system_id)?;
    let history = match follow {
        // Even without its history file, which only what was before the backup needs.
        Follow::Current => History::root(details.timeline),
        Follow::Number(timeline) => archive.history(&store, system_id, timeline)?,
        Follow::Newest => {
            let place = timeline::Place { store: &store, system: system_id, archive: &archive, size };
            timeline::newest(place, &timelines_of_backups(&store, &details)?)?
        }
    };
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
    Ok(Wal { store, backup: label.to_owned(), details, system_id, size, archive, history, continuity, local })
}

/// Returns the timelines on which base backups of the cluster were taken.
fn timelines_of_backups(store: &Store, of: &BaseDetails) -> Result<Vec<u32>, StepError> {
    // A store of another tool has none of ours.
    let found = catalogue(store, BackupKind::PostgresBase)?;
    let details = found.complete.iter().filter_map(|marker| marker.details::<BaseDetails>().ok());
    let same = details.filter(|details| details.system_id == of.system_id);
    Ok(same.map(|details| details.timeline).chain([of.timeline]).collect())
}

fn local_segments(data_dir: &Path) -> BTreeSet<String> {
    let Ok(entries) = std::fs::read_dir(data_dir.join("pg_wal")) else { return BTreeSet::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Refuses what the server could only refuse after a long replay.
fn check_target(target: &RecoveryTarget, wal: &Wal) -> Result<(), StepError> {
    let too_early = |end: &dyn std::fmt::Display| {
        StepError::permanent(
            codes::LB1269,
            format!("the target, {target}, is not after the end of backup `{}` ({end})", wal.backup),
        )
        .help("restore an older backup: `postgres.select_backup` with this target finds the one that fits")
    };
    match target {
        RecoveryTarget::Time(time) if *time <= wal.details.stop_time => {
            Err(too_early(&wal.details.stop_time))
        }
        RecoveryTarget::Lsn { at, .. } => {
            let stop: Lsn = wal.details.stop_lsn.parse().unwrap_or_default();
            if *at < stop {
                return Err(too_early(&stop));
            }
            check_reach(*at, wal)
        }
        _ => Ok(()),
    }
}

/// The segment of the target must be there, and all before it.
fn check_reach(at: Lsn, wal: &Wal) -> Result<(), StepError> {
    let number = Segment::at(0, at, wal.size).number;
    let needed = Segment { timeline: wal.history.timeline_of(number, wal.size), number };
    if wal.continuity.contains(needed) || wal.local.contains(&needed.name(wal.size)) {
        return Ok(());
    }
    Err(timeline::beyond(at, (&needed.name(wal.size), wal.first_gap()), &wal.continuity))
}
