use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::keys::Keys;
use super::reader::Reader;
use crate::diagnostic::{Diagnostic, Diagnostics, Source, codes};
use crate::value::Type;
use crate::yaml::{self, Node};

pub(super) const PROJECT_KEYS: &[&str] =
    &["project", "title", "state", "people", "roles", "drill", "notices", "drills", "schedules"];
/// Keys of the language that this version cannot carry out, with what to do instead.
pub(super) const REFUSED_PROJECT_KEYS: &[(&str, &str)] = &[
    ("notices", "write a `notify` step where a message is wanted"),
    ("drills", "start drills with `lifeboat drill` from a timer of the system"),
    ("schedules", "start runs with `lifeboat run` from a timer of the system"),
];
const FILE_NAME: &str = "lifeboat.yaml";

/// `lifeboat.yaml` as written.
#[derive(Clone, Debug)]
pub struct ProjectSpec {
    pub name: String,
    /// The directory of the file.
    pub dir: PathBuf,
    /// Where runs are kept.
    pub state_dir: PathBuf,
    /// Person to the roles they hold.
    pub people: BTreeMap<String, Vec<String>>,
    /// Role to its people.
    pub roles: BTreeMap<String, Vec<String>>,
    /// Whether drills in unprotected environments answer their own approvals.
    pub auto_approvals: bool,
}

/// Looks for `lifeboat.yaml` in a directory and all above it.
pub fn find_project(from: &Path) -> Option<PathBuf> {
    from.ancestors().find(|dir| dir.join(FILE_NAME).is_file()).map(Path::to_owned)
}

impl ProjectSpec {
    /// Reads `lifeboat.yaml` of a directory.
    pub fn read(dir: &Path, out: &mut Diagnostics) -> Option<(Self, Arc<Source>)> {
        let source = Source::read(&dir.join(FILE_NAME), FILE_NAME, out)?;
        let root = yaml::parse(&source, out)?;
        let mut reader = Reader::new(&source, out, dir);
        let reader = &mut reader;
        let keys = Keys::new(reader, &root, "a project", PROJECT_KEYS)?;
        keys.refuse(reader, REFUSED_PROJECT_KEYS);
        let name = keys.need(reader, "project", "the project").and_then(|node| reader.text(node))?;
        let state = keys.get("state").and_then(|node| read_state(reader, node));
        let spec = Self {
            name,
            dir: dir.to_owned(),
            state_dir: state.unwrap_or_else(|| dir.join(".lifeboat").join("state")),
            people: keys.get("people").map(|node| read_people(reader, node)).unwrap_or_default(),
            roles: keys.get("roles").map(|node| read_roles(reader, node)).unwrap_or_default(),
            auto_approvals: keys.get("drill").is_some_and(|node| read_drill(reader, node)),
        };
        spec.check_people(reader, &keys);
        Some((spec, Arc::clone(&source)))
    }

    fn check_people(&self, reader: &mut Reader<'_>, keys: &Keys<'_>) {
        for entry in keys.get("roles").and_then(Node::mapping).unwrap_or_default() {
            for person in entry.value.sequence().unwrap_or_default() {
                let known = person.text().is_none_or(|name| self.people.contains_key(name));
                if !known && !self.people.is_empty() {
                    let name = person.text().unwrap_or_default();
                    reader.push(
                        Diagnostic::error(codes::LB0137, format!("`{name}` is not among `people`"))
                            .at(reader.source, person.span.clone())
                            .suggest(name, "people", self.people.keys().map(String::as_str)),
                    );
                }
            }
        }
    }
}

fn read_state(reader: &mut Reader<'_>, node: &Node) -> Option<PathBuf> {
    let path = if node.mapping().is_some() {
        let keys = Keys::new(reader, node, "`state`", &["dir", "group"])?;
        keys.refuse(reader, &[("group", "give each person a state directory of their own")]);
        reader.read(keys.get("dir")?, &Type::Path)?
    } else {
        reader.read(node, &Type::Path)?
    };
    path.as_str().map(PathBuf::from)
}

fn read_people(reader: &mut Reader<'_>, node: &Node) -> BTreeMap<String, Vec<String>> {
    let Some(entries) = node.mapping() else {
        reader.wrong(node, "a map of people");
        return BTreeMap::new();
    };
    let mut people = BTreeMap::new();
    for entry in entries {
        let roles = match entry.value.is_null() {
            true => Vec::new(),
            false => Keys::new(reader, &entry.value, "a person", &["name", "roles", "contact"])
                .map(|keys| {
                    keys.text(reader, "name");
                    keys.text(reader, "contact");
                    keys.get("roles").map(|node| read_words(reader, node)).unwrap_or_default()
                })
                .unwrap_or_default(),
        };
        people.insert(entry.key.text.clone(), roles);
    }
    people
}

fn read_roles(reader: &mut Reader<'_>, node: &Node) -> BTreeMap<String, Vec<String>> {
    let Some(entries) = node.mapping() else {
        reader.wrong(node, "a map from role to people");
        return BTreeMap::new();
    };
    entries.iter().map(|entry| (entry.key.text.clone(), read_words(reader, &entry.value))).collect()
}

fn read_words(reader: &mut Reader<'_>, node: &Node) -> Vec<String> {
    let value = reader.read(node, &Type::list(Type::String)).unwrap_or_default();
    value.as_array().into_iter().flatten().filter_map(|word| word.as_str().map(ToOwned::to_owned)).collect()
}

/// Reads `drill: { approvals: auto }`.
pub(super) fn read_drill(reader: &mut Reader<'_>, node: &Node) -> bool {
    let Some(keys) = Keys::new(reader, node, "`drill`", &["approvals"]) else { return false };
    let word = keys.get("approvals").and_then(|node| reader.read(node, &Type::choice(&["auto", "ask"])));
    word.is_some_and(|word| word == "auto")
}
