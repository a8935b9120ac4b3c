//! Which lines of a file change, without a word of what may be secret.

/// More lines than this are not compared one by one.
const MOST_LINES: usize = 2000;
/// So many changes are shown.
const SHOWN: usize = 100;

/// Says which lines change, for people. `new` is what will be written; `shown` is the same with secrets left out. Lines of
/// the file that is there are named by their numbers only: what is in them may be secret.
pub(super) fn changes(old: &str, new: &str, shown: &str) -> Vec<String> {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let shown: Vec<&str> = shown.lines().collect();
    let text = |at: usize| match shown.len() == new.len() {
        true => shown[at].to_owned(),
        // A secret of several lines: nobody knows which line is which.
        false => "(not shown)".to_owned(),
    };
    let (gone, come) = differences(&old, &new);
    let gone = gone.into_iter().map(|at| (at, format!("- line {} of the file that is there", at + 1)));
    let come = come.into_iter().map(|at| (at, format!("+ {}: {}", at + 1, text(at))));
    let mut all: Vec<(usize, String)> = gone.chain(come).collect();
    all.sort_by_key(|(at, _)| *at);
    let more = all.len().saturating_sub(SHOWN);
    let mut all: Vec<String> = all.into_iter().take(SHOWN).map(|(_, text)| text).collect();
    if more > 0 {
        all.push(format!("and {more} more"));
    }
    all
}

/// Returns the numbers of the lines that go and of those that come.
fn differences(old: &[&str], new: &[&str]) -> (Vec<usize>, Vec<usize>) {
    let before = old.iter().zip(new).take_while(|(old, new)| old == new).count();
    let (old_rest, new_rest) = (&old[before..], &new[before..]);
    let after = old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(|(old, new)| old == new).count();
    let (old_rest, new_rest) = (&old_rest[..old_rest.len() - after], &new_rest[..new_rest.len() - after]);
    let (gone, come) = if old_rest.len().max(new_rest.len()) > MOST_LINES {
        ((0..old_rest.len()).collect(), (0..new_rest.len()).collect())
    } else {
        longest_common(old_rest, new_rest)
    };
    let later = |found: Vec<usize>| found.into_iter().map(|at| at + before).collect();
    (later(gone), later(come))
}

/// Leaves out the longest common subsequence.
fn longest_common(old: &[&str], new: &[&str]) -> (Vec<usize>, Vec<usize>) {
    let width = new.len() + 1;
    let mut lengths = vec![0_u32; (old.len() + 1) * width];
    for (i, line) in old.iter().enumerate().rev() {
        for (j, other) in new.iter().enumerate().rev() {
            lengths[i * width + j] = if line == other {
                lengths[(i + 1) * width + j + 1] + 1
            } else {
                lengths[(i + 1) * width + j].max(lengths[i * width + j + 1])
            };
        }
    }
    let (mut gone, mut come, mut i, mut j) = (Vec::new(), Vec::new(), 0, 0);
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            (i, j) = (i + 1, j + 1);
        } else if j == new.len()
            || (i < old.len() && lengths[(i + 1) * width + j] >= lengths[i * width + j + 1])
        {
            gone.push(i);
            i += 1;
        } else {
            come.push(j);
            j += 1;
        }
    }
    (gone, come)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn changed_lines_are_shown_without_what_was_there() {
        let old = "PORT=80\nPASSWORD=old secret\nDEBUG=no\n";
        let new = "PORT=8080\nPASSWORD=new secret\nDEBUG=no\nEXTRA=1\n";
        let shown = "PORT=8080\nPASSWORD=<secret>\nDEBUG=no\nEXTRA=1\n";
        assert_eq!(
            changes(old, new, shown),
            [
                "- line 1 of the file that is there",
                "+ 1: PORT=8080",
                "- line 2 of the file that is there",
                "+ 2: PASSWORD=<secret>",
                "+ 4: EXTRA=1",
            ]
        );
        assert_eq!(changes(new, new, shown), Vec::<String>::new());
        assert_eq!(changes("", "a\nb\n", "<key>\n"), ["+ 1: (not shown)", "+ 2: (not shown)"]);
    }

    proptest! {
        #[test]
        fn what_does_not_change_is_the_same_on_both_sides(
            old in proptest::collection::vec("[abc]", 0..12), new in proptest::collection::vec("[abc]", 0..12),
        ) {
            let (old, new): (Vec<&str>, Vec<&str>) =
                (old.iter().map(String::as_str).collect(), new.iter().map(String::as_str).collect());
            let (gone, come) = differences(&old, &new);
            let keep = |all: &[&str], without: &[usize]| -> Vec<String> {
                let kept = all.iter().enumerate().filter(|(at, _)| !without.contains(at));
                kept.map(|(_, line)| (*line).to_owned()).collect()
            };
            prop_assert_eq!(keep(&old, &gone), keep(&new, &come));
        }
    }
}
