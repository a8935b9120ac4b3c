//! `postgres.promote`: opens a recovered server for writing.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::model::outcome::Mode;
use lifeboat_engine::resource::{Postgres, ResourceKind};
use lifeboat_engine::step::{
    Effect, KindSpec, Preview, Probe, Refusal, Setting, StepContext, StepError, StepKind,
};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::connect::Login;
use super::isolation::{Isolation, work_dir};
use super::pidfile::PidFile;
use super::restore_note::RestoreNote;
use super::server::{self, QUICK};
use super::unsynced;
use super::{codes, lifecycle, local};
use opening::{STOPPED, in_recovery, open, opened_elsewhere, own_isolation};
use service::{into_service, parted, prove_archiving, start_in_service, until_in_service};

pub(super) use opening::{revive, settles};

mod opening;
mod service;

/// Opens a recovered server for writing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Promote;

#[derive(Deserialize)]
struct Params {
    cluster: String,
    isolated: bool,
}

impl Params {
    /// Says whether the server stays cut off: in a drill always.
    fn stays_isolated(&self, ctx: &StepContext) -> bool {
        self.isolated || ctx.info.mode == Mode::Drill
    }
}

const DOC: &str = "\
Ends the recovery of a server that `postgres.recover` left waiting: it goes on a timeline of its own and takes writing \
statements, which is proven with one. Then a checkpoint makes the end of recovery durable.

In a drill the server stays isolated, and with `isolated: true` in a recovery too. Otherwise it is started again with its own configuration; if that archives, \
the step waits for the first segment to be archived, or says that this was not proven. If the source's log goes on in \
that archive beside the server's own, a warning asks for a base backup: until there is one, no restore can know which \
timeline to follow.";

#[async_trait]
impl StepKind for Promote {
    fn spec(&self) -> KindSpec {
        KindSpec::new("postgres.promote", "Opens a recovered server for writing.", Effect::Guarded)
            .doc(DOC)
            .undoes("the server is stopped")
            .param(Field::required("cluster", Type::writes(ResourceKind::Postgres), "The recovered cluster."))
            .param(Field::defaulted(
                "isolated",
                Type::Boolean,
                false,
                "Whether it stays cut off in a recovery too.",
            ))
            .output("timeline", Type::Integer, "The timeline that the server writes now.")
            .output("lsn", Type::String, "Where it writes.")
            .output("isolated", Type::Boolean, "True if it runs cut off, as in a drill.")
            .output(
                "archiving",
                Type::choice(&["proven", "not_proven", "off"]),
                "Whether WAL is archived again.",
            )
    }

    fn refuse(&self, with: &Map<String, Value>, setting: &Setting<'_>) -> Option<Refusal> {
        // In a drill the server stays as it is.
        if setting.mode == Mode::Drill {
            return None;
        }
        lifecycle::refusal(with, setting)
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let (_, data_dir) = local::data_dir(ctx, &params.cluster)?;
        Ok(Preview {
            actions: vec![format!("promote the server on {}", data_dir.display())],
            destroys: Vec::new(),
        })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let (postgres, data_dir) = local::data_dir(ctx, &params.cluster)?;
        if !params.stays_isolated(ctx) {
            lifecycle::refuse_managed(&params.cluster, postgres)?;
        }
        let isolation = own_isolation(ctx, data_dir)?;
        unsynced::refuse(data_dir)?;
        if let Some(isolation) = isolation {
            open(ctx, &params.cluster, isolation).await?;
            if !params.stays_isolated(ctx) {
                into_service(ctx, &params.cluster).await?;
            }
        } else if let Some((_, server)) = server::running(ctx, data_dir).await? {
            // An earlier attempt has started it, or a service manager.
            until_in_service(ctx, &params.cluster, &server).await?;
        } else {
            // This step had stopped it to start it again.
            start_in_service(ctx, &params.cluster).await?;
        }
        finish(ctx, postgres, data_dir).await
    }

    async fn probe(&self, ctx: &StepContext) -> Result<Probe, StepError> {
        let params: Params = ctx.params()?;
        let (postgres, data_dir) = local::data_dir(ctx, &params.cluster)?;
        if PidFile::live(data_dir).is_none() {
            return Ok(Probe::NotDone);
        }
        let isolated = Isolation::serving(data_dir).is_some();
        if isolated && !params.stays_isolated(ctx) {
            return Ok(Probe::NotDone);
        }
        match is_open(ctx, postgres, data_dir).await {
            Ok(true) => {}
            Ok(false) => return Ok(Probe::NotDone),
            // It ends, because nobody served it WAL any more: the next attempt starts it again.
            Err(error) if error.code == codes::LB1240 => return Ok(Probe::NotDone),
            Err(error) => return Err(error),
        }
        finish(ctx, postgres, data_dir).await.map(Probe::Done)
    }

    /// Stops the server that this step has put into service. One that is still isolated is left to the step that
    /// started it, and so is any that somebody else has started.
    async fn undo(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let (_, data_dir) = local::data_dir(ctx, &params.cluster)?;
        let isolated = Isolation::serving(data_dir).is_some();
        let Some((_, running)) = PidFile::live(data_dir).filter(|_| !isolated) else {
            return Ok(Done::default());
        };
        if ctx.recorded(STOPPED).is_some() {
            server::stop(&running, Duration::from_mins(1)).await?;
            ctx.removed(&format!("server:{}", params.cluster), "the server was stopped").await?;
        }
        Ok(Done::default())
    }
}

/// Says whether the server was promoted. One that opened anywhere but where it waited was not: the next attempt says so.
async fn is_open(ctx: &StepContext, postgres: &Postgres, data_dir: &Path) -> Result<bool, StepError> {
    let client = Login::of(ctx, postgres)?.connect().await?;
    server::check_identity(&client, data_dir).await?;
    if in_recovery(&client).await? {
        return Ok(false);
    }
    match Isolation::serving(data_dir) {
        Some(isolation) => Ok(opened_elsewhere(&client, &isolation).await?.is_none()),
        None => Ok(true),
    }
}

async fn finish(ctx: &StepContext, postgres: &Postgres, data_dir: &Path) -> Result<Done, StepError> {
    let client = Login::of(ctx, postgres)?.connect().await?;
    server::check_identity(&client, data_dir).await?;
    let isolated = Isolation::serving(data_dir).is_some();
    let sql = "select pg_is_in_recovery(), ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int, \
               pg_current_wal_lsn()::text, current_setting('archive_mode')";
    let row = client.query_one(sql, &[], QUICK).await?;
    let (timeline, lsn, archive_mode): (i32, String, String) = (row.get(1), row.get(2), row.get(3));
    let (archiving, warning) =
        if archive_mode == "off" { ("off", None) } else { prove_archiving(ctx, &client).await? };
    let parted = match Isolation::read(data_dir).filter(|_| archiving != "off") {
        // It works; what the archive holds is for later.
        Some(left) => parted(ctx, &left, timeline.unsigned_abs()).await.unwrap_or_else(|error| {
            Some(format!("whether the archive holds one timeline only could not be seen: {error}"))
        }),
        None => None,
    };
    // From here on the directory is a cluster of its own and no restored backup.
    RestoreNote::remove_all(data_dir);
    if !isolated {
        std::fs::remove_dir_all(work_dir(data_dir)).ok();
    }
    let mut done = local::done(json!({
        "timeline": timeline, "lsn": lsn, "isolated": isolated, "archiving": archiving,
    }));
    done.checks = vec![Check {
        name: "the server takes writing statements".into(),
        expected: "not in recovery".into(),
        actual: format!("not in recovery, timeline {timeline}"),
        passed: true,
    }];
    done.warnings.extend(warning.into_iter().chain(parted));
    if !isolated && archiving == "off" {
        done.warnings.push(
            "the restored server does not archive WAL (archive_mode is off): it cannot be restored to a time"
                .into(),
        );
    }
    Ok(done)
}
