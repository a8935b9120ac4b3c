//! Settings of TLS, for the library and for MariaDB's own programs.

use lifeboat_engine::resource::{Tls, TlsMode};
use mysql_async::{ClientIdentity, Error, IoError, SslOpts};
use rustls::pki_types::ServerName;
use rustls::{CertificateError, Error as RustlsError};

use super::quoted_option;
use crate::tls::{Peer, TlsError, find, identity, plain_name, roots, roots_file};

/// Returns the settings that the library takes. `name` is the one that is looked for in the certificate, if not the host's.
pub(super) fn settings(tls: &Tls, name: Option<&str>) -> Result<SslOpts, TlsError> {
    let settings = match tls.mode {
        TlsMode::Disable | TlsMode::Require => SslOpts::default().with_danger_accept_invalid_certs(true),
        TlsMode::VerifyCa | TlsMode::VerifyFull => {
            let trusted = roots(tls)?.into_iter().map(|certificate| certificate.to_vec().into()).collect();
            SslOpts::default().with_root_certs(trusted).with_disable_built_in_roots(true)
        }
    };
    // Read here, so that what is wrong with them is told like everywhere else.
    let settings = match (identity(tls)?, &tls.cert_file, &tls.key_file) {
        (Some(_), Some(chain), Some(key)) => {
            let identity = ClientIdentity::new(chain.clone().into(), key.clone().into());
            settings.with_client_identity(Some(identity))
        }
        _ => settings,
    };
    Ok(match name {
        Some(name) => settings.with_danger_tls_hostname_override(Some(name.to_owned())),
        None => settings,
    })
}

/// Returns a name of the server's certificate, if all but the name was in order: for [`TlsMode::VerifyCa`], which the library
/// does not know, that name is then the one to look for.
pub(super) fn other_name(error: &Error) -> Option<String> {
    let Some(RustlsError::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. })) =
        find::<RustlsError>(error)
    else {
        return None;
    };
    let names = presented.iter().map(|name| plain_name(name).replacen('*', "any", 1));
    names.into_iter().find(|name| ServerName::try_from(name.as_str()).is_ok())
}

/// Returns what was wrong with TLS if that is why there is no connection.
pub(super) fn problem(error: &Error, peer: &Peer, tls: Option<&Tls>) -> Option<TlsError> {
    match (error, tls) {
        (Error::Driver(mysql_async::DriverError::NoClientSslFlagFromServer), _) => {
            Some(TlsError::no_tls(peer))
        }
        (Error::Io(IoError::Io(_) | IoError::Tls(_)), Some(tls)) => TlsError::of(error, peer, tls),
        _ => None,
    }
}

/// Returns what a refused login may have lacked: the server does not say.
pub(super) fn lacking(tls: Option<&Tls>) -> &'static str {
    match tls {
        None => "; the connection had no TLS, which the server may demand (`tls` of the resource)",
        Some(tls) if tls.cert_file.is_none() => {
            "; no client certificate was shown, which the account may demand (`cert_file`, `key_file`)"
        }
        Some(_) => "",
    }
}

/// Returns the lines of an option file for MariaDB's own programs.
pub(super) fn option_lines(tls: Option<&Tls>) -> Result<Vec<String>, TlsError> {
    let Some(tls) = tls else { return Ok(vec!["skip-ssl".to_owned()]) };
    let path =
        |key: &str, path: &std::path::Path| format!("{key}={}", quoted_option(&path.display().to_string()));
    let mut lines = vec!["ssl=1".to_owned()];
    let names = u8::from(tls.mode == TlsMode::VerifyFull);
    lines.push(format!("ssl-verify-server-cert={names}"));
    if matches!(tls.mode, TlsMode::VerifyCa | TlsMode::VerifyFull) {
        lines.push(path("ssl-ca", &roots_file(tls)?));
    }
    for (key, file) in [("ssl-cert", &tls.cert_file), ("ssl-key", &tls.key_file)] {
        lines.extend(file.iter().map(|file| path(key, file)));
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_to_check_the_same() {
        let tls = Tls {
            ca_file: Some("/etc/ca.pem".into()),
            cert_file: Some("/etc/my cert.pem".into()),
            key_file: Some("/etc/key.pem".into()),
            ..Tls::default()
        };
        let mut lines = vec![
            "ssl=1",
            "ssl-verify-server-cert=1",
            "ssl-ca=\"/etc/ca.pem\"",
            "ssl-cert=\"/etc/my cert.pem\"",
            "ssl-key=\"/etc/key.pem\"",
        ];
        assert_eq!(option_lines(Some(&tls)).unwrap(), lines);
        lines[1] = "ssl-verify-server-cert=0";
        let authority = Tls { mode: TlsMode::VerifyCa, ..tls };
        assert_eq!(option_lines(Some(&authority)).unwrap(), lines);
        let any = Tls { mode: TlsMode::Require, ..Tls::default() };
        assert_eq!(option_lines(Some(&any)).unwrap(), ["ssl=1", "ssl-verify-server-cert=0"]);
        assert_eq!(option_lines(None).unwrap(), ["skip-ssl"]);
    }
}
