//! Error codes and their pages.

use std::fmt;

/// A stable name for one kind of mistake, with the page that `lifeboat explain` prints.
#[derive(Clone, Copy)]
pub struct Code {
    pub id: &'static str,
    /// What is wrong, in a few words.
    pub title: &'static str,
    /// The page in Markdown: why it matters and how to mend it.
    pub page: &'static str,
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id)
    }
}

impl PartialEq for Code {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Code {}

/// Declares codes and a table of them all, `ALL`. A code whose page is missing does not compile.
///
/// The pages stand in `docs/errors/` of the workspace, one file a code.
#[macro_export]
macro_rules! define_codes {
    ($($(#[$meta:meta])* $id:ident $title:literal;)*) => {
        $(
            $(#[$meta])*
            pub const $id: $crate::code::Code = $crate::code::Code {
                id: stringify!($id),
                title: $title,
                page: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors/", stringify!($id), ".md")),
            };
        )*
        /// Every code that this table declares, in order.
        pub const ALL: &[$crate::code::Code] = &[$($id),*];
    };
}

define_codes! {
    LB0301 "an expression of a step cannot be evaluated";
    LB0302 "an attempt took longer than its timeout";
    LB0303 "ended because the run ended";
    LB0304 "parameters do not fit the step kind";
    LB0305 "no such resource, or of the wrong kind";
    LB0306 "secret not resolved";
    LB0307 "interrupted, and must not be repeated unasked";
    LB0308 "the result is not what the step expects";
    LB0309 "step kind unknown to this version";
    LB0315 "a run that was never declared";
    LB0332 "for_each without a list";
    LB0333 "for_each with too many elements";
    LB0334 "what a step waits for did not happen";
    LB0336 "a kind that undoes nothing itself";
    LB0340 "a system that no step has made";
    LB0341 "would write a protected system";
    LB0350 "defect in a step";
    LB0351 "the journal takes nothing more";
    LB0352 "the state directory cannot be written";
    LB0353 "a result made of secrets";
    LB0371 "an approval that nobody could give";
}
