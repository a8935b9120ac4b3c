//! Connections to Postgres with time limits, and errors that say what happened.
//!
//! Every statement has a limit. When it passes, the server is asked to cancel and the connection is not used again:
//! dropping a query's future alone would leave the statement running and the connection busy.

mod copy;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::TryStreamExt;
use lifeboat_engine::code::Code;
use lifeboat_engine::resource::Postgres;
use lifeboat_engine::step::{StepContext, StepError};
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Config, NoTls, Row};
use tokio_util::sync::CancellationToken;

use super::account;
use super::codes;
use super::isolation::Isolation;
use super::pidfile::PidFile;
use crate::process::Command;

/// How long a login may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long asking the server to cancel a statement may take.
const CANCEL_LIMIT: Duration = Duration::from_secs(3);

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// The Unix socket of a port in a directory.
    Socket { dir: PathBuf, port: u16 },
    /// A host name or address of this machine.
    Tcp { host: String, port: u16 },
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket { dir, port } => write!(f, "{}", socket_path(dir, *port).display()),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// Returns the path of the Unix socket that a server of a port makes in a directory.
pub fn socket_path(dir: &Path, port: u16) -> PathBuf {
    dir.join(format!(".s.PGSQL.{port}"))
}

/// Everything that a connection needs.
#[derive(Clone, Debug)]
pub struct Login {
    pub endpoint: Endpoint,
    pub user: String,
    pub database: String,
    pub password: Option<SecretString>,
    /// Over a Unix socket, the user id that the server sees, so that `peer` lines work when Lifeboat is root.
    pub as_uid: Option<u32>,
    /// Ends statements early; the step's own token.
    pub cancel: CancellationToken,
}

impl Login {
    /// Returns what Postgres's own programs take as host, and the port.
    pub(super) fn address(&self) -> (String, u16) {
        match &self.endpoint {
            Endpoint::Socket { dir, port } => (dir.display().to_string(), *port),
            Endpoint::Tcp { host, port } => (host.clone(), *port),
        }
    }

    /// Gives the password to one of Postgres's own programs, in a file that is on no disk.
    pub(super) fn passfile(&self, command: Command) -> Result<Command, StepError> {
        let Some(password) = &self.password else { return Ok(command) };
        let escaped = password.expose_secret().replace('\\', r"\\").replace(':', r"\:");
        command.secret_file("PGPASSFILE", &format!("*:*:*:*:{escaped}\n"))
    }

    /// Returns the login of a resource, to its default database.
    pub fn of(ctx: &StepContext, postgres: &Postgres) -> Result<Self, StepError> {
        let password = postgres.password.as_ref().map(|reference| ctx.secret(reference)).transpose()?;
        // Lifeboat's own server on restored data is always reached the private way, whatever it is reached by
        // otherwise: its roles have the passwords of another time.
        let isolated = postgres.data_dir.as_deref().and_then(Isolation::serving);
        let endpoint = match isolated {
            Some(isolated) => Endpoint::Socket { dir: isolated.dir(), port: isolated.port },
            None => endpoint(postgres),
        };
        let as_uid = match &endpoint {
            Endpoint::Socket { .. } => account::owner(postgres).ok().flatten().map(|user| user.uid),
            Endpoint::Tcp { .. } => None,
        };
        Ok(Self {
            endpoint,
            user: postgres.user.clone(),
            database: postgres.database.clone(),
            password: password.cloned(),
            as_uid,
            cancel: ctx.cancel.clone(),
        })
    }

    /// Returns the login to a server that Lifeboat has started in isolation: over its private socket, as its own user.
    pub fn isolated(
        ctx: &StepContext,
        postgres: &Postgres,
        isolation: &Isolation,
    ) -> Result<Self, StepError> {
        Ok(Self {
            endpoint: Endpoint::Socket { dir: isolation.dir(), port: isolation.port },
            user: postgres.user.clone(),
            database: postgres.database.clone(),
            password: None,
            as_uid: account::owner(postgres)?.map(|user| user.uid),
            cancel: ctx.cancel.clone(),
        })
    }

    /// Returns the same login to another database.
    #[must_use]
    pub fn database(&self, name: &str) -> Self {
        Self { database: name.to_owned(), ..self.clone() }
    }

    /// Connects and logs in.
    pub async fn connect(&self) -> Result<Client, PgError> {
        let opened = timeout(CONNECT_LIMIT, self.open());
        tokio::select! {
            opened = opened => opened.unwrap_or_else(|_| Err(PgError::timed_out("the login", CONNECT_LIMIT))),
            () = self.cancel.cancelled() => Err(PgError::Cancelled),
        }
    }

    async fn open(&self) -> Result<Client, PgError> {
        let stream = self.stream().await?;
        let mut config = Config::new();
        config.user(&self.user).dbname(&self.database).application_name("lifeboat");
        config.ssl_mode(tokio_postgres::config::SslMode::Disable);
        if let Some(password) = &self.password {
            config.password(password.expose_secret());
        }
        let (inner, connection) =
            config.connect_raw(stream, NoTls).await.map_err(|error| self.login_error(&error))?;
        // Ends by itself when the client is dropped.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("Postgres connection ended: {error}");
            }
        });
        Ok(Client { inner, login: self.clone(), usable: AtomicBool::new(true) })
    }

    async fn stream(&self) -> Result<Box<dyn Stream>, PgError> {
        let unreachable = |error: io::Error| PgError::Unreachable {
            endpoint: self.endpoint.to_string(),
            why: error.to_string(),
        };
        match &self.endpoint {
            Endpoint::Socket { dir, port } => {
                let stream = connect_socket(socket_path(dir, *port), self.as_uid).await;
                Ok(Box::new(stream.map_err(unreachable)?))
            }
            Endpoint::Tcp { host, port } => {
                let addresses = loopback_addresses(host, *port).await?;
                let stream = tokio::net::TcpStream::connect(&addresses[..]).await.map_err(unreachable)?;
                stream.set_nodelay(true).map_err(unreachable)?;
                Ok(Box::new(stream))
            }
        }
    }

    fn login_error(&self, error: &tokio_postgres::Error) -> PgError {
        let at = self.endpoint.to_string();
        match PgError::from_driver(error) {
            PgError::Database(db) if db.is_login_failure() => {
                PgError::LoginRefused { user: self.user.clone(), at, why: db.to_string() }
            }
            PgError::Lost(why) if why.contains("password") || why.contains("authentication") => {
                PgError::LoginRefused { user: self.user.clone(), at, why }
            }
            PgError::Lost(why) => PgError::Unreachable { endpoint: at, why },
            other => other,
        }
    }
}

/// Returns where a resource listens: `host`, or the Unix socket in `socket_dir`, or where the server on its data
/// directory says, or the usual directory.
pub fn endpoint(postgres: &Postgres) -> Endpoint {
    let port = postgres.port;
    match (&postgres.host, &postgres.socket_dir) {
        (Some(host), _) if host.starts_with('/') => Endpoint::Socket { dir: host.into(), port },
        (Some(host), _) => Endpoint::Tcp { host: host.clone(), port },
        (None, Some(dir)) => Endpoint::Socket { dir: dir.clone(), port },
        (None, None) => {
            let server = postgres.data_dir.as_deref().and_then(PidFile::live);
            let own =
                server.filter(|(file, _)| file.port == Some(port)).and_then(|(file, _)| file.socket_dir);
            Endpoint::Socket { dir: own.unwrap_or_else(|| usual_socket_dir(port)), port }
        }
    }
}

fn usual_socket_dir(port: u16) -> PathBuf {
    let usual = [Path::new("/var/run/postgresql"), Path::new("/tmp")];
    let found = usual.into_iter().find(|dir| socket_path(dir, port).exists());
    found.unwrap_or(usual[0]).to_path_buf()
}

async fn loopback_addresses(host: &str, port: u16) -> Result<Vec<SocketAddr>, PgError> {
    let found = tokio::net::lookup_host((host, port)).await.map_err(|error| PgError::Unreachable {
        endpoint: format!("{host}:{port}"),
        why: error.to_string(),
    })?;
    let addresses: Vec<SocketAddr> = found.collect();
    match addresses.iter().all(|address| address.ip().is_loopback()) {
        true => Ok(addresses),
        false => Err(PgError::Remote { host: host.to_owned() }),
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Connects to a Unix socket as another user where that is asked for.
///
/// The kernel notes the effective user of the thread that connects, so a thread of its own takes that user on; Linux
/// keeps user ids per thread at this level, and the thread ends right after.
async fn connect_socket(path: PathBuf, as_uid: Option<u32>) -> io::Result<tokio::net::UnixStream> {
    let Some(uid) = as_uid.filter(|&uid| uid != rustix::process::geteuid().as_raw()) else {
        return tokio::net::UnixStream::connect(path).await;
    };
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("postgres-peer".to_owned()).spawn(move || {
        let connect = || {
            let uid = rustix::process::Uid::from_raw(uid);
            rustix::thread::set_thread_res_uid(None, Some(uid), None)?;
            let stream = std::os::unix::net::UnixStream::connect(path)?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        };
        // The receiver is gone only if the caller has stopped waiting.
        drop(sender.send(connect()));
    })?;
    let connected: io::Result<_> = receiver.await.map_err(io::Error::other)?;
    tokio::net::UnixStream::from_std(connected?)
}

/// A connection that is logged in. Statements run one after the other.
pub struct Client {
    inner: tokio_postgres::Client,
    login: Login,
    usable: AtomicBool,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("at", &self.login.endpoint).finish_non_exhaustive()
    }
}

/// Parameters of a statement.
pub type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

impl Client {
    /// Runs one statement and returns its rows.
    pub async fn query(&self, sql: &str, params: Params<'_>, limit: Duration) -> Result<Vec<Row>, PgError> {
        self.within(limit, self.inner.query(sql, params)).await
    }

    /// Runs one statement that gives exactly one row.
    pub async fn query_one(&self, sql: &str, params: Params<'_>, limit: Duration) -> Result<Row, PgError> {
        self.within(limit, self.inner.query_one(sql, params)).await
    }

    /// Runs statements without parameters and without looking at rows.
    pub async fn batch(&self, sql: &str, limit: Duration) -> Result<(), PgError> {
        self.within(limit, self.inner.batch_execute(sql)).await
    }

    /// Prepares a statement, which finds the types of its parameters and columns.
    pub async fn prepare(&self, sql: &str, limit: Duration) -> Result<tokio_postgres::Statement, PgError> {
        self.within(limit, self.inner.prepare(sql)).await
    }

    /// Runs a prepared statement and returns its rows.
    pub async fn query_prepared(
        &self,
        statement: &tokio_postgres::Statement,
        params: Params<'_>,
        limit: Duration,
    ) -> Result<Vec<Row>, PgError> {
        self.within(limit, self.inner.query(statement, params)).await
    }

    /// Runs a prepared statement and returns its rows, or `None` as soon as one of them does not fit: then the statement is
    /// ended, and the connection with it.
    pub async fn query_while(
        &self,
        statement: &tokio_postgres::Statement,
        params: Params<'_>,
        limit: Duration,
        mut fits: impl FnMut(&Row) -> bool,
    ) -> Result<Option<Vec<Row>>, PgError> {
        let read = async {
            let mut stream = std::pin::pin!(self.inner.query_raw(statement, params.iter().copied()).await?);
            let mut rows = Vec::new();
            while let Some(row) = stream.try_next().await? {
                if !fits(&row) {
                    return Ok(None);
                }
                rows.push(row);
            }
            Ok(Some(rows))
        };
        let rows = self.within(limit, read).await?;
        if rows.is_none() {
            self.usable.store(false, Ordering::Release);
            self.cancel_statement().await;
        }
        Ok(rows)
    }

    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, PgError> {
        if !self.usable.load(Ordering::Acquire) {
            return Err(PgError::Lost("the connection was given up after a time limit".to_owned()));
        }
        let ended = tokio::select! {
            result = timeout(limit, work) => match result {
                Ok(result) => return result.map_err(|error| PgError::from_driver(&error)),
                Err(_) => PgError::timed_out("a statement", limit),
            },
            () = self.login.cancel.cancelled() => PgError::Cancelled,
        };
        self.usable.store(false, Ordering::Release);
        self.cancel_statement().await;
        Err(ended)
    }

    async fn cancel_statement(&self) {
        let token = self.inner.cancel_token();
        let ask = async {
            let stream = self.login.stream().await?;
            token.cancel_query_raw(stream, NoTls).await.map_err(|error| PgError::from_driver(&error))
        };
        if !matches!(timeout(CANCEL_LIMIT, ask).await, Ok(Ok(()))) {
            tracing::debug!("the server could not be asked to cancel a statement");
        }
    }
}

/// What the server said was wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DbMessage {
    pub severity: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    pub sqlstate: String,
}

impl DbMessage {
    /// Class 28 is authorization; 3D000 names a database that is not there and is no matter of passwords.
    fn is_login_failure(&self) -> bool {
        self.sqlstate.starts_with("28")
    }
}

impl fmt::Display for DbMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.severity, self.message)?;
        if let Some(detail) = &self.detail {
            write!(f, " ({detail})")?;
        }
        write!(f, " [SQLSTATE {}]", self.sqlstate)
    }
}

/// Why a connection or a statement failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PgError {
    #[error("no Postgres answers at {endpoint}: {why}")]
    Unreachable { endpoint: String, why: String },
    #[error("Postgres at {at} refused the login of `{user}`: {why}")]
    LoginRefused { user: String, at: String, why: String },
    #[error("the Postgres host `{host}` is another machine, and TLS is not supported yet")]
    Remote { host: String },
    /// The server starts, stops or recovers and takes no connections yet.
    #[error("Postgres accepts no connections yet: {0}")]
    NotReady(String),
    #[error("{what} did not end within {limit}")]
    TimedOut { what: String, limit: String },
    #[error("interrupted")]
    Cancelled,
    #[error("{0}")]
    Database(DbMessage),
    /// The connection broke; a statement in flight may have taken effect.
    #[error("the connection to Postgres was lost: {0}")]
    Lost(String),
}

impl PgError {
    fn timed_out(what: &str, limit: Duration) -> Self {
        Self::TimedOut { what: what.to_owned(), limit: humantime::format_duration(limit).to_string() }
    }

    fn from_driver(error: &tokio_postgres::Error) -> Self {
        let Some(db) = error.as_db_error() else {
            return Self::Lost(chain(error));
        };
        if db.code() == &SqlState::CANNOT_CONNECT_NOW {
            return Self::NotReady(db.message().to_owned());
        }
        Self::Database(DbMessage {
            severity: db.severity().to_owned(),
            message: db.message().to_owned(),
            detail: db.detail().map(ToOwned::to_owned),
            hint: db.hint().map(ToOwned::to_owned),
            sqlstate: db.code().code().to_owned(),
        })
    }

    /// Says whether a server that is starting may be the reason, so that waiting makes sense.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::NotReady(_))
    }

    /// Returns the failure of a step whose statements only read or can be repeated.
    pub fn into_step(self) -> StepError {
        let (code, transient, help) = self.verdict();
        let message = self.to_string();
        let error =
            if transient { StepError::transient(code, message) } else { StepError::permanent(code, message) };
        match help {
            Some(help) => error.help(help),
            None => error,
        }
    }

    fn verdict(&self) -> (Code, bool, Option<String>) {
        match self {
            Self::Unreachable { .. } => (
                codes::LB1240,
                true,
                Some(
                    "check that the server runs, and `host`, `port` or `socket_dir` of the resource"
                        .to_owned(),
                ),
            ),
            Self::LoginRefused { user, .. } => (
                codes::LB1241,
                false,
                Some(format!(
                    "check the resource's `password` and that pg_hba.conf lets `{user}` in, then try again"
                )),
            ),
            Self::Remote { .. } => (
                codes::LB1242,
                false,
                Some(
                    "run Lifeboat on that machine, or forward the port: ssh -L 5433:localhost:5432 HOST"
                        .to_owned(),
                ),
            ),
            Self::NotReady(_) | Self::Lost(_) => (codes::LB1240, true, None),
            Self::TimedOut { .. } | Self::Cancelled => (codes::LB1243, true, None),
            // Taken back by the server: a conflict with others (class 40), or a session that it ended (57P0x).
            Self::Database(db) => {
                let passes = db.sqlstate.starts_with("40") || db.sqlstate.starts_with("57P0");
                (codes::LB1244, passes, db.hint.clone())
            }
        }
    }
}

impl From<PgError> for StepError {
    fn from(error: PgError) -> Self {
        error.into_step()
    }
}

/// The driver's own text leaves out its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_this_machine_is_spoken_to_without_tls() {
        assert!(loopback_addresses("127.0.0.1", 5432).await.is_ok());
        assert!(loopback_addresses("::1", 5432).await.is_ok());
        let error = loopback_addresses("192.0.2.7", 5432).await.expect_err("another machine");
        assert_eq!(error.into_step().code, codes::LB1242);
    }
}
