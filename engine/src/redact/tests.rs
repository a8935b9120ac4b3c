use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use proptest::prelude::*;
use secrecy::SecretString;
use serde_json::{Value, json};

use super::{Redactor, StreamRedactor};
use crate::model::{Failure, FailureKind};
use crate::secret::{SecretRef, Secrets};

fn redactor(values: &[&str]) -> Redactor {
    let mut secrets = Secrets::default();
    for (n, value) in values.iter().enumerate() {
        secrets.insert(SecretRef::Env(format!("SECRET_{n}")), SecretString::from(*value));
    }
    Redactor::new(&secrets)
}

fn percent_encoded(text: &str, spare: impl Fn(u8) -> bool, upper: bool) -> String {
    text.bytes()
        .map(|byte| match (byte.is_ascii_alphanumeric() || spare(byte), upper) {
            (true, _) => char::from(byte).to_string(),
            (false, true) => format!("%{byte:02X}"),
            (false, false) => format!("%{byte:02x}"),
        })
        .collect()
}

fn json_inner(text: &str) -> String {
    let quoted = serde_json::to_string(text).unwrap();
    quoted[1..quoted.len() - 1].to_owned()
}

/// As programs do that write ASCII only.
fn json_ascii(text: &str) -> String {
    text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect()
}

/// The ways in which programs print a secret.
fn encodings(secret: &str) -> Vec<String> {
    let mut all = vec![
        secret.to_owned(),
        STANDARD.encode(secret),
        STANDARD_NO_PAD.encode(secret),
        URL_SAFE.encode(secret),
        URL_SAFE_NO_PAD.encode(secret),
        percent_encoded(secret, |_| false, true),
        percent_encoded(secret, |_| false, false),
        percent_encoded(secret, |byte| b"-._~".contains(&byte), true),
        percent_encoded(secret, |byte| b"-._~!$&'()*,;=:@/".contains(&byte), true),
        percent_encoded(&secret.replace(' ', "+"), |byte| byte == b'+', true),
        percent_encoded(&percent_encoded(secret, |_| false, true), |_| false, true),
        percent_encoded(&STANDARD.encode(secret), |_| false, true),
        json_inner(secret),
        json_inner(&json_inner(secret)),
        json_inner(secret).replace('/', "\\/"),
        json_ascii(secret),
    ];
    all.extend(secret.lines().map(|line| line.trim().to_owned()).filter(|line| line.len() >= 8));
    all
}

#[test]
fn a_secret_is_removed_in_every_form_and_the_rest_is_kept() {
    let secret = "p@ss w/o\"rd\\é%1";
    let redactor = redactor(&[secret]);
    for form in encodings(secret) {
        assert_eq!(redactor.text(&format!("before {form} after")), "before *** after", "{form}");
    }
    assert_eq!(redactor.text("before pass word after"), "before pass word after");
    let untouched = "100 % of C:\\new\\table and %2F%41\\u0041";
    assert_eq!(redactor.text(untouched), untouched);
}

#[test]
fn a_secret_inside_longer_base64_is_removed() {
    let secret = "correct horse battery";
    let redactor = redactor(&[secret]);
    for prefix in ["", "u:", "user:", "admin:"] {
        let header = STANDARD.encode(format!("{prefix}{secret}, and more"));
        let clean = redactor.text(&header).into_owned();
        assert!(clean.contains("***") && clean.len() < header.len() - 20, "{prefix}: {clean}");
    }
}

#[test]
fn a_key_of_several_lines_is_removed_line_by_line_and_wrapped() {
    let body: Vec<String> = (0..4).map(|n| format!("MIIEvQIBADANBgkqhkiG9w0BAQEFAASC{n}{n}{n}{n}")).collect();
    let key = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", body.join("\n"));
    let redactor = redactor(&[&key]);
    for line in &body {
        assert_eq!(redactor.text(&format!("  {line}\r")), "  ***\r");
    }
    assert_eq!(redactor.text(&json!({ "key": key }).to_string()), r#"{"key":"***"}"#);
    let encoded = STANDARD.encode(&key);
    for width in [64, 76] {
        for line in encoded.as_bytes().chunks(width).filter(|line| line.len() >= 8) {
            assert_eq!(&*redactor.bytes(line), b"***");
        }
    }
}

#[test]
fn overlapping_and_nested_secrets_leave_nothing_behind() {
    let redactor = redactor(&["abcdefgh1234", "1234wxyz90", "defgh123"]);
    assert_eq!(redactor.text("<abcdefgh1234wxyz90>"), "<***>");
    assert_eq!(redactor.text("<abcdefgh1234>"), "<***>");
    assert_eq!(redactor.text("<xdefgh123x>"), "<x***x>");
}

#[test]
fn a_secret_that_would_arise_around_a_mask_is_removed_too() {
    let redactor = redactor(&["ab***cde"]);
    assert_eq!(redactor.text("abab***cdecde"), "***");
}

#[test]
fn secrets_that_are_too_short_are_named_and_left_alone() {
    let mut secrets = Secrets::default();
    let short = SecretRef::File("/etc/pin".into());
    secrets.insert(short.clone(), SecretString::from("1234567"));
    let lines = SecretRef::Env("LINES".into());
    secrets.insert(lines.clone(), SecretString::from("one\ntwo\nthree"));
    secrets.insert(SecretRef::Env("LONG".into()), SecretString::from("12345678"));
    let redactor = Redactor::new(&secrets);
    assert_eq!(redactor.too_short(), [short, lines]);
    assert_eq!(redactor.text("1234567 12345678"), "1234567 ***");
    assert!(!format!("{redactor:?}").contains("1234567"));
}

#[test]
fn without_secrets_nothing_changes() {
    let redactor = redactor(&[]);
    assert!(matches!(redactor.text("anything %41 \\n"), std::borrow::Cow::Borrowed(_)));
    assert_eq!(StreamRedactor::new(redactor).finish(), b"");
}

#[test]
fn values_are_cleaned_in_texts_keys_and_numbers() {
    let redactor = redactor(&["hunter22!", "1234567890"]);
    let mut value = json!({
        "url": "redis://:hunter22%21@cache:6379",
        "hunter22!": [1, "xhunter22!x", { "n": 1_234_567_890 }, null, true],
        "plain": 12.5,
    });
    redactor.value(&mut value);
    let expected = json!({
        "url": "redis://:***@cache:6379",
        "***": [1, "x***x", { "n": "***" }, null, true],
        "plain": 12.5,
    });
    assert_eq!(value, expected);
}

#[test]
fn typed_things_are_cleaned_and_stay_what_they_are() {
    let redactor = redactor(&["hunter22!"]);
    let failure = |message: &str| Failure {
        kind: FailureKind::Permanent,
        code: "LB1201".into(),
        message: message.into(),
        help: None,
        causes: vec![message.into()],
    };
    assert_eq!(redactor.clean(failure("login hunter22! refused")).unwrap(), failure("login *** refused"));
    assert_eq!(redactor.clean(failure("nothing")).unwrap(), failure("nothing"));
}

#[test]
fn an_endless_line_is_passed_on_in_parts_and_without_secrets() {
    let secret = "s3cr3t-value";
    let mut stream = StreamRedactor::new(redactor(&[secret]));
    let mut clean = Vec::new();
    let mut longest = 0;
    for _ in 0..40_000 {
        clean.extend(stream.push(secret.as_bytes()));
        clean.extend(stream.push(b"--"));
        longest = longest.max(stream.pending_len());
    }
    clean.extend(stream.finish());
    let text = String::from_utf8(clean).unwrap();
    assert!(!text.contains("s3cr3t") && !text.contains("value"), "parts of it survive");
    assert_eq!(text.matches("***").count(), 40_000);
    assert!(longest < 200_000, "memory is bounded, and yet held {longest} bytes");
}

fn secret() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ -~]{8,40}",
        "[a-zA-Z0-9+/=_-]{8,64}",
        "\\PC{8,20}",
        "[!-~]{8,12}(\n[!-~]{8,12}){1,3}",
        // Secrets that resemble each other.
        "[ab]{8,12}",
    ]
    .prop_filter("blanks at the ends of lines are no part of a line", |text| {
        text.lines().all(|line| line.trim() == line && line.len() >= 8) && text.trim() == *text
    })
}

/// Text around secrets, of characters that no secret's encoding needs.
fn filler() -> impl Strategy<Value = String> {
    "[#<>|]{0,6}"
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn planted_secrets_never_survive(
        secrets in proptest::collection::vec(secret(), 1..4),
        picks in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), filler()), 1..5),
    ) {
        let values: Vec<&str> = secrets.iter().map(String::as_str).collect();
        let redactor = redactor(&values);
        let mut text = String::new();
        let mut planted = Vec::new();
        for (which, how, filler) in &picks {
            let forms = encodings(which.get::<&str>(&values));
            let form = how.get(&forms).clone();
            text.push_str(filler);
            text.push_str(&form);
            planted.push(form);
        }
        let clean = redactor.text(&text).into_owned();
        for form in planted {
            prop_assert!(!clean.contains(&form), "`{form}` is in `{clean}`");
        }
        for secret in &values {
            prop_assert!(!clean.contains(secret), "`{secret}` is in `{clean}`");
        }
        let filler = picks.iter().map(|(_, _, filler)| filler.len()).sum::<usize>();
        prop_assert!(clean.len() <= filler + 4 * picks.len() + 3 * picks.len(), "`{clean}` keeps too much");

        let mut value = json!([{ "a": text.clone() }, Value::String(text)]);
        redactor.value(&mut value);
        prop_assert_eq!(value, json!([{ "a": clean.clone() }, clean]));
    }

    #[test]
    fn the_pieces_of_a_stream_make_no_difference(
        secret in "[a-z0-9%+\\\\ ]{8,20}",
        lines in proptest::collection::vec("[a-z ]{0,9}", 1..6),
        cuts in proptest::collection::vec(1usize..9, 1..40),
    ) {
        prop_assume!(secret.trim() == secret);
        let redactor = redactor(&[&secret]);
        let text: String = lines.iter().map(|line| format!("{line}{secret}{line}\n")).collect();
        let expected: Vec<u8> =
            text.split_inclusive('\n').flat_map(|line| redactor.bytes(line.as_bytes()).into_owned()).collect();

        let mut stream = StreamRedactor::new(redactor);
        let (mut clean, mut rest) = (Vec::new(), text.as_bytes());
        for size in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, left) = rest.split_at((*size).min(rest.len()));
            clean.extend(stream.push(piece));
            rest = left;
        }
        clean.extend(stream.finish());
        prop_assert_eq!(String::from_utf8_lossy(&clean), String::from_utf8_lossy(&expected));
    }
}
