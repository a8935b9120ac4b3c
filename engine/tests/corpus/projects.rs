//! `lifeboat.yaml` seen from outside: each file of `tests/corpus/projects` breaks one rule in the project of the corpus,
//! or, if its name begins with `valid`, none.

use std::fs;

use lifeboat_engine::diagnostic::{Style, render};
use lifeboat_engine::project::{Project, check_all};
use lifeboat_engine::spec::schema;

use super::kinds::registry;
use super::schema::found;
use super::{corpus, files, snapshot};

/// What a person reads about a `lifeboat.yaml` in the project of the corpus.
fn check(path: &std::path::Path) -> String {
    let dir = tempfile::tempdir().unwrap();
    for folder in ["environments", "runbooks"] {
        fs::create_dir(dir.path().join(folder)).unwrap();
    }
    fs::copy(path, dir.path().join("lifeboat.yaml")).unwrap();
    for folder in ["environments", "runbooks"] {
        for (name, path) in files(&format!("project/{folder}")) {
            fs::copy(path, dir.path().join(format!("{folder}/{name}.yaml"))).unwrap();
        }
    }
    for name in ["locks", "rewind"] {
        let path = corpus().join(format!("valid/{name}.yaml"));
        fs::copy(path, dir.path().join(format!("runbooks/{name}.yaml"))).unwrap();
    }
    match Project::load(dir.path()) {
        Ok(project) => render(&check_all(&project, &registry()), Style::Plain),
        Err(problems) => render(&problems, Style::Plain),
    }
}

#[test]
fn every_broken_promise_is_told_with_place_and_help() {
    for (name, path) in files("projects") {
        let told = check(&path);
        if name.starts_with("valid") {
            assert_eq!(told, "", "{name}");
        } else {
            assert!(told.contains("[LB"), "{name} has no problem");
            snapshot(&format!("project_{name}"), &told);
        }
    }
}

#[test]
fn editors_accept_what_the_program_accepts() {
    let schema = schema::project();
    for (name, path) in files("projects").into_iter().filter(|(name, _)| name.starts_with("valid")) {
        let found = found(&schema, &fs::read_to_string(path).unwrap());
        assert!(found.is_empty(), "{name}: {found:#?}");
    }
    for name in
        ["notice_occasion", "drill_interval", "drill_without_interval", "schedule_time", "schedule_both"]
    {
        let text = fs::read_to_string(corpus().join(format!("projects/{name}.yaml"))).unwrap();
        assert!(!found(&schema, &text).is_empty(), "{name} is not marked");
    }
}
