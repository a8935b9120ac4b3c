use std::error::Error as StdError;
use std::io;
use std::sync::Arc;

use lifeboat_engine::resource::{Tls, TlsMode};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::files;
use super::peer::Peer;
use super::problem::{Problem, TlsError};
use super::verifier::Verifier;

/// What a connection to one server over TLS needs: the settings, read, and the name to check.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    peer: Peer,
    tls: Tls,
}

impl Connector {
    /// Reads the files of the settings.
    pub(crate) async fn load(tls: Tls, peer: Peer) -> Result<Self, TlsError> {
        match tokio::task::spawn_blocking(move || Self::read(tls, peer)).await {
            Ok(read) => read,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => {
                    Err(TlsError::new(Problem::Files, "interrupted while reading certificates", "try again"))
                }
            },
        }
    }

    fn read(tls: Tls, peer: Peer) -> Result<Self, TlsError> {
        let name = ServerName::try_from(peer.host.clone()).map_err(|_| TlsError::no_name(&peer))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let trusted = match tls.mode {
            TlsMode::Disable | TlsMode::Require => Vec::new(),
            TlsMode::VerifyCa | TlsMode::VerifyFull => files::roots(&tls)?,
        };
        let verifier = Verifier::new(tls.mode, trusted, &provider)?;
        let unusable = |what: &str, error: &rustls::Error| {
            let help =
                "compare the two: `openssl x509 -in CERT -noout -pubkey` and `openssl pkey -in KEY -pubout`";
            TlsError::new(Problem::Files, format!("{what} cannot be used: {error}"), help)
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable("TLS", &error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let config = match files::identity(&tls)? {
            None => config.with_no_client_auth(),
            Some((chain, key)) => config.with_client_auth_cert(chain, key).map_err(|error| {
                unusable("the client certificate `cert_file` with the key `key_file`", &error)
            })?,
        };
        Ok(Self { config: Arc::new(config), name, peer, tls })
    }

    /// Returns the settings that the TLS library takes.
    pub(crate) fn config(&self) -> ClientConfig {
        ClientConfig::clone(&self.config)
    }

    /// Returns the host that the certificate must be for.
    pub(crate) fn host(&self) -> &str {
        &self.peer.host
    }

    /// Does the handshake on a connection where nothing comes before it.
    pub(crate) async fn connect<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        TlsConnector::from(Arc::clone(&self.config)).connect(self.name.clone(), stream).await
    }

    /// Returns what was wrong with TLS if that is why something failed.
    pub(crate) fn explain(&self, error: &(dyn StdError + 'static)) -> Option<TlsError> {
        TlsError::of(error, &self.peer, &self.tls)
    }

    pub(crate) fn peer(&self) -> &Peer {
        &self.peer
    }

    pub(crate) fn tls(&self) -> &Tls {
        &self.tls
    }
}
