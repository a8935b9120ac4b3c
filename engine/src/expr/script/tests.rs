use super::*;
use proptest::prelude::*;
use serde_json::json;
use std::process::Command;

fn names(value: &str) -> Map<String, Value> {
    Map::from_iter([("x".to_owned(), json!(value))])
}

fn bash(script: &str, dir: &std::path::Path) -> String {
    let output = Command::new("bash").args(["-c", script]).current_dir(dir).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn templates_are_words() {
    for script in [
        "echo {{ x }}",
        "cmd --a={{ x }}/b | grep {{ x }} > {{ x }}",
        "( cd {{ x }} && ls )",
        "v=$(cat {{ x }})",
        "case {{ x }} in a) echo {{ x }};; esac",
        "echo ${#list[@]} {{ x }} # done",
        "cat <<< {{ x }}",
        "echo 'a' \"b\" $'c\\'' {{ x }}",
        "cat <<EOF\nit's\nEOF\necho {{ x }}",
        "(( n++ )); echo {{ x }}",
        "echo {{ x | default(\"}}\") }}",
        "git checkout {{ x }} && sudo systemctl restart {{ x }}",
        "export A={{ x }}; for i in {{ x }}; do echo \"$i\"; done",
        "[ {{ x }} = full ] || [[ {{ x }} == full ]]",
        "list=(a {{ x }} b); echo \"${list[1]}\"",
        "bash tool.sh {{ x }}; sudo -u postgres psql --dbname {{ x }}",
        "cat < {{ x }} > {{ x }} 2>&1; timeout 5m cp {{ x }} /tmp",
        "A={{ x }} env B={{ x }} printf '%s' {{ x }}",
        "if grep -q {{ x }} file; then rm -- {{ x }}; fi",
    ] {
        let (holes, refused) = holes(script);
        assert!(!holes.is_empty() && refused.is_empty(), "{script}: {refused:?}");
    }
}

#[test]
fn templates_where_quoting_fails_are_refused() {
    for (script, place) in [
        ("echo '{{ x }}'", "inside single quotes"),
        ("echo \"{{ x }}\"", "inside double quotes"),
        ("echo \"$(cat {{ x }})\"", "inside double quotes"),
        ("echo `cat {{ x }}`", "inside backticks"),
        ("echo ${y:-{{ x }}}", "inside `${ }`"),
        ("echo $(( 1 + {{ x }} ))", "inside arithmetic"),
        ("echo a # {{ x }}", "inside a comment"),
        ("cat <<EOF\n{{ x }}\nEOF\n", "inside a here-document"),
        ("cat <<-'EOF'\n\t{{ x }}\n\tEOF\n", "inside a here-document"),
        ("echo ${{ x }}", "after `$`"),
        ("echo \\{{ x }}", "after a backslash"),
        ("echo $'{{ x }}'", "inside single quotes"),
        ("echo \"$(case a in a) :;; esac)\" {{ x }}", "after code that only bash itself can read"),
        ("echo {{ x", "without its end `}}`"),
        ("{{ x }} --help", "where it chooses what is run"),
        ("sudo -u postgres {{ x }}", "where it chooses what is run"),
        ("a=1 {{ x }}", "where it chooses what is run"),
        ("PATH={{ x }} ls", "where it chooses what is run"),
        ("eval {{ x }}", "in a command that reads its words as code"),
        ("eval \"echo\" {{ x }}", "in a command that reads its words as code"),
        ("bash -c {{ x }}", "in a command that reads its words as code"),
        ("sudo bash -ec {{ x }}", "in a command that reads its words as code"),
        ("docker exec shop sh -c {{ x }}", "in a command that reads its words as code"),
        ("ssh host {{ x }}", "in a command that reads its words as code"),
        ("find . -exec sh -c {{ x }} \\;", "in a command that reads its words as code"),
        ("awk {{ x }} file", "in a command that reads its words as code"),
        ("psql -c {{ x }}", "in a command that reads its words as code"),
        ("trap {{ x }} EXIT", "in a command that reads its words as code"),
        ("printf {{ x }}", "in a command that reads its words as code"),
        ("unset {{ x }}", "in a command that reads its words as code"),
        ("[[ {{ x }} -eq 1 ]]", "where bash computes with it, which can run code,"),
        ("[ -v {{ x }} ]", "where bash computes with it, which can run code,"),
        ("a[{{ x }}]=1", "as the name of a variable"),
        ("declare {{ x }}", "as the name of a variable"),
        ("list=([{{ x }}]=1)", "as a subscript"),
        ("declare -i n; n={{ x }}", "after code that only bash itself can read"),
        ("echo $[ {{ x }} ]", "after code that only bash itself can read"),
    ] {
        let (holes, refused) = holes(script);
        assert_eq!(refused.first().map(|refused| refused.place), Some(place), "{script} {holes:?}");
        assert!(render_script(script, &names("v")).is_err());
    }
}

#[test]
fn only_single_words_can_be_put_in() {
    for value in [json!(null), json!([1]), json!({"a": 1}), json!("a\0b")] {
        let names = Map::from_iter([("x".to_owned(), value)]);
        assert!(render_script("echo {{ x }}", &names).is_err());
    }
    let names = Map::from_iter([("x".to_owned(), json!(true))]);
    assert_eq!(render_script("echo {{ x }}", &names).unwrap(), "echo 'true'");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn bash_reads_back_what_was_put_in(value in "[^\0]{0,40}") {
        let dir = tempfile::tempdir().unwrap();
        let script = render_script("printf '%s|' a{{ x }}b {{ x }}", &names(&value)).unwrap();
        prop_assert_eq!(bash(&script, dir.path()), format!("a{value}b|{value}|"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// Whatever the script around it, an accepted template never runs its value.
    #[test]
    fn no_accepted_script_runs_a_value(parts in proptest::collection::vec(0..FRAGMENTS.len(), 1..9)) {
        let script: String = parts.iter().map(|part| FRAGMENTS[*part]).collect();
        let (found, refused) = holes(&script);
        if found.is_empty() || !refused.is_empty() {
            return Ok(());
        }
        let dir = tempfile::tempdir().unwrap();
        for hostile in ["$(touch pwned)", "';touch pwned;'", "\";touch pwned;\"", "`touch pwned`", "\ntouch pwned\n", ";touch pwned #"] {
            let script = render_script(&script, &names(hostile)).unwrap();
            bash(&script, dir.path());
            prop_assert!(!dir.path().join("pwned").exists(), "{}", script);
        }
    }
}

const FRAGMENTS: &[&str] = &[
    "{{ x }}",
    "echo ",
    "'",
    "\"",
    "`",
    "$(",
    ")",
    "(",
    "${y:-",
    "}",
    "$((",
    "))",
    "((",
    "\n",
    " # ",
    "<<E\n",
    "\nE\n",
    "\\",
    "$",
    "case a in a) ",
    " esac ",
    ";; ",
    "; ",
    "$'",
    "=",
    "'a'",
    "\"b\"",
    " {{ x }} ",
    "<<-'E' cat\n",
    "\t",
    "E",
];
