//! Lets `redis-cli` speak to a server over TLS that Lifeboat has checked: the program itself looks at no host names.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use lifeboat_engine::step::StepError;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::codes;
use super::link::{OpenError, Target};

/// A Unix socket that stands for the server, in a directory that nobody else can enter. Ends with the value.
pub(super) struct Relay {
    listener: UnixListener,
    target: Arc<Target>,
    failed: Arc<Mutex<Option<OpenError>>>,
    dir: tempfile::TempDir,
}

impl Relay {
    /// Makes the socket.
    pub(super) fn new(target: Target) -> Result<Self, StepError> {
        let made = || {
            // A socket's path is limited to 107 bytes, which a work directory may exceed.
            let dir = tempfile::Builder::new().prefix("lifeboat-").tempdir()?;
            let listener = UnixListener::bind(socket(dir.path()))?;
            Ok((dir, listener))
        };
        let (dir, listener) = made().map_err(|error: std::io::Error| {
            StepError::transient(codes::LB1303, "no temporary directory for the socket of `redis-cli`")
                .caused_by(&error)
        })?;
        Ok(Self { listener, target: Arc::new(target), failed: Arc::default(), dir })
    }

    /// Returns the path of the socket.
    pub(super) fn socket(&self) -> PathBuf {
        socket(self.dir.path())
    }

    /// Passes on what comes while something else runs. The error is why the server could not be reached, if so.
    pub(super) async fn during<T>(self, work: impl Future<Output = T>) -> Result<T, OpenError> {
        let mut open = JoinSet::new();
        tokio::pin!(work);
        let done = loop {
            tokio::select! {
                done = &mut work => break done,
                Ok((near, _)) = self.listener.accept() => {
                    open.spawn(pass_on(near, Arc::clone(&self.target), Arc::clone(&self.failed)));
                }
            }
        };
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        failed.map_or(Ok(done), Err)
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("redis.sock")
}

async fn pass_on(mut near: UnixStream, target: Arc<Target>, failed: Arc<Mutex<Option<OpenError>>>) {
    match target.open().await {
        Ok(link) => {
            let (mut far, _tls) = link.into_parts();
            // Whoever is cut off notices by itself that something is missing.
            tokio::io::copy_bidirectional(&mut near, &mut far).await.ok();
        }
        Err(error) => *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error),
    }
}
