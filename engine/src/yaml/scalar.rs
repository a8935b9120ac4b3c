/// What a plain scalar means by the core schema of YAML 1.2.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Resolved {
    Null,
    Boolean(bool),
    Integer(i64),
    Float(f64),
    String,
}

impl Resolved {
    /// Names it for messages.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Boolean(_) => "a boolean",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a number",
            Self::String => "text",
        }
    }
}

/// Why readers, or other programs, may take a plain scalar for something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// `yes`, `no`, `on`, `off`: booleans in YAML 1.1, words in 1.2.
    OldBoolean(bool),
    /// `017`: octal in YAML 1.1, not a number in ours.
    LeadingZero,
    /// `12:30`: a number to the base 60 in YAML 1.1.
    Sexagesimal,
    /// `1_000`: a number in YAML 1.1.
    Underscore,
}

pub(super) fn resolve(text: &str) -> Resolved {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Resolved::Null,
        "true" | "True" | "TRUE" => Resolved::Boolean(true),
        "false" | "False" | "FALSE" => Resolved::Boolean(false),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "-.inf" | ".nan" | ".NaN" | ".NAN" => Resolved::String,
        _ => number(text),
    }
}

fn number(text: &str) -> Resolved {
    let radix =
        |digits: &str, radix| i64::from_str_radix(digits, radix).map_or(Resolved::String, Resolved::Integer);
    if let Some(digits) = text.strip_prefix("0x").filter(|digits| all(digits, u8::is_ascii_hexdigit)) {
        return radix(digits, 16);
    }
    if let Some(digits) = text.strip_prefix("0o").filter(|digits| all(digits, |b| (b'0'..=b'7').contains(b)))
    {
        return radix(digits, 8);
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if leading_zero(unsigned) {
        return Resolved::String;
    }
    if all(unsigned, u8::is_ascii_digit) {
        return text.parse().map_or(Resolved::String, Resolved::Integer);
    }
    let numeric = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && unsigned.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'))
        && unsigned.bytes().any(|b| b.is_ascii_digit());
    if !numeric {
        return Resolved::String;
    }
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Resolved::Float(value),
        _ => Resolved::String,
    }
}

pub(super) fn doubt(text: &str) -> Option<Doubt> {
    let old = [("yes", true), ("on", true), ("no", false), ("off", false)];
    if let Some((_, truth)) = old.iter().find(|(word, _)| text.eq_ignore_ascii_case(word)) {
        return Some(Doubt::OldBoolean(*truth));
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if !unsigned.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    if leading_zero(unsigned) {
        return Some(Doubt::LeadingZero);
    }
    let parts: Vec<_> = unsigned.split(':').collect();
    if parts.len() > 1
        && parts.iter().all(|part| (1..=2).contains(&part.len()) && all(part, u8::is_ascii_digit))
    {
        return Some(Doubt::Sexagesimal);
    }
    let plain = unsigned.replace('_', "");
    (plain.len() < unsigned.len() && all(&plain, u8::is_ascii_digit)).then_some(Doubt::Underscore)
}

fn leading_zero(unsigned: &str) -> bool {
    unsigned.len() > 1 && unsigned.starts_with('0') && all(unsigned, u8::is_ascii_digit)
}

fn all(text: &str, test: impl Fn(&u8) -> bool) -> bool {
    !text.is_empty() && text.as_bytes().iter().all(test)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_follow_the_core_schema() {
        for (text, expected) in [
            ("", Resolved::Null),
            ("~", Resolved::Null),
            ("true", Resolved::Boolean(true)),
            ("yes", Resolved::String),
            ("12", Resolved::Integer(12)),
            ("-12", Resolved::Integer(-12)),
            ("0x1F", Resolved::Integer(31)),
            ("0o17", Resolved::Integer(15)),
            ("017", Resolved::String),
            ("0", Resolved::Integer(0)),
            ("1.5e3", Resolved::Float(1500.0)),
            (".5", Resolved::Float(0.5)),
            ("1_000", Resolved::String),
            ("1.2.3", Resolved::String),
            ("e5", Resolved::String),
            ("99999999999999999999", Resolved::String),
            ("inf", Resolved::String),
        ] {
            assert_eq!(resolve(text), expected, "{text}");
        }
    }

    #[test]
    fn doubtful_scalars_are_known() {
        assert_eq!(doubt("NO"), Some(Doubt::OldBoolean(false)));
        assert_eq!(doubt("0644"), Some(Doubt::LeadingZero));
        assert_eq!(doubt("12:30:00"), Some(Doubt::Sexagesimal));
        assert_eq!(doubt("1_000"), Some(Doubt::Underscore));
        for fine in ["0", "none", "12", "2026-11-21T03:12:00Z", "v1_2", "0.5"] {
            assert_eq!(doubt(fine), None, "{fine}");
        }
    }
}
