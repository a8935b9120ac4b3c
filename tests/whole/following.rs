//! `logs`, `logs -f` and `watch`, and output that is too much, too long or not text.

use crate::project::{Project, alive, until};
use crate::terminal::Terminal;

const FLAKY: &str = "
- { id: first, effect: idempotent, run: 'until test -e go; do sleep 0.1; done' }
- id: flaky
  effect: idempotent
  run: 'echo attempt $LIFEBOAT_ATTEMPT; test $LIFEBOAT_ATTEMPT = 2'
  retry: { attempts: 2, delay: 1s }";

#[test]
fn logs_are_followed_from_before_a_step_begins_over_its_attempts_to_the_end() {
    let project = Project::with_steps(FLAKY);
    let running = project.start(&["run", "job"]);
    until("the first step runs", || project.run(&["status"]).stdout.contains("first"));
    let ran = project.run(&["logs", "latest", "-s", "flaky"]).expect(2);
    assert!(ran.stderr.contains("has not started") && ran.stderr.contains("-f"), "{}", ran.stderr);
    let ran = project.run(&["logs", "latest", "-s", "flakey", "-f"]).expect(2);
    assert!(ran.stderr.contains("did you mean `flaky`?"), "{}", ran.stderr);
    let following = project.start(&["logs", "latest", "-s", "flaky", "--follow"]);
    project.write("go", "");
    running.end().expect(0);
    let told = "==> flaky attempt 1 stdout\nattempt 1\n==> flaky attempt 2 stdout\nattempt 2\n";
    assert_eq!(following.end().expect(0).stdout, told);
    assert_eq!(project.run(&["logs", "latest", "-s", "flaky"]).expect(0).stdout, told);
    let second = project.run(&["logs", "latest", "-s", "flaky", "--attempt", "2"]).expect(0).stdout;
    assert_eq!(second, "==> flaky attempt 2 stdout\nattempt 2\n");
    project.run(&["logs", "latest", "-s", "flaky", "--attempt", "3"]).expect(2);
}

#[test]
fn whoever_follows_a_run_that_nothing_drives_is_told_and_does_not_wait_forever_without_a_terminal() {
    let project = Project::with_steps("- { id: ask, uses: approval, with: { message: 'Go?' } }");
    project.run(&["run", "job", "--no-wait"]).expect(6);
    let ran = project.run(&["logs", "-f"]).expect(6);
    assert!(ran.stderr.contains("lifeboat resume"), "{}", ran.stderr);
    let ran = project.run(&["watch"]).expect(6);
    assert!(ran.stdout.contains("Go?") && ran.stdout.contains("lifeboat approve"), "{}", ran.all());
}

#[test]
fn watch_shows_a_run_to_its_end_and_ends_as_it_did() {
    let project = Project::with_steps(
        "- { id: ask, uses: approval, with: { message: 'Go?' } }\n- { id: after, effect: idempotent, run: 'false' }",
    );
    let running = project.start(&["run", "job"]);
    until("it asks", || project.run(&["status"]).stdout.contains("Go?"));
    let watching = project.start(&["watch"]);
    let leaving = project.start(&["watch"]);
    for watcher in [&watching, &leaving] {
        watcher.until_says("Go?");
    }
    // As Ctrl-C would; that one is ignored by programs of a shell that runs them in the background.
    leaving.signal("TERM");
    leaving.end();
    project.run(&["approve", "latest"]).expect(0);
    running.end().expect(4);
    let ran = watching.end().expect(4);
    for text in ["Go?", "approve by", "exit code 1"] {
        assert!(ran.stderr.contains(text), "no `{text}`: {}", ran.stderr);
    }
    assert!(ran.stdout.contains("FAILED"), "{}", ran.stdout);
    // And of a run that ended long ago.
    project.run(&["watch"]).expect(4);
}

#[test]
fn watch_goes_on_over_a_resume() {
    let project = Project::with_steps("- { id: ask, uses: approval, with: { message: 'Go?' } }");
    project.run(&["run", "job", "--no-wait"]).expect(6);
    let mut watching = Terminal::start(&mut project.command(&["watch"]));
    watching.until_shows("watching on");
    assert!(watching.shown().contains("lifeboat approve"), "{}", watching.shown());
    assert!(!watching.shown().contains("type here"), "it takes no words: {}", watching.shown());
    project.run(&["approve", "latest"]).expect(0);
    project.run(&["resume"]).expect(0);
    assert_eq!(watching.end().code(), Some(0), "{}", watching.shown());
    assert!(watching.shown().contains("SUCCEEDED"), "{}", watching.shown());
}

/// The most memory that a process has had, in KiB.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or_default()
}

fn bytes_below(dir: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

#[test]
fn of_very_much_output_beginning_and_end_are_kept_in_little_space() {
    let megabytes = if std::env::var_os("LIFEBOAT_TEST_LONG").is_some() { 1024 } else { 32 };
    let project = Project::with_steps(&format!(
        "- id: loud
  effect: idempotent
  run: |
    echo the first line
    head -c {megabytes}M /dev/zero | tr '\\0' x | fold -w 200
    echo; echo the last line
    touch written
    until test -e go; do sleep 0.1; done"
    ));
    let mut command = project.command(&["run", "job"]);
    let mut terminal = Terminal::start(&mut command);
    until("all is written", || project.file("written").exists());
    let (memory, disk) = (peak(terminal.pid()), bytes_below(&project.run_dir().join("output")));
    project.write("go", "");
    assert_eq!(terminal.end().code(), Some(0), "{}", terminal.shown());
    assert!(memory < 120 * 1024, "{memory} KiB");
    assert!(disk < 9 << 20, "{disk} bytes");
    let logs = project.run(&["logs"]).expect(0).stdout;
    assert!(logs.contains("the first line") && logs.ends_with("the last line\n"));
    let left_out: u64 = logs
        .lines()
        .filter_map(|line| {
            line.strip_prefix("[lifeboat: ")?.strip_suffix(" bytes are left out here]")?.parse::<u64>().ok()
        })
        .sum();
    assert!(left_out > (megabytes - 9) << 20, "{left_out}");
}

#[test]
fn output_cannot_act_on_the_terminal_that_shows_it() {
    let project = Project::with_steps(
        "- id: one
  effect: idempotent
  run: |
    printf 'gone: \\033[2J\\033]0;title\\007 \\377\\376\\n'
    printf 'carriage\\rreturn\\n' >&2
    exit 9",
    );
    let ran = project.run(&["run", "job"]).expect(4);
    assert!(ran.stderr.contains("\\u{1b}[2J"), "{}", ran.stderr);
    assert!(!ran.all().contains(['\x1b', '\x07', '\r']), "{}", ran.all());
    let mut terminal = Terminal::start(&mut project.command(&["logs"]));
    terminal.end();
    assert!(
        terminal.shown().contains("\\u{1b}[2J") && !terminal.shown().contains('\x1b'),
        "{}",
        terminal.shown()
    );
    // A pipe gets what was written.
    assert!(project.run(&["logs"]).stdout.contains("\x1b[2J"));
    for command in ["status", "report"] {
        assert!(!project.run(&[command]).all().contains('\x1b'));
    }
}

#[test]
fn whoever_holds_the_output_open_does_not_hold_the_step() {
    let project = Project::with_steps(
        "- id: one
  effect: idempotent
  run: |
    setsid sh -c 'echo $$ > pid; exec sleep 300' &
    until test -s pid; do sleep 0.05; done
    exec 2>&-
    echo said",
    );
    let ran = project.run(&["run", "job"]).expect(0);
    let pid = project.lines("pid")[0].clone();
    let left = alive(&pid);
    crate::project::signal(pid.parse().expect("a number"), "KILL");
    assert!(left, "what a script leaves in another session is not the step's any more, nor waited for");
    assert!(ran.stderr.contains("still holds its output open"), "{}", ran.stderr);
    assert!(project.run(&["logs"]).stdout.contains("said"));
}
