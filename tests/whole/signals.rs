//! Signals: they stop a process, never a run, in whatever it is doing; and what becomes of the programs of steps.

use std::fs::OpenOptions;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::project::{Project, Running, alive, until};

/// Waits for a file of the project to hold something.
fn line(project: &Project, name: &str) -> String {
    until(name, || !project.lines(name).is_empty());
    project.lines(name)[0].clone()
}

const WAIT: &str = "until test -e go; do sleep 0.1; done";

#[test]
fn a_signal_leaves_a_run_that_waits_for_a_person_open() {
    let project = Project::with_steps("- { id: ask, uses: approval, with: { message: 'Go?' } }");
    let running = project.start(&["run", "job"]);
    until("it asks", || project.run(&["status"]).stdout.contains("Go?"));
    running.signal("INT");
    let ran = running.end().expect(130);
    assert!(ran.stderr.contains("the run stays open"), "{}", ran.stderr);
    project.run(&["approve", "latest"]).expect(0);
    project.run(&["resume"]).expect(0);
}

#[test]
fn a_signal_while_a_retry_waits_does_not_wait_with_it() {
    let project = Project::with_steps(
        "- { id: one, effect: idempotent, run: 'touch tried; false', retry: { attempts: 2, delay: 10m } }",
    );
    let running = project.start(&["run", "job"]);
    until("it waits", || project.run(&["status"]).stdout.contains("tries again"));
    let from = Instant::now();
    running.signal("TERM");
    running.end().expect(143);
    assert!(from.elapsed() < Duration::from_secs(20));
    project.run(&["cancel", "latest"]).expect(0);
    project.run(&["resume"]).expect(4);
}

#[test]
fn a_signal_during_undo_and_always_is_followed_by_resume_where_they_stood() {
    let project = Project::new();
    project.runbook(
        "job",
        &format!("always:\n  - {{ id: last, effect: idempotent, run: 'echo last >> done; {WAIT}; echo last ended >> done' }}\n"),
        &format!(
            "- id: one
  effect: idempotent
  run: echo one >> done
  undo: {{ run: 'echo undo >> done; {WAIT}; echo undone >> done' }}
- {{ id: two, effect: idempotent, run: 'false' }}"
        ),
    );
    let running = project.start(&["run", "job"]);
    until("it undoes", || project.lines("done").contains(&"undo".to_owned()));
    running.signal("INT");
    running.end().expect(130);
    let running = project.start(&["resume"]);
    until("it undoes again", || project.lines("done").iter().filter(|line| *line == "undo").count() == 2);
    project.write("go", "");
    until("it is undone", || project.lines("done").contains(&"undone".to_owned()));
    std::fs::remove_file(project.file("go")).expect("it was written");
    // It may be through with everything already, or be interrupted in `always`.
    running.signal_if_alive("TERM");
    let exit = running.end().exit;
    project.write("go", "");
    if exit == 143 {
        project.run(&["resume"]).expect(4);
    }
    let done = project.lines("done");
    assert_eq!(done.iter().filter(|line| *line == "undone").count(), 1, "{done:?}");
    assert_eq!(done.iter().filter(|line| *line == "one").count(), 1, "{done:?}");
    assert_eq!(done.last().map(String::as_str), Some("last ended"), "{done:?}");
    assert_eq!(project.report()["outcome"]["state"], "failed");
}

#[test]
fn the_second_signal_kills_what_does_not_end() {
    let project = Project::with_steps(
        "- { id: stubborn, effect: idempotent, run: \"trap '' TERM; echo $$ > pid; while true; do sleep 1; done\" }",
    );
    let running = project.start(&["run", "job"]);
    let pid = line(&project, "pid");
    let from = Instant::now();
    running.signal("INT");
    running.signal("INT");
    let ran = running.end().expect(130);
    // The grace of the first signal alone is ten seconds.
    assert!(from.elapsed() < Duration::from_secs(9), "{:?}\n{}", from.elapsed(), ran.stderr);
    until("it is gone", || !alive(&pid));
    assert!(project.run(&["status"]).stdout.contains("lifeboat resume"));
}

#[test]
fn a_lost_connection_takes_the_view_and_nothing_else() {
    let project = Project::with_steps(
        "- { id: ask, uses: approval, with: { message: 'Go?' } }
- { id: after, effect: idempotent, run: 'echo after >> done; echo to the dead; false', on_error: continue }
- { id: last, effect: idempotent, run: 'echo last >> done' }",
    );
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&controller).expect("a terminal of ours");
    unlockpt(&controller).expect("an open terminal");
    let name = ptsname(&controller, Vec::new()).expect("its name").into_string().expect("a plain name");
    let side = || Stdio::from(OpenOptions::new().read(true).write(true).open(&name).expect("its other side"));
    let mut command = project.command(&["run", "job"]);
    let mut child = command.stdin(side()).stdout(side()).stderr(side()).spawn().expect("it starts");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    until("it asks", || project.run(&["status"]).stdout.contains("Go?"));
    // The terminal is gone: reading and writing fail from now on, and the kernel says so.
    drop(controller);
    crate::project::signal(child.id(), "HUP");
    project.run(&["approve", "latest"]).expect(0);
    let status = child.wait().expect("a child of ours");
    assert_eq!(status.code(), Some(0), "it ended by itself, not of a write that failed");
    assert_eq!(project.lines("done"), ["after", "last"]);
}

#[test]
fn a_pipe_that_nobody_reads_any_more_does_not_end_the_run() {
    let project = Project::with_steps(
        "- { id: ask, uses: approval, with: { message: 'Go?' } }
- { id: after, effect: idempotent, run: 'echo after >> done' }",
    );
    let mut child = project
        .command(&["run", "job"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    until("it asks", || project.run(&["status"]).stdout.contains("Go?"));
    drop((child.stdout.take(), child.stderr.take()));
    project.run(&["approve", "latest"]).expect(0);
    assert_eq!(child.wait().expect("a child of ours").code(), Some(0));
    assert_eq!(project.lines("done"), ["after"]);
}

#[test]
fn signals_that_the_shell_ignores_are_not_ignored_by_the_programs_of_steps() {
    let project = Project::with_steps(
        "- { id: one, effect: idempotent, run: 'grep -h SigIgn /proc/self/status > ignored' }",
    );
    let lifeboat = env!("CARGO_BIN_EXE_lifeboat");
    // As `nohup` and `&` in a script do.
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", &format!("trap '' INT QUIT HUP; exec {lifeboat} run job")])
        .current_dir(project.path());
    Running::of(&mut command).end().expect(0);
    let mask =
        project.lines("ignored")[0].split_whitespace().last().map(|mask| u64::from_str_radix(mask, 16));
    let mask = mask.expect("a mask").expect("a number");
    assert_eq!(mask & 0b111, 0, "HUP, INT and QUIT are signals 1 to 3: {mask:x}");
}

#[test]
fn what_leaves_its_group_and_session_is_ended_with_its_step() {
    let project = Project::with_steps(
        "- id: one
  effect: idempotent
  run: |
    setsid bash -c 'echo $BASHPID > escaped; (setsid sleep 300 & echo $! > twice; wait) & sleep 300' > /dev/null 2>&1 &
    until test -s twice; do sleep 0.05; done
    sleep 300",
    );
    let running = project.start(&["run", "job"]);
    let (escaped, twice) = (line(&project, "escaped"), line(&project, "twice"));
    assert!(alive(&escaped) && alive(&twice));
    running.signal("TERM");
    running.end().expect(143);
    assert!(!alive(&escaped) && !alive(&twice));
}
