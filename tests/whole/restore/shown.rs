//! Errors as people see them, whole.

use std::fs;

use super::world::World;
use crate::project::Ran;

/// What was shown, without what differs from run to run.
fn shown(world: &World, ran: &Ran) -> String {
    // The report goes on with measurements, which differ.
    let stdout = ran.stdout.split("\nObjectives\n").next().unwrap_or_default();
    let mut text = format!("exit {}\n--- stdout\n{stdout}--- stderr\n{}", ran.exit, ran.stderr);
    for (from, to) in [(&world.dir, "[world]"), (&world.source.root, "[production]")] {
        text = text.replace(&from.display().to_string(), to);
    }
    text.replace(&world.source.redis_port.to_string(), "[port]")
}

fn assert_shown(name: &str, world: &World, ran: &Ran) {
    let text = shown(world, ran);
    insta::with_settings!({
        omit_expression => true,
        prepend_module_to_snapshot => false,
        filters => vec![
            (r"\d{8}T\d{6}Z-[0-9a-f]{8}", "[backup]"),
            (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "[time]"),
            (r"\d{4}-\d\d-\d\d", "[date]"),
            (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "[run]"),
            (r"\b[0-9a-f]{64}\b", "[head]"),
            (r"\b(run|report|evidence|drill of restore in sandbox · run) [0-9a-f]{8}\b", "$1 [run]"),
            (r"\+\d\d:\d\d:\d\d", "+[clock]"),
            (r"\b\d\d:\d\d:\d\d\b", "[clock]"),
            (r"\b0{7}1[0-9A-F]{16}\b", "[segment]"),
            (r"\b(\d+m )?\d+(\.\d+)? ?m?s\b", "[span]"),
        ],
    }, { insta::assert_snapshot!(name, text) });
}

#[test]
fn a_missing_wal_segment() {
    let world = World::new();
    let wal = fs::read_dir(world.file("store/wal"))
        .expect("a directory")
        .next()
        .expect("a cluster")
        .expect("an entry");
    let segment = fs::read_dir(wal.path()).expect("a directory").flatten().map(|entry| entry.path());
    let is_it = |path: &std::path::PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&world.source.middle_segment))
    };
    fs::remove_file(segment.into_iter().find(is_it).expect("the segment")).expect("removed");
    assert_shown("a_missing_wal_segment", &world, &world.drill(&[]).expect(4));
}

#[test]
fn a_typo_in_the_runbook() {
    let world = World::new();
    let runbook = "project/runbooks/restore.yaml";
    world.edit(runbook, "uses: postgres.recover", "uses: postgres.recovr");
    world.edit(runbook, "steps.choose.backup", "steps.chose.backup");
    assert_shown("a_typo_in_the_runbook", &world, &world.drill(&[]).expect(3));
}

#[test]
fn a_system_of_a_protected_environment() {
    let world = World::new();
    let (own, theirs) = (world.redis_port.to_string(), world.source.redis_port.to_string());
    world.edit("project/environments/sandbox.yaml", &own, &theirs);
    assert_shown("a_system_of_a_protected_environment", &world, &world.drill(&[]).expect(3));
}
