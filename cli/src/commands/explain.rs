//! `lifeboat explain`: the page of an error code.

use lifeboat_engine::code::Code;

use crate::exit::{Exit, Failure, Outcome};

/// Prints why a code matters and how to mend it.
pub(crate) fn explain(wanted: &str) -> Outcome {
    let id = wanted.trim().to_ascii_uppercase();
    let Some(code) = all().find(|code| code.id == id) else {
        let help = match nearest_code(&id) {
            Some(near) => {
                format!("did you mean {}, {}? try `lifeboat explain {}`", near.id, near.title, near.id)
            }
            None => "codes look like LB0104; they stand in brackets in front of each message".to_owned(),
        };
        return Err(Failure::usage(format!("there is no error code `{wanted}`")).help(help));
    };
    crate::say::putln!("{}: {}\n\n{}", code.id, code.title, code.page.trim_end());
    Ok(Exit::Success)
}

/// Finds the code that was probably meant: written without letters or zeros, else the one with the nearest number.
fn nearest_code(id: &str) -> Option<&'static Code> {
    let number = |id: &str| id.trim_start_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().ok();
    let wanted = number(id)?;
    all()
        .filter_map(|code| Some((number(code.id)?.abs_diff(wanted), code)))
        .min_by_key(|it| it.0)
        .map(|it| it.1)
}

fn all() -> impl Iterator<Item = &'static Code> {
    lifeboat_engine::codes().chain(lifeboat_steps::codes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_code_written_otherwise_is_found() {
        for (wanted, near) in
            [("104", "LB0104"), ("LB104", "LB0104"), ("E0104", "LB0104"), ("LB0129", "LB0128")]
        {
            assert_eq!(nearest_code(wanted).map(|code| code.id), Some(near), "{wanted}");
        }
        assert!(nearest_code("help").is_none());
    }

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
