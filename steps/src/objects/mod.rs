//! Step kinds for objects: `store.*`.
//!
//! The names of objects are data. Nothing here takes one for a path before [`names`] has looked at it.

mod choose;
mod directory;
mod fetch;
mod get;
mod glob;
mod list;
mod names;
mod notes;
mod policy;
mod promote;
mod prune;
mod put;
mod restore;
mod rollback;
mod send;
mod sync;
mod tree;
mod verify;
mod whole;

use std::path::{Path, PathBuf};

use lifeboat_engine::resource::System;
use lifeboat_engine::step::{Registry, StepContext, StepError};
use serde_json::{Map, Value};

use crate::store::{Key, codes};

/// Adds the kinds of this family.
pub fn register(registry: &mut Registry) {
    registry.register(get::Get);
    registry.register(list::Latest);
    registry.register(list::List);
    registry.register(policy::CheckPolicy);
    registry.register(promote::PromoteVersion);
    registry.register(prune::Prune);
    registry.register(put::Put);
    registry.register(restore::RestoreAsOf);
    registry.register(sync::Sync);
    registry.register(verify::Verify);
}

fn outputs(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(outputs) => outputs,
        _ => Map::new(),
    }
}

/// Returns the address of a store of the environment, for people.
fn url<'a>(ctx: &'a StepContext, name: &str) -> Result<&'a str, StepError> {
    let url = ctx.system(name, |system| match system {
        System::Store(store) => Some(&store.url),
        _ => None,
    });
    url.map(String::as_str)
}

/// Splits the path of a file into its directory and its name.
fn split(path: &Path) -> Result<(PathBuf, String), StepError> {
    let name = path.file_name().and_then(|name| name.to_str());
    match (path.parent(), name) {
        (Some(parent), Some(name)) if path.is_absolute() => Ok((parent.to_owned(), name.to_owned())),
        _ => Err(StepError::permanent(codes::LB1150, format!("{} is no path of a file", path.display()))
            .help("give an absolute path that ends with the name of a file")),
    }
}

/// Refuses a name that leads elsewhere, before a server is asked for it.
fn check_key(name: &str) -> Result<(), StepError> {
    match names::unusable([name], names::Case::Tells).first() {
        None if !name.ends_with('/') => Ok(()),
        problem => {
            let why = problem.map_or("it is a prefix", |problem| problem.why.as_str());
            Err(StepError::permanent(
                codes::LB1106,
                format!("`{}` cannot name an object: {why}", name.escape_debug()),
            )
            .help("give the name below the store's prefix, as `store.list` shows it"))
        }
    }
}

/// Reads a prefix, which is whole segments with or without a `/` at the end. An empty one is none.
fn prefix(text: Option<&str>) -> Result<Option<Key>, StepError> {
    match text.map(|text| text.strip_suffix('/').unwrap_or(text)) {
        None | Some("") => Ok(None),
        Some(text) => Key::new(text).map(Some),
    }
}
