//! `lifeboat wal`: what Postgres calls. Nothing here loads a project or starts a runtime, because it runs once for
//! every segment.

use crate::args::WalCommand;
use lifeboat_steps::postgres::wal::WalExit;
use std::process::ExitCode;

/// Runs a WAL command and returns the exit code that Postgres expects.
pub(crate) fn wal(command: &WalCommand) -> ExitCode {
    let WalExit { code, message } = match command {
        WalCommand::Put { config, path, name } => lifeboat_steps::postgres::wal::put_main(config, path, name),
        WalCommand::Get { socket, name, path } => lifeboat_steps::postgres::wal::get_main(socket, name, path),
    };
    if !message.is_empty() {
        crate::say::say!("lifeboat: {message}");
    }
    // Both commands only ever end with codes of one byte; 255 stops a recovery, which is the safe side.
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}
