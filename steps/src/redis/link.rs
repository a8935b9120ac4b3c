//! The way to a Redis server: a Unix socket, a connection in the clear, or one over TLS.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use lifeboat_engine::resource::{Tls, TlsMode};
use redis::{ConnectionAddr, RedisConnectionInfo, RedisError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use crate::tls::{Connector, Peer, TlsError, needed};

/// What a connection goes over.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error(transparent)]
    Redis(#[from] RedisError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        Self::Redis(error.into())
    }
}

impl OpenError {
    /// Tells a refusal that the server sends after the handshake, as TLS 1.3 has it, from all others.
    pub(super) fn of(error: RedisError, tls: Option<&Connector>) -> Self {
        tls.and_then(|tls| tls.explain(&error)).map_or(Self::Redis(error), Self::Tls)
    }

    /// Says whether nothing listens, so that the server is known to be down.
    pub(super) fn is_down(&self) -> bool {
        matches!(self, Self::Redis(error) if error.is_connection_refusal())
    }
}

/// A server, by its address with credentials, and how connections to it are protected.
pub(super) struct Target {
    address: ConnectionAddr,
    settings: RedisConnectionInfo,
    /// Whether the address says that TLS is spoken.
    is_tls: bool,
    tls: Option<Tls>,
}

impl Target {
    /// Reads an address: `redis://`, `rediss://` or `unix://`.
    pub(super) fn new(url: &str, tls: Option<&Tls>) -> Result<Self, OpenError> {
        let rest = url.strip_prefix("rediss://");
        // TLS is ours: the library is given a stream.
        let url = rest.map_or_else(|| url.to_owned(), |rest| format!("redis://{rest}"));
        let client = redis::Client::open(url)?;
        let info = client.get_connection_info();
        let (address, settings) = (info.addr().clone(), info.redis_settings().clone());
        Ok(Self { address, settings, is_tls: rest.is_some(), tls: tls.cloned() })
    }

    /// Returns what is told to the server at first: who logs in, and to which database.
    pub(super) fn settings(&self) -> &RedisConnectionInfo {
        &self.settings
    }

    /// Says whether connections may go over TLS, which needs more than an address.
    pub(super) fn is_protected(&self) -> bool {
        self.is_tls || self.tls.as_ref().is_some_and(|tls| tls.mode != TlsMode::Disable)
    }

    /// Opens the way to the server.
    pub(super) async fn open(&self) -> Result<Link, OpenError> {
        let (host, port) = match &self.address {
            ConnectionAddr::Tcp(host, port) => (host, *port),
            ConnectionAddr::Unix(path) => return Ok(Link::clear(UnixStream::connect(path).await?)),
            _ => {
                let message = "this kind of address is not supported here";
                return Err(io::Error::new(io::ErrorKind::Unsupported, message).into());
            }
        };
        let addresses: Vec<_> = tokio::net::lookup_host((host.as_str(), port)).await?.collect();
        let peer = Peer { server: "Redis", host: host.clone(), port };
        let tls = match self.protection(&addresses, &peer)? {
            Some(tls) => Some(Connector::load(tls, peer).await?),
            None => None,
        };
        let stream = TcpStream::connect(&addresses[..]).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = tls else { return Ok(Link::clear(stream)) };
        let stream = Box::new(handshake(&tls, stream, &addresses).await?);
        Ok(Link { stream, tls: Some(tls) })
    }

    /// Returns how the connection must be protected. What the address says counts; one in the clear to another machine must
    /// be asked for in so many words.
    fn protection(&self, addresses: &[SocketAddr], peer: &Peer) -> Result<Option<Tls>, TlsError> {
        match (self.is_tls, &self.tls) {
            (true, tls) => Ok(Some(tls.clone().unwrap_or_default())),
            (false, None) if needed(None, addresses).is_some() => Err(TlsError::in_the_clear(peer)),
            (false, tls) => Ok(needed(tls.as_ref(), addresses)),
        }
    }
}

/// Does the handshake, and finds out what a server speaks that does not answer it.
async fn handshake(
    tls: &Connector,
    stream: TcpStream,
    addresses: &[SocketAddr],
) -> Result<TlsStream<TcpStream>, OpenError> {
    let shaking = tls.connect(stream);
    tokio::pin!(shaking);
    let shaken = tokio::select! {
        shaken = &mut shaking => shaken,
        in_the_clear = is_in_the_clear(addresses) => match in_the_clear {
            true => return Err(TlsError::speaks_in_the_clear(tls.peer()).into()),
            false => shaking.await,
        },
    };
    shaken.map_err(|error| tls.explain(&error).map_or_else(|| error.into(), OpenError::Tls))
}

/// How long a server may be silent in the handshake before it is asked what it speaks.
const SILENCE: Duration = Duration::from_secs(1);

/// Says whether a server that says nothing speaks Redis in the clear: to such a one a handshake looks like the beginning of a
/// command, and it waits for the rest of it. It is asked on another connection, and told nothing but `PING`.
async fn is_in_the_clear(addresses: &[SocketAddr]) -> bool {
    tokio::time::sleep(SILENCE).await;
    let asked = async {
        let mut stream = TcpStream::connect(addresses).await?;
        stream.write_all(b"PING\r\n").await?;
        stream.read_u8().await
    };
    // An answer or a refusal, as in `+PONG` and `-NOAUTH …`. No message of TLS begins so.
    matches!(asked.await, Ok(b'+' | b'-'))
}

/// An open way to a server.
pub(super) struct Link {
    stream: Box<dyn Stream>,
    /// What protects it.
    tls: Option<Connector>,
}

impl Link {
    fn clear(stream: impl Stream + 'static) -> Self {
        Self { stream: Box::new(stream), tls: None }
    }

    pub(super) fn into_parts(self) -> (Box<dyn Stream>, Option<Connector>) {
        (self.stream, self.tls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn protection(url: &str, tls: Option<Tls>, ip: &str) -> Result<Option<TlsMode>, TlsError> {
        let target = Target::new(url, tls.as_ref()).unwrap();
        let peer = Peer { server: "Redis", host: "cache".into(), port: 6379 };
        let found = target.protection(&[SocketAddr::new(ip.parse().unwrap(), 6379)], &peer);
        found.map(|tls| tls.map(|tls| tls.mode))
    }

    #[test]
    fn the_address_says_whether_tls_is_spoken_and_the_clear_is_for_this_machine() {
        let mode = |mode| Some(Tls { mode, ..Tls::default() });
        let full = Ok(Some(TlsMode::VerifyFull));
        assert_eq!(protection("redis://cache", None, "127.0.0.1"), Ok(None));
        assert_eq!(protection("rediss://cache", None, "127.0.0.1"), full);
        assert_eq!(protection("rediss://cache", None, "192.0.2.7"), full);
        assert_eq!(
            protection("rediss://cache", mode(TlsMode::VerifyCa), "192.0.2.7"),
            Ok(Some(TlsMode::VerifyCa))
        );
        assert_eq!(protection("redis://cache", mode(TlsMode::Disable), "192.0.2.7"), Ok(None));
        let refused = protection("redis://cache", None, "192.0.2.7").unwrap_err();
        assert_eq!(refused.code().id, "LB1909");
    }
}
