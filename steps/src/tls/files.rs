//! The files that settings of TLS name.

use std::path::{Path, PathBuf};

use lifeboat_engine::resource::Tls;
use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::problem::{Problem, TlsError};

/// A certificate chain and its key.
pub(crate) type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Returns the file with the certificates of the authorities that are trusted: `ca_file`, or that of the system.
pub(crate) fn roots_file(tls: &Tls) -> Result<PathBuf, TlsError> {
    tls.ca_file.clone().or_else(|| openssl_probe::probe().cert_file).ok_or_else(|| {
        TlsError::new(
            Problem::Files,
            "this system has no file with the certificates of the authorities that it trusts",
            "install them (`apt-get install ca-certificates`), or give `tls: { ca_file: … }` with the authority of the server",
        )
    })
}

/// Reads the certificates of the authorities that are trusted. Those of the system that cannot be used are left out.
pub(crate) fn roots(tls: &Tls) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let file = roots_file(tls)?;
    let key = if tls.ca_file.is_some() { "ca_file" } else { "the system's authorities" };
    let all = certificates(&file, key)?;
    let mut store = RootCertStore::empty();
    let usable: Vec<_> =
        all.into_iter().filter(|certificate| store.add(certificate.clone()).is_ok()).collect();
    if usable.is_empty() {
        let what = format!("{} ({key}) holds no certificate that can be used", file.display());
        return Err(TlsError::new(Problem::Files, what, "give the certificate of the authority as PEM"));
    }
    Ok(usable)
}

/// Reads the client's certificate and key, if the settings name them.
pub(crate) fn identity(tls: &Tls) -> Result<Option<Identity>, TlsError> {
    let (Some(chain), Some(key)) = (&tls.cert_file, &tls.key_file) else { return Ok(None) };
    let certificates = certificates(chain, "cert_file")?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable_key(key, &error))?;
    Ok(Some((certificates, key)))
}

fn certificates(file: &Path, key: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unusable = |error: &dyn std::fmt::Display| {
        TlsError::new(
            Problem::Files,
            format!("{} ({key}) cannot be read: {error}", file.display()),
            "check the path and that the user Lifeboat runs as may read it; it holds certificates as PEM",
        )
    };
    let read = CertificateDer::pem_file_iter(file).map_err(|error| unusable(&error))?;
    let all: Vec<_> = read.collect::<Result<_, _>>().map_err(|error| unusable(&error))?;
    match all.is_empty() {
        false => Ok(all),
        true => Err(unusable(&"there is no `-----BEGIN CERTIFICATE-----` in it")),
    }
}

fn unreadable_key(file: &Path, error: &pem::Error) -> TlsError {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let (why, help) = if text.contains("ENCRYPTED") {
        (
            "it is protected by a passphrase, and nobody is there to type it".to_owned(),
            "write it without one to a file that only the user Lifeboat runs as may read: `openssl pkey -in KEY -out PLAIN`",
        )
    } else {
        (
            error.to_string(),
            "check the path and that the user Lifeboat runs as may read it; it holds a private key as PEM",
        )
    };
    TlsError::new(Problem::Files, format!("{} (key_file) cannot be read: {why}", file.display()), help)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls(ca_file: PathBuf) -> Tls {
        Tls { ca_file: Some(ca_file), ..Tls::default() }
    }

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = roots(&tls(dir.path().join("missing.pem"))).unwrap_err();
        assert!(missing.to_string().contains("missing.pem (ca_file) cannot be read"), "{missing}");
        let text = dir.path().join("text.pem");
        std::fs::write(&text, "nothing").unwrap();
        let empty = roots(&tls(text.clone())).unwrap_err();
        assert!(empty.to_string().contains("BEGIN CERTIFICATE"), "{empty}");
        std::fs::write(&text, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        let unusable = roots(&tls(text.clone())).unwrap_err();
        assert!(unusable.to_string().contains("no certificate that can be used"), "{unusable}");
        std::fs::write(
            &text,
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
        )
        .unwrap();
        let locked = unreadable_key(&text, &pem::Error::NoItemsFound);
        assert!(locked.to_string().contains("passphrase"), "{locked}");
    }
}
