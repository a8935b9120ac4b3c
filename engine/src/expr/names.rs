use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::resource::{Resource, System};

/// The names that every expression may begin with.
pub const NAMESPACES: &[&str] = &["inputs", "vars", "steps", "run", "incident", "resources"];

/// What stands under `run`: `mode` is `recovery` or `drill`, `summary` is one line for people.
pub const RUN_FIELDS: &[&str] = &["id", "short", "runbook", "environment", "mode", "summary"];

/// What stands under `incident`: `started_at`, the moment the RTO clock started.
pub const INCIDENT_FIELDS: &[&str] = &["started_at"];

/// Returns what templates see of all resources, under `resources`.
pub fn resource_names(resources: &BTreeMap<String, Resource>) -> Value {
    resources
        .iter()
        .map(|(name, resource)| (name.clone(), Value::Object(public_attributes(resource))))
        .collect()
}

/// Returns what templates see of one resource: where it is, never a credential.
pub fn public_attributes(resource: &Resource) -> Map<String, Value> {
    let mut all = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            all.insert(name.to_owned(), value);
        }
    };
    put("kind", json!(resource.kind()));
    put("access", json!(resource.access));
    match &resource.system {
        System::Postgres(postgres) => {
            put("host", json!(postgres.host));
            put("socket_dir", json!(postgres.socket_dir));
            put("port", json!(postgres.port));
            put("database", json!(postgres.database));
            put("user", json!(postgres.user));
            put("data_dir", json!(postgres.data_dir));
        }
        System::Redis(redis) => put("data_dir", json!(redis.data_dir)),
        System::Files(files) => put("path", json!(files.path)),
        System::Host(host) => put("address", json!(host.address)),
        _ => {}
    }
    all
}
