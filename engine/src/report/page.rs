//! A page of text with meaning but without looks: renderers give it colours, Markdown or HTML.

use serde::Serialize;

/// What a piece of text means to its reader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tone {
    #[default]
    Plain,
    Strong,
    Good,
    Bad,
    Caution,
    Dim,
    /// An id or a command.
    Code,
}

/// Text of one tone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Piece {
    pub text: String,
    pub tone: Tone,
}

impl Piece {
    /// Makes a piece of one line, cleaned.
    pub fn new(text: impl AsRef<str>, tone: Tone) -> Self {
        Self { text: clean(text.as_ref()), tone }
    }

    pub fn plain(text: impl AsRef<str>) -> Self {
        Self::new(text, Tone::Plain)
    }

    pub fn dim(text: impl AsRef<str>) -> Self {
        Self::new(text, Tone::Dim)
    }

    pub fn code(text: impl AsRef<str>) -> Self {
        Self::new(text, Tone::Code)
    }
}

/// Turns control characters, which could take a terminal over, into blanks.
pub fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        let blank = char.is_control() || is_invisible(char);
        match (blank, out.ends_with(' ')) {
            (true, true) => {}
            (true, false) => out.push(' '),
            _ => out.push(char),
        }
    }
    out
}

/// Characters that reorder text or hide in it.
fn is_invisible(char: char) -> bool {
    matches!(char, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// One cell of a table, or one line.
pub type Cell = Vec<Piece>;

/// Where a column's text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Align {
    Left,
    Right,
}

/// Rows under column titles. The last column takes what width is left and wraps.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Table {
    /// An empty title leaves the column without one; no title at all, no head line.
    pub columns: Vec<(String, Align)>,
    pub rows: Vec<Vec<Cell>>,
}

impl Table {
    /// Begins a table; a title that begins with `>` makes a column of figures.
    pub fn new(titles: &[&str]) -> Self {
        let column = |title: &&str| match title.strip_prefix('>') {
            Some(title) => (title.to_owned(), Align::Right),
            None => ((*title).to_owned(), Align::Left),
        };
        Self { columns: titles.iter().map(column).collect(), rows: Vec::new() }
    }

    /// Adds a row; it has as many cells as the table has columns.
    pub fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.columns.len(), "a row has a cell for every column");
        self.rows.push(cells);
    }
}

/// One part of a section.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Block {
    Line(Cell),
    Table(Table),
}

/// A titled part of a page.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Section {
    pub title: String,
    pub blocks: Vec<Block>,
}

/// A page: what matters in one line, the command to type next, then the details.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Page {
    pub headline: Piece,
    /// What it is about, with the date that the times below belong to.
    pub subtitle: String,
    /// Why, if it is not as it should be.
    pub why: Option<Piece>,
    pub next: Option<String>,
    pub sections: Vec<Section>,
    /// True if the command stands at the end, where a terminal leaves the eye.
    pub next_last: bool,
}

/// The narrowest a page gets; terminals below that break lines themselves.
const MIN_WIDTH: usize = 40;
/// The narrowest the last column of a table gets before the page overflows.
const MIN_LAST_COLUMN: usize = 16;
/// Columns other than the last are cut at this.
const MAX_COLUMN: usize = 34;

impl Page {
    /// Writes the page for a terminal of this width; `paint` gives each piece its looks.
    pub fn render(&self, width: usize, paint: &dyn Fn(Tone, &str) -> String) -> String {
        let mut writer = Writer { width: width.max(MIN_WIDTH), paint, out: String::new() };
        writer.wrapped(0, std::slice::from_ref(&self.headline));
        if let Some(why) = &self.why {
            writer.wrapped(0, std::slice::from_ref(why));
        }
        if !self.next_last {
            writer.next(self.next.as_deref());
        }
        writer.wrapped(0, &[Piece::dim(&self.subtitle)]);
        for section in &self.sections {
            writer.out.push('\n');
            writer.wrapped(0, &[Piece::new(&section.title, Tone::Strong)]);
            for block in &section.blocks {
                match block {
                    Block::Line(line) => writer.wrapped(2, line),
                    Block::Table(table) => writer.table(table),
                }
            }
        }
        if self.next_last && self.next.is_some() {
            writer.out.push('\n');
            writer.next(self.next.as_deref());
        }
        writer.out
    }

    /// Writes the page without colours.
    pub fn plain(&self, width: usize) -> String {
        self.render(width, &|_, text| text.to_owned())
    }
}

struct Writer<'a> {
    width: usize,
    paint: &'a dyn Fn(Tone, &str) -> String,
    out: String,
}

impl Writer<'_> {
    /// Never wraps the command: it must survive being copied.
    fn next(&mut self, command: Option<&str>) {
        if let Some(command) = command {
            let lead = (self.paint)(Tone::Strong, "Type next:");
            let command = (self.paint)(Tone::Code, command);
            self.out.push_str(&format!("{lead}  {command}\n"));
        }
    }

    fn wrapped(&mut self, indent: usize, line: &[Piece]) {
        for (number, row) in wrap(line, self.width.saturating_sub(indent), 2).iter().enumerate() {
            let hang = if number == 0 { indent } else { indent + 2 };
            self.out.push_str(&" ".repeat(hang));
            self.pieces(row);
            self.end_line();
        }
    }

    fn pieces(&mut self, row: &[Piece]) {
        for piece in row {
            self.out.push_str(&(self.paint)(piece.tone, &piece.text));
        }
    }

    fn end_line(&mut self) {
        let end = self.out.trim_end_matches(' ').len();
        self.out.truncate(end);
        self.out.push('\n');
    }

    fn table(&mut self, table: &Table) {
        let widths = column_widths(table);
        if table.columns.iter().any(|(title, _)| !title.is_empty()) {
            let titles: Vec<Cell> = table.columns.iter().map(|(title, _)| vec![Piece::dim(title)]).collect();
            self.row(table, &widths, &titles);
        }
        for row in &table.rows {
            self.row(table, &widths, row);
        }
    }

    fn row(&mut self, table: &Table, widths: &[usize], cells: &[Cell]) {
        self.out.push_str("  ");
        let mut used = 2;
        for (at, cell) in cells.iter().enumerate() {
            if at + 1 == cells.len() {
                let room = self.width.saturating_sub(used).max(MIN_LAST_COLUMN);
                for (number, row) in wrap(cell, room, 0).iter().enumerate() {
                    if number > 0 {
                        self.end_line();
                        self.out.push_str(&" ".repeat(used));
                    }
                    self.pieces(row);
                }
            } else {
                let cut = cut(cell, widths[at]);
                let pad = " ".repeat(widths[at] - length(&cut));
                if table.columns[at].1 == Align::Right {
                    self.out.push_str(&pad);
                    self.pieces(&cut);
                } else {
                    self.pieces(&cut);
                    self.out.push_str(&pad);
                }
                self.out.push_str("  ");
                used += widths[at] + 2;
            }
        }
        self.end_line();
    }
}

fn column_widths(table: &Table) -> Vec<usize> {
    let width = |at: usize| {
        let cells = table.rows.iter().filter_map(|row| row.get(at)).map(|cell| length(cell));
        cells.chain([table.columns[at].0.chars().count()]).max().unwrap_or(0).min(MAX_COLUMN)
    };
    (0..table.columns.len()).map(width).collect()
}

fn length(cell: &[Piece]) -> usize {
    cell.iter().map(|piece| piece.text.chars().count()).sum()
}

/// Shortens a cell to a width, with an ellipsis.
fn cut(cell: &[Piece], width: usize) -> Cell {
    if length(cell) <= width {
        return cell.to_vec();
    }
    let mut room = width.saturating_sub(1);
    let mut short = Cell::new();
    for piece in cell {
        let text: String = piece.text.chars().take(room).collect();
        room -= text.chars().count();
        short.push(Piece { text, tone: piece.tone });
    }
    short.push(Piece::plain("…"));
    short
}

/// Breaks a line at blanks. Rows after the first are `hang` narrower; a word that is too long stands alone.
pub(crate) fn wrap(line: &[Piece], width: usize, hang: usize) -> Vec<Cell> {
    let mut rows: Vec<Cell> = vec![Cell::new()];
    let mut used = 0;
    for piece in line {
        for word in piece.text.split_inclusive(' ') {
            let long = word.trim_end().chars().count();
            let room = if rows.len() == 1 { width } else { width.saturating_sub(hang) };
            if used > 0 && used + long > room {
                rows.push(Cell::new());
                used = 0;
            }
            used += word.chars().count();
            let row = rows.last_mut().expect("there is always a row");
            match row.last_mut() {
                Some(last) if last.tone == piece.tone => last.text.push_str(word),
                _ => row.push(Piece { text: word.to_owned(), tone: piece.tone }),
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_never_reach_a_terminal() {
        let piece = Piece::plain("a\x1b[31mb\r\nc\u{202e}d");
        assert_eq!(piece.text, "a [31mb c d");
    }

    #[test]
    fn long_lines_break_at_blanks_and_hang() {
        let rows = wrap(&[Piece::plain("one two "), Piece::code("three four")], 9, 2);
        let texts: Vec<String> =
            rows.iter().map(|row| row.iter().map(|piece| piece.text.as_str()).collect()).collect();
        assert_eq!(texts, ["one two ", "three ", "four"]);
    }

    #[test]
    fn cells_are_cut_and_columns_aligned() {
        let mut table = Table::new(&["name", ">took", ""]);
        table.row(vec![
            vec![Piece::plain("x".repeat(50))],
            vec![Piece::plain("1 s")],
            vec![Piece::plain("ok")],
        ]);
        table.row(vec![vec![Piece::plain("y")], vec![Piece::plain("12 s")], vec![Piece::plain("ok")]]);
        let section = Section { title: "T".into(), blocks: vec![Block::Table(table)] };
        let page = Page {
            headline: Piece::plain("H"),
            subtitle: "s".into(),
            why: None,
            next: None,
            sections: vec![section],
            next_last: false,
        };
        let text = page.plain(80);
        assert!(text.contains(&format!("  {}…   1 s  ok\n", "x".repeat(33))), "{text}");
        assert!(text.lines().all(|line| !line.ends_with(' ')), "{text}");
    }
}
