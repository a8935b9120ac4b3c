//! The drill calendar, and what timers start.

use crate::project::Project;

const CALENDAR: &str = "project: test
drills:
  - { runbook: restore, environment: sandbox, every: 90d, inputs: { depth: full } }
schedules:
  - { runbook: backup, environment: sandbox, at: \"02:30\" }
  - { drill: restore, environment: sandbox, every: 6h, inputs: { depth: 'a \"b\" 100%' } }
";

fn project() -> Project {
    let project = Project::new();
    project.write("lifeboat.yaml", CALENDAR);
    project.runbook(
        "restore",
        "inputs: { depth: { type: string, description: How deep }, at: { type: timestamp, default: '{{ incident.started_at }}', description: When } }",
        "- { id: a, effect: idempotent, run: 'test ! -e broken' }",
    );
    project.runbook("backup", "", "- { id: a, effect: idempotent, run: 'echo backup >> done' }");
    project
}

#[test]
fn list_says_which_drills_are_overdue_and_a_drill_that_succeeds_mends_it() {
    let project = project();
    project.run(&["check", "--deny-warnings"]).expect(0);
    let ran = project.run(&["list"]).expect(0);
    assert!(ran.stdout.contains("restore in sandbox, every 90d"), "{}", ran.stdout);
    assert!(ran.stdout.contains("never drilled; OVERDUE"), "{}", ran.stdout);
    assert!(!project.file(".lifeboat").exists(), "looking writes nothing");
    let ran = project.run(&["list", "--overdue"]).expect(5);
    assert!(ran.stdout.contains("lifeboat drill restore --env sandbox"), "{}", ran.stdout);

    project.write("broken", "");
    project.run(&["drill", "restore", "--incident-at", "now", "-i", "depth=x"]).expect(4);
    let ran = project.run(&["list", "--overdue"]).expect(5);
    assert!(ran.stdout.contains("failed; OVERDUE"), "{}", ran.stdout);
    std::fs::remove_file(project.file("broken")).expect("a file");
    // A run is no drill.
    project.run(&["run", "restore", "--incident-at", "now", "-i", "depth=x"]).expect(0);
    project.run(&["list", "--overdue"]).expect(5);
    project.run(&["drill", "restore", "--incident-at", "now", "-i", "depth=x"]).expect(0);
    assert_eq!(project.run(&["list", "--overdue"]).expect(0).stdout, "");
    let listed = project.run(&["list", "--format", "json"]).expect(0).json();
    let restore =
        listed.as_array().expect("a list").iter().find(|it| it["runbook"] == "restore").expect("it");
    assert_eq!(restore["drills"][0]["overdue"], false);
    assert_eq!(restore["drills"][0]["last"]["outcome"], "succeeded");
}

#[test]
fn a_crontab_line_does_what_it_says() {
    let project = project();
    let ran = project.run(&["schedule", "cron"]).expect(0);
    let lines: Vec<_> = ran.stdout.lines().collect();
    assert!(lines[0].starts_with("30 2 * * * cd "), "{}", lines[0]);
    assert!(lines[1].starts_with("0 */6 * * * cd ") && lines[1].contains("100\\%"), "{}", lines[1]);
    for (line, fields) in [(lines[0], 5), (lines[1], 5)] {
        let command: String = line.splitn(fields + 1, ' ').last().expect("a command").replace("\\%", "%");
        let status = std::process::Command::new("sh").args(["-c", &command]).output().expect("a shell");
        assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    }
    assert_eq!(project.lines("done"), ["backup"]);
    let report = project.report();
    assert!(report.to_string().contains("a \\\"b\\\" 100%"), "the input arrives as written: {report}");
    assert!(
        project.run(&["schedule"]).expect(0).stdout.contains("every day at 02:30: run backup in sandbox")
    );
}

#[test]
fn systemd_units_are_written() {
    let project = project();
    project.run(&["schedule", "systemd", "--write", "units"]).expect(0);
    let read = |name: &str| std::fs::read_to_string(project.file(&format!("units/{name}"))).expect("a unit");
    assert!(read("lifeboat-backup-sandbox.timer").contains("OnCalendar=*-*-* 02:30:00"));
    assert!(read("lifeboat-drill-restore-sandbox.timer").contains("OnUnitActiveSec=21600s"));
    let service = read("lifeboat-drill-restore-sandbox.service");
    assert!(service.contains("drill restore --env sandbox --incident-at now --no-wait"), "{service}");
    assert!(service.contains(r#""depth=a \"b\" 100%%""#), "{service}");
}

#[test]
fn promises_that_cannot_be_kept_are_found() {
    let project = project();
    project.write("environments/production.yaml", "environment: production\nprotected: true\nresources: { files: { kind: files, path: /srv/x }, store: { kind: store, url: 'dir:///tmp/x' } }\n");
    project.write(
        "runbooks/wipe.yaml",
        "runbook: wipe\nenvironments: [production]\nsteps:\n  - { id: choose, uses: files.select_backup, with: { store: store } }\n  - { id: a, uses: files.restore, with: { files: files, store: store } }\n",
    );
    project.write(
        "lifeboat.yaml",
        "project: test
drills:
  - { runbook: restor, environment: sandbox, every: 90d }
  - { runbook: restore, environment: sandbx, every: 90d }
  - { runbook: restore, environment: sandbox, every: 90 }
  - { runbook: restore, environment: sandbox, every: 90d }
  - { runbook: restore, environment: sandbox, every: 90d, inputs: { depht: full } }
  - { runbook: wipe, environment: production, every: 90d }
schedules:
  - { runbook: wipe, environment: production, at: \"02:30\" }
  - { runbook: backup, environment: sandbox, at: \"2:30\" }
  - { runbook: backup, environment: sandbox, every: 90s }
  - { runbook: backup, environment: sandbox, at: \"02:30\", every: 1h }
  - { environment: sandbox, every: 1h }
  - { runbook: backup, environment: production, every: 1h }
",
    );
    let ran = project.run(&["check"]).expect(3);
    for text in [
        "error[LB0169]: there is no runbook `restor`",
        "lifeboat.yaml:3:16",
        "error[LB0169]: there is no environment `sandbx`",
        "error[LB0108]: `90` has no unit",
        "error[LB0169]: the input `depth` is not given",
        "has no key `depht`",
        "error[LB0140]",
        "lifeboat.yaml:8:35",
        "error[LB0167]: `wipe` destroys something and is started by a timer",
        "lifeboat.yaml:10:16",
        "error[LB0166]: `2:30` is not a time of day",
        "error[LB0166]: a timer cannot start something every 1m 30s",
        "a schedule has either `at` or `every`",
        "a schedule has either `runbook` or `drill`",
        "does not run in `production`",
    ] {
        assert!(ran.stdout.contains(text), "no {text}:\n{}", ran.stdout);
    }
}
