//! A small member system: the thing that the demonstration backs up, loses and restores.
//!
//! It keeps members, payments and an audit trail in Postgres, sessions and counters in Redis, and media in a
//! directory. `traffic` uses it and writes down what it was told; `ledger-check` holds a restored system against that.
//! `import` is the job that goes wrong some night, `export` what accountants get, `inbox` the chat of the team.

mod cache;
mod check;
mod database;
mod error;
mod export;
mod files;
mod import;
mod inbox;
mod init;
mod ledger;
mod members;
mod password;
mod random;
mod serve;
mod traffic;
mod uploads;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A small member system, for demonstrations of Lifeboat.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Creates the tables and the first members; does nothing if they are there.
    Init(init::Args),
    /// Answers requests until SIGTERM.
    Serve(serve::Args),
    /// Uses a running system at a steady rate and writes down every write, before and after.
    Traffic(traffic::Args),
    /// Holds a restored system against what `traffic` wrote down.
    LedgerCheck(check::Args),
    /// Enters the payments of a file, as the scheduler does every night.
    Import(import::Args),
    /// Writes all payments into a file, as accountants get it.
    Export(export::Args),
    /// Holds a file that `export` wrote against the database, row by row.
    Reconcile(export::Args),
    /// Takes the messages of a webhook and keeps them in a file, until SIGTERM.
    Inbox(inbox::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Init(args) => init::run(&args).await.map(|()| ExitCode::SUCCESS),
        Command::Serve(args) => serve::run(args).await.map(|()| ExitCode::SUCCESS),
        Command::Traffic(args) => traffic::run(args).await.map(|()| ExitCode::SUCCESS),
        Command::LedgerCheck(args) => check::run(&args).await,
        Command::Import(args) => import::run(&args).await,
        Command::Export(args) => export::write(&args).await.map(|()| ExitCode::SUCCESS),
        Command::Reconcile(args) => export::reconcile(&args).await,
        Command::Inbox(args) => inbox::run(args).await.map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("member-app: {error}");
        ExitCode::from(2)
    })
}
