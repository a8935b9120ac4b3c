//! Restores from a bucket: to the moment, to the end, and nothing is ever written there.

use std::fs;

use super::machine::Tree;
use super::remote::Remote;
use super::world::World;

#[test]
fn a_drill_from_a_bucket_restores_the_moment_before_the_incident_and_changes_nothing_in_it() {
    let remote = Remote::whole();
    remote.world.drill(&[]).expect(0);
    remote.world.assert_restored();
    remote.assert_as_before();
    let report = remote.world.report();
    assert_eq!(report["rto"]["verdict"], "met", "{}", report["rto"]);
    assert_eq!(report["rpo"]["verdict"], "met", "{}", report["rpo"]);
}

/// Everything that was written, the damage included.
fn assert_at_the_end(world: &World) {
    let found =
        |name: &str| fs::read_to_string(world.file("project/found").join(name)).expect("the runbook looked");
    let after = world.source.rows.iter().filter(|row| row.asked >= world.source.target);
    let payments = found("payments");
    for row in after {
        assert!(payments.lines().any(|id| id == row.id.to_string()), "lost: {row:?} in {payments}");
    }
    assert!(!payments.lines().any(|id| id == "1"), "the deletion was replayed");
    // Each row that was inserted by itself came with one heartbeat.
    let beats: usize = found("heartbeat").trim().parse().expect("a number");
    let alone = world.source.rows.iter().filter(|row| row.id > super::source::OLD_ROWS).count();
    assert_eq!(beats, alone);
}

/// Takes the target out of the runbook: the end of the log.
fn to_the_end(world: &World) {
    world.edit("project/runbooks/restore.yaml", ", target_time: \"{{ inputs.target_time }}\"", "");
    world.drill(&[]).expect(0);
    assert_at_the_end(world);
    let report = world.report();
    let steps = report["steps"].as_array().expect("a list");
    let recover = steps.iter().find(|step| step["id"] == "recover").expect("the step");
    assert_eq!(recover["outcome"]["outcome"], "succeeded", "{recover}");
}

#[test]
fn a_bucket_is_replayed_to_its_end() {
    let remote = Remote::postgres();
    to_the_end(&remote.world);
    remote.assert_as_before();
}

#[test]
fn a_directory_is_replayed_to_its_end() {
    let remote = Remote::postgres();
    let world = World::new();
    // The runbook of the other one, which has the database alone.
    let runbook = fs::read_to_string(remote.world.file("project/runbooks/restore.yaml")).expect("reads");
    let (from, to) = (remote.world.dir.display().to_string(), world.dir.display().to_string());
    world.write("project/runbooks/restore.yaml", &runbook.replace(&from, &to));
    world.write("go", "");
    let (store, sandbox) = (Tree::of(&world.file("store")), Tree::of(&world.file("sandbox")));
    to_the_end(&world);
    store.assert_unchanged(&world.file("store"));
    sandbox.assert_unchanged(&world.file("sandbox"));
    world.assert_nothing_runs();
}
