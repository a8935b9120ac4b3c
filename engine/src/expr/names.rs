use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::resource::{Manager, Resource, System};

/// The names that every expression may begin with.
pub const NAMESPACES: &[&str] = &["inputs", "vars", "steps", "run", "incident", "resources"];

/// What stands under `run`: `mode` is `recovery` or `drill`, `summary` is one line for people, `started_at` the moment
/// that the run was declared.
pub const RUN_FIELDS: &[&str] = &["id", "short", "runbook", "environment", "mode", "summary", "started_at"];

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
            put("config_file", json!(postgres.config_file));
            put("bin_dir", json!(postgres.bin_dir));
            put("os_user", json!(postgres.os_user));
        }
        System::Mariadb(mariadb) => {
            put("host", json!(mariadb.host));
            put("socket", json!(mariadb.socket));
            put("port", json!(mariadb.port));
            put("database", json!(mariadb.database));
            put("user", json!(mariadb.user));
            put("data_dir", json!(mariadb.data_dir));
            put("config_file", json!(mariadb.config_file));
            put("bin_dir", json!(mariadb.bin_dir));
            put("os_user", json!(mariadb.os_user));
        }
        System::Redis(redis) => {
            let (host, port) = host_and_port(&redis.url, 6379);
            put("host", json!(host));
            put("port", json!(port));
            put("data_dir", json!(redis.data_dir));
            put("config_file", json!(redis.config_file));
            put("os_user", json!(redis.os_user));
        }
        System::Store(store) => match store.url.strip_prefix("s3://") {
            Some(rest) => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                put("bucket", json!(bucket));
                put("prefix", json!(prefix.trim_end_matches('/')));
                put("region", json!(store.region));
            }
            None => put("path", json!(store.url.strip_prefix("dir://"))),
        },
        System::Files(files) => {
            put("path", json!(files.path));
            put("owner", json!(files.owner));
        }
        System::Service(service) => {
            for (name, value) in manager_attributes(&service.manager) {
                put(name, value);
            }
        }
        System::Http(http) => {
            let default = if http.url.starts_with("https") { 443 } else { 80 };
            let (host, port) = host_and_port(&http.url, default);
            put("host", json!(host));
            put("port", json!(port));
        }
        System::Host(host) => {
            put("local", json!(host.local));
            put("address", json!(host.address));
        }
        System::Slack(_) | System::Webhook(_) => {}
    }
    all
}

fn manager_attributes(manager: &Manager) -> Vec<(&'static str, Value)> {
    match manager {
        Manager::Systemd { unit } => vec![("manager", json!("systemd")), ("unit", json!(unit))],
        Manager::Docker { container } => {
            vec![("manager", json!("docker")), ("container", json!(container))]
        }
        Manager::Compose { service, project_dir } => vec![
            ("manager", json!("compose")),
            ("service", json!(service)),
            ("project_dir", json!(project_dir)),
        ],
        Manager::Process { dir, os_user, pid_file, log_file, .. } => vec![
            ("manager", json!("process")),
            ("dir", json!(dir)),
            ("os_user", json!(os_user)),
            ("pid_file", json!(pid_file)),
            ("log_file", json!(log_file)),
        ],
    }
}

/// Returns the host and the port of an address; a Unix socket has neither.
pub(crate) fn host_and_port(url: &str, default: u16) -> (Option<String>, Option<u16>) {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    if scheme == "unix" {
        return (None, None);
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => match port.parse() {
            Ok(port) => (host, port),
            Err(_) => (authority, default),
        },
        None => (authority, default),
    };
    (Some(host.trim_matches(['[', ']']).to_owned()), Some(port))
}
