//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Runs recovery runbooks: restores real systems against the clock and proves what it did.
#[derive(Debug, Parser)]
#[command(name = "lifeboat", version, max_term_width = 100, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// The directory to look for `lifeboat.yaml` from, upwards
    #[arg(long, short = 'C', global = true, value_name = "DIR", default_value = ".")]
    pub(crate) project: PathBuf,
    /// What to print on standard output
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
    /// Who is acting; default: your login name
    #[arg(long = "as", global = true, value_name = "NAME")]
    pub(crate) acting_as: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Forms of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Text,
    Json,
    /// Annotations for GitHub Actions (`check` only)
    Github,
    /// Markdown (`report` only)
    Markdown,
    /// One self-contained page (`report` only)
    Html,
    /// YAML (`plan` only)
    Yaml,
    /// A flow chart for web pages (`graph` only)
    Mermaid,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write a project to begin with, which runs as it is
    Init {
        #[arg(default_value = ".")]
        dir: PathBuf,
    },
    /// Find every mistake in runbooks and environments
    Check(CheckArgs),
    /// Show what a run would do; writes nothing
    Plan(PlanArgs),
    /// List runbooks, those that come with Lifeboat, and the drill calendar
    List(ListArgs),
    /// Show what timers start, or write it for cron or systemd
    Schedule(ScheduleArgs),
    /// Draw what happens in which order; needs no environment and no inputs
    Graph(GraphArgs),
    /// Show one runbook: what it is for, its inputs and steps
    Show { runbook: String },
    /// List step kinds, or explain one
    Steps {
        kind: Option<String>,
        /// Print the whole reference as Markdown: docs/steps.md
        #[arg(long, conflicts_with = "kind")]
        reference: bool,
    },
    /// Print the JSON Schemas that editors complete and check files with
    Schema(SchemaArgs),
    /// Explain an error code
    Explain { code: String },
    /// Run a runbook as a recovery
    Run(RunArgs),
    /// Run a runbook as a drill: unattended, isolated, cleaned up
    Drill(RunArgs),
    /// Continue a run from its journal
    Resume(ResumeArgs),
    /// Show how a run stands and what to do next
    Status { run: Option<String> },
    /// Follow a run that another process drives, until it ends; leaving it changes nothing
    Watch { run: Option<String> },
    /// List runs, newest first
    Runs(RunsArgs),
    /// Print the output of steps
    Logs(LogsArgs),
    /// Print the report of a run
    Report(ReportArgs),
    /// Pack all that is known of a run into one archive, or check one
    #[command(args_conflicts_with_subcommands = true)]
    Evidence(EvidenceArgs),
    /// Answer a waiting step with its first choice
    Approve(AnswerArgs),
    /// Answer a waiting step with no
    Reject(AnswerArgs),
    /// Answer a waiting step with one of its choices, or with the value that it asks for
    Answer {
        run: String,
        step: String,
        #[arg(value_name = "VALUE", allow_hyphen_values = true)]
        choice: String,
        /// Which points of a checklist it is about; several are separated by commas
        #[arg(long = "point", short, value_name = "NUMBER", value_delimiter = ',')]
        points: Vec<u32>,
        #[command(flatten)]
        said: Said,
    },
    /// Try a held step again
    Retry { run: String, step: String },
    /// End a held step without its work, or with its work done by hand
    Skip(SkipArgs),
    /// Write a remark into the journal
    Note { run: String, text: String },
    /// Start nothing further until `resume`
    Pause { run: String },
    /// End a run: attempts end, what has begun is undone, newest first, and `always` steps run
    Abort(EndArgs),
    /// End a run without undoing anything: attempts end, `always` steps run
    Cancel(EndArgs),
    /// Archive and fetch write-ahead log; Postgres calls this
    #[command(subcommand)]
    Wal(WalCommand),
    /// Print completions for a shell
    Completions { shell: clap_complete::Shell },
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Files or directories; default: the whole project
    pub(crate) paths: Vec<PathBuf>,
    /// Treat warnings as errors
    #[arg(long)]
    pub(crate) deny_warnings: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only drills that are overdue; exits with 5 if there are any
    #[arg(long)]
    pub(crate) overdue: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ScheduleArgs {
    /// What to write for; a list for people if absent
    #[arg(value_enum)]
    pub(crate) timer: Option<Timer>,
    /// systemd: write the units into this directory instead of standard output
    #[arg(long, value_name = "DIR", requires = "timer")]
    pub(crate) write: Option<PathBuf>,
}

/// Timers of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Timer {
    /// Lines for a crontab
    Cron,
    /// A service and a timer for each entry
    Systemd,
}

#[derive(Debug, Args)]
pub(crate) struct SchemaArgs {
    /// The document to print the schema of
    #[arg(value_enum, default_value_t = Document::Runbook, conflicts_with_all = ["write", "check"])]
    pub(crate) document: Document,
    /// Write all schemas into this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) write: Option<PathBuf>,
    /// Name the schemas in this directory that differ, and exit with 1 if there are any
    #[arg(long, value_name = "DIR", conflicts_with = "write")]
    pub(crate) check: Option<PathBuf>,
}

/// Documents that have a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Document {
    Runbook,
    Environment,
    /// `lifeboat.yaml`
    Project,
    /// What `lifeboat check --format json` prints
    Check,
    /// What `lifeboat plan --format json` prints
    Plan,
}

#[derive(Debug, Args)]
pub(crate) struct Target {
    /// The runbook's name
    pub(crate) runbook: String,
    /// The environment to act on
    #[arg(long, short)]
    pub(crate) env: Option<String>,
    /// When the incident began (RFC 3339 with a zone, or `now`); the RTO clock starts there. Default: now, and
    /// then nothing can be derived from it
    #[arg(long, value_name = "TIME")]
    pub(crate) incident_at: Option<String>,
    /// An input as `key=value`; may be repeated
    #[arg(long = "input", short = 'i', value_name = "KEY=VALUE")]
    pub(crate) inputs: Vec<String>,
    /// A YAML or JSON file with inputs
    #[arg(long, value_name = "FILE")]
    pub(crate) input_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) target: Target,
    /// Plan a drill instead of a recovery
    #[arg(long)]
    pub(crate) drill: bool,
    /// Look at the real systems too: logins, newest backups, log, space, programs, secrets. Changes nothing
    #[arg(long)]
    pub(crate) probe: bool,
}

#[derive(Debug, Args)]
pub(crate) struct GraphArgs {
    /// The runbook's name
    pub(crate) runbook: String,
    /// Show also what is skipped in this environment
    #[arg(long, short)]
    pub(crate) env: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) target: Target,
    /// Confirm what will be destroyed in a protected environment: the token that `plan` prints
    #[arg(long, value_name = "TOKEN")]
    pub(crate) confirm: Option<String>,
    /// Keep what a drill created
    #[arg(long)]
    pub(crate) keep: bool,
    /// Also write report.html and report.json into this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) report: Option<PathBuf>,
    /// Exit with 6 instead of waiting when only a person can help
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    /// The run: its id, part of it, or `latest`
    #[arg(default_value = "latest")]
    pub(crate) run: String,
    /// Confirm systems that are others than when the run began: the token that the refusal prints
    #[arg(long, value_name = "TOKEN")]
    pub(crate) confirm: Option<String>,
    /// End the process that drives the run now, if there is one, and go on in its place
    #[arg(long)]
    pub(crate) take_over: bool,
    /// Also write report.html and report.json into this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) report: Option<PathBuf>,
    /// Exit with 6 instead of waiting when only a person can help
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunsArgs {
    /// How many to show
    #[arg(long, short = 'n', default_value_t = 20)]
    pub(crate) limit: usize,
    /// Only runs of this runbook
    #[arg(long)]
    pub(crate) runbook: Option<String>,
    /// Only runs that have not ended
    #[arg(long)]
    pub(crate) open: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    #[arg(default_value = "latest")]
    pub(crate) run: String,
    /// Only this step, or this element of one: `step[3]`
    #[arg(long, short)]
    pub(crate) step: Option<String>,
    /// Only this attempt, counted from 1
    #[arg(long, value_name = "NUMBER")]
    pub(crate) attempt: Option<u32>,
    /// Go on until the run ends; also before the step has started
    #[arg(long, short)]
    pub(crate) follow: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    #[arg(default_value = "latest")]
    pub(crate) run: String,
    /// Write to this file instead of standard output
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct EvidenceArgs {
    #[command(subcommand)]
    pub(crate) command: Option<EvidenceCommand>,
    /// The run: its id, part of it, or `latest`
    #[arg(default_value = "latest")]
    pub(crate) run: String,
    /// The archive to write; default: `evidence-RUN.tar.gz` in the current directory
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EvidenceCommand {
    /// Check an archive: every event, every file, every report. Needs no project
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    pub(crate) archive: PathBuf,
    /// The hash that was printed and posted when the run ended. Without it only consistency is checked: exits with 5
    #[arg(long, value_name = "HASH")]
    pub(crate) head: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct AnswerArgs {
    #[arg(default_value = "latest")]
    pub(crate) run: String,
    /// The step that asks; needed only if several do
    pub(crate) step: Option<String>,
    #[command(flatten)]
    pub(crate) said: Said,
}

/// What goes with an answer.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Said {
    /// Why, or what shows it
    #[arg(long, short = 'm', value_name = "TEXT")]
    pub(crate) comment: Option<String>,
    /// A file that shows it; kept with the run and its evidence
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct SkipArgs {
    pub(crate) run: String,
    pub(crate) step: String,
    /// Why; kept in the journal and the report
    #[arg(long)]
    pub(crate) reason: String,
    /// Its work is done: somebody did it by hand
    #[arg(long)]
    pub(crate) done: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EndArgs {
    pub(crate) run: String,
    /// Why; kept in the journal and the report
    #[arg(long, default_value = "no reason given")]
    pub(crate) reason: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WalCommand {
    /// Archive one segment: `archive_command = 'lifeboat wal put --config FILE %p %f'`
    Put {
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        path: PathBuf,
        name: String,
    },
    /// Fetch one segment from the helper of a running recovery
    Get {
        #[arg(long, value_name = "SOCKET")]
        socket: PathBuf,
        name: String,
        path: PathBuf,
    },
}
