//! kill -9 of the program at each moment of a backup and an exchange, and what the next attempt makes of it.

use std::fs;
use std::path::Path;

use super::restore::{backup, restore, rig, source, target, tree};
use crate::support::killed::{self, Fate};
use serde_json::json;

const MOST: u64 = 100;

fn names(dir: &Path) -> Vec<String> {
    let found = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = found.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn content(dir: &Path) -> String {
    fs::read_to_string(dir.join("f")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_killed_at_any_moment_is_made_once() {
    killed::victim().await;
    let mut rig = rig();
    let name = "killed::a_backup_that_is_killed_at_any_moment_is_made_once";
    for moment in 0..MOST {
        rig.begin_run();
        let store = rig.dir().join("store");
        if store.exists() {
            fs::remove_dir_all(&store).unwrap();
        }
        let fate = killed::at(&rig, name, ("files.backup", &backup()), moment);
        let done = rig.run("files.backup", backup()).await;
        let done = done.unwrap_or_else(|error| panic!("after moment {moment}: {error:?}"));
        let label = done.outputs["backup"].as_str().unwrap();
        assert_eq!(names(&store.join("files")), [label], "after moment {moment}");
        let made = names(&store.join("files").join(label));
        assert_eq!(made, ["files.tar.zst", "lifeboat.json", "manifest.json"], "after moment {moment}");
        if fate == Fate::Finished {
            assert!(moment > 1, "only {moment} moments");
            return;
        }
    }
    panic!("it is always killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_is_killed_at_any_moment_is_made_once_and_taken_back_once() {
    killed::victim().await;
    let mut rig = rig();
    let (place, beside) = (target(&rig), rig.dir().join("www/uploads.new"));
    let with = json!({ "files": "restored", "previous": beside });
    let name = "killed::an_exchange_that_is_killed_at_any_moment_is_made_once_and_taken_back_once";
    for moment in 0..MOST {
        rig.begin_run();
        for (dir, text) in [(&place, "in use"), (&beside, "kept")] {
            fs::create_dir_all(dir).unwrap();
            fs::write(dir.join("f"), text).unwrap();
        }
        let fate = killed::at(&rig, name, ("files.swap", &with), moment);
        let done = rig.run("files.swap", with.clone()).await;
        let done = done.unwrap_or_else(|error| panic!("after moment {moment}: {error:?}"));
        assert_eq!((content(&place), content(&beside)), ("kept".into(), "in use".into()), "{moment}");
        assert_eq!(done.outputs["kept"], json!(beside), "{moment}");
        rig.undo("files.swap", with.clone()).await.unwrap();
        assert_eq!((content(&place), content(&beside)), ("in use".into(), "kept".into()), "{moment}");
        assert_eq!(names(&rig.dir().join("www")).len(), 2, "{moment}");
        if fate == Fate::Finished {
            assert!(moment > 1, "only {moment} moments");
            return;
        }
    }
    panic!("it is always killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn taking_a_restore_back_that_is_killed_at_any_moment_is_finished_by_the_next_attempt() {
    killed::victim().await;
    let mut rig = rig();
    rig.run("files.backup", backup()).await.unwrap();
    let name = "killed::taking_a_restore_back_that_is_killed_at_any_moment_is_finished_by_the_next_attempt";
    for earlier in [true, false] {
        let mut finished = false;
        for moment in 0..MOST {
            rig.begin_run();
            fs::remove_dir_all(rig.dir().join("www")).unwrap();
            fs::create_dir(rig.dir().join("www")).unwrap();
            if earlier {
                fs::create_dir(target(&rig)).unwrap();
                fs::write(target(&rig).join("f"), "earlier").unwrap();
            }
            rig.run("files.restore", restore()).await.unwrap();
            let fate = killed::undo_at(&rig, name, ("files.restore", &restore()), moment);
            let is_back = if earlier { target(&rig).join("f").exists() } else { !target(&rig).exists() };
            assert!(is_back || tree(&target(&rig)) == tree(&source(&rig)), "after moment {moment}");
            let undone = rig.undo("files.restore", restore()).await;
            undone.unwrap_or_else(|error| panic!("after moment {moment}: {error:?}"));
            assert_eq!(target(&rig).exists(), earlier, "after moment {moment}");
            assert!(!earlier || content(&target(&rig)) == "earlier", "after moment {moment}");
            let kept = rig.dir().join(format!("www/uploads.undone-{}", rig.run_id.short()));
            assert_eq!(tree(&kept), tree(&source(&rig)), "after moment {moment}");
            assert_eq!(
                names(&rig.dir().join("www")).len(),
                1 + usize::from(earlier),
                "after moment {moment}"
            );
            assert_eq!(rig.made_at(), [kept], "{moment}: what a report names is there");
            if fate == Fate::Finished {
                assert!(moment > 3, "only {moment} moments");
                finished = true;
                break;
            }
        }
        assert!(finished, "it is always killed");
    }
}
