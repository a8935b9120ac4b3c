//! What the tests of several families share. Declare it with `pub mod support;`, so that what one of them does not
//! use is no dead code.

pub mod archive;
pub mod backup;
pub mod bucket;
pub mod certs;
pub mod faulty_disk;
pub mod flaky;
pub mod journey;
pub mod keeper;
pub mod killed;
pub mod mariadb;
pub mod moto;
pub mod port;
pub mod postgres;
pub mod proxy;
pub mod redis;
pub mod rig;
pub mod web;
