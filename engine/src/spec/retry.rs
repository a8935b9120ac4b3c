use std::ops::Range;

use serde_json::Value;

use super::keys::Spanned;
use super::reader::Reader;
use super::step::checked_condition;
use crate::diagnostic::{Diagnostic, codes};
use crate::plan::{Backoff, Retry};
use crate::value::{Field, Span, Type};
use crate::yaml::{Entry, Node};

/// The keys of `retry`; the schema is made from them too.
pub(super) fn retry_fields() -> Vec<Field> {
    vec![
        Field::required("attempts", Type::Integer, "how many attempts there are, the first one counted"),
        Field::optional("backoff", Type::choice(&["fixed", "exponential"]), "how delays grow"),
        Field::optional("delay", Type::Duration, "the wait before the second attempt"),
        Field::optional("max_delay", Type::Duration, "the longest wait"),
        Field::optional("jitter", Type::Boolean, "takes a random part off each wait"),
        Field::optional("when", Type::String, "a bare expression over `error` and `attempt`"),
    ]
}

pub(super) fn read_retry(reader: &mut Reader<'_>, entry: &Entry) -> (Option<Spanned<Retry>>, Option<Node>) {
    let node = &entry.value;
    if node.mapping().is_none() {
        reader.push(
            Diagnostic::error(codes::LB0106, format!("`retry` is a map, not {}", node.describe()))
                .at(reader.source, node.span.clone())
                .help("write `retry: { attempts: 3, delay: 5s }`; the first attempt counts"),
        );
        return (None, None);
    }
    let Some(map) = reader.object(node, &retry_fields(), "`retry`") else { return (None, None) };
    let attempts = map.get("attempts").and_then(Value::as_i64).unwrap_or(1);
    if !(1..=1000).contains(&attempts) {
        let span: Range<usize> = node.get("attempts").map_or(node.span.clone(), |node| node.span.clone());
        reader.push(
            Diagnostic::error(codes::LB0106, format!("`attempts` is {attempts}, not between 1 and 1000"))
                .at(reader.source, span)
                .help("the first attempt counts: `attempts: 3` tries twice more"),
        );
    }
    let span = |name: &str| map.get(name).and_then(Value::as_str).and_then(|text| Span::parse(text).ok());
    let defaults = Retry::default();
    let retry = Retry {
        attempts: u32::try_from(attempts.clamp(1, 1000)).unwrap_or(1),
        backoff: match map.get("backoff").and_then(Value::as_str) {
            Some("exponential") => Backoff::Exponential,
            _ => Backoff::Fixed,
        },
        delay: span("delay").unwrap_or(defaults.delay),
        max_delay: span("max_delay"),
        jitter: map.get("jitter").and_then(Value::as_bool).unwrap_or(false),
        when: map.get("when").and_then(Value::as_str).map(ToOwned::to_owned),
    };
    let when = node.get("when").and_then(|node| checked_condition(reader, node));
    (Some(Spanned::new(retry, entry.key.span.clone())), when)
}
