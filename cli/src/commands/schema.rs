//! `lifeboat schema`: the JSON Schemas that editors complete and check files with.

use std::fs;
use std::path::Path;

use lifeboat_engine::spec::schema;
use lifeboat_engine::step::Registry;

use crate::args::{Document, SchemaArgs};
use crate::exit::{Exit, Failure, Outcome};
use crate::render;

/// Prints one schema, or writes or compares all of them.
pub(crate) fn schema(registry: &Registry, args: &SchemaArgs) -> Outcome {
    match (&args.write, &args.check) {
        (Some(dir), _) => {
            for path in write(registry, dir)? {
                crate::say::say!("wrote {path}");
            }
            Ok(Exit::Success)
        }
        (None, Some(dir)) => check(registry, dir),
        (None, None) => {
            let schema = match args.document {
                Document::Runbook => schema::runbook(registry),
                Document::Environment => schema::environment(),
                Document::Project => schema::project(),
                Document::Check => schema::check(),
                Document::Plan => lifeboat_engine::outlook::schema::plan(),
            };
            crate::say::put!("{}", render::json(&schema)?);
            Ok(Exit::Success)
        }
    }
}

/// Returns each schema with the name of its file.
pub(crate) fn files(registry: &Registry) -> Result<Vec<(String, String)>, Failure> {
    let printed = [("plan", lifeboat_engine::outlook::schema::plan())];
    let all = schema::all(registry).into_iter().chain(printed);
    all.map(|(document, schema)| Ok((format!("{document}.schema.json"), render::json(&schema)?))).collect()
}

/// Says whether a schema is of something that is printed, not of a file that people write.
pub(crate) fn is_output(name: &str) -> bool {
    name == "plan.schema.json"
}

/// Writes all schemas into a directory and returns their paths.
fn write(registry: &Registry, dir: &Path) -> Result<Vec<String>, Failure> {
    fs::create_dir_all(dir).map_err(|error| {
        Failure::new(Exit::Failed, format!("`{}` cannot be made", dir.display())).caused_by(&error)
    })?;
    let mut written = Vec::new();
    for (name, text) in files(registry)? {
        let path = dir.join(name);
        render::write(&path, &text)?;
        written.push(path.display().to_string());
    }
    Ok(written)
}

/// Compares what a directory holds with what would be written, and names the files that differ on standard output.
/// Schemas of what is printed may be absent: editors have no use for them.
fn check(registry: &Registry, dir: &Path) -> Outcome {
    let mut different = 0;
    for (name, text) in files(registry)? {
        let path = dir.join(&name);
        let kept = fs::read_to_string(&path).ok();
        if kept.as_ref() != Some(&text) && !(kept.is_none() && is_output(&name)) {
            crate::say::putln!("{}", path.display());
            different += 1;
        }
    }
    if different == 0 {
        return Ok(Exit::Success);
    }
    Err(Failure::internal(format!("{different} schemas are not those of this version"))
        .help(format!("write them again: lifeboat schema --write {}", dir.display())))
}
