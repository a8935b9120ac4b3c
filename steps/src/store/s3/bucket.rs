use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::InterceptorContext;
use aws_sdk_s3::config::retry::{ClassifyRetry, RetryAction, RetryConfig};
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::types::ServerSideEncryption;
use lifeboat_engine::step::StepError;
use secrecy::ExposeSecret;

use super::fault::{Doing, Fault};
use super::runtime::wait;
use crate::store::address::{Address, Keys};
use crate::store::key::Key;

/// A store in a bucket, below a prefix.
#[derive(Clone, Debug)]
pub(in crate::store) struct Bucket {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: Client,
    bucket: String,
    /// Empty, or ends with `/`.
    prefix: String,
    endpoint: Option<String>,
    scratch: PathBuf,
    encryption: Option<ServerSideEncryption>,
    kms_key: Option<String>,
    /// Whether the server decides whether a name is free, once that is known.
    decides: OnceLock<bool>,
}

/// Where a backup is put together: large, and not emptied by a restart.
const SCRATCH: &str = "/var/tmp";
/// What servers like S3 take if they take any.
const USUAL_REGION: &str = "us-east-1";
/// How often one request is tried; pauses between are a random part of a limit that doubles.
const TRIES: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Until an answer begins, sending 16 MiB included.
const ANSWER_LIMIT: Duration = Duration::from_mins(1);
/// Until an answer begins to a request that sends nothing: whoever waits for six of them in vain knows it in two minutes.
const READ_LIMIT: Duration = Duration::from_secs(20);

impl Bucket {
    /// Connects, and finds out whether the bucket answers.
    pub(in crate::store) fn open(
        address: &Address,
        bucket: String,
        prefix: String,
    ) -> Result<Self, StepError> {
        let resource = address.resource.clone();
        let client = wait(client(resource.region, resource.endpoint.clone(), address.keys.clone()))?;
        let scratch = resource.scratch.unwrap_or_else(|| PathBuf::from(SCRATCH));
        let inner = Inner {
            client,
            bucket,
            prefix,
            endpoint: resource.endpoint,
            scratch,
            encryption: resource.encryption.as_deref().map(ServerSideEncryption::from),
            kms_key: resource.kms_key,
            decides: OnceLock::new(),
        };
        let opened = Self { inner: Arc::new(inner) };
        opened.check_reachable()?;
        Ok(opened)
    }

    /// Asks for one key.
    pub(in crate::store) fn check_reachable(&self) -> Result<(), StepError> {
        let request = self.client().list_objects_v2().bucket(self.name()).prefix(self.prefix()).max_keys(1);
        let request = request.customize().config_override(reading());
        wait(async move { request.send().await.map(drop).map_err(|error| Fault::of(&error)) })?
            .map_err(|fault| self.explain(Doing::Reading, "what is", &fault))
    }

    pub(super) fn client(&self) -> &Client {
        &self.inner.client
    }

    pub(in crate::store) fn name(&self) -> &str {
        &self.inner.bucket
    }

    pub(in crate::store) fn prefix(&self) -> &str {
        &self.inner.prefix
    }

    pub(in crate::store) fn scratch(&self) -> &Path {
        &self.inner.scratch
    }

    /// Returns how the environment wants objects encrypted, and with which key.
    pub(super) fn wanted_encryption(&self) -> (Option<ServerSideEncryption>, Option<String>) {
        (self.inner.encryption.clone(), self.inner.kms_key.clone())
    }

    pub(super) fn known_to_decide(&self) -> &OnceLock<bool> {
        &self.inner.decides
    }

    /// True for S3 itself, whose promises are known.
    pub(in crate::store) fn is_s3(&self) -> bool {
        self.inner.endpoint.is_none()
    }

    pub(in crate::store) fn endpoint(&self) -> Option<&str> {
        self.inner.endpoint.as_deref()
    }

    /// Returns the name of an object in the bucket.
    pub(super) fn full(&self, key: &Key) -> String {
        format!("{}{key}", self.inner.prefix)
    }

    pub(super) fn server(&self) -> &str {
        self.inner.endpoint.as_deref().unwrap_or("S3")
    }

    pub(in crate::store) fn look(&self, key: &Key) -> String {
        let parent = key.as_str().rsplit_once('/').map_or(String::new(), |(parent, _)| format!("{parent}/"));
        let endpoint = self
            .inner
            .endpoint
            .as_ref()
            .map_or(String::new(), |endpoint| format!(" --endpoint-url {endpoint}"));
        format!("aws s3 ls s3://{}/{}{parent}{endpoint}", self.inner.bucket, self.inner.prefix)
    }

    pub(super) fn look_at_bucket(&self) -> String {
        let endpoint = self
            .inner
            .endpoint
            .as_ref()
            .map_or(String::new(), |endpoint| format!(" --endpoint-url {endpoint}"));
        format!("try it by hand: `aws s3 ls s3://{}/{}{endpoint}`", self.inner.bucket, self.inner.prefix)
    }
}

impl std::fmt::Display for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the store s3://{}/{}", self.inner.bucket, self.inner.prefix.trim_end_matches('/'))
    }
}

/// Returns what is particular to requests that send nothing.
pub(super) fn reading() -> aws_sdk_s3::config::Builder {
    aws_sdk_s3::config::Builder::new().timeout_config(limits(READ_LIMIT))
}

fn limits(answer: Duration) -> TimeoutConfig {
    TimeoutConfig::builder().connect_timeout(CONNECT_LIMIT).read_timeout(answer).build()
}

async fn client(region: Option<String>, endpoint: Option<String>, keys: Option<Keys>) -> Client {
    let fallback = endpoint.is_some().then(|| Region::from_static(USUAL_REGION));
    let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12());
    if let Some(region) = region.map(Region::new).or(fallback) {
        loader = loader.region(region);
    }
    if let Some(keys) = keys {
        let secret = keys.secret.expose_secret();
        let token = keys.token.as_ref().map(|token| token.expose_secret().to_owned());
        let credentials = Credentials::new(keys.id.expose_secret(), secret, token, None, "lifeboat");
        loader = loader.credentials_provider(credentials);
    }
    let retry = RetryConfig::standard()
        .with_max_attempts(TRIES)
        .with_initial_backoff(FIRST_PAUSE)
        .with_max_backoff(LONGEST_PAUSE);
    let config = loader.load().await;
    let mut config = aws_sdk_s3::config::Builder::from(&config)
        .retry_config(retry)
        .retry_classifier(Busy)
        .timeout_config(limits(ANSWER_LIMIT))
        // A restore reads as slowly as its disk writes; a stream that stands still is noticed where it is read.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
    if let Some(endpoint) = endpoint {
        // Other servers know neither names of buckets as names of hosts nor the newer checksums.
        config = config
            .endpoint_url(endpoint)
            .force_path_style(true)
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    }
    Client::from_conf(config.build())
}

/// Knows by their status the answers of servers and proxies that are busy, whatever code they give: the client knows codes of
/// AWS alone.
#[derive(Debug)]
struct Busy;

impl ClassifyRetry for Busy {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        match context.response().map(|response| response.status().as_u16()) {
            Some(429) => RetryAction::throttling_error(),
            Some(408) => RetryAction::transient_error(),
            _ => RetryAction::NoActionIndicated,
        }
    }

    fn name(&self) -> &'static str {
        "busy by status"
    }
}
