use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lifeboat_engine::model::evidence::Stream;
use lifeboat_engine::step::{StepContext, StepError, StepInfo};
use secrecy::{ExposeSecret, SecretString};

use super::output::{Kept, LineHook};
use super::running::Running;
use super::{OsUser, codes, environment};

const DEFAULT_GRACE: Duration = Duration::from_secs(10);

/// A program to be run to its end within a step.
///
/// It gets PATH, HOME, LANG, the `LIFEBOAT_*` facts and what is set here, no other variable; standard input is
/// closed unless bytes are given. It runs in a process group of its own, all of which is ended when the step must
/// end and when the program has ended but left others behind.
pub struct Command {
    pub(super) program: OsString,
    pub(super) args: Vec<OsString>,
    pub(super) name: String,
    pub(super) dir: Option<PathBuf>,
    pub(super) os_user: Option<String>,
    pub(super) stdin: Option<Vec<u8>>,
    pub(super) stdin_file: Option<File>,
    pub(super) stdout_file: Option<File>,
    pub(super) stderr_file: Option<File>,
    pub(super) quiet: Option<Stream>,
    pub(super) hook: Option<LineHook>,
    pub(super) grace: Duration,
    pub(super) pid_file: Option<PathBuf>,
    pub(super) secret_files: Vec<File>,
    env: BTreeMap<OsString, OsString>,
    secret_env: BTreeMap<OsString, SecretString>,
}

/// How a program ended by itself, and what it wrote.
#[derive(Clone, Debug)]
pub struct Output {
    pub exit_code: i32,
    /// Empty if standard output went to a file.
    pub stdout: Kept,
    /// Empty if standard error went to a file.
    pub stderr: Kept,
    /// Says that the program left others behind, which were ended.
    pub warnings: Vec<String>,
}

impl Command {
    /// Begins a command: a program found on PATH, or by its path.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let program = program.as_ref().to_owned();
        let name = Path::new(&program).file_name().unwrap_or(&program).to_string_lossy().into_owned();
        Self {
            program,
            args: Vec::new(),
            name,
            dir: None,
            os_user: None,
            stdin: None,
            stdin_file: None,
            stdout_file: None,
            stderr_file: None,
            quiet: None,
            hook: None,
            grace: DEFAULT_GRACE,
            pid_file: None,
            secret_files: Vec::new(),
            env: BTreeMap::new(),
            secret_env: BTreeMap::new(),
        }
    }

    /// Adds an argument. Arguments can be seen by every user of the machine: never a secret.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<T: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Names the command in errors; the program's file name if not set.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.insert(name.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }

    /// Sets a variable whose value is a secret.
    #[must_use]
    pub fn secret_env(mut self, name: impl AsRef<OsStr>, value: SecretString) -> Self {
        self.secret_env.insert(name.as_ref().to_owned(), value);
        self
    }

    /// Sets the working directory; that of the project if not set.
    #[must_use]
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Runs it as this system user, which only root can do for another user than itself.
    #[must_use]
    pub fn os_user(mut self, name: Option<&str>) -> Self {
        self.os_user = name.map(ToOwned::to_owned);
        self
    }

    /// Gives it these bytes on standard input.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Gives it an open file or pipe as standard input.
    #[must_use]
    pub fn stdin_from(mut self, file: File) -> Self {
        self.stdin_file = Some(file);
        self
    }

    /// Sends standard output to an open file or pipe, and not to the step.
    #[must_use]
    pub fn stdout_to(mut self, file: File) -> Self {
        self.stdout_file = Some(file);
        self
    }

    /// Sends standard error to an open file or pipe, and not to the step.
    #[must_use]
    pub fn stderr_to(mut self, file: File) -> Self {
        self.stderr_file = Some(file);
        self
    }

    /// Keeps standard output in [`Output`] but does not show its lines: for output that a program reads.
    #[must_use]
    pub fn quiet_stdout(mut self) -> Self {
        self.quiet = Some(Stream::Stdout);
        self
    }

    /// Keeps standard error in [`Output`] but does not show its lines: for messages that only the step can judge.
    #[must_use]
    pub fn quiet_stderr(mut self) -> Self {
        self.quiet = Some(Stream::Stderr);
        self
    }

    /// Calls a function with each line before it is passed on, from another thread; for progress.
    #[must_use]
    pub fn on_line(mut self, hook: impl Fn(Stream, &str) + Send + Sync + 'static) -> Self {
        self.hook = Some(Arc::new(hook));
        self
    }

    /// Sets the time between TERM and KILL when the step must end; 10 seconds if not set.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// For a server: keeps its identity in a file for another process to find; see `identity::load`.
    #[must_use]
    pub fn pid_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.pid_file = Some(path.into());
        self
    }

    /// Runs it to its end, whatever its exit code.
    ///
    /// Errors: it cannot be started (permanent), a signal ended it (uncertain), or the step had to end
    /// (uncertain; its whole group is gone by then).
    pub async fn run(self, ctx: &StepContext) -> Result<Output, StepError> {
        Running::start(self, ctx)?.wait(ctx).await
    }

    /// Runs it to its end; an exit code other than 0 is a permanent error that shows the last lines of its output.
    pub async fn run_checked(self, ctx: &StepContext) -> Result<Output, StepError> {
        let name = self.name.clone();
        let output = self.run(ctx).await?;
        if output.exit_code == 0 { Ok(output) } else { Err(output.to_error(&name)) }
    }

    /// Returns all variables, those of every program included.
    pub(super) fn variables(
        &self,
        info: &StepInfo,
        user: Option<&OsUser>,
    ) -> Result<BTreeMap<OsString, OsString>, StepError> {
        let mut variables = environment::base(info, user)?;
        variables.extend(self.env.clone());
        let secrets = self.secret_env.iter();
        variables.extend(secrets.map(|(name, value)| (name.clone(), value.expose_secret().into())));
        Ok(variables)
    }

    /// Returns the working directory, proven to be one: otherwise its absence looks like that of the program.
    pub(super) fn working_dir(&self, info: &StepInfo) -> Result<PathBuf, StepError> {
        let dir = self.dir.clone().unwrap_or_else(|| info.project_dir.clone());
        if dir.is_dir() {
            return Ok(dir);
        }
        Err(StepError::permanent(
            codes::LB1002,
            format!(
                "`{}` cannot be started: its working directory {} does not exist",
                self.name,
                dir.display()
            ),
        )
        .help("create the directory, or correct `dir`"))
    }
}

impl Output {
    /// Makes the error of an exit code other than 0.
    pub fn to_error(&self, name: &str) -> StepError {
        const SHOWN: usize = 10;
        let mut lines = self.stderr.last_lines(SHOWN);
        if lines.is_empty() {
            lines = self.stdout.last_lines(SHOWN);
        }
        let mut error =
            StepError::permanent(codes::LB1001, format!("`{name}` ended with exit code {}", self.exit_code));
        error.causes = lines;
        error
    }
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Command")
            .field("program", &self.program)
            .field("args", &self.args)
            .field("dir", &self.dir)
            .field("os_user", &self.os_user)
            .finish_non_exhaustive()
    }
}
