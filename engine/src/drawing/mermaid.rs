use std::fmt::Write;

use super::nest::{Child, children, is_always};
use super::shape::{Mark, Shape, ShapeStep};
use crate::plan::NeedOn;
use crate::report::page::clean;

/// Writes a shape as a flow chart in Mermaid: groups are subgraphs, every need is an edge.
///
/// Names in it are numbers, so that no id can be mistaken for a word of Mermaid; labels are quoted and escaped.
pub fn mermaid(shape: &Shape) -> String {
    let mut writer = Writer { shape, out: String::from("flowchart TD\n"), children: children(shape) };
    writer.main();
    writer.always();
    writer.edges();
    writer.styles();
    writer.out
}

struct Writer<'a> {
    shape: &'a Shape,
    out: String,
    children: Vec<Vec<Child>>,
}

impl Writer<'_> {
    fn main(&mut self) {
        let root = self.shape.groups.len();
        for child in self.children[root].clone() {
            if !is_always(self.shape, child, &self.children) {
                self.child(child, 1);
            }
        }
    }

    fn always(&mut self) {
        let root = self.shape.groups.len();
        let always: Vec<_> = self.children[root]
            .iter()
            .copied()
            .filter(|child| is_always(self.shape, *child, &self.children))
            .collect();
        if always.is_empty() {
            return;
        }
        self.line(1, "subgraph always[\"always, whatever happens\"]");
        for child in always {
            self.child(child, 2);
        }
        self.line(1, "end");
    }

    fn child(&mut self, child: Child, depth: usize) {
        match child {
            Child::Step(at) => {
                let node = node(at, &self.shape.steps[at]);
                self.line(depth, &node);
            }
            Child::Group(at) => {
                let group = &self.shape.groups[at];
                let mut label = escape(&group.id);
                if let Some(manner) = group.manner() {
                    let _ = write!(label, " ({})", escape(&manner));
                }
                label.extend(group.conditions.iter().map(|it| format!(", if {}", escape(it))));
                self.line(depth, &format!("subgraph g{at}[\"{label}\"]"));
                for child in self.children[at].clone() {
                    self.child(child, depth + 1);
                }
                self.line(depth, "end");
            }
        }
    }

    fn edges(&mut self) {
        let shape = self.shape;
        let (mut failure, mut any, mut number) = (Vec::new(), Vec::new(), 0);
        for (at, step) in shape.steps.iter().enumerate() {
            for edge in &step.needs {
                let from = edge.step;
                let text = match (edge.on, step.conditions.is_empty()) {
                    (NeedOn::Success, true) => format!("s{from} --> s{at}"),
                    (NeedOn::Success, false) => format!("s{from} -.-> s{at}"),
                    (NeedOn::Failure | NeedOn::FailureWithin, _) => {
                        format!("s{from} -. \"on failure\" .-> s{at}")
                    }
                    (NeedOn::Any, _) => format!("s{from} -- \"in any case\" --> s{at}"),
                };
                match edge.on {
                    NeedOn::Success => {}
                    NeedOn::Failure | NeedOn::FailureWithin => failure.push(number),
                    NeedOn::Any => any.push(number),
                }
                number += 1;
                self.line(1, &text);
            }
        }
        for (edges, style) in [(failure, "stroke:#b00020,color:#b00020"), (any, "stroke:#666666")] {
            if !edges.is_empty() {
                let list: Vec<_> = edges.iter().map(usize::to_string).collect();
                self.line(1, &format!("linkStyle {} {style}", list.join(",")));
            }
        }
    }

    fn styles(&mut self) {
        let of = |wanted: &dyn Fn(&ShapeStep) -> bool| {
            let found = self.shape.steps.iter().enumerate().filter(|(_, step)| wanted(step));
            found.map(|(at, _)| format!("s{at}")).collect::<Vec<_>>()
        };
        let classes = [
            ("conditional", "stroke-dasharray:4 3", of(&|step| !step.conditions.is_empty())),
            ("destroys", "stroke:#b00020,stroke-width:2px", of(&|step| step.marks.contains(&Mark::Destroys))),
            ("person", "fill:#fff4ce,color:#000000", of(&|step| asks(step))),
            ("skipped", "opacity:0.5", of(&|step| step.marks.iter().any(is_skipped))),
            ("recovered", "fill:#dff2e1,color:#000000", of(&|step| step.marks.contains(&Mark::Recovered))),
        ];
        for (class, style, nodes) in classes.iter().filter(|(_, _, nodes)| !nodes.is_empty()) {
            self.line(1, &format!("classDef {class} {style}"));
            self.line(1, &format!("class {} {class}", nodes.join(",")));
        }
    }

    fn line(&mut self, depth: usize, text: &str) {
        let _ = writeln!(self.out, "{:indent$}{text}", "", indent = depth * 2);
    }
}

fn asks(step: &ShapeStep) -> bool {
    step.marks.iter().any(|mark| matches!(mark, Mark::Asks(_)))
}

fn is_skipped(mark: &Mark) -> bool {
    matches!(mark, Mark::Skipped(_))
}

/// Writes a step as a node; one that asks a person is a hexagon.
fn node(at: usize, step: &ShapeStep) -> String {
    let mut label = format!("<b>{}</b>", escape(&step.id));
    if step.title.replace(' ', "_") != step.id {
        let _ = write!(label, "<br/>{}", escape(&step.title));
    }
    let _ = write!(label, "<br/>{}", escape(&step.uses));
    for condition in &step.conditions {
        let _ = write!(label, "<br/>if {}", escape(condition));
    }
    for mark in &step.marks {
        let _ = write!(label, "<br/>{}", escape(&mark.words()));
    }
    if asks(step) { format!("s{at}{{{{\"{label}\"}}}}") } else { format!("s{at}[\"{label}\"]") }
}

/// Writes text so that Mermaid shows it as it is: what could end a label or begin markup becomes an entity.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in clean(text).chars() {
        match char {
            '"' | '#' | '<' | '>' | '&' | '`' | '\\' | ';' | '{' | '}' | '$' | '%' => {
                let _ = write!(out, "#{};", u32::from(char));
            }
            other => out.push(other),
        }
    }
    out
}
