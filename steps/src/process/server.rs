use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process;

use lifeboat_engine::model::evidence::{Created, CreatedKind};
use lifeboat_engine::step::{StepContext, StepError};

use super::command::Command;
use super::{Identity, OsUser, codes, identity, spawn};

/// Waits on standard input until the process is recorded, then becomes the program. If Lifeboat dies in between,
/// the read fails and nothing was started.
const STAGE: &str = r#"read -r go || exit 125; [ "$go" = go ] || exit 125; exec "$@" </dev/null"#;

/// What the stage calls itself on its command line.
const STAGE_NAME: &str = "lifeboat-stage";

/// Says whether a process is the stage of a server: it becomes one, or ends.
pub(crate) fn is_stage(pid: u32) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).any(|word| word == STAGE_NAME.as_bytes())
}

/// What is said of a server besides its command.
#[derive(Clone, Debug)]
pub struct ServerSpec {
    /// Names it within the run: `server:db`. A second start under the same id replaces the record.
    pub id: String,
    /// What it is, for people: `Postgres server of db (port 5440)`.
    pub what: String,
    /// Standard output and standard error are appended here; made with its directory if absent.
    pub log_file: PathBuf,
    /// The number of the signal that asks it to end.
    pub stop_signal: i32,
}

/// A program that outlives its step, in a session of its own.
#[derive(Clone, Debug)]
pub struct Server {
    pub identity: Identity,
    log_file: PathBuf,
    log_start: u64,
}

impl Server {
    /// Starts a server, recorded through [`StepContext::created`] before it executes its program.
    ///
    /// Returns once the program is being executed, not once it is ready: poll it, and ask
    /// [`Identity::is_alive`] meanwhile. Output hooks, standard input and grace of the command are not used.
    pub async fn start(command: Command, spec: ServerSpec, ctx: &StepContext) -> Result<Self, StepError> {
        let log = open_log(&spec.log_file, &command.name)?;
        let log_start = log.metadata().map_or(0, |metadata| metadata.len());
        let mut child = stage(&command, ctx, log)?;
        let identity = Identity::of(child.id());
        let gate = child.stdin.take();
        std::thread::spawn(move || child.wait());
        let (Some(identity), Some(mut gate)) = (identity, gate) else {
            return Err(failed(&command.name, "it ended before it could be recorded"));
        };
        let kind = CreatedKind::Process {
            pid: identity.pid,
            start_ticks: identity.start_ticks,
            boot_id: identity.boot_id.clone(),
            stop_signal: spec.stop_signal,
        };
        if let Some(path) = &command.pid_file {
            identity::save(&identity, path)?;
        }
        // If this fails the gate is closed without the word, and the stage ends.
        ctx.created(Created { id: spec.id, what: spec.what, kind }).await?;
        gate.write_all(b"go\n").map_err(|error| {
            failed(&command.name, "it ended before its program was executed").caused_by(&error)
        })?;
        Ok(Self { identity, log_file: spec.log_file, log_start })
    }

    /// Returns the last lines that the server has written since it was started.
    pub fn log_tail(&self, lines: usize) -> Vec<String> {
        tail(&self.log_file, self.log_start, lines)
    }

    /// Returns the file that its output is appended to.
    pub fn log_file(&self) -> &Path {
        &self.log_file
    }
}

fn stage(command: &Command, ctx: &StepContext, log: File) -> Result<process::Child, StepError> {
    let user = command.os_user.as_deref().map(OsUser::to_switch_to).transpose()?.flatten();
    let dir = command.working_dir(&ctx.info)?;
    let variables = command.variables(&ctx.info, user.as_ref())?;
    let second = log.try_clone().map_err(|error| failed(&command.name, "its log").caused_by(&error))?;
    find_program(command, &dir, variables.get(std::ffi::OsStr::new("PATH")))?;
    let mut stage = process::Command::new("/bin/sh");
    stage.args(["-c", STAGE, STAGE_NAME]).arg(&command.program).args(&command.args);
    stage.env_clear().envs(variables).current_dir(dir);
    stage.stdin(process::Stdio::piped()).stdout(log).stderr(second);
    spawn::new_session(&mut stage);
    spawn::default_signals(&mut stage);
    spawn::huge_pages(&mut stage);
    if let Some(user) = &user {
        spawn::run_as(&mut stage, user);
    }
    stage.spawn().map_err(|error| failed(&command.name, "the process cannot be made").caused_by(&error))
}

/// Finds the program beforehand: afterwards its absence would only stand in the log.
fn find_program(command: &Command, dir: &Path, path: Option<&std::ffi::OsString>) -> Result<(), StepError> {
    let program = Path::new(&command.program);
    let found = if program.components().count() > 1 {
        dir.join(program).is_file()
    } else {
        path.is_some_and(|path| std::env::split_paths(path).any(|dir| dir.join(program).is_file()))
    };
    if found {
        return Ok(());
    }
    let message = format!("`{}` cannot be started: there is no such program", program.display());
    Err(StepError::permanent(codes::LB1002, message)
        .help("install the program, or name it by its whole path"))
}

fn open_log(path: &Path, name: &str) -> Result<File, StepError> {
    let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    let opened = made.and_then(|()| File::options().create(true).append(true).mode(0o640).open(path));
    opened.map_err(|error| {
        StepError::permanent(codes::LB1007, format!("`{name}`: its log {} cannot be opened", path.display()))
            .caused_by(&error)
    })
}

fn failed(name: &str, why: &str) -> StepError {
    StepError::transient(codes::LB1007, format!("the server `{name}` cannot be started: {why}"))
}

fn tail(path: &Path, from: u64, lines: usize) -> Vec<String> {
    const MOST: u64 = 64 * 1024;
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let begin = from.max(length.saturating_sub(MOST));
        file.seek(SeekFrom::Start(begin))?;
        let mut bytes = Vec::new();
        file.take(MOST).read_to_end(&mut bytes)?;
        if begin > from {
            // Half a line may hold half a secret, which nobody would recognise.
            let whole = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |end| end + 1);
            bytes.drain(..whole);
        }
        Ok(bytes)
    };
    let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].iter().map(|&line| line.to_owned()).collect()
}
