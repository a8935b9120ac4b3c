//! `lifeboat wal`: what Postgres calls. Nothing here loads a project or starts a runtime, because it runs once for
//! every segment.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use lifeboat_steps::postgres::wal::{WalExit, get_main, put_main};

use crate::args::WalCommand;

/// Runs `wal get` if the command line is exactly what a recovery calls; `None` if it is anything else.
pub(crate) fn get_at_once() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    let expected = ["wal", "get", "--socket"];
    if !expected.iter().all(|word| args.next().is_some_and(|arg| arg == *word)) {
        return None;
    }
    let (socket, name, path) = (args.next()?, args.next()?, args.next()?);
    // `--help` and the like are for the proper parser.
    let plain = |arg: &OsString| !arg.as_encoded_bytes().starts_with(b"-");
    if args.next().is_some() || ![&socket, &name, &path].into_iter().all(plain) {
        return None;
    }
    Some(exit(get_main(Path::new(&socket), name.to_str()?, Path::new(&path))))
}

/// Runs a WAL command and returns the exit code that Postgres expects.
pub(crate) fn wal(command: &WalCommand) -> ExitCode {
    exit(match command {
        WalCommand::Put { config, path, name } => put_main(config, path, name),
        WalCommand::Get { socket, name, path } => get_main(socket, name, path),
    })
}

fn exit(WalExit { code, message }: WalExit) -> ExitCode {
    if !message.is_empty() {
        crate::say::say!("lifeboat: {message}");
    }
    // Both commands only ever end with codes of one byte; 255 stops a recovery, which is the safe side.
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}
