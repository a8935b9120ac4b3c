//! What a bucket promises of its objects, and what its server knows.

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ExpirationStatus, LifecycleRule, ObjectLockEnabled};
use lifeboat_engine::step::StepError;

use super::bucket::Bucket;
use super::fault::{Doing, Fault};
use super::runtime::wait;
use crate::store::key::TEMPORARY;
use crate::store::policy::{Policy, Told};

impl Bucket {
    pub(in crate::store) fn policy(&self) -> Result<Policy, StepError> {
        let forgets_after_days =
            self.forgets_after_days().map_or_else(|error| Told::Unknown(error.message), Told::Yes);
        Ok(Policy {
            versioning: self.versioning().map_or_else(|error| Told::Unknown(error.message), Told::Yes),
            forgets_after_days,
            clears_uploads: self.clears_uploads()?,
            unfinished: self.unfinished()?,
            encryption: self.encryption()?,
            is_private: self.is_private()?,
            object_lock: self.object_lock()?,
        })
    }

    fn encryption(&self) -> Result<Told<Option<String>>, StepError> {
        let request = self.client().get_bucket_encryption().bucket(self.name());
        let answer = wait(async move { request.send().await.map_err(|error| Fault::of(&error)) })?;
        let none = "ServerSideEncryptionConfigurationNotFoundError";
        self.told(answer, (none, None), |answer| {
            let rules =
                answer.server_side_encryption_configuration.map(|found| found.rules).unwrap_or_default();
            let rule = rules.into_iter().find_map(|rule| rule.apply_server_side_encryption_by_default);
            rule.map(|rule| rule.sse_algorithm.as_str().to_owned())
        })
    }

    fn is_private(&self) -> Result<Told<bool>, StepError> {
        let request = self.client().get_public_access_block().bucket(self.name());
        let answer = wait(async move { request.send().await.map_err(|error| Fault::of(&error)) })?;
        self.told(answer, ("NoSuchPublicAccessBlockConfiguration", false), |answer| {
            answer.public_access_block_configuration.is_some_and(|block| {
                [
                    block.block_public_acls,
                    block.ignore_public_acls,
                    block.block_public_policy,
                    block.restrict_public_buckets,
                ]
                .into_iter()
                .all(|blocks| blocks == Some(true))
            })
        })
    }

    fn object_lock(&self) -> Result<Told<bool>, StepError> {
        let request = self.client().get_object_lock_configuration().bucket(self.name());
        let answer = wait(async move { request.send().await.map_err(|error| Fault::of(&error)) })?;
        self.told(answer, ("ObjectLockConfigurationNotFoundError", false), |answer| {
            let enabled = answer.object_lock_configuration.and_then(|found| found.object_lock_enabled);
            enabled == Some(ObjectLockEnabled::Enabled)
        })
    }

    fn clears_uploads(&self) -> Result<Told<bool>, StepError> {
        let request = self.client().get_bucket_lifecycle_configuration().bucket(self.name());
        let answer = wait(async move { request.send().await.map_err(|error| Fault::of(&error)) })?;
        let clears = |rule: &LifecycleRule| {
            rule.status() == &ExpirationStatus::Enabled && rule.abort_incomplete_multipart_upload().is_some()
        };
        self.told(answer, ("NoSuchLifecycleConfiguration", false), |answer| {
            answer.rules.unwrap_or_default().iter().any(clears)
        })
    }

    /// Reads an answer; the code for "there is none" is one, too, and what may not be asked is not known.
    fn told<A, T>(
        &self,
        answer: Result<A, Fault>,
        (none, without): (&str, T),
        read: impl FnOnce(A) -> T,
    ) -> Result<Told<T>, StepError> {
        match answer {
            Ok(answer) => Ok(Told::Yes(read(answer))),
            Err(fault) if fault.code == none => Ok(Told::Yes(without)),
            Err(fault) => {
                let error = self.explain(Doing::Reading, "a rule", &fault);
                match fault.passes() {
                    true => Err(error),
                    false => Ok(Told::Unknown(error.message)),
                }
            }
        }
    }

    /// Finds out, once, whether the server decides whether a name is free: it is asked to write an object of our own
    /// twice. S3 is known to.
    pub(in crate::store) fn decides_names(&self) -> Result<bool, StepError> {
        if self.is_s3() {
            return Ok(true);
        }
        if let Some(known) = self.known_to_decide().get() {
            return Ok(*known);
        }
        let key = format!("{}{TEMPORARY}probe-{}", self.prefix(), uuid::Uuid::now_v7().simple());
        let put = || {
            let request = self.client().put_object().bucket(self.name()).key(&key).if_none_match("*");
            let request = request.body(ByteStream::from_static(b"probe"));
            wait(async move { request.send().await.map_err(|error| Fault::of(&error)) })
        };
        let first = put()?;
        let second = if first.is_ok() { Some(put()?) } else { None };
        let mut versions = Vec::new();
        versions.extend(first.as_ref().ok().map(|put| put.version_id.clone()));
        versions.extend(
            second.as_ref().and_then(|second| second.as_ref().ok()).map(|put| put.version_id.clone()),
        );
        for version in versions {
            let request = self.client().delete_object().bucket(self.name()).key(&key).set_version_id(version);
            drop(wait(async move { request.send().await.map(drop).map_err(|error| Fault::of(&error)) })?);
        }
        let decides = match (first, second) {
            (Ok(_), Some(Err(fault))) if fault.is_taken() => true,
            (Ok(_), Some(Ok(_)) | None) => false,
            (Err(fault), _) | (_, Some(Err(fault))) if fault.is_unknown() => false,
            (Err(fault), _) | (_, Some(Err(fault))) => {
                return Err(self.explain(Doing::Writing, "a probe of conditional writes", &fault));
            }
        };
        Ok(*self.known_to_decide().get_or_init(|| decides))
    }
}
