//! A program while it runs, and its end. The only module that knows duct.

use std::fs::File;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lifeboat_engine::crash::{self, Point};
use lifeboat_engine::model::evidence::Stream;
use lifeboat_engine::process::{AFTER_KILL, group_runs, signal_group};
use lifeboat_engine::runs::end_descendants;
use lifeboat_engine::step::{StepContext, StepError};
use rustix::process::Signal;
use tokio::task::JoinHandle;

use super::command::{Command, Output};
use super::output::{Kept, LineSink, Reader};
use super::{OsUser, codes, secret_file, spawn};

/// How long output may still come after the program has ended.
const DRAIN: Duration = Duration::from_secs(2);
/// How long processes that a program left behind have between TERM and KILL.
const LEFT_BEHIND_GRACE: Duration = Duration::from_secs(1);

type Exit = JoinHandle<io::Result<ExitStatus>>;

/// A started program with its group and the readers of its output.
pub(super) struct Running {
    name: String,
    grace: Duration,
    group: Group,
    /// The lock that all of them inherit, and the mark that tells them from those of other commands.
    descendants: (PathBuf, u64),
    exit: Exit,
    stdout: Option<Reader>,
    stderr: Option<Reader>,
}

/// Kills what is left of a process group when it is dropped.
struct Group {
    leader: u32,
}

impl Drop for Group {
    fn drop(&mut self) {
        if group_runs(self.leader) {
            signal_group(self.leader, Signal::KILL);
        }
    }
}

impl Running {
    pub(super) fn start(command: Command, ctx: &StepContext) -> Result<Self, StepError> {
        if ctx.cancel.is_cancelled() {
            return Err(StepError::transient(codes::LB1004, format!("`{}` was not started", command.name)));
        }
        let user = command.os_user.as_deref().map(OsUser::to_switch_to).transpose()?.flatten();
        let dir = command.working_dir(&ctx.info)?;
        let variables = command.variables(&ctx.info, user.as_ref())?;
        let lock = spawn::open_children_lock(&ctx.info.children_lock)?;
        let Command {
            program,
            args,
            name,
            stdin,
            stdin_file,
            stdout_file,
            stderr_file,
            quiet,
            hook,
            grace,
            secret_files,
            ..
        } = command;
        let sink = LineSink { link: ctx.link(), redactor: ctx.redactor().clone(), hook, quiet };
        let failed = |error: io::Error| cannot_start(&name, &error);

        let (stdout, stdout_reader) = reader(Stream::Stdout, sink.clone(), stdout_file).map_err(failed)?;
        let (stderr, stderr_reader) = reader(Stream::Stderr, sink, stderr_file).map_err(failed)?;
        let expression = duct::cmd(program, args).full_env(variables).dir(dir).unchecked();
        let expression = expression.stdout_file(stdout).stderr_file(stderr);
        let expression = match (stdin_file, stdin) {
            (Some(file), _) => expression.stdin_file(file),
            (None, Some(bytes)) => expression.stdin_bytes(bytes),
            (None, None) => expression.stdin_null(),
        };
        let inherited = Inherited { lock: lock.file, secret_files };
        let descendants = (ctx.info.children_lock.clone(), lock.mark);
        let handle = start(&expression, user, inherited).map_err(failed)?;
        crash::point(Point::ChildStarted);
        // Both the expression and the hook in it hold open files that only the child may hold.
        drop(expression);
        let leader = handle.pids().first().copied().unwrap_or_default();
        let exit = tokio::task::spawn_blocking(move || handle.wait().map(|output| output.status));
        let group = Group { leader };
        Ok(Self { name, grace, group, descendants, exit, stdout: stdout_reader, stderr: stderr_reader })
    }

    /// Waits for the program's end, or ends it when the step must end.
    pub(super) async fn wait(mut self, ctx: &StepContext) -> Result<Output, StepError> {
        let status = tokio::select! {
            biased;
            status = &mut self.exit => status,
            () = ctx.cancelled() => return Err(self.end().await),
        };
        crash::point(Point::ChildEnded);
        let status = status
            .map_err(io::Error::other)
            .and_then(|status| status)
            .map_err(|error| lost(&self.name).caused_by(&error))?;
        let name = self.name.clone();
        let drained = tokio::task::spawn_blocking(move || self.drain()).await;
        let (stdout, stderr, warnings) = drained.map_err(|error| lost(&name).caused_by(&error))?;
        match status.code() {
            Some(exit_code) => Ok(Output { exit_code, stdout, stderr, warnings }),
            None => Err(by_signal(&name, status, &stderr)),
        }
    }

    /// TERM to the group, the grace, KILL to the group; then the same to whoever has left the group.
    async fn end(mut self) -> StepError {
        signal_group(self.group.leader, Signal::TERM);
        let gone = self.is_gone_within(self.grace).await;
        if !gone {
            signal_group(self.group.leader, Signal::KILL);
            self.is_gone_within(AFTER_KILL).await;
        }
        let (lock, mark) = self.descendants.clone();
        let escaped = tokio::task::spawn_blocking(move || end_descendants(&lock, mark, LEFT_BEHIND_GRACE));
        // Whoever cannot be ended now is found by resume, or named by it.
        drop(escaped.await);
        let how = if gone { "ended after TERM" } else { "was killed, for it did not end after TERM" };
        StepError::uncertain(codes::LB1004, format!("`{}` {how}, because the step had to end", self.name))
    }

    async fn is_gone_within(&mut self, patience: Duration) -> bool {
        const POLL: Duration = Duration::from_millis(20);
        let deadline = Instant::now() + patience;
        while !self.exit.is_finished() || group_runs(self.group.leader) {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(POLL).await;
        }
        true
    }

    /// Collects the last output, and ends what the program left behind.
    fn drain(self) -> (Kept, Kept, Vec<String>) {
        let deadline = Instant::now() + DRAIN;
        let left = || deadline.saturating_duration_since(Instant::now());
        let stdout = self.stdout.map(|reader| reader.wait(left()).ok_or(reader));
        let stderr = self.stderr.map(|reader| reader.wait(left()).ok_or(reader));
        let left_behind = end_left_behind(self.group.leader);
        let [stdout, stderr] = [stdout, stderr]
            .map(|ended| ended.map(|drained| drained.unwrap_or_else(Reader::finish)).unwrap_or_default());
        // Not by how long it took: on a busy machine what a program wrote last may not have been read yet.
        let held_open = stdout.open || stderr.open;
        let warning = match (left_behind, held_open) {
            (true, _) => Some(format!(
                "`{}` left processes running in the background; they were ended with the step",
                self.name
            )),
            (false, true) => Some(format!(
                "a process that `{}` started outside its group still holds its output open; its further output is lost",
                self.name
            )),
            (false, false) => None,
        };
        (stdout.kept, stderr.kept, warning.into_iter().collect())
    }
}

/// Returns where a stream goes, and what reads it if it does not go to a file.
fn reader(
    stream: Stream,
    sink: LineSink,
    file: Option<File>,
) -> io::Result<(std::os::fd::OwnedFd, Option<Reader>)> {
    if let Some(file) = file {
        return Ok((file.into(), None));
    }
    let (reading, writing) = os_pipe::pipe()?;
    Ok((writing.into(), Some(Reader::start(reading, stream, sink))))
}

/// Open files that a program gets besides its streams.
struct Inherited {
    lock: File,
    secret_files: Vec<File>,
}

fn start(
    expression: &duct::Expression,
    user: Option<OsUser>,
    inherited: Inherited,
) -> io::Result<Arc<duct::Handle>> {
    if let Some(user) = &user {
        inherited.secret_files.iter().try_for_each(|file| secret_file::give(file, user))?;
    }
    let prepared = expression.before_spawn(move |command| {
        command.process_group(0);
        spawn::inherit(command, &inherited.lock);
        inherited.secret_files.iter().for_each(|file| spawn::inherit(command, file));
        spawn::without_core(command);
        spawn::default_signals(command);
        spawn::huge_pages(command);
        if let Some(user) = &user {
            spawn::run_as(command, user);
        }
        Ok(())
    });
    prepared.start().map(Arc::new)
}

/// Ends a group whose leader has ended; true if there was anything to end.
fn end_left_behind(leader: u32) -> bool {
    const POLL: Duration = Duration::from_millis(20);
    if !group_runs(leader) {
        return false;
    }
    signal_group(leader, Signal::TERM);
    let deadline = Instant::now() + LEFT_BEHIND_GRACE;
    while group_runs(leader) {
        if Instant::now() >= deadline {
            signal_group(leader, Signal::KILL);
            break;
        }
        std::thread::sleep(POLL);
    }
    true
}

fn cannot_start(name: &str, error: &io::Error) -> StepError {
    let help = match error.kind() {
        io::ErrorKind::NotFound => "install the program, or name it by its whole path",
        io::ErrorKind::PermissionDenied => "check that the file is executable, and for this user",
        _ => "run the command by hand on this machine, as the same user",
    };
    StepError::permanent(codes::LB1002, format!("`{name}` cannot be started")).help(help).caused_by(error)
}

fn lost(name: &str) -> StepError {
    StepError::uncertain(codes::LB1004, format!("`{name}` was started, but its end could not be observed"))
}

fn by_signal(name: &str, status: ExitStatus, stderr: &Kept) -> StepError {
    let number = status.signal().unwrap_or_default();
    let mut error = StepError::uncertain(codes::LB1003, format!("`{name}` was ended by signal {number}"));
    if number == Signal::KILL.as_raw() {
        error = error.help("if nobody killed it, the machine may be out of memory: look at `dmesg | tail`");
    }
    error.causes = stderr.last_lines(5);
    error
}
