//! The forms in which a secret is searched for.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use serde_json::Value;

/// How many bytes of a secret are looked for at least: a shorter form would be found in ordinary words.
pub const SHORTEST: usize = 8;

/// Where tools break lines of base64: `openssl` and PEM at 64, `base64` at 76.
const WIDTHS: [usize; 2] = [64, 76];

/// How many characters of base64, and of hexadecimal, tell a part of a secret: 9 and 8 bytes of it. Lines are broken, and
/// output is cut, anywhere.
const BASE64_PART: usize = 12;
const HEX_PART: usize = 2 * SHORTEST;

/// Of longer ones only whole lines are searched for in base64: each byte makes some eight forms.
const LONGEST_IN_PARTS: usize = 16 << 10;

/// Returns all forms of a secret that are long enough to be told from ordinary text.
pub(super) fn of(secret: &str) -> BTreeSet<Vec<u8>> {
    let mut forms = BTreeSet::new();
    for piece in pieces(secret) {
        forms.insert(piece.as_bytes().to_vec());
        // A blank in the query of a URL.
        forms.insert(piece.replace(' ', "+").into_bytes());
        for engine in [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD] {
            forms.insert(engine.encode(&piece).into_bytes());
        }
        for offset in 0..3 {
            forms.extend(inner_base64(piece.as_bytes(), offset));
        }
    }
    for width in WIDTHS {
        let whole = STANDARD.encode(secret).into_bytes();
        forms.extend(whole.chunks(width).map(<[u8]>::to_vec));
    }
    if secret.len() <= LONGEST_IN_PARTS {
        for inner in (0..3).flat_map(|offset| inner_base64(secret.as_bytes(), offset)) {
            forms.extend(inner.windows(BASE64_PART).map(<[u8]>::to_vec));
        }
    }
    for hex in hexadecimal(secret) {
        forms.extend(hex.windows(HEX_PART).step_by(2).map(<[u8]>::to_vec));
    }
    forms.retain(|form| form.len() >= SHORTEST);
    forms
}

/// The secret, each of its lines, and what its fields say, in so far as they are long enough.
///
/// A secret may be a document: a service account in JSON, a list of variables. Programs take it apart.
pub(super) fn pieces(secret: &str) -> BTreeSet<String> {
    let mut pieces = BTreeSet::from([secret.to_owned()]);
    pieces.extend(lines(secret));
    let trimmed = secret.trim();
    let is_document = trimmed.starts_with(['{', '[']);
    match serde_json::from_str::<Value>(trimmed).ok().filter(|_| is_document) {
        Some(document) => leaves(&document, &mut pieces),
        None if secret.contains('\n') => pieces.extend(secret.lines().filter_map(field)),
        None => {}
    }
    pieces.retain(|piece| piece.len() >= SHORTEST);
    pieces
}

fn lines(text: &str) -> impl Iterator<Item = String> {
    text.split(['\n', '\r']).map(|line| line.trim().to_owned())
}

/// Adds every text of a document that is not under a name which says that everybody may know it.
fn leaves(document: &Value, pieces: &mut BTreeSet<String>) {
    match document {
        Value::String(text) => {
            pieces.insert(text.clone());
            pieces.extend(lines(text));
        }
        Value::Number(number) => {
            pieces.insert(number.to_string());
        }
        Value::Array(elements) => elements.iter().for_each(|element| leaves(element, pieces)),
        Value::Object(fields) => {
            fields.iter().filter(|(name, _)| !is_public(name)).for_each(|(_, value)| leaves(value, pieces));
        }
        Value::Null | Value::Bool(_) => {}
    }
}

/// Returns the value of `NAME=value` or `name: value`, without quotation marks.
fn field(line: &str) -> Option<String> {
    let (name, value) = line.split_once(['=', ':'])?;
    let name = name.trim().trim_start_matches("export ");
    let is_name =
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    let value = value.trim().trim_matches(['"', '\'']);
    (is_name && !is_public(name)).then(|| value.to_owned())
}

/// Says whether the name of a field says that its value is no secret.
fn is_public(name: &str) -> bool {
    const PUBLIC: [&str; 20] = [
        "type",
        "kind",
        "user",
        "username",
        "login",
        "host",
        "hostname",
        "server",
        "endpoint",
        "port",
        "database",
        "dbname",
        "engine",
        "region",
        "project_id",
        "client_email",
        "client_id",
        "auth_uri",
        "token_uri",
        "version",
    ];
    PUBLIC.iter().any(|public| name.eq_ignore_ascii_case(public))
}

/// The characters that a piece is sure to have in the base64 of something that has `offset` (mod 3) bytes before it,
/// whatever comes before and after.
fn inner_base64(piece: &[u8], offset: usize) -> [Vec<u8>; 2] {
    let padded: Vec<u8> = std::iter::repeat_n(0, offset).chain(piece.iter().copied()).collect();
    let (first, end) = ((offset * 8).div_ceil(6), padded.len() * 8 / 6);
    [STANDARD_NO_PAD.encode(&padded), URL_SAFE_NO_PAD.encode(&padded)]
        .map(|text| text.as_bytes()[first..end].to_vec())
}

fn hexadecimal(secret: &str) -> [Vec<u8>; 2] {
    let lower: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    let upper = lower.to_ascii_uppercase();
    [lower.into_bytes(), upper.into_bytes()]
}
