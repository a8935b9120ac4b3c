//! Stores in a bucket of S3, or of a server that speaks its protocol.
//!
//! An object becomes visible when it is complete, so nothing here is renamed: a backup in the making is a set of
//! objects without a marker. Objects are read in parts of 8 MiB, four at once, each of the version that was opened;
//! a part whose connection breaks goes on where it broke. They are written in one request up to 16 MiB, in parts
//! above, and only if the name is free, which the server decides (`If-None-Match: *`).

mod backup;
mod bucket;
mod copy;
mod fault;
mod listing;
mod parts;
mod policy;
mod read;
mod runtime;
mod uploads;
mod versions;
mod write;

pub(in crate::store) use bucket::Bucket;
pub(in crate::store) use copy::Version;
pub(in crate::store) use read::ObjectStream;
pub(crate) use read::md5_in;
pub(in crate::store) use write::Upload;
