//! A recovery, as opposed to a drill: a person is asked, and the restored server goes into service.

use lifeboat_engine::model::EventKind;
use lifeboat_engine::model::event::AttemptResult;

use super::machine::{command, postgres_bin};
use super::source::PASSWORD;
use super::world::World;
use crate::project::{Ran, Running, until};

/// A world whose restored server archives into a store of its own: without that it would go on writing into the
/// archive that it came from, as its configuration says.
fn world() -> World {
    let world = World::new();
    let (root, dir) = (world.source.root.display().to_string(), world.dir.display().to_string());
    world.write("wal-put.json", &format!("{{ \"store\": \"dir://{dir}/next-store\" }}"));
    world.write("next-store/note", "where the restored server archives to");
    super::machine::hand_over(&world.file("next-store"));
    let adapt = format!(
        "  - id: adapt\n    effect: idempotent\n    run: sed -i 's#{root}/wal-put.json#{dir}/wal-put.json#' \
         {dir}/sandbox/postgres/postgresql.conf\n"
    );
    world.edit("project/runbooks/restore.yaml", "  - id: recover\n", &format!("{adapt}  - id: recover\n"));
    world
}

/// Starts the recovery and says go.
fn start(world: &World) -> Running {
    let incident = world.source.target.to_string();
    let args = ["run", "restore", "--env", "sandbox", "--incident-at", &incident];
    let running = Running::of(&mut world.command(&args));
    until("it asks", || world.events().iter().any(|event| matches!(event, EventKind::QuestionAsked { .. })));
    world.run(&["approve", "--as", "sam"]).expect(0);
    running
}

/// The restored server takes writes on its port, archives what it writes, and everything else runs once.
fn assert_in_service(world: &World) {
    world.assert_restored();
    let mut psql = command(postgres_bin().join("psql"), &world.dir);
    psql.args(["-XAtq", "-h", "127.0.0.1", "-U", "postgres", "-d", "members", "-p"])
        .arg(world.postgres_port.to_string());
    psql.args([
        "-c",
        "insert into payments values (1000) returning current_setting('archive_mode'), pg_is_in_recovery()",
    ]);
    assert_eq!(Ran::of(psql.env("PGPASSWORD", PASSWORD)).expect(0).stdout.trim(), "on|f");

    let promoted = world.events().into_iter().find_map(|event| match event {
        EventKind::AttemptFinished { step, result: AttemptResult::Succeeded { done }, .. }
            if step.as_str() == "promote" =>
        {
            Some(done.outputs)
        }
        _ => None,
    });
    let promoted = promoted.expect("it was promoted");
    assert_eq!(
        (&promoted["archiving"], &promoted["isolated"]),
        (&"proven".into(), &false.into()),
        "{promoted:?}"
    );
    assert_eq!(promoted["timeline"], 2);

    world.assert_servers(&["postgres", "redis-server", "sleep"]);
}

#[test]
fn a_recovery_puts_the_restored_server_into_service_and_keeps_it() {
    let world = world();
    start(&world).end().expect(0);
    assert_in_service(&world);
    let report = world.report();
    assert_eq!(report["questions"][0]["answer"]["by"]["name"], "sam");
    assert_eq!(report["questions"][0]["answer"]["automatic"], false);
}

#[test]
fn kill_9_while_the_promoted_server_goes_into_service() {
    let world = world();
    // So that it cannot come to its end, however late it is killed.
    world.gate.close();
    let running = start(&world);
    // Noted just before the isolated server is stopped, to be started with its own configuration.
    until("it goes into service", || {
        let is_noted =
            |event: &EventKind| matches!(event, EventKind::Recorded { key, .. } if key == "into_service");
        world.events().iter().any(is_noted)
    });
    running.signal("KILL");
    drop(running);
    world.gate.reopen();
    world.run(&["resume"]).expect(0);
    assert_in_service(&world);
}
