use granit_parser::ErrorKind;

/// What is wrong, and what to do about it.
type Words = (&'static str, &'static str);

/// Says in our words what the parser of YAML could not read, and what to do about it.
pub(super) fn explain(kind: &ErrorKind, told: String) -> (String, Option<&'static str>) {
    use ErrorKind as E;
    match kind {
        E::UnclosedFlowCollection { open } => {
            (format!("this `{open}` is never closed"), Some("add the bracket that closes it"))
        }
        E::MismatchedFlowCollectionEnd { open, close } => {
            let message = format!("`{open}` is closed by `{close}`");
            (message, Some("close brackets in the opposite order to the one they are opened in"))
        }
        E::UnexpectedCharacter { character } if character.is_control() => {
            let message = format!("the character U+{:04X} is not allowed in YAML", u32::from(*character));
            (message, Some("remove it, or write it as an escape in double quotes"))
        }
        E::UnexpectedCharacter { character } => {
            (format!("`{character}` cannot begin a value"), Some("put the value into quotes"))
        }
        kind => match structure(kind).or_else(|| quotes(kind)).or_else(|| signs(kind)) {
            Some((message, help)) => (message.to_owned(), Some(help)),
            None => (format!("not valid YAML: {told}"), None),
        },
    }
}

/// Brackets, keys, lists and indentation.
fn structure(kind: &ErrorKind) -> Option<Words> {
    use ErrorKind as E;
    Some(match kind {
        E::UnexpectedEofFlowSequence | E::UnexpectedEofFlowMapping | E::UnexpectedEofImplicitFlowMapping => {
            ("the file ends within brackets", "close every `[` with `]` and every `{` with `}`")
        }
        E::UnexpectedEofBlockSequence | E::UnexpectedEofBlockMapping | E::UnexpectedEof => {
            ("the file ends in the middle of a value", "was all of it saved?")
        }
        E::ExpectedFlowMappingSeparator => {
            ("expected `,` or `}` here", "put text with `,`, `[`, `]`, `{`, `}` or `: ` in it into quotes")
        }
        E::ExpectedFlowSequenceSeparator => {
            ("expected `,` or `]` here", "put text with `,`, `[`, `]`, `{`, `}` or `: ` in it into quotes")
        }
        E::ExpectedBlockMappingKey | E::InvalidIndentation => (
            "this line belongs to nothing above it",
            "keys of one map, and the `-` of one list, begin in one column; compare with the lines above",
        ),
        E::ExpectedBlockSequenceEntry => (
            "expected `- ` here",
            "elements of one list begin with `- ` in one column; a key of the element above begins where its other keys do",
        ),
        E::ExpectedNodeContent => ("a value is missing here", "write it, or remove what announces it"),
        E::MappingValueNotAllowed | E::InvalidColonPlacement => (
            "`:` cannot stand here",
            "put text with `: ` in it into quotes; if a key is meant, begin it on a line of its own",
        ),
        E::SimpleKeyExpected | E::InvalidSimpleKey => (
            "this line is neither `key: value` nor `- element`",
            "add the `:` and a blank after the key; text of several lines begins with `|` or stands in quotes",
        ),
        E::MappingKeyNotAllowed => ("a key cannot begin here", "begin it on a line of its own"),
        E::BlockSequenceEntryNotAllowed | E::BlockEntryInFlowCollection => {
            ("a list with `-` cannot begin here", "begin it on the next line, or write `[one, two]`")
        }
        E::InvalidMappingValueWhitespace | E::InvalidBlockEntryWhitespace | E::ExpectedWhitespace => {
            ("a blank is missing here", "write a blank after `:`, after `-` and between values")
        }
        _ => return None,
    })
}

/// Quotes and what stands in them.
fn quotes(kind: &ErrorKind) -> Option<Words> {
    use ErrorKind as E;
    Some(match kind {
        E::UnclosedQuotedScalar => ("a quote is never closed", "add the quote that closes it"),
        E::InvalidTrailingSingleQuotedScalar => (
            "text follows the closing quote",
            "quote the value as a whole; a quote inside single quotes is written twice: `'it''s'`",
        ),
        E::InvalidTrailingDoubleQuotedScalar => (
            "text follows the closing quote",
            r#"quote the value as a whole; a quote inside double quotes is written `\"`"#,
        ),
        E::UnknownQuotedScalarEscape => (
            "this escape means nothing",
            r"write `\\` for a backslash in double quotes, or put the value into single quotes",
        ),
        E::InvalidQuotedScalarHexEscape
        | E::InvalidLowSurrogateHexEscape
        | E::InvalidLowSurrogate
        | E::MissingLowSurrogate
        | E::UnpairedLowSurrogate
        | E::InvalidUnicodeEscape => (
            "this escape stands for no character",
            "write the character itself; surrogates come in pairs, and no other value is half of one",
        ),
        E::InvalidQuotedScalarIndent | E::InvalidFlowScalarIndent | E::InvalidBlockScalarIndent => (
            "this line is not indented far enough for the value that it is part of",
            "indent it deeper than the key of the value",
        ),
        E::DocumentIndicatorInQuotedScalar => {
            ("a line with `---` or `...` stands inside quotes", "indent the line, or write the text with `|`")
        }
        _ => return None,
    })
}

/// Signs with a meaning of their own, and tabs.
fn signs(kind: &ErrorKind) -> Option<Words> {
    use ErrorKind as E;
    Some(match kind {
        E::CommentNotSeparated => {
            ("a comment must have a blank before it", "write a blank before `#`, or put the text into quotes")
        }
        E::UnknownAnchor => {
            ("no anchor of this name stands above", "write `&name` before the value that is meant")
        }
        E::MissingAnchorOrAliasName => {
            ("`&` and `*` begin the name of an anchor", "put text that begins with them into quotes")
        }
        E::InvalidBlockScalarHeader | E::ZeroBlockScalarIndent => {
            ("`|` and `>` stand at the end of their line", "begin the text on the next line, indented")
        }
        E::BomInsideDocument => ("a byte order mark stands in the middle of the file", "remove it"),
        E::UndeclaredTagHandle => {
            ("`!` begins a tag, and this one means nothing", "put text that begins with `!` into quotes")
        }
        kind if is_tab(kind) => {
            ("a tab stands where blanks belong", "indent with blanks; tabs are not allowed in YAML")
        }
        _ => return None,
    })
}

fn is_tab(kind: &ErrorKind) -> bool {
    use ErrorKind as E;
    matches!(
        kind,
        E::TabNotAllowed
            | E::TabInBlockIndentation
            | E::TabAtBlockScalarStart
            | E::TabInIndentation
            | E::TabInPlainScalar
    )
}
