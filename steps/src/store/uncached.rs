//! Reads a large file past the page cache, except for what is in there already.
//!
//! A backup is read once. Through the page cache each of its pages is allocated first, copied, and pushes out what the database
//! needs right afterwards; on virtual machines whose host takes back what is not used, that costs more than decompressing.

use std::fs::File;
use std::io::{self, IoSliceMut, Read, Seek, SeekFrom};
use std::ops::Range;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, ReadWriteFlags, pread, preadv2};

/// From this size on it is worth it.
pub(super) const LARGE: u64 = 64 << 20;
/// How much is read at once: nobody reads ahead, so it must be enough for the disk to be busy.
const BLOCK: usize = 2 << 20;
/// What disks and file systems ask for of memory and places in the file.
const ALIGNMENT: usize = 4096;

/// Where the next bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    /// The page cache if they are there, else the disk.
    Either,
    /// The file as always: the file system knows no other way.
    File,
}

/// A file that is read from one place to its end.
#[derive(Debug)]
pub(super) struct Uncached {
    file: File,
    /// Where in the file the block ends.
    at: u64,
    memory: Vec<u8>,
    /// What of the memory is read from the file and not yet handed on.
    filled: Range<usize>,
    from: From,
}

impl Uncached {
    pub(super) fn new(file: File, at: u64) -> Self {
        Self { file, at, memory: vec![0; BLOCK + ALIGNMENT], filled: 0..0, from: From::Either }
    }

    /// Reads the next block. Nothing is there only at the end of the file.
    fn fill(&mut self) -> io::Result<()> {
        let start = self.memory.as_ptr().align_offset(ALIGNMENT);
        let block = &mut self.memory[start..start + BLOCK];
        self.filled = match cached(&self.file, block, self.at) {
            Ok(count) => 0..count,
            Err(Errno::AGAIN) => match direct(&self.file, block, self.at) {
                Ok(range) => range,
                Err(Errno::INVAL | Errno::OPNOTSUPP) => return self.give_up(),
                Err(error) => return Err(error.into()),
            },
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => return self.give_up(),
            Err(error) => return Err(error.into()),
        };
        self.at += self.filled.len() as u64;
        self.filled = self.filled.start + start..self.filled.end + start;
        Ok(())
    }

    fn give_up(&mut self) -> io::Result<()> {
        self.from = From::File;
        self.filled = 0..0;
        self.file.seek(SeekFrom::Start(self.at)).map(drop)
    }
}

/// Reads what the page cache has, without waiting for the disk.
fn cached(file: &File, block: &mut [u8], at: u64) -> Result<usize, Errno> {
    loop {
        match preadv2(file, &mut [IoSliceMut::new(block)], at, ReadWriteFlags::NOWAIT) {
            Err(Errno::INTR) => {}
            read => return read,
        }
    }
}

/// Reads from the disk, and returns what of the block is from the place on.
fn direct(file: &File, block: &mut [u8], at: u64) -> Result<Range<usize>, Errno> {
    let before = usize::try_from(at % ALIGNMENT as u64).expect("less than the alignment");
    let flags = fcntl_getfl(file)?;
    fcntl_setfl(file, flags | OFlags::DIRECT)?;
    let count = loop {
        match pread(file, &mut *block, at - before as u64) {
            Err(Errno::INTR) => {}
            count => break count,
        }
    };
    fcntl_setfl(file, flags)?;
    Ok(before..count?.max(before))
}

impl Read for Uncached {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.filled.is_empty() && self.from == From::Either {
            self.fill()?;
        }
        if self.from == From::File {
            return self.file.read(buffer);
        }
        let count = self.filled.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.memory[self.filled.start..][..count]);
        self.filled.start += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Odd, so that nothing fits, and more than two blocks.
    const SIZE: usize = 2 * BLOCK + 12_345;

    fn file() -> (File, Vec<u8>) {
        let bytes: Vec<u8> = (0..SIZE).map(|at| (at * 31 + at / 251) as u8).collect();
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&bytes).expect("writes");
        file.sync_all().expect("syncs");
        (file, bytes)
    }

    fn forget(file: &File) {
        rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).expect("forgets");
    }

    fn rest(mut reader: Uncached) -> Vec<u8> {
        let mut read = Vec::new();
        let mut part = [0; 10_007];
        loop {
            match reader.read(&mut part).expect("reads") {
                0 => return read,
                count => read.extend_from_slice(&part[..count]),
            }
        }
    }

    #[test]
    fn a_file_is_read_from_any_place_whether_it_is_cached_or_not() {
        let (file, bytes) = file();
        for at in [0, 1, 4096, 5000, BLOCK, SIZE - 1, SIZE, SIZE + 5000] {
            for cold in [true, false] {
                if cold {
                    forget(&file);
                }
                let reader = Uncached::new(file.try_clone().expect("a file"), at as u64);
                assert!(rest(reader) == bytes[at.min(SIZE)..], "from {at}, cold: {cold}");
            }
        }
    }

    #[test]
    fn what_is_partly_cached_is_whole() {
        let (file, bytes) = file();
        forget(&file);
        let mut page = [0; 100];
        for at in [BLOCK / 3, BLOCK + 7] {
            pread(&file, &mut page, at as u64).expect("reads, and leaves pages in the cache");
        }
        assert!(rest(Uncached::new(file, 0)) == bytes);
    }

    #[test]
    fn a_file_that_is_in_memory_anyway_is_read_as_well() {
        let (_, bytes) = file();
        let in_memory = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).expect("a file");
        let mut in_memory = File::from(in_memory);
        in_memory.write_all(&bytes).expect("writes");
        assert!(rest(Uncached::new(in_memory, 3)) == bytes[3..]);
    }

    #[test]
    fn a_file_system_that_knows_no_other_way_is_read_as_always() {
        let (file, bytes) = file();
        let mut reader = Uncached::new(file, 0);
        let mut part = vec![0; 1000];
        reader.read_exact(&mut part).expect("reads");
        reader.filled = 0..0;
        reader.at = 1000;
        reader.give_up().expect("seeks");
        assert!(rest(reader) == bytes[1000..]);
    }
}
