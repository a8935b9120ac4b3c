use super::reader::Reader;
use crate::diagnostic::{Diagnostic, codes};
use crate::value::{Field, Type};
use crate::yaml::Node;

/// The keys of whoever starts a service; which of them belong together depends on `manager`.
pub(super) fn manager_fields() -> Vec<Field> {
    vec![
        Field::required(
            "manager",
            Type::choice(&["systemd", "docker", "compose", "process"]),
            "who starts and stops it",
        ),
        Field::optional("unit", Type::String, "systemd: the unit"),
        Field::optional("container", Type::String, "docker: the container"),
        Field::optional("service", Type::String, "compose: the service"),
        Field::optional("project_dir", Type::Path, "compose: the directory of its file"),
        Field::optional("command", Type::list(Type::String), "process: program and arguments"),
        Field::optional("dir", Type::Path, "process: its working directory"),
        Field::optional("os_user", Type::String, "process: the system user it runs as"),
        Field::optional("env", Type::EnvMap, "process: its variables"),
        Field::optional("pid_file", Type::Path, "process: where its number is kept"),
        Field::optional("log_file", Type::Path, "process: where its output goes"),
        Field::optional("stop_timeout", Type::Duration, "process: how long it may take to stop"),
    ]
}

/// The keys that belong to each manager, the one it needs first.
const OWN_KEYS: &[(&str, &[&str])] = &[
    ("systemd", &["unit"]),
    ("docker", &["container"]),
    ("compose", &["service", "project_dir"]),
    ("process", &["command", "dir", "os_user", "env", "pid_file", "log_file", "stop_timeout"]),
];

/// Reports keys of another manager and a missing name.
pub(super) fn check_manager(reader: &mut Reader<'_>, node: &Node, is_service: bool) {
    let Some(manager) = node.get("manager").and_then(Node::text) else { return };
    let Some((_, own)) = OWN_KEYS.iter().find(|(name, _)| *name == manager) else { return };
    let others = OWN_KEYS.iter().filter(|(name, _)| *name != manager);
    for (other, keys) in others {
        for key in keys.iter().filter(|key| !own.contains(*key)) {
            if let Some(entry) = node.entry(key) {
                reader.push(
                    Diagnostic::error(
                        codes::LB0210,
                        format!("`{key}` belongs to the manager `{other}`, not to `{manager}`"),
                    )
                    .at(reader.source, entry.key.span.clone())
                    .help(format!(
                        "remove it, or say `manager: {other}`; with `{manager}` go {}",
                        own.join(", ")
                    )),
                );
            }
        }
    }
    let needed = own[0];
    // A database server that Lifeboat starts itself needs no command: its step kinds know how.
    if node.get(needed).is_none() && (is_service || manager != "process") {
        let span = super::keys::first_line(reader, &node.span);
        let example = match needed {
            "unit" => "unit: postgresql@16-main",
            "container" => "container: shop-db-1",
            "service" => "service: db",
            _ => "command: [/usr/local/bin/shop, --port=8080]",
        };
        reader.push(
            Diagnostic::error(codes::LB0105, format!("the manager `{manager}` needs `{needed}`"))
                .at(reader.source, span)
                .help(format!("add `{example}`")),
        );
    }
}
