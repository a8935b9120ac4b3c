//! The files of a server that does not run: compared with the manifest of their backup, page checksums read.

use std::path::{Path, PathBuf};

use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::resource::Postgres;
use lifeboat_engine::step::{StepContext, StepError};
use serde_json::json;

use super::super::backup::{Described, described};
use super::super::backup_manifest::MANIFEST;
use super::super::controldata::{ClusterState, ControlData};
use super::super::pidfile::PidFile;
use super::super::tools::Tools;
use super::super::{account, codes, local};
use super::kind::{Params, verdict};
use crate::process::Command;
use crate::store::{Store, blocking};

/// Until recovery has begun, this file is in a restored directory.
const BACKUP_LABEL: &str = "backup_label";

/// Verifies the files of a data directory.
pub(super) async fn verify(ctx: &StepContext, params: &Params) -> Result<Done, StepError> {
    let (postgres, data_dir) = local::data_dir(ctx, &params.cluster)?;
    if let Some((file, _)) = PidFile::live(data_dir) {
        let message = format!("a server (process {}) runs on {}", file.pid, data_dir.display());
        return Err(StepError::permanent(codes::LB1250, message)
            .help("files are verified while no server runs: `postgres.stop` first, or leave `files` out"));
    }
    let tools = tools(postgres, data_dir)?;
    let control = ControlData::read(&tools, data_dir)?;
    let place = Place { ctx, postgres, data_dir, tools };
    let (mut checks, mut not_checked) =
        (Vec::new(), vec!["the data itself (`files: true` looks at no rows)"]);
    let fresh = data_dir.join(BACKUP_LABEL).exists();
    match (&params.store, &params.backup, fresh) {
        (Some(store), Some(backup), true) => checks.push(place.manifest(store, backup).await?),
        (_, _, true) => {
            return Err(unfit(
                "it was restored and not recovered, so that only its backup's manifest can prove it",
            )
            .help("give the step `store` and `backup`, or recover it first"));
        }
        (.., false) => not_checked.push("files against the backup's manifest (recovery has changed them)"),
    }
    let clean = matches!(control.state, ClusterState::ShutDown | ClusterState::ShutDownInRecovery);
    match (fresh, clean, control.data_checksums) {
        (true, ..) => not_checked.push("page checksums (before recovery the manifest proves more)"),
        (false, false, _) => {
            return Err(unfit("its server was not shut down cleanly, so that its pages may be torn")
                .help("start and stop the server once, and verify again"));
        }
        (false, true, false) => {
            not_checked.push("page checksums (the cluster has none: `pg_checksums --enable`)")
        }
        (false, true, true) => checks.push(place.checksums().await?),
    }
    let in_recovery = control.state == ClusterState::ShutDownInRecovery || fresh;
    let mut done = local::done(json!({"databases": [], "checks": checks.len(), "in_recovery": in_recovery}));
    if checks.is_empty() {
        done.warnings.push(format!("nothing could be verified: {}", not_checked[1..].join("; ")));
    }
    done.checks = verdict(checks)?;
    done.facts.insert("not checked".into(), not_checked.join("; "));
    Ok(done)
}

/// The programs of the version that the files are of.
fn tools(postgres: &Postgres, data_dir: &Path) -> Result<Tools, StepError> {
    let version = std::fs::read_to_string(data_dir.join("PG_VERSION")).ok();
    match version.and_then(|version| version.trim().parse().ok()) {
        Some(major) => Tools::find_major(postgres, major),
        None => Err(unfit(&format!("{} is no data directory: it has no PG_VERSION", data_dir.display()))
            .help("check `data_dir` of the resource; restore a backup into it first")),
    }
}

fn unfit(why: &str) -> StepError {
    StepError::permanent(codes::LB1851, format!("the files cannot be verified: {why}"))
}

struct Place<'a> {
    ctx: &'a StepContext,
    postgres: &'a Postgres,
    data_dir: &'a Path,
    tools: Tools,
}

impl Place<'_> {
    /// `pg_verifybackup` on the unpacked files: before version 18 it reads nothing else. What it would look at of the WAL is
    /// proven by recovery.
    async fn manifest(&self, store: &str, backup: &str) -> Result<Check, StepError> {
        let manifest = self.fetch(store, backup).await?;
        let output = Command::new(self.tools.program("pg_verifybackup"))
            .args(["--no-parse-wal", "--quiet", "--manifest-path"])
            .arg(&manifest)
            .arg(self.data_dir)
            .env("LC_ALL", "C")
            .dir("/")
            .run(self.ctx)
            .await?;
        Ok(Check {
            name: "files are those of the backup's manifest (pg_verifybackup)".into(),
            expected: "every file with its size and checksum, and no other".into(),
            actual: said(output.exit_code, &output.stderr.last_lines(10)),
            passed: output.exit_code == 0,
        })
    }

    async fn fetch(&self, store: &str, backup: &str) -> Result<PathBuf, StepError> {
        let path = self.ctx.info.work_dir.path()?.join(MANIFEST);
        let (store, label, to) = (Store::of(self.ctx, store).await?, backup.to_owned(), path.clone());
        blocking(move || {
            let Described { store, marker, .. } = described(store, &label)?;
            if !marker.objects.iter().any(|object| object.name == MANIFEST) {
                return Err(unfit(&format!("backup `{label}` has no {MANIFEST}"))
                    .help("recover and promote it first, then verify its databases without `files`"));
            }
            let mut reader = store.read(&marker.key(MANIFEST)?)?;
            let written =
                std::fs::File::create(&to).and_then(|mut file| std::io::copy(&mut reader, &mut file));
            written.map_err(|error| {
                StepError::transient(codes::LB1851, format!("{} cannot be written", to.display()))
                    .help("make room in the state directory (`df -h`)")
                    .caused_by(&error)
            })
        })
        .await?;
        Ok(path)
    }

    /// Reads every page. The program wants a cluster that was shut down.
    async fn checksums(&self) -> Result<Check, StepError> {
        let owner = account::owner(self.postgres)?;
        let output = Command::new(self.tools.program("pg_checksums"))
            .args(["--check", "-D"])
            .arg(self.data_dir)
            .env("LC_ALL", "C")
            .dir("/")
            .os_user(owner.as_ref().map(|owner| owner.name.as_str()))
            .run(self.ctx)
            .await?;
        Ok(Check {
            name: "page checksums hold (pg_checksums)".into(),
            expected: "every page".into(),
            actual: said(output.exit_code, &output.stderr.last_lines(10)),
            passed: output.exit_code == 0,
        })
    }
}

fn said(exit_code: i32, lines: &[String]) -> String {
    match exit_code {
        0 => "all of them".to_owned(),
        code => format!("exit code {code}: {}", lines.join("; ")),
    }
}
