//! JSON Schemas for editors, from the same tables that the reader uses.
//!
//! A schema helps while typing; it is wider than the reader, which alone decides: names, templates and whatever
//! depends on another file are not checked. The one exception is an empty value of an optional key. The reader takes
//! it for absent, the schema marks it, for it is mostly a line that somebody has not finished.

pub(super) mod about;
mod types;

use serde_json::{Map, Value, json};

use self::types::{Templates, closed, duration, of_type, with_fields};
use super::calendar::{DRILL_KEYS, SCHEDULE_KEYS};
use super::environment::ENVIRONMENT_KEYS;
use super::project::PROJECT_KEYS;
use super::resources::{RESOURCE_KINDS, resource_fields};
use super::retry::retry_fields;
use super::runbook::{INPUT_ELEMENTS, INPUT_KEYS, INPUT_TYPES, RUNBOOK_KEYS};
use super::step::{BODIES, GROUP_KEYS, NOT_OF_CALLS, STEP_KEYS, UNDO_KEYS};
use crate::notice::Occasion;
use crate::step::{Effect, KindSpec, Registry};
use crate::value::Type;

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";
const PLAIN_ID: &str = "^[a-z][a-z0-9_]*$";

/// Returns the schemas of all documents, by the name of the document.
pub fn all(registry: &Registry) -> [(&'static str, Value); 4] {
    let check = ("check", check());
    [("runbook", runbook(registry)), ("environment", environment()), ("project", project()), check]
}

/// Returns the schema of what `lifeboat check --format json` prints.
pub fn check() -> Value {
    let count = |what: &str| json!({ "type": "integer", "minimum": 0, "description": what });
    let position = |what: &str| json!({ "type": "integer", "minimum": 1, "description": what });
    let places = json!({
        "line": position("counted from 1"),
        "column": position("counted from 1, in characters"),
        "end_line": position("where it ends"),
        "end_column": position("the first character that does not belong to it"),
    });
    let mut fix = places.clone();
    fix["replacement"] = json!({ "type": "string", "description": "what to write in its place" });
    let mut problem = places;
    problem["code"] = json!({ "type": "string", "pattern": "^LB[0-9]{4}$" });
    problem["severity"] = json!({ "enum": ["error", "warning"] });
    problem["message"] = json!({ "type": "string" });
    problem["help"] = json!({ "type": "string", "description": "what to do next" });
    problem["file"] = json!({ "type": "string", "description": "relative to the project" });
    let needed = ["line", "column", "end_line", "end_column", "replacement"];
    problem["fix"] = closed(fix, &needed);
    let root = json!({
        "format": { "const": crate::diagnostic::JSON_FORMAT, "description": "the version of this document" },
        "errors": count("how many there are"),
        "warnings": count("how many there are"),
        "not_listed": count("how many problems there are beyond those listed"),
        "problems": { "type": "array", "items": closed(problem, &["code", "severity", "message"]) },
    });
    document(
        "Problems found by lifeboat check",
        root,
        &["format", "errors", "warnings", "not_listed", "problems"],
    )
}

/// Returns the schema of runbooks, with the parameters of every kind.
pub fn runbook(registry: &Registry) -> Value {
    let mut root = keys(RUNBOOK_KEYS, about::of_runbook);
    let mut input = keys(INPUT_KEYS, about::of_input);
    set(&mut input, "type", json!({ "enum": INPUT_TYPES }));
    set(&mut input, "description", text());
    set(&mut input, "pattern", text());
    set(&mut input, "values", of_type(&Type::list(Type::String), Templates::Refused));
    set(&mut input, "of", json!({ "enum": INPUT_ELEMENTS }));
    set(&mut input, "kind", json!({ "enum": RESOURCE_KINDS }));
    let inputs = json!({
        "type": "object",
        "propertyNames": { "pattern": PLAIN_ID },
        "additionalProperties": with_input_rules(closed(input, &[])),
    });
    set(&mut root, "inputs", inputs);
    set(&mut root, "outputs", json!({ "type": "object", "propertyNames": { "pattern": PLAIN_ID } }));
    set(&mut root, "runbook", name());
    for key in ["title", "description", "owner"] {
        set(&mut root, key, text());
    }
    let names = json!({ "type": "array", "items": text() });
    set(&mut root, "lock", json!({ "anyOf": [text(), names] }));
    for key in ["steps", "always"] {
        set(&mut root, key, json!({ "$ref": "#/$defs/steps" }));
    }
    set(&mut root, "environments", json!({ "type": "array", "items": text(), "minItems": 1 }));
    set(&mut root, "objective", closed(json!({ "rto": duration(), "rpo": duration() }), &[]));
    set(&mut root, "milestones", json!({ "type": "object", "additionalProperties": duration() }));
    set(&mut root, "roles", json!({ "type": "object", "additionalProperties": text() }));
    let mut schema = document("A Lifeboat runbook", root, &["runbook", "environments", "steps"]);
    schema["$defs"] = json!({
        "step": step(registry),
        "undo": undo(registry),
        "group": group(),
        "steps": {
            "type": "array",
            "minItems": 1,
            "items": {
                "if": { "type": "object", "required": ["group"] },
                "then": { "$ref": "#/$defs/group" },
                "else": { "$ref": "#/$defs/step" },
            },
        },
    });
    for spec in registry.specs() {
        let mut with = with_fields(&spec.params, Templates::Allowed);
        with["description"] = json!(spec.summary);
        schema["$defs"][name_of_parameters(spec)] = with;
    }
    schema
}

/// Adds what the type of an input asks for.
fn with_input_rules(mut input: Value) -> Value {
    let of_type = |word: &str| json!({ "properties": { "type": { "const": word } }, "required": ["type"] });
    input["allOf"] = json!([
        { "if": of_type("enum"), "then": { "required": ["values"] } },
        { "if": of_type("resource"), "then": { "required": ["kind"] } },
        {
            "if": { "properties": { "type": { "not": { "const": "string" } } }, "required": ["type"] },
            "then": { "properties": { "pattern": false } },
        },
    ]);
    input
}

/// Returns the schema of environments.
pub fn environment() -> Value {
    let branches: Vec<_> = RESOURCE_KINDS
        .iter()
        .map(|kind| {
            json!({
                "if": { "properties": { "kind": { "const": kind } }, "required": ["kind"] },
                "then": with_fields(&resource_fields(kind), Templates::Refused),
            })
        })
        .collect();
    let mut root = keys(ENVIRONMENT_KEYS, about::of_environment);
    let resources = json!({
        "type": "object",
        "propertyNames": { "pattern": PLAIN_ID },
        "additionalProperties": {
            "type": "object",
            "required": ["kind"],
            "properties": { "kind": { "enum": RESOURCE_KINDS } },
            "allOf": branches,
        },
    });
    let secrets =
        json!({ "type": "object", "additionalProperties": of_type(&Type::Secret, Templates::Refused) });
    set(&mut root, "environment", name());
    set(&mut root, "title", text());
    set(&mut root, "description", text());
    set(&mut root, "protected", json!({ "type": "boolean" }));
    set(&mut root, "drill", drill());
    set(&mut root, "resources", resources);
    set(&mut root, "secrets", secrets);
    set(&mut root, "vars", json!({ "type": "object" }));
    document("A Lifeboat environment", root, &["environment"])
}

/// Returns the schema of `lifeboat.yaml`.
pub fn project() -> Value {
    let words = of_type(&Type::list(Type::String), Templates::Refused);
    let person = closed(json!({ "name": text(), "roles": words, "contact": text() }), &[]);
    let person = json!({ "anyOf": [person, { "type": "null" }] });
    let mut root = keys(PROJECT_KEYS, about::of_project);
    set(&mut root, "project", text());
    set(&mut root, "title", text());
    set(
        &mut root,
        "state",
        json!({ "anyOf": [{ "type": "string" }, closed(json!({ "dir": text(), "group": text() }), &[])] }),
    );
    set(&mut root, "people", json!({ "type": "object", "additionalProperties": person }));
    set(&mut root, "roles", json!({ "type": "object", "additionalProperties": words }));
    set(&mut root, "drill", drill());
    set(&mut root, "notices", notices());
    set(&mut root, "drills", json!({ "type": "array", "items": drill_entry() }));
    set(&mut root, "schedules", json!({ "type": "array", "items": schedule() }));
    document("A Lifeboat project", root, &["project"])
}

/// Which channel takes which notice.
fn notices() -> Value {
    let channels = json!({ "anyOf": [text(), { "type": "array", "items": text() }] });
    let mut properties = json!({});
    for (word, _, meaning) in Occasion::ALL {
        properties[*word] = channels.clone();
        properties[*word]["description"] = json!(meaning);
    }
    closed(properties, &[])
}

fn drill_entry() -> Value {
    let mut entry = keys(DRILL_KEYS, about::of_calendar);
    set_calendar(&mut entry);
    closed(entry, &["runbook", "environment", "every"])
}

fn schedule() -> Value {
    let mut entry = keys(SCHEDULE_KEYS, about::of_calendar);
    set_calendar(&mut entry);
    set(&mut entry, "drill", text());
    set(&mut entry, "at", json!({ "type": "string", "pattern": "^([01]\\d|2[0-3]):[0-5]\\d$" }));
    let mut schema = closed(entry, &["environment"]);
    let either =
        |one: &str, other: &str| json!({ "oneOf": [{ "required": [one] }, { "required": [other] }] });
    schema["allOf"] = json!([either("runbook", "drill"), either("at", "every")]);
    schema
}

fn set_calendar(entry: &mut Value) {
    set(entry, "runbook", text());
    set(entry, "environment", text());
    set(entry, "every", duration());
    set(entry, "inputs", json!({ "type": "object" }));
}

fn document(title: &str, root: Value, required: &[&str]) -> Value {
    let mut schema = json!({ "$schema": DIALECT, "title": title });
    if let (Some(schema), Value::Object(rest)) = (schema.as_object_mut(), closed(root, required)) {
        schema.extend(rest);
    }
    schema
}

fn step(registry: &Registry) -> Value {
    let mut step = keys(STEP_KEYS, about::of_step);
    set(&mut step, "id", json!({ "type": "string", "pattern": PLAIN_ID }));
    set(&mut step, "expect", of_type(&Type::conditions(&[]), Templates::Refused));
    set(&mut step, "env", of_type(&Type::EnvMap, Templates::Allowed));
    set(&mut step, "effect", json!({ "enum": ["read", "idempotent", "guarded", "once"] }));
    set(&mut step, "on_error", json!({ "enum": ["hold", "abort", "continue"] }));
    set(&mut step, "retry", retry());
    set(&mut step, "undo", json!({ "$ref": "#/$defs/undo" }));
    for key in ["timeout", "every"] {
        set(&mut step, key, duration());
    }
    for key in ["host", "dir", "probe", "runbook"] {
        set(&mut step, key, text());
    }
    set(&mut step, "max_parallel", json!({ "type": "integer", "minimum": 1 }));
    let mut elements = of_type(&Type::list(Type::Any), Templates::Allowed);
    bound_elements(&mut elements);
    set(&mut step, "for_each", elements);
    set(&mut step, "until", types::condition());
    set_common(&mut step);
    set(&mut step, "uses", kinds(registry.specs()));
    let has = |key: &str| match key {
        "uses" | "runbook" => step.get(key).is_some(),
        key => registry.by_body_key(key).is_some(),
    };
    let bodies: Value =
        BODIES.iter().filter(|key| has(key)).map(|key| json!({ "required": [key] })).collect();
    let mut schema = closed(step, &["id"]);
    schema["oneOf"] = bodies;
    schema["dependentRequired"] = json!({ "until": ["every", "timeout"], "every": ["until"] });
    schema["allOf"] = registry.specs().flat_map(kind_branches).chain([call_branch()]).collect();
    schema
}

fn retry() -> Value {
    let mut retry = with_fields(&retry_fields(), Templates::Refused);
    retry["properties"]["attempts"]["minimum"] = json!(1);
    retry["properties"]["attempts"]["maximum"] = json!(1000);
    retry
}

/// The names of kinds, with what each does.
fn kinds<'a>(specs: impl Iterator<Item = &'a KindSpec>) -> Value {
    let (names, summaries): (Vec<_>, Vec<_>) =
        specs.map(|spec| (spec.name.as_str(), spec.summary.as_str())).unzip();
    json!({ "enum": names, "markdownEnumDescriptions": summaries })
}

/// What stands under `undo`: a script, or a body like a step's, whose effect must allow to repeat it.
fn undo(registry: &Registry) -> Value {
    let usable =
        || registry.specs().filter(|spec| spec.effect != Some(Effect::Once) || spec.waits_for_people);
    let mut undo = keys(UNDO_KEYS, about::of_step);
    set(&mut undo, "title", text());
    set(&mut undo, "dir", text());
    set(&mut undo, "env", of_type(&Type::EnvMap, Templates::Allowed));
    set(&mut undo, "retry", retry());
    set(&mut undo, "timeout", duration());
    set(&mut undo, "uses", kinds(usable()));
    let mut bodies = vec![json!({ "required": ["uses"] })];
    bodies.extend(
        usable().filter_map(|spec| spec.body_key.as_ref()).map(|(key, _)| json!({ "required": [key] })),
    );
    let mut schema = closed(undo, &[]);
    schema["oneOf"] = json!(bodies);
    let without_effect =
        |spec: &KindSpec| kind_branches(&KindSpec { effect: Some(Effect::Idempotent), ..spec.clone() });
    schema["allOf"] = usable().flat_map(without_effect).collect();
    json!({ "anyOf": [{ "type": "string" }, schema] })
}

/// Says what belongs to a step that calls a runbook, and what only to one.
fn call_branch() -> Value {
    let refused = NOT_OF_CALLS.iter().chain(&["for_each"]);
    let refused: Map<_, _> = refused.map(|key| ((*key).to_owned(), json!(false))).collect();
    json!({
        "if": { "required": ["runbook"] },
        "then": { "properties": refused },
        "else": { "dependentRequired": { "max_parallel": ["for_each"] } },
    })
}

/// Says in every branch that takes a list how long it may be.
fn bound_elements(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.get("type") == Some(&json!("array")) {
                map.insert("maxItems".to_owned(), json!(crate::plan::ForEach::MAX_ELEMENTS));
            }
            map.values_mut().for_each(bound_elements);
        }
        Value::Array(items) => items.iter_mut().for_each(bound_elements),
        _ => {}
    }
}

fn group() -> Value {
    let mut group = keys(GROUP_KEYS, about::of_step);
    set(&mut group, "group", json!({ "type": "string", "pattern": PLAIN_ID }));
    set(&mut group, "parallel", json!({ "type": "boolean" }));
    set(&mut group, "max_parallel", json!({ "type": "integer", "minimum": 1 }));
    set(&mut group, "steps", json!({ "$ref": "#/$defs/steps" }));
    set_common(&mut group);
    closed(group, &["group", "steps"])
}

/// What steps and groups have in common.
fn set_common(properties: &mut Value) {
    let need = json!({ "step": text(), "on": { "enum": ["success", "failure", "any"] } });
    let milestone = json!({ "name": text(), "at": { "enum": ["started", "succeeded"] } });
    set(properties, "title", text());
    set(
        properties,
        "needs",
        json!({ "type": "array", "items": { "anyOf": [text(), closed(need, &["step"])] } }),
    );
    set(properties, "if", types::condition());
    set(properties, "budget", duration());
    set(properties, "milestone", json!({ "anyOf": [text(), closed(milestone, &["name"])] }));
    set(properties, "recovered", json!({ "type": "boolean" }));
}

/// Says what a kind makes of the other keys of its step: under `uses`, and under the key that stands for it.
fn kind_branches(spec: &KindSpec) -> Vec<Value> {
    let mut sides = Map::new();
    for key in ["env", "dir", "probe"] {
        if !spec.params.iter().any(|field| field.name == key) {
            sides.insert(key.to_owned(), json!(false));
        }
    }
    let mut required = Vec::new();
    let once = json!({ "properties": { "retry": { "properties": { "attempts": { "maximum": 1 } } } } });
    let mut rules = Vec::new();
    match spec.effect {
        Some(effect) => {
            sides.insert("effect".to_owned(), json!(false));
            rules.extend((effect == Effect::Once).then_some(once));
        }
        None => {
            required.push("effect");
            let says =
                |word: &str| json!({ "properties": { "effect": { "const": word } }, "required": ["effect"] });
            rules.push(json!({
                "if": says("guarded"),
                "then": { "required": ["probe"] },
                "else": { "properties": { "probe": false } },
            }));
            rules.push(json!({ "if": says("once"), "then": once }));
        }
    }
    let rules = Value::Array(rules);
    let mut with = parameters(spec);
    with["description"] = json!(spec.summary);
    let mut needed = required.clone();
    if spec.params.iter().any(|field| field.required) {
        needed.push("with");
    }
    let mut properties = sides.clone();
    properties.insert("with".to_owned(), with);
    let mut branches = vec![json!({
        "if": { "properties": { "uses": { "const": spec.name } }, "required": ["uses"] },
        "then": with_rules(json!({ "properties": properties, "required": needed }), &rules),
    })];
    if let Some((key, param)) = &spec.body_key {
        sides.insert("with".to_owned(), json!(false));
        sides.insert(key.clone(), body(spec, param));
        branches.push(json!({
            "if": { "required": [key] },
            "then": with_rules(json!({ "properties": sides, "required": required }), &rules),
        }));
    }
    branches
}

fn with_rules(mut schema: Value, rules: &Value) -> Value {
    if rules.as_array().is_some_and(|rules| !rules.is_empty()) {
        schema["allOf"] = rules.clone();
    }
    schema
}

/// The parameters of a kind, which steps and their undos share.
fn parameters(spec: &KindSpec) -> Value {
    json!({ "$ref": format!("#/$defs/{}", name_of_parameters(spec)) })
}

fn name_of_parameters(spec: &KindSpec) -> String {
    format!("with-{}", spec.name)
}

/// What stands under a key such as `run`: the value of one parameter, or all parameters.
fn body(spec: &KindSpec, param: &str) -> Value {
    let field = spec.params.iter().find(|field| field.name == param);
    match field.map(|field| &field.ty) {
        None | Some(Type::Any) => json!({}),
        Some(ty) => json!({
            "anyOf": [of_type(ty, Templates::Allowed), parameters(spec)]
        }),
    }
}

/// The keys of a map with what they are for.
fn keys(names: &[&str], about: fn(&str) -> Option<&'static str>) -> Value {
    let described = names.iter().map(|name| {
        let description = about(name).map_or_else(|| json!({}), |text| json!({ "description": text }));
        ((*name).to_owned(), description)
    });
    Value::Object(described.collect())
}

/// Says what stands under a key. Keys that are not offered stay out.
fn set(properties: &mut Value, key: &str, schema: Value) {
    let Some(Value::Object(place)) = properties.get_mut(key) else { return };
    let description = place.remove("description");
    if let Value::Object(schema) = schema {
        *place = schema;
    }
    place.extend(description.map(|text| ("description".to_owned(), text)));
}

fn text() -> Value {
    of_type(&Type::String, Templates::Refused)
}

fn name() -> Value {
    json!({ "type": "string", "pattern": "^[a-z][a-z0-9_-]*$" })
}

fn drill() -> Value {
    closed(json!({ "approvals": { "enum": ["auto", "ask"] } }), &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_offer_every_key_and_say_what_it_is_for() {
        let runbook = runbook(&Registry::new());
        let (environment, project) = (environment(), project());
        let places: [(&Value, &[&str]); 6] = [
            (&runbook["properties"], RUNBOOK_KEYS),
            (&runbook["$defs"]["step"]["properties"], STEP_KEYS),
            (&runbook["$defs"]["group"]["properties"], GROUP_KEYS),
            (&runbook["properties"]["inputs"]["additionalProperties"]["properties"], INPUT_KEYS),
            (&environment["properties"], ENVIRONMENT_KEYS),
            (&project["properties"], PROJECT_KEYS),
        ];
        for (properties, known) in places {
            for key in known {
                let offered = properties.get(*key).expect("every key is offered");
                assert!(offered["description"].is_string(), "{key}: {offered:?}");
            }
        }
        assert_eq!(environment["additionalProperties"], false);
        assert!(environment["properties"]["resources"].to_string().contains("heartbeat"));
    }
}
