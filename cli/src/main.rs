//! `lifeboat`: the command line of the recovery runbooks.
//!
//! Standard output is data, standard error is everything else. Every error says what to do next; exit codes are in
//! [`exit::Exit`] and never change meaning.

mod args;
mod commands;
mod exit;
mod group;
mod person;
mod render;
mod say;
mod secrets;
mod session;
mod shipped;
mod view;

use std::mem::ManuallyDrop;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, Parser};
use lifeboat_engine::model::Mode;
use lifeboat_engine::model::event::Decision;
use lifeboat_engine::project::Project;

use args::{AnswerArgs, Cli, Command, EvidenceArgs, EvidenceCommand};
use exit::{Exit, Outcome};
use session::{Manner, Site};

/// Checking a project makes very many small objects: with this allocator it takes a quarter less of the processor.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Postgres waits for this one once for every segment: not even the command line is set up for it.
    if let Some(exit) = commands::wal::get_at_once() {
        return exit;
    }
    #[cfg(debug_assertions)]
    if let Some(refused) = arm_crash() {
        return refused;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    // Postgres calls this as well for every segment: nothing else is set up for it.
    if let Command::Wal(command) = &cli.command {
        return commands::wal::wal(command);
    }
    stay_small(&cli.command);
    prepare();
    match dispatch(&cli).and_then(|exit| told(&cli.command, exit)) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            if !failure.message.is_empty() {
                crate::say::say!("{}", say::visible(&secrets::clean(&failure.to_string())));
            }
            failure.exit.into()
        }
    }
}

/// A command whose work is to print has not done it where standard output took nothing. Of a run, its end counts.
fn told(command: &Command, exit: Exit) -> Outcome {
    let drives = matches!(command, Command::Run(_) | Command::Drill(_) | Command::Resume(_));
    match say::lost() {
        Some(reason) if exit == Exit::Success && !drives => {
            let message = format!("standard output cannot be written: {reason}");
            Err(exit::Failure::new(Exit::Failed, message)
                .help("write to another place; what was written is not complete"))
        }
        _ => Ok(exit),
    }
}

/// Prepares the kill and the reboot that a test wants; a misspelt place must not make a test that proves nothing.
#[cfg(debug_assertions)]
fn arm_crash() -> Option<ExitCode> {
    if let Ok(boot) = std::env::var("LIFEBOAT_BOOT_ID") {
        lifeboat_engine::process::pretend_boot(boot);
    }
    let text = std::env::var("LIFEBOAT_CRASH_AT").ok()?;
    if lifeboat_engine::crash::arm(&text) {
        return None;
    }
    crate::say::say!("LIFEBOAT_CRASH_AT: `{text}` is no place to crash at");
    Some(Exit::Usage.into())
}

/// Makes the memory of a process that drives a run grow page by page: huge pages make a short command quicker, and one that
/// waits for people for hours larger by half. Programs of steps get them back.
fn stay_small(command: &Command) {
    if matches!(command, Command::Run(_) | Command::Drill(_) | Command::Resume(_)) {
        // A kernel without huge pages has none to forgo.
        let _ = nix::sys::prctl::set_thp_disable(true);
    }
}

/// Help and version are answers, everything else is a usage error.
fn usage(error: &clap::Error) -> ExitCode {
    // A closed pipe leaves nobody to tell.
    let _ = error.print();
    if error.use_stderr() { Exit::Usage.into() } else { Exit::Success.into() }
}

fn prepare() {
    secrets::clean_panics();
    let filter = tracing_subscriber::EnvFilter::try_from_env("LIFEBOAT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| secrets::CleanStderr)
        .without_time()
        .with_target(false)
        // Standard error may be gone, which must not end a recovery.
        .log_internal_errors(false)
        .init();
    secrets::shield_memory();
    // Fails only if there is one already, and then there is one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

fn dispatch(cli: &Cli) -> Outcome {
    let registry = Arc::new(lifeboat_steps::registry());
    match &cli.command {
        Command::Explain { code } => commands::explain::explain(code),
        Command::Steps { reference: true, .. } => {
            crate::say::put!("{}", commands::steps::reference(&registry));
            Ok(Exit::Success)
        }
        Command::Steps { kind, .. } => commands::steps::steps(&registry, kind.as_deref(), cli.format),
        Command::Init { dir } => commands::init::init(&registry, &cli.project.join(dir)),
        Command::Schema(args) => commands::schema::schema(&registry, args),
        Command::Evidence(EvidenceArgs { command: Some(EvidenceCommand::Verify(args)), .. }) => {
            commands::evidence::verify(args, cli.format)
        }
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "lifeboat", &mut std::io::stdout());
            Ok(Exit::Success)
        }
        _ => in_project(cli, registry),
    }
}

fn in_project(cli: &Cli, registry: Arc<lifeboat_engine::step::Registry>) -> Outcome {
    // It lives as long as the process. To free it piece by piece would be work for nothing.
    let project = ManuallyDrop::new(commands::files::load(&cli.project)?);
    match &cli.command {
        Command::Check(args) => return commands::files::check(&project, &registry, args, cli.format),
        Command::List(args) => return commands::list::list(&project, args, cli.format),
        Command::Schedule(args) => return commands::schedule::schedule(&project, args),
        Command::Graph(args) => return commands::graph::graph(&project, &registry, args, cli.format),
        Command::Show { runbook } => return commands::files::show(&project, runbook),
        Command::Plan(args) => return commands::plan::plan(&project, &registry, args, cli.format),
        _ => {}
    }
    let state = group::state(&project)?;
    let site = Site { state, registry, by: person::acting(cli.acting_as.as_deref(), &project.spec)? };
    on_runs(cli, &project, &site)
}

fn on_runs(cli: &Cli, project: &Project, site: &Site) -> Outcome {
    use commands::{decide, execute, look};
    let (state, by) = (&site.state, site.by.clone());
    match &cli.command {
        Command::Run(args) => execute::run(project, site, args, Mode::Recovery),
        Command::Drill(args) => execute::run(project, site, args, Mode::Drill),
        Command::Resume(args) if !args.take_over && decide::is_paused_elsewhere(state, &args.run)? => {
            decide::decide(state, by, &args.run, Decision::Unpause)
        }
        Command::Resume(args) => {
            let manner = Manner { report: args.report.clone(), no_wait: args.no_wait };
            let run = if args.take_over { session::take_over(site, &args.run)? } else { args.run.clone() };
            session::resume(site, &run, &manner, args.confirm.as_deref())
        }
        Command::Status { run } => look::status(state, run.as_deref(), cli.format),
        Command::Watch { run } => commands::watch::watch(state, run.as_deref()),
        Command::Runs(args) => look::runs(state, args, cli.format),
        Command::Logs(args) => commands::logs::logs(state, args),
        Command::Report(args) => look::report(state, args, cli.format),
        Command::Evidence(args) => commands::evidence::write(state, args, cli.format),
        Command::Approve(args) => decide::answer(state, by, args, &decide::Say::Yes),
        Command::Reject(args) => decide::answer(state, by, args, &decide::Say::No),
        Command::Answer { run, step, choice, points, said } => {
            let args = AnswerArgs { run: run.clone(), step: Some(step.clone()), said: said.clone() };
            decide::answer(state, by, &args, &decide::Say::Choice(choice.clone(), points.clone()))
        }
        Command::Retry { run, step } => {
            decide::decide(state, by, run, Decision::RetryStep { step: decide::step_id(step)? })
        }
        Command::Skip(args) => {
            let (step, reason) = (decide::step_id(&args.step)?, args.reason.clone());
            let decision = match args.done {
                true => Decision::MarkDone { step, reason },
                false => Decision::SkipStep { step, reason },
            };
            decide::decide(state, by, &args.run, decision)
        }
        Command::Note { run, text } => decide::decide(state, by, run, Decision::Note { text: text.clone() }),
        Command::Pause { run } => decide::decide(state, by, run, Decision::Pause),
        Command::Abort(args) => {
            decide::decide(state, by, &args.run, Decision::Abort { reason: args.reason.clone() })
        }
        Command::Cancel(args) => {
            decide::decide(state, by, &args.run, Decision::Cancel { reason: args.reason.clone() })
        }
        _ => unreachable!("every other command was dispatched before"),
    }
}
