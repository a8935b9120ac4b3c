//! The keys of every kind of resource: one table for the reader, the schema and the reference.

use super::manager::manager_fields;
use crate::resource::TlsMode;
use crate::value::{Field, Type};

/// The words that `kind:` takes.
pub const RESOURCE_KINDS: &[&str] =
    &["host", "postgres", "mariadb", "redis", "store", "files", "service", "http", "slack", "webhook"];

/// Returns the keys of a kind of resource, `kind`, `access` and `optional` included. Empty for an unknown kind.
pub fn resource_fields(kind: &str) -> Vec<Field> {
    let own = match kind {
        "host" => host(),
        "postgres" => postgres(),
        "mariadb" => mariadb(),
        "redis" => redis(),
        "store" => store(),
        "files" => files(),
        "service" => service(),
        "http" => {
            vec![Field::required("url", Type::String, "`http://…` or `https://…`, without credentials")]
        }
        "slack" | "webhook" => {
            vec![Field::required("webhook", Type::Secret, "the address; who knows it can post")]
        }
        _ => return Vec::new(),
    };
    let mut fields = vec![
        Field::required("kind", Type::choice(RESOURCE_KINDS), "what sort of system it is"),
        Field::optional("access", Type::choice(&["read", "write"]), "`read` makes writing it an error"),
        Field::optional("optional", Type::Boolean, "it may be absent in other environments"),
    ];
    fields.extend(own);
    fields
}

fn host() -> Vec<Field> {
    vec![
        Field::optional("local", Type::Boolean, "true for the machine that Lifeboat runs on"),
        Field::optional("address", Type::String, "name or address of another machine"),
    ]
}

fn postgres() -> Vec<Field> {
    vec![
        Field::optional("bin_dir", Type::Path, "where `postgres` and its programs are; found if absent"),
        Field::optional("data_dir", Type::Path, "the data directory, on this machine"),
        Field::optional(
            "config_file",
            Type::Path,
            "`postgresql.conf`, where it lies outside the data directory",
        ),
        Field::optional("host", Type::String, "name or address; absent means the Unix socket"),
        Field::optional("socket_dir", Type::Path, "the directory of the Unix socket"),
        Field::optional("port", Type::Integer, "the port, 5432 if absent"),
        Field::optional("user", Type::String, "the role to connect as"),
        Field::optional("database", Type::String, "the database of connections that name none"),
        Field::optional("os_user", Type::String, "the system user that owns the server"),
        Field::optional("password", Type::Secret, "the role's password"),
        tls(),
        Field::optional("service", Type::Object(manager_fields()), "who starts it for use"),
        heartbeat(),
    ]
}

fn heartbeat() -> Field {
    let place = vec![
        Field::required("database", Type::String, "the database it is in"),
        Field::required("table", Type::String, "the table"),
        Field::required("column", Type::String, "the column with the time"),
    ];
    Field::optional("heartbeat", Type::Object(place), "a table that the running system writes the time to")
}

fn tls() -> Field {
    let keys = vec![
        Field::optional(
            "mode",
            Type::choice(&TlsMode::WORDS),
            "what is proven of the server; `verify-full` if absent, `disable` for no TLS",
        ),
        Field::optional(
            "ca_file",
            Type::Path,
            "the certificates of the authorities that are trusted (PEM); those of the system if absent",
        ),
        Field::optional("cert_file", Type::Path, "the client's own certificate (PEM)"),
        Field::optional("key_file", Type::Path, "the private key of `cert_file` (PEM, not encrypted)"),
    ];
    Field::optional(
        "tls",
        Type::Object(keys),
        "how connections are protected; if absent, `verify-full` to another machine and nothing on this one",
    )
}

fn mariadb() -> Vec<Field> {
    vec![
        Field::optional("bin_dir", Type::Path, "where `mariadb` and its programs are; found if absent"),
        Field::optional("data_dir", Type::Path, "the data directory, on this machine"),
        Field::optional("config_file", Type::Path, "the configuration that the server is started with"),
        Field::optional("host", Type::String, "name or address; absent means the Unix socket"),
        Field::optional("socket", Type::Path, "the file of the Unix socket; the usual one if absent"),
        Field::optional("port", Type::Integer, "the port, 3306 if absent"),
        Field::optional("user", Type::String, "the account to log in as, `root` if absent"),
        Field::optional("database", Type::String, "the database of connections that name none"),
        Field::optional("os_user", Type::String, "the system user that owns the server"),
        Field::optional("password", Type::Secret, "the account's password"),
        tls(),
        Field::optional("service", Type::Object(manager_fields()), "who starts it for use"),
        heartbeat(),
    ]
}

fn redis() -> Vec<Field> {
    vec![
        Field::required(
            "url",
            Type::String,
            "`redis://host:port`, or `rediss://host:port` for TLS, without credentials",
        ),
        Field::optional("password", Type::Secret, "the server's password"),
        tls(),
        Field::optional("data_dir", Type::Path, "where its files are, on this machine"),
        Field::optional("bin_dir", Type::Path, "where `redis-server` is; found if absent"),
        Field::optional("config_file", Type::Path, "its configuration file"),
        Field::optional("os_user", Type::String, "the system user that owns the server"),
        Field::optional("service", Type::Object(manager_fields()), "who starts it for use"),
    ]
}

fn store() -> Vec<Field> {
    vec![
        Field::required("url", Type::String, "`dir:///path` or `s3://bucket/prefix`"),
        Field::optional("region", Type::String, "the region of the bucket"),
        Field::optional("endpoint", Type::String, "the address of an S3-compatible server"),
        Field::optional(
            "access_key",
            Type::Secret,
            "the id of the access key; absent means the machine's own",
        ),
        Field::optional("secret_key", Type::Secret, "the secret of the access key"),
        Field::optional("session_token", Type::Secret, "the token of temporary credentials"),
        Field::optional(
            "encryption",
            Type::choice(&["AES256", "aws:kms", "aws:kms:dsse"]),
            "how the server encrypts what is written, as the bucket says if absent",
        ),
        Field::optional(
            "kms_key",
            Type::String,
            "the key with which `aws:kms` encrypts, by its id or address",
        ),
        Field::optional(
            "scratch",
            Type::Path,
            "where a backup is put together before it is sent, `/var/tmp` if absent",
        ),
    ]
}

fn files() -> Vec<Field> {
    vec![
        Field::required("path", Type::Path, "the directory, on this machine"),
        Field::optional("owner", Type::String, "the system user that owns restored files"),
    ]
}

fn service() -> Vec<Field> {
    let mut fields = manager_fields();
    fields.push(Field::optional("ready", Type::String, "an address that answers 2xx when it is ready"));
    let command = || Type::list(Type::String);
    fields.push(Field::optional(
        "test",
        command(),
        "program and arguments that test its configuration, in the container if there is one",
    ));
    fields.push(Field::optional(
        "reload",
        command(),
        "program and arguments that make it read its configuration again; the manager's own way if absent",
    ));
    fields.push(Field::optional("gate", Type::Object(gate()), "what keeps people out of it"));
    fields
}

fn gate() -> Vec<Field> {
    let command = || Type::list(Type::String);
    vec![
        Field::optional("file", Type::Path, "a file that is there while access is closed"),
        Field::optional("close", command(), "instead of a file: program and arguments that close"),
        Field::optional("open", command(), "instead of a file: program and arguments that open"),
        Field::required(
            "check",
            Type::String,
            "an address as people use it: 503 while access is closed, 2xx while it is open",
        ),
    ]
}
