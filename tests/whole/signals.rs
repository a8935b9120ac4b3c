//! Signals: they stop a process, never a run, in whatever it is doing; and what becomes of the programs of steps.

use std::process::Stdio;
use std::time::Duration;

use lifeboat_engine::model::event::EventKind;

use crate::project::{Project, Running, alive, until};
use crate::terminal::{other_side, pair};

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

/// Scripts read from the exit code what became of the run. It had ended, and the process was only about to leave.
#[test]
fn a_signal_when_the_run_has_ended_changes_nothing_about_how_it_ended() {
    let project =
        Project::with_steps(&format!("- {{ id: one, effect: idempotent, run: 'touch here; {WAIT}' }}"));
    let running = project.start(&["run", "job"]);
    until("it runs", || project.file("here").exists());
    project.run(&["runs"]).expect(0);
    // The process looks for the index at its end, and waits some seconds for whoever has it.
    let index = rusqlite::Connection::open(project.file(".lifeboat/state/index.db")).expect("an index");
    index.execute_batch("BEGIN EXCLUSIVE").expect("nobody else has it");
    project.write("go", "");
    let locks = project.file(".lifeboat/state/locks");
    let held = || {
        std::fs::read_dir(&locks)
            .expect("locks")
            .flatten()
            .any(|entry| entry.path().extension().is_some_and(|extension| extension == "json"))
    };
    until("it has ended and given its locks back", || !held());
    running.signal("TERM");
    running.end().expect(0);
    drop(index);
    assert_eq!(project.report()["outcome"]["state"], "succeeded");
}

#[test]
fn a_signal_while_a_retry_waits_does_not_wait_with_it() {
    let project = Project::with_steps(
        "- { id: one, effect: idempotent, run: 'touch tried; false', retry: { attempts: 2, delay: 10m } }",
    );
    let running = project.start(&["run", "job"]);
    until("it waits", || project.run(&["status"]).stdout.contains("tries again"));
    running.signal("TERM");
    running.end().expect(143);
    assert_eq!(
        project.report()["steps"][0]["attempts"].as_array().map(Vec::len),
        Some(1),
        "nothing was tried again"
    );
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
        // Or the signal came when the run had just ended.
        let ran = project.run(&["resume"]);
        assert!(ran.exit == 4 || ran.stderr.contains("has ended"), "{}", ran.all());
    }
    let done = project.lines("done");
    assert_eq!(done.iter().filter(|line| *line == "undone").count(), 1, "{done:?}");
    assert_eq!(done.iter().filter(|line| *line == "one").count(), 1, "{done:?}");
    assert_eq!(done.last().map(String::as_str), Some("last ended"), "{done:?}");
    assert_eq!(project.report()["outcome"]["state"], "failed");
}

/// Interrupts the program again and again until it has ended: two signals at the very same moment are one to the kernel.
fn insist(running: &mut Running) {
    until("it leaves", || {
        running.signal_if_alive("INT");
        std::thread::sleep(Duration::from_millis(500));
        running.has_ended()
    });
}

#[test]
fn the_second_signal_kills_what_does_not_end() {
    let project = Project::with_steps(
        "- { id: stubborn, effect: idempotent, run: \"trap '' TERM; echo $$ > pid; while true; do sleep 1; done\" }",
    );
    let mut running = project.start(&["run", "job"]);
    let pid = line(&project, "pid");
    insist(&mut running);
    running.end().expect(130);
    until("it is gone", || !alive(&pid));
    // After the grace of the first signal, which is ten seconds, its end would have been recorded.
    let (_, events) = lifeboat_engine::journal::read(&project.run_dir()).expect("a journal");
    let ends = events.iter().filter(|event| matches!(event.kind, EventKind::AttemptFinished { .. })).count();
    assert_eq!(ends, 0, "{events:#?}");
    assert!(project.run(&["status"]).stdout.contains("lifeboat resume"));
}

#[test]
fn a_lost_connection_takes_the_view_and_nothing_else() {
    let project = Project::with_steps(
        "- { id: ask, uses: approval, with: { message: 'Go?' } }
- { id: after, effect: idempotent, run: 'echo after >> done; echo to the dead; false', on_error: continue }
- { id: last, effect: idempotent, run: 'echo last >> done' }",
    );
    let (controller, name) = pair();
    let side = || other_side(&name);
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
fn a_process_that_drives_a_run_forgoes_huge_pages_and_its_programs_do_not() {
    let of = |path: &str| {
        let status = std::fs::read_to_string(path).ok()?;
        status.lines().find_map(|line| line.strip_prefix("THP_enabled:")).map(|word| word.trim().to_owned())
    };
    let Some(ours) = of("/proc/self/status") else { return eprintln!("SKIPPED: this kernel does not tell") };
    let project = Project::with_steps(
        "- { id: one, effect: idempotent, run: 'cat /proc/self/status > own; cat /proc/$PPID/status > engine' }",
    );
    project.run(&["run", "job"]).expect(0);
    let read = |name: &str| of(project.path().join(name).to_str().expect("a path"));
    assert_eq!(read("own"), Some(ours));
    assert_eq!(read("engine").as_deref(), Some("0"));
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

/// Leaves no room in a pipe: whoever writes to it waits for ever, as on a terminal of a connection that hangs.
fn fill(pipe: &std::io::PipeWriter) {
    let flags = rustix::fs::fcntl_getfl(pipe).expect("flags of a pipe");
    rustix::fs::fcntl_setfl(pipe, flags | rustix::fs::OFlags::NONBLOCK).expect("a pipe of ours");
    for size in [4096, 1] {
        while std::io::Write::write(&mut &*pipe, &vec![b'x'; size]).is_ok() {}
    }
    rustix::fs::fcntl_setfl(pipe, flags).expect("a pipe of ours");
}

#[test]
fn signals_do_not_wait_for_a_terminal_that_takes_no_more_text() {
    let project =
        Project::with_steps("- { id: long, effect: idempotent, run: 'echo $$ > pid; exec sleep 300' }");
    let (_reader, writer) = std::io::pipe().expect("a pipe");
    let mut command = project.command(&["run", "job"]);
    command.stdout(Stdio::null()).stderr(writer.try_clone().expect("a second handle"));
    let mut child = command.spawn().expect("it starts");
    let pid = line(&project, "pid");
    fill(&writer);
    crate::project::signal(child.id(), "INT");
    until("the step is ended", || !alive(&pid));
    crate::project::signal(child.id(), "INT");
    until("it leaves", || child.try_wait().expect("a child of ours").is_some());
    assert_eq!(child.wait().expect("it has ended").code(), Some(130));
    project.run(&["cancel", "latest"]).expect(0);
}

#[test]
fn the_second_signal_does_not_wait_for_a_commit_that_hangs() {
    let project = Project::with_steps(
        "- { id: one, effect: idempotent, run: 'touch begun; until test -e go; do sleep 0.05; done; touch ended' }",
    );
    let mut running = project.start(&["run", "job"]);
    until("it runs", || project.file("begun").exists());
    // For a process that commits, a journal that somebody else keeps is what a disk is that does not answer.
    let journal = rusqlite::Connection::open(project.run_dir().join("journal.db")).expect("a journal");
    journal.busy_timeout(Duration::from_secs(5)).expect("a connection of ours");
    journal.execute_batch("BEGIN IMMEDIATE").expect("it is kept");
    project.write("go", "");
    until("the step has ended", || project.file("ended").exists());
    insist(&mut running);
    // Its patience with the journal is ten seconds, and then it would leave with 7.
    running.end().expect(130);
    journal.execute_batch("ROLLBACK").expect("it was kept");
    project.run(&["resume"]).expect(0);
    assert_eq!(project.report()["outcome"]["state"], "succeeded");
}

#[test]
fn a_signal_during_clean_up_leaves_the_rest_of_it_to_resume() {
    // One that is told to end before it can listen just ends.
    let project = Project::with_steps(
        "- { id: serve, uses: service.start, with: { service: server } }
- { id: listens, effect: read, run: 'until test -s pid; do sleep 0.05; done' }",
    );
    let here = project.path().display();
    project.write(
        "environments/sandbox.yaml",
        &format!(
            "environment: sandbox
resources:
  server:
    kind: service
    manager: process
    command:
      - bash
      - -c
      - |
        trap 'echo asked >> {here}/asked; test -e {here}/go && exit 0' TERM
        echo $$ > {here}/pid
        while true; do sleep 0.1; done
"
        ),
    );
    let running = project.start(&["drill", "job"]);
    let pid = line(&project, "pid");
    line(&project, "asked");
    running.signal("INT");
    let ran = running.end().expect(130);
    assert!(ran.stderr.contains("the run stays open"), "{}", ran.stderr);
    // Whoever waits for it kills it after half a minute.
    assert!(alive(&pid), "nobody has forced it to end yet");
    project.write("go", "");
    project.run(&["resume"]).expect(0);
    assert!(!alive(&pid));
    assert_eq!(project.report()["outcome"]["state"], "succeeded");
}
