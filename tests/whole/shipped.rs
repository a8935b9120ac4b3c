//! The runbooks that come with the program.

use crate::project::Project;

const ENVIRONMENT: &str = "environment: sandbox
resources:
  uploads: { kind: files, path: ../uploads }
  copy: { kind: files, path: ../copy }
  backups: { kind: store, url: 'dir://../store' }
";

fn project() -> Project {
    let project = Project::new();
    project.write("environments/sandbox.yaml", ENVIRONMENT);
    project.write("uploads/a.txt", "one");
    project
}

#[test]
fn they_are_listed_apart_and_shown() {
    let project = project();
    let listed = project.run(&["list"]).expect(0).stdout;
    let (_, shipped) = listed.split_once("come with Lifeboat").expect("a part of their own");
    for name in [
        "backup-files",
        "backup-mariadb",
        "backup-postgres",
        "backup-redis",
        "drill-mariadb",
        "drill-postgres",
        "restore-files",
        "restore-mariadb",
        "restore-postgres",
        "restore-redis",
    ] {
        assert!(shipped.contains(&format!("builtin/{name} ")), "no {name}: {listed}");
    }
    let shown = project.run(&["show", "builtin/restore-postgres"]).expect(0).stdout;
    assert!(shown.contains("target_time") && shown.contains("in: sandbox (comes with Lifeboat"), "{shown}");
    let near = project.run(&["run", "builtin/restore-file", "--env", "sandbox"]).expect(2);
    assert!(near.stderr.contains("did you mean `builtin/restore-files`?"), "{}", near.stderr);
}

#[test]
fn a_backup_and_a_restore_are_run_and_called() {
    let project = project();
    project.run(&["run", "builtin/backup-files"]).expect(0);
    // A runbook of the same name in the project is another one.
    project.runbook("restore-files", "", "- { id: a, effect: read, run: 'true' }");
    project.runbook(
        "rehearse",
        "",
        "- { id: back, runbook: builtin/restore-files, with: { files: copy, target_time: '2999-01-01T00:00:00Z' } }\n\
         - { id: keep, effect: idempotent, run: 'cat copy/a.txt > seen; echo {{ steps.back.backup }} >> seen' }",
    );
    project.run(&["check", "--deny-warnings"]).expect(0);
    // The store has a backup of `uploads` only, which is named, for the target is called otherwise.
    let ran = project.run(&["run", "rehearse"]);
    assert_eq!(ran.exit, 0, "{}", ran.all());
    let seen = project.lines("seen");
    assert!(seen[0].starts_with("one"), "{seen:?}");
}

#[test]
fn those_for_servers_compile_for_a_project_that_has_them() {
    let project = Project::new();
    project.write(
        "environments/sandbox.yaml",
        "environment: sandbox\nresources:\n  db: { kind: postgres, data_dir: ../pg, port: 15439 }\n  \
         cache: { kind: redis, url: 'redis://127.0.0.1:16399', data_dir: ../redis }\n  \
         maria: { kind: mariadb, socket: ../maria.sock }\n  backups: { kind: store, url: 'dir://../store' }\n",
    );
    for (name, step) in [
        ("backup-postgres", "postgres.base_backup"),
        ("restore-postgres", "postgres.promote"),
        ("drill-postgres", "postgres.recover"),
        ("backup-redis", "redis.snapshot"),
        ("restore-redis", "redis.restore"),
        ("backup-mariadb", "mariadb.ship_binlogs"),
        ("restore-mariadb", "mariadb.replay_binlog"),
        ("drill-mariadb", "mariadb.clone"),
    ] {
        let mut words = vec!["plan".to_owned(), format!("builtin/{name}")];
        words.extend(["--incident-at", "2026-11-21T03:12:00Z"].map(ToOwned::to_owned));
        if name.ends_with("e-mariadb") || name == "backup-mariadb" {
            words.extend(["-i", "server=maria"].map(ToOwned::to_owned));
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let ran = project.run(&words).expect(0);
        assert!(ran.stdout.contains(step), "{name}: {}", ran.stdout);
    }
    // `db`, the default, is no MariaDB here, and nobody has named another.
    let ran = project.run(&["plan", "builtin/restore-mariadb", "--incident-at", "now"]).expect(2);
    assert!(ran.stderr.contains("`db` is a postgres in `sandbox`, not a mariadb"), "{}", ran.stderr);
    let ran = project
        .run(&["run", "builtin/restore-postgres", "-i", "cluster=cache", "--incident-at", "now"])
        .expect(2);
    assert!(ran.stderr.contains("`cache` is a redis in `sandbox`, not a postgres"), "{}", ran.stderr);
}
