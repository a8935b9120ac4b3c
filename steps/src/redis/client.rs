use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use lifeboat_engine::model::outcome::FailureKind;
use lifeboat_engine::resource;
use lifeboat_engine::step::{StepContext, StepError};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, FromRedisValue, ProtocolVersion, RedisConnectionInfo, RedisError};
use secrecy::ExposeSecret;
use tokio::io::{AsyncRead, AsyncWrite};

use super::bounded::{Bounded, TooLong};
use super::codes;
use super::info::Info;
use super::link::{OpenError, Target};
use crate::process::connection_url;
use crate::tls::Connector;

/// The crate's own limits are 1 s and 0.5 s, too short for a server that forks or loads.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How many bytes come in over a bounded connection: as much as a step may put out, and what a handshake needs.
const BYTES_LIMIT: u64 = (1024 + 64) * 1024;

/// A connection to one Redis server.
#[derive(Clone)]
pub(super) struct Client {
    name: String,
    connection: MultiplexedConnection,
}

/// Returns the Redis resource of a name.
pub(super) fn server<'a>(ctx: &'a StepContext, name: &str) -> Result<&'a resource::Redis, StepError> {
    ctx.system(name, |system| match system {
        resource::System::Redis(redis) => Some(redis),
        _ => None,
    })
}

impl Client {
    /// Connects to a resource.
    pub(super) async fn connect(ctx: &StepContext, name: &str) -> Result<Self, StepError> {
        let opened = Self::open(&target(ctx, (name, None))?, name).await;
        opened.map_err(|error| cannot_reach(ctx, name, error))
    }

    /// Connects to a resource if something answers there.
    pub(super) async fn connect_if_up(ctx: &StepContext, name: &str) -> Result<Option<Self>, StepError> {
        match Self::open(&target(ctx, (name, None))?, name).await {
            Ok(client) => Ok(Some(client)),
            Err(error) if error.is_down() => Ok(None),
            Err(error) => Err(cannot_reach(ctx, name, error)),
        }
    }

    /// Connects to one database of a resource, by number.
    pub(super) async fn connect_database(
        ctx: &StepContext,
        name: &str,
        database: i64,
    ) -> Result<Self, StepError> {
        let opened = Self::open(&target(ctx, (name, Some(database)))?, name).await;
        opened.map_err(|error| cannot_reach(ctx, name, error))
    }

    /// Connects for answers that keep their types and of which only so much is taken in.
    pub(super) async fn connect_bounded(
        ctx: &StepContext,
        (name, database): (&str, Option<i64>),
        limit: Duration,
    ) -> Result<Self, StepError> {
        let target = target(ctx, (name, database))?;
        let settings = target.settings().clone().set_protocol(ProtocolVersion::RESP3);
        let opened = within_limit(async {
            let (stream, tls) = target.open().await?.into_parts();
            talk(Bounded::new(stream, BYTES_LIMIT), (&settings, limit), tls.as_ref()).await
        });
        match opened.await {
            Ok(connection) => Ok(Self { name: name.to_owned(), connection }),
            Err(error) => Err(cannot_reach(ctx, name, error)),
        }
    }

    /// Connects to a Unix socket.
    pub(super) async fn connect_socket(path: &std::path::Path, name: &str) -> Result<Self, OpenError> {
        Self::open(&Target::new(&format!("redis+unix://{}", path.display()), None)?, name).await
    }

    async fn open(target: &Target, name: &str) -> Result<Self, OpenError> {
        let opened = within_limit(async {
            let (stream, tls) = target.open().await?.into_parts();
            talk(stream, (target.settings(), ANSWER_LIMIT), tls.as_ref()).await
        });
        Ok(Self { name: name.to_owned(), connection: opened.await? })
    }

    /// Sends one command and returns whatever came.
    pub(super) async fn try_command<T: FromRedisValue>(&mut self, words: &[&str]) -> Result<T, RedisError> {
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(word);
        }
        command.query_async(&mut self.connection).await
    }

    /// Sends one command; the error names it.
    pub(super) async fn command<T: FromRedisValue>(&mut self, words: &[&str]) -> Result<T, StepError> {
        self.try_command(words).await.map_err(|error| refused(&self.name, words, &error))
    }

    /// Counts, empties and counts the database of the connection again, all at one moment.
    pub(super) async fn empty_database(&mut self) -> Result<(u64, u64), StepError> {
        let mut all = redis::pipe();
        all.atomic().cmd("DBSIZE").cmd("FLUSHDB").arg("ASYNC").ignore().cmd("DBSIZE");
        all.query_async(&mut self.connection).await.map_err(|error: RedisError| {
            let failure = refused(&self.name, &["FLUSHDB"], &error);
            let broken = error.is_io_error() || error.is_timeout();
            // Whether it was carried out is not known when the answer does not come.
            if broken { StepError { kind: FailureKind::Uncertain, ..failure } } else { failure }
        })
    }

    /// Returns all of `INFO`.
    pub(super) async fn info(&mut self) -> Result<Info, StepError> {
        self.command::<String>(&["INFO"]).await.map(|text| Info::parse(&text))
    }

    /// Returns settings of the server by a pattern.
    pub(super) async fn config(&mut self, names: &[&str]) -> Result<BTreeMap<String, String>, StepError> {
        let mut settings = BTreeMap::new();
        for name in names {
            settings.extend(self.command::<BTreeMap<String, String>>(&["CONFIG", "GET", name]).await?);
        }
        Ok(settings)
    }

    /// Returns the directory in which the server keeps its files.
    pub(super) async fn dir(&mut self) -> Result<PathBuf, StepError> {
        Ok(self.config(&["dir"]).await?.remove("dir").unwrap_or_default().into())
    }
}

/// Returns where a resource is and how it is connected to.
pub(super) fn target(ctx: &StepContext, (name, database): (&str, Option<i64>)) -> Result<Target, StepError> {
    let number = database.map(|number| number.to_string());
    let url = connection_url(ctx, name, number.as_deref())?;
    let tls = server(ctx, name)?.tls.as_ref();
    Target::new(url.expose_secret(), tls).map_err(|error| cannot_reach(ctx, name, error))
}

async fn within_limit<T>(work: impl Future<Output = Result<T, OpenError>>) -> Result<T, OpenError> {
    let opened = tokio::time::timeout(CONNECT_LIMIT, work).await;
    opened.unwrap_or_else(|elapsed| Err(std::io::Error::from(elapsed).into()))
}

/// Logs in over an open way.
async fn talk<S>(
    stream: S,
    (settings, limit): (&RedisConnectionInfo, Duration),
    tls: Option<&Connector>,
) -> Result<MultiplexedConnection, OpenError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(limit));
    let made = MultiplexedConnection::new_with_config(settings, stream, config).await;
    let (connection, driver) = made.map_err(|error| OpenError::of(error, tls))?;
    // Ends with the last handle of the connection.
    tokio::spawn(driver);
    Ok(connection)
}

/// Returns the failure of a step to connect.
pub(super) fn cannot_reach(ctx: &StepContext, name: &str, error: OpenError) -> StepError {
    let error = match error {
        OpenError::Redis(error) => error,
        OpenError::Tls(error) => return error.into(),
    };
    let url = server(ctx, name).map_or("", |redis| redis.url.as_str());
    let credentials = matches!(error.kind(), redis::ErrorKind::AuthenticationFailed)
        || matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM"));
    let message = format!("the Redis server `{name}` at {url} cannot be used");
    let failure = if credentials {
        StepError::permanent(codes::LB1301, message)
            .help("correct `password` of the resource in the environment's file")
    } else {
        StepError::transient(codes::LB1301, message)
            .help(format!("check it with `redis-cli -u {url} ping` on this machine{}", tls_hint(url)))
    };
    failure.caused_by(&error)
}

/// A server that wants TLS hangs up without a word, and one that has none may wait for the end of a line.
fn tls_hint(url: &str) -> &'static str {
    match url.split_once("://") {
        Some(("redis", _)) => "; a port at which the server speaks TLS wants `rediss://`",
        Some(("rediss", _)) => "; the server must speak TLS at that port (`tls-port`)",
        _ => "",
    }
}

fn refused(name: &str, words: &[&str], error: &RedisError) -> StepError {
    // The first two words name a command; what follows may be data.
    let command =
        words.iter().take(if words[0] == "CONFIG" { 3 } else { 1 }).copied().collect::<Vec<_>>().join(" ");
    if is_too_long(error) {
        let message = format!("the answer to `{command}` of the Redis server `{name}` is longer than 1 MiB");
        return StepError::permanent(codes::LB1331, message).help(
            "ask for a part: LRANGE, ZRANGE or XRANGE with a limit, HGET, GETRANGE, or only for the count",
        );
    }
    let message = format!("the Redis server `{name}` did not carry out `{command}`");
    let io = error.is_io_error() || error.is_timeout();
    let failure = if io {
        StepError::transient(codes::LB1301, message)
    } else {
        StepError::permanent(codes::LB1302, message)
    };
    failure.caused_by(error)
}

fn is_too_long(error: &RedisError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(found) = cause {
        let inner = found.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if found.is::<TooLong>() || inner.is_some_and(|inner| inner.is::<TooLong>()) {
            return true;
        }
        cause = found.source();
    }
    // The crate keeps the text of some errors and not the error.
    error.to_string().contains(&TooLong.to_string())
}
