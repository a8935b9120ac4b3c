//! The schemas against the reader: what the reader accepts a schema accepts too, and what a schema can know to be
//! wrong it marks.

use std::fs;
use std::path::Path;

use lifeboat_engine::spec::schema;
use serde_json::Value;

use super::{corpus, files, project, registry};

/// The broken files whose mistake is in one place of one document; the others take more than a schema: other files,
/// other steps, what is inside a text.
const SEEN: &[&str] = &[
    "bad_id",
    "bare_duration",
    "braces_in_condition",
    "brackets_in_a_list",
    "calls",
    "connections",
    "effect",
    "environments",
    "every_without_until",
    "expect_is_a_list",
    "inputs",
    "lock_map",
    "loop_of_a_call",
    "loop_over_no_list",
    "loop_over_text",
    "made_written_wrong",
    "max_parallel_of_nothing",
    "max_parallel_without_loop",
    "milestones",
    "missing_parameter",
    "no_body",
    "old_booleans",
    "outputs",
    "retry_once",
    "several",
    "side_keys",
    "tabs",
    "template_in_sql",
    "undo_calls_runbook",
    "undo_is_a_list",
    "undo_keys",
    "undo_of_a_call",
    "undo_once",
    "undo_resources",
    "unknown_key",
    "unknown_kind",
    "unknown_parameter",
    "unquoted_template",
    "until_in_braces",
    "until_without_every",
    "until_without_timeout",
    "wrong_needs",
    "wrong_type",
];

/// What a schema finds in a file; a file that is no YAML is one mistake.
pub(super) fn found(schema: &Value, text: &str) -> Vec<String> {
    let document: Value = match serde_yaml::from_str(text) {
        Ok(document) => document,
        Err(error) => return vec![error.to_string()],
    };
    let validator = jsonschema::draft202012::new(schema).unwrap();
    validator.iter_errors(&document).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

fn accepts(schema: &Value, path: &Path) {
    let found = found(schema, &fs::read_to_string(path).unwrap());
    assert!(found.is_empty(), "{}: {found:#?}", path.display());
}

#[test]
fn schemas_accept_what_the_reader_accepts() {
    let runbook = schema::runbook(&registry());
    for (_, path) in files("valid") {
        accepts(&runbook, &path);
    }
    for (_, path) in files("project/environments") {
        accepts(&schema::environment(), &path);
    }
    accepts(&schema::environment(), &corpus().join("environments/fence.yaml"));
    accepts(&schema::project(), &project().spec.dir.join("lifeboat.yaml"));
}

#[test]
fn schemas_mark_what_they_can_know_to_be_wrong() {
    let runbook = schema::runbook(&registry());
    let marked = |path: &Path| !found(&runbook, &fs::read_to_string(path).unwrap()).is_empty();
    let seen: Vec<_> =
        files("invalid").into_iter().filter(|(_, path)| marked(path)).map(|(name, _)| name).collect();
    assert_eq!(seen, SEEN);
    let broken = fs::read_to_string(corpus().join("environments/broken.yaml")).unwrap();
    let found = found(&schema::environment(), &broken).join("\n");
    for place in ["/environment", "/protected", "/resources/db", "/resources/other", "/resources/files"] {
        assert!(found.contains(place), "{place} is not in\n{found}");
    }
}
