//! Disks that are full or refuse to write, under the built program.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::faulty_disk::FaultyDisk;
use crate::project::{Project, Ran};

/// A small disk of its own with the state of a project on it. Only root can mount one.
struct SmallDisk {
    project: Project,
    mount: PathBuf,
}

impl SmallDisk {
    /// Mounts a disk of so many MiB; `None`, and a line that says so, where that is not possible.
    fn new(mib: u32) -> Option<Self> {
        let project = Project::new();
        let mount = project.file("disk");
        std::fs::create_dir(&mount).unwrap();
        let options = format!("size={mib}m,mode=0755");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "lifeboat-test"])
            .arg(&mount)
            .stderr(Stdio::null())
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: only root can mount a small disk here");
            return None;
        }
        project.write("lifeboat.yaml", "project: test\nstate: disk/state\n");
        Some(Self { project, mount })
    }

    /// Leaves no room at all.
    fn fill(&self) {
        let file = std::fs::File::create(self.filler()).unwrap();
        for size in [1 << 16, 1] {
            let block = vec![b'x'; size];
            while std::io::Write::write_all(&mut &file, &block).is_ok() {}
        }
    }

    fn mend(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.mount.join("filler")
    }

    fn state(&self, name: &str) -> Vec<PathBuf> {
        let dir = self.mount.join("state").join(name);
        std::fs::read_dir(dir).map(|all| all.map(|entry| entry.unwrap().path()).collect()).unwrap_or_default()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.mount).status();
    }
}

fn counts(project: &Project, file: &str) -> BTreeMap<String, usize> {
    project.lines(file).into_iter().fold(BTreeMap::new(), |mut counts, line| {
        *counts.entry(line).or_default() += 1;
        counts
    })
}

/// The steps that the newest run has completed, as its report tells.
fn completed(project: &Project) -> Vec<String> {
    let report = project.report();
    let steps = report["steps"].as_array().expect("a list").iter();
    let done = steps.filter(|step| step["outcome"]["outcome"] == "succeeded");
    done.map(|step| step["id"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn a_run_cannot_begin_on_a_full_disk_and_leaves_nothing_behind() {
    let Some(disk) = SmallDisk::new(8) else { return };
    disk.project.runbook("job", "", "- { id: one, effect: idempotent, run: 'echo one >> done' }");
    disk.project.run(&["runs"]).expect(0);
    disk.fill();
    let refused = disk.project.run(&["run", "job"]).expect(7);
    for text in ["No space left on device", "help:", "df "] {
        assert!(refused.stderr.contains(text), "no {text}: {}", refused.stderr);
    }
    assert_eq!(disk.project.lines("done"), [""; 0]);
    assert!(disk.state("runs").is_empty(), "half a run would be found by `latest`");
    let records: Vec<_> = disk
        .state("locks")
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e != "lock"))
        .collect();
    assert!(records.is_empty(), "nobody could ever give this lock back");
    disk.mend();
    disk.project.run(&["run", "job"]).expect(0);
    assert_eq!(disk.project.lines("done"), ["one"]);
}

#[test]
fn output_that_a_full_disk_cannot_take_is_told_and_does_not_end_the_step() {
    let Some(disk) = SmallDisk::new(8) else { return };
    disk.project.runbook(
        "job",
        "",
        "
- id: fill
  effect: idempotent
  run: |
    echo before
    head -c 100M /dev/zero > disk/filler || true
    for n in $(seq 1 2000); do echo \"a line of output, number $n\"; done
- { id: after, effect: idempotent, run: 'rm disk/filler; echo room again' }",
    );
    let ran = disk.project.run(&["run", "job"]).expect(0);
    assert!(ran.stderr.contains("cannot be stored"), "it is told at once: {}", ran.stderr);
    assert_eq!(
        ran.stderr.matches("cannot be stored, and the step goes on").count(),
        1,
        "and once: {}",
        ran.stderr
    );
    assert!(ran.stdout.contains("of its output could not be stored"), "in the report: {}", ran.stdout);
    assert!(ran.stdout.contains("No space left on device"), "{}", ran.stdout);
    let logs = disk.project.run(&["logs"]).expect(0).stdout;
    assert!(logs.contains("before") && logs.contains("room again"), "{logs}");
}

#[test]
fn a_journal_on_a_full_disk_stops_the_run_which_resumes_when_there_is_room() {
    let Some(disk) = SmallDisk::new(8) else { return };
    disk.project.runbook(
        "job",
        "",
        "
- { id: fill, effect: idempotent, run: 'head -c 100M /dev/zero > disk/filler || true' }
- { id: many, effect: idempotent, for_each: '{{ range(400) | list }}', run: 'echo {{ item }} >> done' }
- { id: after, effect: idempotent, run: 'echo after >> done' }",
    );
    let stopped = disk.project.run(&["run", "job"]).expect(7);
    for text in ["LB0313", "journal.db", "the disk is full", "make room", "then: lifeboat resume"] {
        assert!(stopped.stderr.contains(text), "no {text}: {}", stopped.stderr);
    }
    let before = counts(&disk.project, "done");
    assert!(before.len() < 400 && !before.contains_key("after"), "{before:?}");
    // Looking at it works although there is no room.
    let status = disk.project.run(&["status"]).expect(0);
    assert!(status.stdout.contains("lifeboat resume"), "{}", status.stdout);
    disk.project.run(&["runs"]).expect(0);

    disk.mend();
    // The step that fills the disk is complete and does not run again: this would stop it once more.
    disk.project.run(&["resume"]).expect(0);
    let after = counts(&disk.project, "done");
    assert_eq!(after.len(), 401, "{after:?}");
    let twice: Vec<_> = after.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.len() <= 1, "only the one that was running: {twice:?}");
}

/// A project behind a disk that a step breaks, once it has begun.
fn breaking(rule: &str) -> (Project, FaultyDisk) {
    let project = Project::with_steps(
        "
- { id: first, effect: idempotent, run: 'echo first >> done' }
- { id: breaks, effect: idempotent, run: 'echo breaks >> done; test -e mended || cp next faults/rules' }
- { id: after, effect: idempotent, run: 'echo after >> done' }",
    );
    project.write("next", &format!("{rule}\n"));
    std::fs::create_dir(project.file("faults")).unwrap();
    let disk = FaultyDisk::make(&project.file("faults"));
    (project, disk)
}

fn behind(disk: &FaultyDisk, project: &Project, args: &[&str]) -> Ran {
    Ran::of(disk.before(&mut project.command(args)))
}

#[test]
fn a_journal_whose_disk_fails_stops_the_run_which_resumes_when_it_is_mended() {
    for (rule, said) in [
        ("write EIO */journal.db-wal", "a write was refused"),
        ("sync EIO */journal.db-wal", "a sync was refused"),
        // A kernel tells only once that what it had taken is lost: that the next sync succeeds means nothing.
        ("sync EIO-once */journal.db-wal", "a sync was refused"),
    ] {
        let (project, disk) = breaking(rule);
        let stopped = behind(&disk, &project, &["run", "job"]).expect(7);
        for text in ["LB0313", "journal.db", said, "nothing further was started", "then: lifeboat resume"] {
            assert!(stopped.stderr.contains(text), "{rule}: no {text}: {}", stopped.stderr);
        }
        assert_eq!(project.lines("done"), ["first", "breaks"], "{rule}: what is not recorded does not begin");
        project.run(&["status"]).expect(0);
        std::fs::write(project.file("faults/rules"), "").unwrap();
        project.write("mended", "");
        behind(&disk, &project, &["resume"]).expect(0);
        let after = counts(&project, "done");
        assert_eq!((after["first"], after["after"]), (1, 1), "{rule}: {after:?}");
        assert!(after["breaks"] <= 2, "{rule}: {after:?}");
    }
}

#[test]
fn a_journal_that_cannot_be_read_is_named_and_nothing_is_begun_or_made_up() {
    let (project, disk) = breaking("write EIO */journal.db-wal");
    behind(&disk, &project, &["run", "job"]).expect(7);
    std::fs::write(project.file("faults/rules"), "read EIO */journal.db\n").unwrap();
    project.write("mended", "");
    for command in ["status", "resume", "report"] {
        let refused = behind(&disk, &project, &[command]);
        assert!(refused.exit == 7, "{command}: {}", refused.all());
        assert!(
            refused.stderr.contains("journal.db") && refused.stderr.contains("help:"),
            "{command}: {}",
            refused.stderr
        );
    }
    assert_eq!(project.lines("done"), ["first", "breaks"]);
    std::fs::write(project.file("faults/rules"), "").unwrap();
    behind(&disk, &project, &["resume"]).expect(0);
    assert_eq!(counts(&project, "done")["after"], 1);
}

#[test]
fn a_decision_that_a_full_disk_cannot_take_is_refused_and_can_be_given_again() {
    let Some(disk) = SmallDisk::new(8) else { return };
    disk.project.runbook("job", "", "- { id: ask, uses: approval, with: { message: 'Go on?' } }");
    disk.project.run(&["run", "job", "--no-wait"]).expect(6);
    disk.fill();
    let refused = disk.project.run(&["approve"]).expect(7);
    assert!(
        refused.stderr.contains("inbox") && refused.stderr.contains("No space left"),
        "{}",
        refused.stderr
    );
    let run = disk.state("runs").remove(0);
    assert_eq!(std::fs::read_dir(run.join("inbox")).unwrap().count(), 0, "not even half a request");
    disk.project.run(&["status"]).expect(0);
    disk.project.run(&["runs"]).expect(0);
    disk.mend();
    disk.project.run(&["approve"]).expect(0);
    disk.project.run(&["resume"]).expect(0);
}

#[test]
fn a_report_that_cannot_be_written_is_told_and_changes_nothing_of_the_run() {
    let Some(disk) = SmallDisk::new(8) else { return };
    disk.project.runbook("job", "", "- { id: one, effect: idempotent, run: 'true' }");
    disk.project.run(&["run", "job"]).expect(0);
    disk.fill();
    let target = disk.mount.join("report.html");
    let refused =
        disk.project.run(&["report", "--format", "html", "--output", target.to_str().unwrap()]).expect(4);
    assert!(refused.stderr.contains("No space left"), "{}", refused.stderr);
    assert!(!target.exists() && !disk.mount.join("report.html.new").exists(), "no half report");
    disk.project.run(&["report"]).expect(0);
}

/// Runs the program with a limit on the size of files: the kernel refuses every write beyond it, for anybody.
fn limited(project: &Project, kib: u32, args: &[&str]) -> Ran {
    let program = project.command(args);
    let mut command = Command::new("bash");
    command
        .args(["-c", &format!("trap '' XFSZ; ulimit -f {kib}; exec \"$@\""), "bash"])
        .arg(program.get_program())
        .args(args)
        .current_dir(project.path())
        .env("NO_COLOR", "1")
        .stdin(Stdio::null());
    Ran::of(&mut command)
}

#[test]
fn wherever_the_kernel_refuses_a_write_the_run_stops_and_goes_on_later() {
    let steps: String = (0..12)
        .map(|n| format!("- {{ id: s{n}, effect: idempotent, run: 'echo s{n} >> done' }}\n"))
        .collect();
    let (mut stopped, mut refused, mut known) = (0, 0, 0);
    for kib in [0, 2, 8, 24, 40, 56, 72, 88, 104, 120, 136, 152, 168, 184, 200] {
        let project = Project::with_steps(&steps);
        let ran = limited(&project, kib, &["run", "job"]);
        if ran.exit == 0 {
            continue;
        }
        let ran = ran.expect(7);
        assert!(ran.stderr.contains(".lifeboat") && ran.stderr.contains("help:"), "{kib}: {}", ran.stderr);
        let runs = project.file(".lifeboat/state/runs");
        if std::fs::read_dir(&runs).map_or(0, Iterator::count) == 0 {
            refused += 1;
            assert_eq!(project.lines("done"), [""; 0], "{kib}: something began without a run");
            project.run(&["run", "job"]).expect(0);
            assert_eq!(project.lines("done").len(), 12);
            continue;
        }
        stopped += 1;
        assert!(
            ran.stderr.contains("LB0313") && ran.stderr.contains("lifeboat resume"),
            "{kib}: {}",
            ran.stderr
        );
        let (before, done) = (counts(&project, "done"), completed(&project));
        known += done.len();
        project.run(&["resume"]).expect(0);
        let after = counts(&project, "done");
        for step in &done {
            assert_eq!(before.get(step), after.get(step), "{kib}: `{step}` was complete and ran again");
        }
        assert_eq!(after.len(), 12, "{kib}: {after:?}");
        assert!(after.values().all(|count| *count <= 2), "{kib}: {after:?}");
    }
    assert!(refused >= 2, "{refused} limits kept the run from beginning");
    assert!(stopped >= 3 && known >= 6, "{stopped} limits stopped it on its way, after {known} steps");
}

/// What `/dev/full` says to whoever writes to it.
#[test]
fn standard_output_that_takes_nothing_does_not_look_like_success_of_a_query() {
    let project = Project::with_steps("- { id: one, effect: idempotent, run: 'true' }");
    project.run(&["run", "job"]).expect(0);
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let status =
        project.command(&["report", "--format", "json"]).stdout(full).stderr(Stdio::null()).status().unwrap();
    assert!(!status.success(), "a report that nobody got is no success");
}

#[test]
fn a_thousand_steps_that_print_do_not_use_up_the_open_files() {
    let project = Project::with_steps(
        "- { id: many, effect: idempotent, for_each: '{{ range(150) | list }}', run: 'echo {{ item }}; echo {{ item }} >&2' }",
    );
    let mut command = Command::new("bash");
    let program = project.command(&[]);
    command
        .args(["-c", "ulimit -n 100; exec \"$@\"", "bash"])
        .arg(program.get_program())
        .args(["run", "job"])
        .current_dir(project.path())
        .stdin(Stdio::null());
    let ran = Ran::of(&mut command).expect(0);
    assert!(!ran.all().contains("stored"), "{}", ran.all());
    let logs = project.run(&["logs", "--step", "many[149]"]).expect(0).stdout;
    assert!(logs.contains("149"), "{logs}");
}

/// A run of lifeboat 0.1.0 with a journal of format 1.
const FORMAT_1: &str = include_str!("../../engine/tests/fixtures/journal-1.sql");

fn older(project: &Project) -> PathBuf {
    let run = project.file(".lifeboat/state/runs/01a1ff43-e202-770c-811e-14abf7969c8a");
    for dir in ["inbox", "output", "work"] {
        std::fs::create_dir_all(run.join(dir)).unwrap();
    }
    let state = project.file(".lifeboat/state");
    let mode = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o700);
    std::fs::set_permissions(state, mode).unwrap();
    database(&run.join("journal.db")).execute_batch(FORMAT_1).unwrap();
    run
}

fn database(path: &Path) -> rusqlite::Connection {
    rusqlite::Connection::open(path).unwrap()
}

#[test]
fn a_run_that_an_older_version_began_is_shown_answered_and_resumed() {
    let project = Project::new();
    older(&project);
    let runs = project.run(&["runs"]).expect(0);
    assert!(runs.stdout.contains("restore") && runs.stdout.contains("open"), "{}", runs.stdout);
    assert!(project.run(&["status"]).expect(0).stdout.contains("lifeboat approve"));
    project.run(&["approve"]).expect(0);
    // Its incident was long ago, so that its objective is missed.
    let resumed = project.run(&["resume"]).expect(5);
    assert!(!resumed.stderr.contains("first"), "what was complete does not run again: {}", resumed.stderr);
    assert_eq!(completed(&project).len(), 4);
}

#[test]
fn a_run_of_a_newer_version_is_refused_by_name_and_left_alone() {
    let project = Project::new();
    let run = older(&project);
    let path = run.join("journal.db");
    database(&path).execute_batch("PRAGMA user_version = 9; UPDATE meta SET engine = '7.3.1'").unwrap();
    let before = std::fs::read(&path).unwrap();
    for args in [&["resume", "f7969c8a"][..], &["status", "f7969c8a"], &["report", "f7969c8a"]] {
        let refused = project.run(args).expect(7);
        for text in ["LB0312", "journal format 9", "this program knows 3", "lifeboat 7.3.1"] {
            assert!(refused.stderr.contains(text), "no {text}: {}", refused.stderr);
        }
    }
    let runs = project.run(&["runs"]).expect(0);
    assert!(runs.stderr.contains("f7969c8a") && runs.stderr.contains("journal format 9"), "{}", runs.stderr);
    assert_eq!(std::fs::read(&path).unwrap(), before);
}
