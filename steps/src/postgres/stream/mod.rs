//! Reads the archives of a base backup as fast as the machine can: each of read, decompress and use has a thread of its
//! own, and bytes are copied by nobody but the decoder.
//!
//! ```text
//! pipe     chunks between two threads: bounded, used again
//! object   store → digest → decoder → whoever uses it
//! tar      entries, whose bytes are lent and not copied
//! ```

mod object;
mod pipe;
mod tar;

pub(super) use object::{Form, Read, stream};
pub(super) use pipe::Piece;
pub(super) use tar::{Broken, Entry, EntryType, Tar};
