//! What is generated from the code is current, and what the documentation shows works.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::project::Project;

pub(crate) fn repository() -> PathBuf {
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
    let mut document: serde_yaml::Value = serde_yaml::from_str(text).expect("YAML");
    // As editors do.
    document.apply_merge().expect("merge keys");
    let document = serde_json::to_value(document).expect("names are text");
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
            let checked = project.run(&["-C", &demo.to_string_lossy(), "check", &format!("{folder}/{name}")]);
            assert_eq!(found.is_empty(), checked.exit == 0, "{name}: {found:#?}\n{}", checked.all());
        }
    }
}

/// The blocks of YAML in a guide, each with the line it begins on.
pub(crate) fn blocks(guide: &str) -> Vec<(usize, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (at, line) in guide.lines().enumerate() {
        match &mut open {
            None if line == "```yaml" => open = Some((at + 2, String::new())),
            Some(_) if line == "```" => blocks.extend(open.take()),
            Some((_, text)) => text.extend([line, "\n"]),
            None => {}
        }
    }
    assert!(open.is_none(), "a block without an end");
    blocks
}

/// The document that a block is, and its text; a list of steps becomes a runbook.
pub(crate) fn as_document(line: usize, text: &str) -> (&'static str, String, String) {
    let name = |key: &str| text.strip_prefix(key)?.lines().next().map(|name| name.trim().to_owned());
    if let Some(name) = name("runbook:") {
        return ("runbook", format!("runbooks/{name}.yaml"), text.to_owned());
    }
    if let Some(name) = name("environment:") {
        return ("environment", format!("environments/{name}.yaml"), text.to_owned());
    }
    if text.starts_with("project:") {
        return ("project", "lifeboat.yaml".to_owned(), text.to_owned());
    }
    let steps: String = text.lines().map(|line| format!("  {line}\n")).collect();
    let roles = "roles: { on_call: Whoever answers the phone }";
    let text = format!("runbook: line-{line}\nenvironments: [staging]\n{roles}\nsteps:\n{steps}");
    ("runbook", format!("runbooks/line-{line}.yaml"), text)
}

#[test]
fn every_example_of_the_guide_is_right() {
    assert!(compiled("docs/runbooks.md").1 >= 8);
}

/// Makes a project of the blocks of a page and checks it; returns it with their number.
pub(crate) fn compiled(page: &str) -> (Project, usize) {
    let guide = fs::read_to_string(repository().join(page)).expect("a page");
    let project = Project::empty();
    let blocks = blocks(&guide);
    for (line, text) in &blocks {
        let (document, path, text) = as_document(*line, text);
        assert!(!project.file(&path).exists(), "line {line}: a second {path}");
        let schema = project.run(&["schema", document]).expect(0).json();
        let found = found(&schema, &text);
        assert!(found.is_empty(), "line {line}: {found:#?}");
        project.write(&path, &text);
    }
    if !project.file("lifeboat.yaml").exists() {
        project.write("lifeboat.yaml", "project: page\n");
    }
    project.run(&["check", "--deny-warnings"]).expect(0);
    (project, blocks.len())
}
