//! Randomness from the operating system.

use std::fs::File;
use std::io::Read;

/// Returns bytes that nobody can guess.
pub(crate) fn bytes<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Writes bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A small generator for choices that need no secrecy (xorshift64*).
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// Begins with a seed from the operating system.
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self(u64::from_le_bytes(bytes()?) | 1))
    }

    /// Returns a number from 0 up to, not including, `limit`, which must not be 0.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16) % limit
    }

    /// Returns bytes that do not compress.
    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| u8::try_from(self.below(256)).unwrap_or(0)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_keeps_leading_zeros() {
        assert_eq!(hex(&[0, 15, 255]), "000fff");
    }

    #[test]
    fn dice_stay_below_the_limit() {
        let mut dice = Dice(1);
        let rolls: Vec<_> = (0..1000).map(|_| dice.below(6)).collect();
        assert!((0..6).all(|side| rolls.contains(&side)));
        assert!(rolls.iter().all(|&roll| roll < 6));
    }
}
