use std::path::{Path, PathBuf};

use lifeboat_engine::resource::{self, System};
use lifeboat_engine::step::{StepContext, StepError};
use secrecy::SecretString;

use super::codes;

/// Where a store is, and what is needed to reach it. Holds secrets: it is never shown and never stored.
#[derive(Clone)]
pub struct Address {
    pub(super) resource: resource::Store,
    pub(super) keys: Option<Keys>,
}

/// Credentials for a bucket.
#[derive(Clone)]
pub(super) struct Keys {
    pub(super) id: SecretString,
    pub(super) secret: SecretString,
    pub(super) token: Option<SecretString>,
}

impl Address {
    /// Returns the address of a resource of the environment, with its credentials.
    pub fn of(ctx: &StepContext, name: &str) -> Result<Self, StepError> {
        let store = ctx.system(name, |system| match system {
            System::Store(store) => Some(store),
            _ => None,
        })?;
        let secret = |reference| ctx.secret(reference).cloned();
        let id = store.access_key.as_ref().map(secret).transpose()?;
        let secret_key = store.secret_key.as_ref().map(secret).transpose()?;
        let token = store.session_token.as_ref().map(secret).transpose()?;
        let address = Self::new(store.clone());
        Ok(match (id, secret_key) {
            (Some(id), Some(secret)) => address.with_keys(id, secret, token),
            _ => address,
        })
    }

    /// Returns the address of a store that needs no credentials, or takes those that the machine offers.
    pub fn new(resource: resource::Store) -> Self {
        Self { resource, keys: None }
    }

    /// Adds credentials.
    #[must_use]
    pub fn with_keys(mut self, id: SecretString, secret: SecretString, token: Option<SecretString>) -> Self {
        self.keys = Some(Keys { id, secret, token });
        self
    }

    pub(super) fn place(&self) -> Result<Place, StepError> {
        Place::of(&self.resource.url)
    }
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Address").field("url", &self.resource.url).finish_non_exhaustive()
    }
}

/// What an address means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Dir(PathBuf),
    /// The prefix is empty or ends with `/`, so that it never matches a longer name.
    Bucket {
        bucket: String,
        prefix: String,
    },
}

impl Place {
    fn of(url: &str) -> Result<Self, StepError> {
        if let Some(path) = url.strip_prefix("s3://") {
            return bucket(path).ok_or_else(|| not_understood(url));
        }
        let path = url.strip_prefix("dir://").map(Path::new);
        match path {
            Some(path) if path.is_absolute() && !url.contains('\0') => Ok(Self::Dir(path.to_owned())),
            _ => Err(not_understood(url)),
        }
    }
}

fn bucket(path: &str) -> Option<Place> {
    let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let prefix = prefix.trim_matches('/');
    if bucket.is_empty() || !bucket.chars().all(plain) || prefix.contains("//") {
        return None;
    }
    let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
    Some(Place::Bucket { bucket: bucket.to_owned(), prefix })
}

fn not_understood(url: &str) -> StepError {
    StepError::permanent(codes::LB1101, format!("`{url}` is no address of a store"))
        .help("write `dir:///absolute/path` with three slashes, or `s3://bucket/prefix`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_end_with_a_slash_or_are_empty() {
        let place = |url: &str| Place::of(url).map_err(|error| error.code);
        let bucket = |bucket: &str, prefix: &str| {
            Ok(Place::Bucket { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
        };
        assert_eq!(place("s3://b"), bucket("b", ""));
        assert_eq!(place("s3://b/"), bucket("b", ""));
        assert_eq!(place("s3://my-b.x/a/b/"), bucket("my-b.x", "a/b/"));
        for bad in ["s3://", "s3:///a", "s3://b c/x", "s3://b/a//b", "dir://relative", "/plain", "s3:/b"] {
            assert_eq!(place(bad), Err(codes::LB1101), "{bad}");
        }
    }

    #[test]
    fn an_address_is_shown_without_its_credentials() {
        let resource = resource::Store { url: "s3://b".to_owned(), ..resource::Store::default() };
        let address = Address::new(resource).with_keys("AKIDEXAMPLE".into(), "hidden".into(), None);
        let shown = format!("{address:?}");
        assert!(shown.contains("s3://b") && !shown.contains("hidden") && !shown.contains("AKID"), "{shown}");
    }
}
