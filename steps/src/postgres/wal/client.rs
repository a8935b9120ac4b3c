//! What `restore_command` runs.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::WalExit;
use super::protocol::{Reply, read_reply, write_request, write_taken};

/// How long the helper may be silent. It retries for less than this before it gives an answer.
const PATIENCE: Duration = Duration::from_mins(5);

/// Delivers one file: `name` is `%f`, `dest` is `%p`.
///
/// Exit code 0: `dest` holds the verified file; the server makes it durable itself when it gives the file its name.
/// 1: the helper has proven that the archive lacks it. 255: anything else, after which Postgres stops and can be
/// started again. Never panics and takes no other exit.
pub fn get_main(socket: &Path, name: &str, dest: &Path) -> WalExit {
    match get(socket, name, dest) {
        Ok(Found::Delivered) => WalExit::silent(0),
        Ok(Found::Absent) => WalExit::silent(1),
        Err(error) => WalExit { code: 255, message: format!("{name} was not delivered: {error}") },
    }
}

enum Found {
    Delivered,
    Absent,
}

fn get(socket: &Path, name: &str, dest: &Path) -> io::Result<Found> {
    let mut stream = UnixStream::connect(socket)
        .map_err(|error| io::Error::other(format!("no helper answers at {}: {error}", socket.display())))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write_request(&mut stream, name)?;
    match read_reply(&mut stream)? {
        Reply::Absent => Ok(Found::Absent),
        Reply::Failed(message) => Err(io::Error::other(message)),
        Reply::File(path) => {
            take(&path, dest)?;
            write_taken(&mut stream)?;
            Ok(Found::Delivered)
        }
        Reply::Delivered(length) => {
            let temporary = temporary(dest);
            let written = write(&mut stream, length, &temporary).and_then(|()| publish(&temporary, dest));
            if written.is_err() {
                std::fs::remove_file(&temporary).ok();
            }
            written.map(|()| Found::Delivered)
        }
    }
}

/// Moves a file to where it is wanted, without copying it if both are on one file system.
fn take(path: &Path, dest: &Path) -> io::Result<()> {
    match std::fs::rename(path, dest) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {}
        other => return other,
    }
    let temporary = temporary(dest);
    let moved = std::fs::copy(path, &temporary).and_then(|_| std::fs::rename(&temporary, dest));
    if moved.is_err() {
        std::fs::remove_file(&temporary).ok();
    }
    moved
}

/// Beside the destination and always the same, so that a killed client leaves one file at most.
fn temporary(dest: &Path) -> PathBuf {
    let mut name = dest.as_os_str().to_owned();
    name.push(".lifeboat");
    name.into()
}

fn write(from: &mut impl Read, length: u64, to: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(to)?;
    let copied = io::copy(&mut from.take(length), &mut file)?;
    if copied != length {
        return Err(io::Error::other(format!("the helper went away after {copied} of {length} bytes")));
    }
    file.sync_all()
}

fn publish(temporary: &Path, dest: &Path) -> io::Result<()> {
    std::fs::rename(temporary, dest)?;
    let dir = dest.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}
