//! To come in the commit that follows.

pub mod codes;
