//! A recovery in the place of a damaged cluster, ended by a person: the damaged one is back, and starts.

use std::fs;
use std::io::Write;

use lifeboat_engine::model::EventKind;

use super::machine::{command, postgres_bin};
use super::world::World;
use crate::project::{Ran, Running, until};

/// A sandbox in which a cluster stands whose tables nobody can read any more, but one.
fn world() -> World {
    let world = World::new();
    world.edit(
        "project/runbooks/restore.yaml",
        "cluster: db } }\n  - id: recover",
        "cluster: db, existing: move_aside } }\n  - id: recover",
    );
    pg(&world, "initdb", &["-U", "postgres", "-E", "UTF8", "--locale=C", "--auth=trust", "--no-sync"]);
    start(&world);
    sql(&world, "create table earlier as select 42 as answer");
    sql(&world, "create table broken as select n from generate_series(1, 1000) n");
    let file = sql(&world, "select pg_relation_filepath('broken')");
    stop(&world);
    let file = world.file("sandbox/postgres").join(file);
    let mut file = fs::OpenOptions::new().write(true).open(file).expect("a file of the table");
    file.write_all(&[0xAA; 8192]).expect("damages it");
    world
}

fn pg(world: &World, program: &str, args: &[&str]) -> Ran {
    let mut command = command(postgres_bin().join(program), &world.file("sandbox"));
    Ran::of(command.arg("-D").arg(world.file("sandbox/postgres")).args(args)).expect(0)
}

fn start(world: &World) {
    let options =
        format!("-p {} -k {} -c listen_addresses=", world.postgres_port, world.file("sandbox").display());
    let log = world.file("earlier.log").display().to_string();
    pg(world, "pg_ctl", &["-w", "-l", &log, "-o", &options, "start"]);
}

fn stop(world: &World) {
    pg(world, "pg_ctl", &["-w", "-m", "fast", "stop"]);
}

fn sql(world: &World, sql: &str) -> String {
    let mut psql = command(postgres_bin().join("psql"), &world.file("sandbox"));
    psql.arg("-XAt").arg("-h").arg(world.file("sandbox")).args(["-p", &world.postgres_port.to_string()]);
    let ran = Ran::of(psql.args(["-U", "postgres", "-d", "postgres", "-c", sql])).expect(0);
    ran.stdout.trim().to_owned()
}

/// The cluster of before stands where it stood, with its damage, and starts; no server of the run is left.
fn assert_back(world: &World) {
    world.assert_servers(&[]);
    let names = fs::read_dir(world.file("sandbox")).expect("the sandbox").flatten();
    let names: Vec<_> = names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    assert!(!names.iter().any(|name| name.contains(".pre-") || name.contains("lifeboat")), "{names:?}");
    start(world);
    assert_eq!(sql(world, "select answer from earlier"), "42");
    stop(world);
}

fn recovery(world: &World) -> Running {
    let incident = world.source.target.to_string();
    Running::of(&mut world.command(&["run", "restore", "--env", "sandbox", "--incident-at", &incident]))
}

fn asks(event: &EventKind) -> bool {
    matches!(event, EventKind::QuestionAsked { .. })
}

const ABORT: [&str; 6] = ["abort", "latest", "--reason", "the earlier one is better", "--as", "sam"];

#[test]
fn an_aborted_recovery_in_place_brings_the_damaged_cluster_back_and_it_starts() {
    let world = world();
    let running = recovery(&world);
    until("it asks", || world.events().iter().any(asks));
    let report = world.report();
    let verified = report["steps"].as_array().expect("steps").iter().find(|step| step["id"] == "verify");
    assert_eq!(
        verified.expect("the step")["outcome"]["outcome"],
        "succeeded",
        "the restored one was looked at"
    );
    world.run(&ABORT).expect(0);
    running.end().expect(4);
    let kept = fs::read_dir(world.file("sandbox")).expect("the sandbox").flatten();
    let kept = kept.filter(|entry| entry.file_name().to_string_lossy().starts_with("postgres.undone-"));
    assert_eq!(kept.count(), 1, "what was restored is kept");
    assert_back(&world);
}

/// Kills the program as soon as its journal says something, and lets another command end the run.
fn killed_and_aborted(when: impl Fn(&EventKind) -> bool) {
    let world = world();
    let mut running = recovery(&world);
    until("it is there", || world.events().iter().any(&when) || running.has_ended());
    running.signal("KILL");
    drop(running);
    assert!(
        fs::read_dir(world.file("sandbox"))
            .expect("the sandbox")
            .flatten()
            .any(|entry| { entry.file_name().to_string_lossy().starts_with("postgres.pre-") })
    );
    let aborted = world.run(&ABORT).expect(0);
    assert!(aborted.stderr.contains("to carry it out: lifeboat resume"), "{}", aborted.all());
    let resumed = world.run(&["resume"]).expect(4);
    assert_eq!(world.report()["outcome"]["state"], "aborted", "{}", resumed.all());
    assert_back(&world);
}

#[test]
fn after_a_kill_while_files_are_unpacked_an_abort_brings_the_damaged_cluster_back() {
    killed_and_aborted(|event| match event {
        EventKind::ThingCreated { thing, .. } => thing.id == "note:db",
        _ => false,
    });
}

#[test]
fn after_a_kill_while_a_person_is_asked_an_abort_brings_the_damaged_cluster_back() {
    killed_and_aborted(asks);
}
