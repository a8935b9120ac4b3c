use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::expr::names::host_and_port;
use crate::resource::{Manager, Mariadb, Postgres, Redis, Resource, Store, System};

/// A place that a system claims, as it is written in an environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "place", rename_all = "snake_case")]
pub enum Claim {
    /// A directory or a file, with everything above and below it.
    Path { path: PathBuf },
    /// The data directory of a Postgres cluster.
    Cluster { path: PathBuf },
    /// Where a server answers.
    Address { host: String, port: u16 },
    /// A part of a bucket, with everything above and below it.
    Bucket {
        /// The server; absent for AWS, where a bucket has its name for itself in all the world.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        endpoint: Option<Endpoint>,
        bucket: String,
        prefix: String,
    },
    /// A unit or a container.
    Name { name: String },
}

/// The server of a bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub host: String,
    /// Absent for the usual port of its scheme.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// Where a resource comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An environment names it.
    Environment,
    /// A step of the run has made it, with a socket that nobody else has.
    Run,
}

/// Returns the places of a system.
pub fn claims(resource: &Resource, origin: Origin) -> Vec<Claim> {
    match &resource.system {
        System::Postgres(postgres) => of_postgres(postgres, origin),
        System::Mariadb(mariadb) => of_mariadb(mariadb, origin),
        System::Redis(redis) => of_redis(redis),
        System::Store(store) => vec![of_store(store)],
        System::Files(files) => path(Some(&files.path)),
        System::Service(service) => of_manager(&service.manager),
        System::Http(http) => {
            let default = if http.url.starts_with("https") { 443 } else { 80 };
            address(&http.url, default).into_iter().collect()
        }
        // Messages harm nothing, and the machine itself is shared by all environments on it.
        System::Host(_) | System::Slack(_) | System::Webhook(_) => Vec::new(),
    }
}

fn of_postgres(postgres: &Postgres, origin: Origin) -> Vec<Claim> {
    let mut all: Vec<_> = postgres.data_dir.iter().map(|dir| Claim::Cluster { path: dir.clone() }).collect();
    let tcp = postgres.host.as_ref().filter(|host| !host.starts_with('/'));
    // A server usually has the same port on its socket and on its address, so that a socket stands for both.
    let host = match (tcp, origin) {
        (Some(host), _) => Some(host.clone()),
        (None, Origin::Environment) => Some("localhost".to_owned()),
        (None, Origin::Run) => None,
    };
    all.extend(host.map(|host| Claim::Address { host, port: postgres.port }));
    all
}

fn of_mariadb(mariadb: &Mariadb, origin: Origin) -> Vec<Claim> {
    let mut all = path(mariadb.data_dir.as_deref());
    all.extend(path(mariadb.socket.as_deref()));
    // As with Postgres, the socket of a server that an environment names stands for its port, too.
    let host = match (&mariadb.host, origin) {
        (Some(host), _) => Some(host.clone()),
        (None, Origin::Environment) => Some("localhost".to_owned()),
        (None, Origin::Run) => None,
    };
    all.extend(host.map(|host| Claim::Address { host, port: mariadb.port }));
    all
}

fn of_redis(redis: &Redis) -> Vec<Claim> {
    let mut all = path(redis.data_dir.as_deref());
    match redis.url.strip_prefix("unix://") {
        Some(socket) => {
            let socket = socket.split('?').next().unwrap_or(socket);
            all.push(Claim::Path { path: PathBuf::from(socket) });
        }
        None => all.extend(address(&redis.url, 6379)),
    }
    all
}

fn of_store(store: &Store) -> Claim {
    if let Some(dir) = store.url.strip_prefix("dir://") {
        return Claim::Path { path: PathBuf::from(dir) };
    }
    let rest = store.url.strip_prefix("s3://").unwrap_or(&store.url);
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    Claim::Bucket {
        endpoint: store.endpoint.as_deref().and_then(endpoint),
        bucket: bucket.to_owned(),
        prefix: prefix.trim_matches('/').to_owned(),
    }
}

/// Returns the server of an endpoint; `None` for AWS, in whatever region and spelling.
fn endpoint(url: &str) -> Option<Endpoint> {
    let (host, port) = host_and_port(url, 0);
    let host = host?.trim_end_matches('.').to_ascii_lowercase();
    if host.ends_with(".amazonaws.com") || host.ends_with(".amazonaws.com.cn") {
        return None;
    }
    let usual = if url.starts_with("https") { 443 } else { 80 };
    Some(Endpoint { host, port: port.filter(|port| *port != 0 && *port != usual) })
}

fn of_manager(manager: &Manager) -> Vec<Claim> {
    let name = |name: String| vec![Claim::Name { name }];
    match manager {
        Manager::Systemd { unit } => name(format!("systemd:{}", unit.trim_end_matches(".service"))),
        Manager::Docker { container } => name(format!("docker:{container}")),
        Manager::Compose { service, project_dir } => {
            let dir = project_dir.as_deref().map(super::place::resolved).unwrap_or_default();
            name(format!("compose:{}:{service}", dir.display()))
        }
        Manager::Process { pid_file, .. } => path(pid_file.as_deref()),
    }
}

fn path(path: Option<&Path>) -> Vec<Claim> {
    path.map(|path| Claim::Path { path: path.to_owned() }).into_iter().collect()
}

fn address(url: &str, default: u16) -> Option<Claim> {
    match host_and_port(url, default) {
        (Some(host), Some(port)) => Some(Claim::Address { host, port }),
        _ => None,
    }
}
