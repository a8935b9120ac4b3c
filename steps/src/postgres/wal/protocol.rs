//! What helper and client say to each other: one request a connection.
//!
//! ```text
//! client:  length (u16), name
//! helper:  'D', length (u64), bytes        delivered and verified
//!          'A'                             proven absent
//!          'E', length (u64), message      anything else
//! ```
//! Numbers are little-endian. A connection that ends early is anything else, too.

use std::io::{self, Read, Write};

pub(super) enum Reply {
    /// The bytes follow.
    Delivered(u64),
    Absent,
    Failed(String),
}

const LONGEST_MESSAGE: u64 = 64 * 1024;

pub(super) fn write_request(to: &mut impl Write, name: &str) -> io::Result<()> {
    let length = u16::try_from(name.len()).map_err(|_| io::Error::other("the name is too long"))?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(name.as_bytes())
}

pub(super) fn read_request(from: &mut impl Read) -> io::Result<String> {
    let mut length = [0; 2];
    from.read_exact(&mut length)?;
    let mut name = vec![0; u16::from_le_bytes(length).into()];
    from.read_exact(&mut name)?;
    String::from_utf8(name).map_err(io::Error::other)
}

pub(super) fn write_delivered(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(b"D")?;
    to.write_all(&(bytes.len() as u64).to_le_bytes())?;
    to.write_all(bytes)
}

pub(super) fn write_absent(to: &mut impl Write) -> io::Result<()> {
    to.write_all(b"A")
}

pub(super) fn write_failed(to: &mut impl Write, message: &str) -> io::Result<()> {
    to.write_all(b"E")?;
    to.write_all(&(message.len() as u64).to_le_bytes())?;
    to.write_all(message.as_bytes())
}

pub(super) fn read_reply(from: &mut impl Read) -> io::Result<Reply> {
    let mut tag = [0];
    from.read_exact(&mut tag)?;
    match tag[0] {
        b'A' => Ok(Reply::Absent),
        b'D' => read_length(from).map(Reply::Delivered),
        b'E' => {
            let length = read_length(from)?.min(LONGEST_MESSAGE);
            let mut message = String::new();
            from.take(length).read_to_string(&mut message)?;
            Ok(Reply::Failed(message))
        }
        other => Err(io::Error::other(format!("the helper said {other:#04x}"))),
    }
}

fn read_length(from: &mut impl Read) -> io::Result<u64> {
    let mut length = [0; 8];
    from.read_exact(&mut length)?;
    Ok(u64::from_le_bytes(length))
}
