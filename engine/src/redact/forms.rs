//! The forms in which a secret is searched for.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};

/// A shorter form would be found in ordinary words.
pub(super) const SHORTEST: usize = 8;

/// Where tools break lines of base64: `openssl` and PEM at 64, `base64` at 76.
const WIDTHS: [usize; 2] = [64, 76];

/// Returns all forms of a secret that are long enough to be told from ordinary text.
pub(super) fn of(secret: &str) -> BTreeSet<Vec<u8>> {
    let mut forms = BTreeSet::new();
    for piece in pieces(secret) {
        forms.insert(piece.as_bytes().to_vec());
        // A blank in the query of a URL.
        forms.insert(piece.replace(' ', "+").into_bytes());
        for engine in [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD] {
            forms.insert(engine.encode(piece).into_bytes());
        }
        for offset in 0..3 {
            forms.extend(inner_base64(piece.as_bytes(), offset));
        }
    }
    for width in WIDTHS {
        let whole = STANDARD.encode(secret).into_bytes();
        forms.extend(whole.chunks(width).map(<[u8]>::to_vec));
    }
    forms.retain(|form| form.len() >= SHORTEST);
    forms
}

/// The secret and each of its lines, in so far as they are long enough.
pub(super) fn pieces(secret: &str) -> BTreeSet<&str> {
    let lines = secret.lines().map(str::trim);
    std::iter::once(secret).chain(lines).filter(|piece| piece.len() >= SHORTEST).collect()
}

/// The characters that a piece is sure to have in the base64 of something that has `offset` (mod 3) bytes before it,
/// whatever comes before and after.
fn inner_base64(piece: &[u8], offset: usize) -> [Vec<u8>; 2] {
    let padded: Vec<u8> = std::iter::repeat_n(0, offset).chain(piece.iter().copied()).collect();
    let (first, end) = ((offset * 8).div_ceil(6), padded.len() * 8 / 6);
    [STANDARD_NO_PAD.encode(&padded), URL_SAFE_NO_PAD.encode(&padded)]
        .map(|text| text.as_bytes()[first..end].to_vec())
}
