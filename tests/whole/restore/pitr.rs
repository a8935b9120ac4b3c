//! A restore to a moment.

use super::machine::Tree;
use super::world::World;

#[test]
fn a_drill_restores_the_moment_before_the_incident_and_leaves_nothing() {
    let world = World::new();
    let (store, production) = (Tree::of(&world.file("store")), Tree::of(&world.source.root.join("postgres")));
    let sandbox = Tree::of(&world.file("sandbox"));
    world.drill(&[]).expect(0);
    world.assert_restored();

    world.assert_nothing_runs();
    sandbox.assert_unchanged(&world.file("sandbox"));
    store.assert_unchanged(&world.file("store"));
    production.assert_unchanged(&world.source.root.join("postgres"));

    let report = world.report();
    assert_eq!(report["outcome"]["state"], "succeeded");
    assert_eq!(report["rto"]["verdict"], "met", "{}", report["rto"]);
    assert_eq!(report["rpo"]["verdict"], "met", "{}", report["rpo"]);
    let created = report["created"].as_array().expect("a list");
    assert!(created.len() >= 5, "{created:?}");
    assert!(created.iter().all(|thing| thing["fate"] == "removed"), "{created:?}");
}
