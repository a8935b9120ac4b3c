//! Cyclic checksums: of whole objects, as servers keep them, and of the parts that objects are sent in.

use std::fmt;

use crc_fast::{CrcAlgorithm, Digest};

/// Which cyclic checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    /// What S3 gives to objects whose writer sent none.
    Crc64Nvme,
    Crc32c,
    Crc32,
}

/// A cyclic checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Crc {
    pub(crate) algorithm: Algorithm,
    pub(crate) value: u64,
}

/// A cyclic checksum of what has passed so far.
pub(crate) struct Running {
    algorithm: Algorithm,
    digest: Digest,
}

impl Algorithm {
    /// Returns its name as servers write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Crc64Nvme => "CRC64NVME",
            Self::Crc32c => "CRC32C",
            Self::Crc32 => "CRC32",
        }
    }

    /// Returns how many bytes it has.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Crc64Nvme => 8,
            Self::Crc32c | Self::Crc32 => 4,
        }
    }

    fn of_crate(self) -> CrcAlgorithm {
        match self {
            Self::Crc64Nvme => CrcAlgorithm::Crc64Nvme,
            Self::Crc32c => CrcAlgorithm::Crc32Iscsi,
            Self::Crc32 => CrcAlgorithm::Crc32IsoHdlc,
        }
    }
}

impl fmt::Display for Crc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:0width$x}", self.value, width = self.algorithm.bytes() * 2)
    }
}

impl Running {
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        Self { algorithm, digest: Digest::new(algorithm.of_crate()) }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
    }

    pub(crate) fn finish(&self) -> Crc {
        Crc { algorithm: self.algorithm, value: self.digest.finalize() }
    }
}

/// Returns the checksum of a part.
pub(crate) fn of_part(content: &[u8]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc64Nvme, content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_catalogue() {
        for (algorithm, check) in [
            (Algorithm::Crc64Nvme, "ae8b14860a799888"),
            (Algorithm::Crc32c, "e3069283"),
            (Algorithm::Crc32, "cbf43926"),
        ] {
            let mut running = Running::new(algorithm);
            running.update(b"1234");
            running.update(b"56789");
            assert_eq!(running.finish().to_string(), check, "{}", algorithm.name());
        }
        assert_eq!(of_part(b"123456789"), 0xae8b_1486_0a79_9888);
    }
}
