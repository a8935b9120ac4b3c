//! Checks the server's certificate as far as the mode asks for, and keeps what it says when it is refused.

use std::fmt;
use std::sync::Arc;

use lifeboat_engine::resource::TlsMode;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};

use super::certificate::Description;
use super::problem::{Problem, TlsError};

/// Why a certificate was refused, with the certificate.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) why: CertificateError,
    pub(super) certificate: Option<Description>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.why.fmt(f)
    }
}

impl std::error::Error for Refusal {}

/// Checks certificates by one mode.
#[derive(Debug)]
pub(super) struct Verifier {
    /// What is checked; `None` for nothing but that the server has the key of its certificate.
    checks: Option<Checks>,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
struct Checks {
    chain: Arc<WebPkiServerVerifier>,
    trusted: Vec<CertificateDer<'static>>,
    names: bool,
}

impl Verifier {
    /// Makes a verifier that trusts some authorities.
    pub(super) fn new(
        mode: TlsMode,
        trusted: Vec<CertificateDer<'static>>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, TlsError> {
        if matches!(mode, TlsMode::Disable | TlsMode::Require) {
            return Ok(Self { checks: None, provider: Arc::clone(provider) });
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(trusted.iter().cloned());
        let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        let chain = chain.build().map_err(|error| {
            let help = "give `ca_file` the certificate of the server's authority";
            TlsError::new(Problem::Files, format!("no authority to check certificates by: {error}"), help)
        })?;
        let checks = Checks { chain, trusted, names: mode == TlsMode::VerifyFull };
        Ok(Self { checks: Some(checks), provider: Arc::clone(provider) })
    }
}

impl Checks {
    fn verify(
        &self,
        (server, intermediates): (&CertificateDer<'_>, &[CertificateDer<'_>]),
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        match self.chain.verify_server_cert(server, intermediates, name, &[], now) {
            Ok(_) => Ok(()),
            // Names are looked at when all else is in order.
            Err(error) if is_about_names(&error) => {
                if self.names {
                    Err(error)
                } else {
                    Ok(())
                }
            }
            // A certificate that signs itself is an authority, which no server may be, unless it is trusted as it stands.
            Err(Error::InvalidCertificate(CertificateError::Other(_))) if self.trusted.contains(server) => {
                self.verify_itself(server, name, now)
            }
            Err(error) => Err(error),
        }
    }

    fn verify_itself(
        &self,
        server: &CertificateDer<'_>,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let described = Description::read(server).ok_or(CertificateError::BadEncoding)?;
        let second = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if second < described.not_before.as_second() {
            return Err(CertificateError::NotValidYet.into());
        }
        if second > described.not_after.as_second() {
            return Err(CertificateError::Expired.into());
        }
        if self.names { verify_server_name(&ParsedCertificate::try_from(server)?, name) } else { Ok(()) }
    }
}

/// Says whether everything but the name was in order.
fn is_about_names(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
        )
    )
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(checks) = &self.checks else { return Ok(ServerCertVerified::assertion()) };
        match checks.verify((end_entity, intermediates), server_name, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(Error::InvalidCertificate(why)) => {
                let refusal = Refusal { why, certificate: Description::read(end_entity) };
                Err(CertificateError::Other(OtherError(Arc::new(refusal))).into())
            }
            Err(other) => Err(other),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
