//! What is wrong with TLS to a server, told with what its certificate says and what to do next.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;

use jiff::Timestamp;
use lifeboat_engine::code::Code;
use lifeboat_engine::resource::Tls;
use lifeboat_engine::step::StepError;
use rustls::{AlertDescription, CertificateError, Error};

use super::certificate::Description;
use super::codes;
use super::files::roots_file;
use super::peer::Peer;
use super::verifier::Refusal;

/// The sorts of problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    Expired,
    WrongName,
    UnknownAuthority,
    NoTls,
    Demanded,
    ClientCertificate,
    Files,
    Handshake,
    Certificate,
    InTheClear,
}

impl Problem {
    fn code(self) -> Code {
        match self {
            Self::Expired => codes::LB1900,
            Self::WrongName => codes::LB1901,
            Self::UnknownAuthority => codes::LB1902,
            Self::NoTls => codes::LB1903,
            Self::Demanded => codes::LB1904,
            Self::ClientCertificate => codes::LB1905,
            Self::Files => codes::LB1906,
            Self::Handshake => codes::LB1907,
            Self::Certificate => codes::LB1908,
            Self::InTheClear => codes::LB1909,
        }
    }
}

/// Why no connection over TLS was made. Nothing was sent over it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TlsError {
    problem: Problem,
    message: String,
    help: String,
}

impl TlsError {
    pub(super) fn new(problem: Problem, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { problem, message: message.into(), help: help.into() }
    }

    pub(crate) fn code(&self) -> Code {
        self.problem.code()
    }

    pub(crate) fn help(&self) -> &str {
        &self.help
    }

    /// The server does not speak TLS.
    pub(crate) fn no_tls(peer: &Peer) -> Self {
        Self::new(
            Problem::NoTls,
            format!("{peer} does not speak TLS, and nothing was sent to it in the clear"),
            "switch TLS on at the server, with a certificate for its host; where nobody else is on the network in between, \
             say so: `tls: { mode: disable }`",
        )
    }

    /// The server speaks its own language at that port, and no TLS.
    pub(crate) fn speaks_in_the_clear(peer: &Peer) -> Self {
        Self::new(
            Problem::NoTls,
            format!("{peer} speaks in the clear at that port, and no TLS; no password was sent to it"),
            "give the address the port at which it speaks TLS (`tls-port` of its configuration), or switch TLS on there; where \
             nobody else is on the network in between, write `redis://` and say so: `tls: { mode: disable }`",
        )
    }

    /// The server takes no connection in the clear.
    pub(crate) fn demanded(peer: &Peer, why: &str) -> Self {
        Self::new(
            Problem::Demanded,
            format!("{peer} takes no connection without TLS: {why}"),
            "give the resource `tls: { mode: verify-full }`, with `ca_file` if its authority is not one of the system's",
        )
    }

    /// The server wants to know by a certificate who connects.
    pub(crate) fn client_certificate(peer: &Peer, tls: &Tls, why: &str) -> Self {
        match &tls.cert_file {
            None => Self::new(
                Problem::ClientCertificate,
                format!("{peer} demands a client certificate: {why}"),
                "give the resource `tls: { cert_file: …, key_file: … }` with one that the server's authority has signed",
            ),
            Some(file) => Self::new(
                Problem::ClientCertificate,
                format!("{peer} does not take the client certificate {}: {why}", file.display()),
                format!(
                    "see whom it is for and until when: `openssl x509 -in {} -noout -subject -issuer -enddate`; the server \
                     must know its issuer, and Postgres maps its CN to the role",
                    file.display()
                ),
            ),
        }
    }

    /// A password would go to another machine for everybody to read.
    pub(crate) fn in_the_clear(peer: &Peer) -> Self {
        Self::new(
            Problem::InTheClear,
            format!("{peer} is another machine, and nothing was sent to it in the clear"),
            "write `rediss://` for TLS; where nobody else is on the network in between, say so: `tls: { mode: disable }`",
        )
    }

    /// The host cannot stand in a certificate.
    pub(crate) fn no_name(peer: &Peer) -> Self {
        let message = format!("no certificate can be for the host `{}`", peer.host);
        Self::new(
            Problem::WrongName,
            message,
            "give `host` the name or address that is in the server's certificate",
        )
    }

    /// Returns what was wrong with TLS if that is why a connection failed.
    pub(crate) fn of(error: &(dyn StdError + 'static), peer: &Peer, tls: &Tls) -> Option<Self> {
        let error = find::<Error>(error)?;
        Some(match error {
            Error::InvalidCertificate(CertificateError::Other(other)) => {
                match other.0.downcast_ref::<Refusal>() {
                    Some(refusal) => refused(&refusal.why, refusal.certificate.as_ref(), (peer, tls)),
                    None => refused(&CertificateError::Other(other.clone()), None, (peer, tls)),
                }
            }
            Error::InvalidCertificate(why) => refused(why, None, (peer, tls)),
            Error::AlertReceived(alert) => alerted(*alert, (peer, tls)),
            Error::InvalidMessage(_) => Self::no_tls(peer),
            other => Self::new(
                Problem::Handshake,
                format!("{peer} and Lifeboat found no TLS that both speak: {other}"),
                "the server must speak TLS 1.2 or 1.3, with a certificate of RSA (2048 bits or more), ECDSA or Ed25519",
            ),
        })
    }
}

impl From<TlsError> for StepError {
    fn from(error: TlsError) -> Self {
        Self::permanent(error.problem.code(), error.message).help(error.help)
    }
}

/// Finds an error among the causes of another one. What an I/O error or an `Arc` holds is no source of it, but its inside.
pub(crate) fn find<'e, T: StdError + 'static>(error: &'e (dyn StdError + 'static)) -> Option<&'e T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        let of_io = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let of_arc = error.downcast_ref::<Arc<dyn StdError + Send + Sync>>();
        next = match (of_io, of_arc) {
            (Some(inside), _) => Some(inside),
            (None, Some(inside)) => Some(&**inside),
            (None, None) => error.source(),
        };
    }
    None
}

/// What the server did not like.
fn alerted(alert: AlertDescription, (peer, tls): (&Peer, &Tls)) -> TlsError {
    use AlertDescription as Alert;
    let word = format!("its answer was the alert {alert:?}");
    match alert {
        Alert::CertificateRequired => TlsError::client_certificate(peer, tls, &word),
        Alert::BadCertificate
        | Alert::UnsupportedCertificate
        | Alert::CertificateRevoked
        | Alert::CertificateExpired
        | Alert::CertificateUnknown
        | Alert::UnknownCA
        | Alert::AccessDenied
            if tls.cert_file.is_some() =>
        {
            TlsError::client_certificate(peer, tls, &word)
        }
        _ => TlsError::new(
            Problem::Handshake,
            format!("{peer} ended the TLS handshake: {word}"),
            "the server's log says why; it may speak no TLS 1.2 or newer, or want a client certificate (`cert_file`, `key_file`)",
        ),
    }
}

fn refused(why: &CertificateError, certificate: Option<&Description>, at: (&Peer, &Tls)) -> TlsError {
    use CertificateError as E;
    match why {
        E::Expired | E::ExpiredContext { .. } | E::NotValidYet | E::NotValidYetContext { .. } => {
            out_of_date(why, certificate, at.0)
        }
        E::NotValidForName | E::NotValidForNameContext { .. } => misnamed(why, certificate, at.0),
        E::UnknownIssuer => unknown_authority(certificate, at),
        // Before anybody looks for who has signed it.
        E::Other(_) if certificate.is_some_and(Description::is_self_signed) => {
            unknown_authority(certificate, at)
        }
        other => TlsError::new(
            Problem::Certificate,
            format!("the certificate of {} cannot be used: {}{}", at.0, in_words(other), whose(certificate)),
            "have it issued again as X.509 version 3, for a server (extendedKeyUsage serverAuth), by an authority that is \
             another certificate",
        ),
    }
}

fn in_words(why: &CertificateError) -> String {
    match why {
        CertificateError::Other(inside) => inside.0.to_string(),
        other => other.to_string(),
    }
}

fn whose(certificate: Option<&Description>) -> String {
    certificate.map_or_else(String::new, |it| format!("; it is `{}`, signed by `{}`", it.subject, it.issuer))
}

fn out_of_date(why: &CertificateError, certificate: Option<&Description>, peer: &Peer) -> TlsError {
    let moment = |time: &rustls::pki_types::UnixTime| {
        i64::try_from(time.as_secs()).ok().and_then(|second| Timestamp::from_second(second).ok())
    };
    let (is_early, at) = match why {
        CertificateError::NotValidYet => (true, certificate.map(|it| it.not_before)),
        CertificateError::NotValidYetContext { not_before, .. } => (true, moment(not_before)),
        CertificateError::ExpiredContext { not_after, .. } => (false, moment(not_after)),
        _ => (false, certificate.map(|it| it.not_after)),
    };
    // The one that is out of date may be one above the server's own.
    let own = certificate.filter(|it| at.is_some_and(|at| at == it.not_before || at == it.not_after));
    let whose = own.map_or_else(
        || format!("a certificate that {peer} shows"),
        |it| format!("the certificate `{}` of {peer}", it.subject),
    );
    let at = at.map_or_else(String::new, |at| format!(" {at}"));
    let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
    let message = match is_early {
        true => format!("{whose} is valid only from{at} on; it is {now} here"),
        false => format!("{whose} has expired: it was valid until{at}; it is {now} here"),
    };
    TlsError::new(
        Problem::Expired,
        message,
        "renew it at the server and let the server read it again, or set this machine's clock if that is wrong. Only if \
         recovery cannot wait for it: `tls: { mode: require }` connects without checking who answers",
    )
}

fn misnamed(why: &CertificateError, certificate: Option<&Description>, peer: &Peer) -> TlsError {
    let presented = match (certificate, why) {
        (Some(it), _) => it.names.clone(),
        (None, CertificateError::NotValidForNameContext { presented, .. }) => {
            presented.iter().map(|name| plain_name(name).to_owned()).collect()
        }
        _ => Vec::new(),
    };
    let host = &peer.host;
    if presented.is_empty() {
        let subject = certificate
            .map_or_else(String::new, |it| format!(", and its subject `{}` does not count", it.subject));
        return TlsError::new(
            Problem::WrongName,
            format!("the certificate of {peer} is for no host: it has no subjectAltName{subject}"),
            format!(
                "have it issued again with `subjectAltName = DNS:{host}` (or IP:); meanwhile `tls: {{ mode: verify-ca, ca_file: … \
                 }}` checks who signed it, and no name"
            ),
        );
    }
    TlsError::new(
        Problem::WrongName,
        format!("the certificate of {peer} is not for `{host}`: it is for {}", presented.join(", ")),
        "give `host` one of these names if that is the server you mean; if it is behind another name (a tunnel, an address), \
         `tls: { mode: verify-ca }` checks who signed the certificate, and no name",
    )
}

/// Returns the name in `DnsName("db.example.org")` or `IpAddress(192.0.2.7)`.
pub(crate) fn plain_name(name: &str) -> &str {
    let inside = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inside.map_or(name, |inside| inside.trim_matches('"'))
}

fn unknown_authority(certificate: Option<&Description>, (peer, tls): (&Peer, &Tls)) -> TlsError {
    let trusted = roots_file(tls).map_or_else(|_| "no file".to_owned(), |file| file.display().to_string());
    let signed = match certificate {
        Some(it) if it.is_self_signed() => format!(": `{}` has signed itself", it.subject),
        Some(it) => format!(": `{}` is signed by `{}`", it.subject, it.issuer),
        None => String::new(),
    };
    TlsError::new(
        Problem::UnknownAuthority,
        format!(
            "the certificate of {peer} is from an authority that is not trusted here{signed}; trusted are those in {trusted}"
        ),
        "give the resource `tls: { ca_file: … }` with the certificate of that authority, from whoever runs the server, not from \
         the connection itself (managed databases publish theirs)",
    )
}
