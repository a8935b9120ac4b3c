//! What is known of a large content before it is sent: it is read once for its checksums, and once more to be sent.
//!
//! What an object carries is said before its content, so that the SHA-256 needs a reading of its own. The second reading is
//! compared with the first part by part, by a checksum that costs next to nothing.

use std::io::{self, Read};

use lifeboat_engine::plan::hex;
use lifeboat_engine::step::StepError;
use sha2::{Digest as _, Sha256};

use super::crc::{Algorithm, Running};
use super::transfer::{Digest, Meter};

/// The size of the first parts, which are all alike: some servers demand it.
pub(crate) const PART: usize = 8 << 20;
/// Parts grow by their first size every so many, so that 10,000 of them reach 460 GB.
const GROW_EVERY: usize = 1000;
const MOST_PARTS: usize = 10_000;
const BUFFER: usize = 256 * 1024;

/// Checksums of a content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sums {
    /// Of the whole.
    pub(crate) digest: Digest,
    /// CRC64NVME of each part that it is sent in.
    pub(crate) parts: Vec<u64>,
}

/// Returns the size of a part, which are numbered from 0.
pub(crate) fn part_size(number: usize) -> usize {
    PART * (1 + number.min(MOST_PARTS) / GROW_EVERY)
}

/// Reads a content to its end.
pub(crate) fn sums_of(
    from: &mut impl Read,
    meter: &Meter,
    unread: impl Fn(&io::Error) -> StepError,
) -> Result<Sums, StepError> {
    let mut summing = Summing::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(summing.finish()),
            Ok(count) => {
                summing.update(&buffer[..count]);
                meter.advance(count as u64)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unread(&error)),
        }
    }
}

struct Summing {
    sha256: Sha256,
    size: u64,
    parts: Vec<u64>,
    part: Running,
    /// How much is missing of the part.
    left: usize,
}

impl Summing {
    fn new() -> Self {
        let part = Running::new(Algorithm::Crc64Nvme);
        Self { sha256: Sha256::new(), size: 0, parts: Vec::new(), part, left: part_size(0) }
    }

    fn update(&mut self, mut bytes: &[u8]) {
        self.sha256.update(bytes);
        self.size += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(self.left));
            self.part.update(now);
            self.left -= now.len();
            if self.left == 0 {
                self.end_part();
            }
            bytes = later;
        }
    }

    fn end_part(&mut self) {
        let ended = std::mem::replace(&mut self.part, Running::new(Algorithm::Crc64Nvme));
        self.parts.push(ended.finish().value);
        self.left = part_size(self.parts.len());
    }

    fn finish(mut self) -> Sums {
        if self.left < part_size(self.parts.len()) {
            self.end_part();
        }
        Sums { digest: Digest { size: self.size, sha256: hex(&self.sha256.finalize()) }, parts: self.parts }
    }
}

#[cfg(test)]
mod tests {
    use super::super::crc::of_part;
    use super::super::transfer::digest_of;
    use super::*;

    fn sums(content: &[u8]) -> Sums {
        let mut from = content;
        sums_of(&mut from, &Meter::silent(), |error| panic!("{error}")).unwrap()
    }

    #[test]
    fn each_part_has_its_checksum_and_the_whole_has_one() {
        for length in [0, 1, PART - 1, PART, PART + 1, 2 * PART] {
            let content: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let sums = sums(&content);
            assert_eq!(sums.digest, digest_of(&content[..], &Meter::silent()).unwrap());
            let parts: Vec<_> = content.chunks(PART).map(of_part).collect();
            assert_eq!(sums.parts, parts, "{length}");
        }
    }

    #[test]
    fn parts_grow_so_that_few_enough_reach_far() {
        let all: u64 = (0..MOST_PARTS).map(|number| part_size(number) as u64).sum();
        assert!(all > 460_000_000_000, "{all}");
        assert_eq!((part_size(0), part_size(999), part_size(1000)), (PART, PART, 2 * PART));
    }

    /// `LIFEBOAT_TEST_LONG=1 cargo test --release -p lifeboat-steps --lib both_readings -- --nocapture` shows what the checksums
    /// of the two readings of 1 GiB cost.
    #[test]
    fn both_readings_have_the_same_checksums() {
        let parts = if std::env::var_os("LIFEBOAT_TEST_LONG").is_some() { 128 } else { 2 };
        let part = vec![7; PART];
        let content = part.repeat(parts);
        let begun = std::time::Instant::now();
        let sums = sums(&content);
        let (first, begun) = (begun.elapsed(), std::time::Instant::now());
        let second: Vec<_> = content.chunks(PART).map(of_part).collect();
        eprintln!("{parts} parts of {PART} bytes: first reading {first:?}, second {:?}", begun.elapsed());
        assert_eq!(sums.parts, second);
    }
}
