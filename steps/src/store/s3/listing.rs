use std::collections::BTreeSet;

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::{EncodingType, Object, ObjectStorageClass, OptionalObjectAttributes};
use jiff::Timestamp;
use lifeboat_engine::step::StepError;

use super::bucket::{Bucket, reading};
use super::fault::{Doing, Fault};
use super::runtime::wait;
use crate::store::backend::Listed;
use crate::store::key::{Key, TEMPORARY};
use crate::store::named::Current;

impl Bucket {
    pub(in crate::store) fn list(&self, prefix: &Key) -> Result<Vec<Listed>, StepError> {
        let mut found = Vec::new();
        self.each_page(format!("{prefix}/"), None, |page| {
            for object in page.contents() {
                let name = self.name_of(object.key(), page)?;
                // Whatever no key can name was not written here.
                let Ok(key) = Key::new(name) else { continue };
                if !key.name().starts_with(TEMPORARY) {
                    let size = object.size().unwrap_or_default().unsigned_abs();
                    found.push(Listed { key, size });
                }
            }
            Ok(())
        })?;
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    pub(in crate::store) fn list_groups(&self, prefix: &Key) -> Result<Vec<String>, StepError> {
        let below = format!("{prefix}/");
        let mut found = BTreeSet::new();
        self.each_page(below.clone(), Some("/"), |page| {
            for group in page.common_prefixes() {
                let name = self.name_of(group.prefix(), page)?;
                let name = name.strip_prefix(&below).and_then(|name| name.strip_suffix('/'));
                // `TEMPORARY` names are refused here as well.
                found.extend(name.filter(|name| Key::new(*name).is_ok()).map(ToOwned::to_owned));
            }
            Ok(())
        })?;
        Ok(found.into_iter().collect())
    }

    /// Lists everything below a text, names that are no keys included.
    pub(in crate::store) fn list_names(&self, below: &str) -> Result<Vec<Current>, StepError> {
        let mut found = Vec::new();
        self.each_page(below.to_owned(), None, |page| {
            for object in page.contents() {
                found.push(Current {
                    name: self.name_of(object.key(), page)?,
                    size: object.size().unwrap_or_default().unsigned_abs(),
                    modified: object.last_modified().and_then(moment),
                    etag: object.e_tag().map(ToOwned::to_owned),
                    archived: is_archived(object),
                });
            }
            Ok(())
        })?;
        Ok(found)
    }

    fn each_page(
        &self,
        below: String,
        delimiter: Option<&str>,
        mut each: impl FnMut(&ListObjectsV2Output) -> Result<(), StepError>,
    ) -> Result<(), StepError> {
        let failed = |fault: &Fault| {
            self.explain(Doing::Reading, format_args!("the list of `{}`", below.escape_debug()), fault)
        };
        let mut token: Option<String> = None;
        loop {
            let request = self.client().list_objects_v2().bucket(self.name());
            let request =
                request.prefix(format!("{}{below}", self.prefix())).encoding_type(EncodingType::Url);
            // Whether an archived object has been brought back for a while.
            let request = request.optional_object_attributes(OptionalObjectAttributes::RestoreStatus);
            let request =
                request.set_delimiter(delimiter.map(ToOwned::to_owned)).set_continuation_token(token.clone());
            let request = request.customize().config_override(reading());
            let page = wait(async move { request.send().await.map_err(|error| Fault::of(&error)) })?
                .map_err(|fault| failed(&fault))?;
            each(&page)?;
            if page.is_truncated() != Some(true) {
                return Ok(());
            }
            let next = page.next_continuation_token().map(ToOwned::to_owned);
            if next.is_none() || next == token {
                return Err(failed(&Fault::odd(
                    "the server says that there is more and not where it goes on",
                )));
            }
            token = next;
        }
    }

    /// Returns what a page calls a name, without the prefix of the store.
    fn name_of(&self, name: Option<&str>, page: &ListObjectsV2Output) -> Result<String, StepError> {
        let encoded = page.encoding_type() == Some(&EncodingType::Url);
        self.below(name.unwrap_or_default(), encoded)
    }

    pub(super) fn below(&self, name: &str, encoded: bool) -> Result<String, StepError> {
        let name = if encoded { decoded(name) } else { Some(name.to_owned()) };
        let below = name.as_deref().and_then(|name| name.strip_prefix(self.prefix()));
        below.map(ToOwned::to_owned).ok_or_else(|| {
            let fault = Fault::odd("the server lists names that were not asked for, or are no UTF-8 text");
            self.explain(Doing::Reading, "the list of objects", &fault)
        })
    }
}

/// Undoes the encoding that a listing was asked for: names may hold what XML cannot.
pub(super) fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
            }
            b'+' => bytes.push(b' '),
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).ok()
}

/// An object in an archive can be read only while a copy of it has been brought back.
fn is_archived(object: &Object) -> bool {
    let is_back = object.restore_status().is_some_and(|status| status.restore_expiry_date().is_some());
    let class = object.storage_class();
    matches!(class, Some(ObjectStorageClass::Glacier | ObjectStorageClass::DeepArchive)) && !is_back
}

pub(super) fn moment(time: &aws_sdk_s3::primitives::DateTime) -> Option<Timestamp> {
    Timestamp::new(time.secs(), i32::try_from(time.subsec_nanos()).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_decoded_or_refused() {
        assert_eq!(decoded("a/b%20c+d%2Be%0A").as_deref(), Some("a/b c d+e\n"));
        assert_eq!(decoded("%C3%A4").as_deref(), Some("ä"));
        assert_eq!(decoded("%"), None);
        assert_eq!(decoded("%FF"), None);
        assert_eq!(decoded("%zz"), None);
    }
}
