use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::keys::{Keys, Spanned};
use super::reader::{Reader, Site};
use super::step::{ItemSpec, read_items};
use crate::diagnostic::{Diagnostic, Diagnostics, Source, codes};
use crate::expr::InputDecl;
use crate::model::ids::is_plain_id;
use crate::plan::Objective;
use crate::resource::{Access, ResourceKind};
use crate::value::{Span, Type};
use crate::yaml::{self, Entry, Node};

pub(super) const RUNBOOK_KEYS: &[&str] = &[
    "runbook",
    "title",
    "description",
    "owner",
    "environments",
    "objective",
    "roles",
    "milestones",
    "inputs",
    "outputs",
    "lock",
    "steps",
    "always",
];
pub(super) const INPUT_KEYS: &[&str] = &["type", "description", "default", "pattern", "values", "of", "kind"];
pub(super) const INPUT_TYPES: &[&str] = &[
    "string",
    "integer",
    "number",
    "boolean",
    "enum",
    "duration",
    "timestamp",
    "list",
    "map",
    "path",
    "resource",
];
/// What the elements of a list or a map may be.
pub(super) const INPUT_ELEMENTS: &[&str] =
    &["string", "integer", "number", "boolean", "duration", "timestamp"];

/// A runbook as written.
#[derive(Clone, Debug)]
pub struct RunbookSpec {
    pub source: Arc<Source>,
    pub name: Spanned<String>,
    pub title: String,
    pub description: Option<String>,
    pub owner: Option<String>,
    pub environments: Vec<Spanned<String>>,
    pub objective: Spanned<Objective>,
    /// Role to what it does, at the place of its name.
    pub roles: BTreeMap<String, Spanned<String>>,
    /// Deadlines counted from the incident.
    pub milestones: BTreeMap<String, Spanned<Span>>,
    pub inputs: Vec<InputSpec>,
    pub outputs: Vec<OutputSpec>,
    /// What no other run may have meanwhile, besides the systems that it writes.
    pub locks: Vec<LockSpec>,
    pub steps: Vec<ItemSpec>,
    pub always: Vec<ItemSpec>,
}

/// A declared input.
#[derive(Clone, Debug)]
pub struct InputSpec {
    pub decl: InputDecl,
    pub span: Range<usize>,
    /// The templates in its default.
    pub sites: Vec<Site>,
}

/// What a runbook gives to one that calls it.
#[derive(Clone, Debug)]
pub struct OutputSpec {
    pub name: String,
    /// A value, or a template over the names that its steps see.
    pub value: Value,
    pub sites: Vec<Site>,
}

/// A name that only one run may have at a time.
#[derive(Clone, Debug)]
pub struct LockSpec {
    /// The name, or a template over what is known before the run.
    pub name: Spanned<String>,
    pub sites: Vec<Site>,
}

impl RunbookSpec {
    /// Reads a runbook. `None` if it has no name, or is no map at all.
    pub fn read(source: &Arc<Source>, project_dir: &Path, out: &mut Diagnostics) -> Option<Self> {
        let root = yaml::parse(source, out)?;
        let mut reader = Reader::new(source, out, project_dir);
        let reader = &mut reader;
        let keys = Keys::new(reader, &root, "a runbook", RUNBOOK_KEYS)?;
        let name = read_name(reader, &keys, "runbook")?;
        let title = keys.text(reader, "title").unwrap_or_else(|| name.value.clone());
        let steps =
            keys.need(reader, "steps", "the runbook").map(|node| read_items(reader, node, "the runbook"));
        Some(Self {
            source: Arc::clone(source),
            description: keys.text(reader, "description"),
            owner: keys.text(reader, "owner"),
            environments: read_environments(reader, &keys),
            objective: read_objective(reader, &keys),
            roles: read_roles(reader, &keys),
            milestones: read_milestones(reader, &keys),
            inputs: keys.get("inputs").map(|node| read_inputs(reader, node)).unwrap_or_default(),
            outputs: keys.get("outputs").map(|node| read_outputs(reader, node)).unwrap_or_default(),
            locks: keys.get("lock").map(|node| read_locks(reader, node)).unwrap_or_default(),
            steps: steps.unwrap_or_default(),
            always: keys.get("always").map(|node| read_items(reader, node, "`always`")).unwrap_or_default(),
            title,
            name,
        })
    }
}

impl RunbookSpec {
    /// Returns the names of the runbooks that its steps call.
    pub fn calls(&self) -> Vec<&str> {
        let mut found = Vec::new();
        collect_calls(&self.steps, &mut found);
        collect_calls(&self.always, &mut found);
        found
    }
}

fn collect_calls<'s>(items: &'s [ItemSpec], found: &mut Vec<&'s str>) {
    for item in items {
        match item {
            ItemSpec::Group(group) => collect_calls(&group.steps, found),
            ItemSpec::Step(step) => found.extend(step.call().map(|call| call.runbook.value.as_str())),
        }
    }
}

/// Reads the name of a runbook or an environment: it is typed in commands and is part of file names.
pub(super) fn read_name(reader: &mut Reader<'_>, keys: &Keys<'_>, key: &str) -> Option<Spanned<String>> {
    let node = keys.need(reader, key, &format!("this {key}"))?;
    let text = reader.text(node)?;
    let fine = text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_'));
    if !fine {
        reader.push(
            Diagnostic::error(codes::LB0110, format!("`{text}` cannot be a name under `{key}`"))
                .at(reader.source, node.span.clone())
                .help("a lower-case letter, then lower-case letters, digits, `-` and `_`"),
        );
    }
    Some(Spanned::new(text, node.span.clone()))
}

fn read_environments(reader: &mut Reader<'_>, keys: &Keys<'_>) -> Vec<Spanned<String>> {
    let Some(node) = keys.need(reader, "environments", "the runbook") else { return Vec::new() };
    let Some(nodes) = node.sequence() else {
        reader.wrong(node, "a list of environments");
        return Vec::new();
    };
    if nodes.is_empty() {
        reader.push(
            Diagnostic::error(codes::LB0105, "the runbook may run in no environment")
                .at(reader.source, node.span.clone())
                .help("list the environments that it is written for: `environments: [staging]`"),
        );
    }
    nodes.iter().filter_map(|node| Some(Spanned::new(reader.text(node)?, node.span.clone()))).collect()
}

fn read_objective(reader: &mut Reader<'_>, keys: &Keys<'_>) -> Spanned<Objective> {
    let Some(entry) = keys.entry("objective") else { return Spanned::new(Objective::default(), 0..0) };
    let node = &entry.value;
    let Some(inner) = Keys::new(reader, node, "`objective`", &["rto", "rpo"]) else {
        return Spanned::new(Objective::default(), node.span.clone());
    };
    let objective = Objective { rto: inner.span(reader, "rto"), rpo: inner.span(reader, "rpo") };
    let span =
        inner.entry("rto").map_or(entry.key.span.clone(), |rto| rto.key.span.start..rto.value.span.end);
    Spanned::new(objective, span)
}

fn read_roles(reader: &mut Reader<'_>, keys: &Keys<'_>) -> BTreeMap<String, Spanned<String>> {
    let Some(node) = keys.get("roles") else { return BTreeMap::new() };
    let Some(entries) = node.mapping() else {
        reader.wrong(node, "a map of roles");
        return BTreeMap::new();
    };
    // A role whose description is wrong is a role all the same.
    let read = entries.iter().map(|entry| {
        let words = reader.text(&entry.value).unwrap_or_default();
        (entry.key.text.clone(), Spanned::new(words, entry.key.span.clone()))
    });
    read.collect()
}

fn read_milestones(reader: &mut Reader<'_>, keys: &Keys<'_>) -> BTreeMap<String, Spanned<Span>> {
    let Some(node) = keys.get("milestones") else { return BTreeMap::new() };
    let Some(entries) = node.mapping() else {
        reader.wrong(node, "a map of milestones");
        return BTreeMap::new();
    };
    // A milestone whose deadline is wrong is declared all the same.
    let read = entries.iter().map(|entry| {
        let span = reader.duration(&entry.value).unwrap_or(Span(std::time::Duration::ZERO));
        (entry.key.text.clone(), Spanned::new(span, entry.key.span.clone()))
    });
    read.collect()
}

fn read_inputs(reader: &mut Reader<'_>, node: &Node) -> Vec<InputSpec> {
    let Some(entries) = node.mapping() else {
        reader.wrong(node, "a map of inputs");
        return Vec::new();
    };
    let mut inputs = Vec::new();
    for entry in entries {
        if !plain_name(reader, entry, "an input") {
            continue;
        }
        inputs.extend(read_input(reader, &entry.key.text, &entry.key.span, &entry.value));
    }
    inputs
}

/// Says whether a key can be named in expressions, and reports it if not.
fn plain_name(reader: &mut Reader<'_>, entry: &Entry, what: &str) -> bool {
    let plain = is_plain_id(&entry.key.text);
    if !plain {
        let message = format!("`{}` is not the name of {what}", entry.key.text);
        reader.push(
            Diagnostic::error(codes::LB0110, message)
                .at(reader.source, entry.key.span.clone())
                .help("a lower-case letter, then lower-case letters, digits and `_`"),
        );
    }
    plain
}

fn read_outputs(reader: &mut Reader<'_>, node: &Node) -> Vec<OutputSpec> {
    let Some(entries) = node.mapping() else {
        reader.wrong(node, "a map of outputs");
        return Vec::new();
    };
    let mut outputs = Vec::new();
    for entry in entries {
        if !plain_name(reader, entry, "an output") {
            continue;
        }
        let before = reader.sites.len();
        reader.templates = true;
        let value = reader.read(&entry.value, &Type::Any);
        reader.templates = false;
        let sites = reader.sites.drain(before..).collect();
        outputs.extend(value.map(|value| OutputSpec { name: entry.key.text.clone(), value, sites }));
    }
    outputs
}

/// Reads `lock: NAME` and `lock: [NAME, …]`.
fn read_locks(reader: &mut Reader<'_>, node: &Node) -> Vec<LockSpec> {
    match node.sequence() {
        Some(nodes) => nodes.iter().filter_map(|node| read_lock(reader, node)).collect(),
        None => read_lock(reader, node).into_iter().collect(),
    }
}

fn read_lock(reader: &mut Reader<'_>, node: &Node) -> Option<LockSpec> {
    let before = reader.sites.len();
    reader.templates = true;
    let name = reader.text(node);
    reader.templates = false;
    let sites = reader.sites.drain(before..).collect();
    let name = name?.trim().to_owned();
    if name.is_empty() {
        reader.push(
            Diagnostic::error(codes::LB0165, "a lock without a name locks nothing")
                .at(reader.source, node.span.clone())
                .help("name what no other run may have meanwhile, such as `lock: restore-{{ vars.site }}`"),
        );
        return None;
    }
    Some(LockSpec { name: Spanned::new(name, node.span.clone()), sites })
}

fn read_input(reader: &mut Reader<'_>, name: &str, span: &Range<usize>, node: &Node) -> Option<InputSpec> {
    // An input whose type is wrong is declared all the same.
    let Some(keys) = Keys::new(reader, node, "an input", INPUT_KEYS) else {
        let decl = InputDecl {
            name: name.to_owned(),
            ty: Type::Any,
            pattern: None,
            default: None,
            description: String::new(),
        };
        return Some(InputSpec { decl, span: span.clone(), sites: Vec::new() });
    };
    let known_type = input_type(reader, &keys);
    let pattern = known_type.as_ref().and_then(|ty| read_pattern(reader, &keys, ty));
    let ty = known_type.unwrap_or(Type::Any);
    let before = reader.sites.len();
    reader.templates = true;
    let default = keys.get("default").and_then(|node| read_default(reader, node, &ty));
    reader.templates = false;
    let sites = reader.sites.drain(before..).collect();
    let description = keys.text(reader, "description").unwrap_or_default();
    if let (Some(pattern), Some(text)) = (&pattern, default.as_ref().and_then(|value| value.as_str()))
        && !crate::expr::has_template(text)
        && !crate::pattern::whole(pattern).is_ok_and(|regex| regex.is_match(text))
    {
        let at = keys.get("default").map_or(span.clone(), |node| node.span.clone());
        reader.push(
            Diagnostic::error(codes::LB0143, format!("the default does not match the pattern `{pattern}`"))
                .at(reader.source, at)
                .help("the pattern must match the whole text; correct one of the two"),
        );
    }
    let decl = InputDecl { name: name.to_owned(), ty, pattern, default, description };
    Some(InputSpec { decl, span: span.clone(), sites })
}

/// A default that names a resource is checked like any other text; the resource is looked up when it is used.
fn read_default(reader: &mut Reader<'_>, node: &Node, ty: &Type) -> Option<Value> {
    if !matches!(ty, Type::Resource { .. }) {
        return reader.read(node, ty);
    }
    if node.mapping().is_some() {
        let message = "the default of a resource is the name of one that environments have";
        reader.push(
            Diagnostic::error(codes::LB0106, message)
                .at(reader.source, node.span.clone())
                .help("remove it; a runbook that calls this one can give what a step of its own makes"),
        );
        return None;
    }
    reader.read(node, &Type::String)
}

fn input_type(reader: &mut Reader<'_>, keys: &Keys<'_>) -> Option<Type> {
    let Some(node) = keys.get("type") else { return Some(Type::String) };
    let word = reader.read(node, &Type::choice(INPUT_TYPES))?;
    Some(match word.as_str()? {
        "string" => Type::String,
        "integer" => Type::Integer,
        "number" => Type::Number,
        "boolean" => Type::Boolean,
        "duration" => Type::Duration,
        "timestamp" => Type::Timestamp,
        "path" => Type::Path,
        "list" => Type::list(element_type(reader, keys)?),
        "map" => Type::map(element_type(reader, keys)?),
        "enum" => {
            let values = keys.need(reader, "values", "an input of type enum")?;
            let words = reader.read(values, &Type::list(Type::String))?;
            Type::Choice(
                words.as_array()?.iter().filter_map(|word| word.as_str().map(ToOwned::to_owned)).collect(),
            )
        }
        _ => Type::Resource { kinds: resource_kind(reader, keys)?, access: Access::Read },
    })
}

fn element_type(reader: &mut Reader<'_>, keys: &Keys<'_>) -> Option<Type> {
    let Some(node) = keys.get("of") else { return Some(Type::Any) };
    let word = reader.read(node, &Type::choice(INPUT_ELEMENTS))?;
    Some(match word.as_str()? {
        "integer" => Type::Integer,
        "number" => Type::Number,
        "boolean" => Type::Boolean,
        "duration" => Type::Duration,
        "timestamp" => Type::Timestamp,
        _ => Type::String,
    })
}

fn resource_kind(reader: &mut Reader<'_>, keys: &Keys<'_>) -> Option<Vec<ResourceKind>> {
    let node = keys.need(reader, "kind", "an input of type resource")?;
    let word = reader.read(node, &Type::choice(super::RESOURCE_KINDS))?;
    serde_json::from_value(word).ok().map(|kind| vec![kind])
}

fn read_pattern(reader: &mut Reader<'_>, keys: &Keys<'_>, ty: &Type) -> Option<String> {
    let node = keys.get("pattern")?;
    let pattern = reader.text(node)?;
    if *ty != Type::String {
        reader.push(
            Diagnostic::error(codes::LB0106, format!("{} takes no `pattern`", ty.in_words()))
                .at(reader.source, node.span.clone())
                .help("remove it, or say `type: string`"),
        );
        return None;
    }
    match crate::pattern::whole(&pattern) {
        Ok(_) => Some(pattern),
        Err(reason) => {
            reader.push(
                Diagnostic::error(codes::LB0106, format!("not a regular expression: {reason}"))
                    .at(reader.source, node.span.clone())
                    .help("write a backslash before a sign that is meant as itself, such as `\\.` or `\\(`; single quotes keep backslashes"),
            );
            None
        }
    }
}
