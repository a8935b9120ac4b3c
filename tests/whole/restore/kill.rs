//! `kill -9` of the program during each step, and what `lifeboat resume` makes of it.

use std::collections::BTreeMap;

use lifeboat_engine::model::EventKind;
use lifeboat_engine::model::evidence::CreatedKind;
use serde_json::Value;

use super::machine::{Process, Tree};
use super::world::World;
use crate::project::{Ran, Running, until};

/// How many times a step may have been quicker than the kill.
const TRIES: usize = 10;

/// What the journal says when the program is killed.
#[derive(Clone, Copy, Debug)]
enum At {
    /// The attempt has begun.
    Start,
    /// The step is about to make something: a directory, a server.
    Creation,
    /// The step is about to start a server.
    Server,
    /// The step asks for the first time whether its service is ready.
    Asking,
}

impl At {
    fn has_come(self, world: &World, step: &str) -> bool {
        if matches!(self, Self::Asking) {
            return world.gate.was_asked();
        }
        world.events().iter().any(|event| match (self, event) {
            (Self::Start, EventKind::AttemptStarted { step: started, .. }) => started.as_str() == step,
            (Self::Creation, EventKind::ThingCreated { step: by, .. }) => by.as_str() == step,
            (Self::Server, EventKind::ThingCreated { step: by, thing }) => {
                by.as_str() == step && matches!(thing.kind, CreatedKind::Process { .. })
            }
            _ => false,
        })
    }
}

/// What was there when the program had been killed.
struct Killed {
    world: World,
    /// The steps that had ended, with their attempts.
    completed: BTreeMap<String, Value>,
    survivors: Vec<Process>,
}

fn steps(report: &Value) -> impl Iterator<Item = (String, &Value)> {
    let steps = report["steps"].as_array().expect("a list");
    steps.iter().map(|step| (step["id"].as_str().expect("an id").to_owned(), step))
}

/// Runs the drill and kills it within a step.
fn kill_within(step: &str, at: At) -> Killed {
    for _ in 0..TRIES {
        let world = World::new();
        world.gate.close();
        let mut running = world.start_drill(&["--keep"]);
        until(&format!("{step}: {at:?}"), || at.has_come(&world, step) || running.has_ended());
        if !at.has_come(&world, step) {
            panic!("the drill ended before `{step}`: {}", running.end().all());
        }
        if running.has_ended() {
            continue;
        }
        running.signal("KILL");
        drop(running);
        let survivors = world.processes();
        let report = world.report();
        let ended = |step: &Value| !step["outcome"].is_null();
        if steps(&report).any(|(id, found)| id == step && ended(found)) {
            continue;
        }
        let completed = steps(&report).filter(|(_, step)| ended(step));
        let completed = completed.map(|(id, step)| (id, step["attempts"].clone())).collect();
        return Killed { world, completed, survivors };
    }
    panic!("`{step}` always ended before the program could be killed");
}

/// Kills within a step and resumes: the result is that of an undisturbed drill, no completed step ran again, and of
/// each server there is one.
fn survives(step: &str, at: At) -> Killed {
    let killed = kill_within(step, at);
    let world = &killed.world;
    let has_server = killed.completed.contains_key("recover");
    let survives = killed.survivors.iter().any(|process| process.name == "postgres");
    assert!(survives || !has_server, "a server outlives the program: {:?}", killed.survivors);
    world.gate.reopen();
    let resumed = world.run(&["resume"]).expect(0);
    world.assert_restored();

    let report = world.report();
    assert_eq!(report["outcome"]["state"], "succeeded", "{}", resumed.all());
    for (id, found) in steps(&report) {
        assert_eq!(found["outcome"]["outcome"], "succeeded", "{id}: {found}");
        let results: Vec<_> =
            found["attempts"].as_array().expect("a list").iter().map(|attempt| &attempt["result"]).collect();
        match killed.completed.get(&id) {
            Some(attempts) => assert_eq!(&found["attempts"], attempts, "{id} had ended and ran again"),
            None if id == step => assert_eq!(results, ["lost", "succeeded"], "{id}"),
            None => assert_eq!(results, ["succeeded"], "{id}"),
        }
    }
    assert_eq!(report["identity"]["engines"].as_array().map(Vec::len), Some(2));
    world.assert_servers(&["postgres", "redis-server", "sleep"]);
    killed
}

#[test]
fn kill_9_while_the_base_backup_is_unpacked() {
    survives("base", At::Start);
    survives("base", At::Creation);
}

#[test]
fn kill_9_while_wal_is_replayed() {
    survives("recover", At::Start);
    survives("recover", At::Server);
}

#[test]
fn kill_9_while_the_recovered_data_are_verified() {
    survives("verify", At::Start);
}

#[test]
fn kill_9_while_the_server_is_promoted() {
    survives("promote", At::Start);
}

#[test]
fn kill_9_while_redis_is_restored() {
    survives("cache", At::Start);
    survives("cache", At::Server);
}

#[test]
fn kill_9_while_files_are_restored() {
    survives("uploads", At::Start);
}

#[test]
fn kill_9_while_a_service_starts_and_its_process_is_adopted() {
    let killed = survives("app", At::Asking);
    let pid = |processes: &[Process]| {
        processes.iter().find(|process| process.name == "sleep").map(|found| found.pid)
    };
    let before = pid(&killed.survivors);
    assert!(before.is_some(), "{:?}", killed.survivors);
    assert_eq!(before, pid(&killed.world.processes()), "the same process");
}

#[test]
fn kill_9_while_a_drill_cleans_up() {
    let world = World::new();
    let sandbox = Tree::of(&world.file("sandbox"));
    // When a second thing is gone, and the journal does not say so.
    let died = Ran::of(world.drill_command(&[]).env("LIFEBOAT_CRASH_AT", "ThingRemoved:2"));
    assert_eq!(died.exit, -1, "{}", died.all());
    let ended = world.events().iter().any(|event| matches!(event, EventKind::RunFinished { .. }));
    assert!(!ended, "killed too late");

    world.run(&["resume"]).expect(0);
    world.assert_restored();
    world.assert_nothing_runs();
    sandbox.assert_unchanged(&world.file("sandbox"));
    let report = world.report();
    let created = report["created"].as_array().expect("a list");
    assert!(created.len() >= 5 && created.iter().all(|thing| thing["fate"] == "removed"), "{created:#?}");
    for (id, step) in steps(&report) {
        assert_eq!(step["attempts"].as_array().map(Vec::len), Some(1), "{id}: {step}");
    }
}

#[test]
fn a_drill_killed_while_wal_is_replayed_leaves_nothing_when_it_is_resumed_or_aborted() {
    for words in [["resume"].as_slice(), &["abort", "latest", "--reason", "wrong target"]] {
        let world = World::new();
        let sandbox = Tree::of(&world.file("sandbox"));
        // So that it cannot come to its end, however late it is killed.
        world.gate.close();
        let mut running = world.start_drill(&[]);
        let started = || At::Server.has_come(&world, "recover");
        until("the server starts", || started() || running.has_ended());
        if !started() {
            panic!("the drill ended before its server started: {}", running.end().all());
        }
        running.signal("KILL");
        drop(running);
        world.gate.reopen();
        world.run(words).expect(0);
        if words[0] == "abort" {
            world.run(&["resume"]).expect(4);
        }
        world.assert_nothing_runs();
        sandbox.assert_unchanged(&world.file("sandbox"));
    }
}

#[test]
fn a_drill_that_is_killed_again_and_again_comes_to_the_same_end() {
    const KILLS: usize = 5;
    // Enough for each process to get a little further before it is killed.
    const EVENTS: usize = 10;
    let world = World::new();
    let sandbox = Tree::of(&world.file("sandbox"));
    // So that it cannot come to its end, however late it is killed.
    world.gate.close();
    let mut running = world.start_drill(&[]);
    let is_engine = |event: &&EventKind| matches!(event, EventKind::EngineStarted { .. });
    for kills in 0..KILLS {
        let known = world.events().len();
        until("it gets further", || {
            let events = world.events();
            let far = events.len() >= known + EVENTS || world.gate.was_asked();
            far && events.iter().filter(is_engine).count() > kills
        });
        running.signal("KILL");
        drop(running);
        running = Running::of(&mut world.command(&["resume"]));
    }
    world.gate.reopen();
    running.end().expect(0);
    world.assert_restored();
    world.assert_nothing_runs();
    sandbox.assert_unchanged(&world.file("sandbox"));

    let report = world.report();
    assert_eq!(report["identity"]["engines"].as_array().map(Vec::len), Some(KILLS + 1));
    for (id, step) in steps(&report) {
        let attempts = step["attempts"].as_array().expect("a list");
        let succeeded = attempts.iter().filter(|attempt| attempt["result"] == "succeeded").count();
        assert_eq!(succeeded, 1, "{id}: {step}");
        assert_eq!(attempts.last().map(|last| &last["result"]), Some(&"succeeded".into()), "{id}: {step}");
    }
}
