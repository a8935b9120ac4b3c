//! The report in Markdown, for tickets, chats and wikis.

use super::model::RunReport;
use super::page::{Align, Block, Cell, Piece, Section, Table, Tone};
use super::sections;

/// Writes the report in Markdown.
pub fn markdown(report: &RunReport) -> String {
    let page = sections::page(report);
    let mut out = format!("# {}\n\n{}\n", escape(&page.headline.text), escape(&page.subtitle));
    if let Some(why) = &page.why {
        out.push_str(&format!("\n{}\n", piece(why)));
    }
    if let Some(next) = &page.next {
        out.push_str(&format!("\nType next: {}\n", code(next)));
    }
    for section in &page.sections {
        write_section(&mut out, section);
    }
    out
}

fn write_section(out: &mut String, section: &Section) {
    out.push_str(&format!("\n## {}\n\n", escape(&section.title)));
    let mut after_table = false;
    for block in &section.blocks {
        if after_table {
            out.push('\n');
        }
        match block {
            Block::Line(line) => out.push_str(&format!("- {}\n", cell(line).trim_start_matches("– "))),
            Block::Table(table) => write_table(out, table),
        }
        after_table = matches!(block, Block::Table(_));
    }
}

fn write_table(out: &mut String, table: &Table) {
    let row = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    out.push_str(&row(table.columns.iter().map(|(title, _)| escape(title)).collect()));
    let rule = |align: &Align| if *align == Align::Right { "---:" } else { "---" };
    out.push_str(&row(table.columns.iter().map(|(_, align)| rule(align).to_owned()).collect()));
    for cells in &table.rows {
        out.push_str(&row(cells.iter().map(cell).collect()));
    }
}

fn cell(cell: &Cell) -> String {
    cell.iter().map(piece).collect()
}

fn piece(piece: &Piece) -> String {
    match piece.tone {
        Tone::Code if !piece.text.trim().is_empty() => code(piece.text.trim()),
        Tone::Strong | Tone::Bad | Tone::Caution if !piece.text.contains('`') => strong(&piece.text),
        _ => escape(&piece.text),
    }
}

/// Sets a text in bold. Its stars must touch words, so blanks and punctuation at its ends stand outside.
fn strong(text: &str) -> String {
    let words = text.trim_matches(|char: char| !char.is_alphanumeric());
    let Some(at) = text.find(words).filter(|_| !words.is_empty()) else {
        return escape(text);
    };
    let (before, after) = (&text[..at], &text[at + words.len()..]);
    format!("{}**{}**{}", escape(before), escape(words), escape(after))
}

/// Sets a text as code, fenced so that no back quote in it can end it, nor a bar the cell it is in.
fn code(text: &str) -> String {
    let text = text.replace('|', "\\|");
    if text.contains('`') { format!("`` {text} ``") } else { format!("`{text}`") }
}

/// Takes their meaning from the characters that Markdown gives one; back quotes keep theirs.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_code = false;
    for char in text.chars() {
        match char {
            '`' => in_code = !in_code,
            '|' => out.push('\\'),
            '\\' | '*' | '_' | '[' | ']' | '#' | '~' if !in_code => out.push('\\'),
            '<' if !in_code => {
                out.push_str("&lt;");
                continue;
            }
            '&' if !in_code => {
                out.push_str("&amp;");
                continue;
            }
            _ => {}
        }
        out.push(char);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_in_messages_stays_text() {
        assert_eq!(escape("a_b | <img> *x* `db_1`"), r"a\_b \| &lt;img> \*x\* `db_1`");
        assert_eq!(code("a|b"), r"`a\|b`");
        assert_eq!(piece(&Piece::new(", it broke ", Tone::Bad)), ", **it broke** ");
    }
}
