use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{
    Effect, KindSpec, ParamProblem, Preview, Probe, StepContext, StepError, StepKind,
};
use lifeboat_engine::value::{Field, Type};
use serde_json::{Map, Value, json};

use super::super::connect::Login;
use super::super::isolation::{Goal, Isolation};
use super::super::pidfile::PidFile;
use super::super::recovery_target::{RecoveryTarget, TargetParams, Targets};
use super::super::server::{self, QUICK, ServerLog};
use super::super::wal::Lsn;
use super::super::{codes, local, timeline, unsynced};
use super::durable;
use super::pass::{self, Course, Outcome, Paused, replay_state};
use super::source::{Params, Source, check_timeline};
use super::{point, proof, surviving};

/// Replays WAL over a restored base backup.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Recover;

const DOC: &str = "\
Starts a server on the directory that `postgres.restore_base` has filled, isolated: it archives nothing, connects to \
nothing, loads no libraries and can be reached over its private socket and, if the resource has a loopback `host`, \
there. It replays WAL from the store up to its target, for a time to **just before** it, and waits there, readable and \
not writable, for `postgres.verify` and `postgres.promote`.

It replays without `fsync`, because a machine that goes down in the meantime loses nothing but time: the backup is \
still there. Once it waits, everything is made durable at once and `fsync` is on; only then is the step done. Until \
then the file `lifeboat-unsynced` in the directory says so, and a line in its `postgresql.auto.conf` keeps a service \
manager's server from starting on it. What was not synced when the machine went down is refused from then on.

WAL comes through a helper within Lifeboat that answers \"absent\" only when that is proven. A missing segment before \
the target is an error that names it. The step succeeds only if the server's log shows the stop, the last commit lies \
before the target and no answer of the helper was wrong.

A time after the last commit cannot be \"reached\". If the archive has no gap, the recovery then goes to the end of \
the WAL, says so in a warning and waits there. Without a target, or with `target: latest`, it does so from the start. \
A position, a transaction or a restore point that does not come is an error. At most one target is given; each has its \
own proof in the server's log.

The archive ends with the last segment that was filled; commits since then stand in `pg_wal` of the lost server alone. If \
`postgres.restore_base` has moved its directory aside in this run, the segments that the archive lacks are replayed from \
there, provided that they go on with the same log; a warning says so. On another machine, bring the directory along and name \
it: `surviving_wal: /var/lib/postgresql/16/lost`. Nothing in it is changed, and nothing is archived.

The server is always told which timeline to follow: the newest, unless another goes on beside it and no base backup was \
taken on the newest; then the step fails before anything starts and asks for `timeline`.";

/// Describes the recovery point as steps that follow can read it.
fn recovery_point() -> Type {
    Type::Object(vec![
        Field::required("resource", Type::String, "The cluster."),
        Field::required("time", Type::Timestamp, "When it was committed."),
        Field::optional("position", Type::String, "Where it stands in the log: an LSN."),
        Field::required("method", Type::String, "How the time was found, such as `heartbeat row`."),
        Field::required(
            "confidence",
            Type::choice(&["measured", "bound", "stated"]),
            "`measured` in the restored data, an upper `bound` of the loss, or `stated` by the backup.",
        ),
    ])
}

#[async_trait]
impl StepKind for Recover {
    fn spec(&self) -> KindSpec {
        let mut spec = KindSpec::new(
            "postgres.recover",
            "Replays WAL over a restored base backup up to a moment and waits there.",
            Effect::Guarded,
        )
        .doc(DOC)
        .param(Field::required("store", Type::reads(ResourceKind::Store), "Where the WAL is."))
        .param(Field::required("cluster", Type::writes(ResourceKind::Postgres), "The restored cluster."))
        .output("reached", Type::Timestamp, "The newest change that is in the data.")
        .output(
            "recovery_point",
            recovery_point(),
            "The newest change that is in the data, and how that is known.",
        )
        .output("lsn", Type::String, "How far WAL was replayed.")
        .output("timeline", Type::Integer, "The timeline that was replayed last.")
        .output(
            "end_of_wal",
            Type::Boolean,
            "True if all WAL was replayed, because no commit follows the target.",
        )
        .output(
            "wal_bytes",
            Type::Integer,
            "How much of the log was replayed, from the start of the backup on.",
        )
        .output("seconds", Type::Number, "How long it took.")
        .undoes("the isolated server is stopped")
        .restores();
        spec.params.extend(TargetParams::fields(Targets::All));
        spec.params.push(Field::optional(
            "timeline",
            Type::Any,
            "`current` for that of the backup, or a number; as `postgres.select_backup` chooses it if absent.",
        ));
        spec.params.push(Field::defaulted(
            "surviving_wal",
            Type::String,
            surviving::Place::DEFAULT,
            "Where WAL is that the lost server had not archived: `moved_aside` by this run, a directory, or `none`.",
        ));
        spec.outputs.extend([
            Field::optional("target", Type::Timestamp, "The moment that was asked for."),
            Field::optional("last_commit", Type::Timestamp, "The last commit that was replayed."),
            Field::optional("stopped_at", Type::String, "What the server's log says about the stop."),
        ]);
        spec
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        let mut problems = TargetParams::check(with);
        problems.extend(check_timeline(with));
        problems.extend(surviving::check(with));
        problems
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let (_, data_dir) = local::data_dir(ctx, &params.cluster)?;
        let goal = params.target()?;
        let action = format!("start an isolated server on {} and replay WAL to {goal}", data_dir.display());
        Ok(Preview { actions: vec![action], destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let begun = Instant::now();
        let source = Source::open(ctx).await?;
        let paused = match adopt(ctx, &source).await? {
            Some(paused) => paused,
            None => {
                stop_own_leftover(ctx, &source).await?;
                recover(ctx, &source).await?
            }
        };
        durable::make(ctx, &source, &paused).await?;
        finish(ctx, &source, paused, begun.elapsed()).await
    }

    async fn probe(&self, ctx: &StepContext) -> Result<Probe, StepError> {
        let source = Source::open(ctx).await?;
        match adopt(ctx, &source).await? {
            Some(paused) if !unsynced::is_unsynced(&source.data_dir) => {
                finish(ctx, &source, paused, Duration::ZERO).await.map(Probe::Done)
            }
            _ => Ok(Probe::NotDone),
        }
    }

    /// Stops the server of this run and removes its work directory. Any other server is not touched.
    async fn undo(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let (_, data_dir) = local::data_dir(ctx, &params.cluster)?;
        let ours = |isolation: &Isolation| isolation.run == ctx.info.run.to_string();
        if let Some((_, server)) = PidFile::live(data_dir) {
            if !Isolation::serving(data_dir).as_ref().is_some_and(ours) {
                return Ok(Done::default());
            }
            server::stop(&server, Duration::from_mins(1)).await?;
            ctx.removed(&format!("server:{}", params.cluster), "the server was stopped").await?;
        }
        if let Some(isolation) = Isolation::read(data_dir).filter(ours) {
            let dir = isolation.dir();
            std::fs::remove_dir_all(&dir).map_err(|error| {
                StepError::transient(codes::LB1259, format!("{} cannot be removed", dir.display()))
                    .help("remove it by hand; nothing needs it any more")
                    .caused_by(&error)
            })?;
            ctx.removed(&format!("work:{}", params.cluster), "the directory was removed").await?;
        }
        Ok(Done::default())
    }
}

/// Goes for the target, and if all WAL is replayed before it comes, to the last record.
async fn recover(ctx: &StepContext, source: &Source<'_>) -> Result<Paused, StepError> {
    let target = &source.target;
    let goal = match target {
        RecoveryTarget::Latest => Goal::Farthest,
        target => Goal::Target(target.clone()),
    };
    let course = Course { goal, ends_within: None };
    let (last, log, within) = match pass::run(ctx, source, course).await? {
        Outcome::Paused(paused) => return Ok(*paused),
        Outcome::WalEnded { last, log, within } => (last, log, within),
    };
    let last = last.ok_or_else(|| log.died())?;
    if !matches!(target, RecoveryTarget::Latest | RecoveryTarget::Time(_)) {
        return Err(unreached(target, last));
    }
    let course = Course { goal: Goal::Through(last), ends_within: within };
    match pass::run(ctx, source, course).await? {
        Outcome::Paused(paused) => Ok(*paused),
        Outcome::WalEnded { log, .. } => Err(log.died()),
    }
}

/// Finds a server that an earlier attempt of this step left waiting at the same target.
async fn adopt(ctx: &StepContext, source: &Source<'_>) -> Result<Option<Paused>, StepError> {
    let Some(isolation) = own_server(ctx, source) else { return Ok(None) };
    if isolation.target != source.target || isolation.timeline != source.wal.timeline_setting() {
        return Ok(None);
    }
    let login = Login::isolated(ctx, source.postgres, &isolation)?;
    let Ok(client) = login.connect().await else { return Ok(None) };
    server::check_identity(&client, &source.data_dir).await?;
    if !replay_state(&client).await.is_ok_and(|replay| replay.paused && replay.in_recovery) {
        return Ok(None);
    }
    let log = ServerLog { path: isolation.log_file.clone(), start: isolation.log_start };
    let disk = Arc::new(unsynced::disk_of(&source.data_dir)?);
    Ok(Some(Paused { client, isolation, log, requests: None, disk }))
}

fn own_server(ctx: &StepContext, source: &Source<'_>) -> Option<Isolation> {
    let isolation = Isolation::serving(&source.data_dir)?;
    (isolation.run == ctx.info.run.to_string()).then_some(isolation)
}

/// A server of this run that is on its way has lost its helper; it is stopped and started again, which continues the
/// recovery. Any other server is not touched.
async fn stop_own_leftover(ctx: &StepContext, source: &Source<'_>) -> Result<(), StepError> {
    let Some((file, server)) = server::running(ctx, &source.data_dir).await? else { return Ok(()) };
    if own_server(ctx, source).is_none() {
        return Err(StepError::permanent(
            codes::LB1250,
            format!(
                "a Postgres server (process {}) runs on {} that this run has not started",
                file.pid,
                source.data_dir.display()
            ),
        )
        .help("stop it first if it is not needed; nothing was touched"));
    }
    server::stop(&server, Duration::from_secs(10)).await?;
    Ok(())
}

async fn finish(
    ctx: &StepContext,
    source: &Source<'_>,
    paused: Paused,
    took: Duration,
) -> Result<Done, StepError> {
    let replay = replay_state(&paused.client).await?;
    let mut checks = proof::checks(&source.wal, &paused, &replay);
    checks.push(durable::check(source, &paused).await?);
    let checks = proof::verdict(checks)?;
    Isolation { waits_at: replay.lsn, ..paused.isolation.clone() }.save(source.owner.as_ref())?;
    let login = Login::isolated(ctx, source.postgres, &paused.isolation)?;
    admit_roles(&paused, source).await?;
    let found = point::find(ctx, source, &login, &replay).await?;
    let stopped_at = proof::stop_line(&paused);
    let end_of_wal = !matches!(paused.isolation.goal, Goal::Target(_));
    let timeline =
        replay.lsn.map_or(source.wal.details.timeline, |lsn| source.wal.history.timeline_before(lsn));
    let mut done = local::done(json!({
        "reached": found.point.time, "recovery_point": found.point, "timeline": timeline,
        "lsn": replay.lsn.map(|lsn| lsn.to_string()), "end_of_wal": end_of_wal, "seconds": took.as_secs_f64(),
        "wal_bytes": replay.lsn.map_or(0, |lsn| lsn.0.saturating_sub(source.wal.start().0)),
        "target": source.target.time().map(|time| time.to_string()), "last_commit": replay.last_commit,
        "stopped_at": stopped_at,
    }));
    done.checks = checks;
    done.warnings = found.warnings;
    if let (true, Some(target)) = (end_of_wal, source.target.time()) {
        done.warnings.push(format!(
            "no commit in the archive is at or after the target {target}: all WAL was replayed, to {}",
            replay.last_commit.as_deref().unwrap_or("the end of the backup")
        ));
    }
    if end_of_wal {
        let wal = &source.wal;
        let place = timeline::Place {
            store: &wal.store,
            system: wal.system_id,
            archive: &wal.archive,
            size: wal.size,
        };
        done.warnings.extend(timeline::warning(place, &wal.history));
    }
    let wanted = source.wal.history.timeline;
    if end_of_wal && i64::from(wanted) != i64::from(timeline) {
        done.warnings.push(format!(
            "the archive has no WAL of timeline {wanted}: the recovery ended on timeline {timeline}, before {wanted} began"
        ));
    }
    let survived = source.surviving.replayed(&source.wal, replay.lsn);
    if survived.is_none() {
        done.warnings.extend(paused.isolation.ends_within.as_deref().map(ends_within));
    }
    done.warnings.extend(survived);
    done.warnings.extend(source.surviving.warning.clone());
    done.recovery_points.push(found.point);
    add_facts(&mut done, source, &paused);
    Ok(done)
}

fn ends_within(segment: &str) -> String {
    format!(
        "the log ends in the middle of {segment}, the last WAL segment of the archive: right if the source went down \
         there; if it was stopped or went on, the segment is damaged and what follows is missing"
    )
}

fn add_facts(done: &mut Done, source: &Source<'_>, paused: &Paused) {
    let mut fact = |name: &str, value: String| drop(done.facts.insert(name.to_owned(), value));
    fact("backup", source.wal.backup.clone());
    fact("target", source.target.to_string());
    fact("server log", paused.log.path.display().to_string());
    if let Some(line) = proof::stop_line(paused) {
        fact("stop", line);
    }
    if let Some(line) = paused.log.last_with("last completed transaction was at log time") {
        fact("last transaction", line);
    }
    if let Some(requests) = &paused.requests {
        let bytes: u64 = requests.iter().map(|request| request.bytes).sum();
        fact("WAL", format!("{} requests, {bytes} bytes", requests.len()));
    }
}

/// All WAL was replayed, and what was asked for did not come.
fn unreached(target: &RecoveryTarget, last: Lsn) -> StepError {
    let help = match target {
        RecoveryTarget::Transaction { .. } => {
            "look for its commit with pg_waldump; it may be on another timeline, or before the end of the backup; or give \
             `target_time`"
        }
        RecoveryTarget::RestorePoint(_) => {
            "check the name; it may be on another timeline, or before the end of the backup; or give `target_time`"
        }
        _ => "give `target: latest` for all that there is, or put the WAL that is missing into the archive",
    };
    StepError::permanent(
        codes::LB1834,
        format!("all WAL was replayed, to the record at {last}, and the target was not in it: {target}"),
    )
    .help(help)
}

/// The socket's directory keeps everybody else out, so that whoever may enter it may be any role: application checks
/// need no passwords of the time of the backup.
async fn admit_roles(paused: &Paused, source: &Source<'_>) -> Result<(), StepError> {
    let rows = paused.client.query("select rolname from pg_roles where rolcanlogin", &[], QUICK).await?;
    let roles: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    paused.isolation.admit(&roles, source.owner.as_ref())?;
    paused.client.query("select pg_reload_conf()", &[], QUICK).await?;
    Ok(())
}
