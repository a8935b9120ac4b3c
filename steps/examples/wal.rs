//! `lifeboat wal` without the rest: `archive_command` and `restore_command` of the tests' servers.
//!
//! ```text
//! wal put --config FILE %p %f
//! wal get --socket S %f %p
//! ```

use std::path::Path;
use std::process::ExitCode;

use lifeboat_steps::postgres::wal::{WalExit, get_main, put_main};

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let exit = match args[..] {
        ["wal", "put", "--config", config, path, name] => put_main(Path::new(config), Path::new(path), name),
        ["wal", "get", "--socket", socket, name, dest] => get_main(Path::new(socket), name, Path::new(dest)),
        _ => WalExit { code: 255, message: format!("not understood: {args:?}") },
    };
    if !exit.message.is_empty() {
        eprintln!("lifeboat: {}", exit.message);
    }
    ExitCode::from(u8::try_from(exit.code).unwrap_or(u8::MAX))
}
