use super::block::{Block, Line, length, pad};
use super::nest::{Child, Nest, Nesting, Notes, children, is_always};
use super::shape::{Mark, Shape};
use crate::report::page::{Piece, Tone, wrap};

/// The signs that a terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Glyphs {
    Unicode,
    Ascii,
}

/// What a drawing is made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paper {
    /// Columns; a drawing that needs more becomes a list.
    pub width: usize,
    pub glyphs: Glyphs,
}

/// Text in a lane is not made narrower than this: the drawing becomes a list instead.
const NARROWEST: usize = 18;

/// Draws a shape in lines no wider than the paper: boxes and lanes, or an indented list where they do not fit.
pub fn terminal(shape: &Shape, paper: Paper) -> Vec<Line> {
    let children = children(shape);
    let nesting = Nesting::of(shape, &children);
    let artist = Artist { shape, children: &children, nesting: &nesting, pen: Pen::of(paper.glyphs) };
    match artist.drawn(paper.width) {
        Some(block) => block.lines,
        None => artist.listed(paper.width),
    }
}

/// The signs of a drawing.
struct Pen {
    step: &'static str,
    skipped: &'static str,
    down: &'static str,
    across: &'static str,
    /// Corners: top left, top right, bottom left, bottom right.
    corners: [&'static str; 4],
    /// Where lanes begin: first, middle, last; and where they end.
    fork: [&'static str; 3],
    join: [&'static str; 3],
    dot: &'static str,
}

impl Pen {
    fn of(glyphs: Glyphs) -> Self {
        match glyphs {
            Glyphs::Unicode => Self {
                step: "●",
                skipped: "○",
                down: "│",
                across: "─",
                corners: ["┌", "┐", "└", "┘"],
                fork: ["├", "┬", "┐"],
                join: ["├", "┴", "┘"],
                dot: " · ",
            },
            Glyphs::Ascii => Self {
                step: "*",
                skipped: "o",
                down: "|",
                across: "-",
                corners: ["+", "+", "+", "+"],
                fork: ["+", "+", "+"],
                join: ["+", "+", "+"],
                dot: ", ",
            },
        }
    }
}

struct Artist<'a> {
    shape: &'a Shape,
    /// By group, those of the runbook itself last.
    children: &'a [Vec<Child>],
    nesting: &'a Nesting,
    pen: Pen,
}

impl Artist<'_> {
    /// Draws boxes and lanes. `None` if the paper is too narrow or there is too much.
    fn drawn(&self, width: usize) -> Option<Block> {
        let nest = self.nesting.nests.last()?.as_ref()?;
        let (main, always) = self.halves(nest);
        let mut whole = Block::default();
        if let Some(main) = main {
            whole.below(self.nest(&main, width, false)?);
        }
        if let Some(always) = always {
            whole.push(Line::new());
            whole.push(vec![Piece::dim("always, whatever happens:")]);
            whole.below(self.nest(&always, width, false)?);
        }
        (whole.width <= width).then_some(whole)
    }

    /// Puts what is in `always` apart from the rest.
    fn halves(&self, nest: &Nest) -> (Option<Nest>, Option<Nest>) {
        let (mut main, mut always) = (Vec::new(), Vec::new());
        let lanes = match nest {
            Nest::Parallel(lanes) => lanes.clone(),
            other => vec![other.clone()],
        };
        for lane in lanes {
            if self.all_always(&lane) { always.push(lane) } else { main.push(lane) }
        }
        let one = |mut lanes: Vec<Nest>| match lanes.len() {
            0 => None,
            1 => lanes.pop(),
            _ => Some(Nest::Parallel(lanes)),
        };
        (one(main), one(always))
    }

    fn all_always(&self, nest: &Nest) -> bool {
        match nest {
            Nest::Child(child) => is_always(self.shape, *child, self.children),
            Nest::Series(parts) | Nest::Parallel(parts) => parts.iter().all(|part| self.all_always(part)),
        }
    }

    /// Draws a part of the graph; `more` if a line leads on from it.
    fn nest(&self, nest: &Nest, room: usize, more: bool) -> Option<Block> {
        match nest {
            Nest::Child(Child::Step(at)) => self.step(*at, room, more),
            Nest::Child(Child::Group(at)) => self.group(*at, room),
            Nest::Series(parts) => self.series(parts, room, more),
            Nest::Parallel(lanes) => self.lanes(lanes, room, more).map(|(block, _)| block),
        }
    }

    fn series(&self, parts: &[Nest], room: usize, more: bool) -> Option<Block> {
        let mut whole = Block::default();
        for (at, part) in parts.iter().enumerate() {
            let followed = more || at + 1 < parts.len();
            if at > 0 && !self.leads_on(&parts[at - 1], part, &whole) {
                whole.push(vec![Piece::dim(self.pen.down)]);
            }
            match part {
                Nest::Parallel(lanes) => {
                    let (block, starts) = self.lanes(lanes, room, followed)?;
                    if at > 0 {
                        whole.push(self.rail(&starts, self.pen.fork));
                    }
                    whole.below(block);
                    if followed {
                        whole.push(self.rail(&starts, self.pen.join));
                    }
                }
                other => whole.below(self.nest(other, room, followed)?),
            }
        }
        Some(whole)
    }

    /// Says whether the line from one part to the next is drawn already.
    fn leads_on(&self, before: &Nest, next: &Nest, drawn: &Block) -> bool {
        let lanes = |nest: &Nest| matches!(nest, Nest::Parallel(_));
        let last = drawn.lines.last().and_then(|line| line.first());
        let on_line = last.is_some_and(|piece| piece.text.starts_with(self.pen.down));
        let boxed = |nest: &Nest| matches!(nest, Nest::Child(Child::Group(_)));
        lanes(before) || lanes(next) || (on_line && !boxed(before) && !boxed(next))
    }

    /// Draws the line from which lanes begin, or in which they end.
    fn rail(&self, starts: &[usize], signs: [&str; 3]) -> Line {
        let mut text = signs[0].to_owned();
        for (at, start) in starts.iter().enumerate().skip(1) {
            text.push_str(&self.pen.across.repeat(start.saturating_sub(text.chars().count())));
            text.push_str(if at + 1 == starts.len() { signs[2] } else { signs[1] });
        }
        vec![Piece::dim(text)]
    }

    /// Draws lanes beside each other and says where each begins. Narrow lanes keep their width, others share.
    fn lanes(&self, lanes: &[Nest], room: usize, more: bool) -> Option<(Block, Vec<usize>)> {
        let wanted: Vec<usize> = lanes.iter().map(|lane| self.natural(lane)).collect();
        let widths = share(&wanted, room.checked_sub(2 * lanes.len().saturating_sub(1))?)?;
        let drawn: Option<Vec<Block>> =
            lanes.iter().zip(widths).map(|(lane, width)| self.nest(lane, width, more)).collect();
        let tail = if more { self.pen.down.chars().next() } else { None };
        Some(Block::beside(drawn?, tail))
    }

    /// Returns the width that a part would take if there were room enough.
    fn natural(&self, nest: &Nest) -> usize {
        match nest {
            Nest::Child(Child::Step(at)) => {
                let (head, details) = self.words(*at, &self.nesting.notes);
                let details = details.iter().map(|line| length(line)).max().unwrap_or(0);
                2 + length(&head).max(details + 2)
            }
            Nest::Child(Child::Group(at)) => {
                let inner = self.nesting.nests[*at].as_ref().map_or(0, |nest| self.natural(nest));
                4 + inner.max(length(&self.label(*at)) + 2)
            }
            Nest::Series(parts) => parts.iter().map(|part| self.natural(part)).max().unwrap_or(0),
            Nest::Parallel(lanes) => {
                lanes.iter().map(|lane| self.natural(lane) + 2).sum::<usize>().saturating_sub(2)
            }
        }
    }

    fn group(&self, at: usize, room: usize) -> Option<Block> {
        let inner_room = room.checked_sub(4)?;
        let mut inner = Block::default();
        for line in self.group_details(at, &self.nesting.notes) {
            wrap(&line, inner_room, 2).into_iter().for_each(|row| inner.push(row));
        }
        inner.below(self.nest(self.nesting.nests[at].as_ref()?, inner_room, false)?);
        let label = self.label(at);
        let width = inner.width.max(length(&label));
        let [top_left, top_right, bottom_left, bottom_right] = self.pen.corners;
        let across = self.pen.across;
        let mut top = vec![Piece::dim(format!("{top_left}{across} "))];
        let rest = (width + 1).saturating_sub(length(&label) + 1);
        top.extend(label);
        top.push(Piece::dim(format!(" {}{top_right}", across.repeat(rest.saturating_sub(1)))));
        let mut block = Block::default();
        let width = width.max(length(&top).saturating_sub(4));
        block.push(top);
        for mut line in inner.lines {
            pad(&mut line, width);
            line.insert(0, Piece::dim(format!("{} ", self.pen.down)));
            line.push(Piece::dim(format!(" {}", self.pen.down)));
            block.push(line);
        }
        block.push(vec![Piece::dim(format!("{bottom_left}{}{bottom_right}", across.repeat(width + 2)))]);
        (block.width <= room).then_some(block)
    }

    fn label(&self, at: usize) -> Line {
        let group = &self.shape.groups[at];
        let mut label = vec![Piece::new(self.within(&group.id, group.parent), Tone::Strong)];
        if let Some(manner) = group.manner() {
            label.push(Piece::dim(format!(": {manner}")));
        }
        label
    }

    /// Leaves out of an id what the frame around it says already: the name of the call that it is part of.
    fn within<'i>(&self, id: &'i str, group: Option<usize>) -> &'i str {
        let around = std::iter::successors(group, |group| self.shape.groups[*group].parent);
        let prefixes = around.filter_map(|group| id.strip_prefix(&self.shape.groups[group].id));
        prefixes.filter_map(|rest| rest.strip_prefix('/')).next().unwrap_or(id)
    }

    fn group_details(&self, at: usize, notes: &Notes) -> Vec<Line> {
        let group = &self.shape.groups[at];
        let conditions =
            group.conditions.iter().map(|it| vec![Piece::new(format!("if {it}"), Tone::Caution)]);
        let notes = notes.get(&Child::Group(at)).into_iter().flatten();
        let notes = notes.map(|note| vec![Piece::new(note, Tone::Caution)]);
        let marks = marks(&group.marks);
        conditions.chain(notes).chain((!marks.is_empty()).then_some(marks)).collect()
    }

    fn step(&self, at: usize, room: usize, more: bool) -> Option<Block> {
        let inner = room.checked_sub(2)?;
        let (head, details) = self.words(at, &self.nesting.notes);
        let step = &self.shape.steps[at];
        let skipped = step.marks.iter().any(|mark| matches!(mark, Mark::Skipped(_)));
        let bullet = if skipped { self.pen.skipped } else { self.pen.step };
        let bar = if more { format!("{} ", self.pen.down) } else { "  ".to_owned() };
        let mut block = Block::default();
        let hang = inner.checked_sub(2)?;
        let rows = wrap(&head, inner, 2).into_iter().enumerate().map(|(row, line)| (row > 0, line));
        let details = details.iter().flat_map(|line| wrap(line, hang, 0)).map(|line| (true, line));
        for (number, (hangs, line)) in rows.chain(details).enumerate() {
            let lead = if number == 0 { format!("{bullet} ") } else { bar.clone() };
            let mut row = vec![Piece { text: lead, tone: if number == 0 { Tone::Plain } else { Tone::Dim } }];
            if hangs {
                row.push(Piece { text: "  ".to_owned(), tone: Tone::Plain });
            }
            row.extend(line);
            trim(&mut row);
            block.push(row);
        }
        (block.width <= room).then_some(block)
    }

    /// Returns what is said of a step: its first line, and what stands below.
    fn words(&self, at: usize, notes: &Notes) -> (Line, Vec<Line>) {
        let step = &self.shape.steps[at];
        let id = self.within(&step.id, step.group);
        let mut head = vec![Piece::code(id)];
        if step.title.replace(' ', "_") != id {
            head.push(Piece::plain(format!("  {}", step.title)));
        }
        let mut kind = vec![Piece::dim(&step.uses)];
        let marks = marks(&step.marks);
        if !marks.is_empty() {
            kind.push(Piece::dim(self.pen.dot));
            kind.extend(marks);
        }
        let conditions = step.conditions.iter().map(|it| vec![Piece::new(format!("if {it}"), Tone::Caution)]);
        let notes = notes.get(&Child::Step(at)).into_iter().flatten();
        let notes = notes.map(|note| vec![Piece::new(note, Tone::Caution)]);
        (head, std::iter::once(kind).chain(conditions).chain(notes).collect())
    }

    /// Writes an indented list, where indentation is a group and the order of lines is that of the file.
    fn listed(&self, width: usize) -> Vec<Line> {
        let mut lines = Vec::new();
        let root = self.shape.groups.len();
        let of = |always: bool| {
            self.children[root].iter().filter(move |it| is_always(self.shape, **it, self.children) == always)
        };
        of(false).for_each(|child| self.list(*child, (width, 0), &mut lines));
        if of(true).next().is_some() {
            lines.push(Line::new());
            lines.push(vec![Piece::dim("always, whatever happens:")]);
            of(true).for_each(|child| self.list(*child, (width, 0), &mut lines));
        }
        lines
    }

    fn list(&self, child: Child, (width, depth): (usize, usize), lines: &mut Vec<Line>) {
        // Deeper than this a line would have no room left.
        let indent = (depth * 2).min(width / 2);
        let mut put = |line: &Line, more: usize| {
            for row in wrap(line, width.saturating_sub(indent + more).max(NARROWEST), 2) {
                let mut full = vec![Piece { text: " ".repeat(indent + more), tone: Tone::Plain }];
                full.extend(row);
                trim(&mut full);
                lines.push(full);
            }
        };
        match child {
            Child::Step(at) => {
                let (mut head, details) = self.words(at, &self.nesting.listed);
                head.insert(0, Piece::plain(format!("{} ", self.pen.step)));
                put(&head, 0);
                details.iter().for_each(|line| put(line, 4));
            }
            Child::Group(at) => {
                put(&self.label(at), 0);
                self.group_details(at, &self.nesting.listed).iter().for_each(|line| put(line, 4));
                for child in &self.children[at] {
                    self.list(*child, (width, depth + 1), lines);
                }
            }
        }
    }
}

fn marks(marks: &[Mark]) -> Line {
    let mut line = Line::new();
    for mark in marks {
        if !line.is_empty() {
            line.push(Piece::dim(", "));
        }
        let tone = match mark {
            Mark::Destroys => Tone::Bad,
            Mark::Asks(_) | Mark::Skipped(_) => Tone::Caution,
            Mark::Recovered => Tone::Good,
            Mark::Milestone(_) | Mark::Note(_) => Tone::Plain,
        };
        line.push(Piece::new(mark.words(), tone));
    }
    line
}

fn trim(line: &mut Line) {
    while let Some(last) = line.last_mut() {
        let end = last.text.trim_end_matches(' ').len();
        last.text.truncate(end);
        if !last.text.is_empty() {
            return;
        }
        line.pop();
    }
}

/// Shares columns out: who wants little gets it, the others the same each. `None` if that is too little.
fn share(wanted: &[usize], room: usize) -> Option<Vec<usize>> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by_key(|at| wanted[*at]);
    let mut widths = vec![0; wanted.len()];
    let mut left = room;
    for (done, at) in order.iter().enumerate() {
        let fair = left / (wanted.len() - done);
        widths[*at] = wanted[*at].min(fair);
        if widths[*at] < wanted[*at] && widths[*at] < NARROWEST {
            return None;
        }
        left -= widths[*at];
    }
    Some(widths)
}
