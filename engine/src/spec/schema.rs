//! JSON Schemas for editors, from the same tables that the reader uses.
//!
//! A schema helps while typing; it is wider than the reader, which alone decides.

use serde_json::{Map, Value, json};

use super::environment::ENVIRONMENT_KEYS;
use super::project::PROJECT_KEYS;
use super::resources::{RESOURCE_KINDS, resource_fields};
use super::runbook::{INPUT_KEYS, INPUT_TYPES, RUNBOOK_KEYS};
use super::step::{GROUP_KEYS, STEP_KEYS, retry_fields};
use crate::step::{KindSpec, Registry};
use crate::value::{Field, Type};

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// Returns the schema of runbooks, with the parameters of every kind.
pub fn runbook(registry: &Registry) -> Value {
    let kinds: Vec<_> = registry.specs().map(|spec| spec.name.as_str()).collect();
    let branches: Vec<_> = registry.specs().map(kind_branch).collect();
    let mut step = keys(STEP_KEYS);
    step["uses"] = json!({ "enum": kinds });
    step["runbook"] = json!({ "type": "string" });
    step["needs"] = needs();
    step["recovered"] = json!({ "type": "boolean" });
    step["retry"] = object(&retry_fields());
    step["effect"] = json!({ "enum": ["read", "idempotent", "guarded", "once"] });
    step["on_error"] = json!({ "enum": ["hold", "abort", "continue"] });
    step["expect"] = json!({ "type": "array", "items": { "type": "string" } });
    for key in ["timeout", "budget", "every"] {
        step[key] = duration();
    }
    let mut group = keys(GROUP_KEYS);
    group["needs"] = needs();
    group["parallel"] = json!({ "type": "boolean" });
    group["recovered"] = json!({ "type": "boolean" });
    group["max_parallel"] = json!({ "type": "integer", "minimum": 1 });
    group["budget"] = duration();
    group["steps"] = json!({ "$ref": "#/$defs/steps" });
    let mut root = keys(RUNBOOK_KEYS);
    root["steps"] = json!({ "$ref": "#/$defs/steps" });
    root["always"] = json!({ "$ref": "#/$defs/steps" });
    root["environments"] = json!({ "type": "array", "items": { "type": "string" }, "minItems": 1 });
    root["objective"] = closed(json!({ "rto": duration(), "rpo": duration() }), &[]);
    root["milestones"] = json!({ "type": "object", "additionalProperties": duration() });
    root["outputs"] = json!({ "type": "object" });
    root["roles"] = json!({ "type": "object", "additionalProperties": { "type": "string" } });
    let mut input = keys(INPUT_KEYS);
    input["type"] = json!({ "enum": INPUT_TYPES });
    root["inputs"] = json!({ "type": "object", "additionalProperties": closed(input, &[]) });
    let mut schema = closed(root, &["runbook", "environments", "steps"]);
    schema["$schema"] = json!(DIALECT);
    schema["title"] = json!("A Lifeboat runbook");
    let mut step = closed(step, &["id"]);
    step["allOf"] = Value::Array(branches);
    schema["$defs"] = json!({
        "step": step,
        "group": closed(group, &["group", "steps"]),
        "steps": {
            "type": "array",
            "items": {
                "if": { "required": ["group"] },
                "then": { "$ref": "#/$defs/group" },
                "else": { "$ref": "#/$defs/step" },
            },
        },
    });
    schema
}

/// Returns the schema of environments.
pub fn environment() -> Value {
    let branches: Vec<_> = RESOURCE_KINDS
        .iter()
        .map(|kind| {
            json!({
                "if": { "properties": { "kind": { "const": kind } }, "required": ["kind"] },
                "then": object(&resource_fields(kind)),
            })
        })
        .collect();
    let mut root = keys(ENVIRONMENT_KEYS);
    root["protected"] = json!({ "type": "boolean" });
    root["resources"] = json!({
        "type": "object",
        "additionalProperties": {
            "type": "object",
            "required": ["kind"],
            "properties": { "kind": { "enum": RESOURCE_KINDS } },
            "allOf": branches,
        },
    });
    root["secrets"] = json!({ "type": "object", "additionalProperties": of_type(&Type::Secret) });
    root["vars"] = json!({ "type": "object" });
    let mut schema = closed(root, &["environment"]);
    schema["$schema"] = json!(DIALECT);
    schema["title"] = json!("A Lifeboat environment");
    schema
}

/// Returns the schema of `lifeboat.yaml`.
pub fn project() -> Value {
    let mut root = keys(PROJECT_KEYS);
    root["drill"] = closed(json!({ "approvals": { "enum": ["auto", "ask"] } }), &[]);
    let mut schema = closed(root, &["project"]);
    schema["$schema"] = json!(DIALECT);
    schema["title"] = json!("A Lifeboat project");
    schema
}

/// Says what `with` takes for one kind.
fn kind_branch(spec: &KindSpec) -> Value {
    let mut with = object_with_templates(&spec.params);
    with["description"] = json!(spec.summary);
    json!({
        "if": { "properties": { "uses": { "const": spec.name } }, "required": ["uses"] },
        "then": { "properties": { "with": with } },
    })
}

fn keys(names: &[&str]) -> Value {
    Value::Object(names.iter().map(|name| ((*name).to_owned(), json!({}))).collect())
}

fn closed(properties: Value, required: &[&str]) -> Value {
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

fn needs() -> Value {
    json!({
        "type": "array",
        "items": { "anyOf": [
            { "type": "string" },
            closed(json!({ "step": { "type": "string" }, "on": { "enum": ["success", "failure", "any"] } }), &["step"]),
        ] },
    })
}

fn duration() -> Value {
    json!({ "type": "string", "pattern": "[a-z]", "description": "a duration such as 90s or 1h 30m" })
}

fn object(fields: &[Field]) -> Value {
    object_of(fields, of_type)
}

fn object_with_templates(fields: &[Field]) -> Value {
    object_of(fields, |ty| match of_type(ty) {
        any if any.as_object().is_some_and(Map::is_empty) => any,
        plain => json!({ "anyOf": [plain, { "type": "string", "pattern": "\\{\\{" }] }),
    })
}

fn object_of(fields: &[Field], schema: impl Fn(&Type) -> Value) -> Value {
    let mut properties = Map::new();
    for field in fields {
        let mut value = schema(&field.ty);
        if let Some(object) = value.as_object_mut() {
            object.insert("description".to_owned(), json!(field.summary));
            object.extend(field.default.clone().map(|default| ("default".to_owned(), default)));
        }
        properties.insert(field.name.clone(), value);
    }
    let required: Vec<_> =
        fields.iter().filter(|field| field.required).map(|field| field.name.as_str()).collect();
    closed(Value::Object(properties), &required)
}

fn of_type(ty: &Type) -> Value {
    match ty {
        Type::Any => json!({}),
        // Written without quotes, a version or a port is a number to YAML and text to us.
        Type::String | Type::Path => json!({ "type": ["string", "number", "boolean"] }),
        Type::Sql | Type::Script | Type::Timestamp | Type::Resource { .. } => json!({ "type": "string" }),
        Type::Integer => json!({ "type": "integer" }),
        Type::Number => json!({ "type": "number" }),
        Type::Boolean => json!({ "type": "boolean" }),
        Type::Duration => duration(),
        Type::Choice(words) => json!({ "enum": words }),
        Type::List(of) => json!({ "type": "array", "items": of_type(of) }),
        Type::Map(of) => json!({ "type": "object", "additionalProperties": of_type(of) }),
        Type::Object(fields) => object(fields),
        Type::Conditions(_) => json!({ "type": "array", "items": { "type": "string" } }),
        Type::EnvMap => json!({
            "type": "object",
            "additionalProperties": { "type": ["string", "number", "boolean", "object"] },
        }),
        Type::Secret => json!({
            "type": "object",
            "properties": {
                "file": { "type": "string" },
                "env": { "type": "string" },
                "command": { "type": "array", "items": { "type": "string" } },
            },
            "minProperties": 1,
            "maxProperties": 1,
            "additionalProperties": false,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_know_all_keys_and_no_others() {
        let environment = environment();
        assert_eq!(environment["additionalProperties"], false);
        assert!(environment["properties"]["resources"].to_string().contains("heartbeat"));
        let runbook = runbook(&Registry::new());
        for key in STEP_KEYS {
            assert!(runbook["$defs"]["step"]["properties"].get(*key).is_some(), "{key}");
        }
        assert_eq!(runbook["required"], json!(["runbook", "environments", "steps"]));
        assert_eq!(project()["properties"]["drill"]["properties"]["approvals"]["enum"][0], "auto");
    }
}
