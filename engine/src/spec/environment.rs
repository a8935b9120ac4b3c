use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::keys::{Keys, Spanned};
use super::manager::check_manager;
use super::project::read_drill;
use super::reader::{Reader, Site, SiteKind, normal};
use super::resources::{RESOURCE_KINDS, resource_fields};
use super::runbook::read_name;
use super::tls::check_tls;
use crate::diagnostic::{Diagnostic, Diagnostics, Source, codes};
use crate::model::ids::is_plain_id;
use crate::resource::{Resource, System};
use crate::secret::SecretRef;
use crate::value::Type;
use crate::yaml::{self, Entry, Node};

pub(super) const ENVIRONMENT_KEYS: &[&str] =
    &["environment", "title", "description", "protected", "drill", "resources", "secrets", "vars"];

/// An environment as written, paths made absolute.
#[derive(Clone, Debug)]
pub struct EnvironmentSpec {
    pub source: Arc<Source>,
    pub name: Spanned<String>,
    pub protected: bool,
    /// Whether drills here answer their own approvals; never in a protected environment.
    pub auto_approvals: bool,
    pub resources: BTreeMap<String, ResourceSpec>,
    pub secrets: BTreeMap<String, SecretRef>,
    pub vars: Map<String, Value>,
    /// Resources and secrets that are declared and could not be read: runbooks that name them are not at fault.
    pub broken: BTreeSet<String>,
}

/// One named system and where it stands in the file.
#[derive(Clone, Debug)]
pub struct ResourceSpec {
    pub resource: Resource,
    pub span: Range<usize>,
}

impl EnvironmentSpec {
    /// Reads an environment. Relative paths are relative to `dir`, the directory of its file.
    pub fn read(source: &Arc<Source>, dir: &Path, out: &mut Diagnostics) -> Option<Self> {
        let root = yaml::parse(source, out)?;
        let mut reader = Reader::new(source, out, dir);
        let reader = &mut reader;
        let keys = Keys::new(reader, &root, "an environment", ENVIRONMENT_KEYS)?;
        let name = read_name(reader, &keys, "environment")?;
        let mut environment = Self {
            source: Arc::clone(source),
            name,
            protected: keys.flag(reader, "protected").unwrap_or(false),
            auto_approvals: false,
            resources: BTreeMap::new(),
            secrets: keys.get("secrets").map(|node| read_secrets(reader, node)).unwrap_or_default(),
            vars: keys.get("vars").map(|node| read_vars(reader, node)).unwrap_or_default(),
            broken: BTreeSet::new(),
        };
        environment.note_broken(&keys);
        if let Some(entry) = keys.entry("drill") {
            environment.auto_approvals = read_drill(reader, &entry.value);
            if environment.auto_approvals && environment.protected {
                let message = "a protected environment answers no approvals by itself";
                reader.push(
                    Diagnostic::error(codes::LB0140, message)
                        .at(reader.source, entry.key.span.clone())
                        .help("remove `drill`; drills run in unprotected environments"),
                );
            }
        }
        if let Some(node) = keys.get("resources") {
            environment.read_resources(reader, node);
        }
        let sites = std::mem::take(&mut reader.sites);
        environment.check_sites(reader, &sites);
        Some(environment)
    }

    /// Returns the references to all secrets, under the names that steps use.
    pub fn secret_refs(&self) -> BTreeMap<String, SecretRef> {
        let mut all = self.secrets.clone();
        for (name, spec) in &self.resources {
            let secrets: &[(&str, Option<&SecretRef>)] = match &spec.resource.system {
                System::Postgres(postgres) => &[("password", postgres.password.as_ref())],
                System::Mariadb(mariadb) => &[("password", mariadb.password.as_ref())],
                System::Redis(redis) => &[("password", redis.password.as_ref())],
                System::Store(store) => &[
                    ("access_key", store.access_key.as_ref()),
                    ("secret_key", store.secret_key.as_ref()),
                    ("session_token", store.session_token.as_ref()),
                ],
                System::Slack(hook) | System::Webhook(hook) => &[("webhook", Some(&hook.webhook))],
                _ => continue,
            };
            let given = secrets.iter().filter_map(|(key, secret)| Some((*key, (*secret)?.clone())));
            all.extend(given.map(|(key, secret)| (format!("{name}.{key}"), secret)));
        }
        all
    }

    fn note_broken(&mut self, keys: &Keys<'_>) {
        let written = keys.get("secrets").and_then(Node::mapping).unwrap_or_default();
        let names = written.iter().map(|entry| &entry.key.text);
        self.broken.extend(names.filter(|name| !self.secrets.contains_key(*name)).cloned());
    }

    fn read_resources(&mut self, reader: &mut Reader<'_>, node: &Node) {
        let Some(entries) = node.mapping() else {
            reader.wrong(node, "a map of resources");
            return;
        };
        for entry in entries {
            if !is_plain_id(&entry.key.text) {
                let message = format!("`{}` is not the name of a resource", entry.key.text);
                reader.push(
                    Diagnostic::error(codes::LB0110, message)
                        .at(reader.source, entry.key.span.clone())
                        .help("a lower-case letter, then lower-case letters, digits and `_`"),
                );
            }
            if let Some(resource) = read_resource(reader, entry) {
                let spec = ResourceSpec { resource, span: entry.key.span.clone() };
                self.resources.insert(entry.key.text.clone(), spec);
            } else {
                let name = &entry.key.text;
                let own_secrets = ["password", "webhook"].map(|key| format!("{name}.{key}"));
                self.broken.extend(own_secrets.into_iter().chain([name.clone()]));
            }
        }
    }

    /// Checks what services name: secrets and connections of this environment.
    fn check_sites(&self, reader: &mut Reader<'_>, sites: &[Site]) {
        let secrets = self.secret_refs();
        for site in sites {
            let Some(name) = site.node.text() else { continue };
            match &site.kind {
                SiteKind::Secret if secrets.contains_key(name) || self.broken.contains(name) => {}
                SiteKind::Resource { .. } if self.broken.contains(name) => {}
                SiteKind::Secret => reader.push(
                    Diagnostic::error(codes::LB0145, format!("this environment has no secret `{name}`"))
                        .at(reader.source, site.node.span.clone())
                        .suggest(name, "its secrets", secrets.keys().map(String::as_str)),
                ),
                SiteKind::Resource { kinds, .. } => {
                    let found = self.resources.get(name).map(|spec| spec.resource.kind());
                    if !found.is_some_and(|kind| kinds.contains(&kind)) {
                        let known = self.resources.keys().map(String::as_str);
                        reader.push(
                            Diagnostic::error(
                                codes::LB0124,
                                format!("this environment has no system `{name}` to connect to"),
                            )
                            .at(reader.source, site.node.span.clone())
                            .suggest(name, "its resources", known),
                        );
                    }
                }
                _ => {}
            }
        }
    }
}

fn read_secrets(reader: &mut Reader<'_>, node: &Node) -> BTreeMap<String, SecretRef> {
    let Some(entries) = node.mapping() else {
        reader.wrong(node, "a map of references to secrets");
        return BTreeMap::new();
    };
    let read = entries.iter().filter_map(|entry| {
        let value = reader.read(&entry.value, &Type::Secret)?;
        Some((entry.key.text.clone(), serde_json::from_value(value).ok()?))
    });
    read.collect()
}

fn read_vars(reader: &mut Reader<'_>, node: &Node) -> Map<String, Value> {
    reader.warn_of_secrets(node);
    match reader.read(node, &Type::map(Type::Any)) {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

fn read_resource(reader: &mut Reader<'_>, entry: &Entry) -> Option<Resource> {
    let (name, node) = (&entry.key.text, &entry.value);
    let what = format!("the resource `{name}`");
    if node.mapping().is_none() {
        reader.wrong(node, "a map that describes the resource");
        return None;
    }
    let Some(kind) = node.get("kind").and_then(Node::text) else {
        reader.push(
            Diagnostic::error(codes::LB0205, format!("{what} has no `kind`"))
                .at(reader.source, entry.key.span.clone())
                .help(format!("one of {}", RESOURCE_KINDS.join(", "))),
        );
        return None;
    };
    let fields = resource_fields(kind);
    if fields.is_empty() {
        let span = node.get("kind").map_or(entry.key.span.clone(), |node| node.span.clone());
        reader.push(
            Diagnostic::error(codes::LB0205, format!("there is no kind of resource `{kind}`"))
                .at(reader.source, span)
                .suggest(kind, "one of", RESOURCE_KINDS.iter().copied()),
        );
        return None;
    }
    let (before, _) = reader.out.counts();
    let mut map = reader.object(node, &fields, &what)?;
    check_addresses(reader, kind, node, &mut map);
    check_shape(reader, kind, node);
    if reader.out.counts().0 > before {
        return None;
    }
    match serde_json::from_value(Value::Object(map)) {
        Ok(resource) => Some(resource),
        Err(error) => {
            let message = format!("{what} cannot be used: {error}");
            reader.push(
                Diagnostic::error(codes::LB0210, message)
                    .at(reader.source, entry.key.span.clone())
                    .help("compare its keys with the kinds of resource in the guide"),
            );
            None
        }
    }
}

/// Checks addresses: their scheme, and that no credentials are in them.
fn check_addresses(reader: &mut Reader<'_>, kind: &str, node: &Node, map: &mut Map<String, Value>) {
    let schemes: &[(&str, &[&str])] = match kind {
        "store" => &[("url", &["dir", "s3"]), ("endpoint", &["http", "https"])],
        "redis" => &[("url", &["redis", "rediss"])],
        "http" => &[("url", &["http", "https"])],
        "service" => &[("ready", &["http", "https"])],
        _ => &[],
    };
    for (key, allowed) in schemes {
        let (Some(found), Some(text)) = (node.get(key), map.get(*key).and_then(Value::as_str)) else {
            continue;
        };
        match address(text, allowed, &reader.base_dir) {
            Ok(address) => {
                map.insert((*key).to_owned(), address.into());
            }
            Err(WrongAddress::Credentials) => reader.push(
                Diagnostic::error(codes::LB0203, "credentials stand in an address")
                    .at(reader.source, found.span.clone())
                    .help(
                        "remove them from the address; give `password: { file: … }` where the kind takes one",
                    ),
            ),
            Err(WrongAddress::Unusable(message)) => reader.push(
                Diagnostic::error(codes::LB0204, message)
                    .at(reader.source, found.span.clone())
                    .help(format!("write for example `{}`", example_address(kind, key))),
            ),
        }
    }
}

fn example_address(kind: &str, key: &str) -> &'static str {
    match (kind, key) {
        ("store", "url") => "dir:///srv/backups` or `s3://bucket/prefix",
        ("redis", _) => "rediss://cache.example.org:6379",
        ("service", _) => "http://127.0.0.1:8080/health",
        _ => "https://shop.example.org",
    }
}

enum WrongAddress {
    Credentials,
    Unusable(String),
}

fn address(text: &str, allowed: &[&str], base_dir: &Path) -> Result<String, WrongAddress> {
    let wanted = || allowed.iter().map(|scheme| format!("`{scheme}://`")).collect::<Vec<_>>().join(" or ");
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(WrongAddress::Unusable(format!("the address begins with {}", wanted())));
    };
    if scheme == "dir" && allowed.contains(&"dir") {
        if rest.is_empty() {
            return Err(WrongAddress::Unusable("`dir://` is followed by a path".to_owned()));
        }
        return Ok(format!("dir://{}", normal(&base_dir.join(rest)).display()));
    }
    if rest.split('/').next().is_some_and(|authority| authority.contains('@')) {
        return Err(WrongAddress::Credentials);
    }
    if !allowed.contains(&scheme) {
        return Err(WrongAddress::Unusable(format!("an address of this kind begins with {}", wanted())));
    }
    if rest.is_empty() || rest.starts_with('/') {
        return Err(WrongAddress::Unusable("the address names no host".to_owned()));
    }
    Ok(text.to_owned())
}

/// Checks keys that depend on each other.
fn check_shape(reader: &mut Reader<'_>, kind: &str, node: &Node) {
    match kind {
        "service" => {
            check_manager(reader, node, true);
            if let Some(gate) = node.get("gate") {
                check_gate(reader, gate);
            }
        }
        "postgres" | "mariadb" | "redis" => {
            if let Some(service) = node.get("service") {
                check_manager(reader, service, false);
            }
            check_port(reader, node);
            check_tls(reader, kind, node);
        }
        "store" => check_store(reader, node),
        _ => {}
    }
    let what = if kind == "mariadb" { "MariaDB" } else { "Postgres" };
    if matches!(kind, "postgres" | "mariadb")
        && let (Some(host), Some(data_dir)) = (node.get("host"), node.entry("data_dir"))
        && host.text().is_some_and(|host| !is_this_machine(host))
    {
        reader.push(
            Diagnostic::error(codes::LB0210, format!("a {what} on another host has no `data_dir` here"))
                .at(reader.source, data_dir.key.span.clone())
                .also(host.span.clone(), "another host")
                .help(
                    "remove `data_dir`, or give the socket or `127.0.0.1` if the server is on this machine",
                ),
        );
    }
    if kind == "host" && node.get("local").is_none() && node.get("address").is_none() {
        reader.push(
            Diagnostic::error(codes::LB0105, "this host is nowhere")
                .at(reader.source, node.span.clone())
                .help("write `local: true` for the machine that Lifeboat runs on, or its `address`"),
        );
    }
}

/// A gate is a file or two commands, and is looked at from outside.
fn check_gate(reader: &mut Reader<'_>, gate: &Node) {
    let (file, close, open) = (gate.entry("file"), gate.entry("close"), gate.entry("open"));
    let is_complete = match (file, close, open) {
        (Some(_), None, None) => true,
        (None, Some(close), Some(open)) => {
            [close, open].iter().all(|entry| entry.value.sequence().is_none_or(|words| !words.is_empty()))
        }
        _ => false,
    };
    if !is_complete {
        let span = super::keys::first_line(reader, &gate.span);
        reader.push(
            Diagnostic::error(
                codes::LB0210,
                "a gate is either a `file`, or the two commands `close` and `open`",
            )
            .at(reader.source, span)
            .help("`gate: { file: /run/app/closed, check: \"https://app.example.org/\" }`"),
        );
    }
    let Some(check) = gate.get("check") else { return };
    let Some(text) = check.text() else { return };
    match address(text, &["http", "https"], &reader.base_dir) {
        Ok(_) => {}
        Err(WrongAddress::Credentials) => {
            reader.error(codes::LB0203, "credentials stand in an address", &check.span);
        }
        Err(WrongAddress::Unusable(message)) => reader.error(codes::LB0204, message, &check.span),
    }
}

/// Keys that only a bucket has, and those that come together.
fn check_store(reader: &mut Reader<'_>, node: &Node) {
    let is_dir = node.get("url").and_then(Node::text).is_some_and(|url| url.starts_with("dir://"));
    for key in [
        "region",
        "endpoint",
        "access_key",
        "secret_key",
        "session_token",
        "encryption",
        "kms_key",
        "scratch",
    ] {
        if let Some(entry) = node.entry(key).filter(|_| is_dir) {
            let message = format!("`{key}` belongs to a store at `s3://`, not to a directory");
            reader.push(
                Diagnostic::error(codes::LB0210, message)
                    .at(reader.source, entry.key.span.clone())
                    .help("remove it, or give the store an address that begins with `s3://`"),
            );
        }
    }
    let pairs = [
        ("access_key", "secret_key"),
        ("secret_key", "access_key"),
        ("session_token", "access_key"),
        ("kms_key", "encryption"),
    ];
    for (key, other) in pairs {
        if let Some(entry) = node.entry(key).filter(|_| !is_dir && node.get(other).is_none()) {
            let message = format!("`{key}` is of no use without `{other}`");
            reader.error(codes::LB0105, message, &entry.key.span);
        }
    }
}

fn check_port(reader: &mut Reader<'_>, node: &Node) {
    let Some(port) = node.get("port") else { return };
    let valid = port.text().and_then(|text| text.parse::<u16>().ok()).is_some_and(|port| port > 0);
    if !valid && port.text().is_some_and(|text| text.parse::<i64>().is_ok()) {
        let text = port.text().unwrap_or_default();
        reader.push(
            Diagnostic::error(codes::LB0106, format!("`{text}` is no port"))
                .at(reader.source, port.span.clone())
                .help("ports are between 1 and 65535; Postgres listens on 5432 if nothing else is said"),
        );
    }
}

pub(super) fn is_this_machine(host: &str) -> bool {
    host == "localhost" || host == "::1" || host.starts_with("127.") || host.starts_with('/')
}
