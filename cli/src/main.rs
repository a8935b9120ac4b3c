//! `lifeboat`: the command line of the recovery runbooks.
//!
//! Standard output is data, standard error is everything else. Every error says what to do next; exit codes are in
//! [`exit::Exit`] and never change meaning.

mod args;
mod commands;
mod exit;
mod person;
mod render;
mod session;
mod view;

use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, Parser};

use args::{Cli, Command};
use exit::{Exit, Failure, Outcome};
use session::Site;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    // Postgres calls this once for every segment: nothing else is set up for it.
    if let Command::Wal(command) = &cli.command {
        return commands::wal::wal(command);
    }
    prepare();
    match dispatch(&cli) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            anstream::eprintln!("{failure}");
            failure.exit.into()
        }
    }
}

/// Help and version are answers, everything else is a usage error.
fn usage(error: &clap::Error) -> ExitCode {
    // A closed pipe leaves nobody to tell.
    let _ = error.print();
    if error.use_stderr() { Exit::Usage.into() } else { Exit::Success.into() }
}

fn prepare() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("LIFEBOAT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .init();
    // Fails only if there is one already, and then there is one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

fn dispatch(cli: &Cli) -> Outcome {
    let registry = Arc::new(lifeboat_steps::registry());
    match &cli.command {
        Command::Explain { code } => commands::explain::explain(code),
        Command::Steps { kind } => commands::steps::steps(&registry, kind.as_deref(), cli.format),
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "lifeboat", &mut std::io::stdout());
            Ok(Exit::Success)
        }
        Command::Schema(args) => commands::schema::schema(&registry, args),
        _ => in_project(cli, registry),
    }
}
