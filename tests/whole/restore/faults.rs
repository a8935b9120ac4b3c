//! What is wrong with backups, targets and files: one clear error each, and a target as it was before.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;

use super::machine::{Server, Tree, command, hand_over};
use super::world::World;
use crate::project::{Ran, until};

/// Asserts that an error with this code was shown, with all these words in the message and its help.
fn assert_says(shown: &str, code: &str, words: &[&str]) {
    assert!(shown.contains(code), "no {code} in:\n{shown}");
    // Lines are broken to fit a terminal.
    let flat = shown.split_whitespace().collect::<Vec<_>>().join(" ");
    for word in words {
        assert!(flat.contains(word), "no {word:?} in:\n{shown}");
    }
}

/// Runs the drill, which must fail in one step with a code, and asserts that nothing is left of it.
fn fails(world: &World, step: &str, code: &str) -> Ran {
    let (sandbox, store) = (Tree::of(&world.file("sandbox")), Tree::of(&world.file("store")));
    let before = world.processes();
    let ran = world.drill(&[]).expect(4);
    world.assert_run(&before);
    sandbox.assert_unchanged(&world.file("sandbox"));
    store.assert_unchanged(&world.file("store"));
    let failure = &world.report()["outcome"]["failure"];
    assert_eq!(
        (failure["step"].as_str(), failure["failure"]["code"].as_str()),
        (Some(step), Some(code)),
        "{failure}"
    );
    assert!(failure["failure"]["help"].as_str().is_some_and(|help| !help.is_empty()), "no help: {failure}");
    ran
}

/// The files of the store below a directory whose names begin like this.
fn stored(world: &World, dir: &str, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![world.file("store").join(dir)];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).expect("a directory").flatten() {
            if entry.path().is_dir() {
                open.push(entry.path());
            } else if entry.file_name().to_string_lossy().starts_with(name) {
                found.push(entry.path());
            }
        }
    }
    found
}

fn only(mut found: Vec<PathBuf>) -> PathBuf {
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[test]
fn a_missing_wal_segment_is_named_before_anything_is_touched() {
    let world = World::new();
    let segment = &world.source.middle_segment;
    fs::remove_file(only(stored(&world, "wal", segment))).expect("removed");
    let ran = fails(&world, "choose", "LB1222");
    assert_says(&ran.stderr, "LB1222", &[segment, "pg_wal of the old server"]);
}

#[test]
fn a_run_that_lacks_a_segment_goes_on_when_it_is_brought_back() {
    let world = World::new();
    let segment = only(stored(&world, "wal", &world.source.middle_segment));
    let elsewhere = world.file("segment");
    fs::rename(&segment, &elsewhere).expect("moved");
    // A recovery holds, so that somebody can help.
    let incident = world.source.target.to_string();
    let args = ["run", "restore", "--env", "sandbox", "--no-wait", "--incident-at", &incident];
    let ran = world.run(&args).expect(6);
    assert_says(&ran.stderr, "LB1222", &["lifeboat retry"]);
    fs::rename(&elsewhere, &segment).expect("moved back");
    world.run(&["retry", "latest", "choose"]).expect(0);
    // Nothing more is needed here than the proof that it goes on; a drill shows the rest.
    world.run(&["resume", "--no-wait"]).expect(6);
    let report = world.report();
    let base = report["steps"].as_array().expect("a list").iter().find(|step| step["id"] == "verify");
    assert_eq!(base.expect("the step")["outcome"]["outcome"], "succeeded");
}

#[test]
fn a_truncated_base_archive_is_found_and_nothing_of_it_stays() {
    let world = World::new();
    let archive = only(stored(&world, "base", "base.tar"));
    let whole = fs::metadata(&archive).expect("it is there").len();
    fs::OpenOptions::new().write(true).open(&archive).and_then(|file| file.set_len(whole / 2)).expect("cut");
    let ran = fails(&world, "choose", "LB1225");
    assert_says(&ran.stderr, "LB1225", &["base.tar"]);
}

#[test]
fn a_damaged_base_archive_of_the_right_size_is_found_while_it_is_unpacked() {
    let world = World::new();
    let archive = only(stored(&world, "base", "base.tar"));
    let mut bytes = fs::read(&archive).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle..middle + 64].fill(0);
    fs::write(&archive, bytes).expect("written");
    let ran = fails(&world, "base", "LB1255");
    assert_says(&ran.stderr, "LB1255", &["base.tar", "another"]);
}

#[test]
fn no_backup_from_before_the_target_is_said_with_the_oldest_there_is() {
    let world = World::new();
    let target = format!("target_time={}", world.source.before_backups);
    let ran = world.drill(&["-i", &target]).expect(4);
    assert_says(
        &ran.stderr,
        "LB1221",
        &["no base backup was finished before", "the oldest", "give a later target"],
    );
    assert_eq!(fs::read_dir(world.file("sandbox")).expect("a directory").count(), 0);
    world.assert_nothing_runs();
}

#[test]
fn an_occupied_port_is_named_with_who_holds_it() {
    let world = World::new();
    let listener = TcpListener::bind(("127.0.0.1", world.postgres_port)).expect("the port is free");
    let ran = fails(&world, "base", "LB1251");
    assert_says(&ran.stderr, "LB1251", &[&world.postgres_port.to_string()]);
    drop(listener);
    world.drill(&[]).expect(0);
    world.assert_restored();
}

#[test]
fn a_data_directory_that_is_not_empty_is_left_alone() {
    let world = World::new();
    world.write("sandbox/postgres/PG_VERSION", "15\n");
    world.write("sandbox/postgres/base/precious", "the only copy");
    hand_over(&world.file("sandbox"));
    let ran = fails(&world, "base", "LB1252");
    assert_says(&ran.stderr, "LB1252", &["sandbox/postgres is not empty", "existing: move_aside"]);
}

#[test]
fn the_wrong_password_is_said_when_a_backup_begins() {
    let world = World::new();
    let ran = &world.source.wrong_password;
    assert_eq!(ran.exit, 4, "{}", ran.all());
    assert_says(&ran.stderr, "LB1241", &["password"]);
    assert!(!ran.all().contains("not the password"), "the password was shown: {}", ran.all());
}

#[test]
fn the_wrong_password_of_a_restored_server_is_said() {
    let world = World::new();
    let password = format!("{}/password", world.source.root.display());
    let wrong = format!("{}/wrong-password", world.source.root.display());
    world.edit("project/environments/sandbox.yaml", &password, &wrong);
    // The private socket of the drill needs no password; the first program that logs in says it.
    let ran = fails(&world, "look", "LB1001");
    assert_says(&ran.stderr, "LB1001", &["password authentication failed for user", "lifeboat logs"]);
}

#[test]
fn a_redis_that_would_ignore_the_snapshot_is_refused() {
    let world = World::new();
    world.edit("project/environments/sandbox.yaml", "--appendonly, 'no'", "--appendonly, 'yes'");
    let ran = fails(&world, "cache", "LB1306");
    assert_says(&ran.stderr, "LB1306", &["appendonly yes", "append_only: rewrite"]);
}

/// Starts a server where the sandbox's would stand, with a key of its own.
fn start_redis(world: &World, settings: &[&str], password: &str) -> Server {
    fs::create_dir(world.file("sandbox/redis")).expect("a directory");
    hand_over(&world.file("sandbox"));
    let port = world.redis_port.to_string();
    let mut server = command("redis-server", &world.file("sandbox"));
    server.args(["--port", &port, "--bind", "127.0.0.1", "--dir"]).arg(world.file("sandbox/redis"));
    let server = Server::start(server.args(settings));
    until("Redis answers", || {
        let mut client = command("redis-cli", &world.dir);
        client.env("REDISCLI_AUTH", password).args(["-e", "-p", &port, "SET", "mine", "1"]);
        Ran::of(&mut client).exit == 0
    });
    server
}

#[test]
fn a_running_redis_that_would_ignore_the_snapshot_is_refused_and_stays_as_it_is() {
    let world = World::new();
    let _server = start_redis(&world, &["--appendonly", "yes"], "");
    let ran = fails(&world, "cache", "LB1306");
    assert_says(&ran.stderr, "LB1306", &["appendonly yes", "append_only: rewrite"]);
}

#[test]
fn the_wrong_password_of_redis_is_said_and_the_server_stays_as_it_is() {
    let world = World::new();
    let _server = start_redis(&world, &["--save", "", "--requirepass", "the right one"], "the right one");
    let password = format!("password: {{ file: {}/wrong-password }}", world.source.root.display());
    let file = "project/environments/sandbox.yaml";
    world.edit(file, "    kind: redis\n", &format!("    kind: redis\n    {password}\n"));
    let ran = fails(&world, "cache", "LB1301");
    assert_says(&ran.stderr, "LB1301", &["`cache`", "correct `password` of the resource"]);
}

#[test]
fn a_typo_in_the_runbook_is_shown_before_anything_runs() {
    let world = World::new();
    world.edit("project/runbooks/restore.yaml", "uses: postgres.recover", "uses: postgres.recovr");
    let ran = world.drill(&[]).expect(3);
    assert_says(&ran.all(), "LB0112", &["runbooks/restore.yaml:", "postgres.recovr", "`postgres.recover`"]);
    assert_eq!(world.events(), []);
    assert_eq!(fs::read_dir(world.file("sandbox")).expect("a directory").count(), 0);
}

/// Refused before a run exists; production, the sandbox and the store are untouched.
fn is_fenced(from: &str, to: &str, named: &str) {
    let world = World::new();
    let root = world.source.root.display().to_string();
    let from = from.replace("DIR", &world.dir.display().to_string());
    let from = from.replace("PG_PORT", &world.postgres_port.to_string());
    let from = from.replace("REDIS_PORT", &world.redis_port.to_string());
    let to = to.replace("DIR", &root).replace("PG_PORT", &world.source.postgres_port.to_string());
    let to = to.replace("REDIS_PORT", &world.source.redis_port.to_string());
    world.edit("project/environments/sandbox.yaml", &from, &to);
    let production = Tree::of(&world.source.root.join("postgres"));
    let incident = world.source.target.to_string();
    for command in ["drill", "run"] {
        let ran = world.run(&[command, "restore", "--env", "sandbox", "--incident-at", &incident]).expect(3);
        assert_says(
            &ran.all(),
            "LB0141",
            &[named, "protected environment `production`", "system of its own"],
        );
    }
    assert_eq!(world.events(), []);
    production.assert_unchanged(&world.source.root.join("postgres"));
    assert_eq!(fs::read_dir(world.file("sandbox")).expect("a directory").count(), 0);
}

#[test]
fn the_data_directory_of_a_protected_environment_is_fenced() {
    is_fenced("data_dir: DIR/sandbox/postgres", "data_dir: DIR/postgres", "`db` of `sandbox`");
}

#[test]
fn the_port_of_a_protected_environment_is_fenced() {
    is_fenced("port: PG_PORT", "port: PG_PORT", "`db` of `sandbox`");
}

#[test]
fn the_address_of_a_protected_redis_is_fenced() {
    is_fenced(
        "url: redis://127.0.0.1:REDIS_PORT",
        "url: redis://localhost:REDIS_PORT",
        "`cache` of `sandbox`",
    );
}

#[test]
fn a_link_to_what_a_protected_environment_names_is_fenced() {
    let world = World::new();
    std::os::unix::fs::symlink(world.source.root.join("postgres"), world.file("sandbox/link"))
        .expect("a link");
    world.edit("project/environments/sandbox.yaml", "/sandbox/postgres", "/sandbox/link");
    let ran = world.drill(&[]).expect(3);
    assert_says(&ran.all(), "LB0141", &["`db` of `sandbox`"]);
}
