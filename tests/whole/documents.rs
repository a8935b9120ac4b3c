//! What is generated from the code is current, and what the documentation shows works.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::project::Project;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn the_schemas_in_the_repository_are_those_of_the_program() {
    let schemas = repository().join("schemas");
    Project::new().run(&["schema", "--check", &schemas.to_string_lossy()]).expect(0);
}

#[test]
fn schemas_are_written_and_compared() {
    let project = Project::new();
    project.run(&["schema", "--check", "schemas"]).expect(1);
    project.run(&["schema", "--write", "schemas"]).expect(0);
    project.run(&["schema", "--check", "schemas"]).expect(0);
    project.write("schemas/runbook.schema.json", "{}");
    let ran = project.run(&["schema", "--check", "schemas"]).expect(1);
    assert_eq!(ran.stdout, "schemas/runbook.schema.json\n");
    let printed = project.run(&["schema", "environment"]).expect(0).json();
    assert_eq!(printed["title"], "A Lifeboat environment");
}

#[test]
fn the_reference_of_step_kinds_is_current() {
    let printed = Project::new().run(&["steps", "--reference"]).expect(0).stdout;
    let kept = fs::read_to_string(repository().join("docs/steps.md")).expect("docs/steps.md");
    let at = printed.lines().zip(kept.lines()).position(|(printed, kept)| printed != kept);
    assert!(printed == kept, "docs/steps.md differs in line {:?}", at.map(|line| line + 1));
}

/// What editors find in a file.
fn found(schema: &Value, text: &str) -> Vec<String> {
    let document: Value = serde_yaml::from_str(text).expect("YAML");
    let validator = jsonschema::draft202012::new(schema).expect("a schema");
    validator.iter_errors(&document).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

#[test]
fn editors_and_the_program_agree_about_the_examples() {
    let demo = repository().join("examples/demo");
    let project = Project::new();
    for (folder, document) in [("runbooks", "runbook"), ("environments", "environment"), (".", "project")] {
        let schema = project.run(&["schema", document]).expect(0).json();
        for entry in fs::read_dir(demo.join(folder)).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !name.ends_with(".yaml") {
                continue;
            }
            let found = found(&schema, &fs::read_to_string(&path).expect("a file"));
            let checked = project.run(&["-C", &demo.to_string_lossy(), "check", &name]);
            assert_eq!(found.is_empty(), checked.exit == 0, "{name}: {found:#?}\n{}", checked.all());
        }
    }
}
