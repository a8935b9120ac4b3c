//! What is wrong with a file: where, why, and how to mend it.
//!
//! Every check of the language adds [`Diagnostic`]s to one [`Diagnostics`], so that all problems of all files are
//! found in one pass. [`render`] turns them into text for people, JSON for programs or annotations for GitHub.

pub mod codes;
mod collect;
mod excerpt;
mod mask;
mod nearest;
mod render;
mod source;

pub use collect::{Diagnostic, Diagnostics, Fix, Label, Place, Severity};
pub use mask::{is_secret_key, mask_secrets};
pub use nearest::{nearest, nearest_help};
pub use render::{JSON_FORMAT, Style, render, to_github, to_json};
pub use source::{Position, Source};
