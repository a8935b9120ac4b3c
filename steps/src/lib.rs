//! The built-in step kinds of Lifeboat.
//!
//! Each family has a folder with its kinds, its error codes and a `register` function. Families may use
//! [`process`], [`store`], [`tls`] and [`service::Unit`]; they never use each other's kinds, but for
//! [`observe`], which looks with those of all others. Nothing here knows the command line.

mod backup;
mod change;
pub mod control;
pub mod files;
pub mod git;
mod home;
pub mod http;
mod keep;
pub mod logs;
pub mod mariadb;
#[cfg(feature = "s3")]
pub mod objects;
pub mod observe;
pub mod people;
pub mod postgres;
mod probe;
pub mod process;
pub mod redis;
pub mod service;
mod sql;
pub mod store;
pub mod tls;

use lifeboat_engine::code::Code;
use lifeboat_engine::step::Registry;

/// Returns a registry with every built-in kind.
pub fn registry() -> Registry {
    let mut registry = Registry::new();
    control::register(&mut registry);
    files::register(&mut registry);
    git::register(&mut registry);
    http::register(&mut registry);
    logs::register(&mut registry);
    mariadb::register(&mut registry);
    #[cfg(feature = "s3")]
    objects::register(&mut registry);
    people::register(&mut registry);
    postgres::register(&mut registry);
    redis::register(&mut registry);
    service::register(&mut registry);
    probe::register(&mut registry);
    observe::register(&mut registry);
    registry
}

/// Returns the error codes of all families, for `lifeboat explain`.
pub fn codes() -> impl Iterator<Item = &'static Code> {
    [
        control::codes::ALL,
        files::codes::ALL,
        git::codes::ALL,
        http::codes::ALL,
        logs::codes::ALL,
        mariadb::codes::ALL,
        observe::codes::ALL,
        people::codes::ALL,
        postgres::codes::ALL,
        process::codes::ALL,
        redis::codes::ALL,
        service::codes::ALL,
        store::codes::ALL,
        tls::codes::ALL,
    ]
    .into_iter()
    .flatten()
}
