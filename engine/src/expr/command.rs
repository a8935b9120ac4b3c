//! What a quoted word can still change: programs that read their arguments as code, and where bash itself does.

/// One word of a simple command, as written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Word<'s> {
    pub(super) text: &'s str,
    /// Where in the text its first template begins.
    pub(super) hole: Option<usize>,
    /// All of its templates read what the environment's author wrote, `vars` and `resources`.
    pub(super) of_author: bool,
}

/// Words that stand in front of a command and are none.
const KEYWORDS: &[&str] = &[
    "if", "then", "else", "elif", "do", "while", "until", "!", "{", "}", "time", "coproc", "fi", "done",
    "esac",
];
/// Programs that run what follows them; for each, the options that take a word of their own.
const WRAPPERS: &[(&str, &[&str])] = &[
    ("sudo", &["-u", "-g", "-h", "-p", "-C", "-r", "-t", "-T", "-U", "-D", "-R"]),
    ("doas", &["-u", "-C"]),
    ("env", &["-u", "-C", "-S"]),
    ("exec", &["-a"]),
    ("nice", &["-n"]),
    ("ionice", &["-c", "-n", "-p"]),
    ("timeout", &["-k", "-s"]),
    ("xargs", &["-I", "-n", "-P", "-d", "-L", "-a", "-E", "-s"]),
    ("chroot", &[]),
    ("runuser", &["-u", "-g"]),
    ("stdbuf", &["-i", "-o", "-e"]),
    ("flock", &["-w", "-E"]),
    ("command", &[]),
    ("builtin", &[]),
    ("nohup", &[]),
    ("setsid", &[]),
    ("systemd-run", &["-p", "-u"]),
];
/// Commands that read each of their words as code, or as the name of a variable, which may hold code.
const READERS: &[&str] = &[
    "eval",
    "source",
    ".",
    "trap",
    "let",
    "unset",
    "read",
    "mapfile",
    "readarray",
    "getopts",
    "alias",
    "bind",
    "complete",
    "wait",
    "ssh",
    "rsh",
    "mosh",
    "watch",
    "su",
    "parallel",
    "at",
    "batch",
    "enable",
    "hash",
    "fc",
];
const DECLARE: &[&str] = &["declare", "typeset", "local", "readonly", "export"];
const SHELLS: &[&str] = &["sh", "bash", "dash", "zsh", "ksh", "ash", "fish"];
/// Programs whose first word is code.
const LANGUAGES: &[&str] = &[
    "sh",
    "bash",
    "dash",
    "zsh",
    "ksh",
    "ash",
    "fish",
    "busybox",
    "python",
    "python2",
    "python3",
    "perl",
    "ruby",
    "node",
    "php",
    "lua",
    "awk",
    "gawk",
    "mawk",
    "sed",
    "jq",
    "sqlite3",
    "make",
    "tclsh",
    "osascript",
];
const CLIENTS: &[&str] = &["psql", "mysql", "mariadb", "mongosh", "redis-cli"];
/// Variables that choose what bash and other programs run.
const CHOOSING: &[&str] = &[
    "PATH",
    "IFS",
    "ENV",
    "BASH_ENV",
    "PS4",
    "PROMPT_COMMAND",
    "SHELLOPTS",
    "LD_PRELOAD",
    "LD_LIBRARY_PATH",
];

/// Why no value may stand in a simple command: `None` if each of its templates is a word that stays what it is.
pub(super) fn unsafe_place(words: &[Word<'_>]) -> Option<&'static str> {
    if words.iter().all(|word| word.hole.is_none()) {
        return None;
    }
    let words = after_keywords(words);
    if matches!(words.first().map(|word| word.text), Some("for" | "select" | "case")) {
        return words.get(1).filter(|word| word.hole.is_some() && words[0].text != "case").map(|_| VARIABLE);
    }
    let command = words.iter().position(|word| !is_assignment(word.text)).unwrap_or(words.len());
    for word in &words[..command] {
        let name = word.text.split(['=', '+']).next().unwrap_or_default();
        if word.hole.is_some() && (name.contains('[') || CHOOSING.contains(&name)) {
            return Some(if name.contains('[') { VARIABLE } else { CHOICE });
        }
    }
    of_command(&words[command..])
}

const VARIABLE: &str = "as the name of a variable";
const CHOICE: &str = "where it chooses what is run";
const CODE: &str = "in a command that reads its words as code";
const NUMBER: &str = "where bash computes with it, which can run code,";

fn of_command(words: &[Word<'_>]) -> Option<&'static str> {
    let (first, rest) = words.split_first()?;
    if first.hole.is_some() {
        return if first.of_author { inner_shell(rest) } else { Some(CHOICE) };
    }
    let plain = unquoted(first.text);
    let name = plain.rsplit('/').next().unwrap_or_default();
    if let Some((_, options)) = WRAPPERS.iter().find(|(wrapper, _)| *wrapper == name) {
        return of_command(wrapped(rest, options));
    }
    let has_hole = rest.iter().any(|word| word.hole.is_some());
    if !has_hole {
        return None;
    }
    let says = |wanted: &[&str]| rest.iter().any(|word| wanted.contains(&unquoted(word.text).as_str()));
    match name {
        _ if READERS.contains(&name) => Some(CODE),
        "[[" if says(&["-eq", "-ne", "-lt", "-le", "-gt", "-ge", "-v", "-R"]) => Some(NUMBER),
        "[" | "test" if says(&["-v", "-R", "-a", "-o"]) || two_holes(rest) => Some(NUMBER),
        "printf" if rest.first().is_some_and(|word| word.hole.is_some()) || says(&["-v"]) => Some(CODE),
        _ if DECLARE.contains(&name) => declares(rest),
        _ if LANGUAGES.contains(&name) => interprets(rest),
        _ if CLIENTS.contains(&name) => executes(rest),
        _ => inner_shell(rest),
    }
}

/// Skips options, their words, numbers and assignments: what is left is the command.
fn wrapped<'w, 's>(words: &'w [Word<'s>], options: &[&str]) -> &'w [Word<'s>] {
    let mut at = 0;
    // A value behind `NAME=` is only a value.
    let is_plain = |word: &&Word<'_>| word.hole.is_none_or(|hole| is_assignment(&word.text[..hole]));
    while let Some(word) = words.get(at).filter(is_plain) {
        let text = unquoted(word.text);
        let is_number = text.starts_with(|c: char| c.is_ascii_digit());
        if options.contains(&text.as_str()) {
            at += 2;
        } else if text.starts_with('-') || is_number || is_assignment(word.text) {
            at += 1;
        } else {
            break;
        }
    }
    words.get(at..).unwrap_or_default()
}

/// `declare NAME={{ x }}` is safe; the name itself, and a variable that is a number or a reference, are not.
fn declares(words: &[Word<'_>]) -> Option<&'static str> {
    let risky = |word: &Word<'_>| word.text.starts_with('-') && word.text.contains(['i', 'n', 'a', 'A']);
    if words.iter().any(risky) {
        return Some(NUMBER);
    }
    let named = |word: &Word<'_>| {
        word.hole.is_none_or(|hole| is_assignment(&word.text[..hole]) && !word.text[..hole].contains('['))
    };
    let chooses = |word: &Word<'_>| {
        word.hole.is_some() && CHOOSING.iter().any(|name| word.text.starts_with(&format!("{name}=")))
    };
    if words.iter().any(chooses) {
        return Some(CHOICE);
    }
    (!words.iter().all(named)).then_some(VARIABLE)
}

/// Code stands after an option such as `-c`, or first; what follows a file of code is data.
fn interprets(words: &[Word<'_>]) -> Option<&'static str> {
    for word in words {
        let text = unquoted(word.text);
        if word.hole.is_some() || (text.starts_with('-') && text.contains(['c', 'e', 'r', 'f', 'x'])) {
            return Some(CODE);
        }
        if !text.starts_with(['-', '+']) {
            return inner_shell(words);
        }
    }
    None
}

/// `psql -c {{ x }}`: also a statement can run programs.
fn executes(words: &[Word<'_>]) -> Option<&'static str> {
    const OPTIONS: &[&str] =
        &["-c", "-e", "--command", "--execute", "--eval", "-f", "--file", "eval", "EVAL"];
    let given = words
        .windows(2)
        .any(|pair| OPTIONS.contains(&unquoted(pair[0].text).as_str()) && pair[1].hole.is_some());
    let attached = |word: &Word<'_>| {
        word.hole.is_some_and(|hole| {
            OPTIONS.iter().any(|option| word.text[..hole].trim_end_matches('=') == *option)
        })
    };
    (given || words.iter().any(attached)).then_some(CODE)
}

/// `docker exec shop sh -c {{ x }}`, `find . -exec bash -c …`.
fn inner_shell(words: &[Word<'_>]) -> Option<&'static str> {
    let is_shell = |word: &Word<'_>| {
        let text = unquoted(word.text);
        word.hole.is_none()
            && text.rsplit('/').next().is_some_and(|name| SHELLS.contains(&name) || name == "eval")
    };
    let shell = words.iter().position(is_shell)?;
    words[shell + 1..].iter().any(|word| word.hole.is_some()).then_some(CODE)
}

fn two_holes(words: &[Word<'_>]) -> bool {
    words.windows(2).any(|pair| pair[0].hole.is_some() && pair[1].hole.is_some())
}

fn after_keywords<'w, 's>(mut words: &'w [Word<'s>]) -> &'w [Word<'s>] {
    while let Some((first, rest)) = words.split_first().filter(|(first, _)| KEYWORDS.contains(&first.text)) {
        let _ = first;
        words = rest;
    }
    words
}

/// `NAME=…`, `NAME+=…` or `NAME[…]=…`.
fn is_assignment(text: &str) -> bool {
    let Some((name, _)) = text.split_once('=') else { return false };
    let name = name.trim_end_matches('+');
    let name = name.split('[').next().unwrap_or_default();
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Takes the quotes off a word, to compare it with names.
fn unquoted(text: &str) -> String {
    text.replace(['\'', '"', '\\'], "")
}
