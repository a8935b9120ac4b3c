use super::keys::Keys;
use super::reader::Reader;
use super::step::{Repetition, UntilSpec, checked_condition, read_count};
use crate::diagnostic::{Diagnostic, codes};
use crate::value::Span;
use crate::yaml::Entry;

pub(super) fn read_repetition(reader: &mut Reader<'_>, keys: &Keys<'_>) -> Repetition {
    let for_each = keys.entry("for_each");
    if let Some(entry) = keys.entry("max_parallel").filter(|_| for_each.is_none()) {
        reader.push(
            Diagnostic::error(
                codes::LB0150,
                "`max_parallel` without `for_each`: there is nothing to run at once",
            )
            .at(reader.source, entry.key.span.clone())
            .help("remove it, or say for what the step is repeated: `for_each: [a, b]`"),
        );
    }
    Repetition {
        for_each: for_each.cloned(),
        max_parallel: keys.get("max_parallel").and_then(|node| read_count(reader, node)),
        until: read_until(reader, keys),
    }
}

fn read_until(reader: &mut Reader<'_>, keys: &Keys<'_>) -> Option<UntilSpec> {
    let incomplete = |reader: &mut Reader<'_>, entry: &Entry, message: &str, help: &str| {
        reader.push(
            Diagnostic::error(codes::LB0150, message).at(reader.source, entry.key.span.clone()).help(help),
        );
    };
    let every = keys.entry("every");
    let Some(until) = keys.entry("until") else {
        if let Some(every) = every {
            let help = "say what is waited for, `until: output.stdout == 'ready'`, or remove `every`";
            incomplete(reader, every, "`every` without `until`: the step runs once", help);
        }
        return None;
    };
    if keys.get("timeout").is_none() {
        let help = "add `timeout: 5m`: after that the attempt fails and says what it saw last";
        incomplete(reader, until, "`until` without `timeout` could wait for ever", help);
    }
    if every.is_none() {
        let help = "add `every: 10s`, the wait before the step is repeated";
        incomplete(reader, until, "`until` does not say how often: there is no `every`", help);
    }
    let condition = checked_condition(reader, &until.value);
    let every = every?;
    let wait = reader.duration(&every.value)?;
    let timeout = keys.get("timeout").and_then(|node| Span::parse(node.text()?).ok());
    if wait.0.is_zero() {
        let help = "wait between two polls, for example `1s`";
        incomplete(reader, every, "`every: 0s` would not wait at all", help);
    } else if timeout.is_some_and(|timeout| timeout.0 <= wait.0) {
        let help = "make `every` shorter or `timeout` longer";
        incomplete(
            reader,
            every,
            "`every` is not shorter than `timeout`: the step would look only once",
            help,
        );
    }
    Some(UntilSpec { key: until.key.span.clone(), condition: condition?, every: wait })
}
