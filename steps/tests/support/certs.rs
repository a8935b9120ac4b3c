//! Certificates that a test makes for itself.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};

/// An authority that signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate (PEM).
    pub certificate: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// A certificate and its key (PEM).
#[derive(Clone, Debug)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

/// What a certificate says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Says<'a> {
    pub common_name: &'a str,
    /// Host names and addresses.
    pub names: &'a [&'a str],
    /// Its last day; some far one if not given.
    pub until: Option<(i32, u8, u8)>,
}

impl Authority {
    /// Makes an authority of that common name.
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = params(Says { common_name: name, ..Says::default() });
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// Signs a certificate for servers and clients.
    pub fn sign(&self, says: Says<'_>) -> Pair {
        let key = KeyPair::generate().expect("a key");
        let certificate = params(says).signed_by(&key, &self.issuer).expect("a certificate").pem();
        Pair { certificate, key: key.serialize_pem() }
    }

    /// Writes the authority's certificate down.
    pub fn file(&self, dir: &Path, name: &str) -> PathBuf {
        written(dir, name, &self.certificate)
    }
}

/// Makes a certificate that has signed itself, and says that it is an authority, as `openssl req -x509` makes them.
pub fn self_signed(says: Says<'_>) -> Pair {
    let key = KeyPair::generate().expect("a key");
    let mut params = params(says);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Pair { certificate: params.self_signed(&key).expect("a certificate").pem(), key: key.serialize_pem() }
}

/// Writes a file that only its owner reads.
pub fn written(dir: &Path, name: &str, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join(name);
    std::fs::write(&path, text).expect("a file");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("our own file");
    path
}

fn params(says: Says<'_>) -> CertificateParams {
    let names: Vec<_> = says.names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, says.common_name);
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = date_time_ymd(2020, 1, 1);
    let (year, month, day) = says.until.unwrap_or((2090, 1, 1));
    params.not_after = date_time_ymd(year, month, day);
    params
}
