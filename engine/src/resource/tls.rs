//! How the connection to a server is protected on its way.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a connection over TLS proves before a password or data goes over it, in the words of libpq's `sslmode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsMode {
    /// No TLS: whoever is on the way reads and changes everything.
    Disable,
    /// TLS, with whatever certificate the server shows: whoever is on the way can put himself between.
    Require,
    /// The certificate is from an authority that is trusted; its names are not looked at.
    VerifyCa,
    /// The certificate is from an authority that is trusted, for the host of the resource.
    #[default]
    VerifyFull,
}

impl TlsMode {
    /// Every word that a file may hold.
    pub const WORDS: [&str; 4] = ["disable", "require", "verify-ca", "verify-full"];

    /// Returns its word in files, and for programs that use libpq.
    pub fn word(self) -> &'static str {
        Self::WORDS[self as usize]
    }
}

impl fmt::Display for TlsMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// How a connection to a server is protected. Absent: not at all on this machine, `verify-full` to another one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tls {
    #[serde(default)]
    pub mode: TlsMode,
    /// The certificates (PEM) of the authorities that are trusted; those that the system trusts if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// The client's certificate (PEM), with those between it and the authority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// The private key (PEM, not encrypted) of the client's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_has_its_word() {
        for word in TlsMode::WORDS {
            let mode: TlsMode = serde_json::from_value(word.into()).unwrap();
            assert_eq!(mode.to_string(), word);
            assert_eq!(serde_json::to_value(mode).unwrap(), word);
        }
        assert_eq!(
            TlsMode::default(),
            TlsMode::VerifyFull,
            "what is safe is what holds when nothing is said"
        );
    }
}
