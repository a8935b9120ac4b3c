use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use proptest::prelude::*;
use secrecy::SecretString;
use serde_json::{Value, json};

use super::Redactor;
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
fn a_word_of_the_plan_is_left_alone_and_named_and_a_long_one_is_removed_all_the_same() {
    let mut secrets = Secrets::default();
    let [word, long, other] = ["WORD", "LONG", "OTHER"].map(|name| SecretRef::Env(name.into()));
    secrets.insert(word.clone(), "postgres".into());
    secrets.insert(long.clone(), "pasted-into-a-runbook".into());
    secrets.insert(other, "hunter22!".into());
    let found =
        secrets.found_in(r#"{"data_dir":"/var/lib/postgresql","script":"curl -u pasted-into-a-runbook"}"#);
    let named: Vec<_> = found.into_iter().map(|it| (it.reference, it.removed)).collect();
    assert_eq!(named, [(long, true), (word, false)]);
    let text = "hunter22! for pasted-into-a-runbook in /var/lib/postgresql";
    assert_eq!(secrets.redactor().text(text), "*** for *** in /var/lib/postgresql");
}

#[test]
fn without_secrets_nothing_changes() {
    let redactor = redactor(&[]);
    assert!(matches!(redactor.text("anything %41 \\n"), std::borrow::Cow::Borrowed(_)));
    assert_eq!((redactor.cut(b"anything", 3), redactor.cut_after(b"anything", 3)), (3, 3));
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
fn a_text_is_cut_beside_a_secret_and_never_within() {
    let secret = "s3cr3t-v%lue";
    let redactor = redactor(&[secret]);
    let text = format!("abc {} def", percent_encoded(secret, |_| false, true)).into_bytes();
    let (begin, end) = (4, text.len() - 4);
    for at in 0..=text.len() {
        let inside = begin < at && at < end;
        assert_eq!(redactor.cut(&text, at), if inside { begin } else { at });
        assert_eq!(redactor.cut_after(&text, at), if inside { end } else { at });
    }
}

#[test]
fn what_shells_databases_and_pages_make_of_a_secret_is_removed() {
    let secret = "it's <b>&\"c d\\e\u{e9}$f";
    let redactor = redactor(&[secret]);
    let shown = [
        // printf %q, single quotes of a shell, those of Python's shlex.
        r#"it\'s\ \<b\>\&\"c\ d\\e"#.to_owned() + "\u{e9}\\$f",
        format!("'{}'", secret.replace('\'', r"'\''")),
        format!("'{}'", secret.replace('\'', r#"'"'"'"#)),
        r#"$'it\'s <b>&"c d\\e\303\251$f'"#.to_owned(),
        // SQL, CSV, debugging output of Rust and Python, hexadecimal.
        format!("'{}'", secret.replace('\'', "''")),
        format!("\"{}\"", secret.replace('"', "\"\"")),
        format!("{secret:?}"),
        r#"b'it\'s <b>&"c d\\e\xc3\xa9$f'"#.to_owned(),
        secret.bytes().map(|byte| format!("{byte:02x}")).collect(),
        secret.bytes().map(|byte| format!("{byte:02X}")).collect(),
        // Pages.
        "it&#39;s &lt;b&gt;&amp;&quot;c d\\e&#233;$f".to_owned(),
        "it&#x27;s &lt;b&gt;&amp;&#34;c d\\e&#xE9;$f".to_owned(),
        // Within something that is escaped again.
        serde_json::to_string(&format!("'{}'", secret.replace('\'', r"'\''"))).unwrap(),
        percent_encoded("it&#39;s &lt;b&gt;&amp;&quot;c d\\e&#233;$f", |_| false, true),
    ];
    for form in shown {
        let clean = redactor.text(&format!("<< {form} >>")).into_owned();
        let rest = clean.replace("***", "");
        assert!(clean.contains("***"), "{form} stays {clean}");
        assert!(rest.len() <= "<< \"''\" >>".len() + 2, "{form} becomes {clean}");
    }
}

#[test]
fn a_document_is_removed_by_its_fields_too() {
    let key = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG\n9w0BAQEFAASC\n-----END PRIVATE KEY-----\n";
    let account = json!({
        "type": "service_account", "project_id": "members-production",
        "private_key": key, "nested": { "tokens": ["tok-12345678"], "pin": 1_234_567_890 },
    });
    let redactor =
        redactor(&[&account.to_string(), "# login\nexport DB_PASSWORD=\"open sesame!\"\nDB_HOST=short\n"]);
    for line in key.lines() {
        assert_eq!(redactor.text(&format!("> {line}")), "> ***");
    }
    assert_eq!(redactor.text("tok-12345678, 1234567890, open sesame!"), "***, ***, ***");
    assert_eq!(
        redactor.text("members-production as service_account"),
        "members-production as service_account"
    );
}

#[test]
fn parts_of_a_secret_in_broken_lines_of_base64_and_hexadecimal_are_removed() {
    let secret = "a rather long secret, as keys are: 0123456789-abcdefghijklmnopqrstuvwxyz-0123456789";
    let redactor = redactor(&[secret]);
    for prefix in 0..80 {
        let text = format!("{}{secret}\n", "~".repeat(prefix));
        let base64 = STANDARD.encode(&text).into_bytes();
        let hex: Vec<u8> = text.bytes().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect();
        for (encoded, width, most) in [(base64, 76, 16), (hex, 60, 16)] {
            for line in encoded.chunks(width) {
                let clean = redactor.bytes(line);
                let plain = match most {
                    _ if width == 76 => STANDARD.decode(line).unwrap(),
                    _ => line
                        .chunks(2)
                        .map(|byte| u8::from_str_radix(std::str::from_utf8(byte).unwrap(), 16).unwrap())
                        .collect(),
                };
                let of_secret = plain.iter().filter(|byte| !b"~\n".contains(byte)).count();
                let masked = clean.windows(3).any(|window| window == b"***");
                assert!(of_secret < 12 || masked, "{prefix}, {width}: {}", String::from_utf8_lossy(&clean));
                if masked {
                    let left = clean.len() - 3 - line.len() * (plain.len() - of_secret) / plain.len();
                    assert!(left <= most, "{prefix}, {width}: {}", String::from_utf8_lossy(&clean));
                }
            }
        }
    }
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
}
