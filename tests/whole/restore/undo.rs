//! A recovery that a person ends before the restored server is promoted: what stood there comes back.

use lifeboat_engine::model::EventKind;

use super::world::World;
use crate::project::{Running, until};

fn world() -> World {
    let world = World::new();
    world.edit(
        "project/runbooks/restore.yaml",
        "cluster: db } }\n  - id: recover",
        "cluster: db, existing: move_aside } }\n  - id: recover",
    );
    // Files first, so that they are put in place before the person is asked.
    let files = "  - { id: uploads, uses: files.restore, with: { files: uploads, store: backups, target_time: \"{{ inputs.target_time }}\" } }\n";
    world.edit("project/runbooks/restore.yaml", files, "");
    world.edit("project/runbooks/restore.yaml", "  - { id: base,", &format!("{files}  - {{ id: base,"));
    world.write("sandbox/postgres/precious", "do not lose");
    world.write("sandbox/uploads/earlier", "of the day before");
    world
}

fn assert_as_before(world: &World) {
    let text = |name: &str| std::fs::read_to_string(world.file(name)).unwrap_or_default();
    assert_eq!(text("sandbox/postgres/precious"), "do not lose");
    assert_eq!(text("sandbox/uploads/earlier"), "of the day before");
    assert!(!world.file("sandbox/postgres/global").exists());
    let names = std::fs::read_dir(world.file("sandbox")).expect("the sandbox").flatten();
    let names: Vec<_> = names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    assert!(!names.iter().any(|name| name.contains(".pre-")), "{names:?}");
    world.assert_servers(&[]);
}

#[test]
fn an_aborted_recovery_puts_everything_back_that_it_moved_aside() {
    let world = world();
    let incident = world.source.target.to_string();
    let args = ["run", "restore", "--env", "sandbox", "--incident-at", &incident];
    let running = Running::of(&mut world.command(&args));
    until("it asks", || world.events().iter().any(|event| matches!(event, EventKind::QuestionAsked { .. })));
    assert!(!world.file("sandbox/uploads/earlier").exists());
    let aborted = world.run(&["abort", "latest", "--reason", "wrong target", "--as", "sam"]).expect(0);
    assert!(aborted.stderr.contains("recover: the isolated server is stopped"), "{}", aborted.stderr);
    running.end().expect(4);
    assert_as_before(&world);
    let undone = |suffix: &str| {
        let names = std::fs::read_dir(world.file("sandbox")).expect("the sandbox").flatten();
        names.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(suffix))
    };
    assert!(undone("postgres.undone-") && undone("uploads.undone-"), "what was restored is kept");
}

#[test]
fn a_drill_that_fails_undoes_first_and_then_removes_what_it_made() {
    let world = world();
    world.edit(
        "project/runbooks/restore.yaml",
        "expect: [\"rows[0].n > 0\"]",
        "expect: [\"rows[0].n > 1000000\"]",
    );
    world.drill(&[]).expect(4);
    assert_as_before(&world);
    let names = std::fs::read_dir(world.file("sandbox")).expect("the sandbox").flatten();
    let mut names: Vec<_> = names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    assert_eq!(names, ["postgres", "uploads"], "nothing that the drill made is left");
}
