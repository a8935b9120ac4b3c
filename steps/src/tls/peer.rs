use std::fmt;
use std::net::SocketAddr;

use lifeboat_engine::resource::{Tls, TlsMode};

/// A server that is connected to, as errors name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// What it is: `Postgres`.
    pub(crate) server: &'static str,
    /// The name or address that its certificate must be for.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { server, host, port } = self;
        if host.contains(':') {
            write!(f, "{server} at [{host}]:{port}")
        } else {
            write!(f, "{server} at {host}:{port}")
        }
    }
}

/// Returns how a connection to these addresses must be protected; `None` for not at all.
///
/// What the resource says holds. Where it says nothing, this machine needs no TLS, and any other one all of it.
pub(crate) fn needed(said: Option<&Tls>, addresses: &[SocketAddr]) -> Option<Tls> {
    match said {
        Some(tls) => (tls.mode != TlsMode::Disable).then(|| tls.clone()),
        None => (!addresses.iter().all(|address| address.ip().is_loopback())).then(Tls::default),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(all: &[&str]) -> Vec<SocketAddr> {
        all.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 5432)).collect()
    }

    #[test]
    fn only_this_machine_is_spoken_to_in_the_clear_unless_it_is_said() {
        let here = addresses(&["127.0.0.1", "::1"]);
        let elsewhere = addresses(&["192.0.2.7"]);
        let both = addresses(&["127.0.0.1", "192.0.2.7"]);
        assert_eq!(needed(None, &here), None);
        for remote in [&elsewhere, &both] {
            assert_eq!(needed(None, remote), Some(Tls::default()));
            assert_eq!(needed(None, remote).unwrap().mode, TlsMode::VerifyFull);
        }
        let off = Tls { mode: TlsMode::Disable, ..Tls::default() };
        assert_eq!(needed(Some(&off), &elsewhere), None, "asked for in so many words");
        for mode in [TlsMode::Require, TlsMode::VerifyCa, TlsMode::VerifyFull] {
            let tls = Tls { mode, ..Tls::default() };
            assert_eq!(
                needed(Some(&tls), &here),
                Some(tls.clone()),
                "what is said holds on this machine, too"
            );
            assert_eq!(needed(Some(&tls), &elsewhere), Some(tls));
        }
    }
}
