//! The systems that an environment names.

mod tls;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::secret::SecretRef;
use crate::value::Span;

pub use tls::{Tls, TlsMode};

/// What sort of system a resource is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResourceKind {
    Host,
    Postgres,
    Mariadb,
    Redis,
    Store,
    Files,
    Service,
    Http,
    Slack,
    Webhook,
}

impl fmt::Display for ResourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Postgres => "postgres",
            Self::Mariadb => "mariadb",
            Self::Redis => "redis",
            Self::Store => "store",
            Self::Files => "files",
            Self::Service => "service",
            Self::Http => "http",
            Self::Slack => "slack",
            Self::Webhook => "webhook",
        })
    }
}

/// What steps may do to a resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    Read,
    #[default]
    Write,
}

/// One system of an environment, with paths made absolute. Holds references to secrets, never values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resource {
    #[serde(default)]
    pub access: Access,
    /// May be absent in other environments: `resources.NAME is defined`.
    #[serde(default)]
    pub optional: bool,
    #[serde(flatten)]
    pub system: System,
}

/// The particulars of each kind of system.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum System {
    Host(Host),
    Postgres(Postgres),
    Mariadb(Mariadb),
    Redis(Redis),
    Store(Store),
    Files(Files),
    Service(Service),
    Http(Http),
    Slack(Webhook),
    Webhook(Webhook),
}

/// A machine. Only the local one can be used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Host {
    #[serde(default)]
    pub local: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// A Postgres cluster: with a data directory on this machine, or remote with host and user only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Postgres {
    /// Where `postgres`, `pg_ctl` and `pg_basebackup` are; found on PATH and in the usual places if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bin_dir: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_file: Option<PathBuf>,
    /// Host name or address; absent means the Unix socket in `socket_dir`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_dir: Option<PathBuf>,
    #[serde(default = "default_postgres_port")]
    pub port: u16,
    /// The role that Lifeboat connects as.
    #[serde(default = "default_postgres_user")]
    pub user: String,
    /// The database for connections that name none.
    #[serde(default = "default_postgres_user")]
    pub database: String,
    /// The system user that owns the server; only needed when Lifeboat runs as root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os_user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretRef>,
    /// How connections to `host` are protected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Manager>,
    /// A table that the running system writes the time to (`table`, `column`), for measured recovery points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<Heartbeat>,
}

/// Where the running system leaves the time at short intervals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    pub database: String,
    pub table: String,
    pub column: String,
}

fn default_postgres_port() -> u16 {
    5432
}

fn default_postgres_user() -> String {
    "postgres".to_owned()
}

/// A MariaDB server: with a data directory on this machine, or reached by socket or host only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mariadb {
    /// Where `mariadb` and `mariadb-dump` are; found on PATH and in the usual places if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bin_dir: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// The configuration that a server is started with by Lifeboat; that of the system if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_file: Option<PathBuf>,
    /// Host name or address; absent means the Unix socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The file of the Unix socket; the usual one of the system if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    #[serde(default = "default_mariadb_port")]
    pub port: u16,
    /// The account that Lifeboat logs in as.
    #[serde(default = "default_mariadb_user")]
    pub user: String,
    /// The database of connections that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// The system user that owns the server; only needed when Lifeboat runs as root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os_user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretRef>,
    /// How connections to `host` are protected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Manager>,
    /// A table that the running system writes the time to (`table`, `column`), for measured recovery points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<Heartbeat>,
}

fn default_mariadb_port() -> u16 {
    3306
}

fn default_mariadb_user() -> String {
    "root".to_owned()
}

/// A Redis server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Redis {
    /// `redis://host:port[/db]`, or `rediss://…` for TLS; without credentials.
    pub url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretRef>,
    /// How the connection is protected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Where its files are, for steps that place a snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bin_dir: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_file: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os_user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Manager>,
}

/// Where backups are kept: `dir:///path` or `s3://bucket/prefix`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Store {
    pub url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The address of a server like S3; absent means S3 itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The credentials; absent means what the machine offers to every program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key: Option<SecretRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key: Option<SecretRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_token: Option<SecretRef>,
    /// How the server encrypts what is written: `AES256`, `aws:kms` or `aws:kms:dsse`; absent means as the bucket does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<String>,
    /// The key of the key store for `aws:kms`; absent means the account's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kms_key: Option<String>,
    /// Where a backup is put together before it is sent to a bucket; absent means `/var/tmp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch: Option<PathBuf>,
}

/// A directory tree on this machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Files {
    pub path: PathBuf,
    /// The system user that owns restored files; absent means as recorded, where permitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// Something that can be started and stopped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    #[serde(flatten)]
    pub manager: Manager,
    /// An address that answers 2xx when the service is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<String>,
    /// A program and its arguments that test the configuration; in the container where there is one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// A program and its arguments that make it read its configuration again; in the container where there is one. What
    /// the manager has for that, else the signal HUP, if absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reload: Vec<String>,
    /// How people are kept out of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
}

/// What keeps people out of a service: a file that is there meanwhile, or two commands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub close: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub open: Vec<String>,
    /// An address as people use it: it answers 503 while access is closed, and 2xx while it is open.
    pub check: String,
}

/// Who starts a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "manager", rename_all = "snake_case")]
pub enum Manager {
    Systemd {
        unit: String,
    },
    Docker {
        container: String,
    },
    Compose {
        service: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        project_dir: Option<PathBuf>,
    },
    /// A program that Lifeboat starts itself, in a session of its own.
    Process {
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        command: Vec<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        dir: Option<PathBuf>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        os_user: Option<String>,
        /// Variables for the program; a secret or a connection stands as a reference.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        env: BTreeMap<String, EnvValue>,
        /// Where the process number is kept, so that another process can stop it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid_file: Option<PathBuf>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        log_file: Option<PathBuf>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stop_timeout: Option<Span>,
    },
}

/// The value of one environment variable of a program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EnvValue {
    Secret {
        /// `NAME` of the environment's `secrets`, or `RESOURCE.password`.
        secret: String,
    },
    Connection {
        connection: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        database: Option<String>,
    },
    Text(String),
}

/// A web service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Http {
    pub url: String,
}

/// Where messages are posted. The address is a secret, for who knows it can post.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Webhook {
    pub webhook: SecretRef,
}

/// What stands before the id of a step in the name of the system that it makes. No resource of an environment can
/// have such a name.
const MADE: &str = "from:";

/// Returns the name under which a run knows the system that a step makes: what `{ from: STEP }` becomes.
pub fn made_by(step: &str) -> String {
    format!("{MADE}{step}")
}

/// Returns the step that makes the system of a name; `None` for a resource of the environment.
pub fn maker(name: &str) -> Option<&str> {
    name.strip_prefix(MADE)
}

/// Returns the name under which people know a system: its own, or that of the step that makes it.
pub fn shown(name: &str) -> &str {
    maker(name).unwrap_or(name)
}

/// Names a system for people: `` `db` ``, or "what `clone` made".
pub fn in_words(name: &str) -> String {
    match maker(name) {
        Some(step) => format!("what `{step}` made"),
        None => format!("`{name}`"),
    }
}

impl Resource {
    /// Returns it as the journal keeps it.
    pub fn to_value(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("a resource holds nothing that JSON cannot express")
    }

    /// Returns the kind of the system.
    pub fn kind(&self) -> ResourceKind {
        match self.system {
            System::Host(_) => ResourceKind::Host,
            System::Postgres(_) => ResourceKind::Postgres,
            System::Mariadb(_) => ResourceKind::Mariadb,
            System::Redis(_) => ResourceKind::Redis,
            System::Store(_) => ResourceKind::Store,
            System::Files(_) => ResourceKind::Files,
            System::Service(_) => ResourceKind::Service,
            System::Http(_) => ResourceKind::Http,
            System::Slack(_) => ResourceKind::Slack,
            System::Webhook(_) => ResourceKind::Webhook,
        }
    }
}
