use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use aho_corasick::AhoCorasick;
use secrecy::ExposeSecret;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{forms, views};
use crate::secret::{SecretRef, Secrets};

/// What stands in the place of a secret.
pub(super) const MASK: &str = "***";

/// Removes the secrets of a run from text; the default removes nothing. Cheap to clone.
#[derive(Clone, Default)]
pub struct Redactor {
    /// `None` if there is nothing to remove.
    search: Option<Arc<AhoCorasick>>,
    longest: usize,
    too_short: Vec<SecretRef>,
}

impl Redactor {
    /// Prepares the search for these secrets.
    pub fn new(secrets: &Secrets) -> Self {
        let mut all = std::collections::BTreeSet::new();
        let mut too_short = Vec::new();
        for (reference, value) in secrets.iter().filter(|(reference, _)| !secrets.is_word(reference)) {
            let value = value.expose_secret();
            // One of many short lines can be removed as a whole only, which lines of output never show.
            if forms::pieces(value).iter().all(|piece| piece.contains('\n')) {
                too_short.push(reference.clone());
            }
            all.extend(forms::of(value));
        }
        let longest = all.iter().map(Vec::len).max().unwrap_or(0);
        let search = (!all.is_empty()).then(|| {
            Arc::new(
                AhoCorasick::new(&all).expect("secrets are far fewer and shorter than the search can hold"),
            )
        });
        Self { search, longest, too_short }
    }

    /// Returns the secrets that cannot be removed, since they or all their lines are under 8 bytes: code `LB0331`.
    pub fn too_short(&self) -> &[SecretRef] {
        &self.too_short
    }

    /// Returns a text without secrets.
    pub fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.bytes(text.as_bytes()) {
            Cow::Borrowed(_) => Cow::Borrowed(text),
            // What is cut out begins and ends at characters, unless the text was made to deceive.
            Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
        }
    }

    /// Returns bytes without secrets.
    pub fn bytes<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let mut clean = Cow::Borrowed(bytes);
        // What stands before and after a mask may form a secret together with it.
        loop {
            let found = self.find(&clean);
            if found.is_empty() {
                return clean;
            }
            clean = Cow::Owned(mask(&clean, &found));
        }
    }

    /// Removes secrets from all texts, keys and numbers of a value.
    pub fn value(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                if let Cow::Owned(clean) = self.text(text) {
                    *text = clean;
                }
            }
            Value::Array(elements) => elements.iter_mut().for_each(|element| self.value(element)),
            Value::Object(map) => self.map(map),
            Value::Number(number) => {
                if let Cow::Owned(clean) = self.text(&number.to_string()) {
                    *value = Value::String(clean);
                }
            }
            Value::Null | Value::Bool(_) => {}
        }
    }

    /// Removes secrets from all keys and values of a map.
    pub fn map(&self, map: &mut Map<String, Value>) {
        let old = std::mem::take(map);
        for (key, mut value) in old {
            self.value(&mut value);
            map.insert(self.text(&key).into_owned(), value);
        }
    }

    /// Removes secrets from anything that can be written as JSON, such as a failure or a question.
    ///
    /// Fails if it cannot be read back, because a secret stood where only certain words may stand.
    pub fn clean<T: Serialize + DeserializeOwned>(&self, thing: T) -> Result<T, serde_json::Error> {
        if self.search.is_none() {
            return Ok(thing);
        }
        let before = serde_json::to_value(&thing)?;
        let mut after = before.clone();
        self.value(&mut after);
        if after == before { Ok(thing) } else { serde_json::from_value(after) }
    }

    /// Returns where secrets stand, merged and in order.
    pub(super) fn find(&self, text: &[u8]) -> Vec<Range<usize>> {
        let Some(search) = &self.search else { return Vec::new() };
        let found =
            views::search(text, &|view| search.find_overlapping_iter(view).map(|hit| hit.range()).collect());
        merge(found)
    }

    /// Returns how much must be known beyond a place where a text is to be cut, for [`cut`](Self::cut) to see each secret
    /// that stands there. Bounded, whatever the secrets are.
    pub fn reach(&self) -> usize {
        /// `\u0020`, where each byte is escaped; most never are.
        const ESCAPED: usize = 6;
        const LIMIT: usize = 64 << 10;
        (self.longest * ESCAPED).min(LIMIT)
    }

    /// Returns the place nearest before `at` where a text can be cut without a secret being cut in two: half a secret is
    /// not found any more.
    pub fn cut(&self, text: &[u8], at: usize) -> usize {
        self.across(text, at).map_or(at, |secret| secret.start)
    }

    /// Returns the place nearest after `at` where a text can begin without the end of a secret standing there.
    pub fn cut_after(&self, text: &[u8], at: usize) -> usize {
        self.across(text, at).map_or(at, |secret| secret.end)
    }

    /// Finds the secret that begins before a place and ends after it.
    fn across(&self, text: &[u8], at: usize) -> Option<Range<usize>> {
        let reach = self.reach();
        let from = at.saturating_sub(reach);
        let around = &text[from..text.len().min(at + reach)];
        let mut found = self.find(around).into_iter().map(|range| range.start + from..range.end + from);
        found.find(|range| range.start < at && at < range.end)
    }
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redactor").field("too_short", &self.too_short).finish_non_exhaustive()
    }
}

fn merge(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_by_key(|range| (range.start, range.end));
    let mut merged: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

fn mask(text: &[u8], found: &[Range<usize>]) -> Vec<u8> {
    let mut clean = Vec::with_capacity(text.len());
    let mut at = 0;
    for range in found {
        clean.extend_from_slice(&text[at..range.start]);
        clean.extend_from_slice(MASK.as_bytes());
        at = range.end;
    }
    clean.extend_from_slice(&text[at..]);
    clean
}
