//! The runbooks that come with the program, on real servers. The backups are made by them too.

use super::machine::Tree;
use super::world::{RESTORE, World};

#[test]
fn the_shipped_runbooks_restore_everything_as_parts_of_another_one() {
    let world = World::new();
    let (head, rest) = RESTORE.split_once("steps:\n").expect("its steps");
    let look = rest.find("  - id: look\n").expect("the step that looks");
    let target = "with: { target_time: \"{{ inputs.target_time }}\" }";
    let steps = format!(
        "steps:\n  - {{ id: db, runbook: builtin/restore-postgres, {target} }}\n  \
         - {{ id: cache, runbook: builtin/restore-redis, {target} }}\n  \
         - {{ id: uploads, runbook: builtin/restore-files, {target} }}\n"
    );
    world.write("project/runbooks/restore.yaml", &format!("{head}{steps}{}", &rest[look..]));
    world.drill(&[]).expect(0);
    world.assert_restored();
    world.assert_nothing_runs();
    let report = world.report();
    assert_eq!(report["rpo"]["verdict"], "met", "{}", report["rpo"]);
    // What the backup held is there: the target lies before the damage.
    assert!(report.to_string().contains("rows of the backup are there"), "{report}");
    let ids = report["steps"].to_string();
    for id in ["db/choose", "db/promote", "cache/verify", "uploads/verify"] {
        assert!(ids.contains(id), "no {id}: {ids}");
    }
}

#[test]
fn the_drill_of_the_newest_backup_proves_it_and_leaves_nothing() {
    let world = World::new();
    let sandbox = Tree::of(&world.file("sandbox"));
    world.run(&["drill", "builtin/drill-postgres", "--env", "sandbox"]).expect(0);
    world.assert_nothing_runs();
    sandbox.assert_unchanged(&world.file("sandbox"));
    let report = world.report();
    let note = report["notes"][0]["text"].as_str().expect("what was proven");
    assert!(note.contains("segments of log were restored to 20"), "{note}");
    // The newest state is that after the damage, which is told, and fails a drill that asks for it.
    let told = |text: &str| text.contains("public.payments has") && text.contains("rows and had 20");
    assert!(told(&report.to_string()), "{report}");
    let strict = ["drill", "builtin/drill-postgres", "--env", "sandbox", "-i", "rows=not_fewer"];
    let failed = world.run(&strict).expect(4);
    assert!(
        failed.all().contains("LB1275") && failed.all().contains("public.payments has"),
        "{}",
        failed.all()
    );
}
