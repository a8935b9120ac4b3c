//! A project of a test, and the program run in it.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

/// What the program printed and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) exit: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Runs a command to its end.
    pub(crate) fn of(command: &mut Command) -> Self {
        let output = command.output().expect("the program starts");
        Self {
            exit: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Asserts the exit code, and shows everything if it is another.
    pub(crate) fn expect(self, exit: i32) -> Self {
        assert_eq!(self.exit, exit, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}\nstdout:\n{}\nstderr:\n{}", self.stdout, self.stderr))
    }

    pub(crate) fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

const LONG: &str = "
- { id: before, effect: idempotent, run: 'echo before >> done' }
- id: long
  effect: idempotent
  run: |
    echo long >> done
    if [ -e go ]; then exit 0; fi
    echo $$ > pid
    sleep 300
- { id: after, effect: idempotent, run: 'echo after >> done' }";

/// A directory with `lifeboat.yaml` and a sandbox.
pub(crate) struct Project {
    dir: tempfile::TempDir,
}

impl Project {
    /// A directory with nothing in it.
    pub(crate) fn empty() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    pub(crate) fn new() -> Self {
        let project = Self::empty();
        project.write("lifeboat.yaml", "project: test\n");
        project.write("environments/sandbox.yaml", "environment: sandbox\n");
        project
    }

    /// A project with one runbook, `job`, made of these steps.
    pub(crate) fn with_steps(steps: &str) -> Self {
        let project = Self::new();
        project.runbook("job", "", steps);
        project
    }

    /// A project whose run is in the midst of a step, which ends at once when it is repeated and there is a file `go`; with the
    /// process that drives it and the number of the step's own.
    pub(crate) fn in_a_long_step() -> (Self, Running, String) {
        let project = Self::with_steps(LONG);
        let running = project.start(&["run", "job"]);
        until("the long step runs", || !project.lines("pid").is_empty());
        let pid = project.lines("pid")[0].clone();
        (project, running, pid)
    }

    pub(crate) fn runbook(&self, name: &str, head: &str, steps: &str) {
        let indented: String = steps
            .lines()
            .map(|line| if line.is_empty() { "\n".into() } else { format!("  {line}\n") })
            .collect();
        let text =
            format!("runbook: {name}\ntitle: A test\nenvironments: [sandbox]\n{head}\nsteps:\n{indented}");
        self.write(&format!("runbooks/{name}.yaml"), &text);
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.file(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, text).expect("a file");
    }

    /// The lines of a file that steps append to; empty if there is none.
    pub(crate) fn lines(&self, name: &str) -> Vec<String> {
        fs::read_to_string(self.file(name)).unwrap_or_default().lines().map(ToOwned::to_owned).collect()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command.args(args).current_dir(self.path()).env("NO_COLOR", "1").stdin(Stdio::null());
        command
    }

    /// Runs the program to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        Ran::of(&mut self.command(args))
    }

    /// Starts the program and leaves it running.
    pub(crate) fn start(&self, args: &[&str]) -> Running {
        Running::of(&mut self.command(args))
    }

    /// The directory of the only run.
    pub(crate) fn run_dir(&self) -> PathBuf {
        let runs = fs::read_dir(self.file(".lifeboat/state/runs")).expect("runs");
        runs.flatten().next().expect("a run").path()
    }

    /// The events of the newest run, as its report tells them.
    pub(crate) fn report(&self) -> Value {
        self.run(&["report", "--format", "json"]).json()
    }
}

/// The program while it runs; killed if the test ends first.
pub(crate) struct Running {
    child: Option<Child>,
    /// What it has written to stderr until now.
    said: Arc<Mutex<Vec<u8>>>,
    listening: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts a command and leaves it running.
    pub(crate) fn of(command: &mut Command) -> Self {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        let mut stderr = child.stderr.take().expect("a pipe");
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&said);
        let listening = std::thread::spawn(move || {
            let mut some = [0; 4096];
            while let Ok(count @ 1..) = stderr.read(&mut some) {
                heard.lock().expect("nobody panics").extend_from_slice(&some[..count]);
            }
        });
        Self { child: Some(child), said, listening: Some(listening) }
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&self.said.lock().expect("nobody panics")).into_owned()
    }

    /// Waits until it has written a text to stderr.
    pub(crate) fn until_says(&self, text: &str) {
        until(text, || self.said().contains(text));
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(self.child.as_ref().expect("it runs").id(), name);
    }

    /// Sends a signal unless it has ended by itself.
    pub(crate) fn signal_if_alive(&self, name: &str) {
        let pid = self.child.as_ref().expect("it was started").id();
        if alive(&pid.to_string()) {
            signal(pid, name);
        }
    }

    /// Says whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        let child = self.child.as_mut().expect("it was started");
        child.try_wait().expect("a child of ours").is_some()
    }

    /// Waits for the end, for some minutes at most.
    pub(crate) fn end(mut self) -> Ran {
        let mut child = self.child.take().expect("it runs");
        let mut stdout = child.stdout.take().expect("a pipe");
        let out = std::thread::spawn(move || slurp(&mut stdout));
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match child.try_wait().expect("a child of ours") {
                Some(status) => break status,
                None if Instant::now() > deadline => {
                    let _ = child.kill();
                    panic!("it did not end:\n{}", self.said());
                }
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        let stdout = out.join().unwrap_or_default();
        if let Some(listening) = self.listening.take() {
            listening.join().expect("it only reads");
        }
        Ran { exit: status.code().unwrap_or(-1), stdout, stderr: self.said() }
    }
}

/// Sends a signal to a process. One that is to stand still does when this returns.
pub(crate) fn signal(pid: u32, name: &str) {
    // The shell has a `kill` of its own; a bare machine has no program of that name.
    Ran::of(Command::new("sh").args(["-c", &format!("kill -{name} {pid}")])).expect(0);
    if name == "STOP" {
        until("it stands still", || state(&pid.to_string()) == Some('T'));
    }
}

/// Says whether a process runs; what is left of one that nobody has collected does not count.
pub(crate) fn alive(pid: &str) -> bool {
    state(pid).is_some_and(|state| state != 'Z')
}

/// What the kernel says a process does; nothing if there is none.
fn state(pid: &str) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

fn slurp(pipe: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    let _ = pipe.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// How long is waited for what a program does, on the busiest of machines: only a test that fails waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);

/// Polls until something holds, for some minutes at most.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
