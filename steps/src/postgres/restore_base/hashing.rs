//! Compares files with their checksums on a thread of its own, while the next ones are written.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use lifeboat_engine::plan::hex;
use lifeboat_engine::step::StepError;
use sha2::{Digest as _, Sha256};

use super::super::stream::{Broken, Piece};
use super::unpack::mismatch;

/// Pieces that may wait: enough to smooth, little memory.
const QUEUE: usize = 16;

/// What is to be hashed, in the order of the archive.
enum Task {
    Bytes(Piece),
    /// The end of a file, and what its bytes must come to.
    End {
        path: PathBuf,
        sha256: String,
    },
}

/// The end that brings what is to be hashed.
pub(super) struct Hashing {
    tasks: SyncSender<Task>,
}

/// Does work that brings files to be hashed. The first file that is not what it should be is the error, whatever became of
/// the work meanwhile.
pub(super) fn hashed<T>(work: impl FnOnce(&Hashing) -> Result<T, Broken>) -> Result<T, Broken> {
    std::thread::scope(|scope| {
        let (tasks, waiting) = sync_channel(QUEUE);
        let thread = scope.spawn(move || compare(&waiting));
        let done = work(&Hashing { tasks });
        thread.join().expect("hashing does not panic")?;
        done
    })
}

fn compare(tasks: &Receiver<Task>) -> Result<(), StepError> {
    let mut state = Sha256::new();
    for task in tasks {
        match task {
            Task::Bytes(piece) => state.update(&*piece),
            Task::End { path, sha256 } if hex(&state.finalize_reset()) != sha256 => {
                return Err(mismatch(&path, "has another SHA-256 than the manifest says"));
            }
            Task::End { .. } => {}
        }
    }
    Ok(())
}

impl Hashing {
    /// Hashes more of the current file.
    pub(super) fn update(&self, piece: Piece) -> Result<(), Broken> {
        self.send(Task::Bytes(piece))
    }

    /// Ends the current file.
    pub(super) fn end(&self, path: &Path, sha256: &str) -> Result<(), Broken> {
        self.send(Task::End { path: path.to_owned(), sha256: sha256.to_owned() })
    }

    /// Fails if a file was wrong, which then is the error that counts.
    fn send(&self, task: Task) -> Result<(), Broken> {
        self.tasks.send(task).map_err(|_| std::io::Error::other("a file is not what it should be").into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::stream::{Form, Tar, stream};
    use super::*;
    use crate::postgres::codes;

    /// Hashes each file of an archive, and says how many bytes were brought.
    fn compared(files: &[(&str, &[u8])], expected: impl Fn(&str, &[u8]) -> String) -> Result<u64, Broken> {
        let mut builder = ::tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = ::tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, *content).expect("appends");
        }
        let archive = builder.into_inner().expect("is whole");
        let (_, done) = stream(&archive[..], (Form::Plain, false), |chunks| {
            let mut tar = Tar::new(chunks);
            hashed(|hashing| {
                let mut bytes = 0;
                while let Some(entry) = tar.next()? {
                    bytes += tar.each_piece::<Broken>(|piece| hashing.update(piece))?;
                    let name = String::from_utf8(entry.name).expect("text");
                    let content = files.iter().find(|file| file.0 == name).expect("is one of them").1;
                    hashing.end(Path::new(&name), &expected(&name, content))?;
                }
                Ok(bytes)
            })
        });
        done
    }

    fn sha256(content: &[u8]) -> String {
        hex(&Sha256::digest(content))
    }

    #[test]
    fn the_first_file_that_differs_is_named() {
        let large = vec![5; 9_000_000];
        let files: [(&str, &[u8]); 4] =
            [("empty", b""), ("large", &large), ("short", b"text"), ("last", &large)];
        let bytes = compared(&files, |_, content| sha256(content)).expect("all are as they should be");
        assert_eq!(bytes, 18_000_004);
        for wrong in ["empty", "large", "short", "last"] {
            let from_there_on = |name: &str, content: &[u8]| {
                let at = |name: &str| files.iter().position(|file| file.0 == name);
                if at(name) >= at(wrong) { sha256(b"other") } else { sha256(content) }
            };
            let Err(Broken::Use(error)) = compared(&files, from_there_on) else { panic!("{wrong} differs") };
            assert_eq!(error.code, codes::LB1258);
            assert!(error.message.contains(&format!(" {wrong} ")), "{error}");
        }
    }

    #[test]
    fn work_that_fails_for_another_reason_says_so() {
        let failed: Result<(), _> =
            hashed(|_| Err(mismatch(Path::new("a"), "is in the archive twice").into()));
        let Err(Broken::Use(error)) = failed else { panic!("it fails") };
        assert!(error.message.contains("twice"), "{error}");
    }
}
