//! Kills a process within a step, for real and at each moment at which the step tells its journal something.
//!
//! A test that does so runs itself again as another process, in which [`victim`] runs the step until it dies.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::{Signal, getpid, kill_process};
use serde_json::{Value, json};

use super::rig::Rig;

const LEFT: &str = "LIFEBOAT_TEST_LEFT";
const MOMENT: &str = "LIFEBOAT_TEST_MOMENT";

/// What became of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Killed,
    /// The step had ended before that moment came.
    Finished,
}

/// Counts the moments of a step, keeps on disk what the journal would hold, and kills this process at its moment.
#[derive(Debug)]
pub struct Reaper {
    file: std::path::PathBuf,
    left: Mutex<u64>,
}

impl Reaper {
    /// One more moment.
    pub fn pass(&self) {
        let mut left = self.left.lock().expect("nobody panics with it");
        if *left == 0 {
            kill_process(getpid(), Signal::KILL).expect("a process may kill itself");
            // Nothing goes on while the signal is on its way.
            loop {
                std::thread::park();
            }
        }
        *left -= 1;
    }

    /// Makes a state durable, as the journal does before it answers.
    pub fn keep(&self, state: &Value) {
        let unfinished = self.file.with_extension("unfinished");
        std::fs::write(&unfinished, state.to_string()).expect("written");
        std::fs::rename(unfinished, &self.file).expect("renamed");
    }
}

/// What of a step is done in the process that dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Run,
    Undo,
}

/// In the process that is to die: runs the step, or takes it back, and never returns. Elsewhere: returns at once.
pub async fn victim() {
    let (Ok(file), Ok(moment)) = (std::env::var(LEFT), std::env::var(MOMENT)) else { return };
    let file = std::path::PathBuf::from(file);
    let left: Value = serde_json::from_slice(&std::fs::read(&file).expect("what was left")).expect("JSON");
    let reaper = Reaper { file, left: Mutex::new(moment.parse().expect("a number")) };
    let dir = Path::new(left["dir"].as_str().expect("a directory"));
    let rig = Rig::of_another(dir, &left, reaper);
    let kind = left["kind"].as_str().expect("a kind");
    let with = left["with"].clone();
    let result = match left["undo"] == json!(true) {
        true => rig.undo(kind, with).await,
        false => rig.run(kind, with).await,
    };
    if let Err(error) = &result {
        println!("{error:?}");
    }
    // The servers that the step has started go on.
    std::mem::forget(rig);
    std::process::exit(if result.is_ok() { 0 } else { 3 });
}

/// Runs a step of the rig in a process that dies at a moment, and takes over what its journal holds then. `test` is the
/// whole name of the test that calls this, which must begin with [`victim`].
pub fn at(rig: &Rig, test: &str, step: (&str, &Value), moment: u64) -> Fate {
    act_at((rig, test), (Act::Run, step), moment)
}

/// Takes a step of the rig back in a process that dies at a moment.
pub fn undo_at(rig: &Rig, test: &str, step: (&str, &Value), moment: u64) -> Fate {
    act_at((rig, test), (Act::Undo, step), moment)
}

fn act_at((rig, test): (&Rig, &str), (act, step): (Act, (&str, &Value)), moment: u64) -> Fate {
    let output = begin((rig, test), (act, step), moment).wait_with_output().expect("our own child");
    settle(rig, &output, &format!("{test}: {act:?} of {} at moment {moment}", step.0))
}

/// The same, in a process that is killed as soon as a condition holds, wherever the step is then.
pub fn when(rig: &Rig, test: &str, step: (&str, &Value), condition: impl FnMut() -> bool) -> Fate {
    act_when((rig, test), (Act::Run, step), condition)
}

/// Takes a step back in a process that is killed as soon as a condition holds.
pub fn undo_when(rig: &Rig, test: &str, step: (&str, &Value), condition: impl FnMut() -> bool) -> Fate {
    act_when((rig, test), (Act::Undo, step), condition)
}

fn act_when(
    (rig, test): (&Rig, &str),
    (act, step): (Act, (&str, &Value)),
    mut condition: impl FnMut() -> bool,
) -> Fate {
    let mut child = begin((rig, test), (act, step), u64::MAX);
    let deadline = Instant::now() + Duration::from_secs(600);
    while child.try_wait().expect("our own child").is_none() {
        if condition() || Instant::now() > deadline {
            child.kill().expect("our own child");
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().expect("our own child");
    assert!(Instant::now() < deadline, "the condition never held: {}", said(&output));
    settle(rig, &output, &format!("{test}: {}", step.0))
}

fn begin((rig, test): (&Rig, &str), (act, (kind, with)): (Act, (&str, &Value)), moment: u64) -> Child {
    let mut left = rig.left();
    let more = json!({ "dir": rig.dir(), "kind": kind, "with": with, "undo": act == Act::Undo });
    left.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
    std::fs::write(file(rig), left.to_string()).expect("written");
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture"])
        .env(LEFT, file(rig))
        .env(MOMENT, moment.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts")
}

fn file(rig: &Rig) -> PathBuf {
    rig.dir().join("left.json")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn settle(rig: &Rig, output: &Output, what: &str) -> Fate {
    // What resume does first.
    let ended = lifeboat_engine::runs::end_survivors(&rig.children_lock(), Duration::from_secs(1));
    ended.expect("survivors are ended");
    let left = std::fs::read(file(rig)).expect("what was left");
    rig.take_over(&serde_json::from_slice(&left).expect("JSON"));
    let said = said(output);
    match (output.status.signal(), output.status.code()) {
        (Some(9), _) => Fate::Killed,
        (None, Some(0)) => {
            assert!(said.contains("running 1 test"), "no test is named so: {what}: {said}");
            Fate::Finished
        }
        _ => panic!("{what}: {}\n{said}", output.status),
    }
}
