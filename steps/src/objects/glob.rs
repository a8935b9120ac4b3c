//! Names with `*` and `?` in them.

/// Says whether a name fits: `*` stands for any characters, `/` included, and `?` for one.
pub(super) fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<_>, Vec<_>) = (pattern.chars().collect(), name.chars().collect());
    // Where the last `*` was, and up to where it stands for what it passed.
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == '?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((at, passed)) = star else { return false };
                star = Some((at, passed + 1));
                (p, n) = (at + 1, passed + 1);
            }
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_question_marks() {
        for (pattern, name) in [
            ("*.dump", "a/b.dump"),
            ("db-????.sql", "db-2026.sql"),
            ("*", ""),
            ("a*b*c", "aXbYbZc"),
            ("ä?", "äö"),
        ] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("*.dump", "a.dump.gz"), ("?", ""), ("a*b", "ac"), ("", "a"), ("a", "A")] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
        // Grows with the product of both lengths, not beyond.
        assert!(!fits(&"*a".repeat(40), &"a".repeat(39)));
    }
}
