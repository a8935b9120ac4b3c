//! Reads what a program writes: line by line to the step, beginning and end kept.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use lifeboat_engine::model::evidence::Stream;
use lifeboat_engine::redact::Redactor;
use lifeboat_engine::step::StepLink;
use os_pipe::PipeReader;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How much of the beginning, and of the end, of each stream is kept.
const KEEP: usize = 64 * 1024;
/// Longer lines are cut when they are passed on.
const MAX_LINE: usize = 16 * 1024;
/// A full pipe is still read when reading is told to stop, but not a writer that never ends.
const READS_AFTER_STOP: u32 = 64;

/// The beginning and the end of what a program wrote to one stream, as it wrote it: a program may have to read it.
///
/// Where it is cut, no secret is cut in two: half of one would not be found any more by those who remove secrets later.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    total: u64,
    /// Where in head and tail together the last 64 KiB begin.
    last: usize,
}

impl Kept {
    /// Returns how many bytes were written.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Says whether something between beginning and end was dropped.
    pub fn is_cut(&self) -> bool {
        self.total > (self.head.len() + self.tail.len()) as u64
    }

    /// Returns what was kept as text, without blanks at its ends; a gap is marked.
    pub fn text(&self) -> String {
        let (front, back) = self.tail.as_slices();
        let mut bytes = self.head.clone();
        if self.is_cut() {
            let left_out = self.total - (self.head.len() + self.tail.len()) as u64;
            bytes.extend_from_slice(format!("\n… {left_out} bytes left out …\n").as_bytes());
        }
        bytes.extend_from_slice(front);
        bytes.extend_from_slice(back);
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }

    /// Returns the last 64 KiB as text, without blanks at its ends.
    pub fn tail_text(&self) -> String {
        let bytes: Vec<u8> = self.head.iter().chain(&self.tail).skip(self.last).copied().collect();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }

    /// Returns the last lines, for an error message.
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let text = self.tail_text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(count)..].iter().map(|&line| line.to_owned()).collect()
    }

    /// Adds what was written next; `reach` more than is kept is looked at in the end.
    fn push(&mut self, bytes: &[u8], reach: usize) {
        self.total += bytes.len() as u64;
        let into_head = bytes.len().min(KEEP + reach - self.head.len());
        self.head.extend_from_slice(&bytes[..into_head]);
        let rest = &bytes[into_head..];
        self.tail.extend(&rest[rest.len().saturating_sub(KEEP + reach)..]);
        let excess = self.tail.len().saturating_sub(KEEP + reach);
        self.tail.drain(..excess);
    }

    /// Cuts off what is more than is kept.
    fn settle(&mut self, redactor: &Redactor) {
        if self.is_cut() {
            self.head.truncate(redactor.cut(&self.head, KEEP));
            let from = self.tail.len().saturating_sub(KEEP);
            let from = redactor.cut_after(self.tail.make_contiguous(), from);
            self.tail.drain(..from);
            self.last = self.head.len();
            return;
        }
        let whole: Vec<u8> = self.head.iter().chain(&self.tail).copied().collect();
        self.last = match whole.len().checked_sub(KEEP) {
            None | Some(0) => 0,
            Some(from) => redactor.cut_after(&whole, from),
        };
    }
}

impl From<&str> for Kept {
    /// Keeps a text as if a program had written it.
    fn from(text: &str) -> Self {
        let mut kept = Self::default();
        kept.push(text.as_bytes(), 0);
        kept.settle(&Redactor::default());
        kept
    }
}

/// Takes each line of output, before it is passed on.
pub(super) type LineHook = Arc<dyn Fn(Stream, &str) + Send + Sync>;

/// Where lines go.
#[derive(Clone)]
pub(super) struct LineSink {
    pub(super) link: Arc<dyn StepLink>,
    /// Says where the output can be cut.
    pub(super) redactor: Redactor,
    pub(super) hook: Option<LineHook>,
    /// Streams whose lines are kept but not passed on.
    pub(super) quiet: Option<Stream>,
}

impl LineSink {
    fn take(&self, stream: Stream, line: &str) {
        if let Some(hook) = &self.hook {
            hook(stream, line);
        }
        if self.quiet != Some(stream) {
            self.link.line(stream, line);
        }
    }
}

/// What was read of a stream.
#[derive(Default)]
pub(super) struct Drained {
    pub(super) kept: Kept,
    /// Whether its end was not reached: something still holds it open.
    pub(super) open: bool,
}

/// A thread that reads one stream until its end, or until told to stop.
pub(super) struct Reader {
    stop: Arc<AtomicBool>,
    finished: mpsc::Receiver<Drained>,
}

impl Reader {
    pub(super) fn start(pipe: PipeReader, stream: Stream, sink: LineSink) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, finished) = mpsc::sync_channel(1);
        let stop_seen = Arc::clone(&stop);
        thread::spawn(move || {
            let drained = read_all(pipe, stream, &sink, &stop_seen);
            // The receiver is gone if the attempt was dropped; then nobody wants the output.
            let _ = sender.send(drained);
        });
        Self { stop, finished }
    }

    /// Waits for the end of the stream; `None` if it has not come within that time, because something still holds it open or
    /// because the machine is busy.
    pub(super) fn wait(&self, patience: Duration) -> Option<Drained> {
        self.finished.recv_timeout(patience).ok()
    }

    /// Ends the reading, whoever holds the stream open, and returns what came.
    pub(super) fn finish(self) -> Drained {
        self.stop.store(true, Ordering::Release);
        self.finished.recv().unwrap_or_default()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

fn read_all(mut pipe: PipeReader, stream: Stream, sink: &LineSink, stop: &AtomicBool) -> Drained {
    let (mut kept, mut open) = (Kept::default(), true);
    let mut lines = Lines::new(sink.redactor.clone());
    let reach = sink.redactor.reach();
    let mut buffer = [0_u8; 16 * 1024];
    let mut reads_after_stop = 0;
    while wait_readable(&pipe, stop) && reads_after_stop < READS_AFTER_STOP {
        reads_after_stop += u32::from(stop.load(Ordering::Acquire));
        match pipe.read(&mut buffer) {
            Ok(0) => {
                open = false;
                break;
            }
            Ok(count) => {
                kept.push(&buffer[..count], reach);
                lines.push(&buffer[..count], |line| sink.take(stream, line));
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    lines.end(|line| sink.take(stream, line));
    kept.settle(&sink.redactor);
    Drained { kept, open }
}

/// Waits until there is something to read; false once told to stop.
fn wait_readable(pipe: &PipeReader, stop: &AtomicBool) -> bool {
    const LOOK_UP: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    loop {
        let mut waiting = [PollFd::new(pipe, PollFlags::IN)];
        match poll(&mut waiting, Some(&LOOK_UP)) {
            Ok(0) | Err(rustix::io::Errno::INTR) if stop.load(Ordering::Acquire) => return false,
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) | Err(_) => return true,
        }
    }
}

/// Cuts a stream into lines; `\r` ends one too, because progress is often written that way.
struct Lines {
    redactor: Redactor,
    partial: Vec<u8>,
    cut: bool,
}

impl Lines {
    fn new(redactor: Redactor) -> Self {
        Self { redactor, partial: Vec::new(), cut: false }
    }

    fn push(&mut self, bytes: &[u8], mut emit: impl FnMut(&str)) {
        let limit = MAX_LINE + self.redactor.reach();
        for piece in bytes.split_inclusive(|&byte| byte == b'\n' || byte == b'\r') {
            let ends = piece.last().is_some_and(|&byte| byte == b'\n' || byte == b'\r');
            let text = if ends { &piece[..piece.len() - 1] } else { piece };
            let room = limit - self.partial.len();
            self.partial.extend_from_slice(&text[..text.len().min(room)]);
            self.cut |= text.len() > room;
            if ends {
                self.end(&mut emit);
            }
        }
    }

    fn end(&mut self, mut emit: impl FnMut(&str)) {
        self.cut |= self.partial.len() > MAX_LINE;
        if self.cut {
            let at = self.redactor.cut(&self.partial, MAX_LINE);
            self.partial.truncate(at);
        }
        if !self.partial.is_empty() || self.cut {
            let mut line = String::from_utf8_lossy(&self.partial).into_owned();
            if self.cut {
                line.push_str(" … (line cut)");
            }
            emit(&line);
        }
        self.partial.clear();
        self.cut = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lifeboat_engine::secret::{SecretRef, Secrets};

    fn redactor(secret: &str) -> Redactor {
        let mut secrets = Secrets::default();
        secrets.insert(SecretRef::Env("SECRET".into()), secret.into());
        secrets.redactor().clone()
    }

    fn lines(chunks: &[&[u8]]) -> Vec<String> {
        lines_without(&Redactor::default(), chunks)
    }

    fn lines_without(redactor: &Redactor, chunks: &[&[u8]]) -> Vec<String> {
        let mut found = Vec::new();
        let mut lines = Lines::new(redactor.clone());
        for chunk in chunks {
            lines.push(chunk, |line| found.push(line.to_owned()));
        }
        lines.end(|line| found.push(line.to_owned()));
        found
    }

    #[test]
    fn lines_survive_any_cut_of_the_stream() {
        assert_eq!(lines(&[b"a\r\nb", b"c\n10%\r20%\r", b"end"]), ["a", "bc", "10%", "20%", "end"]);
        assert_eq!(lines(&[b"\xff\n"]), ["\u{fffd}"]);
    }

    #[test]
    fn a_line_without_end_is_bounded() {
        let found = lines(&[&vec![b'x'; MAX_LINE], &[b'y'; 100], b"\nnext\n"]);
        assert!(found[0].ends_with("x … (line cut)"), "{}", &found[0][MAX_LINE..]);
        assert_eq!(found[1], "next");
    }

    #[test]
    fn beginning_and_end_are_kept() {
        let mut kept = Kept::default();
        kept.push(b"first ", 0);
        for _ in 0..40 {
            kept.push(&[b'.'; 10_000], 0);
        }
        kept.push(b" last", 0);
        kept.settle(&Redactor::default());
        assert_eq!(kept.total(), 400_011);
        assert!(kept.is_cut());
        let text = kept.text();
        assert!(text.starts_with("first") && text.ends_with("last") && text.contains("bytes left out"));
        assert!(text.len() < 2 * KEEP + 100);
        assert!(kept.tail_text().len() <= KEEP && kept.tail_text().ends_with("last"));
    }

    #[test]
    fn short_output_is_kept_whole() {
        let kept = Kept::from("one\ntwo\nthree\n");
        assert_eq!(kept.text(), "one\ntwo\nthree");
        assert_eq!(kept.last_lines(2), ["two", "three"]);
    }

    /// A text in which a secret stands at every place but a few, shifted by some bytes.
    fn full_of(secret: &str, shift: usize, length: usize) -> Vec<u8> {
        let mut text = vec![b'#'; shift];
        while text.len() < length {
            text.extend_from_slice(secret.as_bytes());
            text.extend_from_slice(b"##");
        }
        text
    }

    /// Fails if any part of the secret that tells something of it is left.
    fn assert_no_part(redactor: &Redactor, text: &str, secret: &str, what: &str) {
        let clean = redactor.text(text);
        for part in [&secret[..4], &secret[secret.len() - 4..]] {
            let at = clean.find(part);
            assert_eq!(at, None, "{what}: `{part}` of the secret is left");
        }
        assert!(clean.contains("***"), "{what}");
    }

    #[test]
    fn no_cut_goes_through_a_secret() {
        for secret in ["s3cr3t+v4lu3/x", "p\"q'r\\s t%u&v<w>x"] {
            let redactor = redactor(secret);
            for shift in 0..secret.len() + 2 {
                let text = full_of(secret, shift, 5 * KEEP);
                for chunk in [977, 16 * 1024] {
                    let mut kept = Kept::default();
                    text.chunks(chunk).for_each(|bytes| kept.push(bytes, redactor.reach()));
                    kept.settle(&redactor);
                    assert!(kept.is_cut() && kept.text().len() < 3 * KEEP);
                    assert_no_part(&redactor, &kept.text(), secret, "text");
                    assert_no_part(&redactor, &kept.tail_text(), secret, "end");
                }
                let whole = whole_of(&full_of(secret, shift, KEEP + 5000), &redactor);
                assert!(!whole.is_cut() && whole.tail_text().len() <= KEEP);
                assert_no_part(&redactor, &whole.tail_text(), secret, "end of a short one");
                let cut = lines_without(&redactor, &[&text]);
                assert_no_part(&redactor, &cut[0], secret, "line");
            }
        }
    }

    fn whole_of(text: &[u8], redactor: &Redactor) -> Kept {
        let mut kept = Kept::default();
        kept.push(text, redactor.reach());
        kept.settle(redactor);
        kept
    }

    #[test]
    fn a_secret_that_comes_byte_by_byte_is_in_one_line() {
        let secret = "correct horse\u{e9} battery";
        let bytes: Vec<&[u8]> = "before correct horse\u{e9} battery\n".as_bytes().chunks(1).collect();
        let line = lines_without(&redactor(secret), &bytes).remove(0);
        assert_eq!(redactor(secret).text(&line), "before ***");
    }
}
