use std::io;

use flate2::bufread::MultiGzDecoder;
use lifeboat_engine::plan::hex;
use sha2::{Digest as _, Sha256};

use super::pipe::{Chunks, Feed, pipe};

/// How an archive is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Form {
    Plain,
    Gzip,
    Zstd,
}

impl Form {
    /// Returns the form that follows from the name of an archive, and its name without it.
    pub(in super::super) fn of(name: &str) -> Option<(&str, Self)> {
        let forms = [(".tar", Self::Plain), (".tar.gz", Self::Gzip), (".tar.zst", Self::Zstd)];
        forms.into_iter().find_map(|(suffix, form)| Some((name.strip_suffix(suffix)?, form)))
    }
}

/// How much of an object was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Read {
    pub(in super::super) size: u64,
    /// In lower-case hexadecimal, if it was asked for.
    pub(in super::super) sha256: Option<String>,
    /// Whether the whole object was read; not if its user gave up before.
    pub(in super::super) whole: bool,
}

/// Reads an object on one thread, decompresses it on another and lets `work` use it on this one.
///
/// The first result is that of reading: if it is an error, what `work` saw is its consequence.
pub(in super::super) fn stream<T>(
    mut from: impl io::Read + Send,
    (form, digest): (Form, bool),
    work: impl FnOnce(Chunks) -> T,
) -> (io::Result<Read>, T) {
    std::thread::scope(|scope| {
        let (feed, raw) = pipe();
        let reader = scope.spawn(move || read(&mut from, &feed, digest));
        let chunks = match form {
            Form::Plain => raw,
            _ => {
                let (feed, decoded) = pipe();
                scope.spawn(move || decode(form, raw, &feed));
                decoded
            }
        };
        let done = work(chunks);
        (reader.join().expect("reading does not panic"), done)
    })
}

fn read(from: &mut impl io::Read, feed: &Feed, digest: bool) -> io::Result<Read> {
    let mut state = digest.then(Sha256::new);
    let mut size = 0;
    let sent = feed.send_all(from, |bytes| {
        size += bytes.len() as u64;
        if let Some(state) = &mut state {
            state.update(bytes);
        }
    });
    match sent {
        Ok(whole) => Ok(Read { size, sha256: state.map(|state| hex(&state.finalize())), whole }),
        Err(error) => {
            feed.fail(io::Error::other("the object could not be read"));
            Err(error)
        }
    }
}

fn decode(form: Form, from: Chunks, to: &Feed) {
    let sent = match form {
        Form::Plain => to.send_all(&mut { from }, |_| {}),
        Form::Gzip => to.send_all(&mut MultiGzDecoder::new(from), |_| {}),
        Form::Zstd => {
            zstd::Decoder::with_buffer(from).and_then(|mut decoder| to.send_all(&mut decoder, |_| {}))
        }
    };
    if let Err(error) = sent {
        to.fail(error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    fn streamed(object: &[u8], form: Form) -> (Read, io::Result<Vec<u8>>) {
        let (read, found) = stream(object, (form, true), |mut chunks| {
            let mut found = Vec::new();
            chunks.read_to_end(&mut found).map(|_| found)
        });
        (read.expect("reads"), found)
    }

    #[test]
    fn every_form_is_read_and_hashed_whole() {
        let content: Vec<u8> = (0_u32..500_000).flat_map(|n| n.to_le_bytes()).collect();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut gzip, &content).expect("compresses");
        let objects = [
            (Form::Plain, content.clone()),
            (Form::Gzip, gzip.finish().expect("compresses")),
            (Form::Zstd, zstd::encode_all(&content[..], 1).expect("compresses")),
        ];
        for (form, object) in objects {
            let (read, found) = streamed(&object, form);
            assert!(found.expect("decodes") == content, "{form:?}");
            let sha256 = hex(&Sha256::digest(&object));
            assert_eq!(read, Read { size: object.len() as u64, sha256: Some(sha256), whole: true });
        }
    }

    #[test]
    fn a_stream_that_cannot_be_decoded_is_an_error() {
        let content = vec![7; 1 << 20];
        let object = zstd::encode_all(&content[..], 1).expect("compresses");
        for cut in [1, object.len() / 2, object.len() - 1] {
            assert!(streamed(&object[..cut], Form::Zstd).1.is_err(), "{cut}");
        }
        let trailing = [&object[..], b"trailing"].concat();
        assert!(streamed(&trailing, Form::Zstd).1.is_err());
    }

    #[test]
    fn whoever_gives_up_ends_the_reading() {
        let (read, ()) = stream(io::repeat(1), (Form::Plain, false), drop);
        assert!(!read.expect("is no error").whole);
    }
}
