//! Configuration files that are written from templates, secrets included.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use lifeboat_engine::model::evidence::Stream;
use lifeboat_engine::secret::SecretRef;
use serde_json::{Value, json};

use crate::support::killed::{self, Fate};
use crate::support::rig::Rig;

const SECRET: &str = "s3cret-of-many-letters";

const TEMPLATE: &str = "\
# {{ site }}
PORT={{ port }}
{% for host in hosts %}HOST={{ host }}
{% endfor %}SECRET_KEY={{ app_key }}
DATABASE_URL={{ url }}
";

fn rig() -> Rig {
    let reference = SecretRef::Env("APP_KEY".into());
    let mut rig = Rig::drill().secret(reference.clone(), SECRET).named_secret("app_key", reference);
    rig.set_resource("api", json!({ "kind": "http", "url": "http://127.0.0.1:9" }));
    fs::write(rig.dir().join("env.template"), TEMPLATE).unwrap();
    fs::create_dir(rig.dir().join("etc")).unwrap();
    rig
}

fn target(rig: &Rig) -> PathBuf {
    rig.dir().join("etc/app.env")
}

fn with(rig: &Rig, more: Value) -> Value {
    let mut with = json!({
        "template": "env.template", "to": target(rig),
        "values": { "site": "members", "port": 8080, "hosts": ["a", "b"] },
        "secrets": { "app_key": { "secret": "app_key" }, "url": { "connection": "api" } },
    });
    with.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    with
}

fn text() -> String {
    format!("# members\nPORT=8080\nHOST=a\nHOST=b\nSECRET_KEY={SECRET}\nDATABASE_URL=http://127.0.0.1:9\n")
}

fn listed(rig: &Rig) -> Vec<String> {
    let found = fs::read_dir(rig.dir().join("etc")).unwrap();
    let mut names: Vec<_> = found.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_file_is_written_whole_private_and_without_a_trace_of_its_secrets() {
    let rig = rig();
    fs::write(target(&rig), "# members\nPORT=80\nSECRET_KEY=earlier-secret\n").unwrap();
    fs::set_permissions(target(&rig), fs::Permissions::from_mode(0o644)).unwrap();
    let done = rig.run("files.template", with(&rig, json!({}))).await.unwrap();
    assert_eq!(fs::read_to_string(target(&rig)).unwrap(), text());
    assert_eq!(fs::metadata(target(&rig)).unwrap().mode() & 0o777, 0o600);
    let previous = PathBuf::from(done.outputs["previous"].as_str().unwrap());
    assert!(fs::read_to_string(&previous).unwrap().contains("earlier-secret"));
    assert_eq!(listed(&rig).len(), 2, "{:?}", listed(&rig));
    assert_eq!(done.outputs["changed"], json!(true));
    let reported = rig.reported();
    let all = format!("{:?} {:?} {:?}", done, reported.recorded, reported.created);
    let all = all + &reported.text(Stream::Stdout) + &reported.text(Stream::Stderr);
    assert!(all.contains("SECRET_KEY=<app_key>") && all.contains("+ 2: PORT=8080"), "{all}");
    assert!(!all.contains(SECRET) && !all.contains("earlier-secret"), "{all}");
}

#[tokio::test]
async fn what_is_right_already_stays_and_what_is_not_is_said() {
    let rig = rig();
    let first = rig.run_as("first", "files.template", with(&rig, json!({}))).await.unwrap();
    assert!(!first.outputs.contains_key("previous"));
    let inode = fs::metadata(target(&rig)).unwrap().ino();
    let again = rig.run_as("again", "files.template", with(&rig, json!({}))).await.unwrap();
    assert_eq!((&again.outputs["changed"], &again.outputs["changes"]), (&json!(false), &json!([])));
    assert_eq!(again.outputs["sha256"], first.outputs["sha256"]);
    assert_eq!(fs::metadata(target(&rig)).unwrap().ino(), inode);
    let looser = with(&rig, json!({ "mode": "0640" }));
    let mode = rig.run_as("mode", "files.template", looser).await.unwrap();
    assert_eq!((&mode.outputs["changed"], &mode.outputs["changes"]), (&json!(true), &json!([])));
    assert_eq!(fs::metadata(target(&rig)).unwrap().mode() & 0o777, 0o640);
}

#[tokio::test]
async fn a_dry_run_says_what_changes_and_changes_nothing() {
    let rig = rig();
    fs::write(target(&rig), "PORT=80\n").unwrap();
    let done = rig.run("files.template", with(&rig, json!({ "dry_run": true }))).await.unwrap();
    assert!(done.outputs["changes"].as_array().unwrap().contains(&json!("+ 5: SECRET_KEY=<app_key>")));
    assert_eq!((fs::read_to_string(target(&rig)).unwrap().as_str(), listed(&rig).len()), ("PORT=80\n", 1));
    let kind = lifeboat_steps::registry();
    let kind = kind.kind("files.template").unwrap();
    let preview = kind.preview(&rig.context("plan", "files.template", with(&rig, json!({})))).await.unwrap();
    let all = format!("{preview:?}");
    assert!(all.contains("+ 5: SECRET_KEY=<app_key>") && !all.contains(SECRET), "{all}");
    assert_eq!(listed(&rig).len(), 1);
}

#[tokio::test]
async fn mistakes_are_found_before_anything_is_touched() {
    let rig = rig();
    fs::write(target(&rig), "earlier").unwrap();
    fs::write(rig.dir().join("missing.template"), "ok\nPORT={{ porto }}\n").unwrap();
    fs::write(rig.dir().join("list.template"), "HOSTS={{ hosts }}\n").unwrap();
    symlink("/etc/passwd", rig.dir().join("etc/link")).unwrap();
    fs::create_dir(rig.dir().join("etc/dir")).unwrap();
    let at = |name: &str| rig.dir().join("etc").join(name);
    for (more, code) in [
        (json!({ "template": "missing.template" }), "LB1441"),
        (json!({ "template": "list.template" }), "LB1441"),
        (json!({ "template": "absent.template" }), "LB1440"),
        (json!({ "values": { "app_key": "x" } }), "LB1441"),
        (json!({ "to": at("link") }), "LB1442"),
        (json!({ "to": at("dir") }), "LB1442"),
        (json!({ "to": at("absent/file") }), "LB1442"),
        (json!({ "mode": "0666" }), "LB1442"),
        (json!({ "check": ["grep", "-q", "no such line", "%s"] }), "LB1443"),
        (json!({ "check": ["sh", "-c", "exit 3", "%s"] }), "LB1443"),
    ] {
        let error = rig.run("files.template", with(&rig, more.clone())).await.expect_err(&more.to_string());
        assert_eq!(error.code.id, code, "{more}: {error:?}");
        assert!(!format!("{error:?}").contains(SECRET), "{error:?}");
        assert_eq!(fs::read_to_string(target(&rig)).unwrap(), "earlier", "{more}");
        assert_eq!(listed(&rig), ["app.env", "dir", "link"], "{more}");
    }
    let line = rig.run("files.template", with(&rig, json!({ "template": "missing.template" }))).await;
    let message = line.unwrap_err().message;
    assert!(message.contains("porto"), "{message}");
    let checked = with(&rig, json!({ "check": ["grep", "-q", "PORT=8080", "%s"] }));
    rig.run("files.template", checked).await.expect("the check finds its line");
}

#[tokio::test]
async fn undo_brings_the_earlier_file_back_or_leaves_none() {
    for earlier in [Some("earlier\n"), None] {
        let rig = rig();
        if let Some(text) = earlier {
            fs::write(target(&rig), text).unwrap();
        }
        rig.run("files.template", with(&rig, json!({}))).await.unwrap();
        for _ in 0..2 {
            rig.undo("files.template", with(&rig, json!({}))).await.unwrap();
            assert_eq!(fs::read_to_string(target(&rig)).ok().as_deref(), earlier);
            assert!(rig.made_at().is_empty(), "{:?}", rig.made_at());
        }
        assert_eq!(listed(&rig).len(), usize::from(earlier.is_some()));
    }
    let rig = rig();
    fs::write(target(&rig), "earlier").unwrap();
    rig.run("files.template", with(&rig, json!({}))).await.unwrap();
    fs::write(target(&rig), "theirs").unwrap();
    let error = rig.undo("files.template", with(&rig, json!({}))).await.unwrap_err();
    assert_eq!(error.code.id, "LB1444");
    assert_eq!(fs::read_to_string(target(&rig)).unwrap(), "theirs");
}

#[tokio::test]
async fn the_end_of_a_drill_puts_the_earlier_file_back() {
    let rig = rig();
    fs::write(target(&rig), "earlier").unwrap();
    rig.run("files.template", with(&rig, json!({}))).await.unwrap();
    for thing in rig.reported().created.iter().rev() {
        let removal = lifeboat_engine::run::cleanup::remove(thing);
        assert!(removal.removed, "{thing:?}: {}", removal.proof);
    }
    assert_eq!((fs::read_to_string(target(&rig)).unwrap().as_str(), listed(&rig).len()), ("earlier", 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_killed_at_any_moment_is_the_old_or_the_new_one() {
    killed::victim().await;
    let mut rig = rig();
    let plain = json!({ "secrets": { "app_key": "text", "url": "text" } });
    let with = with(&rig, plain);
    let name = "template::a_file_that_is_killed_at_any_moment_is_the_old_or_the_new_one";
    for moment in 0..50 {
        rig.begin_run();
        fs::remove_dir_all(rig.dir().join("etc")).unwrap();
        fs::create_dir(rig.dir().join("etc")).unwrap();
        fs::write(target(&rig), "earlier").unwrap();
        let fate = killed::at(&rig, name, ("files.template", &with), moment);
        let found = fs::read_to_string(target(&rig)).unwrap();
        assert!(found == "earlier" || found.contains("SECRET_KEY=text"), "after moment {moment}: {found}");
        let done = rig.run("files.template", with.clone()).await.unwrap();
        assert!(fs::read_to_string(target(&rig)).unwrap().contains("SECRET_KEY=text"), "{moment}");
        let previous = done.outputs["previous"].as_str().unwrap();
        assert_eq!(fs::read_to_string(previous).unwrap(), "earlier", "after moment {moment}");
        assert_eq!(listed(&rig).len(), 2, "after moment {moment}: {:?}", listed(&rig));
        // And so is what takes it back.
        killed::undo_at(&rig, name, ("files.template", &with), moment);
        rig.undo("files.template", with.clone()).await.unwrap();
        assert_eq!(fs::read_to_string(target(&rig)).unwrap(), "earlier", "undone after moment {moment}");
        assert!(rig.made_at().is_empty(), "{moment}: {:?}", rig.made_at());
        if fate == Fate::Finished {
            assert!(moment > 6, "only {moment} moments");
            return;
        }
    }
    panic!("it is always killed");
}
