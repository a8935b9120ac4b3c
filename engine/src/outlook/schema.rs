//! The JSON Schema of `lifeboat plan --format json`.

use serde_json::{Value, json};

/// Returns the schema of a plan as programs read it.
pub fn plan() -> Value {
    let mut schema = closed(
        json!({
            "format": { "const": super::Outlook::FORMAT },
            "runbook": text(), "title": text(), "environment": text(), "protected": { "type": "boolean" },
            "mode": { "enum": ["recovery", "drill"] },
            "commit": {
                "type": ["object", "null"],
                "properties": { "hash": text(), "dirty": { "type": "boolean" } },
                "required": ["hash", "dirty"],
                "additionalProperties": false,
            },
            "digest": { "type": "string", "pattern": "^[0-9a-f]{64}$" },
            "incident_at": maybe_text(),
            "objective": closed(json!({ "rto": span(), "rpo": span() }), &[]),
            "inputs": { "type": "object" },
            "steps": list(step()), "groups": list(json!({ "type": "object" })),
            "destroys": list(closed(json!({ "step": text(), "what": text() }), &[])),
            "forecast": forecast(), "findings": list(finding()), "confirm": text(),
        }),
        &["findings", "confirm"],
    );
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("What `lifeboat plan --format json` prints");
    schema["$defs"] = json!({ "expected": expected() });
    schema
}

fn text() -> Value {
    json!({ "type": "string" })
}

fn maybe_text() -> Value {
    json!({ "type": ["string", "null"] })
}

fn ms() -> Value {
    json!({ "type": "integer", "minimum": 0 })
}

fn span() -> Value {
    json!({ "type": ["string", "null"], "description": "A duration with units." })
}

fn answer() -> Value {
    json!({ "enum": ["yes", "no", "unknown", "no_objective"] })
}

fn list(of: Value) -> Value {
    json!({ "type": "array", "items": of })
}

/// A map with these keys and no others.
fn closed(properties: Value, optional: &[&str]) -> Value {
    let names = properties.as_object().into_iter().flatten().map(|(name, _)| name.clone());
    let required: Vec<_> = names.filter(|name| !optional.contains(&name.as_str())).collect();
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

fn expected() -> Value {
    closed(
        json!({
            "ms": ms(),
            "source": { "enum": ["history", "budget", "group_budget", "skipped", "person", "unknown"] },
            "runs": { "type": "integer", "minimum": 1 },
            "group": text(),
        }),
        &["ms", "runs", "group"],
    )
}

fn step() -> Value {
    let need = closed(
        json!({ "step": text(), "on": { "enum": ["success", "failure", "failure_within", "any"] } }),
        &[],
    );
    closed(
        json!({
            "id": text(), "title": text(), "place": text(), "uses": text(),
            "effect": { "enum": ["read", "idempotent", "guarded", "once"] },
            "group": maybe_text(), "always": { "type": "boolean" }, "needs": list(need),
            "fate": { "enum": ["runs", "skipped", "depends", "after_failure"] },
            "why": text(), "conditions": list(text()), "step": text(),
            "with": { "type": "object" }, "actions": list(text()), "destroys": list(text()),
            "notes": list(text()), "undo": list(text()), "problem": text(),
            "reads": list(text()), "writes": list(text()),
            "expected": { "$ref": "#/$defs/expected" },
            "times": closed(json!({ "start_ms": ms(), "finish_ms": ms() }), &[]),
            "critical": { "type": "boolean" },
            "timeout": span(), "budget": span(), "retry": { "type": "object" },
            "on_error": { "enum": ["hold", "abort", "continue"] },
            "milestone": maybe_text(), "recovered": { "type": "boolean" },
        }),
        &["why", "conditions", "step", "problem"],
    )
}

fn forecast() -> Value {
    let path = closed(
        json!({ "step": text(), "start_ms": ms(), "finish_ms": ms(), "expected": { "$ref": "#/$defs/expected" } }),
        &[],
    );
    let wait = closed(
        json!({
            "step": text(), "role": text(), "automatic": { "type": "boolean" },
            "expected": { "$ref": "#/$defs/expected" }, "critical": { "type": "boolean" },
        }),
        &["role"],
    );
    let milestone = closed(
        json!({ "name": text(), "deadline_ms": ms(), "at_ms": ms(), "can_meet": answer() }),
        &["at_ms"],
    );
    closed(
        json!({
            "expected_ms": ms(), "used_ms": ms(), "rto_ms": ms(), "can_meet": answer(), "why": text(),
            "critical_path": list(path), "unknown": list(text()), "waits": list(wait),
            "milestones": list(milestone),
            "worst": closed(json!({ "ms": ms(), "without_limit": list(text()) }), &[]),
            "history_runs": { "type": "integer", "minimum": 0 },
        }),
        &["rto_ms"],
    )
}

fn finding() -> Value {
    closed(
        json!({
            "subject": text(), "what": text(), "state": { "enum": ["failed", "warning", "unknown", "ok"] },
            "detail": text(), "help": text(), "objective": { "const": true },
        }),
        &["help", "objective"],
    )
}
