use super::redactor::Redactor;

/// How long a line may grow before a part of it is passed on.
const LINE_LIMIT: usize = 64 << 10;

/// Removes secrets from a stream that comes in pieces of any size, whole lines at a time.
#[derive(Debug)]
pub struct StreamRedactor {
    redactor: Redactor,
    pending: Vec<u8>,
}

impl StreamRedactor {
    /// Begins a stream.
    pub fn new(redactor: Redactor) -> Self {
        Self { redactor, pending: Vec::new() }
    }

    /// Takes the next piece and returns what can be passed on. An unfinished line is kept until it is finished, or
    /// is so long that its beginning cannot be part of a secret that is still coming.
    pub fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        let before = self.pending.len();
        self.pending.extend_from_slice(piece);
        // What was pending before has no line break.
        let end = match piece.iter().rposition(|byte| *byte == b'\n') {
            Some(last) => before + last + 1,
            None => self.safe_end(),
        };
        let ready: Vec<u8> = self.pending.drain(..end).collect();
        self.redactor.bytes(&ready).into_owned()
    }

    /// Ends the stream and returns the rest.
    pub fn finish(self) -> Vec<u8> {
        self.redactor.bytes(&self.pending).into_owned()
    }

    #[cfg(test)]
    pub(super) fn pending_len(&self) -> usize {
        self.pending.len()
    }

    /// Returns how much of a long line no later byte can change.
    fn safe_end(&self) -> usize {
        let reach = self.redactor.reach();
        if self.pending.len() < LINE_LIMIT.max(2 * reach) {
            return 0;
        }
        let end = self.pending.len() - reach;
        let found = self.redactor.find(&self.pending);
        found.iter().find(|range| range.contains(&end)).map_or(end, |range| range.start)
    }
}
