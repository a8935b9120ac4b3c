//! `lifeboat plan --probe` against real stores and servers: what is found, and that nothing is changed.

use std::fs;
use std::process::Command;

use serde_json::Value;

use super::machine::{Server, Tree, command, free_port, postgres_bin};
use super::source::PASSWORD;
use super::world::World;
use crate::project::{Ran, until};

/// Probes the restore, and asserts that neither the store nor the sandbox nor a process is other than before.
fn probe(world: &World, more: &[&str]) -> Ran {
    let trees = ["store", "sandbox", "project"].map(|name| (name, Tree::of(&world.file(name))));
    let before = world.processes();
    let incident = world.source.target.to_string();
    let args = ["plan", "restore", "--env", "sandbox", "--drill", "--probe", "--incident-at", &incident];
    let ran = world.run(&[&args[..], more].concat());
    // A server needs a moment to see that a connection was closed.
    until("no process is left of the probe", || world.processes() == before);
    trees.iter().for_each(|(name, tree)| tree.assert_unchanged(&world.file(name)));
    ran
}

fn findings(world: &World, exit: i32) -> Vec<Value> {
    let plan = probe(world, &["--format", "json"]).expect(exit).json();
    plan["findings"].as_array().expect("a list").clone()
}

/// Asserts that something was found of a subject, in this state, with these words; returns it.
fn assert_found(findings: &[Value], subject: &str, what: &str, state: &str, words: &str) {
    let found = findings.iter().find(|it| it["subject"] == subject && it["what"] == what);
    let found = found.unwrap_or_else(|| panic!("no {what} of {subject} in {findings:#?}"));
    assert_eq!(found["state"], state, "{found:#}");
    let detail = found["detail"].as_str().expect("text");
    assert!(detail.contains(words), "no {words:?} in {found:#}");
    assert!(state == "ok" || state == "unknown" || found["help"].is_string(), "no help: {found:#}");
}

#[test]
fn what_a_restore_needs_is_found_and_nothing_is_changed() {
    let world = World::new();
    let found = findings(&world, 0);
    assert_found(&found, "backups", "list", "ok", "holds 3 backups");
    assert_found(&found, "backups", "newest usable backup", "ok", "before the target");
    assert_found(&found, "backups", "log", "ok", "none missing");
    assert_found(&found, "backups", "log reaches", "ok", "beyond the target");
    assert_found(&found, "backups", "estimated time", "ok", "(assumed: no earlier run has measured as much)");
    assert_found(&found, "backups (of cache)", "newest usable backup", "ok", "before the target");
    assert_found(&found, "backups (of uploads)", "newest usable backup", "ok", "before the target");
    assert_found(&found, "db", "login", "ok", "`base` restores it");
    assert_found(&found, "db", "programs", "ok", "as backup");
    assert_found(&found, "db", "free space", "ok", "are needed");
    assert_found(&found, "db", "place", "ok", "is free");
    assert_found(&found, "cache", "login", "ok", "`cache` restores it");
    assert_found(&found, "db.password", "secret", "ok", "can be read");
    let text = probe(&world, &[]).expect(0);
    assert!(text.stdout.contains("What was found: 0 failed, 0 warnings, 0 unknown"), "{}", text.stdout);
    assert!(!text.all().contains(PASSWORD), "{}", text.all());
}

/// The estimate is measured against the RTO as soon as there is something to measure it by: here by a drill.
#[test]
fn the_estimate_is_that_of_the_last_drill_and_held_against_the_rto() {
    let world = World::new();
    let incident = world.source.target.to_string();
    world.run(&["drill", "restore", "--env", "sandbox", "--incident-at", &incident]).expect(0);
    let found = findings(&world, 0);
    assert_found(&found, "backups", "estimated time", "ok", "base at ");
    assert_found(&found, "backups", "estimated time", "ok", "(measured by the last one of this project)");
    world.edit("project/runbooks/restore.yaml", "rto: 48h", "rto: 1ms");
    let found = findings(&world, 0);
    assert_found(&found, "backups", "estimated time", "warning", "more than the RTO of 1ms");
}

#[test]
fn a_missing_segment_a_missing_program_and_a_missing_secret_are_told_at_once() {
    let world = World::new();
    let wal = fs::read_dir(world.file("store/wal")).expect("a directory").next().expect("a cluster");
    let segments = fs::read_dir(wal.expect("an entry").path()).expect("a directory").flatten();
    let is_it = |name: String| name.starts_with(&world.source.middle_segment);
    let segment = segments
        .map(|entry| entry.path())
        .find(|path| is_it(path.file_name().expect("a name").to_string_lossy().into_owned()));
    fs::remove_file(segment.expect("the segment")).expect("removed");
    let environment = "project/environments/sandbox.yaml";
    world.edit(environment, "    kind: redis\n", "    kind: redis\n    bin_dir: /nonexistent/redis\n");
    let bin_dir = format!("bin_dir: {}", postgres_bin().display());
    world.edit(environment, &bin_dir, "bin_dir: /nonexistent/postgres");
    world.edit(environment, "vars:", "secrets: { app_key: { file: /nonexistent/key } }\nvars:");
    let found = findings(&world, 4);
    assert_found(&found, "backups", "log", "failed", &world.source.middle_segment);
    assert_found(&found, "cache", "program", "failed", "/nonexistent/redis/redis-");
    assert_found(&found, "db", "programs", "failed", "/nonexistent/postgres");
    assert_found(&found, "app_key", "secret", "failed", "/nonexistent/key");
    assert_found(&found, "backups", "list", "ok", "holds 3 backups");
}

#[test]
fn backups_older_than_the_rpo_are_told_as_a_missed_objective() {
    let world = World::new();
    world.edit("project/runbooks/restore.yaml", "rpo: 1h", "rpo: 1ms");
    let found = findings(&world, 5);
    for subject in ["backups (of cache)", "backups (of uploads)"] {
        assert_found(&found, subject, "newest usable backup", "failed", "older than the RPO of 1ms");
    }
    // The log of Postgres goes beyond the target: its backup may be as old as it is.
    assert_found(&found, "backups", "log reaches", "ok", "beyond the target");
    world.edit("project/runbooks/restore.yaml", "rpo: 1ms", "rpo: 1h");
    fs::rename(world.file("store/redis"), world.file("store/elsewhere")).expect("renamed");
    let found = findings(&world, 4);
    assert_found(&found, "backups (of cache)", "newest usable backup", "failed", "has no redis.rdb backup");
}

#[test]
fn servers_that_are_only_read_must_answer_and_take_the_password() {
    let world = World::new();
    let (postgres, redis) = (free_port(), free_port());
    world.copy(&world.source.root.join("postgres"), "copy");
    let environment = |password: &str| {
        format!(
            "environment: sandbox\nresources:\n  db: {{ kind: postgres, host: 127.0.0.1, port: {postgres}, password: {{ file: {}/{password} }} }}\n  cache: {{ kind: redis, url: 'redis://127.0.0.1:{redis}', password: {{ file: {}/{password} }} }}\n",
            world.source.root.display(),
            world.source.root.display()
        )
    };
    world.write("project/runbooks/restore.yaml", "runbook: restore\nenvironments: [sandbox]\nsteps:\n  - { id: ask, uses: postgres.query, with: { cluster: db, database: postgres, sql: select 1 as n } }\n  - { id: keys, uses: redis.verify, with: { server: cache } }\n");
    world.write("project/environments/sandbox.yaml", &environment("password"));
    let found = findings(&world, 4);
    assert_found(&found, "db", "login", "failed", "no Postgres answers");
    assert_found(&found, "cache", "login", "failed", "nothing listens");

    let mut server = command(postgres_bin().join("postgres"), &world.dir);
    server.arg("-D").arg(world.file("copy")).args(["-p", &postgres.to_string(), "-c", "archive_mode=off"]);
    server.arg("-k").arg(world.file("copy")).stderr(std::process::Stdio::null());
    let _postgres = Server::start(&mut server);
    let mut server = command("redis-server", &world.dir);
    server.args([
        "--port",
        &redis.to_string(),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--requirepass",
        PASSWORD,
    ]);
    let _redis = Server::start(&mut server);
    let listens = |port: u16| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
    until("both servers listen", || listens(postgres) && listens(redis));
    until("both servers answer", || {
        let plan = world.run(&["plan", "restore", "--drill", "--probe", "--format", "json"]);
        plan.exit == 0
    });
    let connections = || {
        let mut psql = command(postgres_bin().join("psql"), &world.dir);
        psql.args(["-XAtq", "-h", "127.0.0.1", "-U", "postgres", "-p", &postgres.to_string(), "-c"]);
        psql.arg("select count(*) from pg_stat_activity where application_name = 'lifeboat'");
        Ran::of(psql.env("PGPASSWORD", PASSWORD)).expect(0).stdout.trim().to_owned()
    };
    let found = findings(&world, 0);
    assert_found(&found, "db", "login", "ok", "`postgres` at 127.0.0.1");
    assert_found(&found, "db", "clock", "ok", "agrees");
    assert_found(&found, "cache", "login", "ok", "answers, Redis ");
    until("no connection is left", || connections() == "0");

    world.write("project/environments/sandbox.yaml", &environment("wrong-password"));
    let found = findings(&world, 4);
    assert_found(&found, "db", "login", "failed", "refused the login of `postgres`");
    assert_found(&found, "cache", "login", "failed", "cannot be used");
}

/// A file system of one mebibyte, unmounted with the value.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(dir: std::path::PathBuf) -> Option<Self> {
        fs::create_dir_all(&dir).expect("a directory");
        let mut mount = Command::new("mount");
        let status =
            mount.args(["-t", "tmpfs", "-o", "size=1m,mode=777", "lifeboat-test"]).arg(&dir).output();
        status.is_ok_and(|output| output.status.success()).then_some(Self(dir))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(&self.0).output());
    }
}

#[test]
fn a_disk_that_is_too_small_is_told_before_anything_is_written() {
    let world = World::new();
    let Some(small) = Small::mount(world.file("sandbox/small")) else {
        eprintln!("skipped: only root may mount a small file system, where mounting is allowed");
        return;
    };
    world.edit("project/environments/sandbox.yaml", "/sandbox/postgres", "/sandbox/small/postgres");
    let found = findings(&world, 4);
    assert_found(&found, "db", "free space", "failed", "are needed");
    drop(small);
}
