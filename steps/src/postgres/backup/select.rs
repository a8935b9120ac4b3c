use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::runs::Past;
use lifeboat_engine::step::{
    Effect, Finding, FindingState, KindSpec, ParamProblem, PreflightFacts, Preview, StepContext, StepError,
    StepKind,
};
use lifeboat_engine::value::{Field, Type, parse_timestamp};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::choice::{Candidate, Choice, Gap, Wanted, choose};
use super::described::wal_of;
use super::estimate::{Measured, Work};
use super::unmarked;
use crate::postgres::recovery_target::{RecoveryTarget, TargetParams, Targets};
use crate::postgres::wal::{Archive, History, SegmentSize, SystemId, archived_at};
use crate::postgres::{codes, preflight, timeline};
use crate::probe::{age, bytes};
use crate::store::{BackupKind, Catalogue, Rejected, Rejection, Store, blocking, catalogue};

/// `postgres.select_backup`
#[derive(Clone, Copy, Debug)]
pub struct SelectBackup;

#[derive(Clone, Debug, Deserialize)]
struct Params {
    store: String,
    #[serde(flatten)]
    target: TargetParams,
    system_id: Option<SystemId>,
    timeline: Option<u32>,
    gap: Gap,
    unmarked: Option<String>,
}

const DOC: &str = "\
Chooses the newest complete backup that was *finished* before the target and that is part of the target timeline's \
history, and walks the archive from its first WAL segment to the end: every name must be there. A missing segment is an \
error that names it, unless a later backup proves that the target lies before the gap; Postgres would otherwise end \
recovery at the gap without an error.

Without `target_time` it takes the newest backup, for recovery to the end of the archive. The target timeline is the \
newest one in the archive unless `timeline` says another. Nothing is written.

Each target has one backup that fits best: for `target_lsn` the newest that ended before it, with all WAL up to it; for \
`target: immediate` the newest, of which only its own WAL is needed. For a transaction or a restore point, whose place is \
not known before the log is replayed, give a `target_time` that is certain to be before it.

If the log has parted, so that several timelines go on, the newest is taken only if a base backup was taken on it; \
otherwise the step fails and asks for `timeline`.

What it has to fetch and to write is said in bytes, and how long that takes is estimated: the base, then the log to its end, \
each at the median rate of the last `postgres.restore_base`, `postgres.recover` and `postgres.clone` of this project that \
had at least a tenth as much to do; where there is none at 50 and 25 MB a second, which `estimated_by` calls assumed. \
`lifeboat plan` tells how long whole runs took.

`unmarked: postgres` chooses among directories `postgres/<name>/` as `pg_basebackup -F tar` writes them, with WAL in a flat \
directory `wal/`, and warns of what cannot be proven. The other steps take the label that it gives.

`gap: accept` goes on in spite of missing WAL: recovery then ends at `end_segment`, and a later target is not reached.";

#[async_trait]
impl StepKind for SelectBackup {
    fn spec(&self) -> KindSpec {
        let gap = Type::choice(&["refuse", "accept"]);
        let mut spec = KindSpec::new("postgres.select_backup", "Chooses the base backup for a recovery.", Effect::Read)
            .doc(DOC)
            .param(Field::required("store", Type::reads(ResourceKind::Store), "Where the backups are."))
            .param(Field::optional("system_id", Type::String, "The cluster, if the store holds several."))
            .param(Field::optional(
                "timeline",
                Type::Integer,
                "The target timeline; if absent the newest one, provided that no other goes on beside it.",
            ))
            .param(Field::defaulted("gap", gap, "refuse", "What to do if WAL is missing."))
            .param(Field::optional(
                "unmarked",
                Type::String,
                "Choose among backups of another tool: the directory of the store that holds one directory for each.",
            ))
            .output("backup", Type::String, "The label of the backup.")
            .output("stop_time", Type::Timestamp, "When it was finished.")
            .output("start_segment", Type::String, "The first WAL segment that recovery needs.")
            .output("end_segment", Type::String, "The last WAL segment up to which none is missing.")
            .output("system_id", Type::String, "The system identifier of the cluster.")
            .output("timeline", Type::Integer, "The timeline to recover along.")
            .output("bytes", Type::Integer, "Bytes of the backup in the store.")
            .output("wal_segments", Type::Integer, "How many WAL segments follow without a gap.")
            .output(
                "fetch_bytes",
                Type::Integer,
                "Bytes that a recovery to the end reads from the store: the backup, and WAL as it is stored.",
            )
            .output(
                "restore_bytes",
                Type::Integer,
                "Bytes that a recovery to the end writes and replays, uncompressed.",
            )
            .output("estimated_seconds", Type::Integer, "How long a recovery to the end is expected to take.")
            .output("estimated_by", Type::String, "The rates of that estimate, and whether they were measured.");
        spec.params.extend(TargetParams::fields(Targets::Located));
        spec
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        TargetParams::check(with)
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let target = params.target.resolve()?;
        let actions =
            vec![format!("choose the newest usable base backup in `{}` for {target}", params.store)];
        Ok(Preview { actions, destroys: vec![] })
    }

    async fn preflight(&self, ctx: &StepContext, facts: &PreflightFacts) -> Result<Vec<Finding>, StepError> {
        let params: Params = ctx.params()?;
        let store = match Store::of(ctx, &params.store).await {
            Ok(store) => store,
            Err(error) => return Ok(vec![Finding::failed(&params.store, "newest usable backup", &error)]),
        };
        let (facts, past) = (facts.clone(), ctx.past().clone());
        blocking(move || Ok(look(&store, &params, (&facts, &past)))).await
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let target = params.target.resolve()?;
        let store = Store::of(ctx, &params.store).await?;
        let past = ctx.past().clone();
        blocking(move || select(&store, &params, (target, &past))).await
    }
}

/// Chooses as the run would, and says what it found: the backup, the log behind it, how far both reach, and how long they
/// take.
fn look(store: &Store, params: &Params, (facts, past): (&PreflightFacts, &Past)) -> Vec<Finding> {
    const BACKUP: &str = "newest usable backup";
    let name = &params.store;
    let target = match params.target.resolve() {
        Ok(target) => target,
        Err(error) => return vec![Finding::failed(name, BACKUP, &error)],
    };
    let moment = target.time();
    let done = match select(store, params, (target, past)) {
        Ok(done) => done,
        Err(error) if error.code == codes::LB1222 => return vec![Finding::failed(name, "log", &error)],
        Err(error) => return vec![Finding::failed(name, BACKUP, &error)],
    };
    let text = |output: &str| done.outputs.get(output).and_then(Value::as_str).unwrap_or_default().to_owned();
    let number = |output: &str| done.outputs.get(output).and_then(Value::as_u64).unwrap_or(0);
    let finished = parse_timestamp(&text("stop_time")).ok();
    let before = if moment.is_some() { "the target" } else { "now" };
    let old = finished.map(|at| age(at, moment.unwrap_or(facts.now))).unwrap_or_default();
    let backup = format!("`{}` ({}), finished {old} before {before}", text("backup"), bytes(number("bytes")));
    let end = text("end_segment");
    let log = format!(
        "{} segments from {} up to {end}, none missing",
        number("wal_segments"),
        text("start_segment")
    );
    let archived =
        text("system_id").parse().ok().and_then(|system| archived_at(store, system, &end).ok().flatten());
    let whole = done.checks.iter().all(|check| check.passed);
    let log = match whole {
        true => Finding::ok(name, "log", log),
        false => Finding::ok(name, "log", done.warnings.join("; ")).state(FindingState::Warning),
    };
    vec![
        Finding::ok(name, BACKUP, backup),
        log,
        preflight::reach(name, (&end, archived.or(finished)), moment, facts),
        duration(
            name,
            [number("fetch_bytes"), number("restore_bytes"), number("estimated_seconds")],
            (&text("estimated_by"), facts),
        ),
    ]
}

/// Says how long a recovery to the end of the log takes, against the RTO. An estimate fails nothing.
fn duration(
    name: &str,
    [fetched, written, seconds]: [u64; 3],
    (by, facts): (&str, &PreflightFacts),
) -> Finding {
    let estimate = Duration::from_secs(seconds.max(1));
    let detail = format!(
        "about {} to the end of the log: {} to fetch, {} to write and replay; {by}",
        humantime::format_duration(estimate),
        bytes(fetched),
        bytes(written)
    );
    match facts.rto.filter(|rto| estimate > *rto) {
        None => Finding::ok(name, "estimated time", detail),
        Some(rto) => {
            let detail = format!("{detail}: more than the RTO of {}", humantime::format_duration(rto));
            Finding::ok(name, "estimated time", detail)
                .state(FindingState::Warning)
                .help("take base backups more often, so that less log is replayed, or restore over an earlier restore (`existing: delta`)")
        }
    }
}

fn select(
    store: &Store,
    params: &Params,
    (target, past): (RecoveryTarget, &Past),
) -> Result<Done, StepError> {
    let (found, unproven) = match &params.unmarked {
        None => (catalogue(store, BackupKind::PostgresBase)?, BTreeMap::new()),
        Some(prefix) => unmarked_backups(store, prefix)?,
    };
    let (candidates, mut warnings) = candidates(&found);
    if candidates.is_empty() {
        return Err(nothing_there(store, &found));
    }
    let system = the_system(&candidates, params.system_id)?;
    let store = &wal_of(store.clone(), &candidates[0].marker.label, &system.to_string())?;
    let candidates: Vec<_> = candidates.into_iter().filter(|backup| backup.system == system).collect();
    let archive = Archive::list(store, system)?;
    let size = candidates.first().map_or(SegmentSize::DEFAULT, |candidate| candidate.size);
    let place = timeline::Place { store, system, archive: &archive, size };
    let history = match target {
        // Each backup has its end on its own timeline.
        RecoveryTarget::Immediate => own_history(&candidates, params.timeline)?,
        _ => history(place, &candidates, params.timeline)?,
    };
    warnings.extend(timeline::warning(place, &history));
    let wanted = Wanted { target, history, gap: params.gap };
    let choice = choose(store, &candidates, (&archive, &wanted))?;
    warnings.extend(choice.warnings.iter().cloned());
    warnings.extend(unproven.get(&choice.candidate.marker.label).into_iter().flatten().cloned());
    Ok(done(&choice, (&wanted, &Measured::by(past)), (&found, warnings)))
}

/// Backups of another tool below a prefix, and what cannot be proven of each.
fn unmarked_backups(
    store: &Store,
    prefix: &str,
) -> Result<(Catalogue, BTreeMap<String, Vec<String>>), StepError> {
    let (mut found, mut unproven) = (Catalogue::default(), BTreeMap::new());
    for label in unmarked::labels(store, prefix)? {
        match unmarked::inspect(store, &label) {
            Ok(backup) => {
                unproven.insert(label, backup.warnings);
                found.complete.push(backup.marker);
            }
            Err(error) if error.kind == FailureKind::Permanent => {
                let reason = error.message;
                found.rejected.push(Rejected { label, why: Rejection::NoMarker, reason });
            }
            Err(error) => return Err(error),
        }
    }
    Ok((found, unproven))
}

/// Backups whose details can be read, newest first by the moment they became consistent.
fn candidates(found: &Catalogue) -> (Vec<Candidate>, Vec<String>) {
    let (mut candidates, mut warnings) = (Vec::new(), Vec::new());
    for marker in &found.complete {
        match Candidate::of(marker) {
            Ok(candidate) => candidates.push(candidate),
            Err(error) => warnings.push(error.message),
        }
    }
    let damaged = found.rejected.iter().filter(|rejected| rejected.why != Rejection::Unfinished);
    warnings.extend(damaged.map(|rejected| format!("{} is not used: {}", rejected.label, rejected.reason)));
    candidates.sort_by_key(|candidate| std::cmp::Reverse(candidate.details.base.stop_time));
    (candidates, warnings)
}

fn nothing_there(store: &Store, found: &Catalogue) -> StepError {
    let rejected: Vec<_> =
        found.rejected.iter().map(|rejected| format!("{}: {}", rejected.label, rejected.reason)).collect();
    if rejected.is_empty() && found.complete.is_empty() {
        return StepError::permanent(codes::LB1220, format!("there is no base backup in {store}"))
            .help(
                "check `url` of the store; a backup is made with the step `postgres.base_backup`; one that another tool \
                 has made is found with `unmarked: DIRECTORY`",
            );
    }
    let unfinished = found.complete.is_empty()
        && found.rejected.iter().all(|rejected| rejected.why == Rejection::Unfinished);
    let code = if unfinished { codes::LB1220 } else { codes::LB1225 };
    StepError::permanent(code, format!("no base backup in {store} can be used: {}", rejected.join("; ")))
        .help("bring a whole backup, its marker included, back from a copy of the store")
}

fn the_system(candidates: &[Candidate], wanted: Option<SystemId>) -> Result<SystemId, StepError> {
    let systems: BTreeSet<_> = candidates.iter().map(|candidate| candidate.system).collect();
    let listed: Vec<_> = systems.iter().map(ToString::to_string).collect();
    match (wanted, systems.first()) {
        (Some(wanted), _) if systems.contains(&wanted) => Ok(wanted),
        (Some(wanted), _) => Err(StepError::permanent(
            codes::LB1220,
            format!("there is no base backup of cluster {wanted}, only of {}", listed.join(", ")),
        )
        .help("correct `system_id`, or name the store of that cluster")),
        (None, Some(only)) if systems.len() == 1 => Ok(*only),
        (None, _) => Err(StepError::permanent(
            codes::LB1223,
            format!("the store holds backups of several clusters: {}", listed.join(", ")),
        )
        .help("give `system_id`; on a server: select system_identifier from pg_control_system()")),
    }
}

/// Returns the history of the target timeline: the one asked for, or the newest if that is certain to be right.
fn history(
    place: timeline::Place<'_>,
    candidates: &[Candidate],
    wanted: Option<u32>,
) -> Result<History, StepError> {
    let of_backups: Vec<_> = candidates.iter().map(|candidate| candidate.details.base.timeline).collect();
    let Some(wanted) = wanted else { return timeline::newest(place, &of_backups) };
    let mut known = place.archive.timelines();
    known.extend(of_backups);
    if known.contains(&wanted) {
        return place.archive.history(place.store, place.system, wanted);
    }
    Err(StepError::permanent(
        codes::LB1224,
        format!("cluster {} has no timeline {wanted} in the archive, only {known:?}", place.system),
    )
    .help("leave `timeline` out for the newest one"))
}

/// Returns the timeline of the newest backup, or of the newest on the one asked for.
fn own_history(candidates: &[Candidate], wanted: Option<u32>) -> Result<History, StepError> {
    let mut timelines = candidates.iter().map(|candidate| candidate.details.base.timeline);
    let found = timelines.find(|timeline| wanted.is_none_or(|wanted| wanted == *timeline));
    let refused = || {
        StepError::permanent(
            codes::LB1224,
            format!("no base backup was taken on timeline {}", wanted.unwrap_or(0)),
        )
        .help("leave `timeline` out for the newest backup")
    };
    found.map(History::root).ok_or_else(refused)
}

fn done(
    choice: &Choice<'_>,
    (wanted, measured): (&Wanted, &Measured),
    (found, warnings): (&Catalogue, Vec<String>),
) -> Done {
    let details = &choice.candidate.details;
    let walk = &choice.walk;
    let end = walk.end().map_or_else(|| details.wal_stop_segment.clone(), |end| end.name(walk.size));
    let work = Work { base: details.data_bytes, log: walk.count() * walk.size.bytes() };
    let estimate = measured.estimate(work);
    let outputs = json!({
        "backup": choice.candidate.marker.label,
        "stop_time": details.base.stop_time.to_string(),
        "start_segment": details.wal_start_segment,
        "end_segment": end,
        "system_id": details.base.system_id,
        "timeline": wanted.history.timeline,
        "bytes": choice.candidate.marker.bytes(),
        "wal_segments": walk.count(),
        "fetch_bytes": choice.candidate.marker.bytes() + walk.stored_bytes,
        "restore_bytes": work.base + work.log,
        "estimated_seconds": estimate.seconds,
        "estimated_by": estimate.method,
    });
    let Value::Object(outputs) = outputs else { unreachable!("written as an object") };
    let mut facts = BTreeMap::from([
        ("complete backups".to_owned(), found.complete.len().to_string()),
        ("backup made on timeline".to_owned(), details.base.timeline.to_string()),
        ("WAL bytes as stored".to_owned(), walk.stored_bytes.to_string()),
        ("estimated time".to_owned(), format!("{} s: {}", estimate.seconds, estimate.method)),
    ]);
    if let Some(target) = wanted.target.time() {
        let age = target.duration_since(details.base.stop_time);
        facts.insert("replay spans at most".to_owned(), format!("{} s", age.as_secs()));
    }
    Done { outputs, checks: choice.checks(wanted), facts, warnings, ..Done::default() }
}
