//! `lifeboat explain`: the page of an error code.

use lifeboat_engine::code::Code;

use crate::exit::{Exit, Failure, Outcome};

/// Prints why a code matters and how to mend it.
pub(crate) fn explain(wanted: &str) -> Outcome {
    let id = wanted.trim().to_ascii_uppercase();
    let Some(code) = all().find(|code| code.id == id) else {
        return Err(Failure::usage(format!("there is no error code `{wanted}`"))
            .help("codes look like LB0104; they stand in brackets in front of each message"));
    };
    anstream::println!("{}: {}\n\n{}", code.id, code.title, code.page.trim_end());
    Ok(Exit::Success)
}

fn all() -> impl Iterator<Item = &'static Code> {
    lifeboat_engine::codes().chain(lifeboat_steps::codes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_code_is_declared_once_and_says_something() {
        let mut seen = BTreeSet::new();
        for code in all() {
            assert!(seen.insert(code.id), "{} is declared twice", code.id);
            assert!(code.page.trim().len() > 60, "{} has hardly a page", code.id);
        }
        assert!(seen.len() > 50, "codes of every family are here: {}", seen.len());
    }
}
