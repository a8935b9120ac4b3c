//! Real MariaDB servers: made, asked, dumped, restored, and their binary log replayed to a moment.

mod binlog;
mod change;
mod dump;
mod faults;
mod gone;
mod killed;
mod servers;
#[path = "../support/mod.rs"]
pub mod support;
mod tls;
