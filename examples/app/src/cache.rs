//! What is kept in Redis: sessions and the feed's cache, which expire, and counters, which do not.

use std::time::Duration;

use redis::AsyncCommands;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use sha2::{Digest, Sha256};

use crate::random;

/// How long a login holds.
pub(crate) const SESSION_SECONDS: u64 = 3600;
/// Short, because a new upload must soon be seen even where Redis missed the invalidation.
const FEED_SECONDS: u64 = 5;
const FEED_KEY: &str = "feed:latest";

/// One Redis server; reconnects by itself. Clones share the connection.
#[derive(Clone)]
pub(crate) struct Cache(ConnectionManager);

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cache")
    }
}

/// Returns the key of a session. It holds a hash, so that who reads a snapshot cannot log in with it.
pub(crate) fn session_key(token: &str) -> String {
    format!("session:{}", random::hex(&Sha256::digest(token.as_bytes())))
}

/// Returns the key that counts a member's payments.
pub(crate) fn payments_key(member: i64) -> String {
    format!("member:{member}:payments")
}

/// Returns the key that counts a user's logins.
pub(crate) fn logins_key(user: i64) -> String {
    format!("user:{user}:logins")
}

impl Cache {
    /// Prepares the connection; connects when it is first used, and again whenever it is lost.
    pub(crate) fn new(url: &str) -> Result<Self, String> {
        // The error is not shown: it could quote the password.
        let client = redis::Client::open(url)
            .map_err(|_| "REDIS_URL is not a Redis address: write redis://host:port".to_owned())?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(2)))
            .set_response_timeout(Some(Duration::from_secs(2)))
            .set_number_of_retries(1);
        ConnectionManager::new_lazy_with_config(client, config).map(Self).map_err(|error| error.to_string())
    }

    /// Asks the server whether it is there.
    pub(crate) async fn ping(&self) -> redis::RedisResult<()> {
        redis::cmd("PING").query_async(&mut self.0.clone()).await
    }

    /// Keeps a login and counts it; returns the count.
    pub(crate) async fn begin_session(&self, token: &str, user: i64) -> redis::RedisResult<i64> {
        let mut pipe = redis::pipe();
        pipe.atomic().set_ex(session_key(token), user, SESSION_SECONDS).ignore().incr(logins_key(user), 1);
        let (count,): (i64,) = pipe.query_async(&mut self.0.clone()).await?;
        Ok(count)
    }

    /// Returns the user of a session that has not expired.
    pub(crate) async fn session_user(&self, token: &str) -> redis::RedisResult<Option<i64>> {
        self.0.clone().get(session_key(token)).await
    }

    /// Counts a payment of a member and returns how many there are.
    pub(crate) async fn count_payment(&self, member: i64) -> redis::RedisResult<i64> {
        self.0.clone().incr(payments_key(member), 1).await
    }

    /// Returns the feed if it was kept a moment ago.
    pub(crate) async fn feed(&self) -> redis::RedisResult<Option<String>> {
        self.0.clone().get(FEED_KEY).await
    }

    /// Keeps the feed for a moment.
    pub(crate) async fn keep_feed(&self, feed: &str) -> redis::RedisResult<()> {
        self.0.clone().set_ex(FEED_KEY, feed, FEED_SECONDS).await
    }

    /// Forgets the feed, because there is a newer one.
    pub(crate) async fn forget_feed(&self) -> redis::RedisResult<()> {
        self.0.clone().del(FEED_KEY).await
    }

    /// Returns a counter's value, if it is there.
    pub(crate) async fn counter(&self, key: &str) -> redis::RedisResult<Option<i64>> {
        self.0.clone().get(key).await
    }

    /// Says whether a key is there.
    pub(crate) async fn exists(&self, key: &str) -> redis::RedisResult<bool> {
        self.0.clone().exists(key).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_key_does_not_hold_the_token() {
        let key = session_key("secret-token");
        assert!(key.starts_with("session:") && !key.contains("secret"));
        assert_ne!(key, session_key("secret-tokem"));
    }
}
