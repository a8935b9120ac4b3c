//! What the tests of this crate share: throwaway servers, and a way to run one step without an engine.

#![allow(
    dead_code,
    reason = "each test program uses a part of it; an expectation would fail in one that uses all"
)]

pub(crate) mod link;
pub(crate) mod postgres;
pub(crate) mod redis;
pub(crate) mod web;
