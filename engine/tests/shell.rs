//! Values in scripts, with a real bash: wherever a template is accepted, the value arrives as one word and changes
//! nothing else.

use std::path::Path;
use std::process::Command;

use lifeboat_engine::expr::{holes, render, render_script};
use lifeboat_engine::value::{Field, Type};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn names(values: &[(&str, &str)]) -> Map<String, Value> {
    let inputs: Map<_, _> = values.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    Map::from_iter([("inputs".to_owned(), Value::Object(inputs))])
}

/// Runs a script as a step does, and returns what it printed.
fn bash(script: &str, dir: &Path, env: &[(&str, &str)]) -> Vec<u8> {
    let mut command = Command::new("bash");
    command
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(dir)
        .env_clear()
        .stdin(std::process::Stdio::null());
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("LC_ALL", "C.UTF-8");
    command.envs(env.iter().copied()).output().expect("bash runs").stdout
}

/// Values that have broken scripts before.
const NASTY: &[&str] = &[
    "",
    " ",
    "  two  words  ",
    "\n",
    "a\nb\n",
    "\r\n",
    "\t",
    "'",
    "\"",
    "''",
    "'\"'\"'",
    "\\",
    "\\'",
    "\\\n",
    "$HOME",
    "${HOME}",
    "$(touch pwned)",
    "`touch pwned`",
    "';touch pwned;'",
    "\";touch pwned;\"",
    "\ntouch pwned\n",
    ";touch pwned #",
    "&& touch pwned",
    "| touch pwned",
    "& touch pwned &",
    "> pwned",
    "<(touch pwned)",
    "a[$(touch pwned)]",
    "x=$(touch pwned)",
    "-rf",
    "--",
    "-v",
    "-c",
    "-e",
    "*",
    "?",
    "[a-z]*",
    "~",
    "~root",
    "{a,b}",
    "{1..9}",
    "!!",
    "!$",
    "#",
    "# comment",
    "%s%n",
    "%(touch)T",
    "\u{1}",
    "\u{7f}",
    "é",
    "日本語",
    "🚒",
    "\u{202e}",
    "\u{2028}",
    "\u{feff}",
    "EOF",
    "E\ntouch pwned\nE",
    ")",
    "(",
    "))",
    "}",
    "}}",
    "{{ x }}",
    "esac",
    ";;",
    "done",
    "$'\\x27'",
    "$\"",
    "{% raw %}",
    "a\u{0}b",
];

fn value() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        proptest::sample::select(NASTY).prop_map(ToOwned::to_owned),
        "[ -~]{0,8}",
        "\\PC{0,6}",
        "[\n\r\t'\"\\\\$`;&|<>(){}*?!#~=-]{0,8}",
    ];
    proptest::collection::vec(piece, 1..4).prop_map(|pieces| pieces.concat().replace('\0', ""))
}

/// What `printf '%s\0'` of these words prints.
fn words(words: &[&str]) -> Vec<u8> {
    words.iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect()
}

/// Every place where an author may write a template, each printing the words that arrived.
fn places(value: &str) -> Vec<(&'static str, Vec<u8>)> {
    let around = format!("--a={value}/b");
    let stripped = value.trim_end_matches('\n');
    vec![
        ("printf '%s\\0' {{ inputs.x }}", words(&[value])),
        ("printf '%s\\0' {{ inputs.x }} {{ inputs.x }}", words(&[value, value])),
        ("printf '%s\\0' --a={{ inputs.x }}/b", words(&[&around])),
        ("v={{ inputs.x }}; printf '%s\\0' \"$v\"", words(&[value])),
        ("export V={{ inputs.x }}\nprintf '%s\\0' \"$V\"", words(&[value])),
        ("list=(a {{ inputs.x }} b); printf '%s\\0' \"${list[@]}\"", words(&["a", value, "b"])),
        ("for v in {{ inputs.x }} z; do printf '%s\\0' \"$v\"; done", words(&[value, "z"])),
        ("( cd . && printf '%s\\0' {{ inputs.x }} ) | cat", words(&[value])),
        ("v=$(printf '%s' {{ inputs.x }}); printf '%s\\0' \"$v\"", words(&[stripped])),
        ("if true; then printf '%s\\0' {{ inputs.x }}; fi # done", words(&[value])),
        ("case {{ inputs.x }} in zzz) ;; *) printf '%s\\0' {{ inputs.x }};; esac", words(&[value])),
        ("f() { printf '%s\\0' \"$@\"; }; f {{ inputs.x }} {{ inputs.x }}", words(&[value, value])),
        ("if [ {{ inputs.x }} = {{ inputs.x }} ]; then printf 'same\\0'; fi", words(&["same"])),
        ("[[ {{ inputs.x }} == {{ inputs.x }} ]] && printf 'same\\0'", words(&["same"])),
        ("cat <<< {{ inputs.x }}", format!("{value}\n").into_bytes()),
        ("cat <<'E'\nit's\nE\nprintf '%s\\0' {{ inputs.x }}", [b"it's\n".to_vec(), words(&[value])].concat()),
        ("env printf '%s\\0' {{ inputs.x }}", words(&[value])),
        ("A={{ inputs.x }} bash -c 'printf \"%s\\0\" \"$A\"'", words(&[value])),
        ("bash /dev/stdin 2>/dev/null <<'E' {{ inputs.x }}\nprintf '%s\\0' \"$1\"\nE\n", words(&[value])),
    ]
}

fn arrives(value: &str) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().expect("a directory");
    for (script, expected) in places(value) {
        let (_, refused) = holes(script);
        prop_assert!(refused.is_empty(), "{}: {:?}", script, refused);
        let rendered = render_script(script, &names(&[("x", value)])).expect("a script");
        let printed = bash(&rendered, dir.path(), &[]);
        prop_assert_eq!(printed, expected, "{}\n{}", script, rendered);
    }
    // By `env`, as text between other text, it is the same value; nothing else was made.
    let fields = [Field::required("env", Type::EnvMap, "")];
    let given = render(
        &json!({ "env": { "V": "{{ inputs.x }}", "W": "a{{ inputs.x }}b" } }),
        &fields,
        &names(&[("x", value)]),
    );
    let given = given.expect("variables");
    let env = |name: &str| given["env"][name].as_str().expect("text").to_owned();
    let (v, w) = (env("V"), env("W"));
    let printed = bash("printf '%s\\0' \"$V\" \"$W\"", dir.path(), &[("V", &v), ("W", &w)]);
    prop_assert_eq!(printed, words(&[value, &format!("a{value}b")]));
    prop_assert_eq!(
        std::fs::read_dir(dir.path()).expect("a directory").count(),
        0,
        "{:?} made a file",
        value
    );
    Ok(())
}

#[test]
fn nasty_values_arrive_as_one_word_wherever_a_template_may_stand() {
    for value in NASTY.iter().filter(|value| !value.contains('\0')) {
        if let Err(error) = arrives(value) {
            panic!("{value:?}: {error}");
        }
    }
    assert!(render_script("echo {{ inputs.x }}", &names(&[("x", "a\0b")])).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_value_arrives_as_one_word_wherever_a_template_may_stand(value in value()) {
        arrives(&value)?;
    }
}

/// Scripts in which quoting is hard or of no use. Each is refused, or runs nothing but itself.
const HARD: &[&str] = &[
    "cat <<E\n{{ inputs.x }}\nE\n",
    "cat <<-E\n\t{{ inputs.x }}\n\tE\n",
    "cat <<'E'\n{{ inputs.x }}\nE\n",
    "cat <<\\E\n{{ inputs.x }}\nE\n",
    "cat <<E; echo {{ inputs.x }}\n$(echo 'E\nE\n",
    "cat <<A <<B\n'\nA\n\"\nB\necho {{ inputs.x }}",
    "echo $'{{ inputs.x }}'",
    "echo $'\\'' {{ inputs.x }}",
    "echo $\"{{ inputs.x }}\"",
    "echo $\"'\" {{ inputs.x }}",
    "echo ${y:-{{ inputs.x }}}",
    "echo \"${y:-'}\" {{ inputs.x }}",
    "echo ${y:-'}'} {{ inputs.x }}",
    "echo $(( {{ inputs.x }} ))",
    "(( {{ inputs.x }} ))",
    "echo $[ {{ inputs.x }} ]",
    "let {{ inputs.x }}",
    "[[ {{ inputs.x }} -eq 1 ]]",
    "[[ 1 -lt {{ inputs.x }} ]]",
    "[[ -v {{ inputs.x }} ]]",
    "[[ a =~ {{ inputs.x }} ]]",
    "[ -v {{ inputs.x }} ]",
    "test -v {{ inputs.x }}",
    "[ {{ inputs.x }} {{ inputs.y }} ]",
    "[ ! {{ inputs.x }} {{ inputs.y }} ]",
    "[ {{ inputs.x }} = a -a {{ inputs.y }} = b ]",
    "[ {{ inputs.x }} -eq 1 ]",
    "case a in {{ inputs.x }}) echo;; esac",
    "case a in (a) echo {{ inputs.x }};; esac",
    "echo \"$(case a in a) echo;; esac)\" {{ inputs.x }}",
    "# it's\necho {{ inputs.x }}",
    "echo a#'b {{ inputs.x }}'",
    "echo a # 'b\necho {{ inputs.x }}",
    "cat <(echo {{ inputs.x }})",
    "echo > >(cat {{ inputs.x }})",
    "echo $(echo $(echo {{ inputs.x }}))",
    "echo `echo \\`echo {{ inputs.x }}\\``",
    "echo `date # it's` {{ inputs.x }}",
    "v={{ inputs.x }} eval 'echo $v'",
    "a[{{ inputs.x }}]=1",
    "a+=({{ inputs.x }})",
    "a=([{{ inputs.x }}]=1)",
    "declare -A a=([{{ inputs.x }}]=1)",
    "declare -i n; n={{ inputs.x }}",
    "declare -n n={{ inputs.x }}",
    "declare {{ inputs.x }}",
    "local {{ inputs.x }}",
    "export {{ inputs.x }}",
    "readonly {{ inputs.x }}",
    "read {{ inputs.x }} <<< a",
    "unset {{ inputs.x }}",
    "mapfile -C {{ inputs.x }} -c 1 a <<< b",
    "printf -v {{ inputs.x }} a",
    "printf {{ inputs.x }} {{ inputs.y }} z",
    "getopts ab {{ inputs.x }}",
    "eval {{ inputs.x }}",
    "eval echo {{ inputs.x }}",
    "command eval {{ inputs.x }}",
    "builtin eval {{ inputs.x }}",
    "\\eval {{ inputs.x }}",
    "'eval' {{ inputs.x }}",
    "e''val {{ inputs.x }}",
    "trap {{ inputs.x }} EXIT",
    "source {{ inputs.x }}",
    ". {{ inputs.x }}",
    "bash -c {{ inputs.x }}",
    "bash -ec {{ inputs.x }}",
    "bash {{ inputs.x }} {{ inputs.y }}",
    "/bin/sh -c {{ inputs.x }}",
    "env bash -c {{ inputs.x }}",
    "A=1 bash -c {{ inputs.x }}",
    "if bash -c {{ inputs.x }}; then :; fi",
    "! bash -c {{ inputs.x }}",
    "{ bash -c {{ inputs.x }}; }",
    "timeout 5 sh -c {{ inputs.x }}",
    "nice -n 1 sh -c {{ inputs.x }}",
    "echo a | xargs sh -c {{ inputs.x }}",
    "find . -exec sh -c {{ inputs.x }} \\;",
    "ssh host {{ inputs.x }}",
    "su root -c {{ inputs.x }}",
    "awk {{ inputs.x }} /dev/null",
    "sed {{ inputs.x }} /dev/null",
    "perl -e {{ inputs.x }}",
    "echo a | sed -e {{ inputs.x }}",
    "python3 -c {{ inputs.x }}",
    "{{ inputs.x }}",
    "{{ inputs.x }} {{ inputs.y }}",
    "exec {{ inputs.x }}",
    "time {{ inputs.x }}",
    "env {{ inputs.x }}",
    "xargs {{ inputs.x }} < /dev/null",
    "PATH={{ inputs.x }} ls",
    "BASH_ENV={{ inputs.x }} bash -c :",
    "IFS={{ inputs.x }}",
    "for {{ inputs.x }} in a; do :; done",
    "for ((i={{ inputs.x }};;)); do break; done",
    "select v in {{ inputs.x }}; do break; done < /dev/null",
    "function f { echo {{ inputs.x }}; }; f",
    "coproc {{ inputs.x }}",
    "echo {a,{{ inputs.x }}}",
    "echo ~{{ inputs.x }}",
    "ls {{ inputs.x }}*",
    "echo a\\\n{{ inputs.x }}",
    "echo 'a'{{ inputs.x }}'b'",
    "echo \"a\"{{ inputs.x }}\"b\"",
    "echo \\'{{ inputs.x }}\\'",
    "echo a >&2 {{ inputs.x }}",
    "shopt -s expand_aliases\nalias e={{ inputs.x }}\ne",
    "wait -p {{ inputs.x }}",
    "hash -p {{ inputs.x }} ls; ls",
    "complete -C {{ inputs.x }} ls",
];

/// Values for two templates at once: what one makes possible the other uses.
const HOSTILE: &[(&str, &str)] = &[
    ("$(touch pwned)", "touch pwned"),
    ("touch pwned", "touch pwned"),
    ("';touch pwned;'", "x"),
    ("\";touch pwned;\"", "x"),
    ("`touch pwned`", "x"),
    ("\ntouch pwned\n", "x"),
    (";touch pwned #", "x"),
    ("a[$(touch pwned)]", "1"),
    ("a[$(touch pwned)]=1", "1"),
    ("-v", "a[$(touch pwned)]"),
    ("-c", "touch pwned"),
    ("-e", "touch pwned"),
    ("x=a[$(touch pwned)]", "x"),
    ("touch", "pwned"),
    ("BEGIN{system(\"touch pwned\")}", "x"),
    ("1e touch pwned", "x"),
    ("E\ntouch pwned\nE\n", "x"),
    ("system('touch pwned')", "x"),
    ("import os; os.system('touch pwned')", "x"),
    ("@(touch pwned)", "x"),
    ("'", "touch pwned"),
    ("\\", ";touch pwned"),
];

#[test]
fn what_is_hard_to_quote_is_refused_or_safe() {
    let mut accepted = Vec::new();
    for script in HARD {
        let (found, refused) = holes(script);
        if !refused.is_empty() || found.is_empty() {
            continue;
        }
        accepted.push(*script);
        for (x, y) in HOSTILE {
            let dir = tempfile::tempdir().expect("a directory");
            let rendered = render_script(script, &names(&[("x", x), ("y", y)])).expect("a script");
            bash(&rendered, dir.path(), &[]);
            assert!(!dir.path().join("pwned").exists(), "{script} with {x:?} and {y:?} became\n{rendered}");
        }
    }
    // Refusing everything would be safe as well, and of no use.
    assert!(accepted.len() > 12, "{accepted:#?}");
    println!("{} of {} are accepted: {accepted:#?}", accepted.len(), HARD.len());
}
