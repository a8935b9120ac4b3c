//! What went wrong for users of other engines, as their issues tell it. See also `matrix`, which kills at every boundary of a
//! write (nextflow-io/nextflow#5600, dagucloud/dagu#2298), and `crash`, where a definition is edited in the middle of a run
//! (snakemake/snakemake#3234) and a child outlives its engine (kestra-io/kestra#19730).

use lifeboat_engine::model::event::{Decision, EventKind, Person};
use lifeboat_engine::model::{Request, StepId};

use crate::project::{Project, until};

const HOLDS: &str = "objective: { rto: 4h }\n";

/// Starts a run that is killed at a named place.
fn killed_at(project: &Project, args: &[&str], place: &str) {
    let output = project.command(args).env("LIFEBOAT_CRASH_AT", place).output().expect("the program starts");
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&output.status),
        Some(9),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A workflow that was stopped came back with its controller (argoproj/argo-workflows#15472, kestra-io/kestra#8334).
#[test]
fn a_run_that_was_cancelled_stays_cancelled_when_the_process_is_killed_before_it_acts() {
    let project = Project::new();
    let steps = "
- { id: first, effect: idempotent, run: 'echo first >> done', undo: 'echo undo >> done' }
- { id: long, effect: idempotent, run: 'touch here; sleep 300' }
- { id: after, effect: idempotent, run: 'echo after >> done' }";
    let always = "always:\n  - { id: last, effect: idempotent, run: 'echo last >> done' }\n";
    project.runbook("job", always, steps);
    // The cancel is durable, and the process dies before it has ended anything.
    let mut command = project.command(&["run", "job"]);
    command.env("LIFEBOAT_CRASH_AT", "RequestForgotten");
    let running = crate::project::Running::of(&mut command);
    until("the long step runs", || project.file("here").exists());
    project.run(&["cancel", "latest", "--reason", "wrong system"]);
    assert_eq!(running.end().exit, -1, "it was killed");
    assert_eq!(project.lines("done"), ["first"]);

    project.run(&["resume"]).expect(4);
    assert_eq!(project.lines("done"), ["first", "last"], "nothing of the run, no undo, but `always`");
    assert_eq!(project.report()["outcome"]["state"], "aborted");
    project.run(&["resume"]).expect(7);
}

/// "Retrying specific failed node does not work" (argoproj/argo-workflows#11279), and "RETRY also retries already
/// successful tasks upstream" (argoproj/argo-workflows#14796).
#[test]
fn a_retry_of_one_of_two_parallel_failures_repeats_that_one_and_nothing_before_it() {
    let project = Project::new();
    let steps = "
- { id: up, effect: idempotent, run: 'echo up >> done' }
- group: both
  parallel: true
  steps:
    - { id: left, effect: idempotent, run: 'echo left >> done; test -e mended' }
    - { id: right, effect: idempotent, run: 'echo right >> done; test -e never' }
- { id: down, effect: idempotent, recovered: true, run: 'echo down >> done' }";
    project.runbook("job", HOLDS, steps);
    project.run(&["run", "job"]).expect(6);
    project.write("mended", "");
    project.run(&["retry", "latest", "left"]).expect(0);
    let resumed = project.run(&["resume"]).expect(6);
    assert!(resumed.all().contains("right"), "the other one is still held: {}", resumed.all());
    let mut done = project.lines("done");
    done.sort();
    assert_eq!(done, ["left", "left", "right", "up"]);
    project.run(&["skip", "latest", "right", "--reason", "not needed"]).expect(0);
    project.run(&["resume"]).expect(0);
    assert_eq!(project.lines("done").last().map(String::as_str), Some("down"));
    assert_eq!(project.lines("done").iter().filter(|line| *line == "up").count(), 1);
}

/// Output of earlier steps (dagucloud/dagu#382), the working directory (#2111), the environment (#2225) and parameters
/// (#2267) were lost when a run was retried.
#[test]
fn outputs_directory_environment_and_inputs_survive_a_kill_and_a_resume_from_elsewhere() {
    let project = Project::new();
    project.write("sub/deep/marker", "");
    let head = "inputs: { region: { type: string }, count: { type: integer, default: 1 } }\n";
    let steps = "
- { id: first, effect: idempotent, run: 'echo out of {{ inputs.region }}' }
- id: second
  effect: idempotent
  dir: sub
  env: { FROM: '{{ steps.first.stdout }}', COUNT: '{{ inputs.count + 1 }}' }
  run: |
    test -e ../go || { touch ../here; sleep 300; }
    ls deep > ../seen; echo \"$FROM, $COUNT, $PWD, $LIFEBOAT_ATTEMPT\" >> ../seen";
    project.runbook("job", head, steps);
    let running = project.start(&["run", "job", "-i", "region=north", "-i", "count=41"]);
    until("the second step runs", || project.file("here").exists());
    running.signal("KILL");
    running.end();
    project.write("go", "");
    let mut resume = project.command(&["resume"]);
    let resumed = crate::project::Ran::of(
        resume.current_dir(project.file("sub/deep")).env("COUNT", "7").env("FROM", "here"),
    );
    resumed.expect(0);
    let sub = std::fs::canonicalize(project.file("sub")).expect("a directory");
    let line = format!("out of north, 42, {}, 2", sub.display());
    assert_eq!(project.lines("seen"), ["marker", &line]);
}

/// A queued run that could not even start was tried again for ever, and others waited behind it (dagucloud/dagu#2436).
#[test]
fn requests_that_cannot_be_granted_or_read_do_not_stand_in_the_way_of_others() {
    let project = Project::new();
    project.runbook(
        "job",
        HOLDS,
        "- { id: one, effect: idempotent, recovered: true, run: 'test -e mended' }",
    );
    project.run(&["run", "job"]).expect(6);
    let runs = std::fs::read_dir(project.file(".lifeboat/state/runs")).expect("runs");
    let run = runs.map(|run| run.expect("a run").path()).next().expect("one run");
    // Ids of version 7 sort by time: this one comes first.
    let poison = run.join("inbox/01890000-0000-7000-8000-000000000000.json");
    std::fs::write(&poison, "{ this is no request").expect("a file");
    // What the command would refuse at once may still be left by one that ran at the wrong moment.
    let by = Person { name: "sam".to_owned(), uid: 0 };
    let decision = Decision::RetryStep { step: StepId::new("nobody").expect("an id") };
    let request = serde_json::to_vec(&Request::Decide { by, decision }).expect("plain data");
    std::fs::write(run.join("inbox/01890000-0000-7000-8000-000000000001.json"), request).expect("a file");
    project.write("mended", "");
    project.run(&["retry", "latest", "one"]).expect(0);
    project.run(&["resume"]).expect(0);
    assert!(!poison.exists() && poison.with_extension("refused").exists(), "it is set aside");
    assert_eq!(
        std::fs::read_dir(run.join("inbox")).expect("an inbox").count(),
        1,
        "and nothing else is left"
    );
}

/// The poisoned element of a list: what it does to the others, and how it is left out (dagucloud/dagu#2436).
#[test]
fn an_element_that_always_fails_is_skipped_by_a_person_and_the_others_go_on() {
    let project = Project::new();
    let steps = "
- id: each
  for_each: [a, poison, c]
  effect: idempotent
  recovered: true
  retry: { attempts: 2, delay: 5ms }
  run: 'echo {{ item }} >> done; test {{ item }} != poison'";
    project.runbook("job", HOLDS, steps);
    project.run(&["run", "job"]).expect(6);
    assert_eq!(project.lines("done"), ["a", "poison", "poison"], "two attempts, and no third one by itself");
    project.run(&["resume"]).expect(6);
    assert_eq!(project.lines("done").len(), 3, "nor by a resume");
    project.run(&["skip", "latest", "each[1]", "--reason", "it is poison"]).expect(0);
    project.run(&["resume"]).expect(0);
    assert_eq!(project.lines("done"), ["a", "poison", "poison", "c"]);
}

/// A paused run and its deadlines (argoproj/argo-workflows#13722, temporalio/ui#3600): an attempt that runs keeps its time
/// limit, nothing follows from it before the run goes on, and the clock of the objective never stops.
#[test]
fn a_pause_stops_neither_the_clock_nor_a_time_limit_and_starts_nothing() {
    // On a busy machine a command may take longer than the step may.
    let in_time = ["1s", "10s", "1m"].into_iter().any(paused_within);
    assert!(in_time, "a pause takes more than a minute");
}

/// Pauses a run whose step has so much time; false if that, or the step when it runs again, was too late.
fn paused_within(limit: &str) -> bool {
    let project = Project::new();
    let head = "objective: { rto: 1s }\n";
    let steps = format!(
        "
- id: slow
  effect: idempotent
  recovered: true
  timeout: {limit}
  retry: {{ attempts: 3, delay: 5ms }}
  run: 'echo try >> done; test -e go || sleep 300'"
    );
    project.runbook("job", head, &steps);
    let running = project.start(&["run", "job", "--no-wait"]);
    until("the step runs", || !project.lines("done").is_empty());
    if project.run(&["pause", "latest"]).exit != 0 {
        return false;
    }
    running.end().expect(6);
    let (_, events) = lifeboat_engine::journal::read(&project.run_dir()).expect("a journal");
    let first = events.iter().find_map(|event| match &event.kind {
        EventKind::Decided { decision: Decision::Pause, .. } => Some(true),
        EventKind::AttemptFinished { .. } => Some(false),
        _ => None,
    });
    if first == Some(false) {
        return false;
    }
    assert_eq!(project.lines("done"), ["try"], "the attempt was ended by its limit, and no other one began");
    project.write("go", "");
    if project.run(&["resume", "--no-wait"]).exit != 5 {
        return false;
    }
    let report = project.report();
    let used = report["rto"]["used_ms"].as_i64().expect("a time");
    assert!(report["rto"]["verdict"] == "missed" && used > 1000, "{}", report["rto"]);
    true
}

/// What is left of a start that was killed is no run: it is not resumed, keeps no lock and is not listed.
#[test]
fn a_start_that_was_killed_leaves_nothing_that_stands_in_the_way() {
    let project = Project::with_steps("- { id: one, effect: idempotent, run: 'echo one >> done' }");
    for place in ["LockRemembered", "RunDirMade", "RunDirComplete", "JournalLaidOut", "JournalNamed"] {
        killed_at(&project, &["run", "job"], place);
    }
    assert_eq!(project.lines("done"), [""; 0]);
    let ids: Vec<_> = std::fs::read_dir(project.file(".lifeboat/state/runs"))
        .expect("runs")
        .map(|run| run.expect("a run").file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(ids.len(), 4, "one place is before the directory");
    let refusals: Vec<_> = ids.iter().map(|id| project.run(&["resume", id]).expect(7).stderr).collect();
    assert!(
        refusals.iter().any(|text| text.contains("LB0315") && text.contains("lifeboat run")),
        "{refusals:?}"
    );
    project.run(&["run", "job"]).expect(0);
    assert_eq!(project.lines("done"), ["one"]);
    let listed = project.run(&["runs", "--format", "json"]).expect(0).stdout;
    assert!(ids.iter().all(|id| !listed.contains(id.as_str())), "{listed}");
    assert_eq!(project.report()["outcome"]["state"], "succeeded", "`latest` is the real one");
}
