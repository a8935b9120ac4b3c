//! kill -9 of the program at each moment of a restore, a snapshot and a flush, and what the next attempt makes of it.

use serde_json::json;

use redis::Commands;

use super::asking;
use super::faults::start_target;
use super::restore::{World, names, size};
use crate::support::killed::{self, Fate};

const MOST: u64 = 100;

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_killed_at_any_moment_is_finished_and_keeps_the_old_files() {
    killed::victim().await;
    let mut world = World::new(&["--appendonly", "yes"]);
    world.snapshot("snapshot").await;
    let with = json!({
        "server": "target", "store": "backups", "append_only": "rewrite", "load_check": false,
    });
    let name = "killed::a_restore_that_is_killed_at_any_moment_is_finished_and_keeps_the_old_files";
    for moment in 0..MOST {
        world.rig.begin_run();
        std::fs::remove_dir_all(world.target_dir()).unwrap();
        std::fs::create_dir_all(world.target_dir().join("appendonlydir")).unwrap();
        std::fs::write(world.target_dir().join("dump.rdb"), "old").unwrap();
        std::fs::write(world.target_dir().join("appendonlydir/old"), "old").unwrap();
        let fate = killed::at(&world.rig, name, ("redis.restore", &with), moment);
        let done = world.rig.run("redis.restore", with.clone()).await;
        let done = done.unwrap_or_else(|error| panic!("after moment {moment}: {error:?}"));
        assert_eq!((size(&mut world.target(), 0), size(&mut world.target(), 3)), (501, 1), "{moment}");
        let run = world.rig.run_id.short();
        let (dump, append) = (format!("dump.rdb.pre-{run}"), format!("appendonlydir.pre-{run}"));
        let found = names(&world.target_dir());
        assert_eq!(found, ["appendonlydir", append.as_str(), "dump.rdb", dump.as_str()], "{moment}");
        let old = |name: &str| std::fs::read_to_string(world.target_dir().join(name)).unwrap();
        assert_eq!((old(&dump), old(&format!("{append}/old"))), ("old".into(), "old".into()), "{moment}");
        assert_eq!(done.outputs["moved_aside"].as_array().map(Vec::len), Some(2), "{moment}");
        if fate == Fate::Finished {
            assert!(moment > 10, "only {moment} moments");
            return;
        }
    }
    panic!("it is always killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn taking_a_restore_back_that_is_killed_at_any_moment_is_finished_by_the_next_attempt() {
    killed::victim().await;
    let mut world = World::new(&["--save", "", "--appendonly", "yes"]);
    world.snapshot("snapshot").await;
    let with = json!({
        "server": "target", "store": "backups", "append_only": "rewrite", "load_check": false,
    });
    let name = "killed::taking_a_restore_back_that_is_killed_at_any_moment_is_finished_by_the_next_attempt";
    for moment in 0..MOST {
        world.rig.begin_run();
        std::fs::remove_dir_all(world.target_dir()).unwrap();
        std::fs::create_dir(world.target_dir()).unwrap();
        start_target(&world).await;
        let _: () = world.target().set("mine", "earlier").unwrap();
        let _: () = redis::cmd("SAVE").query(&mut world.target()).unwrap();
        world.rig.run("redis.restore", with.clone()).await.unwrap();
        assert_eq!(size(&mut world.target(), 0), 501, "{moment}");

        let fate = killed::undo_at(&world.rig, name, ("redis.restore", &with), moment);
        let undone = world.rig.undo("redis.restore", with.clone()).await;
        undone.unwrap_or_else(|error| panic!("after moment {moment}: {error:?}"));
        let mine: Option<String> = world.target().get("mine").unwrap();
        assert_eq!((mine.as_deref(), size(&mut world.target(), 0)), (Some("earlier"), 1), "{moment}");
        let run = world.rig.run_id.short();
        let kept = [format!("appendonlydir.undone-{run}"), format!("dump.rdb.undone-{run}")];
        let found = names(&world.target_dir());
        assert_eq!(found, ["appendonlydir", kept[0].as_str(), "dump.rdb", kept[1].as_str()], "{moment}");
        let mut made = world.rig.made_at();
        made.sort();
        assert_eq!(
            made,
            kept.map(|name| world.target_dir().join(name)),
            "{moment}: what a report names is there"
        );
        if fate == Fate::Finished {
            assert!(moment > 8, "only {moment} moments");
            return;
        }
    }
    panic!("it is always killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_killed_at_any_moment_is_made_once() {
    killed::victim().await;
    let mut world = World::new(&[]);
    let with = json!({ "server": "cache", "store": "backups" });
    let name = "killed::a_snapshot_that_is_killed_at_any_moment_is_made_once";
    for moment in 0..MOST {
        world.rig.begin_run();
        let store = world.rig.dir().join("store");
        if store.exists() {
            std::fs::remove_dir_all(&store).unwrap();
        }
        let fate = killed::at(&world.rig, name, ("redis.snapshot", &with), moment);
        let done = world.rig.run("redis.snapshot", with.clone()).await.unwrap();
        assert_eq!(done.outputs["keys"], json!(502), "{moment}");
        assert_eq!(names(&store.join("redis")).len(), 1, "{moment}: {:?}", names(&store.join("redis")));
        if fate == Fate::Finished {
            return;
        }
    }
    panic!("it is always killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_that_is_killed_at_any_moment_empties_what_was_copied_and_counts_it_once() {
    killed::victim().await;
    let mut world = asking::World::new(&[]);
    let with = json!({
        "server": "cache", "databases": [0, 3], "expect": ["keys == 5"], "snapshot_to": "backups",
    });
    let name = "killed::a_flush_that_is_killed_at_any_moment_empties_what_was_copied_and_counts_it_once";
    for moment in 0..MOST {
        world.rig.begin_run();
        let store = world.rig.dir().join("store");
        if store.exists() {
            std::fs::remove_dir_all(&store).unwrap();
        }
        world.empty_the_first();
        world.fill();
        let fate = killed::at(&world.rig, name, ("redis.flush", &with), moment);
        let counted =
            world.rig.reported().recorded.get("redis_flush").is_some_and(|of| of.contains_key("counted"));
        let expected = if fate == Fate::Finished { (0, 0) } else { (4, 1) };
        assert_eq!(world.keys(), expected, "after moment {moment}");
        if counted {
            world.empty_the_first();
        }
        let done = world.rig.run("redis.flush", with.clone()).await;
        let done = done.unwrap_or_else(|error| panic!("after moment {moment}: {error:?}"));
        assert_eq!(world.keys(), (0, 0), "{moment}");
        assert_eq!(done.outputs["databases"], json!({ "db0": 4, "db3": 1 }), "{moment}");
        let taken = names(&store.join("redis"));
        assert_eq!(taken, [done.outputs["backup"].as_str().unwrap()], "{moment}");
        let marker = std::fs::read(store.join("redis").join(&taken[0]).join("lifeboat.json")).unwrap();
        let marker: serde_json::Value = serde_json::from_slice(&marker).unwrap();
        assert_eq!(marker["details"]["databases"]["0"]["keys"], json!(4), "{moment}: {marker}");
        if fate == Fate::Finished {
            assert!(moment > 6, "only {moment} moments");
            return;
        }
    }
    panic!("it is always killed");
}
