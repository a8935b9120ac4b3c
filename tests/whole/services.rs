//! Services, logs and watching through the built program, where systemd and docker are stand-ins that write down how they
//! were called: the exact command lines are the contract.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::project::{Project, Ran, until};

/// What stands in for systemd and docker. Files say how things stand; `calls` keeps every command line.
const STAND_IN: &str = r#"#!/bin/bash
cd "$(dirname "$0")/.."
name=$(basename "$0")
echo "$name $*" >> calls
case "$name $*" in
  "systemctl show --property=LoadState -- shop") echo LoadState=loaded ;;
  "systemctl show --property=LoadState -- typo") echo LoadState=not-found ;;
  "systemctl show"*) cat unit ;;
  "systemctl reload"*) if [ -e broken ]; then echo "Job for shop failed." >&2; exit 1; fi ;;
  "systemctl stop"*) if [ -e stops ]; then printf 'LoadState=loaded\nActiveState=inactive\nMainPID=0\n' > unit; fi ;;
  "journalctl"*--output=cat*) echo "last words" ;;
  "journalctl"*) cat journal ;;
  "docker container inspect"*) cat container ;;
  "docker exec"*) if [ -e wrong ]; then echo "unknown directive" >&2; exit 1; fi ;;
  "docker kill"*) ;;
  "docker logs"*) echo "2026-11-22T00:00:01.5Z out"; echo "2026-11-22T00:00:02.5Z ERROR err" >&2 ;;
esac
"#;

const ENVIRONMENT: &str = "environment: sandbox
resources:
  shop: { kind: service, manager: systemd, unit: shop, test: [grep, -q, good, config] }
  web: { kind: service, manager: docker, container: web, test: [nginx, -t] }
";

fn project(steps: &str) -> Project {
    let project = Project::with_steps(steps);
    project.write("environments/sandbox.yaml", ENVIRONMENT);
    project.write("config", "good\n");
    project.write("unit", "LoadState=loaded\nActiveState=active\nMainPID=17\n");
    project.write("container", "true 17 2026-11-22T00:00:00Z healthy\n");
    for name in ["systemctl", "docker", "journalctl"] {
        project.write(&format!("bin/{name}"), STAND_IN);
        let path = project.file(&format!("bin/{name}"));
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("permissions");
    }
    project
}

/// Runs the only runbook with the stand-ins before all other programs.
fn run(project: &Project, args: &[&str]) -> Ran {
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", project.file("bin").display());
    Ran::of(project.command(args).env("PATH", path))
}

fn calls(project: &Project) -> Vec<String> {
    let mut calls = project.lines("calls");
    calls.dedup();
    calls
}

const SYSTEMD: &str = "systemctl show --property=LoadState,ActiveState,MainPID -- shop";
const DOCKER: &str = "docker container inspect --format {{.State.Running}} {{.State.Pid}} {{.State.StartedAt}} \
                      {{with .State.Health}}{{.Status}}{{end}} web";

#[test]
fn systemd_reloads_a_tested_configuration() {
    let project =
        project("- { id: reload, uses: service.reload, with: { service: shop, stable_for: 100ms } }");
    run(&project, &["run", "job"]).expect(0);
    assert_eq!(calls(&project), [SYSTEMD, "systemctl reload --no-ask-password -- shop", SYSTEMD]);

    project.write("config", "bad\n");
    project.write("calls", "");
    let ran = run(&project, &["run", "job"]).expect(4);
    assert!(ran.all().contains("LB1522") && ran.all().contains("nothing was reloaded"), "{}", ran.all());
    assert_eq!(calls(&project), [SYSTEMD]);

    project.write("config", "good\n");
    project.write("broken", "");
    let ran = run(&project, &["run", "job"]).expect(4);
    assert!(ran.all().contains("Job for shop failed."), "{}", ran.all());
}

#[test]
fn docker_tests_within_the_container_and_its_health_counts() {
    let steps = "- { id: reload, uses: service.reload, with: { service: web, stable_for: 100ms, ready_timeout: 1s } }";
    let project = project(steps);
    run(&project, &["run", "job"]).expect(0);
    assert_eq!(calls(&project), [DOCKER, "docker exec web nginx -t", "docker kill --signal=HUP web", DOCKER]);
    project.write("wrong", "");
    let ran = run(&project, &["run", "job"]).expect(4);
    assert!(ran.all().contains("unknown directive"), "{}", ran.all());
    fs::remove_file(project.file("wrong")).expect("removed");
    project.write("container", "true 17 2026-11-22T00:00:00Z unhealthy\n");
    let ran = run(&project, &["run", "job"]).expect(4);
    assert!(ran.all().contains("its own health check says `unhealthy`"), "{}", ran.all());
}

#[test]
fn a_unit_that_runs_after_it_was_stopped_was_not_stopped() {
    let project = project("- { id: stop, uses: service.stop, with: { service: shop } }");
    let ran = run(&project, &["run", "job"]).expect(4);
    assert!(
        ran.all().contains("LB1524")
            && ran.all().contains("`systemctl stop --no-ask-password -- shop` has ended, and it runs"),
        "{}",
        ran.all()
    );
    project.write("stops", "");
    run(&project, &["run", "job"]).expect(0);
}

#[test]
fn a_unit_that_is_started_again_and_again_is_not_up() {
    // Each time that systemd is asked it is another process.
    let project = project("- { id: start, uses: service.start, with: { service: shop, stable_for: 30s } }");
    let restless = STAND_IN.replace(
        "cat unit ;;",
        r"if [ -e started ]; then n=$(wc -l < calls); else n=0; fi
    if [ $n = 0 ]; then s=inactive; else s=active; fi; printf 'LoadState=loaded\nActiveState=%s\nMainPID=%s\n' $s $n ;;
  'systemctl start'*) touch started ;;",
    );
    project.write("bin/systemctl", &restless);
    let ran = run(&project, &["run", "job"]).expect(4);
    let all = ran.all();
    assert!(all.contains("LB1503") && all.contains("just after it had become ready"), "{all}");
    assert!(all.contains("last words"), "{all}");
}

#[test]
fn the_journal_of_a_unit_is_read_and_shown_without_its_length() {
    let steps = "- id: quiet\n  uses: logs.check\n  with: { service: shop, since: '2026-11-22T00:00:00Z', deny: [{ pattern: ERROR }] }";
    let project = project(steps);
    let entry = |at: u64, message: &str| {
        format!("{{\"__CURSOR\":\"s={at}\",\"__REALTIME_TIMESTAMP\":\"{at}000000\",\"MESSAGE\":{message}}}\n")
    };
    let before = entry(1_795_305_599, "\"ERROR before\"");
    project.write("journal", &format!("{before}{}", entry(1_795_305_601, "\"all is well\"")));
    run(&project, &["run", "job"]).expect(0);
    let line =
        "journalctl --no-pager --all --output=json --output-fields=MESSAGE --unit=shop --since=@1795305600";
    assert_eq!(calls(&project), ["systemctl show --property=LoadState -- shop", line]);
    // Bytes that are no text come as numbers.
    project.write("journal", &entry(1_795_305_601, "[69,82,82,79,82,32,255]"));
    let ran = run(&project, &["run", "job"]).expect(4);
    assert!(ran.all().contains("2026-11-22T00:00:01Z: ERROR \u{fffd}"), "{}", ran.all());
    project.write("environments/sandbox.yaml", &ENVIRONMENT.replace("unit: shop", "unit: typo"));
    let ran = run(&project, &["run", "job"]).expect(4);
    assert!(ran.all().contains("systemd has no unit `typo`"), "{}", ran.all());
}

#[test]
fn both_streams_of_a_container_are_looked_at() {
    let steps = "- id: quiet\n  uses: logs.check\n  with: { service: web, since: '2026-11-22T00:00:00Z', require: [{ pattern: out }], deny: [{ pattern: ERROR }] }";
    let project = project(steps);
    let ran = run(&project, &["run", "job"]).expect(4);
    assert!(ran.all().contains("2026-11-22T00:00:02.5Z: ERROR err"), "{}", ran.all());
    assert_eq!(calls(&project), ["docker logs --timestamps --since=2026-11-22T00:00:00Z web"]);
}

const WATCH: &str = "
- id: watch
  uses: observe
  with:
    every: 100ms
    for: 500ms
    limit: 60s
    checks: [{ name: alive, run: { script: 'echo look >> looks; if [ $(wc -l < looks) = 3 ]; then while [ ! -e go ]; do sleep 0.1; done; fi' } }]";

#[test]
fn watching_goes_on_after_a_kill_with_what_is_left() {
    let project = Project::with_steps(WATCH);
    let running = project.start(&["run", "job"]);
    until("its third look", || project.lines("looks").len() == 3);
    running.signal("KILL");
    running.end();
    project.write("go", "");
    let ran = project.run(&["resume"]).expect(0);
    assert!(ran.all().contains("the watching was interrupted once"), "{}", ran.all());
    // Looks are recorded every few seconds: those from before count, or are taken again.
    let looks = project.lines("looks").len() - 3;
    assert!((4..=6).contains(&looks), "{looks} more");
}

#[test]
fn mistakes_in_what_is_watched_are_found_before_the_run() {
    let steps = "- id: watch\n  uses: observe\n  with:\n    every: 10s\n    for: 15m\n    tolerate: { failures: 1, in_a_row: 2 }\n    checks:\n      - { name: health, http: { target: nowhere, gett: /health } }\n      - { name: health, logs: { file: a.log, deny: [{ pattern: '(' }] } }";
    let project = Project::with_steps(steps);
    let found = project.run(&["check"]).expect(3).all();
    for part in [
        "no resource `nowhere`",
        "`gett`",
        "there are two checks `health`",
        "unclosed group",
        "more failures in a row",
    ] {
        assert!(found.contains(part), "{part}: {found}");
    }
}
