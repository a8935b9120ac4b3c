//! A small member system: the thing that the demonstration backs up, loses and restores.
//!
//! It keeps members, payments and an audit trail in Postgres, sessions and counters in Redis, and media in a
//! directory. `traffic` uses it and writes down what it was told; `ledger-check` holds a restored system against that.

mod cache;
mod check;
mod database;
mod error;
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
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Init(args) => init::run(&args).await.map(|()| ExitCode::SUCCESS),
        Command::Serve(args) => serve::run(args).await.map(|()| ExitCode::SUCCESS),
        Command::Traffic(args) => traffic::run(args).await.map(|()| ExitCode::SUCCESS),
        Command::LedgerCheck(args) => check::run(&args).await,
    };
    result.unwrap_or_else(|error| {
        eprintln!("member-app: {error}");
        ExitCode::from(2)
    })
}
