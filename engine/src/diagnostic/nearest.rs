/// Returns the candidate that was most likely meant: at most two edits away, and never a different short word.
pub fn nearest<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = match text.chars().count() {
        0..=2 => 0,
        3..=4 => 1,
        _ => 2,
    };
    // Whatever was built to cost much is not worth a suggestion.
    const LONGEST: usize = 200;
    let near = |candidate: &&str| *candidate != text && candidate.len().abs_diff(text.len()) <= 8;
    let candidates = candidates.into_iter().filter(near).filter(|_| text.len() < LONGEST);
    candidates
        .map(|candidate| (strsim::osa_distance(text, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= allowed || same_but_for_spelling(text, candidate))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Says the nearest candidate, else lists them all if they are few.
pub fn nearest_help<'a>(
    text: &str,
    what: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    const FEW: usize = 12;
    let candidates: Vec<_> = candidates.into_iter().collect();
    if let Some(near) = nearest(text, candidates.iter().copied()) {
        return Some(format!("did you mean `{near}`?"));
    }
    match candidates.len() {
        0 => None,
        1..=FEW => Some(format!("{what}: {}", candidates.join(", "))),
        _ => None,
    }
}

fn same_but_for_spelling(a: &str, b: &str) -> bool {
    let plain = |text: &str| text.replace(['-', '_', ' '], "").to_ascii_lowercase();
    plain(a) == plain(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_transposed_letters_and_no_unrelated_words() {
        let keys = ["timeout", "title", "retry", "if", "id"];
        assert_eq!(nearest("timeuot", keys), Some("timeout"));
        assert_eq!(nearest("time-out", keys), Some("timeout"));
        assert_eq!(nearest("of", keys), None);
        assert_eq!(nearest("banana", keys), None);
    }
}
