//! YAML 1.2 as a tree that knows where everything stands. The only module that knows the parser.
//!
//! Scalars keep the text as written; what a plain scalar means is decided by our own rules ([`Scalar::resolve`]):
//! the core schema of YAML 1.2, so that `no` is a word and `1.10` stays `1.10` where text is wanted. Aliases and
//! merge keys are expanded here, within limits.

mod node;
mod parse;
mod quick;
mod scalar;
mod words;

pub use node::{Content, Entry, Key, Node, Scalar};
pub use parse::parse;
pub use scalar::{Doubt, Resolved};
