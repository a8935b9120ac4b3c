//! Tags and commits checked out in real work trees.

pub mod support;

use std::path::{Path, PathBuf};
use std::process;

use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::step::StepError;
use serde_json::{Value, json};
use support::rig::Rig;

/// Runs git as a person would, with a configuration of its own.
fn git(dir: &Path, args: &[&str]) -> String {
    let mut command = process::Command::new("git");
    command.current_dir(dir).args(args).env("HOME", dir).env("GIT_CONFIG_NOSYSTEM", "1");
    for (name, value) in [("NAME", "Test"), ("EMAIL", "test@example.org"), ("DATE", "2026-11-20T12:00:00Z")] {
        command.env(format!("GIT_AUTHOR_{name}"), value).env(format!("GIT_COMMITTER_{name}"), value);
    }
    let output = command.output().expect("git is installed");
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn commit(dir: &Path, files: &[(&str, &str)], message: &str) -> String {
    for (name, text) in files {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    git(dir, &["add", "--all", "--force"]);
    git(dir, &["commit", "--quiet", "--message", message]);
    git(dir, &["rev-parse", "HEAD"])
}

struct Tree {
    rig: Rig,
    dir: PathBuf,
    one: String,
    two: String,
}

/// A work tree on `main` at v2, with v1 before it.
fn tree() -> Tree {
    let rig = Rig::drill();
    let dir = rig.dir().join("shop");
    std::fs::create_dir(&dir).unwrap();
    git(&dir, &["init", "--quiet", "--initial-branch=main"]);
    let one = commit(&dir, &[("app", "one"), ("gone", "only in one"), ("deep/er", "one")], "one");
    git(&dir, &["tag", "v1"]);
    std::fs::remove_file(dir.join("gone")).unwrap();
    let two = commit(&dir, &[("app", "two, and longer"), ("new", "only in two"), ("deep/er", "two")], "two");
    git(&dir, &["tag", "--annotate", "--message", "two", "v2"]);
    Tree { rig, dir, one, two }
}

impl Tree {
    async fn checkout(&self, mut with: Value) -> Result<Done, StepError> {
        with["dir"] = json!(self.dir);
        self.rig.run("git.checkout", with).await
    }

    async fn undo(&self, mut with: Value) -> Result<Done, StepError> {
        with["dir"] = json!(self.dir);
        self.rig.undo("git.checkout", with).await
    }

    fn head(&self) -> String {
        git(&self.dir, &["rev-parse", "HEAD"])
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.join(name)).unwrap_or_else(|_| "-".into())
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.join(name), text).unwrap();
    }

    /// Expects a refusal that leaves everything as it is.
    async fn refused(&self, with: Value, code: &str) -> StepError {
        let (head, app) = (self.head(), self.read("app"));
        let error = self.checkout(with).await.unwrap_err();
        assert_eq!(
            (error.code.id, error.kind),
            (code, FailureKind::Permanent),
            "{error}: {:?}",
            error.causes
        );
        assert_eq!((self.head(), self.read("app")), (head, app));
        error
    }
}

#[tokio::test]
async fn a_tag_is_checked_out_once_and_undone() {
    let tree = tree();
    let done = tree.checkout(json!({ "tag": "v1", "expect_commit": &tree.one[..10] })).await.unwrap();
    assert_eq!(
        (&done.outputs["commit"], &done.outputs["previous"], &done.outputs["previous_branch"]),
        (&json!(tree.one), &json!(tree.two), &json!("main"))
    );
    assert_eq!(done.outputs["changed"], json!(true));
    assert_eq!(
        (tree.read("app"), tree.read("gone"), tree.read("new")),
        ("one".into(), "only in one".into(), "-".into())
    );
    let again = tree.checkout(json!({ "tag": "v1" })).await.unwrap();
    assert_eq!(again.outputs["previous"], json!(tree.two), "what was before the step, also the second time");

    tree.undo(json!({ "tag": "v1" })).await.unwrap();
    assert_eq!((tree.head(), tree.read("app")), (tree.two.clone(), "two, and longer".into()));
    assert_eq!(git(&tree.dir, &["symbolic-ref", "--short", "HEAD"]), "main");
    assert_eq!(git(&tree.dir, &["status", "--porcelain"]), "");
    tree.undo(json!({ "tag": "v1" })).await.unwrap();
}

#[tokio::test]
async fn a_commit_is_named_by_its_id_or_the_beginning_of_it() {
    let tree = tree();
    let done = tree.checkout(json!({ "commit": tree.one[..8].to_uppercase() })).await.unwrap();
    assert_eq!(done.outputs["commit"], json!(tree.one));
    assert_eq!(tree.head(), tree.one);
    tree.refused(json!({ "commit": "0123456789" }), "LB1533").await;
    // A branch whose name could be an id is no commit.
    git(&tree.dir, &["branch", "abcdef0", "v2"]);
    tree.refused(json!({ "commit": "abcdef0" }), "LB1533").await;
}

#[tokio::test]
async fn what_is_no_tag_is_refused_before_git_sees_it() {
    let tree = tree();
    for tag in ["main", "v9", "-f", "--upload-pack=touch x", "v1^{/x}", "v1..v2"] {
        tree.refused(json!({ "tag": tag }), "LB1533").await;
    }
    tree.refused(json!({ "tag": "v1", "expect_commit": tree.two }), "LB1534").await;
    tree.refused(json!({ "tag": "v1", "commit": tree.one }), "LB1533").await;
    tree.refused(json!({}), "LB1533").await;
}

#[tokio::test]
async fn local_changes_are_named_and_kept() {
    let tree = tree();
    tree.write("app", "hot fix");
    std::fs::remove_file(tree.dir.join("deep/er")).unwrap();
    let error = tree.refused(json!({ "tag": "v1" }), "LB1535").await;
    assert_eq!(error.causes, ["app", "deep/er"]);
    git(&tree.dir, &["add", "app"]);
    tree.refused(json!({ "tag": "v1" }), "LB1535").await;
    assert_eq!(tree.read("app"), "hot fix");
    tree.refused(json!({ "tag": "v2" }), "LB1535").await;
}

#[tokio::test]
async fn files_that_nobody_committed_are_not_overwritten_even_if_they_are_ignored() {
    let tree = tree();
    tree.write("notes", "in nobody's way");
    tree.write("gone", "mine");
    let error = tree.refused(json!({ "tag": "v1" }), "LB1536").await;
    assert_eq!(error.causes, ["gone"]);
    std::fs::write(tree.dir.join(".git/info/exclude"), "gone\n").unwrap();
    tree.refused(json!({ "tag": "v1" }), "LB1536").await;
    assert_eq!(tree.read("gone"), "mine");
    std::fs::remove_file(tree.dir.join("gone")).unwrap();
    tree.checkout(json!({ "tag": "v1" })).await.unwrap();
    assert_eq!(tree.read("notes"), "in nobody's way");
}

#[tokio::test]
async fn a_directory_of_untracked_files_in_the_place_of_a_file_is_kept() {
    let tree = tree();
    std::fs::create_dir(tree.dir.join("gone")).unwrap();
    tree.write("gone/precious", "mine");
    tree.refused(json!({ "tag": "v1" }), "LB1536").await;
    assert_eq!(tree.read("gone/precious"), "mine");
}

#[tokio::test]
async fn what_somebody_has_begun_is_not_disturbed() {
    let tree = tree();
    std::fs::write(tree.dir.join(".git/MERGE_HEAD"), &tree.one).unwrap();
    let error = tree.refused(json!({ "tag": "v1" }), "LB1537").await;
    assert!(error.message.contains("a merge"), "{error}");
    std::fs::remove_file(tree.dir.join(".git/MERGE_HEAD")).unwrap();
    std::fs::write(tree.dir.join(".git/index.lock"), "").unwrap();
    tree.refused(json!({ "tag": "v1" }), "LB1537").await;
    assert!(tree.dir.join(".git/index.lock").exists(), "it is not ours");
}

#[tokio::test]
async fn nothing_of_the_repository_runs() {
    let tree = tree();
    let hook = tree.dir.join(".git/hooks/post-checkout");
    std::fs::write(&hook, "#!/bin/sh\ntouch hooked\n").unwrap();
    std::fs::write(tree.dir.join(".git/hooks/fsmonitor"), "#!/bin/sh\ntouch hooked\n").unwrap();
    for hook in ["post-checkout", "fsmonitor"] {
        use std::os::unix::fs::PermissionsExt as _;
        let path = tree.dir.join(".git/hooks").join(hook);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    git(&tree.dir, &["config", "core.fsmonitor", ".git/hooks/fsmonitor"]);
    tree.checkout(json!({ "tag": "v1" })).await.unwrap();
    tree.undo(json!({ "tag": "v1" })).await.unwrap();
    assert_eq!(tree.read("hooked"), "-");
}

#[tokio::test]
async fn only_the_top_of_a_work_tree_is_one() {
    let tree = tree();
    let error =
        tree.rig.run("git.checkout", json!({ "dir": tree.dir.join("deep"), "tag": "v1" })).await.unwrap_err();
    assert_eq!(error.code.id, "LB1531");
    assert!(error.message.contains(&tree.dir.canonicalize().unwrap().display().to_string()), "{error}");
    let bare = tree.rig.dir().join("bare");
    git(tree.rig.dir(), &["clone", "--quiet", "--bare", "shop", "bare"]);
    for dir in [bare, tree.rig.dir().join(".."), tree.dir.join(".git")] {
        let error = tree.rig.run("git.checkout", json!({ "dir": dir, "tag": "v1" })).await.unwrap_err();
        assert_eq!(error.code.id, "LB1531", "{}", dir.display());
    }
    // A repository whose work tree is elsewhere.
    git(&tree.dir, &["config", "core.worktree", "/"]);
    let error = tree.checkout(json!({ "tag": "v1" })).await.unwrap_err();
    assert_eq!(error.code.id, "LB1531");
}

#[tokio::test]
async fn a_repository_of_another_user_is_explained() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can give a directory away");
        return;
    }
    let tree = tree();
    std::os::unix::fs::chown(&tree.dir, Some(65534), Some(65534)).unwrap();
    std::os::unix::fs::chown(tree.dir.join(".git"), Some(65534), Some(65534)).unwrap();
    let error = tree.checkout(json!({ "tag": "v1" })).await.unwrap_err();
    assert_eq!(error.code.id, "LB1532", "{error}: {:?}", error.causes);
    assert!(error.help.unwrap().contains("os_user"));
}

/// Another clone whose remote has a newer tag.
fn behind(tree: &Tree) -> (PathBuf, String) {
    git(tree.rig.dir(), &["clone", "--quiet", "shop", "clone"]);
    let three = commit(&tree.dir, &[("app", "three")], "three");
    git(&tree.dir, &["tag", "v3"]);
    (tree.rig.dir().join("clone"), three)
}

#[tokio::test]
async fn a_tag_is_fetched_first_and_one_that_was_moved_is_refused() {
    let tree = tree();
    let (clone, three) = behind(&tree);
    let with = |tag: &str, remote: &str| json!({ "dir": clone, "tag": tag, "fetch": { "remote": remote, "timeout": "1m" } });
    let error = tree.rig.run("git.checkout", json!({ "dir": clone, "tag": "v3" })).await.unwrap_err();
    assert_eq!(error.code.id, "LB1533");
    let done = tree.rig.run("git.checkout", with("v3", "origin")).await.unwrap();
    assert_eq!(done.outputs["commit"], json!(three));
    let error = tree.rig.run("git.checkout", with("v8", "origin")).await.unwrap_err();
    assert_eq!(error.code.id, "LB1533");
    let error = tree.rig.run("git.checkout", with("v3", "--upload-pack=touch x")).await.unwrap_err();
    assert_eq!(error.code.id, "LB1538");
    git(&tree.dir, &["tag", "--force", "v3", "v1"]);
    let error = tree.rig.run("git.checkout", with("v3", "origin")).await.unwrap_err();
    assert_eq!(error.code.id, "LB1534", "{error}: {:?}", error.causes);
    git(&clone, &["remote", "set-url", "origin", "/nowhere"]);
    let error = tree.rig.run("git.checkout", with("v3", "origin")).await.unwrap_err();
    assert_eq!((error.code.id, error.kind), ("LB1538", FailureKind::Transient));
}

#[tokio::test]
async fn a_remote_that_never_answers_is_given_up() {
    let tree = tree();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("git://{}/shop", listener.local_addr().unwrap());
    let silent = tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            open.push(stream);
        }
    });
    git(&tree.dir, &["remote", "add", "origin", &url]);
    let fetch = json!({ "remote": "origin", "timeout": "1s" });
    let error = tree.checkout(json!({ "tag": "v1", "fetch": fetch })).await.unwrap_err();
    assert_eq!((error.code.id, error.kind), ("LB1538", FailureKind::Transient), "{error}");
    assert_eq!(tree.head(), tree.two);
    silent.abort();
}

/// Leaves the work tree as a checkout of v1 does that was killed: some files new, one half written, one removed.
fn cut_off(tree: &Tree) {
    tree.write("gone", "only in one");
    tree.write("app", "on");
    std::fs::remove_file(tree.dir.join("new")).unwrap();
    std::fs::write(tree.dir.join(".git/index.lock"), "half an index").unwrap();
    let change = json!({ "before": { "commit": tree.two, "branch": "main" }, "to": tree.one });
    let mut reported = tree.rig.reported();
    let recorded = reported.recorded.entry("git_checkout".into()).or_default();
    recorded.insert("checkout".into(), change);
}

#[tokio::test]
async fn a_checkout_that_was_cut_off_is_completed() {
    let tree = tree();
    cut_off(&tree);
    let done = tree.checkout(json!({ "tag": "v1" })).await.unwrap();
    assert_eq!(
        (done.outputs["commit"].clone(), done.outputs["previous"].clone()),
        (json!(tree.one), json!(tree.two))
    );
    assert_eq!(
        (tree.read("app"), tree.read("deep/er"), tree.read("new")),
        ("one".into(), "one".into(), "-".into())
    );
    assert_eq!(git(&tree.dir, &["status", "--porcelain"]), "");
}

#[tokio::test]
async fn a_checkout_that_was_cut_off_is_undone() {
    let tree = tree();
    cut_off(&tree);
    tree.undo(json!({ "tag": "v1" })).await.unwrap();
    assert_eq!(
        (tree.head(), tree.read("app"), tree.read("new")),
        (tree.two.clone(), "two, and longer".into(), "only in two".into())
    );
    assert_eq!(git(&tree.dir, &["status", "--porcelain"]), "", "what was written of v1 is gone");
}

#[tokio::test]
async fn what_somebody_changed_after_a_checkout_was_cut_off_is_kept() {
    let tree = tree();
    cut_off(&tree);
    tree.write("deep/er", "hot fix");
    let error = tree.refused(json!({ "tag": "v1" }), "LB1535").await;
    assert_eq!(error.causes, ["deep/er"]);
    assert_eq!(tree.read("deep/er"), "hot fix");
    let error = tree.undo(json!({ "tag": "v1" })).await.unwrap_err();
    assert_eq!((error.code.id, tree.read("deep/er")), ("LB1535", "hot fix".into()));
}

#[tokio::test]
async fn what_somebody_has_gone_on_with_is_not_undone() {
    let tree = tree();
    tree.checkout(json!({ "tag": "v1" })).await.unwrap();
    commit(&tree.dir, &[("app", "fixed")], "a fix");
    let error = tree.undo(json!({ "tag": "v1" })).await.unwrap_err();
    assert_eq!((error.code.id, tree.read("app")), ("LB1540", "fixed".into()));
}

#[tokio::test]
async fn tags_are_listed_newest_first() {
    let tree = tree();
    for tag in ["v1.9", "v1.10", "v2.0-rc1", "v2.0", "other"] {
        git(&tree.dir, &["tag", tag, "v1"]);
    }
    git(&tree.dir, &["tag", "tree", "v1^{tree}"]);
    let list = async |with: Value| {
        let mut with = with;
        with["dir"] = json!(tree.dir);
        tree.rig.run("git.tags", with).await
    };
    let names = |done: &Done| {
        let tags = done.outputs["tags"].as_array().unwrap().iter();
        tags.map(|tag| tag["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
    };
    let all = list(json!({ "pattern": "v.*" })).await.unwrap();
    assert_eq!(names(&all), "v2.0 v2.0-rc1 v2 v1.10 v1.9 v1");
    assert!(all.warnings[0].contains("`tree` stands for no commit"), "{:?}", all.warnings);
    let releases = list(json!({ "pattern": r"v\d+(\.\d+)*", "limit": 2 })).await.unwrap();
    assert_eq!((names(&releases).as_str(), &releases.outputs["count"]), ("v2.0 v2", &json!(5)));
    assert_eq!(releases.outputs["newest"], json!("v2.0"));
    let two = &releases.outputs["tags"][1];
    assert_eq!((&two["commit"], &two["date"]), (&json!(tree.two), &json!("2026-11-20T12:00:00Z")));

    let error = list(json!({ "before": "2026-11-20T12:00:00Z" })).await.unwrap_err();
    assert_eq!(error.code.id, "LB1541");
    let none = list(json!({ "pattern": "w.*", "allow_none": true })).await.unwrap();
    assert_eq!((names(&none).as_str(), &none.outputs["newest"]), ("", &json!("")));
    let before = list(json!({ "before": "2026-11-20T12:00:01Z", "sort": "date" })).await.unwrap();
    assert_eq!(before.outputs["count"], json!(7));
}
