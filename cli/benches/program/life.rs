//! The rows about the built program: whole runs, memory, and the way back after a kill.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use lifeboat_engine::journal::Reader;
use lifeboat_engine::model::event::EventKind;
use lifeboat_engine::runs::{RunDir, StateDir};

use crate::measure::{children_cpu, children_written, command, run, scratch};
use crate::project;
use crate::table::{Spread, grouped, ms, row};

/// How long anything may take before the benchmark gives up.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often the program is killed for a row.
const KILLS: usize = 9;

pub(crate) fn rows() {
    start_up();
    for steps in [1_000, 10_000, 100_000] {
        whole_run(steps);
    }
    for steps in [10, 10_000] {
        idle(steps);
    }
    for steps in [100, 10_000] {
        killed(steps);
    }
}

fn start_up() {
    let dir = scratch();
    let spread = Spread::of((0..100).map(|_| run(dir.path(), &["--version"]).wall).collect());
    row("start-up of the program (`--version`)", "–", Some(&spread), "20 ms");
    let project = scratch();
    project::to_run(project.path(), &project::asserts(1, false)).expect("the project can be written");
    let all = (0..20).map(|_| run(project.path(), &["run", "bench", "--env", "staging"]).wall);
    row("`lifeboat run` of one step, from start to exit", "–", Some(&Spread::of(all.collect())), "");
}

/// A run of the program from its start to its exit: reading the files, all steps, the report.
fn whole_run(steps: usize) {
    let dir = scratch();
    project::to_run(dir.path(), &project::asserts(steps, true)).expect("the project can be written");
    let (cpu, written, begin) = (children_cpu(), children_written(), Instant::now());
    let mut child = start(dir.path(), &["run", "bench", "--env", "staging"]);
    let mut peak = 0;
    while child.try_wait().expect("it is a child").is_none() {
        peak = peak.max(memory(child.id(), "VmHWM"));
        std::thread::sleep(Duration::from_millis(2));
    }
    let wall = begin.elapsed();
    assert!(child.wait().expect("it is a child").success(), "a run of {steps} steps failed");
    let result = format!(
        "{}; {} a second; CPU {}, written {} bytes a step; memory at most {}",
        ms(wall),
        grouped((steps as f64 / wall.as_secs_f64()) as u64),
        ms((children_cpu() - cpu) / u32::try_from(steps).expect("not that many")),
        grouped((children_written() - written) / steps as u64),
        megabytes(peak)
    );
    let what =
        format!("`lifeboat run` of {} `assert` steps, 100 at once, files to report", grouped(steps as u64));
    row(&what, &result, None, "linear");
}

/// The memory of a run that waits for a person.
fn idle(steps: usize) {
    let dir = scratch();
    let ask = "  - { id: ask, uses: approval, with: { role: lead, message: Go on? } }\n";
    project::to_run(dir.path(), &(project::asserts(steps, true) + ask)).expect("the project can be written");
    let mut child = start(dir.path(), &["run", "bench", "--env", "staging"]);
    until("the run asks", || {
        newest(dir.path())
            .is_some_and(|run| happened(&run, |event| matches!(event, EventKind::QuestionAsked { .. })))
    });
    let (now, peak) = (memory(child.id(), "VmRSS"), memory(child.id(), "VmHWM"));
    kill(&mut child);
    let what = format!("memory of a run that waits for a person after {} steps", grouped(steps as u64));
    row(&what, &format!("{}, at most {}", megabytes(now), megabytes(peak)), None, "30 MB");
}

/// From the kill of a run that has completed so many steps to the next step under way in another process. What the kill
/// left behind is ended meanwhile, the journal is checked, and the step that was under way runs again.
fn killed(steps: usize) {
    let dir = scratch();
    let last = "  - id: last\n    effect: idempotent\n    run: |\n      echo begun >> begun\n      \
                until [ -e go ]; do sleep 0.02; done\n";
    project::to_run(dir.path(), &(project::asserts(steps, true) + last)).expect("the project can be written");
    let begun = dir.path().join("begun");
    let count = || std::fs::read_to_string(&begun).map_or(0, |text| text.lines().count());
    let mut child = start(dir.path(), &["run", "bench", "--env", "staging"]);
    until("the last step runs", || count() == 1);
    let mut all = Vec::new();
    for times in 1..=KILLS {
        kill(&mut child);
        let begin = Instant::now();
        child = start(dir.path(), &["resume"]);
        until("the last step runs again", || count() > times);
        all.push(begin.elapsed());
    }
    std::fs::write(dir.path().join("go"), "").expect("a file");
    assert!(child.wait().expect("it is a child").success(), "the resumed run failed");
    let what = format!("`kill -9` to the next step under way, {} steps completed", grouped(steps as u64));
    row(&what, "–", Some(&Spread::of(all)), "");
}

fn start(project: &Path, args: &[&str]) -> Child {
    let mut command = command(project, args);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("the program starts")
}

fn kill(child: &mut Child) {
    child.kill().expect("it is a child");
    child.wait().expect("it is a child");
}

fn newest(project: &Path) -> Option<RunDir> {
    let state = StateDir::look(&project.join(".lifeboat/state"))?;
    state.runs().ok()?.into_iter().next()
}

fn happened(run: &RunDir, what: impl Fn(&EventKind) -> bool) -> bool {
    let events = Reader::open(run.path()).and_then(|reader| reader.essential()).unwrap_or_default();
    events.iter().any(|event| what(&event.kind))
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited too long: {what}");
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// Returns a line of a process's status, in KiB; 0 once it is gone.
fn memory(pid: u32, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn megabytes(kibibytes: u64) -> String {
    format!("{:.1} MB", kibibytes as f64 * 1024.0 / 1e6)
}
