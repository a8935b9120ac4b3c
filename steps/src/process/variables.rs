//! Variables of programs as runbooks and environments write them: text, secrets and connections.

use std::collections::BTreeMap;

use lifeboat_engine::resource::{EnvValue, Mariadb, Postgres, Redis, System, Tls};
use lifeboat_engine::secret::SecretRef;
use lifeboat_engine::step::{StepContext, StepError};
use secrecy::{ExposeSecret, SecretString};

use super::{Command, codes};

impl Command {
    /// Sets variables; secrets and connections get their values here and nowhere else.
    pub fn env_values(
        self,
        ctx: &StepContext,
        values: &BTreeMap<String, EnvValue>,
    ) -> Result<Self, StepError> {
        values.iter().try_fold(self, |command, (name, value)| {
            check_name(name)?;
            Ok(match value {
                EnvValue::Text(text) => command.env(name, text),
                secret => command.secret_env(name, secret_value(ctx, name, secret)?),
            })
        })
    }
}

/// Returns the value of a variable as runbooks write it.
pub(crate) fn secret_value(
    ctx: &StepContext,
    name: &str,
    value: &EnvValue,
) -> Result<SecretString, StepError> {
    match value {
        EnvValue::Text(text) => Ok(text.clone().into()),
        EnvValue::Secret { secret } => named_secret(ctx, name, secret),
        EnvValue::Connection { connection, database } => connection_url(ctx, connection, database.as_deref()),
    }
}

/// Returns the address of a resource with its credentials, as client libraries take it.
///
/// `postgresql://user:password@host:port/database`, `mysql://user:password@host:port/database` and
/// `redis://:password@host:port/number`; for a web service its URL, for files their path. A MariaDB that is reached by
/// its socket is `mysql://user@localhost/database?unix_socket=PATH`. A Redis that a step has made is `unix://PATH?db=number`.
/// What a Postgres resource says of TLS stands in its address as `sslmode`, `sslrootcert`, `sslcert` and `sslkey`.
pub fn connection_url(
    ctx: &StepContext,
    resource: &str,
    database: Option<&str>,
) -> Result<SecretString, StepError> {
    let system = &ctx.resource(resource)?.system;
    match system {
        System::Postgres(postgres) => postgres_url(ctx, postgres, database),
        System::Mariadb(mariadb) => mariadb_url(ctx, mariadb, database),
        System::Redis(redis) => redis_url(ctx, redis, database),
        System::Http(http) if database.is_none() => Ok(http.url.clone().into()),
        System::Files(files) if database.is_none() => Ok(files.path.display().to_string().into()),
        _ => {
            let kind = ctx.resource(resource)?.kind();
            let problem = match database {
                Some(database) => format!("`{resource}` is a {kind}, which has no database `{database}`"),
                None => format!("`{resource}` is a {kind}, to which a program cannot be connected"),
            };
            Err(StepError::permanent(codes::LB1009, problem)
                .help("`connection` takes a postgres, mariadb, redis, http or files resource"))
        }
    }
}

fn check_name(name: &str) -> Result<(), StepError> {
    let mut bytes = name.bytes();
    let valid = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if valid {
        return Ok(());
    }
    Err(StepError::permanent(codes::LB1009, format!("`{name}` cannot be the name of a variable"))
        .help("use letters, digits and `_`, and do not begin with a digit"))
}

fn named_secret(ctx: &StepContext, variable: &str, secret: &str) -> Result<SecretString, StepError> {
    let reference = ctx.named_secret(secret).ok_or_else(|| {
        StepError::permanent(
            codes::LB1009,
            format!(
                "the variable `{variable}` takes the secret `{secret}`, which the environment `{}` does not have",
                ctx.info.environment
            ),
        )
        .help("add it under `secrets` of the environment's file, or write `RESOURCE.password`")
    })?;
    ctx.secret(reference).cloned()
}

fn postgres_url(
    ctx: &StepContext,
    postgres: &Postgres,
    database: Option<&str>,
) -> Result<SecretString, StepError> {
    let mut credentials = encode(&postgres.user);
    if let Some(password) = password(ctx, postgres.password.as_ref())? {
        credentials = format!("{credentials}:{password}");
    }
    let database = encode(database.unwrap_or(&postgres.database));
    let port = postgres.port;
    Ok(match (&postgres.host, &postgres.socket_dir) {
        (Some(host), _) => {
            let tls = postgres.tls.as_ref().map_or_else(String::new, tls_of_libpq);
            format!("postgresql://{credentials}@{}:{port}/{database}{tls}", bracketed(host))
        }
        (None, Some(dir)) => {
            let dir = encode(&dir.display().to_string());
            format!("postgresql://{credentials}@/{database}?host={dir}&port={port}")
        }
        (None, None) => format!("postgresql://{credentials}@/{database}?port={port}"),
    }
    .into())
}

/// Returns settings of TLS as libpq takes them in an address.
fn tls_of_libpq(tls: &Tls) -> String {
    let files = [("sslrootcert", &tls.ca_file), ("sslcert", &tls.cert_file), ("sslkey", &tls.key_file)];
    files.iter().fold(format!("?sslmode={}", tls.mode), |all, (key, file)| match file {
        Some(file) => format!("{all}&{key}={}", encode(&file.display().to_string())),
        None => all,
    })
}

fn mariadb_url(
    ctx: &StepContext,
    mariadb: &Mariadb,
    database: Option<&str>,
) -> Result<SecretString, StepError> {
    let mut credentials = encode(&mariadb.user);
    if let Some(password) = password(ctx, mariadb.password.as_ref())? {
        credentials = format!("{credentials}:{password}");
    }
    let database = encode(database.or(mariadb.database.as_deref()).unwrap_or_default());
    Ok(match (&mariadb.host, &mariadb.socket) {
        (Some(host), _) => {
            format!("mysql://{credentials}@{}:{}/{database}", bracketed(host), mariadb.port)
        }
        (None, Some(socket)) => {
            let socket = encode(&socket.display().to_string());
            format!("mysql://{credentials}@localhost/{database}?unix_socket={socket}")
        }
        (None, None) => format!("mysql://{credentials}@localhost:{}/{database}", mariadb.port),
    }
    .into())
}

fn redis_url(ctx: &StepContext, redis: &Redis, database: Option<&str>) -> Result<SecretString, StepError> {
    if redis.url.starts_with("unix://") {
        let number = database.map_or(String::new(), |number| format!("?db={}", encode(number)));
        return Ok(format!("{}{number}", redis.url).into());
    }
    let (scheme, rest) = redis.url.split_once("://").unwrap_or(("redis", &redis.url));
    let (address, number) = rest.split_once('/').unwrap_or((rest, ""));
    let number = database.unwrap_or(number);
    let credentials =
        password(ctx, redis.password.as_ref())?.map_or_else(String::new, |word| format!(":{word}@"));
    let path = if number.is_empty() { String::new() } else { format!("/{}", encode(number)) };
    Ok(format!("{scheme}://{credentials}{address}{path}").into())
}

fn password(ctx: &StepContext, reference: Option<&SecretRef>) -> Result<Option<String>, StepError> {
    reference.map(|reference| Ok(encode(ctx.secret(reference)?.expose_secret()))).transpose()
}

fn bracketed(host: &str) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() }
}

/// Percent-encodes everything but the characters that a URL allows anywhere.
fn encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_url_gives_a_meaning_is_encoded() {
        assert_eq!(encode("p@ss:/wörd?"), "p%40ss%3A%2Fw%C3%B6rd%3F");
        assert_eq!(bracketed("::1"), "[::1]");
        assert_eq!(bracketed("db.example.org"), "db.example.org");
    }

    #[test]
    fn what_a_resource_says_of_tls_stands_in_the_address() {
        let tls = Tls { ca_file: Some("/etc/my ca.pem".into()), ..Tls::default() };
        assert_eq!(tls_of_libpq(&tls), "?sslmode=verify-full&sslrootcert=%2Fetc%2Fmy%20ca.pem");
    }

    #[test]
    fn names_of_variables_are_checked() {
        assert!(check_name("DATABASE_URL").is_ok());
        for bad in ["", "1A", "A=B", "A B", "A\0"] {
            assert_eq!(check_name(bad).expect_err(bad).code, codes::LB1009);
        }
    }
}
