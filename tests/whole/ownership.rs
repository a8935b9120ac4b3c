//! Who may work on a run and on a system: take-over, superseded processes, locks by identity, two users of one state.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::project::{Project, Ran, alive, until};

#[test]
fn a_process_that_stands_still_is_refused_by_name_and_taken_over_by_one_command() {
    let (project, running, _) = Project::in_a_long_step();
    running.signal("STOP");
    until("it stands still", || project.run(&["resume"]).stderr.contains("stands still"));
    let refused = project.run(&["resume"]).expect(7);
    for text in ["LB0324", "owned by process", "for ", "lifeboat resume", "--take-over"] {
        assert!(refused.stderr.contains(text), "no {text}: {}", refused.stderr);
    }
    project.write("go", "");
    let taken = project.run(&["resume", "--take-over"]).expect(0);
    assert!(taken.stderr.contains("taking the run"), "{}", taken.stderr);
    let old = running.end();
    assert_ne!(old.exit, 0, "{}", old.stderr);
    assert_eq!(project.lines("done"), ["before", "long", "long", "after"]);
    let report = project.run(&["report"]).expect(0).stdout;
    assert!(report.contains("took the run over: process"), "it stands in the record: {report}");
}

#[test]
fn taking_over_what_nobody_drives_is_a_resume() {
    let (project, running, _) = Project::in_a_long_step();
    running.signal("KILL");
    running.end();
    project.write("go", "");
    let ran = project.run(&["resume", "--take-over"]).expect(0);
    assert!(ran.stderr.contains("no process drives the run"), "{}", ran.stderr);
    assert_eq!(project.lines("done"), ["before", "long", "long", "after"]);
}

/// Somebody removes the files of the locks although the process that holds them only stands still. That is against every
/// advice, and even then the old process must not do anything further.
#[test]
fn a_superseded_process_that_wakes_up_can_neither_report_nor_start_anything() {
    let (project, running, _) = Project::in_a_long_step();
    running.signal("STOP");
    forget_locks(&project);

    project.write("go", "");
    project.run(&["resume"]).expect(0);
    let done = project.lines("done");
    assert_eq!(done, ["before", "long", "long", "after"]);
    let before = project.report();

    running.signal("CONT");
    let old = running.end().expect(7);
    assert!(old.stderr.contains("another process has gone on with this run"), "{}", old.stderr);
    assert_eq!(project.lines("done"), done, "it started nothing");
    assert_eq!(project.report(), before, "and reported nothing");
}

/// Removes what says that a run and its systems belong to somebody, although that process only stands still.
fn forget_locks(project: &Project) {
    for entry in fs::read_dir(project.file(".lifeboat/state/locks")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    fs::remove_file(project.run_dir().join("lock")).unwrap();
}

#[test]
fn a_superseded_process_that_only_waits_leaves_by_itself() {
    let project = Project::with_steps(
        "- { id: ask, uses: approval, with: { message: 'Go?' } }
- { id: after, effect: idempotent, run: 'echo after >> done' }",
    );
    let running = project.start(&["run", "job"]);
    until("it asks", || project.run(&["status"]).stdout.contains("Go?"));
    running.signal("STOP");
    forget_locks(&project);
    project.run(&["approve", "latest"]).expect(0);
    project.run(&["resume"]).expect(0);
    let before = project.report();
    running.signal("CONT");
    let old = running.end().expect(7);
    assert!(old.stderr.contains("another process has gone on with this run"), "{}", old.stderr);
    assert_eq!(project.lines("done"), ["after"]);
    assert_eq!(project.report(), before);
}

#[test]
fn a_journal_that_is_removed_ends_what_runs_at_once() {
    let (project, running, pid) = Project::in_a_long_step();
    fs::remove_file(project.run_dir().join("journal.db")).unwrap();
    let ran = running.end().expect(7);
    assert!(!alive(&pid), "the script goes on");
    for text in ["LB0313", "it was removed or replaced while the run went on", "look at them"] {
        assert!(ran.stderr.contains(text), "no {text}: {}", ran.stderr);
    }
    assert_eq!(project.lines("done"), ["before", "long"]);
}

fn with_database(project: &Project) {
    project.write(
        "environments/sandbox.yaml",
        "environment: sandbox\nresources:\n  db: { kind: postgres, host: 127.0.0.1, port: 54329, user: app }\n",
    );
}

#[test]
fn a_system_that_a_script_is_connected_to_is_locked() {
    let project = Project::new();
    with_database(&project);
    let script = |effect: &str| {
        format!(
            "- {{ id: change, effect: {effect}, env: {{ DATABASE_URL: {{ connection: db }} }}, run: 'true' }}"
        )
    };
    let held = "- { id: ask, uses: approval, with: { message: 'Go on?' } }\n";
    project.runbook("first", "", &format!("{held}{}", script("idempotent")));
    project.runbook("second", "", &script("once"));
    project.runbook("looks", "", &script("read"));
    project.run(&["run", "first", "--no-wait"]).expect(6);
    let refused = project.run(&["run", "second"]).expect(7);
    for text in ["tcp://localhost:54329", "first@sandbox", "lifeboat resume", "lifeboat abort"] {
        assert!(refused.stderr.contains(text), "no {text}: {}", refused.stderr);
    }
    project.run(&["run", "looks"]).expect(0);
    project.run(&["approve"]).expect(0);
    project.run(&["resume"]).expect(0);
    project.run(&["run", "second"]).expect(0);
}

fn bucket_into(project: &Project, to: &str) {
    project.write(
        "environments/sandbox.yaml",
        "environment: sandbox\nresources:\n  objects: { kind: store, url: 's3://b', endpoint: 'http://127.0.0.1:9', \
         region: eu-west-1, access: read }\n",
    );
    let protected = format!(
        "environment: production\nprotected: true\nresources:\n  uploads: {{ kind: files, path: {} }}\n",
        project.file("production/uploads").display()
    );
    project.write("environments/production.yaml", &protected);
    project.runbook(
        "job",
        "inputs: { dir: { type: path, default: production, description: Where } }",
        &format!(
            "- {{ id: fill, uses: store.restore_as_of, with: {{ store: objects, at: '2026-01-01T00:00:00Z', to: '{to}' }} }}"
        ),
    );
}

#[test]
fn a_directory_that_a_step_fills_is_compared_with_protected_ones() {
    let project = Project::new();
    bucket_into(&project, "production/uploads/2026");
    let refused = project.run(&["run", "job"]).expect(3);
    for text in ["LB0141", "production/uploads/2026", "`uploads` of the protected environment `production`"] {
        assert!(refused.stderr.contains(text), "no {text}: {}", refused.stderr);
    }
    // Known only in the run: refused before anything is read or written.
    bucket_into(&project, "{{ inputs.dir }}/uploads");
    let refused = project.run(&["run", "job"]).expect(4);
    assert!(refused.stderr.contains("LB0341"), "{}", refused.stderr);
    // Anywhere else it goes on to ask the bucket, which is not there.
    let other = project.run(&["run", "job", "-i", "dir=elsewhere"]).expect(4);
    assert!(!other.stderr.contains("LB0341"), "{}", other.stderr);
}

#[test]
fn a_directory_that_a_step_fills_is_locked() {
    let project = Project::new();
    bucket_into(&project, "{{ inputs.dir }}/uploads");
    project.write("environments/production.yaml", "environment: production\n");
    project.runbook(
        "other",
        "inputs: { dir: { type: path, default: elsewhere, description: Where } }",
        "- { id: ask, uses: approval, with: { message: 'Go on?' } }\n\
         - { id: fill, uses: store.restore_as_of, with: { store: objects, at: '2026-01-01T00:00:00Z', to: '{{ inputs.dir }}' } }",
    );
    project.run(&["run", "other", "--no-wait"]).expect(6);
    let refused = project.run(&["run", "job", "-i", "dir=elsewhere"]).expect(7);
    assert!(
        refused.stderr.contains("overlaps") && refused.stderr.contains("other@sandbox"),
        "{}",
        refused.stderr
    );
}

/// A directory that two users of one group share, with a copy of the program that both can execute.
struct Shared {
    project: Project,
    program: PathBuf,
    gid: u32,
}

const ADA: u32 = 61_001;
const SAM: u32 = 61_002;

impl Shared {
    /// `None`, and a line that says so, for whoever cannot act as somebody else.
    fn new() -> Option<Self> {
        let groups = fs::read_to_string("/etc/group").unwrap_or_default();
        let group = groups.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, gid) = (fields.next()?, fields.nth(1)?.parse().ok()?);
            (gid != 0 && gid < 60_000).then(|| (name.to_owned(), gid))
        });
        let (true, Some((group, gid))) = (rustix::process::geteuid().is_root(), group) else {
            eprintln!("SKIPPED: only root can act as two users");
            return None;
        };
        let project = Project::new();
        for dir in [".", "shared"] {
            fs::create_dir_all(project.file(dir)).unwrap();
            fs::set_permissions(project.file(dir), fs::Permissions::from_mode(0o777)).unwrap();
        }
        project.write(
            "lifeboat.yaml",
            &format!("project: test\nstate: {{ dir: shared/state, group: {group} }}\n"),
        );
        let program = project.file("lifeboat");
        // By another program: what this one has open for writing, a child that another test starts at that moment has open as
        // well, and a file that is open for writing cannot be executed.
        let mut copy = Command::new("cp");
        assert!(copy.arg(env!("CARGO_BIN_EXE_lifeboat")).arg(&program).status().unwrap().success());
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Some(Self { project, program, gid })
    }

    fn run(&self, user: u32, gid: u32, args: &[&str]) -> Ran {
        let mut command = Command::new(&self.program);
        command.args(args).current_dir(self.project.path()).env("NO_COLOR", "1").stdin(Stdio::null());
        Ran::of(command.uid(user).gid(gid))
    }
}

#[test]
fn what_one_user_of_a_group_began_another_carries_on_and_both_can_read() {
    let Some(shared) = Shared::new() else { return };
    let (project, gid) = (&shared.project, shared.gid);
    project.runbook(
        "job",
        "objective: { rto: 4h }\n",
        "- { id: one, effect: idempotent, run: 'echo one printed' }\n\
         - { id: ask, uses: approval, with: { message: 'Go on?' } }\n\
         - { id: two, effect: idempotent, recovered: true, run: 'echo an attempt; test -e mended' }",
    );
    shared.run(ADA, gid, &["run", "job", "--no-wait"]).expect(6);
    assert!(shared.run(SAM, gid, &["status"]).expect(0).stdout.contains("Go on?"));
    assert!(shared.run(SAM, gid, &["logs"]).expect(0).stdout.contains("one printed"));
    shared.run(SAM, gid, &["approve", "--as", "sam"]).expect(0);
    shared.run(ADA, gid, &["resume"]).expect(6);
    project.write("mended", "");
    shared.run(SAM, gid, &["retry", "latest", "two"]).expect(0);
    let resumed = shared.run(SAM, gid, &["resume"]).expect(0);
    assert!(!resumed.stderr.contains("stored"), "its output was kept too: {}", resumed.stderr);
    let logs = shared.run(ADA, gid, &["logs", "--step", "two"]).expect(0).stdout;
    assert!(logs.contains("two attempt 1") && logs.contains("two attempt 2"), "{logs}");
    assert!(shared.run(ADA, gid, &["runs"]).expect(0).stdout.contains("succeeded"));
    shared.run(SAM, gid, &["runs"]).expect(0);
    // Whoever is not in the group is told what to do, and sees nothing.
    let stranger = shared.run(61_003, 61_003, &["runs"]).expect(7);
    assert!(stranger.stderr.contains("help:"), "{}", stranger.stderr);
    let mode = fs::metadata(project.file("shared/state")).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode, 0o2770);
}

#[test]
fn a_state_directory_of_somebody_else_is_refused_with_what_to_do() {
    let Some(shared) = Shared::new() else { return };
    shared.project.write("lifeboat.yaml", "project: test\nstate: shared/own\n");
    shared.run(ADA, ADA, &["runs"]).expect(0);
    let refused = shared.run(SAM, SAM, &["runs"]).expect(7);
    assert!(refused.stderr.contains("LB03") && refused.stderr.contains("help:"), "{}", refused.stderr);
    // Root could, and must not: what it would leave there, ada could not use.
    let refused = shared.run(0, 0, &["runs"]).expect(7);
    for text in ["LB0320", "belongs to user 61001", "state: { dir"] {
        assert!(refused.stderr.contains(text), "no {text}: {}", refused.stderr);
    }
}

#[test]
fn links_to_and_within_the_state_directory_are_followed_or_refused_as_their_target_deserves() {
    let project = Project::with_steps("- { id: one, effect: idempotent, run: 'true' }");
    let real = project.file("real");
    fs::create_dir(&real).unwrap();
    fs::set_permissions(&real, fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::symlink(&real, project.file("link")).unwrap();
    project.write("lifeboat.yaml", "project: test\nstate: link\n");
    project.run(&["run", "job"]).expect(0);
    assert!(real.join("runs").is_dir(), "a link to a place that is in order is in order");

    fs::set_permissions(&real, fs::Permissions::from_mode(0o755)).unwrap();
    let refused = project.run(&["runs"]).expect(7);
    assert!(refused.stderr.contains(&format!("chmod 700 {}", real.display())), "{}", refused.stderr);
    fs::set_permissions(&real, fs::Permissions::from_mode(0o700)).unwrap();

    std::os::unix::fs::symlink(project.file("nowhere"), project.file("broken")).unwrap();
    project.write("lifeboat.yaml", "project: test\nstate: broken\n");
    let refused = project.run(&["runs"]).expect(7);
    assert!(refused.stderr.contains("leads nowhere"), "{}", refused.stderr);

    project.write("lifeboat.yaml", "project: test\nstate: link\n");
    fs::rename(real.join("locks"), project.file("locks-elsewhere")).unwrap();
    std::os::unix::fs::symlink(project.file("locks-elsewhere"), real.join("locks")).unwrap();
    let refused = project.run(&["run", "job"]).expect(7);
    for text in ["LB0320", "`locks` in it is a link", "help:"] {
        assert!(refused.stderr.contains(text), "no {text}: {}", refused.stderr);
    }
}

#[test]
fn a_time_zone_that_changes_between_two_processes_changes_nothing() {
    let project = Project::with_steps(
        "- { id: one, effect: idempotent, run: 'true' }\n- { id: ask, uses: approval, with: { message: 'Go on?' } }",
    );
    let in_zone = |zone: &str, args: &[&str]| Ran::of(project.command(args).env("TZ", zone));
    in_zone("Asia/Tokyo", &["run", "job", "--no-wait"]).expect(6);
    in_zone("America/New_York", &["approve"]).expect(0);
    in_zone("Pacific/Kiritimati", &["resume"]).expect(0);
    let here = in_zone("Asia/Tokyo", &["report", "--format", "json"]).json();
    assert_eq!(here, in_zone("America/New_York", &["report", "--format", "json"]).json());
    assert!(here["rto"]["used_ms"].as_i64().is_some_and(|used| used < 600_000), "{}", here["rto"]);
    assert_eq!(here["warnings"], serde_json::json!([]));
}
