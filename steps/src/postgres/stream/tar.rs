use std::io::{self, BufRead, Read};

pub(in super::super) use ::tar::EntryType;
use lifeboat_engine::step::StepError;

use super::pipe::{Chunks, Piece};

const BLOCK: usize = 512;

/// One file or directory of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Entry {
    /// As it is written.
    pub(in super::super) name: Vec<u8>,
    pub(in super::super) kind: EntryType,
    pub(in super::super) size: u64,
}

/// Why an archive was not used to its end.
#[derive(Debug)]
pub(in super::super) enum Broken {
    /// The archive itself.
    Archive(io::Error),
    /// What was done with it.
    Use(StepError),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Archive(error)
    }
}

impl From<StepError> for Broken {
    fn from(error: StepError) -> Self {
        Self::Use(error)
    }
}

/// Reads an archive entry by entry. The `tar` crate reads the headers; the bytes of a file go past it, because it would
/// copy each of them once more.
///
/// Stricter than other readers: an archive that ends without its end marks was cut short, and a file with holes, which
/// Postgres never writes, is refused.
pub(in super::super) struct Tar {
    from: Chunks,
    /// Of the current entry, with what fills its last block.
    left: u64,
    padding: u64,
}

impl Tar {
    pub(in super::super) fn new(from: Chunks) -> Self {
        Self { from, left: 0, padding: 0 }
    }

    /// Returns the next entry, or `None` after the last one. What was not read of the one before is skipped.
    pub(in super::super) fn next(&mut self) -> io::Result<Option<Entry>> {
        self.each_chunk::<io::Error>(|_| Ok(()))?;
        skip(&mut self.from, self.padding)?;
        self.padding = 0;
        let Some(entry) = self.header()? else { return self.end().map(|()| None) };
        self.left = entry.size;
        self.padding = entry.size.next_multiple_of(BLOCK as u64) - entry.size;
        Ok(Some(entry))
    }

    /// Reads the headers of one entry, and none of its bytes. `None` after a block of zeros.
    fn header(&mut self) -> io::Result<Option<Entry>> {
        let mut counted = Counted { inner: &mut self.from, count: 0 };
        let mut archive = ::tar::Archive::new(&mut counted);
        let Some(entry) = archive.entries()?.next() else {
            return if counted.count == BLOCK { Ok(None) } else { Err(cut_short()) };
        };
        let entry = entry?;
        let kind = entry.header().entry_type();
        if kind.is_gnu_sparse() {
            return Err(io::Error::other("a file in it is stored with its holes left out"));
        }
        Ok(Some(Entry { name: entry.path_bytes().into_owned(), kind, size: entry.size() }))
    }

    /// Lends the bytes of the current entry, piece by piece, and returns how many there were.
    pub(in super::super) fn each_chunk<E: From<io::Error>>(
        &mut self,
        mut with: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<u64, E> {
        self.each_piece(|piece| with(&piece))
    }

    /// Like [`Tar::each_chunk`], for those who keep what they get.
    pub(in super::super) fn each_piece<E: From<io::Error>>(
        &mut self,
        mut with: impl FnMut(Piece) -> Result<(), E>,
    ) -> Result<u64, E> {
        let size = self.left;
        while self.left > 0 {
            let piece = self.from.lend(usize::try_from(self.left).unwrap_or(usize::MAX))?;
            let piece = piece.ok_or_else(cut_short)?;
            self.left -= piece.len() as u64;
            with(piece)?;
        }
        Ok(size)
    }

    /// After the first block of zeros another one comes, and then nothing but zeros.
    fn end(&mut self) -> io::Result<()> {
        let mut zeros = 0;
        loop {
            let rest = self.from.fill_buf()?;
            let count = rest.len();
            if rest.iter().any(|byte| *byte != 0) {
                return Err(io::Error::other("something follows the end marks of the tar archive"));
            }
            if count == 0 {
                return if zeros >= BLOCK { Ok(()) } else { Err(cut_short()) };
            }
            zeros += count;
            self.from.consume(count);
        }
    }
}

fn skip(from: &mut Chunks, mut count: u64) -> io::Result<()> {
    while count > 0 {
        let available = from.fill_buf()?.len().min(usize::try_from(count).unwrap_or(usize::MAX));
        if available == 0 {
            return Err(cut_short());
        }
        from.consume(available);
        count -= available as u64;
    }
    Ok(())
}

/// Tells the end of an archive from the end of what there is of it.
struct Counted<'a> {
    inner: &'a mut Chunks,
    count: usize,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count += count;
        Ok(count)
    }
}

fn cut_short() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "it ends without the end marks of a tar archive, so it was cut short",
    )
}

#[cfg(test)]
mod tests {
    use super::super::object::{Form, stream};
    use super::*;

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = ::tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = ::tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, *content).expect("appends");
        }
        builder.into_inner().expect("is whole")
    }

    /// As the crate reads an archive by itself.
    fn read_by_crate(object: &[u8]) -> io::Result<Vec<(String, Vec<u8>)>> {
        let mut archive = ::tar::Archive::new(object);
        let mut found = Vec::new();
        for entry in archive.entries()? {
            let (mut entry, mut content) = (entry?, Vec::new());
            entry.read_to_end(&mut content)?;
            found.push((String::from_utf8_lossy(&entry.path_bytes()).into_owned(), content));
        }
        Ok(found)
    }

    fn read(object: &[u8]) -> io::Result<Vec<(String, Vec<u8>)>> {
        let (_, found) = stream(object, (Form::Plain, false), |chunks| {
            let (mut tar, mut found) = (Tar::new(chunks), Vec::new());
            while let Some(entry) = tar.next()? {
                let mut content = Vec::new();
                tar.each_chunk::<io::Error>(|bytes| {
                    content.extend_from_slice(bytes);
                    Ok(())
                })?;
                found.push((String::from_utf8_lossy(&entry.name).into_owned(), content));
            }
            Ok(found)
        });
        found
    }

    #[test]
    fn entries_are_lent_whole() {
        let large = vec![3; 700_000];
        let files: [(&str, &[u8]); 4] =
            [("empty", b""), ("base/1/2", &large), ("block", &[9; 512]), ("short", b"text")];
        let found = read(&archive(&files)).expect("reads");
        let expected: Vec<_> =
            files.iter().map(|(name, content)| ((*name).to_owned(), content.to_vec())).collect();
        assert!(found == expected);
        assert_eq!(read(&archive(&[])).expect("an empty archive"), []);
    }

    #[test]
    fn an_archive_that_was_cut_anywhere_is_broken() {
        let whole = archive(&[("one", &[1; 1000]), ("two", b"2")]);
        // 1024 bytes of zeros end it; one block of them alone does not.
        for cut in (0..whole.len() - 1).step_by(100).chain([whole.len() - 512, whole.len() - 1024]) {
            assert!(read(&whole[..cut]).is_err(), "cut at {cut} of {}", whole.len());
        }
        read(&[&whole[..], &[0; 5000]].concat()).expect("more zeros are no harm");
        assert!(read(&[&whole[..], b"x"].concat()).is_err());
    }

    #[test]
    fn a_damaged_header_is_noticed() {
        let mut object = archive(&[("one", b"1")]);
        object[0] ^= 1;
        assert!(read(&object).is_err());
    }

    proptest::proptest! {
        #[test]
        fn an_archive_is_read_as_the_crate_reads_it(
            files in proptest::collection::vec(("[a-z]{1,9}(/[a-z0-9_]{1,60}){0,4}", 0_usize..3000), 0..12),
            damage in proptest::option::of((proptest::prelude::any::<proptest::sample::Index>(), 1_u8..)),
        ) {
            let contents: Vec<Vec<u8>> = files.iter().map(|(name, size)| vec![name.len() as u8; *size]).collect();
            let named: Vec<_> = files.iter().zip(&contents).map(|((name, _), content)| (&**name, &**content)).collect();
            let mut object = archive(&named);
            let whole = damage.is_none();
            if let Some((index, bits)) = damage {
                let at = index.index(object.len());
                object[at] ^= bits;
            }
            match read(&object) {
                Ok(found) => proptest::prop_assert_eq!(found, read_by_crate(&object).expect("reads")),
                // It may be stricter, with what is not whole.
                Err(error) => proptest::prop_assert!(!whole, "{}", error),
            }
        }
    }
}
