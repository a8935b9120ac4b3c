//! Schemas of values.

use serde_json::{Map, Value, json};

use crate::value::{Field, Type};

/// Whether `{{ … }}` may stand in place of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Templates {
    Allowed,
    Refused,
}

/// A map with these keys and no others.
pub(super) fn closed(properties: Value, required: &[&str]) -> Value {
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

pub(super) fn duration() -> Value {
    let units = "ns|nsecs?|nanos|us|µs|usecs?|micros|ms|msecs?|millis|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?|w|wk|wks|weeks?";
    json!({
        "type": "string",
        "pattern": format!(r"^\s*(\d+(\.\d+)?\s*({units})\s*)+$"),
        "description": "a duration such as 90s or 1h 30m",
    })
}

/// A bare expression: braces are a mistake there.
pub(super) fn condition() -> Value {
    json!({ "type": ["string", "number", "boolean"], "pattern": "\\S", "not": { "pattern": "\\{\\{" } })
}

/// A map with a key for each field.
pub(super) fn with_fields(fields: &[Field], templates: Templates) -> Value {
    let mut properties = Map::new();
    for field in fields {
        let mut value = of_type(&field.ty, templates);
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

/// What the reader takes for a value of a type.
pub(super) fn of_type(ty: &Type, templates: Templates) -> Value {
    let plain = plain(ty, templates);
    let is_textual =
        matches!(ty, Type::Any | Type::String | Type::Path | Type::Script | Type::Resource { .. });
    // The reader takes these literally, or looks for templates in them itself.
    let is_literal = matches!(ty, Type::Conditions(_) | Type::EnvMap | Type::Sql | Type::Secret);
    if templates == Templates::Refused || is_textual || is_literal {
        return plain;
    }
    // Text around a template makes text of it.
    let may_be_part = matches!(ty, Type::Duration | Type::Timestamp | Type::Choice(_));
    let pattern = if may_be_part { r"\{[{%]" } else { r"^\s*\{\{[\s\S]*\}\}\s*$" };
    json!({ "anyOf": [plain, { "type": "string", "pattern": pattern }] })
}

/// A name, or in the parameters of a step `{ from: STEP }`.
fn resource(templates: Templates) -> Value {
    // A name that is computed is refused, except where an input gives it.
    let name = json!({
        "type": "string",
        "anyOf": [
            { "not": { "pattern": r"\{[{%]" } },
            { "pattern": r"^\{\{[-+]?\s*inputs\.[a-z][a-z0-9_]*\s*[-+]?\}\}$" },
        ],
    });
    if templates == Templates::Refused {
        return name;
    }
    let step = json!({
        "type": "string",
        "pattern": "^[a-z][a-z0-9_]*$",
        "description": "the step that makes the system",
    });
    json!({ "anyOf": [name, closed(json!({ "from": step }), &["from"])] })
}

/// The value of an environment variable.
fn variable(templates: Templates) -> Value {
    let secret = json!({ "secret": { "type": "string", "description": "`NAME`, or `RESOURCE.password`" } });
    let mut system = resource(templates);
    system["description"] = json!("the system to connect to");
    let database = json!({ "type": ["string", "number", "boolean"], "description": "the database in it" });
    let connection = json!({ "connection": system, "database": database });
    json!({ "anyOf": [
        { "type": ["string", "number", "boolean"] },
        closed(secret, &["secret"]),
        closed(connection, &["connection"]),
    ] })
}

fn plain(ty: &Type, templates: Templates) -> Value {
    match ty {
        Type::Any => json!({}),
        // Written without quotes, a version or a port is a number to YAML and text to us.
        Type::String => json!({ "type": ["string", "number", "boolean"] }),
        Type::Path => json!({ "type": ["string", "number", "boolean"], "not": { "pattern": "^~" } }),
        Type::Timestamp => json!({
            "type": "string",
            "pattern": r"^\s*[+-]?\d{4,6}-?\d{2}-?\d{2}[Tt ]\d{2}.*([Zz]|[+-]\d{2}(:?\d{2})*)(\[.*\])*\s*$",
        }),
        Type::Resource { .. } => resource(templates),
        Type::Script => json!({ "type": ["string", "number", "boolean"] }),
        Type::Sql => json!({ "type": "string", "not": { "pattern": "\\{[{%]" } }),
        Type::Integer => json!({ "type": "integer" }),
        Type::Number => json!({ "type": "number" }),
        Type::Boolean => json!({ "type": "boolean" }),
        Type::Duration => duration(),
        Type::Choice(words) => json!({ "enum": words }),
        Type::List(of) => json!({ "type": "array", "items": of_type(of, templates) }),
        Type::Map(of) => json!({ "type": "object", "additionalProperties": of_type(of, templates) }),
        Type::Object(fields) => with_fields(fields, templates),
        Type::Conditions(_) => json!({ "type": "array", "items": condition() }),
        Type::EnvMap => json!({
            "type": "object",
            "propertyNames": { "pattern": "^[^0-9=][^=]*$" },
            "additionalProperties": variable(templates),
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
