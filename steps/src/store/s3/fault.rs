//! What a server answers when it does not do what it is asked, as steps report it.

use std::fmt::Display;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use lifeboat_engine::code::Code;
use lifeboat_engine::step::StepError;

use super::bucket::Bucket;
use crate::store::codes;

/// Why a request failed.
#[derive(Clone, Debug)]
pub(in crate::store) struct Fault {
    pub(super) status: Option<u16>,
    /// The server's own code, such as `NoSuchKey`.
    pub(super) code: String,
    text: String,
    /// It may succeed if it is repeated.
    passes: bool,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Doing {
    Reading,
    Writing,
}

impl Fault {
    pub(super) fn of<E>(error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let status = error.raw_response().map(|response| response.status().as_u16());
        let code = error.code().unwrap_or_default().to_owned();
        let text = match (error.as_service_error(), error.message()) {
            (Some(_), Some(message)) => format!("{code}: {message}"),
            (Some(_), None) if !code.is_empty() => code.clone(),
            (Some(_), None) if status.is_some_and(|status| status >= 300) => {
                format!("HTTP {}", status.unwrap_or_default())
            }
            _ => with_causes(error),
        };
        let passes = match error {
            SdkError::ServiceError(_) => {
                status.is_some_and(|status| status >= 500 || status == 429 || status == 408)
                    || matches!(
                        code.as_str(),
                        "SlowDown" | "RequestTimeout" | "Throttling" | "ConditionalRequestConflict"
                    )
            }
            SdkError::ConstructionFailure(_) => false,
            _ => !is_of_credentials(&text),
        };
        Self { status, code, text, passes }
    }

    /// A stream that broke.
    pub(super) fn broken(text: impl Display) -> Self {
        Self { status: None, code: String::new(), text: text.to_string(), passes: true }
    }

    /// An answer that makes no sense.
    pub(super) fn odd(text: impl Display) -> Self {
        Self { passes: false, ..Self::broken(text) }
    }

    /// It may succeed if it is repeated.
    pub(super) fn passes(&self) -> bool {
        self.passes
    }

    /// The server says that the name is free.
    pub(super) fn is_absent(&self) -> bool {
        self.code == "NoSuchKey" || self.code == "NoSuchVersion"
    }

    /// The server says that the name is taken, or was while it looked.
    pub(super) fn is_taken(&self) -> bool {
        self.status == Some(412) || self.code == "PreconditionFailed"
    }

    /// The server no longer has an upload, or not the parts that it is said to have.
    pub(super) fn is_of_parts(&self) -> bool {
        matches!(self.code.as_str(), "NoSuchUpload" | "InvalidPart" | "InvalidPartOrder")
    }

    /// The server knows no conditions on writing.
    pub(super) fn is_unknown(&self) -> bool {
        self.status == Some(501) || self.code == "NotImplemented"
    }
}

impl Bucket {
    /// Says which object, which bucket, and what to do.
    pub(in crate::store) fn explain(&self, doing: Doing, what: impl Display, fault: &Fault) -> StepError {
        let (verb, code) = match doing {
            Doing::Reading => ("read", codes::LB1103),
            Doing::Writing => ("written", codes::LB1111),
        };
        let message = format!("{what} in {self} cannot be {verb}: {}", fault.text);
        if fault.passes {
            return StepError::transient(code, message).help(format!(
                "see whether {} answers and the network does; then run it again",
                self.server()
            ));
        }
        let (code, help) = self.remedy(doing, fault).unwrap_or((code, self.look_at_bucket()));
        StepError::permanent(code, message).help(help)
    }

    fn remedy(&self, doing: Doing, fault: &Fault) -> Option<(Code, String)> {
        let name = self.name();
        Some(match fault.code.as_str() {
            "NoSuchBucket" => (
                codes::LB1114,
                format!("correct `url` and `endpoint` of the store; `{name}` is not at {}", self.server()),
            ),
            "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException" => (
                codes::LB1114,
                format!("give the store the `region` of `{name}`: `aws s3api get-bucket-location --bucket {name}`"),
            ),
            "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "ExpiredToken" => (
                codes::LB1113,
                "these credentials are not accepted: renew `access_key` and `secret_key` of the store, and see that \
                 the clock of this machine is right"
                    .to_owned(),
            ),
            "RequestTimeTooSkewed" => (
                codes::LB1113,
                "the clocks of this machine and of the server differ by more than is allowed: set the wrong one right \
                 (`timedatectl`), then run the step again"
                    .to_owned(),
            ),
            "InvalidObjectState" => (
                codes::LB1116,
                "it is archived (Glacier): request it with `aws s3api restore-object`, and run the step again when it \
                 is there"
                    .to_owned(),
            ),
            _ if fault.status == Some(403) => {
                let rights = match doing {
                    Doing::Reading => "s3:ListBucket, s3:ListBucketVersions, s3:GetObject and s3:GetObjectVersion",
                    Doing::Writing => "s3:PutObject and s3:AbortMultipartUpload",
                };
                (codes::LB1113, format!("let the credentials of the store do {rights} on `{name}`"))
            }
            _ if fault.status.is_none() && is_of_credentials(&fault.text) => (
                codes::LB1115,
                "give the store `access_key` and `secret_key`, or set AWS_PROFILE or the machine's role".to_owned(),
            ),
            _ => return None,
        })
    }
}

fn is_of_credentials(text: &str) -> bool {
    text.contains("credentials") || text.contains("identity")
}

/// The outermost error of the client says little; the innermost says why.
fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}
