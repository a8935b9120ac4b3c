/// Says whether a key's value is likely to be a secret.
pub fn is_secret_key(key: &str) -> bool {
    const PARTS: &[&str] = &[
        "password",
        "passwd",
        "passphrase",
        "token",
        "apikey",
        "api_key",
        "private_key",
        "secret_key",
        "access_key",
        "credential",
        "webhook",
    ];
    let key = key.to_ascii_lowercase().replace('-', "_");
    PARTS.iter().any(|part| key.contains(part)) || key.ends_with("_secret") || key.ends_with("_pass")
}

/// Replaces values under secret-like keys, and passwords in URLs, with stars, byte for byte, so that positions in
/// the text stay what they are.
pub fn mask_secrets(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    // The indentation of a secret key whose block of lines follows.
    let mut hidden: Option<usize> = None;
    for line in text.split_inclusive('\n') {
        let indent = line.len() - line.trim_start_matches([' ', '-']).len();
        let blank = line.trim().is_empty();
        if hidden.is_some_and(|outer| blank || indent > outer) {
            masked.push_str(&stars(line));
            continue;
        }
        hidden = None;
        let (line, opens_block) = mask_line(line);
        if opens_block {
            hidden = Some(indent);
        }
        masked.push_str(&mask_url_passwords(&line));
    }
    masked
}

/// Masks the values of one line, and says whether the value follows on deeper lines.
fn mask_line(line: &str) -> (String, bool) {
    let mut result = line.to_owned();
    let mut from = 0;
    while let Some(colon) = line[from..].find(':').map(|at| at + from) {
        from = colon + 1;
        let key = line[..colon].trim_end_matches(['"', '\'']);
        let key_start = key
            .rfind(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-'))
            .map_or(0, |at| at + key[at..].chars().next().map_or(1, char::len_utf8));
        if !is_secret_key(&key[key_start..]) || !line[from..].starts_with([' ', '\n', '\r', '\t']) {
            continue;
        }
        let value = line[from..].trim_start();
        let start = line.len() - value.len();
        if value.is_empty() {
            continue;
        }
        if value.starts_with(['|', '>']) {
            return (result, true);
        }
        if value.starts_with(['{', '[', '*', '&']) {
            continue;
        }
        let end = start + value_length(value, line[..key_start].contains(['{', '[']));
        result.replace_range(start..end, &stars(&line[start..end]));
        from = end;
    }
    (result, false)
}

fn value_length(value: &str, in_flow: bool) -> usize {
    if let Some(quote) = value.chars().next().filter(|c| matches!(c, '"' | '\'')) {
        return value[1..].rfind(quote).map_or(value.len(), |at| at + 2);
    }
    let end = if in_flow { value.find([',', '}', ']', '\n']) } else { value.find('\n') };
    value[..end.unwrap_or(value.len())].trim_end().len()
}

fn mask_url_passwords(line: &str) -> String {
    let mut result = line.to_owned();
    let mut from = 0;
    while let Some(at) = line[from..].find("://").map(|at| at + from + 3) {
        from = at;
        let end = line[at..].find(['/', ' ', '"', '\'', '\n', ',', '}']).map_or(line.len(), |end| end + at);
        let Some(host) = line[at..end].rfind('@').map(|host| host + at) else { continue };
        let start = line[at..host].find(':').map_or(at, |colon| colon + at + 1);
        result.replace_range(start..host, &stars(&line[start..host]));
    }
    result
}

fn stars(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut stars, c| {
        if matches!(c, '\n' | '\r' | ' ') {
            stars.push(c)
        } else {
            stars.push_str(&"*".repeat(c.len_utf8()))
        }
        stars
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hides_values_and_keeps_positions() {
        for (plain, masked) in [
            ("password: hunter2\n", "password: *******\n"),
            ("db: { api_key: abc, port: 1 }", "db: { api_key: ***, port: 1 }"),
            ("password: { file: /etc/x }", "password: { file: /etc/x }"),
            ("url: postgres://u:pä@h/db", "url: postgres://u:***@h/db"),
            ("token: |\n  one\n  two\nport: 1\n", "token: |\n  ***\n  ***\nport: 1\n"),
            ("\"token\": \"x, y\" # c", "\"token\": *** ** # c"),
            ("env: { KEY: { secret: app_key } }", "env: { KEY: { secret: app_key } }"),
        ] {
            let result = mask_secrets(plain);
            assert_eq!(result, masked);
            assert_eq!(result.len(), plain.len());
        }
    }
}
