//! Writes the archive: a compressed tar file, whose bytes depend on nothing but what is in it.

use std::io::{self, Read, Write};

use flate2::{Compression, GzBuilder, write::GzEncoder};
use sha2::{Digest, Sha256};

use super::member::Member;
use crate::plan::hex;

/// How every archive begins: compressed, no name, no time, no system.
pub(super) const BEGIN: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// An archive in the making.
pub(super) struct Tape<W: Write> {
    tar: tar::Builder<GzEncoder<Digesting<W>>>,
    root: String,
    /// In seconds since 1970.
    time: u64,
    sums: String,
}

/// A finished archive.
pub(super) struct Finished<W> {
    pub(super) file: W,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

impl<W: Write> Tape<W> {
    pub(super) fn begin(file: W, root: String, time_ms: i64) -> Self {
        let digesting = Digesting { inner: file, hasher: Sha256::new(), bytes: 0 };
        let compressed =
            GzBuilder::new().mtime(0).operating_system(255).write(digesting, Compression::default());
        let time = u64::try_from(time_ms / 1000).unwrap_or(0);
        Self { tar: tar::Builder::new(compressed), root, time, sums: String::new() }
    }

    /// Adds a member and returns its hash.
    pub(super) fn add(&mut self, member: &Member, content: &[u8]) -> io::Result<String> {
        self.add_from(member, content.len() as u64, content)
    }

    /// Adds a member of a known length.
    pub(super) fn add_from(
        &mut self,
        member: &Member,
        length: u64,
        content: impl Read,
    ) -> io::Result<String> {
        let name = member.name();
        let mut header = tar::Header::new_ustar();
        header.set_path(format!("{}/{name}", self.root))?;
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(if name.ends_with(".sh") { 0o755 } else { 0o644 });
        header.set_mtime(self.time);
        header.set_size(length);
        header.set_cksum();
        let mut content = Digesting { inner: content.take(length), hasher: Sha256::new(), bytes: 0 };
        self.tar.append(&header, &mut content)?;
        if content.bytes != length {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{name} became shorter")));
        }
        let sha256 = hex(&content.hasher.finalize());
        if *member != Member::Sums {
            self.sums.push_str(&format!("{sha256}  {name}\n"));
        }
        Ok(sha256)
    }

    /// Adds the hashes of all members and ends the archive.
    pub(super) fn finish(mut self) -> io::Result<Finished<W>> {
        let sums = std::mem::take(&mut self.sums);
        self.add(&Member::Sums, sums.as_bytes())?;
        let Digesting { mut inner, hasher, bytes } = self.tar.into_inner()?.finish()?;
        inner.flush()?;
        Ok(Finished { file: inner, bytes, sha256: hex(&hasher.finalize()) })
    }
}

/// Hashes what passes.
pub(super) struct Digesting<T> {
    inner: T,
    hasher: Sha256,
    bytes: u64,
}

impl<R: Read> Digesting<R> {
    pub(super) fn reading(inner: R) -> Self {
        Self { inner, hasher: Sha256::new(), bytes: 0 }
    }

    /// Returns the hash of all that was read.
    pub(super) fn sha256(self) -> String {
        hex(&self.hasher.finalize())
    }
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
