use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::calendar::{
    DrillSpec, NoticeSpec, ScheduleSpec, read_drills, read_group, read_notices, read_schedules,
    unknown_person,
};
use super::keys::Keys;
use super::reader::Reader;
use crate::diagnostic::{Diagnostics, Source};
use crate::value::Type;
use crate::yaml::{self, Node};

pub(super) const PROJECT_KEYS: &[&str] =
    &["project", "title", "state", "people", "roles", "drill", "notices", "drills", "schedules"];
const FILE_NAME: &str = "lifeboat.yaml";

/// `lifeboat.yaml` as written.
#[derive(Clone, Debug)]
pub struct ProjectSpec {
    pub name: String,
    /// The directory of the file.
    pub dir: PathBuf,
    /// Where runs are kept.
    pub state_dir: PathBuf,
    /// The group of the system whose members share the runs; its owner alone if absent.
    pub state_group: Option<String>,
    /// People by their login names.
    pub people: BTreeMap<String, PersonSpec>,
    /// Role to its people, as said under `roles` and under `people`.
    pub roles: BTreeMap<String, Vec<String>>,
    /// Whether the file has `roles`: then every role of a runbook should be held by somebody.
    pub declares_roles: bool,
    /// Whether drills in unprotected environments answer their own approvals.
    pub auto_approvals: bool,
    pub notices: Vec<NoticeSpec>,
    pub drills: Vec<DrillSpec>,
    pub schedules: Vec<ScheduleSpec>,
}

/// Somebody who may act on runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PersonSpec {
    /// The name that people read; the login name if absent.
    pub name: Option<String>,
    /// How to reach them.
    pub contact: Option<String>,
    pub roles: Vec<String>,
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
        let name = keys.need(reader, "project", "the project").and_then(|node| reader.text(node))?;
        keys.text(reader, "title");
        let (state_dir, state_group) =
            keys.get("state").map(|node| read_state(reader, node)).unwrap_or_default();
        let mut spec = Self {
            name,
            dir: dir.to_owned(),
            state_dir: state_dir.unwrap_or_else(|| dir.join(".lifeboat").join("state")),
            state_group,
            people: keys.get("people").map(|node| read_people(reader, node)).unwrap_or_default(),
            roles: keys.get("roles").map(|node| read_roles(reader, node)).unwrap_or_default(),
            declares_roles: keys.get("roles").is_some(),
            auto_approvals: keys.get("drill").is_some_and(|node| read_drill(reader, node)),
            notices: keys.get("notices").map(|node| read_notices(reader, node)).unwrap_or_default(),
            drills: keys.get("drills").map(|node| read_drills(reader, node)).unwrap_or_default(),
            schedules: keys.get("schedules").map(|node| read_schedules(reader, node)).unwrap_or_default(),
        };
        spec.check_people(reader, &keys);
        spec.gather_roles();
        Some((spec, Arc::clone(&source)))
    }

    /// Returns how the people of a role are called and reached.
    pub fn contacts(&self, role: &str) -> Vec<String> {
        let people = self.roles.get(role).into_iter().flatten();
        people.map(|login| self.people.get(login).map_or(login.clone(), |it| it.in_words(login))).collect()
    }

    /// Returns who holds a role, as people are called when they act.
    pub fn holders(&self, role: &str) -> Vec<String> {
        self.roles.get(role).into_iter().flatten().map(|login| self.called(login)).collect()
    }

    /// Returns how somebody is called in records: the login name, after the name that people read if there is one.
    pub fn called(&self, login: &str) -> String {
        match self.people.get(login).and_then(|person| person.name.as_deref()) {
            Some(name) if name != login => format!("{name} ({login})"),
            _ => login.to_owned(),
        }
    }

    fn check_people(&self, reader: &mut Reader<'_>, keys: &Keys<'_>) {
        let known: Vec<_> = self.people.keys().map(String::as_str).collect();
        for entry in keys.get("roles").and_then(Node::mapping).unwrap_or_default() {
            for person in entry.value.sequence().unwrap_or_default() {
                let unknown = person.text().is_some_and(|name| !known.contains(&name));
                if unknown && !known.is_empty() {
                    unknown_person(reader, person, &known);
                }
            }
        }
    }

    /// A role can be said under the person and under the role.
    fn gather_roles(&mut self) {
        for (login, person) in &self.people {
            for role in &person.roles {
                let holders = self.roles.entry(role.clone()).or_default();
                if !holders.contains(login) {
                    holders.push(login.clone());
                }
            }
        }
    }
}

impl PersonSpec {
    /// Returns the name, and how to reach them if that is known.
    fn in_words(&self, login: &str) -> String {
        let name = self.name.as_deref().unwrap_or(login);
        match &self.contact {
            Some(contact) => format!("{name} ({contact})"),
            None => name.to_owned(),
        }
    }
}

fn read_state(reader: &mut Reader<'_>, node: &Node) -> (Option<PathBuf>, Option<String>) {
    let path = |value: Value| value.as_str().map(PathBuf::from);
    if node.mapping().is_none() {
        return (reader.read(node, &Type::Path).and_then(path), None);
    }
    let Some(keys) = Keys::new(reader, node, "`state`", &["dir", "group"]) else { return (None, None) };
    let dir = keys.get("dir").and_then(|node| reader.read(node, &Type::Path)).and_then(path);
    (dir, keys.get("group").and_then(|node| read_group(reader, node)))
}

fn read_people(reader: &mut Reader<'_>, node: &Node) -> BTreeMap<String, PersonSpec> {
    let Some(entries) = node.mapping() else {
        reader.wrong(node, "a map of people");
        return BTreeMap::new();
    };
    entries.iter().map(|entry| (entry.key.text.clone(), read_person(reader, &entry.value))).collect()
}

fn read_person(reader: &mut Reader<'_>, node: &Node) -> PersonSpec {
    if node.is_null() {
        return PersonSpec::default();
    }
    let Some(keys) = Keys::new(reader, node, "a person", &["name", "roles", "contact"]) else {
        return PersonSpec::default();
    };
    PersonSpec {
        name: keys.text(reader, "name"),
        contact: keys.text(reader, "contact"),
        roles: keys.get("roles").map(|node| read_words(reader, node)).unwrap_or_default(),
    }
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
