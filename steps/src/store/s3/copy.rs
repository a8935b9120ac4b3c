use std::collections::HashMap;

use aws_sdk_s3::operation::create_multipart_upload::builders::CreateMultipartUploadFluentBuilder;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use lifeboat_engine::step::StepError;

use super::bucket::Bucket;
use super::fault::{Doing, Fault};
use super::runtime::wait;

/// What an object carries besides its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(in crate::store) content_type: Option<String>,
    pub(in crate::store) content_encoding: Option<String>,
    pub(in crate::store) content_disposition: Option<String>,
    pub(in crate::store) content_language: Option<String>,
    pub(in crate::store) cache_control: Option<String>,
    pub(in crate::store) metadata: HashMap<String, String>,
}

/// What one request copies at most; the limit is 5 GiB.
const WHOLE: u64 = 5 << 30;
/// Parts of a larger object: 10,000 of them reach the largest there is.
const PART: u64 = 1 << 30;

impl Attributes {
    fn of(head: HeadObjectOutput) -> Self {
        Self {
            content_type: head.content_type,
            content_encoding: head.content_encoding,
            content_disposition: head.content_disposition,
            content_language: head.content_language,
            cache_control: head.cache_control,
            metadata: head.metadata.unwrap_or_default(),
        }
    }

    pub(super) fn on_put(&self, request: PutObjectFluentBuilder) -> PutObjectFluentBuilder {
        request
            .set_content_type(self.content_type.clone())
            .set_content_encoding(self.content_encoding.clone())
            .set_content_disposition(self.content_disposition.clone())
            .set_content_language(self.content_language.clone())
            .set_cache_control(self.cache_control.clone())
            .set_metadata((!self.metadata.is_empty()).then(|| self.metadata.clone()))
    }

    pub(super) fn on_parts(
        &self,
        request: CreateMultipartUploadFluentBuilder,
    ) -> CreateMultipartUploadFluentBuilder {
        request
            .set_content_type(self.content_type.clone())
            .set_content_encoding(self.content_encoding.clone())
            .set_content_disposition(self.content_disposition.clone())
            .set_content_language(self.content_language.clone())
            .set_cache_control(self.cache_control.clone())
            .set_metadata((!self.metadata.is_empty()).then(|| self.metadata.clone()))
    }
}

/// One version that is copied, by its name in its bucket.
#[derive(Clone, Debug)]
pub(in crate::store) struct Version {
    pub(in crate::store) key: String,
    pub(in crate::store) id: String,
    pub(in crate::store) size: u64,
}

impl Version {
    /// As the header wants it: encoded, so that a name may hold anything.
    fn source(&self, bucket: &str) -> String {
        format!("{bucket}/{}?versionId={}", encoded(&self.key), encoded(&self.id))
    }
}

impl Bucket {
    /// Copies a version of `from` to a name of this bucket, with all that it carries, within the server.
    pub(in crate::store) fn copy_version(
        &self,
        from: &Bucket,
        version: &Version,
        to: &str,
    ) -> Result<(), StepError> {
        let source = version.source(from.name());
        let (bucket, from, version) = (self.clone(), from.clone(), version.clone());
        let key = to.to_owned();
        let name = format!("`{}`", to.strip_prefix(self.prefix()).unwrap_or(to).escape_debug());
        wait(async move {
            match version.size <= WHOLE {
                true => bucket.copy_whole(&source, &key).await,
                false => bucket.copy_parts(&from, &version, (&source, &key)).await,
            }
        })?
        .map_err(|fault| self.explain(Doing::Writing, name, &fault))
    }

    async fn copy_whole(&self, source: &str, key: &str) -> Result<(), Fault> {
        let request = self.client().copy_object().bucket(self.name()).key(key).copy_source(source);
        request.send().await.map(drop).map_err(|error| Fault::of(&error))
    }

    async fn copy_parts(
        &self,
        from: &Bucket,
        version: &Version,
        (source, key): (&str, &str),
    ) -> Result<(), Fault> {
        let head = from.client().head_object().bucket(from.name()).key(&version.key).version_id(&version.id);
        let attributes = Attributes::of(head.send().await.map_err(|error| Fault::of(&error))?);
        let begun = self.client().create_multipart_upload().bucket(self.name()).key(key);
        let begun = attributes.on_parts(begun).send().await.map_err(|error| Fault::of(&error))?;
        let id = begun.upload_id.ok_or_else(|| Fault::odd("the answer has no upload id"))?;
        let copied = self.copy_each_part(version.size, &id, (source, key)).await;
        if copied.is_err() {
            let abort = self.client().abort_multipart_upload().bucket(self.name()).key(key).upload_id(&id);
            abort.send().await.ok();
        }
        copied
    }

    async fn copy_each_part(&self, size: u64, id: &str, (source, key): (&str, &str)) -> Result<(), Fault> {
        let mut parts = Vec::new();
        for (number, from) in (1..).zip((0..size).step_by(usize::try_from(PART).unwrap_or(usize::MAX))) {
            let range = format!("bytes={from}-{}", size.min(from + PART) - 1);
            let request = self.client().upload_part_copy().bucket(self.name()).key(key).upload_id(id);
            let request = request.part_number(number).copy_source(source).copy_source_range(range);
            let answer = request.send().await.map_err(|error| Fault::of(&error))?;
            let etag = answer.copy_part_result.and_then(|part| part.e_tag);
            parts.push(CompletedPart::builder().part_number(number).set_e_tag(etag).build());
        }
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let request = self.client().complete_multipart_upload().bucket(self.name()).key(key);
        let request = request.upload_id(id).multipart_upload(parts);
        request.send().await.map(drop).map_err(|error| Fault::of(&error))
    }
}

/// Encodes all but unreserved characters and `/`.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                out.push(byte.into())
            }
            other => {
                use std::fmt::Write as _;
                write!(out, "%{other:02X}").expect("text takes all that is written");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_of_a_copy_is_encoded() {
        let version = Version { key: "a b/ä?x+y".to_owned(), id: "null".to_owned(), size: 0 };
        assert_eq!(version.source("b"), "b/a%20b/%C3%A4%3Fx%2By?versionId=null");
    }
}
