//! Keeping secrets out of everything that is shown or stored.
//!
//! A secret is found as it is, line by line, in base64 (wrapped, without padding, or in the midst of something longer
//! such as `user:password`), and behind any mixture of percent and backslash escapes, two layers deep.

mod forms;
mod redactor;
mod stream;
#[cfg(test)]
mod tests;
mod views;

pub use redactor::Redactor;
pub use stream::StreamRedactor;
