//! Connections to MariaDB with time limits, and errors that say what happened.
//!
//! Every statement has a limit. When it passes, the server is asked to end the statement and the connection is not used
//! again. A connection to another machine goes over TLS.

mod protection;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lifeboat_engine::code::Code;
use lifeboat_engine::resource::{Mariadb, System, Tls, TlsMode};
use lifeboat_engine::step::{StepContext, StepError};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, DriverError, Error, IoError, Opts, OptsBuilder, Params, Row};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::codes;
use crate::tls::{Peer, TlsError, needed};

/// How long a login may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long asking the server to end a statement may take.
const KILL_LIMIT: Duration = Duration::from_secs(3);
/// For statements that only look at the server itself.
pub(super) const QUICK: Duration = Duration::from_secs(30);
/// For statements that may wait for locks or read much.
pub(super) const PATIENT: Duration = Duration::from_secs(600);

/// Where packages put the socket of the system's server.
const USUAL_SOCKETS: [&str; 4] = [
    "/run/mysqld/mysqld.sock",
    "/var/run/mysqld/mysqld.sock",
    "/var/lib/mysql/mysql.sock",
    "/tmp/mysql.sock",
];

/// Returns a resource as a MariaDB server.
pub(super) fn server<'a>(ctx: &'a StepContext, name: &str) -> Result<&'a Mariadb, StepError> {
    ctx.system(name, |system| match system {
        System::Mariadb(mariadb) => Some(mariadb),
        _ => None,
    })
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Socket(PathBuf),
    Tcp { host: String, port: u16 },
}

impl Endpoint {
    /// Returns where a resource listens: `host`, or `socket`, or the usual socket of the system.
    pub(super) fn of(mariadb: &Mariadb) -> Self {
        if let Some(host) = &mariadb.host {
            return Self::Tcp { host: host.clone(), port: mariadb.port };
        }
        let usual = || USUAL_SOCKETS.iter().map(Path::new).find(|path| path.exists());
        let socket = mariadb.socket.clone().or_else(|| usual().map(Path::to_path_buf));
        Self::Socket(socket.unwrap_or_else(|| USUAL_SOCKETS[0].into()))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "{}", path.display()),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// Everything that a connection needs.
#[derive(Clone, Debug)]
pub(super) struct Login {
    pub(super) endpoint: Endpoint,
    pub(super) user: String,
    pub(super) database: Option<String>,
    password: Option<SecretString>,
    /// How connections are to be protected, as the resource says it.
    tls: Option<Tls>,
    /// The name to look for in the server's certificate, if not that of the host.
    name: Option<String>,
    /// Ends statements early; the step's own token.
    cancel: CancellationToken,
}

impl Login {
    /// Returns the login of a resource.
    pub(super) fn of(ctx: &StepContext, name: &str) -> Result<Self, StepError> {
        let mariadb = server(ctx, name)?;
        let password = mariadb.password.as_ref().map(|reference| ctx.secret(reference)).transpose()?;
        Ok(Self {
            endpoint: Endpoint::of(mariadb),
            user: mariadb.user.clone(),
            database: mariadb.database.clone(),
            password: password.cloned(),
            tls: mariadb.tls.clone(),
            name: None,
            cancel: ctx.cancel.clone(),
        })
    }

    /// Returns the same login with another default database.
    #[must_use]
    pub(super) fn database(&self, name: Option<&str>) -> Self {
        Self { database: name.map(ToOwned::to_owned), ..self.clone() }
    }

    /// Says whether the step must end.
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Returns the lines of an option file with which MariaDB's own programs log in.
    pub(super) async fn option_file(&self) -> Result<String, StepError> {
        let mut lines = vec!["[client]".to_owned(), format!("user={}", quoted_option(&self.user))];
        match &self.endpoint {
            Endpoint::Socket(path) => {
                lines.push("protocol=socket".to_owned());
                lines.push(format!("socket={}", quoted_option(&path.display().to_string())));
            }
            Endpoint::Tcp { host, port } => {
                lines.push("protocol=tcp".to_owned());
                lines.push(format!("host={}", quoted_option(host)));
                lines.push(format!("port={port}"));
                lines.extend(protection::option_lines(self.protection().await?.as_ref())?);
            }
        }
        let password = self.password.as_ref().map_or("", |password| password.expose_secret());
        lines.push(format!("password={}\n", quoted_option(password)));
        Ok(lines.join("\n"))
    }

    /// Connects and logs in.
    pub(super) async fn connect(&self) -> Result<Client, DbError> {
        let opened = timeout(CONNECT_LIMIT, self.open());
        tokio::select! {
            opened = opened => opened.unwrap_or_else(|_| {
                let what = format!("the login to MariaDB at {}", self.endpoint);
                Err(DbError::timed_out(&what, CONNECT_LIMIT))
            }),
            () = self.cancel.cancelled() => Err(DbError::Cancelled),
        }
    }

    async fn open(&self) -> Result<Client, DbError> {
        let tls = self.protection().await?;
        let mut login = self.clone();
        let mut opened = Conn::new(login.opts(tls.as_ref())?).await;
        if let (Some(TlsMode::VerifyCa), Err(error)) = (tls.as_ref().map(|tls| tls.mode), &opened)
            && let Some(name) = protection::other_name(error)
        {
            login.name = Some(name);
            opened = Conn::new(login.opts(tls.as_ref())?).await;
        }
        let conn = opened.map_err(|error| self.login_error(&error, tls.as_ref()))?;
        let mut client = Client { conn, login, usable: true };
        // Times are shown in UTC, and what an account's or a server's settings do to statements is left out.
        let settings = format!("set time_zone = '+00:00', sql_mode = 'STRICT_TRANS_TABLES', {PATIENCE}");
        client.run(&settings, QUICK).await?;
        Ok(client)
    }

    fn opts(&self, tls: Option<&Tls>) -> Result<Opts, DbError> {
        let opts = OptsBuilder::default()
            .user(Some(self.user.clone()))
            .pass(self.password.as_ref().map(|password| password.expose_secret().to_owned()))
            .db_name(self.database.clone())
            .stmt_cache_size(0)
            .prefer_socket(false);
        let settings = tls.map(|tls| protection::settings(tls, self.name.as_deref())).transpose()?;
        Ok(match &self.endpoint {
            Endpoint::Socket(path) => opts.socket(Some(path.display().to_string())),
            Endpoint::Tcp { host, port } => {
                opts.ip_or_hostname(host.clone()).tcp_port(*port).ssl_opts(settings)
            }
        }
        .into())
    }

    /// Returns how a connection must be protected; `None` for not at all.
    async fn protection(&self) -> Result<Option<Tls>, DbError> {
        let Endpoint::Tcp { host, port } = &self.endpoint else { return Ok(None) };
        let found = tokio::net::lookup_host((host.as_str(), *port)).await;
        let addresses: Vec<_> = found
            .map_err(|error| DbError::Unreachable {
                endpoint: self.endpoint.to_string(),
                why: error.to_string(),
            })?
            .collect();
        Ok(needed(self.tls.as_ref(), &addresses))
    }

    fn login_error(&self, error: &Error, tls: Option<&Tls>) -> DbError {
        let at = self.endpoint.to_string();
        let mut lacking = "";
        if let Endpoint::Tcp { host, port } = &self.endpoint {
            let peer = Peer { server: "MariaDB", host: host.clone(), port: *port };
            if let Some(problem) = protection::problem(error, &peer, tls) {
                return DbError::Tls(problem);
            }
            lacking = protection::lacking(tls);
        }
        match DbError::from_driver(error) {
            // 1044, 1045, 1698: not this account, not from here, not with this password.
            DbError::Server { code: 1044 | 1045 | 1698 | 1251, message, .. } => {
                DbError::LoginRefused { user: self.user.clone(), at, why: format!("{message}{lacking}") }
            }
            DbError::Lost(why) => DbError::Unreachable { endpoint: at, why },
            other => other,
        }
    }
}

/// Quotes a value of an option file.
fn quoted_option(text: &str) -> String {
    let escaped = text.chars().fold(String::new(), |mut all, c| {
        match c {
            '\\' => all.push_str(r"\\"),
            '"' => all.push_str("\\\""),
            '\n' => all.push_str(r"\n"),
            '\r' => all.push_str(r"\r"),
            '\t' => all.push_str(r"\t"),
            other => all.push(other),
        }
        all
    });
    format!("\"{escaped}\"")
}

/// Many servers hang up on whoever is idle for some minutes, as a connection is while a program of MariaDB's works for hours, and
/// end statements that take long, as those on large tables do.
pub(super) const PATIENCE: &str =
    "wait_timeout = 31536000, net_read_timeout = 3600, net_write_timeout = 3600, max_statement_time = 0";

/// A connection that is logged in. Statements run one after the other.
pub(super) struct Client {
    conn: Conn,
    login: Login,
    usable: bool,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("at", &self.login.endpoint).finish_non_exhaustive()
    }
}

impl Client {
    /// Runs one statement without looking at rows; returns how many were changed.
    pub(super) async fn run(&mut self, sql: &str, limit: Duration) -> Result<u64, DbError> {
        self.ready()?;
        let (login, id) = (self.login.clone(), self.conn.id());
        let result = within(&login, (id, limit), self.conn.query_drop(sql)).await;
        self.settle(result).map(|()| self.conn.affected_rows())
    }

    /// Runs one statement as plain text and returns its rows, whose values are all text.
    pub(super) async fn rows(&mut self, sql: &str, limit: Duration) -> Result<Vec<Row>, DbError> {
        self.ready()?;
        let (login, id) = (self.login.clone(), self.conn.id());
        let result = within(&login, (id, limit), self.conn.query(sql)).await;
        self.settle(result)
    }

    /// Runs one prepared statement with its values and returns its rows.
    pub(super) async fn exec(
        &mut self,
        sql: &str,
        params: impl Into<Params> + Send,
        limit: Duration,
    ) -> Result<Vec<Row>, DbError> {
        self.ready()?;
        let (login, id) = (self.login.clone(), self.conn.id());
        let result = within(&login, (id, limit), self.conn.exec(sql, params.into())).await;
        self.settle(result)
    }

    /// Returns the columns of the single row of a statement as text.
    pub(super) async fn one<const N: usize>(&mut self, sql: &str) -> Result<[String; N], DbError> {
        let rows = self.rows(sql, QUICK).await?;
        let row = rows.first().ok_or_else(|| DbError::Lost(format!("`{sql}` gave no row")))?;
        Ok(std::array::from_fn(|index| text(row, index)))
    }

    fn ready(&self) -> Result<(), DbError> {
        match self.usable {
            true => Ok(()),
            false => Err(DbError::Lost("the connection was given up after a time limit".to_owned())),
        }
    }

    /// A connection on which something was cut off is not used again.
    fn settle<T>(&mut self, result: Result<T, DbError>) -> Result<T, DbError> {
        if matches!(result, Err(DbError::TimedOut { .. } | DbError::Cancelled | DbError::Lost(_))) {
            self.usable = false;
        }
        result
    }
}

async fn within<T>(
    login: &Login,
    (id, limit): (u32, Duration),
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, DbError> {
    let ended = tokio::select! {
        result = timeout(limit, work) => match result {
            Ok(result) => return result.map_err(|error| DbError::from_driver(&error)),
            Err(_) => DbError::timed_out("a statement", limit),
        },
        () = login.cancel.cancelled() => DbError::Cancelled,
    };
    kill(login, id).await;
    Err(ended)
}

/// Ends a statement whose result nobody waits for: with the connection alone it would go on.
async fn kill(login: &Login, id: u32) {
    let ask = async {
        let opts = login.opts(login.protection().await?.as_ref())?;
        let mut conn = Conn::new(opts).await.map_err(|error| DbError::from_driver(&error))?;
        conn.query_drop(format!("kill {id}")).await.map_err(|error| DbError::from_driver(&error))
    };
    if !matches!(timeout(KILL_LIMIT, ask).await, Ok(Ok(()))) {
        tracing::debug!("the server could not be asked to end a statement");
    }
}

/// Returns a column as text; empty where it is null.
pub(super) fn text(row: &Row, index: usize) -> String {
    use mysql_async::Value;
    match row.as_ref(index) {
        None | Some(Value::NULL) => String::new(),
        Some(Value::Bytes(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
        Some(Value::Int(number)) => number.to_string(),
        Some(Value::UInt(number)) => number.to_string(),
        Some(other) => other.as_sql(true).trim_matches('\'').to_owned(),
    }
}

/// Returns a column as a number; 0 where it is none.
pub(super) fn number(row: &Row, index: usize) -> u64 {
    text(row, index).parse().unwrap_or(0)
}

/// Quotes a name for SQL.
pub(super) fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// Quotes a text for SQL.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', r"\\").replace('\'', "''"))
}

/// Why a connection or a statement failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DbError {
    #[error("no MariaDB answers at {endpoint}: {why}")]
    Unreachable { endpoint: String, why: String },
    #[error("MariaDB at {at} refused the login of `{user}`: {why}")]
    LoginRefused { user: String, at: String, why: String },
    /// Nothing was sent to the server but what TLS itself takes.
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{what} did not end within {limit}")]
    TimedOut { what: String, limit: String },
    #[error("interrupted")]
    Cancelled,
    /// Known before anything was sent.
    #[error("the statement takes {takes} parameters, and {given} are given")]
    Parameters { takes: u16, given: usize },
    #[error("MariaDB: {message} [{code}, {state}]")]
    Server { code: u16, state: String, message: String },
    /// The connection broke; a statement in flight may have taken effect.
    #[error("the connection to MariaDB was lost: {0}")]
    Lost(String),
}

impl DbError {
    fn timed_out(what: &str, limit: Duration) -> Self {
        Self::TimedOut { what: what.to_owned(), limit: humantime::format_duration(limit).to_string() }
    }

    fn from_driver(error: &Error) -> Self {
        match error {
            Error::Server(server) => Self::Server {
                code: server.code,
                state: server.state.clone(),
                message: server.message.clone(),
            },
            Error::Driver(DriverError::StmtParamsMismatch { required, supplied }) => {
                Self::Parameters { takes: *required, given: *supplied }
            }
            Error::Io(IoError::Io(io)) => Self::Lost(io.to_string()),
            other => Self::Lost(other.to_string()),
        }
    }

    /// Says whether a server that is starting may be the reason, so that waiting makes sense.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// Returns the number of the server's error.
    pub(super) fn number(&self) -> Option<u16> {
        match self {
            Self::Server { code, .. } => Some(*code),
            _ => None,
        }
    }

    fn verdict(&self) -> (Code, bool, Option<&str>) {
        match self {
            Self::Unreachable { .. } => (
                codes::LB2000,
                true,
                Some("check that the server runs, and `socket`, or `host` and `port`, of the resource"),
            ),
            Self::LoginRefused { .. } => (
                codes::LB2001,
                false,
                Some(
                    "check `user` and `password` of the resource, and that the account may log in from here",
                ),
            ),
            Self::Tls(error) => (error.code(), false, Some(error.help())),
            Self::Parameters { .. } => (codes::LB2011, false, Some("give one value for each `?`")),
            Self::Lost(_) => (codes::LB2000, true, None),
            Self::TimedOut { .. } | Self::Cancelled => (codes::LB2003, true, None),
            // Deadlock, lock wait, shutdown: taken back by the server.
            Self::Server { code, .. } => {
                (codes::LB2004, matches!(code, 1205 | 1213 | 1053 | 1927 | 1969), None)
            }
        }
    }
}

impl From<DbError> for StepError {
    /// The failure of a step whose statements only read or can be repeated.
    fn from(error: DbError) -> Self {
        let (code, transient, help) = error.verdict();
        let message = error.to_string();
        let failure =
            if transient { StepError::transient(code, message) } else { StepError::permanent(code, message) };
        match help {
            Some(help) => failure.help(help),
            None => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_option_files_and_statements_give_a_meaning_is_quoted() {
        assert_eq!(quoted_option("a\"b\\c#d\n"), r#""a\"b\\c#d\n""#);
        assert_eq!(quoted("a`b"), "`a``b`");
        assert_eq!(literal(r"it's \ here"), r"'it''s \\ here'");
    }
}
