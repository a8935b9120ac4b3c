//! Keeping secrets out of everything that is shown or stored.
//!
//! A secret is found as it is, line by line, field by field where it is a document, in base64 and hexadecimal (wherever
//! lines are broken, without padding, or in the midst of something longer such as `user:password`), and behind any mixture
//! of escapes and quotation, two layers deep: those of URLs, JSON, HTML, SQL, shells and the usual programming languages.

mod forms;
mod redactor;
#[cfg(test)]
mod tests;
mod views;

pub use forms::SHORTEST;
pub use redactor::Redactor;
