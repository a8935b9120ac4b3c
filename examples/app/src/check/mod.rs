//! `member-app ledger-check`: a restored system against what the traffic wrote down.

mod found;
mod judge;

use std::path::PathBuf;
use std::process::ExitCode;

use jiff::Timestamp;

use crate::error::AnyError;
use crate::ledger::{self, Entry, Line};
use judge::{Finding, Moments};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file that `traffic` wrote.
    #[arg(long)]
    ledger: PathBuf,
    /// The restored database.
    #[arg(long, env, hide_env_values = true)]
    database_url: String,
    /// What the database was restored to: just before this moment.
    #[arg(long)]
    target: Timestamp,
    /// The restored uploads directory; without it files are not checked.
    #[arg(long, requires = "files_as_of")]
    uploads: Option<PathBuf>,
    /// When the restored backup of the files began.
    #[arg(long, requires = "uploads")]
    files_as_of: Option<Timestamp>,
    /// The restored Redis, from the environment; without --redis-as-of it is not checked.
    #[arg(long, env, hide_env_values = true)]
    redis_url: Option<String>,
    /// When the restored snapshot of Redis was taken.
    #[arg(long, requires = "redis_url")]
    redis_as_of: Option<Timestamp>,
}

/// Prints what was compared; exit status 1 if anything is not as the ledger says.
pub(crate) async fn run(args: &Args) -> Result<ExitCode, AnyError> {
    let moments = Moments {
        target: args.target,
        files: args.files_as_of,
        redis: args.redis_as_of,
        now: Timestamp::now(),
    };
    moments.check()?;
    let lines = ledger::read(&args.ledger)
        .map_err(|error| format!("cannot read the ledger {}: {error}", args.ledger.display()))?;
    let entries = ledger::entries(&lines);
    let mut findings = judge_database(args, &moments, &lines, &entries).await?;
    findings.extend(judge_files(args, &moments, &entries).await?);
    findings.extend(judge_redis(args, &moments, &entries).await?);
    let (table, right) = judge::table(&findings);
    print!("{table}");
    println!("{}", judge::in_flight(&moments, &entries));
    print_unchecked(args);
    Ok(if right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn judge_database(
    args: &Args,
    moments: &Moments,
    lines: &[Line],
    entries: &[Entry],
) -> Result<Vec<Finding>, AnyError> {
    let rows = found::database(&args.database_url).await?;
    let baseline = lines.iter().find_map(|line| match line {
        Line::Baseline { payments, amount_cents, .. } => Some((*payments, *amount_cents)),
        _ => None,
    });
    let baseline =
        baseline.ok_or("the ledger has no baseline: it was not written by `member-app traffic`")?;
    let mut findings = vec![judge::baseline(baseline, rows.seeds)];
    findings.extend(judge::rows(moments, entries, &rows));
    findings.extend(judge::heartbeats(moments, entries, &rows));
    Ok(findings)
}

async fn judge_files(args: &Args, moments: &Moments, entries: &[Entry]) -> Result<Vec<Finding>, AnyError> {
    let Some(root) = &args.uploads else { return Ok(Vec::new()) };
    let seeds = found::seed_files(&args.database_url).await?;
    let uploads = crate::uploads::Uploads::new(root);
    Ok(judge::files(moments, entries, &seeds, |path| {
        uploads.checksum_of(path).map_err(|error| error.to_string())
    }))
}

async fn judge_redis(args: &Args, moments: &Moments, entries: &[Entry]) -> Result<Vec<Finding>, AnyError> {
    let (Some(url), Some(as_of)) = (&args.redis_url, args.redis_as_of) else { return Ok(Vec::new()) };
    let wanted = judge::wanted_keys(as_of, moments.now, entries);
    let found = found::keys(url, &wanted).await?;
    Ok(judge::keys(&wanted, &found))
}

fn print_unchecked(args: &Args) {
    if args.uploads.is_none() {
        println!("not checked: files (no --uploads)");
    }
    if args.redis_as_of.is_none() {
        println!("not checked: Redis (no --redis-as-of)");
    }
}
