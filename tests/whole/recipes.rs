//! The recipes of docs/recipes.md: what they send is what the services take, and no secret is in what they leave.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::documents::compiled;
use crate::project::{Project, Ran};
use crate::receiver::Receiver;

const SECRET: &str = "Bearer token-of-this-test";

/// The page's project, whose services are this receiver and whose secrets are this one.
fn recipes(web: &Receiver) -> Project {
    let (project, blocks) = compiled("docs/recipes.md");
    assert!(blocks >= 5, "{blocks}");
    let environment = fs::read_to_string(project.file("environments/staging.yaml")).expect("an environment");
    let environment = environment
        .replace("https://api.cloudflare.com", &web.base())
        .replace("https://api.fastly.com", &web.base())
        .replace("/etc/lifeboat/", &format!("{}/", project.file("secrets").display()));
    assert!(!environment.contains("api."), "{environment}");
    project.write("environments/staging.yaml", &environment);
    for name in ["cloudflare", "fastly", "aws_id", "aws_key"] {
        project.write(&format!("secrets/{name}"), SECRET);
    }
    project
}

/// The name of the runbook that holds a text.
fn holding(project: &Project, text: &str) -> String {
    let files = fs::read_dir(project.file("runbooks")).expect("runbooks").flatten().map(|entry| entry.path());
    let mut found = files.filter(|path| fs::read_to_string(path).is_ok_and(|file| file.contains(text)));
    let path = found.next().unwrap_or_else(|| panic!("no recipe with {text}"));
    path.file_stem().expect("a name").to_string_lossy().into_owned()
}

/// Everything that runs have left, as one text.
fn left(dir: &Path) -> String {
    let entries = fs::read_dir(dir).expect("a directory").flatten().map(|entry| entry.path());
    let text = |path: std::path::PathBuf| match path.is_dir() {
        true => left(&path),
        false => String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned(),
    };
    entries.map(text).collect()
}

fn assert_no_secret(project: &Project, ran: &Ran) {
    assert!(!ran.all().contains("token-of-this-test"), "{}", ran.all());
    assert!(!left(&project.file(".lifeboat/state")).contains("token-of-this-test"));
}

#[test]
fn a_purge_is_the_request_that_the_service_takes() {
    let web = Receiver::saying("200 OK", r#"{"success": true, "status": "ok"}"#);
    let project = recipes(&web);
    for (text, head, body) in [
        (
            "purge_cloudflare",
            "POST /client/v4/zones/023e105f4ecef8ad9ca31a8372d0c353/purge_cache HTTP/1.1",
            json!({ "files": ["https://www.example.org/media/1.jpg", "https://www.example.org/"] }),
        ),
        ("purge_fastly", "POST /service/SU1Z0isxPaozGVKXdv0eY/purge/media HTTP/1.1", Value::Null),
    ] {
        let ran = project.run(&["run", &holding(&project, text), "--env", "staging"]).expect(0);
        let (heads, posts) = (web.heads(), web.posts());
        let found = heads.last().expect("a request");
        assert!(found.starts_with(head) && found.contains(SECRET), "{found}");
        assert_eq!(posts.last(), Some(&body));
        assert_no_secret(&project, &ran);
    }
    assert!(web.heads()[0].to_lowercase().contains("authorization: bearer token-of-this-test"));
    assert!(web.heads()[1].to_lowercase().contains("fastly-key: bearer token-of-this-test"));
}

#[test]
fn a_purge_that_the_service_refuses_fails() {
    let web = Receiver::saying("200 OK", r#"{"success": false, "errors": [{"code": 1012}]}"#);
    let project = recipes(&web);
    let ran = project.run(&["run", &holding(&project, "purge_cloudflare"), "--env", "staging"]).expect(4);
    assert!(ran.all().contains("json.success"), "{}", ran.all());
}

#[test]
fn an_invalidation_is_known_by_the_run() {
    let web = Receiver::answering("200 OK");
    let project = recipes(&web);
    project.write("bin/aws", "#!/bin/sh\nprintf '%s|' \"$@\" >> calls\necho >> calls\necho \"$AWS_SECRET_ACCESS_KEY\" >> given\necho I2J0I21PCUYOIK\n");
    fs::set_permissions(project.file("bin/aws"), fs::Permissions::from_mode(0o755)).expect("a mode");
    let path = format!("{}:{}", project.file("bin").display(), std::env::var("PATH").unwrap_or_default());
    let runbook = holding(&project, "purge_cloudfront");
    let ran = Ran::of(project.command(&["run", &runbook, "--env", "staging"]).env("PATH", path)).expect(0);
    let run = project.report()["identity"]["run"].as_str().expect("a run").to_owned();
    let batch =
        format!(r#"{{"Paths": {{"Quantity": 1, "Items": ["/media/*"]}}, "CallerReference": "{run}"}}"#);
    assert_eq!(
        project.lines("calls"),
        [
            format!(
                "cloudfront|create-invalidation|--distribution-id|EDFDVBD6EXAMPLE|--invalidation-batch|{batch}|\
                 --query|Invalidation.Id|--output|text|"
            ),
            "cloudfront|wait|invalidation-completed|--distribution-id|EDFDVBD6EXAMPLE|--id|I2J0I21PCUYOIK|"
                .to_owned(),
        ]
    );
    assert_eq!(project.lines("given"), [SECRET, SECRET]);
    assert_no_secret(&project, &ran);
}
