//! What is found of Postgres before a run: logins, backups and their log, room, programs.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_engine::resource::{Postgres, ResourceKind};
use lifeboat_engine::step::{Finding, FindingState, PreflightFacts, ResourceProbe, StepContext, StepError};

use super::backup::BackupDetails;
use super::connect::{Login, PgError};
use super::local;
use super::tools::Tools;
use crate::probe::{age, space, writable};
use crate::store::{BackupKind, Store, blocking, catalogue};

/// Statements of a probe answer at once.
const LIMIT: Duration = Duration::from_secs(10);
/// Clocks that differ by more make moments of one machine meaningless on the other.
const CLOCK_DIFFERENCE_MS: i64 = 2_000;

/// Logs in to clusters.
pub(super) struct Clusters;

#[async_trait]
impl ResourceProbe for Clusters {
    fn kinds(&self) -> &[ResourceKind] {
        &[ResourceKind::Postgres]
    }

    async fn probe(&self, ctx: &StepContext, name: &str, facts: &PreflightFacts) -> Vec<Finding> {
        const WHAT: &str = "login";
        let Ok(postgres) = local::cluster(ctx, name) else { return Vec::new() };
        // A password that cannot be read has its own finding.
        if postgres.password.as_ref().is_some_and(|password| ctx.secret(password).is_err()) {
            return vec![
                Finding::ok(name, WHAT, "not tried without its password").state(FindingState::Unknown),
            ];
        }
        let login = match Login::of(ctx, postgres) {
            Ok(login) => login,
            Err(error) => return vec![Finding::failed(name, WHAT, &error)],
        };
        let at = login.endpoint.to_string();
        match login.connect().await {
            Ok(client) => {
                let sql = "select current_setting('server_version') as version, clock_timestamp() as now, \
                           pg_is_in_recovery() as standby";
                match client.query_one(sql, &[], LIMIT).await {
                    Ok(row) => logged_in(name, &login.user, (&at, &row), facts),
                    Err(error) => vec![Finding::failed(name, WHAT, &error.into())],
                }
            }
            Err(error @ (PgError::Unreachable { .. } | PgError::NotReady(_))) => {
                vec![down(name, &at, error, facts)]
            }
            Err(error) => vec![Finding::failed(name, WHAT, &error.into())],
        }
    }
}

fn logged_in(
    name: &str,
    user: &str,
    (at, row): (&str, &tokio_postgres::Row),
    facts: &PreflightFacts,
) -> Vec<Finding> {
    let version: String = row.get("version");
    let standby = if row.get("standby") { ", a standby" } else { "" };
    let login = Finding::ok(name, "login", format!("`{user}` at {at}, Postgres {version}{standby}"));
    let theirs: Timestamp = row.get("now");
    let apart = (theirs.as_millisecond() - facts.now.as_millisecond()).abs();
    // The probe itself takes a while: only what is beyond that is a difference.
    let took = Timestamp::now().as_millisecond() - facts.now.as_millisecond();
    let clock = if apart > CLOCK_DIFFERENCE_MS + took {
        let detail = format!("the server's clock differs from this machine's by {} s", apart / 1000);
        Finding::ok(name, "clock", detail).state(FindingState::Warning).help("synchronise both with NTP")
    } else {
        Finding::ok(name, "clock", "agrees with this machine's")
    };
    vec![login, clock]
}

/// A server that is about to be restored may be down; any other may not.
fn down(name: &str, at: &str, error: PgError, facts: &PreflightFacts) -> Finding {
    match facts.replaced.get(name) {
        Some(step) => Finding::ok(name, "login", format!("nothing listens at {at}; `{step}` restores it")),
        None => Finding::failed(name, "login", &error.into()),
    }
}

/// What `postgres.restore_base` needs: programs of the right version, room, permissions, a free place.
pub(super) struct Wanted<'a> {
    pub(super) store: Store,
    pub(super) cluster: &'a str,
    pub(super) postgres: &'a Postgres,
    pub(super) data_dir: &'a Path,
    pub(super) backup: Option<&'a str>,
}

pub(super) async fn restore(wanted: Wanted<'_>) -> Result<Vec<Finding>, StepError> {
    let Wanted { store, cluster, postgres, data_dir, backup } = wanted;
    let mut findings = vec![writable(cluster, data_dir)];
    let backup = backup.map(ToOwned::to_owned);
    let newest = blocking(move || {
        let found = catalogue(&store, BackupKind::PostgresBase)?;
        let fits = |label: &str| backup.as_deref().is_none_or(|backup| backup == label);
        Ok(found.complete.into_iter().find(|marker| fits(&marker.label)))
    })
    .await?;
    // That there is none is the finding of the step that chooses it.
    let Some(marker) = newest else { return Ok(findings) };
    let details: BackupDetails = marker.details()?;
    findings.push(space(cluster, data_dir, details.data_bytes));
    let major = details.base.major;
    findings.push(match Tools::find_major(postgres, major) {
        Ok(tools) => {
            let detail = format!(
                "Postgres {} in {}, as backup `{}` needs",
                tools.version,
                tools.bin_dir.display(),
                marker.label
            );
            Finding::ok(cluster, "programs", detail)
        }
        Err(error) => Finding::failed(cluster, "programs", &error),
    });
    Ok(findings)
}

/// Judges how far a recovery from a store can get, against the RPO.
pub(super) fn reach(
    subject: &str,
    (end, archived_at): (&str, Option<Timestamp>),
    target: Option<Timestamp>,
    facts: &PreflightFacts,
) -> Finding {
    const WHAT: &str = "log reaches";
    let Some(archived_at) = archived_at else {
        return Finding::ok(subject, WHAT, format!("up to {end}; when it was archived is not known"))
            .state(FindingState::Unknown);
    };
    let until = target.unwrap_or(facts.now);
    if archived_at >= until {
        return Finding::ok(subject, WHAT, format!("beyond the target: {end} was archived after it"));
    }
    let gap = until.duration_since(archived_at).unsigned_abs();
    let before = if target.is_some() { "the target" } else { "now" };
    let detail = format!("{end}, archived {} before {before}", age(archived_at, until));
    match facts.rpo.filter(|rpo| gap > *rpo) {
        None => Finding::ok(subject, WHAT, detail),
        Some(rpo) => {
            let detail = format!("{detail}: more than the RPO of {}", humantime::format_duration(rpo));
            Finding::ok(subject, WHAT, detail)
                .state(FindingState::Failed)
                .objective()
                .help("see whether archiving works: `select * from pg_stat_archiver`; `archive_timeout` bounds the gap")
        }
    }
}
