//! What helper and client say to each other: one request a connection.
//!
//! ```text
//! client:  length (u16), name
//! helper:  'F', length (u64), path         delivered and verified: a file to be renamed
//!          'D', length (u64), bytes        delivered and verified: a small one, as it is
//!          'A'                             proven absent
//!          'E', length (u64), message      anything else
//! client:  'K'                             after 'F': the file is where it was wanted
//! ```
//! Numbers are little-endian. A connection that ends early is anything else, too.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

pub(super) enum Reply {
    /// The file is to be renamed, and that to be acknowledged.
    File(PathBuf),
    /// The bytes follow.
    Delivered(u64),
    Absent,
    Failed(String),
}

const LONGEST_MESSAGE: u64 = 64 * 1024;
const TAKEN: [u8; 1] = *b"K";

pub(super) fn write_request(to: &mut impl Write, name: &str) -> io::Result<()> {
    let length = u16::try_from(name.len()).map_err(|_| io::Error::other("the name is too long"))?;
    to.write_all(&[&length.to_le_bytes()[..], name.as_bytes()].concat())
}

pub(super) fn read_request(from: &mut impl Read) -> io::Result<String> {
    let mut length = [0; 2];
    from.read_exact(&mut length)?;
    let mut name = vec![0; u16::from_le_bytes(length).into()];
    from.read_exact(&mut name)?;
    String::from_utf8(name).map_err(io::Error::other)
}

pub(super) fn write_file(to: &mut impl Write, path: &Path) -> io::Result<()> {
    write_text(to, b'F', path.as_os_str().as_bytes())
}

pub(super) fn write_delivered(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    write_text(to, b'D', bytes)
}

pub(super) fn write_absent(to: &mut impl Write) -> io::Result<()> {
    to.write_all(b"A")
}

pub(super) fn write_failed(to: &mut impl Write, message: &str) -> io::Result<()> {
    write_text(to, b'E', message.as_bytes())
}

fn write_text(to: &mut impl Write, tag: u8, text: &[u8]) -> io::Result<()> {
    to.write_all(&[&[tag][..], &(text.len() as u64).to_le_bytes(), text].concat())
}

pub(super) fn write_taken(to: &mut impl Write) -> io::Result<()> {
    to.write_all(&TAKEN)
}

pub(super) fn read_taken(from: &mut impl Read) -> io::Result<()> {
    let mut tag = [0];
    from.read_exact(&mut tag)?;
    if tag == TAKEN { Ok(()) } else { Err(io::Error::other(format!("the client said {:#04x}", tag[0]))) }
}

pub(super) fn read_reply(from: &mut impl Read) -> io::Result<Reply> {
    let mut tag = [0];
    from.read_exact(&mut tag)?;
    match tag[0] {
        b'A' => Ok(Reply::Absent),
        b'D' => read_length(from).map(Reply::Delivered),
        b'F' => Ok(Reply::File(OsString::from_vec(read_text(from)?).into())),
        b'E' => Ok(Reply::Failed(String::from_utf8_lossy(&read_text(from)?).into_owned())),
        other => Err(io::Error::other(format!("the helper said {other:#04x}"))),
    }
}

fn read_text(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let length = read_length(from)?.min(LONGEST_MESSAGE);
    let mut text = Vec::new();
    from.take(length).read_to_end(&mut text)?;
    if text.len() as u64 == length { Ok(text) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn read_length(from: &mut impl Read) -> io::Result<u64> {
    let mut length = [0; 8];
    from.read_exact(&mut length)?;
    Ok(u64::from_le_bytes(length))
}
