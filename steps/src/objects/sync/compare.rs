//! Whether two objects of one name and size have the same content, without moving it where the store's word suffices.

use std::fs::File;
use std::io::{self, Read};

use lifeboat_engine::plan::hex;
use lifeboat_engine::step::StepError;
use md5::Md5;
use sha2::Digest as _;

use super::super::send::unread;
use super::super::tree;
use super::side::{Part, Side};
use crate::store::named::{Current, Pin};
use crate::store::{Meter, digest_of, md5_in};

/// Sizes of parts in which programs send: this one, and the AWS tools.
const PARTS: [u64; 3] = [16 << 20, 8 << 20, 5 << 20];

/// Compares contents; a doubt counts as a difference.
pub(super) fn is_same(
    (from, source): (&Side, &Current),
    (to, target): (&Side, &Current),
    meter: &Meter,
) -> Result<bool, StepError> {
    meter.advance(0)?;
    match (from, to) {
        (Side::Dir(dir), Side::Store(part)) => with_file((dir, &source.name), (part, target), meter),
        (Side::Store(part), Side::Dir(dir)) => with_file((dir, &target.name), (part, source), meter),
        (Side::Store(from), Side::Store(to)) => with_store((from, source), (to, target), meter),
        (Side::Dir(_), Side::Dir(_)) => Ok(false),
    }
}

/// First by the tag, which the listing has shown; then by the checksum that the object carries, for which it is asked.
fn with_file(
    (dir, name): (&std::path::Path, &str),
    (part, object): (&Part, &Current),
    meter: &Meter,
) -> Result<bool, StepError> {
    let path = dir.join(name);
    let failed = |error: io::Error| unread(&path, &error);
    let open = || tree::open(dir, name).map(|(file, _)| file).map_err(failed);
    if let Some(tag) = object.etag.as_deref().map(|tag| tag.trim_matches('"'))
        && tags_of(&mut open()?, (object.size, tag)).map_err(failed)?
    {
        return Ok(true);
    }
    match sha256_of(part, object)? {
        Some(known) => Ok(digest_of(open()?, &meter.uncounted())?.sha256 == known),
        None => Ok(false),
    }
}

fn with_store(
    (from, source): (&Part, &Current),
    (to, target): (&Part, &Current),
    meter: &Meter,
) -> Result<bool, StepError> {
    let md5 = |object: &Current| object.etag.as_deref().and_then(md5_in);
    if let (Some(one), Some(other)) = (md5(source), md5(target))
        && one == other
    {
        return Ok(true);
    }
    let sha256 = |part: &Part, object: &Current| match sha256_of(part, object)? {
        Some(known) => Ok(Some(known)),
        // What is said of neither is read: it is cheaper than writing it anew.
        None => match part.store.open_at(&object.name, 0, &Pin::default())? {
            Some((_, content)) => Ok(Some(digest_of(content, &meter.uncounted())?.sha256)),
            None => Ok::<_, StepError>(None),
        },
    };
    Ok(sha256(from, source)?.is_some_and(|one| sha256(to, target).is_ok_and(|other| other == Some(one))))
}

fn sha256_of(part: &Part, object: &Current) -> Result<Option<String>, StepError> {
    Ok(part.store.facts(&object.name, &Pin::default())?.and_then(|facts| facts.sha256))
}

/// Says whether the tag of an object is that of a file's content: its MD5, or the MD5 of those of its parts.
fn tags_of(file: &mut File, (size, tag): (u64, &str)) -> io::Result<bool> {
    let Some((digits, count)) = tag.split_once('-') else {
        let is_md5 = md5_in(tag).is_some();
        return Ok(is_md5 && md5_of_parts(file, u64::MAX)?.0 == tag.to_ascii_lowercase());
    };
    let Ok(count) = count.parse::<u64>() else { return Ok(false) };
    for part in PARTS.into_iter().filter(|part| size.div_ceil(*part) == count) {
        io::Seek::rewind(file)?;
        let (_, of_parts) = md5_of_parts(file, part)?;
        if of_parts.eq_ignore_ascii_case(digits) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns the MD5 of the last part, and that of the MD5s of all parts.
fn md5_of_parts(file: &mut File, part: u64) -> io::Result<(String, String)> {
    let (mut all, mut last) = (Md5::new(), String::new());
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let (mut state, mut left, mut any) = (Md5::new(), part, false);
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let count = file.read(&mut buffer[..most])?;
            if count == 0 {
                break;
            }
            any = true;
            state.update(&buffer[..count]);
            left -= count as u64;
        }
        if !any && !last.is_empty() {
            break;
        }
        let digest = state.finalize();
        all.update(digest);
        last = hex(&digest);
        if left > 0 {
            break;
        }
    }
    Ok((last, hex(&all.finalize())))
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    #[test]
    fn tags_of_one_part_and_of_several_are_recognised() {
        let mut file = tempfile::tempfile().unwrap();
        let tag = |file: &mut File, tag: &str| {
            let size = file.metadata().unwrap().len();
            file.rewind().unwrap();
            tags_of(file, (size, tag)).unwrap()
        };
        assert!(tag(&mut file, "d41d8cd98f00b204e9800998ecf8427e"), "of nothing");
        file.write_all(b"abc").unwrap();
        assert!(tag(&mut file, "900150983cd24fb0d6963f7d28e17f72"));
        assert!(!tag(&mut file, "900150983cd24fb0d6963f7d28e17f73"));
        assert!(!tag(&mut file, "an opaque tag"));
        // Nine MiB in parts of eight, whose tags were computed by hand.
        file.rewind().unwrap();
        file.write_all(&vec![7; 9 << 20]).unwrap();
        let part = |length: usize| Md5::digest(vec![7; length]);
        let of = |parts: &[usize]| {
            let digests: Vec<u8> = parts.iter().flat_map(|length| part(*length)).collect();
            format!("{}-{}", hex(&Md5::digest(digests)), parts.len())
        };
        assert!(tag(&mut file, &of(&[8 << 20, 1 << 20])));
        assert!(tag(&mut file, &of(&[5 << 20, 4 << 20])));
        assert!(!tag(&mut file, &of(&[6 << 20, 3 << 20])), "a size of parts that nobody is known to use");
    }
}
