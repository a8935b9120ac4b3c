//! Where a server listens, and the way there.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use lifeboat_engine::resource::{Postgres, Tls};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;

use super::{Login, PgError};
use crate::postgres::pidfile::PidFile;
use crate::tls::{self, Peer};

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// The Unix socket of a port in a directory.
    Socket { dir: PathBuf, port: u16 },
    /// A host name or address.
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

impl Login {
    /// Returns the addresses of the server; none for a Unix socket.
    pub(super) async fn addresses(&self) -> Result<Vec<SocketAddr>, PgError> {
        let Endpoint::Tcp { host, port } = &self.endpoint else { return Ok(Vec::new()) };
        let found = tokio::net::lookup_host((host.as_str(), *port)).await;
        Ok(found.map_err(|error| self.unreachable(&error))?.collect())
    }

    /// Returns how a connection to these addresses must be protected; `None` for not at all.
    pub(super) fn protection(&self, addresses: &[SocketAddr]) -> Option<Tls> {
        match &self.endpoint {
            Endpoint::Socket { .. } => None,
            Endpoint::Tcp { .. } => tls::needed(self.tls.as_ref(), addresses),
        }
    }

    /// Opens the way to the server.
    pub(super) async fn stream(&self, addresses: &[SocketAddr]) -> Result<Way, PgError> {
        match &self.endpoint {
            Endpoint::Socket { dir, port } => {
                let stream = connect_socket(socket_path(dir, *port), self.as_uid).await;
                Ok(Way::Left(stream.map_err(|error| self.unreachable(&error))?))
            }
            Endpoint::Tcp { .. } => {
                let connected = TcpStream::connect(addresses).await;
                let stream = connected.map_err(|error| self.unreachable(&error))?;
                stream.set_nodelay(true).map_err(|error| self.unreachable(&error))?;
                Ok(Way::Right(stream))
            }
        }
    }

    /// Names the server for errors of TLS.
    pub(super) fn peer(&self) -> Peer {
        let (host, port) = self.address();
        Peer { server: "Postgres", host, port }
    }

    fn unreachable(&self, error: &io::Error) -> PgError {
        PgError::Unreachable { endpoint: self.endpoint.to_string(), why: error.to_string() }
    }
}

/// What a connection goes over, below TLS.
pub(super) type Way = Either<UnixStream, TcpStream>;

/// Connects to a Unix socket as another user where that is asked for.
///
/// The kernel notes the effective user of the thread that connects, so a thread of its own takes that user on; Linux
/// keeps user ids per thread at this level, and the thread ends right after.
async fn connect_socket(path: PathBuf, as_uid: Option<u32>) -> io::Result<UnixStream> {
    let Some(uid) = as_uid.filter(|&uid| uid != rustix::process::geteuid().as_raw()) else {
        return UnixStream::connect(path).await;
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
    UnixStream::from_std(connected?)
}
