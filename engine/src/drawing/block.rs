//! Rectangles of text that are put beside and above each other.

use crate::report::page::{Piece, Tone};

/// One line of a drawing.
pub type Line = Vec<Piece>;

/// Lines with a width; shorter lines are meant to be padded.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Block {
    pub(super) lines: Vec<Line>,
    pub(super) width: usize,
}

pub(super) fn length(line: &[Piece]) -> usize {
    line.iter().map(|piece| piece.text.chars().count()).sum()
}

/// Pads a line with blanks to a width.
pub(super) fn pad(line: &mut Line, width: usize) {
    let length = length(line);
    if length < width {
        line.push(Piece { text: " ".repeat(width - length), tone: Tone::Plain });
    }
}

impl Block {
    pub(super) fn push(&mut self, line: Line) {
        self.width = self.width.max(length(&line));
        self.lines.push(line);
    }

    /// Puts another block below.
    pub(super) fn below(&mut self, other: Self) {
        self.width = self.width.max(other.width);
        self.lines.extend(other.lines);
    }

    /// Puts blocks beside each other, two blanks apart; below a shorter one `tail` goes on. Returns where each begins.
    pub(super) fn beside(blocks: Vec<Self>, tail: Option<char>) -> (Self, Vec<usize>) {
        let height = blocks.iter().map(|block| block.lines.len()).max().unwrap_or(0);
        let mut whole = Self { lines: vec![Line::new(); height], width: 0 };
        let mut starts = Vec::new();
        for block in blocks {
            if !starts.is_empty() {
                whole.width += 2;
            }
            let start = whole.width;
            starts.push(start);
            let mut lines = block.lines.into_iter();
            for line in &mut whole.lines {
                pad(line, start);
                match (lines.next(), tail) {
                    (Some(own), _) => line.extend(own),
                    (None, Some(tail)) => line.push(Piece { text: tail.to_string(), tone: Tone::Dim }),
                    (None, None) => {}
                }
            }
            whole.width += block.width;
        }
        (whole, starts)
    }
}
