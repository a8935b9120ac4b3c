//! Stored passwords: PBKDF2 with HMAC-SHA-256 and a salt of 16 bytes, written `pbkdf2-sha256$ROUNDS$SALT$HASH`.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::random;

/// Each stored password carries its own number, so this can grow without breaking old ones. A demonstration runs
/// unoptimised builds, hence less than a production system would take.
const ROUNDS: u32 = 20_000;

/// Returns the text to store for a password.
pub(crate) fn hash(password: &str) -> std::io::Result<String> {
    let salt: [u8; 16] = random::bytes()?;
    Ok(format!(
        "pbkdf2-sha256${ROUNDS}${}${}",
        random::hex(&salt),
        random::hex(&derive(password, &salt, ROUNDS))
    ))
}

/// Says whether a password is the one behind a stored text. A text of another form matches nothing.
pub(crate) fn matches(password: &str, stored: &str) -> bool {
    let parts: Vec<_> = stored.split('$').collect();
    let ["pbkdf2-sha256", rounds, salt, expected] = parts[..] else { return false };
    let (Ok(rounds), Some(salt)) = (rounds.parse(), unhex(salt)) else { return false };
    same(random::hex(&derive(password, &salt, rounds)).as_bytes(), expected.as_bytes())
}

/// One block of PBKDF2 (RFC 8018), which is as long as the hash.
fn derive(password: &str, salt: &[u8], rounds: u32) -> [u8; 32] {
    let key = Hmac::<Sha256>::new_from_slice(password.as_bytes()).expect("HMAC takes a key of any length");
    let step = |input: &[&[u8]]| -> [u8; 32] {
        let mut mac = key.clone();
        input.iter().for_each(|part| mac.update(part));
        mac.finalize().into_bytes().into()
    };
    let mut block = step(&[salt, &1_u32.to_be_bytes()]);
    let mut result = block;
    for _ in 1..rounds {
        block = step(&[&block]);
        result.iter_mut().zip(block).for_each(|(all, new)| *all ^= new);
    }
    result
}

/// Compares without telling by its duration where the difference is.
fn same(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len() && left.iter().zip(right).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|digit| digit.to_digit(16).and_then(|n| u8::try_from(n).ok())).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    Some(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_derivation_is_pbkdf2() {
        // Known answers for PBKDF2-HMAC-SHA256, password "password", salt "salt".
        let one = "120fb6cffcf8b32c43e7225256c4f837a86548c92ccc35480805987cb70be17b";
        let many = "c5e478d59288c841aa530db6845c4c8d962893a001ce4e11a4963873aa98134a";
        assert_eq!(random::hex(&derive("password", b"salt", 1)), one);
        assert_eq!(random::hex(&derive("password", b"salt", 4096)), many);
    }

    #[test]
    fn only_the_right_password_matches() {
        let stored = hash("correct horse").unwrap();
        assert!(matches("correct horse", &stored));
        assert!(!matches("correct hors", &stored));
        assert!(!matches("", &stored));
        assert_ne!(stored, hash("correct horse").unwrap(), "each password has its own salt");
    }

    #[test]
    fn a_damaged_text_matches_nothing() {
        for stored in ["", "x", "pbkdf2-sha256$1$zz$00", "pbkdf2-sha256$x$00$00", "md5$1$00$00"] {
            assert!(!matches("", stored), "{stored}");
        }
    }
}
