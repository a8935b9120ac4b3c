//! Systems that a run makes: a drill that touches nothing that is there, killed and resumed.

use lifeboat_engine::model::EventKind;
use lifeboat_engine::model::evidence::CreatedKind;

use super::machine::Tree;
use super::world::World;
use crate::project::until;

/// Restores both databases into systems of the run's own, and looks at them as an application would.
const REHEARSE: &str = r#"runbook: restore
title: Prove the backups without touching anything
environments: [sandbox, production]
objective: { rto: 48h, rpo: 1h }
inputs:
  target_time: { type: timestamp, default: "{{ incident.started_at }}", description: Just before this moment }
steps:
  - group: clones
    parallel: true
    steps:
      - id: clone
        uses: postgres.clone
        with:
          store: backups
          bin_dir: BIN_DIR
          target_time: "{{ inputs.target_time }}"
          heartbeat: { database: members, table: heartbeat, column: at }
      - { id: sessions, uses: redis.clone, with: { store: backups, target_time: "{{ inputs.target_time }}" } }
  - id: verify
    uses: postgres.verify
    with:
      cluster: { from: clone }
      queries:
        - { name: payments, database: members, sql: select count(*) as n from payments, expect: ["rows[0].n > 20"] }
        - name: waits for the test
          database: members
          sql: >-
            with recursive wait as (select 0 as n union all select n + 1 from wait, pg_sleep(0.02)
            where (pg_stat_file('DIR/go', true)).size is null) select count(*) as n from wait
          expect: ["rows[0].n > 0"]
  - { id: keys, uses: redis.verify, with: { server: { from: sessions }, expect: [keys == 2] } }
  - id: look
    effect: read
    recovered: true
    env:
      DATABASE_URL: { connection: { from: clone }, database: members }
      REDIS_SOCKET: "{{ steps.sessions.socket }}"
    run: |
      PROGRAM -XAtc 'select count(*) from payments' "$DATABASE_URL" >"$LIFEBOAT_PROJECT_DIR/payments"
      redis-cli -s "$REDIS_SOCKET" GET greeting >"$LIFEBOAT_PROJECT_DIR/greeting"
"#;

fn world() -> World {
    let world = World::new();
    let psql = super::machine::postgres_bin().join("psql");
    let text = REHEARSE
        .replace("PROGRAM", &psql.display().to_string())
        .replace("BIN_DIR", &super::machine::postgres_bin().display().to_string())
        .replace("DIR/go", &world.file("go").display().to_string())
        .replace("$LIFEBOAT_PROJECT_DIR", &world.file("project").display().to_string());
    world.write("project/runbooks/restore.yaml", &text);
    world.write("go", "");
    world.edit("project/environments/production.yaml", "/store' }", "/store', access: read }");
    world
}

fn clones(world: &World) -> Vec<(String, u32)> {
    let all = world.processes().into_iter();
    let servers = all.filter(|process| {
        let is_server = process.name == "redis-server" || process.command.contains("-D");
        is_server && process.command.contains("lifeboat-")
    });
    servers.map(|process| (process.name, process.pid)).collect()
}

#[test]
fn a_drill_on_clones_is_killed_resumed_and_leaves_nothing() {
    let world = world();
    let (store, sandbox) = (Tree::of(&world.file("store")), Tree::of(&world.file("sandbox")));
    let incident = world.source.target.to_string();
    let plan = world.run(&["plan", "restore", "--env", "sandbox", "--drill", "--incident-at", &incident]);
    let plan = plan.expect(0);
    assert!(plan.stdout.contains("made by `clone`"), "{}", plan.stdout);

    std::fs::remove_file(world.file("go")).expect("removes");
    let mut running = world.start_drill(&[]);
    let verifying = |event: &EventKind| matches!(event, EventKind::AttemptStarted { step, .. } if step.as_str() == "verify");
    until("the clone is looked at", || world.events().iter().any(verifying) || running.has_ended());
    running.signal("KILL");
    drop(running);
    let before = clones(&world);
    assert_eq!(before.len(), 2, "both clones outlive the program: {:#?}", world.processes());

    let made = |world: &World| {
        let is_server = |event: &EventKind| matches!(event, EventKind::ThingCreated { thing, .. } if matches!(thing.kind, CreatedKind::Process { .. }));
        world.events().iter().filter(|event| is_server(event)).count()
    };
    let servers = made(&world);
    world.write("go", "");
    world.run(&["resume"]).expect(0);
    assert_eq!(made(&world), servers, "the servers were adopted, not started again");
    let found = |name: &str| std::fs::read_to_string(world.file("project").join(name)).expect("looked at");
    assert!(found("payments").trim().parse::<u32>().expect("a number") > 20);
    assert_eq!(found("greeting").trim(), "good evening");

    world.assert_nothing_runs();
    sandbox.assert_unchanged(&world.file("sandbox"));
    store.assert_unchanged(&world.file("store"));
    let report = world.report();
    assert_eq!(report["outcome"]["state"], "succeeded");
    assert_eq!(report["rpo"]["verdict"], "met", "{}", report["rpo"]);
    let created = report["created"].as_array().expect("a list");
    assert!(created.len() >= 5, "{created:#?}");
    assert!(created.iter().all(|thing| thing["fate"] == "removed"), "{created:#?}");
    for step in report["steps"].as_array().expect("a list") {
        let attempts = step["attempts"].as_array().map_or(0, Vec::len);
        assert_eq!(attempts, if step["id"] == "verify" { 2 } else { 1 }, "{step}");
    }
}

#[test]
fn a_drill_may_clone_the_backups_of_production_and_a_clone_never_lies_in_it() {
    let world = world();
    let production = world.source.root.clone();
    let incident = world.source.target.to_string();
    let drill = ["drill", "restore", "--env", "production", "--incident-at", &incident];
    world.run(&drill).expect(0);
    world.assert_nothing_runs();

    // A directory of production, written through a link that nobody would suspect.
    let link = world.file("project/harmless");
    std::os::unix::fs::symlink(production.join("postgres"), &link).expect("a link");
    let dir = format!("store: backups, dir: {}", link.display());
    world.edit(
        "project/runbooks/restore.yaml",
        "with: { store: backups, target_time",
        &format!("with: {{ {dir}, target_time"),
    );
    let refused = world.run(&drill).expect(4);
    assert!(refused.all().contains("LB0341"), "{}", refused.all());
    assert!(refused.all().contains("`db` of the protected environment `production`"), "{}", refused.all());
    world.assert_nothing_runs();
}
