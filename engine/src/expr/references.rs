use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{LazyLock, Mutex, PoisonError};

use minijinja::machinery::{self, Span, ast};
use serde_json::{Map, Value, json};

use super::environment::environment;
use super::evaluate::{ExprError, evaluate};
use super::template::{Shape, guard};
use super::words::{explain, instead_of};

/// One place where an expression reads a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The names as far as they are written out: `steps.x["y"].z[0]` is `steps`, `x`, `y`, `z`.
    pub path: Vec<String>,
    /// What follows the first subscript that is no name: of `steps.x[0].y` this is an index and `y`.
    pub then: Vec<Part>,
    /// The bytes of the text that it stands on.
    pub range: Range<usize>,
    pub guard: Guard,
}

/// One part of a chain behind its first index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// `[0]`, `[index]`.
    Index,
    /// Every element, as for `map(attribute='x')`.
    Each,
    Name(String),
}

/// Whether the text provides for the absence of what it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    None,
    /// `| default(…)`, `is defined` on this very name.
    Here,
    /// A test around this place has shown that it exists.
    Around,
}

/// Returns everything that an expression or template reads.
pub fn references(text: &str, shape: Shape) -> Result<Vec<Reference>, ExprError> {
    guard(text, shape)?;
    let mut walker = Walker { text, found: Vec::new(), locals: Vec::new(), defined: Vec::new(), wrong: None };
    match shape {
        Shape::Expression => {
            let expr = machinery::parse_expr(text).map_err(|error| explain(&error, text))?;
            walker.expr(&expr);
        }
        Shape::Template => {
            let syntax = environment().syntax().clone();
            let stmt = machinery::parse(text, "template", syntax).map_err(|error| explain(&error, text))?;
            walker.stmt(&stmt);
        }
    }
    match walker.wrong {
        Some(error) => Err(error),
        None => Ok(walker.found),
    }
}

/// Returns the paths that must exist if a bare expression holds; none if it cannot be read.
pub fn shown_by_success(text: &str) -> Vec<Vec<String>> {
    let mut shown = Vec::new();
    if let Ok(expr) = machinery::parse_expr(text.trim()) {
        shown_by(&expr, true, &mut shown);
    }
    shown
}

/// Gives empty maps to steps that have no outputs, where the text provides for their absence: strict evaluation
/// would otherwise refuse `steps.x.y | default(1)` because `steps.x` itself does not exist.
pub(super) fn with_parents<'a>(
    text: &str,
    shape: Shape,
    names: &'a Map<String, Value>,
) -> Cow<'a, Map<String, Value>> {
    let mut names = Cow::Borrowed(names);
    if !text.contains('|') && !text.contains("defined") {
        return names;
    }
    for reference in references(text, shape).unwrap_or_default() {
        if let (Guard::Here, [first, parent, _, ..]) = (reference.guard, reference.path.as_slice()) {
            let known = names.get(first).and_then(Value::as_object);
            if known.is_some_and(|known| !known.contains_key(parent))
                && let Some(map) = names.to_mut().get_mut(first).and_then(Value::as_object_mut)
            {
                map.insert(parent.clone(), json!({}));
            }
        }
    }
    names
}

struct Walker<'t> {
    text: &'t str,
    found: Vec<Reference>,
    /// Names that the template itself declares.
    locals: Vec<String>,
    /// Paths that a test around this place has shown to exist.
    defined: Vec<Vec<String>>,
    wrong: Option<ExprError>,
}

impl<'t> Walker<'t> {
    fn stmts(&mut self, stmts: &[ast::Stmt<'t>]) {
        for stmt in stmts {
            self.stmt(stmt);
        }
    }

    fn stmt(&mut self, stmt: &ast::Stmt<'t>) {
        match stmt {
            ast::Stmt::Template(template) => self.stmts(&template.children),
            ast::Stmt::EmitExpr(emit) => self.expr(&emit.expr),
            ast::Stmt::ForLoop(each) => self.for_loop(each),
            ast::Stmt::IfCond(test) => {
                self.expr(&test.expr);
                self.within(&test.expr, true, |walker| walker.stmts(&test.true_body));
                self.within(&test.expr, false, |walker| walker.stmts(&test.false_body));
            }
            ast::Stmt::WithBlock(with) => {
                let before = self.locals.len();
                for (target, value) in &with.assignments {
                    self.expr(value);
                    self.declare(target);
                }
                self.stmts(&with.body);
                self.locals.truncate(before);
            }
            ast::Stmt::Set(set) => {
                self.expr(&set.expr);
                self.declare(&set.target);
            }
            ast::Stmt::SetBlock(set) => {
                self.stmts(&set.body);
                self.declare(&set.target);
            }
            ast::Stmt::AutoEscape(block) => self.stmts(&block.body),
            ast::Stmt::FilterBlock(block) => {
                self.expr(&block.filter);
                self.stmts(&block.body);
            }
            ast::Stmt::Do(call) => {
                self.expr(&call.call.expr);
                self.args(&call.call.args);
            }
            _ => {}
        }
    }

    fn for_loop(&mut self, each: &ast::ForLoop<'t>) {
        self.expr(&each.iter);
        let before = self.locals.len();
        self.declare(&each.target);
        self.locals.push("loop".to_owned());
        if let Some(filter) = &each.filter_expr {
            self.expr(filter);
        }
        self.stmts(&each.body);
        self.locals.truncate(before);
        self.stmts(&each.else_body);
    }

    fn declare(&mut self, target: &ast::Expr<'t>) {
        match target {
            ast::Expr::Var(var) => self.locals.push(var.id.to_owned()),
            ast::Expr::List(list) => list.items.iter().for_each(|item| self.declare(item)),
            ast::Expr::Tuple(tuple) => tuple.items.iter().for_each(|item| self.declare(item)),
            _ => {}
        }
    }

    fn expr(&mut self, expr: &ast::Expr<'t>) {
        match expr {
            ast::Expr::Var(_) | ast::Expr::GetAttr(_) | ast::Expr::GetItem(_) => self.access(expr, false),
            ast::Expr::Const(_) => {}
            ast::Expr::Slice(slice) => {
                self.expr(&slice.expr);
                [&slice.start, &slice.stop, &slice.step]
                    .into_iter()
                    .flatten()
                    .for_each(|part| self.expr(part));
            }
            ast::Expr::UnaryOp(op) => self.expr(&op.expr),
            ast::Expr::BinOp(op) => self.binary(op),
            ast::Expr::Compare(compare) => {
                self.expr(&compare.expr);
                compare.ops.iter().for_each(|op| self.expr(&op.expr));
            }
            ast::Expr::IfExpr(test) => {
                self.expr(&test.test_expr);
                self.within(&test.test_expr, true, |walker| walker.expr(&test.true_expr));
                if let Some(other) = &test.false_expr {
                    self.within(&test.test_expr, false, |walker| walker.expr(other));
                }
            }
            ast::Expr::Filter(filter) => self.filter(filter),
            ast::Expr::Test(test) => self.test(test),
            ast::Expr::Call(call) => self.call(call),
            ast::Expr::List(list) => list.items.iter().for_each(|item| self.expr(item)),
            ast::Expr::Tuple(tuple) => tuple.items.iter().for_each(|item| self.expr(item)),
            ast::Expr::Map(map) => map.keys.iter().chain(&map.values).for_each(|item| self.expr(item)),
        }
    }

    fn binary(&mut self, op: &ast::BinOp<'t>) {
        self.expr(&op.left);
        match op.op {
            ast::BinOpKind::ScAnd => self.within(&op.left, true, |walker| walker.expr(&op.right)),
            ast::BinOpKind::ScOr => self.within(&op.left, false, |walker| walker.expr(&op.right)),
            _ => self.expr(&op.right),
        }
    }

    fn filter(&mut self, filter: &ast::Filter<'t>) {
        if !exists("name is filter", filter.name) {
            self.fail(filter.expr.as_ref().map(ast::Expr::span), "filter", filter.name);
        }
        if let (Some(expr), "map", Some(then)) = (&filter.expr, filter.name, attribute(&filter.args)) {
            self.access_all(expr, then);
        } else if let Some(expr) = &filter.expr {
            if matches!(filter.name, "default" | "d") { self.access_or_expr(expr) } else { self.expr(expr) }
        }
        self.args(&filter.args);
    }

    fn test(&mut self, test: &ast::Test<'t>) {
        if !exists("name is test", test.name) {
            self.fail(Some(test.expr.span()), "test", test.name);
        }
        if matches!(test.name, "defined" | "undefined") {
            self.access_or_expr(&test.expr)
        } else {
            self.expr(&test.expr)
        }
        self.args(&test.args);
    }

    fn call(&mut self, call: &ast::Call<'t>) {
        match &call.expr {
            ast::Expr::Var(var) if FUNCTIONS.contains(var.id) => {}
            ast::Expr::Var(var) => self.fail(Some(call.expr.span()), "function", var.id),
            ast::Expr::GetAttr(attr) => self.expr(&attr.expr),
            other => self.expr(other),
        }
        self.args(&call.args);
    }

    fn args(&mut self, args: &[ast::CallArg<'t>]) {
        for arg in args {
            match arg {
                ast::CallArg::Pos(expr)
                | ast::CallArg::Kwarg(_, expr)
                | ast::CallArg::PosSplat(expr)
                | ast::CallArg::KwargSplat(expr) => self.expr(expr),
            }
        }
    }

    fn access_or_expr(&mut self, expr: &ast::Expr<'t>) {
        match expr {
            ast::Expr::Var(_) | ast::Expr::GetAttr(_) | ast::Expr::GetItem(_) => self.access(expr, true),
            other => self.expr(other),
        }
    }

    /// Notes a chain of which an attribute of every element is read.
    fn access_all(&mut self, expr: &ast::Expr<'t>, then: Vec<Part>) {
        let before = self.found.len();
        let default = match expr {
            ast::Expr::Filter(filter) if matches!(filter.name, "default" | "d") => filter.expr.as_ref(),
            _ => None,
        };
        let chain = default.unwrap_or(expr);
        self.expr(expr);
        // What subscripts read is noted behind the chain itself.
        let own = static_path(chain).is_some().then(|| self.found.get_mut(before)).flatten();
        if let Some(reference) = own.filter(|reference| reference.then.is_empty()) {
            reference.then = then;
        }
    }

    /// Notes one chain of names.
    fn access(&mut self, expr: &ast::Expr<'t>, guarded: bool) {
        let Some((path, then)) = chain(expr) else {
            return self.through(expr);
        };
        if self.locals.contains(&path[0]) || FUNCTIONS.contains(path[0].as_str()) {
            return self.through(expr);
        }
        let shown = self.defined.iter().any(|defined| {
            let common = defined.len().min(path.len());
            // Knowing `steps.x.y` means knowing `steps.x`; knowing `steps.x` alone is knowing that it ran.
            defined[..common] == path[..common]
        });
        let range = self.bytes(base(expr).span()).start..self.bytes(expr.span()).end;
        let guard = match (guarded, shown) {
            (true, _) => Guard::Here,
            (false, true) => Guard::Around,
            (false, false) => Guard::None,
        };
        self.found.push(Reference { path, then, range, guard });
        self.through(expr);
    }

    /// Visits the subscripts of a chain, and a base that is no name.
    fn through(&mut self, expr: &ast::Expr<'t>) {
        match expr {
            ast::Expr::GetAttr(attr) => self.through(&attr.expr),
            ast::Expr::GetItem(item) => {
                self.through(&item.expr);
                self.expr(&item.subscript_expr);
            }
            ast::Expr::Var(_) => {}
            other => self.expr(other),
        }
    }

    /// Visits what is only evaluated if `test` came out as said.
    fn within(&mut self, test: &ast::Expr<'t>, outcome: bool, visit: impl FnOnce(&mut Self)) {
        let before = self.defined.len();
        shown_by(test, outcome, &mut self.defined);
        visit(self);
        self.defined.truncate(before);
    }

    fn bytes(&self, span: Span) -> Range<usize> {
        let end = (span.end_offset as usize).min(self.text.len());
        (span.start_offset as usize).min(end)..end
    }

    /// Notes the first name that does not exist; it stands at `span` or, what is not known more exactly, after it.
    fn fail(&mut self, span: Option<Span>, what: &str, name: &str) {
        if self.wrong.is_some() {
            return;
        }
        let from = span.map_or(0, |span| self.bytes(span).start);
        let range = self.text[from..].find(name).map(|at| from + at..from + at + name.len());
        let shown = if what == "test" { format!("is {name}") } else { name.to_owned() };
        let message = format!("there is no {what} `{shown}`");
        self.wrong = Some(ExprError { message, range, help: instead_of(what, name) });
    }
}

static FUNCTIONS: LazyLock<BTreeSet<&str>> = LazyLock::new(|| BTreeSet::from(["range", "dict"]));

/// Says whether the environment knows a filter or a test. What it knows never changes, so names that were found once are
/// remembered; those that were not are reported and need no speed.
fn exists(question: &'static str, name: &str) -> bool {
    static KNOWN: Mutex<BTreeSet<(&str, String)>> = Mutex::new(BTreeSet::new());
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (question, name.to_owned());
    if known().contains(&key) {
        return true;
    }
    let names = Map::from_iter([("name".to_owned(), json!(name))]);
    let found = evaluate(question, &names) == Ok(json!(true));
    if found {
        known().insert(key);
    }
    found
}

/// Returns the name that a chain begins with: the span of the chain itself begins at its last dot.
fn base<'e, 't>(expr: &'e ast::Expr<'t>) -> &'e ast::Expr<'t> {
    match expr {
        ast::Expr::GetAttr(attr) => base(&attr.expr),
        ast::Expr::GetItem(item) => base(&item.expr),
        other => other,
    }
}

/// Returns the leading names of a chain such as `a.b["c"][0].d`: as far as nothing is computed.
fn static_path(expr: &ast::Expr<'_>) -> Option<Vec<String>> {
    chain(expr).map(|(path, _)| path)
}

/// Returns the leading names of a chain, and what follows its first index.
fn chain(expr: &ast::Expr<'_>) -> Option<(Vec<String>, Vec<Part>)> {
    fn walk(expr: &ast::Expr<'_>, parts: &mut Vec<Part>) -> Option<()> {
        match expr {
            ast::Expr::Var(var) => parts.push(Part::Name(var.id.to_owned())),
            ast::Expr::GetAttr(attr) => {
                walk(&attr.expr, parts)?;
                parts.push(Part::Name(attr.name.to_owned()));
            }
            ast::Expr::GetItem(item) => {
                walk(&item.expr, parts)?;
                let name = match &item.subscript_expr {
                    ast::Expr::Const(key) => key.value.as_str().map(ToOwned::to_owned),
                    _ => None,
                };
                parts.push(name.map_or(Part::Index, Part::Name));
            }
            _ => return None,
        }
        Some(())
    }
    let mut parts = Vec::new();
    walk(expr, &mut parts)?;
    let index = parts.iter().position(|part| *part == Part::Index).unwrap_or(parts.len());
    let then = parts.split_off(index);
    let names =
        parts.into_iter().filter_map(|part| if let Part::Name(name) = part { Some(name) } else { None });
    Some((names.collect(), then))
}

/// Returns what `map(attribute='x.y')` reads of every element.
fn attribute(args: &[ast::CallArg<'_>]) -> Option<Vec<Part>> {
    args.iter().find_map(|arg| match arg {
        ast::CallArg::Kwarg("attribute", ast::Expr::Const(name)) => {
            let names = name.value.as_str()?.split('.').map(|name| Part::Name(name.to_owned()));
            Some(std::iter::once(Part::Each).chain(names).collect())
        }
        _ => None,
    })
}

/// Collects the paths that must exist if `test` came out as said.
fn shown_by(test: &ast::Expr<'_>, outcome: bool, shown: &mut Vec<Vec<String>>) {
    match test {
        ast::Expr::Test(test) if (test.name == "defined") == outcome && is_presence(test.name) => {
            shown.extend(static_path(&test.expr));
        }
        ast::Expr::UnaryOp(op) if matches!(op.op, ast::UnaryOpKind::Not) => {
            shown_by(&op.expr, !outcome, shown)
        }
        ast::Expr::BinOp(op) => match (op.op, outcome) {
            (ast::BinOpKind::ScAnd, true) | (ast::BinOpKind::ScOr, false) => {
                shown_by(&op.left, outcome, shown);
                shown_by(&op.right, outcome, shown);
            }
            _ => {}
        },
        _ => {}
    }
}

fn is_presence(name: &str) -> bool {
    matches!(name, "defined" | "undefined")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, shape: Shape) -> Vec<(String, bool)> {
        let found = references(text, shape).unwrap();
        found
            .into_iter()
            .map(|reference| (reference.path.join("."), reference.guard != Guard::None))
            .collect()
    }

    fn expr(text: &str) -> Vec<(String, bool)> {
        found(text, Shape::Expression)
    }

    #[test]
    fn chains_of_names_are_found_with_their_bytes() {
        assert_eq!(
            expr("steps.a['b'].c[0].d > inputs.n"),
            [("steps.a.b.c".into(), false), ("inputs.n".into(), false)]
        );
        assert_eq!(expr("rows[inputs.i].n"), [("rows".into(), false), ("inputs.i".into(), false)]);
        let text = "é {{ steps.a.b }}";
        let all = references(text, Shape::Template).unwrap();
        assert_eq!(&text[all[0].range.clone()], "steps.a.b");
    }

    #[test]
    fn what_follows_an_index_is_known_too() {
        let name = |name: &str| Part::Name(name.to_owned());
        for (text, then) in [
            ("steps.a[0].b.c", vec![Part::Index, name("b"), name("c")]),
            ("steps.a[inputs.i]['b']", vec![Part::Index, name("b")]),
            ("steps.a | map(attribute='b.c') | list", vec![Part::Each, name("b"), name("c")]),
            ("steps.a | default([]) | map(attribute='b') | list", vec![Part::Each, name("b")]),
            ("steps.a | map('upper')", vec![]),
            ("steps.a", vec![]),
        ] {
            let found = references(text, Shape::Expression).unwrap();
            assert_eq!((found[0].path.join("."), &found[0].then), ("steps.a".into(), &then), "{text}");
        }
    }

    #[test]
    fn tests_around_a_name_guard_it() {
        for guarded in [
            "steps.a.b | default(1)",
            "steps.a.b is defined",
            "steps.a.b is defined and steps.a.b > 1",
            "steps.a is defined and steps.a.b > 1",
            "steps.a is undefined or steps.a.b > 1",
            "not (steps.a is undefined) and steps.a.b > 1",
            "steps.a.b if steps.a.b is defined else 0",
        ] {
            assert!(expr(guarded).iter().all(|(_, guarded)| *guarded), "{guarded}");
        }
        for open in [
            "steps.a.b > 1 and steps.a.b is defined",
            "steps.a.b | upper",
            "steps.b.x is defined or steps.a.b",
        ] {
            assert!(expr(open).iter().any(|(_, guarded)| !guarded), "{open}");
        }
        let text = "{% if steps.a is defined %}{{ steps.a.b }}{% else %}{{ steps.a.b }}{% endif %}";
        let guards: Vec<_> = found(text, Shape::Template).into_iter().map(|(_, guarded)| guarded).collect();
        assert_eq!(guards, [true, true, false]);
    }

    #[test]
    fn names_of_the_template_itself_are_not_references() {
        let text =
            "{% for row in steps.q.rows %}{{ row.n }}{{ loop.index }}{% endfor %}{% set x = 1 %}{{ x }}";
        assert_eq!(found(text, Shape::Template), [("steps.q.rows".into(), false)]);
        assert_eq!(expr("range(3) | length"), []);
    }

    #[test]
    fn unknown_filters_tests_and_functions_are_errors() {
        for text in ["a | uper", "a is defind", "now()"] {
            let error = references(text, Shape::Expression).unwrap_err();
            assert!(error.message.starts_with("there is no"), "{error:?}");
        }
        assert!(references("a +", Shape::Expression).is_err());
        assert!(references("a {{ b", Shape::Template).is_err());
    }
}
