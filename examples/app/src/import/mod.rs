//! `member-app import`: the job that enters the payments of a file, as the scheduler runs it every night.
//!
//! A line is one payment and is known by its reference, so that a line that is read twice is entered once. Lines are entered
//! fifty at a time: a job that ends in the middle has entered some of them, and only its record and its log say how many.

mod job;
mod judge;
mod log;
mod rows;

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use crate::database;
use crate::error::AnyError;
use job::{Job, Rejects};
use log::Log;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file, as it was kept when it arrived.
    file: PathBuf,
    /// The database, as postgresql://user@host:port/name.
    #[arg(long, env, hide_env_values = true)]
    database_url: String,
    /// The scheduler's log; the job adds to it.
    #[arg(long, required_unless_present = "check")]
    log: Option<PathBuf>,
    /// Put rows that cannot be entered into this file and go on, instead of ending at the first one.
    #[arg(long, value_name = "FILE")]
    quarantine: Option<PathBuf>,
    /// Only say what there is to do; writes nothing.
    #[arg(long, conflicts_with_all = ["log", "quarantine"])]
    check: bool,
}

/// Prints what was done as a line of JSON; exit status 1 if the job ended before the end of the file.
pub(crate) async fn run(args: &Args) -> Result<ExitCode, AnyError> {
    let captured = rows::read(&args.file);
    let Some(log) = args.log.as_deref().map(Log::new) else {
        let captured = captured?;
        let mut client = database::connect(&database::parse(&args.database_url)?).await?;
        let counts = job::foresee(&mut client, &captured).await?;
        println!("{}", counts.told(&captured));
        return Ok(ExitCode::SUCCESS);
    };
    let name = rows::name(&args.file);
    let failed = |error: AnyError| {
        // What made the job end counts more than a log that cannot be written.
        drop(log.error(&format!("failed file={name} error={}", json!(error.to_string()))));
        error
    };
    let captured = captured.map_err(failed)?;
    let client = database::connect(&database::parse(&args.database_url)?).await.map_err(Into::into);
    let rejects = args.quarantine.as_deref().map_or(Rejects::End, Rejects::Aside);
    let job = Job { client: client.map_err(failed)?, captured: &captured, log: &log, rejects };
    let ended = job.run().await.map_err(failed)?;
    println!("{}", ended.told(&captured));
    Ok(if ended.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
