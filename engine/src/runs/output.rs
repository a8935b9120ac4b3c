use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

use super::durable::dirs_within;
use super::error::Error;
use crate::model::{Attempt, OutputFile, StepId, Stream};
use crate::plan::hex;

/// How much of a stream is kept from its beginning.
const HEAD: u64 = 4 << 20;

/// How much is kept in each of the two files that take turns at its end.
const TAIL: u64 = 2 << 20;

/// Each tail file begins with a line of this length that says where in the stream it begins.
pub(super) const MARK: u64 = 31;

/// All files that an attempt can have.
pub const NAMES: [&str; 6] =
    ["stderr", "stderr.tail", "stderr.tail.old", "stdout", "stdout.tail", "stdout.tail.old"];

/// What steps write to stdout and stderr, in `<step>/<attempt>/stdout` and `stderr`.
///
/// The first 4 MiB of each are kept, and the last 2 to 4 MiB beside them in `stdout.tail.old` and `stdout.tail`, each
/// of which says at which byte it begins. Lines must be redacted before they come here. May be shared by threads.
#[derive(Debug)]
pub struct OutputFiles {
    dir: PathBuf,
    limits: Limits,
    open: Mutex<HashMap<Key, Arc<Mutex<Capped>>>>,
    lost: Mutex<HashMap<(StepId, Attempt), Lost>>,
}

/// Output that could not be kept, of one attempt.
#[derive(Clone, Debug)]
pub struct Lost {
    pub lines: u64,
    /// Why the first of them was not.
    pub reason: String,
}

type Key = (StepId, Attempt, Stream);

#[derive(Clone, Copy, Debug)]
struct Limits {
    head: u64,
    tail: u64,
}

impl OutputFiles {
    pub(super) fn at(dir: PathBuf) -> Self {
        Self {
            dir,
            limits: Limits { head: HEAD, tail: TAIL },
            open: Mutex::default(),
            lost: Mutex::default(),
        }
    }

    /// Keeps less than usual.
    #[cfg(test)]
    pub(super) fn limited(dir: PathBuf, head: u64, tail: u64) -> Self {
        Self { limits: Limits { head, tail }, ..Self::at(dir) }
    }

    /// Returns the directory of one attempt; it exists once there is a line.
    pub fn attempt_dir(&self, step: &StepId, attempt: Attempt) -> PathBuf {
        self.dir.join(step.path()).join(attempt.to_string())
    }

    /// Appends a line and a line break. One that cannot be kept is counted; where the next one stands that can, a remark
    /// says how many are missing.
    pub fn line(&self, step: &StepId, attempt: Attempt, stream: Stream, line: &str) -> Result<(), Error> {
        let kept = self.keep(step, attempt, stream, line);
        if let Err(error) = &kept {
            let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
            let reason = || Lost { lines: 0, reason: told(error) };
            lost.entry((step.clone(), attempt)).or_insert_with(reason).lines += 1;
        }
        kept
    }

    fn keep(&self, step: &StepId, attempt: Attempt, stream: Stream, line: &str) -> Result<(), Error> {
        let capped = self.capped(step, attempt, stream)?;
        let mut capped = capped.lock().unwrap_or_else(PoisonError::into_inner);
        capped.line_or_count(line).map_err(Error::io("write", &capped.path))
    }

    /// Removes what an attempt has printed so far.
    pub fn restart(&self, step: &StepId, attempt: Attempt) -> Result<(), Error> {
        self.close(step, attempt);
        for stream in [Stream::Stdout, Stream::Stderr] {
            let path = self.attempt_dir(step, attempt).join(name(stream));
            for path in [new_tail(&path), old_tail(&path), tail(&path), path] {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(Error::io("remove", &path)(error));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Returns what is in the files of an attempt that has ended. Empty if it printed nothing.
    pub fn seal(&self, step: &StepId, attempt: Attempt) -> Result<Vec<OutputFile>, Error> {
        let dir = self.attempt_dir(step, attempt);
        let mut sealed = Vec::new();
        for name in NAMES {
            let path = dir.join(name);
            let content = match fs::read(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(Error::io("read", &path))?,
            };
            let sha256 = hex(&Sha256::digest(&content));
            sealed.push(OutputFile { name: name.to_owned(), bytes: content.len() as u64, sha256 });
        }
        Ok(sealed)
    }

    /// Closes the files of an attempt that has ended; returns what of its output could not be kept.
    pub fn close(&self, step: &StepId, attempt: Attempt) -> Option<Lost> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for stream in [Stream::Stdout, Stream::Stderr] {
            open.remove(&(step.clone(), attempt, stream));
        }
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).remove(&(step.clone(), attempt))
    }

    /// Reads what was kept of a stream; a line says where and how much was left out. Empty if there was no output.
    pub fn read(&self, step: &StepId, attempt: Attempt, stream: Stream) -> Result<Vec<u8>, Error> {
        let path = self.attempt_dir(step, attempt).join(name(stream));
        read(&path).map_err(Error::io("read", &path))
    }

    fn capped(&self, step: &StepId, attempt: Attempt, stream: Stream) -> Result<Arc<Mutex<Capped>>, Error> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (step.clone(), attempt, stream);
        if let Some(capped) = open.get(&key) {
            return Ok(Arc::clone(capped));
        }
        let dir = self.attempt_dir(step, attempt);
        dirs_within(&self.dir, &dir).map_err(Error::io("create", &dir))?;
        let path = dir.join(name(stream));
        let capped = Capped::open(path.clone(), self.limits).map_err(Error::io("open", &path))?;
        let capped = Arc::new(Mutex::new(capped));
        open.insert(key, Arc::clone(&capped));
        Ok(capped)
    }
}

/// The reason for an error: its cause, if it has one.
fn told(error: &Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

pub(super) fn name(stream: Stream) -> &'static str {
    match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    }
}

/// One stream of one attempt.
#[derive(Debug)]
struct Capped {
    path: PathBuf,
    limits: Limits,
    /// The file that takes the next line.
    file: File,
    /// Its length.
    len: u64,
    in_tail: bool,
    /// All that ever came.
    total: u64,
    /// Lines that could not be written since the last one that could.
    missing: u64,
}

impl Capped {
    /// Opens the files where an earlier process left them.
    fn open(path: PathBuf, limits: Limits) -> io::Result<Self> {
        let tail = tail(&path);
        if tail.exists() {
            let content = fs::read(&tail)?;
            let (file, len) = (append_to(&tail)?, content.len() as u64);
            let total = begin(&content).unwrap_or(limits.head) + len.saturating_sub(MARK);
            return Ok(Self { path, limits, file, len, in_tail: true, total, missing: 0 });
        }
        let file = append_to(&path)?;
        let len = file.metadata()?.len();
        Ok(Self { path, limits, file, len, in_tail: false, total: len, missing: 0 })
    }

    fn line_or_count(&mut self, line: &str) -> io::Result<()> {
        let remark = match self.missing {
            0 => Ok(()),
            // A part of the last line may stand there.
            lines => self.line(&format!("\n[lifeboat: {lines} lines could not be stored here]")),
        };
        let written = remark.and_then(|()| {
            self.missing = 0;
            self.line(line)
        });
        if written.is_err() {
            self.missing += 1;
            self.len = self.file.metadata().map_or(self.len, |metadata| metadata.len());
        }
        written
    }

    fn line(&mut self, line: &str) -> io::Result<()> {
        let size = line.len() as u64 + 1;
        if !self.in_tail && self.len + size > self.limits.head {
            let kept = self.len;
            let mut head = self.begin_tail()?;
            writeln!(
                head,
                "[lifeboat: {kept} bytes are kept here; of the rest only the end, in {}]",
                tail(&self.path).file_name().unwrap_or_default().display()
            )?;
        } else if self.in_tail && self.len > MARK && self.len + size > MARK + self.limits.tail {
            self.begin_tail()?;
        }
        self.file.write_all(format!("{line}\n").as_bytes())?;
        self.len += size;
        self.total += size;
        Ok(())
    }

    /// Begins a tail and returns what took lines before; a tail before it becomes the old one. If that fails, everything stays
    /// as it is: a tail without its mark would be found by nobody.
    fn begin_tail(&mut self) -> io::Result<File> {
        let (tail, unfinished) = (tail(&self.path), new_tail(&self.path));
        let mark = format!("[from byte {:018}]\n", self.total);
        let begin = || -> io::Result<File> {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
            super::durable::share(&unfinished)?;
            file.write_all(mark.as_bytes())?;
            if self.in_tail {
                fs::rename(&tail, old_tail(&self.path))?;
            }
            fs::rename(&unfinished, &tail)?;
            Ok(file)
        };
        let before = std::mem::replace(&mut self.file, begin()?);
        self.len = mark.len() as u64;
        self.in_tail = true;
        Ok(before)
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    let is_new = !path.exists();
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    if is_new {
        super::durable::share(path)?;
    }
    Ok(file)
}

pub(super) fn tail(path: &Path) -> PathBuf {
    path.with_extension("tail")
}

pub(super) fn old_tail(path: &Path) -> PathBuf {
    path.with_extension("tail.old")
}

/// A tail that has no mark yet.
fn new_tail(path: &Path) -> PathBuf {
    path.with_extension("tail.new")
}

/// Where in the stream a tail begins.
pub(super) fn begin(content: &[u8]) -> Option<u64> {
    let mark = content.get(..usize::try_from(MARK).ok()?)?;
    let digits = mark.strip_prefix(b"[from byte ")?.strip_suffix(b"]\n")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut whole = read_or_empty(path)?;
    let mut position = None;
    for part in [old_tail(path), tail(path)] {
        let content = read_or_empty(&part)?;
        let Some(begin) = begin(&content) else { continue };
        // The note at the end of the head is not part of the stream.
        let reached = position.unwrap_or_else(|| stream_length_of_head(&whole));
        if begin > reached {
            let gap = format!("[lifeboat: {} bytes are left out here]\n", begin - reached);
            whole.extend_from_slice(gap.as_bytes());
        }
        let kept = &content[MARK as usize..];
        position = Some(begin + kept.len() as u64);
        whole.extend_from_slice(kept);
    }
    Ok(whole)
}

pub(super) fn stream_length_of_head(head: &[u8]) -> u64 {
    let note = b"[lifeboat: ";
    let last_line =
        head[..head.len().saturating_sub(1)].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    if head[last_line..].starts_with(note) { last_line as u64 } else { head.len() as u64 }
}

fn read_or_empty(path: &Path) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUT: Stream = Stream::Stdout;

    fn files(dir: &Path, head: u64, tail: u64) -> OutputFiles {
        OutputFiles { limits: Limits { head, tail }, ..OutputFiles::at(dir.to_owned()) }
    }

    fn step() -> StepId {
        StepId::new("base").unwrap()
    }

    fn text(files: &OutputFiles) -> String {
        String::from_utf8(files.read(&step(), 1, OUT).unwrap()).unwrap()
    }

    #[test]
    fn short_output_is_kept_as_it_is_and_apart() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path(), HEAD, TAIL);
        files.line(&step(), 1, OUT, "one").unwrap();
        files.line(&step(), 1, Stream::Stderr, "oops").unwrap();
        files.line(&step(), 2, OUT, "again").unwrap();
        files.line(&step(), 1, OUT, "").unwrap();
        assert_eq!(text(&files), "one\n\n");
        assert_eq!(files.read(&step(), 1, Stream::Stderr).unwrap(), b"oops\n");
        assert_eq!(fs::read(files.attempt_dir(&step(), 2).join("stdout")).unwrap(), b"again\n");
        assert_eq!(files.read(&step(), 3, OUT).unwrap(), b"");
    }

    #[test]
    fn a_seal_says_what_is_in_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path(), 30, 20);
        assert_eq!(files.seal(&step(), 1).unwrap(), []);
        for n in 0..100 {
            files.line(&step(), 1, OUT, &format!("line{n:04}")).unwrap();
        }
        files.line(&step(), 1, Stream::Stderr, "oops").unwrap();
        let sealed = files.seal(&step(), 1).unwrap();
        let names: Vec<_> = sealed.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["stderr", "stdout", "stdout.tail", "stdout.tail.old"]);
        assert_eq!(sealed[0].bytes, 5);
        assert_eq!(sealed[0].sha256, hex(&Sha256::digest(b"oops\n")));
    }

    #[test]
    fn long_output_keeps_its_beginning_and_end_and_says_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path(), 30, 20);
        for n in 0..100 {
            files.line(&step(), 1, OUT, &format!("line{n:04}")).unwrap();
        }
        let expected = "line0000\nline0001\nline0002\n\
                        [lifeboat: 27 bytes are kept here; of the rest only the end, in stdout.tail]\n\
                        [lifeboat: 846 bytes are left out here]\n\
                        line0097\nline0098\nline0099\n";
        // Of the tails, which take two lines each, one and a half: 3 + 94 left out + 3 = 100 lines of nine bytes.
        assert_eq!(text(&files), expected);
    }

    #[test]
    fn nothing_is_left_out_as_long_as_it_fits() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path(), 30, 20);
        for n in 0..6 {
            files.line(&step(), 1, OUT, &format!("line{n:04}")).unwrap();
        }
        assert!(!text(&files).contains("left out"), "{}", text(&files));
        assert!(text(&files).contains("line0003\nline0004\nline0005\n"));
    }

    #[test]
    fn a_later_process_goes_on_where_the_earlier_stopped() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let whole = files(one.path(), 30, 20);
        for n in 0..50 {
            whole.line(&step(), 1, OUT, &format!("line{n:04}")).unwrap();
            // Opened anew for each line.
            files(two.path(), 30, 20).line(&step(), 1, OUT, &format!("line{n:04}")).unwrap();
        }
        assert_eq!(text(&whole), text(&files(two.path(), 30, 20)));
    }

    /// Runs out of room just where one file ends and the next one begins, and goes on when there is room again.
    #[test]
    fn a_disk_that_is_full_where_files_take_turns_loses_no_more_than_it_says() {
        for full_from in [3, 7] {
            let dir = tempfile::tempdir().unwrap();
            let files = files(dir.path(), 30, 20);
            let print = |n: usize| files.line(&step(), 1, OUT, &format!("line{n:04}"));
            (0..full_from).for_each(|n| print(n).unwrap());
            let next = files.attempt_dir(&step(), 1).join("stdout.tail.new");
            std::os::unix::fs::symlink("/dev/full", &next).unwrap();
            (full_from..full_from + 2).for_each(|n| drop(print(n).unwrap_err()));
            fs::remove_file(&next).unwrap();
            (full_from + 2..full_from + 6).for_each(|n| print(n).unwrap());
            let shown = text(&files);
            for n in full_from + 4..full_from + 6 {
                assert!(shown.contains(&format!("line{n:04}\n")), "full from line {full_from}: {shown}");
            }
            let seen = files.since(&step(), 1, OUT, 0).unwrap().bytes;
            assert!(seen.ends_with(format!("line{:04}\n", full_from + 5).as_bytes()), "{full_from}");
            let lost = files.close(&step(), 1).unwrap();
            assert_eq!((lost.lines, lost.reason.contains("No space left")), (2, true), "{lost:?}");
        }
    }

    #[test]
    fn a_mark_that_is_cut_off_is_no_mark() {
        let mark = b"[from byte 000000000000000042]\n";
        assert_eq!((begin(mark), mark.len() as u64), (Some(42), MARK));
        let dir = tempfile::tempdir().unwrap();
        for length in 0..mark.len() {
            assert_eq!(begin(&mark[..length]), None, "{length}");
            let path = dir.path().join("stdout");
            fs::write(tail(&path), &mark[..length]).unwrap();
            assert_eq!(read(&path).unwrap(), b"");
        }
    }

    #[test]
    fn lines_of_several_threads_stay_whole() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path(), HEAD, TAIL);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let files = &files;
                scope.spawn(move || {
                    for n in 0..200 {
                        files.line(&step(), 1, OUT, &format!("{thread} {n} end")).unwrap();
                    }
                });
            }
        });
        assert!(files.close(&step(), 1).is_none());
        assert_eq!(text(&files).lines().count(), 800);
        assert!(text(&files).lines().all(|line| line.ends_with(" end") && line.matches(' ').count() == 2));
    }
}
