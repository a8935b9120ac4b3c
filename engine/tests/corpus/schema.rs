//! The schemas against the reader: what the reader accepts a schema accepts too, and what a schema can know to be
//! wrong it marks.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use lifeboat_engine::spec::schema;
use serde_json::Value;

use super::kinds::registry;
use super::{corpus, files, project};

/// The broken files whose rule a schema cannot express, with the reason.
const BEYOND: &[(&str, &[&str])] = &[
    (
        "it takes other steps of the runbook, or their order",
        &[
            "always_needs_a_step",
            "made_by_no_maker",
            "made_later",
            "made_of_another_kind",
            "made_perhaps",
            "made_unknown_step",
            "made_by_a_group",
            "made_by_a_sibling",
            "made_by_what_may_fail",
            "made_for_always",
            "made_for_each",
            "made_for_what_no_step_makes",
            "made_inside_a_called_runbook",
            "connection_to_a_step_that_makes_nothing",
            "failure_and_success",
            "failure_never",
            "undo_in_always",
            "undo_role",
            "undo_reads_a_later_step",
            "budgets_beyond_rto",
            "cycle",
            "cycle_through_groups",
            "destroys_without_backup",
            "duplicate_id",
            "duplicate_id_of_a_group",
            "input_of_another_kind_of_resource",
            "input_that_names_no_resource",
            "milestone_not_declared",
            "milestone_that_nobody_marks",
            "needs_a_step_of_always",
            "needs_its_group",
            "needs_itself",
            "no_recovered",
            "role_not_declared",
            "unknown_input_for_a_resource",
            "unknown_milestone",
            "unknown_role",
            "unknown_step_in_needs",
        ],
    ),
    (
        "it takes other files: environments, called runbooks",
        &[
            "connection_to_what_has_none",
            "connection_to_a_database_of_http",
            "connection_to_a_store",
            "connection_to_an_unknown_resource",
            "made_of_another_kind_for_a_call",
            "made_written_as_text",
            "resource_input_only_to_be_read",
            "resource_password",
            "resource_path_of_one_environment",
            "resource_url",
            "resource_webhook",
            "secret_of_a_resource_misspelt",
            "test_for_a_misspelt_resource",
            "undo_unknown_resource",
            "undo_writes_what_is_only_to_be_read",
            "optional_resource",
            "host_that_is_no_host",
            "input_of_a_call_against_its_pattern",
            "missing_input_of_a_call",
            "read_only_resource",
            "read_only_system_for_a_call",
            "resource_of_one_environment_only",
            "runbook_of_another_environment",
            "runbook_that_calls_itself",
            "secret_of_one_environment_only",
            "unknown_input_of_a_call",
            "unknown_resource",
            "unknown_resource_far_from_all",
            "unknown_resource_in_both_environments",
            "unknown_runbook",
            "unknown_secret",
            "wrong_resource_kind",
            "wrong_system_for_a_call",
            "wrong_type_of_an_input_of_a_call",
        ],
    ),
    (
        "a script or an expression is text to a schema",
        &[
            "default_reads_a_step",
            "loop_over_no_list",
            "lock_input",
            "lock_step",
            "loop_index_outside",
            "undo_quotes",
            "undo_reads_own_outputs",
            "undo_unknown_output",
            "loop_in_condition",
            "loop_index_of_a_single_step",
            "loop_item_is_text",
            "loop_key_of_some_items",
            "loop_may_be_absent",
            "loop_of_its_own_item",
            "loop_output_without_index",
            "loop_outside",
            "loop_title",
            "loop_unknown_key_of_item",
            "loop_unknown_output",
            "until_unknown_output",
            "expression_ends_early",
            "expression_with_ampersands",
            "expression_with_an_exclamation_mark",
            "expression_with_an_open_parenthesis",
            "expression_with_an_open_quote",
            "expression_with_one_equals_sign",
            "expression_with_two_values",
            "foreign_name_in_a_condition_of_a_kind",
            "input_declared_below",
            "input_without_namespace",
            "output_of_a_group",
            "output_of_a_kind_without_outputs",
            "output_of_an_unknown_step",
            "output_that_may_be_absent",
            "place_in_a_double_quoted_scalar",
            "place_in_a_flow_map_of_several_lines",
            "place_in_a_folded_scalar",
            "place_in_a_group_in_a_group",
            "place_in_a_literal_scalar",
            "place_in_a_plain_scalar_of_two_lines",
            "place_in_a_single_quoted_scalar",
            "place_in_always",
            "place_with_crlf",
            "reads_a_call_that_may_be_skipped",
            "reads_a_handler",
            "reads_a_later_step",
            "reads_a_sibling",
            "reads_a_step_of_a_called_runbook",
            "reads_from_always",
            "reads_itself",
            "reads_what_may_be_skipped",
            "reads_what_may_fail",
            "reads_what_may_have_failed",
            "step_without_namespace",
            "template_after_a_backslash",
            "template_after_a_dollar",
            "template_block_without_end",
            "template_in_a_comment",
            "template_in_a_here_document",
            "template_in_a_parameter",
            "template_in_arithmetic",
            "template_in_backticks",
            "template_in_double_quotes",
            "template_in_double_quotes_beside_env",
            "template_in_single_quotes",
            "template_of_another_program",
            "template_with_an_unknown_statement",
            "template_without_end",
            "template_without_expression",
            "unknown_attribute_of_a_resource",
            "unknown_field_of_incident",
            "unknown_field_of_run",
            "unknown_filter",
            "unknown_function",
            "unknown_input",
            "unknown_input_in_a_script",
            "unknown_namespace",
            "unknown_output",
            "unknown_output_in_expect",
            "unknown_output_of_a_call",
            "unknown_part_of_an_output",
            "unknown_resource_in_an_expression",
            "unknown_step",
            "unknown_test",
            "unknown_variable",
        ],
    ),
    (
        "one value is held against another",
        &[
            "default_against_the_pattern",
            "resource_input_made_by_a_step",
            "lock_empty",
            "pattern_not_valid",
            "timestamp_in_words",
            "timestamp_without_zone",
            "pattern_too_large",
            "side_key_twice",
            "every_longer_than_timeout",
        ],
    ),
    ("only the kind of step knows", &["kind_says_no", "until_of_a_change", "until_of_a_person"]),
    (
        "the YAML of the schema's reader is less strict",
        &["yaml_comment_without_blank", "yaml_quote_not_indented"],
    ),
    ("it is doubtful, not wrong: a warning", &["no_as_text", "octal_as_text"]),
];

/// What a schema finds in a file; a file that is no YAML is one mistake.
pub(super) fn found(schema: &Value, text: &str) -> Vec<String> {
    let read = serde_yaml::from_str::<serde_yaml::Value>(text).and_then(|mut document| {
        document.apply_merge()?;
        Ok(document)
    });
    let document =
        match read.map(|document| serde_json::to_value(document).map_err(|error| error.to_string())) {
            Ok(Ok(document)) => document,
            Ok(Err(error)) => return vec![error],
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
    let unseen: BTreeSet<_> =
        files("invalid").into_iter().filter(|(_, path)| !marked(path)).map(|(name, _)| name).collect();
    let beyond: BTreeSet<_> =
        BEYOND.iter().flat_map(|(_, names)| *names).map(|name| (*name).to_owned()).collect();
    let (not_told, told) = (unseen.difference(&beyond), beyond.difference(&unseen));
    assert_eq!((not_told.collect(), told.collect()), (Vec::<&String>::new(), Vec::<&String>::new()));
    let broken = fs::read_to_string(corpus().join("environments/broken.yaml")).unwrap();
    let found = found(&schema::environment(), &broken).join("\n");
    for place in ["/environment", "/protected", "/resources/db", "/resources/other", "/resources/files"] {
        assert!(found.contains(place), "{place} is not in\n{found}");
    }
}
