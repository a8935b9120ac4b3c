//! The versions of a bucket, in the order of the server.

use std::sync::{Arc, Mutex, PoisonError};

use aws_sdk_s3::config::interceptors::AfterDeserializationInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::operation::list_object_versions::ListObjectVersionsOutput;
use aws_sdk_s3::types::{
    BucketVersioningStatus, EncodingType, ExpirationStatus, ObjectStorageClass, ObjectVersion,
    OptionalObjectAttributes,
};
use lifeboat_engine::step::StepError;

use super::bucket::Bucket;
use super::fault::{Doing, Fault};
use super::listing::moment;
use super::runtime::wait;
use crate::store::policy::Versioning;
use crate::store::versions::{Entry, Stored};

impl Bucket {
    pub(in crate::store) fn versioning(&self) -> Result<Versioning, StepError> {
        let raw = Raw::default();
        let request = self.client().get_bucket_versioning().bucket(self.name());
        let request = request.customize().interceptor(raw.clone());
        let answer = wait(async move { request.send().await.map_err(|error| Fault::of(&error)) })?;
        match answer.map(|answer| answer.status) {
            Ok(Some(BucketVersioningStatus::Enabled)) => Ok(Versioning::Enabled),
            Ok(Some(_)) => Ok(Versioning::Suspended),
            Ok(None) => Ok(Versioning::Never),
            // Some servers give the answer another name than the client expects.
            Err(fault) => match status_in(&raw.body()).filter(|_| fault.status == Some(200)) {
                Some(versioning) => Ok(versioning),
                None => Err(self.explain(Doing::Reading, "whether versions are kept", &fault)),
            },
        }
    }

    /// Returns after how many days the bucket forgets versions below the prefix that are not current, if it does.
    pub(in crate::store) fn forgets_after_days(&self) -> Result<Option<u32>, StepError> {
        let request = self.client().get_bucket_lifecycle_configuration().bucket(self.name());
        let answer = wait(async move { request.send().await.map_err(|error| Fault::of(&error)) })?;
        let rules = match answer {
            Ok(answer) => answer.rules.unwrap_or_default(),
            Err(fault) if fault.code == "NoSuchLifecycleConfiguration" => return Ok(None),
            Err(fault) => return Err(self.explain(Doing::Reading, "the lifecycle rules", &fault)),
        };
        let days =
            rules.iter().filter(|rule| rule.status() == &ExpirationStatus::Enabled).filter_map(|rule| {
                let below = rule
                    .filter()
                    .and_then(|filter| filter.prefix().or_else(|| filter.and().and_then(|and| and.prefix())));
                let below = below.unwrap_or_default();
                let concerns = below.starts_with(self.prefix()) || self.prefix().starts_with(below);
                let days = rule.noncurrent_version_expiration()?.noncurrent_days()?;
                concerns.then(|| days.unsigned_abs())
            });
        Ok(days.min())
    }

    /// Goes through all versions and marks below a text, page by page.
    pub(in crate::store) fn each_version(
        &self,
        below: &str,
        mut each: impl FnMut(Vec<Entry>) -> Result<(), StepError>,
    ) -> Result<(), StepError> {
        let failed = |fault: &Fault| self.explain(Doing::Reading, "the list of versions", fault);
        let (mut key, mut version) = (None, None);
        loop {
            let raw = Raw::default();
            let request = self.client().list_object_versions().bucket(self.name());
            let request =
                request.prefix(format!("{}{below}", self.prefix())).encoding_type(EncodingType::Url);
            let request = request.set_key_marker(key.clone()).set_version_id_marker(version.clone());
            // Whether an archived object has been brought back for a while.
            let request = request.optional_object_attributes(OptionalObjectAttributes::RestoreStatus);
            let request = request.customize().interceptor(raw.clone());
            let page = wait(async move { request.send().await.map_err(|error| Fault::of(&error)) })?
                .map_err(|fault| failed(&fault))?;
            each(self.in_order(&page, &tags(&raw.body())).map_err(|fault| failed(&fault))?)?;
            if page.is_truncated() != Some(true) {
                return Ok(());
            }
            let encoded = page.encoding_type() == Some(&EncodingType::Url);
            let marker = page.next_key_marker();
            let next =
                if encoded { marker.and_then(super::listing::decoded) } else { marker.map(str::to_owned) };
            let next = (next, page.next_version_id_marker().map(str::to_owned));
            if next.0.is_none() || next == (key, version) {
                return Err(failed(&Fault::odd(
                    "the server says that there is more and not where it goes on",
                )));
            }
            (key, version) = next;
        }
    }

    /// Deletes one version, or puts a mark of deletion on top.
    pub(in crate::store) fn delete(&self, name: &str, version: Option<String>) -> Result<(), StepError> {
        let request =
            self.client().delete_object().bucket(self.name()).key(format!("{}{name}", self.prefix()));
        let request = request.set_version_id(version);
        let outcome = wait(async move { request.send().await.map(drop).map_err(|error| Fault::of(&error)) })?;
        outcome
            .map_err(|fault| self.explain(Doing::Writing, format_args!("`{}`", name.escape_debug()), &fault))
    }

    /// Puts versions and marks, which the client returns as two lists, in the order of the answer.
    fn in_order(&self, page: &ListObjectVersionsOutput, order: &[Tag]) -> Result<Vec<Entry>, Fault> {
        let encoded = page.encoding_type() == Some(&EncodingType::Url);
        let name = |key: Option<&str>| {
            self.below(key.unwrap_or_default(), encoded).map_err(|error| Fault::odd(error.message))
        };
        let (mut versions, mut marks) = (page.versions().iter(), page.delete_markers().iter());
        let mut entries = Vec::with_capacity(order.len());
        for tag in order {
            entries.push(match tag {
                Tag::Version => {
                    let version = versions.next().ok_or_else(unlike)?;
                    Entry {
                        name: name(version.key())?,
                        id: version.version_id().unwrap_or("null").to_owned(),
                        modified: version.last_modified().and_then(moment).ok_or_else(timeless)?,
                        latest: version.is_latest().unwrap_or_default(),
                        object: Some(Stored {
                            size: version.size().unwrap_or_default().unsigned_abs(),
                            etag: version.e_tag().map(ToOwned::to_owned),
                            archived: is_archived(version),
                        }),
                    }
                }
                Tag::Mark => {
                    let mark = marks.next().ok_or_else(unlike)?;
                    Entry {
                        name: name(mark.key())?,
                        id: mark.version_id().unwrap_or("null").to_owned(),
                        modified: mark.last_modified().and_then(moment).ok_or_else(timeless)?,
                        latest: mark.is_latest().unwrap_or_default(),
                        object: None,
                    }
                }
            });
        }
        if versions.next().is_some() || marks.next().is_some() { Err(unlike()) } else { Ok(entries) }
    }
}

fn unlike() -> Fault {
    Fault::odd("the answer is not what it was read as")
}

fn timeless() -> Fault {
    Fault::odd("a version has no time")
}

/// An object in an archive can be read only while a copy of it has been brought back.
fn is_archived(version: &ObjectVersion) -> bool {
    let class = version.storage_class().map(AsRef::as_ref);
    let archives = [ObjectStorageClass::Glacier, ObjectStorageClass::DeepArchive];
    let is_back = version.restore_status().is_some_and(|status| status.restore_expiry_date().is_some());
    class.is_some_and(|class: &str| archives.iter().any(|archive| archive.as_str() == class)) && !is_back
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    Version,
    Mark,
}

/// Keeps the text of an answer, for the order in which it names versions and marks. Times have a resolution of one second, and a mark and
/// a version of the same second would otherwise have no order at all.
#[derive(Clone, Debug, Default)]
struct Raw(Arc<Mutex<Vec<u8>>>);

impl Raw {
    fn body(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Intercept for Raw {
    fn name(&self) -> &'static str {
        "TextOfAnswer"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(body) = context.response().body().bytes() {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = body.to_vec();
        }
        Ok(())
    }
}

/// Reads the answer to whether versions are kept, whatever its outermost element is called.
fn status_in(body: &[u8]) -> Option<Versioning> {
    let text = std::str::from_utf8(body).ok().filter(|text| text.contains("Versioning"))?;
    match text.split_once("<Status>").map(|(_, rest)| rest) {
        None => Some(Versioning::Never),
        Some(rest) if rest.starts_with("Enabled<") => Some(Versioning::Enabled),
        Some(rest) => rest.starts_with("Suspended<").then_some(Versioning::Suspended),
    }
}

/// Finds the elements of interest. Within text a `<` is always escaped, so that one byte tells.
fn tags(body: &[u8]) -> Vec<Tag> {
    let opened = |rest: &[u8], name: &[u8]| {
        rest.strip_prefix(name)
            .and_then(<[u8]>::first)
            .is_some_and(|next| matches!(next, b'>' | b' ' | b'\n'))
    };
    let starts = body.iter().enumerate().filter(|(_, byte)| **byte == b'<');
    let found = starts.filter_map(|(at, _)| match &body[at + 1..] {
        rest if opened(rest, b"Version") => Some(Tag::Version),
        rest if opened(rest, b"DeleteMarker") => Some(Tag::Mark),
        _ => None,
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_another_name_is_read_and_another_answer_is_not() {
        let status = |inner: &str| status_in(format!("<GetBucketVersioningResponse>{inner}</…>").as_bytes());
        assert_eq!(status(""), Some(Versioning::Never));
        assert_eq!(status("<Status>Enabled</Status>"), Some(Versioning::Enabled));
        assert_eq!(status("<Status>Suspended</Status>"), Some(Versioning::Suspended));
        assert_eq!(status("<Status>Odd</Status>"), None);
        assert_eq!(status_in(b"<html>a captive portal</html>"), None);
    }

    #[test]
    fn the_order_of_an_answer_is_found() {
        let body =
            b"<ListVersionsResult><VersionIdMarker/><Version><Key>a</Key><VersionId>1</VersionId></Version>\
            <DeleteMarker><Key>&lt;Version&gt;</Key></DeleteMarker><Version ><Key>b</Key></Version>\
            <NextVersionIdMarker>2</NextVersionIdMarker></ListVersionsResult>";
        assert_eq!(tags(body), [Tag::Version, Tag::Mark, Tag::Version]);
    }
}
