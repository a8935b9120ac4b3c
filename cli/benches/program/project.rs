//! Generated projects: the same every time, so that numbers can be compared.

use std::fmt::Write;
use std::io;
use std::path::Path;

/// How many steps a runbook of [`realistic`] has.
pub(crate) const STEPS: usize = 50;

/// Each block of a realistic runbook has as many steps.
const BLOCK: usize = 10;

const PROJECT: &str = "\
project: bench
people:
  ada: { name: Ada, roles: [lead] }
roles: { lead: [ada] }
";

/// Writes a project of runbooks of 50 steps each, for two environments. Every tenth runbook is called by others: a tenth
/// of it all are the ones that many share, as in a project that people have kept for years.
pub(crate) fn realistic(dir: &Path, runbooks: usize) -> io::Result<()> {
    begin(dir)?;
    for number in 0..runbooks {
        let text = if number % 10 == 0 { shared(number) } else { caller(number) };
        std::fs::write(dir.join("runbooks").join(format!("recovery-{number:03}.yaml")), text)?;
    }
    Ok(())
}

/// Writes a project of one runbook with these steps, for the environment `staging`.
pub(crate) fn single(dir: &Path, steps: &str) -> io::Result<()> {
    begin(dir)?;
    let text = format!(
        "runbook: bench\ntitle: A runbook made for measuring\nenvironments: [staging]\nsteps:\n{steps}"
    );
    std::fs::write(dir.join("runbooks/bench.yaml"), text)
}

/// Writes a project of one runbook with these steps that can be run here, with two secrets to be kept out of everything.
pub(crate) fn to_run(dir: &Path, steps: &str) -> io::Result<()> {
    for folder in ["environments", "runbooks"] {
        std::fs::create_dir_all(dir.join(folder))?;
    }
    std::fs::write(dir.join("lifeboat.yaml"), PROJECT)?;
    let mut environment = String::from("environment: staging\nsecrets:\n");
    for name in ["app_key", "database_password"] {
        std::fs::write(dir.join(name), format!("in no text at all: {name}\n"))?;
        writeln!(environment, "  {name}: {{ file: ../{name} }}").expect("text");
    }
    std::fs::write(dir.join("environments/staging.yaml"), environment)?;
    let text = format!(
        "runbook: bench\ntitle: A runbook made for measuring\nenvironments: [staging]\n\
         roles: {{ lead: Says whether it goes on }}\nsteps:\n{steps}"
    );
    std::fs::write(dir.join("runbooks/bench.yaml"), text)
}

/// Steps that read a value and judge it, one after the other or all at once.
pub(crate) fn asserts(count: usize, parallel: bool) -> String {
    let mut text = String::new();
    let indent = if parallel {
        text.push_str("  - group: all\n    parallel: true\n    max_parallel: 100\n    steps:\n");
        "      "
    } else {
        "  "
    };
    for at in 0..count {
        writeln!(text, "{indent}- {{ id: s{at}, uses: assert, with: {{ that: [1 < 2] }} }}").expect("text");
    }
    text
}

fn begin(dir: &Path) -> io::Result<()> {
    for folder in ["environments", "runbooks"] {
        std::fs::create_dir_all(dir.join(folder))?;
    }
    std::fs::write(dir.join("lifeboat.yaml"), PROJECT)?;
    for (name, port, access) in [("production", 5432, "write"), ("staging", 15432, "read")] {
        std::fs::write(dir.join(format!("environments/{name}.yaml")), environment(name, port, access))?;
    }
    Ok(())
}

fn environment(name: &str, port: u16, access: &str) -> String {
    format!(
        "\
environment: {name}
protected: {}
resources:
  db:
    kind: postgres
    data_dir: /srv/{name}/postgres
    host: 127.0.0.1
    port: {port}
    password: {{ file: /etc/lifeboat/{name}-db }}
    service: {{ manager: process }}
  cache: {{ kind: redis, url: \"redis://127.0.0.1:{}\", data_dir: /srv/{name}/redis }}
  uploads: {{ kind: files, path: /srv/{name}/uploads }}
  backups: {{ kind: store, url: \"dir:///srv/store\", access: {access} }}
  app: {{ kind: service, manager: systemd, unit: {name}-app, ready: \"http://127.0.0.1:{}/health\" }}
  worker: {{ kind: service, manager: systemd, unit: {name}-worker, optional: true }}
  site: {{ kind: http, url: \"https://{name}.example.org\" }}
  ops: {{ kind: webhook, webhook: {{ env: OPS_WEBHOOK }} }}
secrets: {{ app_key: {{ file: /etc/lifeboat/{name}-app-key }} }}
vars: {{ site: {name}.example.org, database: members, keep: 14 }}
",
        name == "production",
        port + 1000,
        port + 2000,
    )
}

fn caller(number: usize) -> String {
    let mut text = head(number);
    let called = number / 10 * 10;
    let release = "{{ inputs.release }}";
    writeln!(text, "  - id: before\n    runbook: recovery-{called:03}").expect("text");
    writeln!(text, "    with: {{ release: \"{release}\", reason: before the change }}").expect("text");
    text.push_str("    budget: 10m\n");
    for at in 0..STEPS / BLOCK {
        text.push_str(&block(at));
    }
    // The call takes the place of the last step; what is announced at the end comes on top.
    let without = text.rfind("  - id: pause_").unwrap_or(text.len());
    text.truncate(without);
    text.push_str(ALWAYS);
    text
}

fn shared(number: usize) -> String {
    let mut text = head(number);
    for at in 0..STEPS / BLOCK {
        text.push_str(&block(at));
    }
    text
}

fn head(number: usize) -> String {
    format!(
        "\
runbook: recovery-{number:03}
title: Bring part {number} of the system back
description: >
  What to do when part {number} has failed or has lost data. It is
  safe to begin again from any point.
owner: platform
environments: [production, staging]
objective: {{ rto: 8h, rpo: 15m }}
milestones: {{ back: 4h }}
roles: {{ lead: Looks at the result before users may write }}
inputs:
  target_time: {{ type: timestamp, default: \"{{{{ incident.started_at }}}}\", description: Restore to just before it }}
  release: {{ type: string, pattern: 'v\\d+(\\.\\d+)*', description: The release that fits the data }}
  reason: {{ type: string, default: drill, description: Why this is done }}
outputs:
  members: \"{{{{ steps.count_0.rows[0].n }}}}\"
steps:
"
    )
}

/// Ten steps as people write them: kinds with templates, scripts, a parallel group, conditions, a person.
fn block(at: usize) -> String {
    change(at) + &open_again(at)
}

fn change(at: usize) -> String {
    format!(
        r##"  # Part {at}: close, look, change, judge, open again.
  - {{ id: stop_{at}, title: Stop the application, uses: service.stop, with: {{ service: app }}, budget: 1m }}
  - id: count_{at}
    title: Count what is there
    uses: postgres.query
    with:
      cluster: db
      database: "{{{{ vars.database }}}}"
      sql: SELECT count(*) AS n, max(created_at) AS newest FROM members WHERE created_at < $1
      params: ["{{{{ inputs.target_time }}}}"]
      expect: ["rows[0].n > 0", row_count == 1]
    retry: {{ attempts: 3, backoff: exponential, delay: 2s, max_delay: 30s }}
    timeout: 2m
  - group: change_{at}
    title: Change what depends on it
    parallel: true
    max_parallel: 3
    budget: 20m
    steps:
      - id: migrate_{at}
        title: Bring the schema up to the release
        effect: guarded
        probe: test -e "/srv/releases/$RELEASE/.migrated"
        dir: /srv/app
        env:
          DATABASE_URL: {{ connection: db, database: members }}
          APP_KEY: {{ secret: app_key }}
          RELEASE: "{{{{ inputs.release }}}}"
        run: |
          # The release must be the one that fits the data.
          git fetch --tags
          git checkout "$RELEASE"
          for step in schema data index; do
            ./manage migrate "$step" --keep {{{{ vars.keep }}}}
          done
          touch "/srv/releases/$RELEASE/.migrated"
      - id: files_{at}
        uses: files.verify
        with: {{ files: uploads, store: backups, target_time: "{{{{ inputs.target_time }}}}" }}
        on_error: continue
      - id: warm_{at}
        effect: idempotent
        env: {{ SITE: "{{{{ vars.site }}}}", COUNT: "{{{{ steps.count_{at}.rows[0].n }}}}" }}
        run: |
          echo "warming $SITE for $COUNT members"
          curl -fsS "https://$SITE/warm?n=$COUNT" > /dev/null
"##
    )
}

fn open_again(at: usize) -> String {
    let recovered = if at + 1 == STEPS / BLOCK { "\n    recovered: true\n    milestone: back" } else { "" };
    format!(
        r##"  - id: judge_{at}
    needs: [change_{at}, {{ step: files_{at}, on: any }}]
    uses: assert
    with:
      values:
        before: "{{{{ steps.count_{at}.rows[0].n | default(0) }}}}"
        warmed: "{{{{ steps.warm_{at}.stdout | length > 0 }}}}"
        files: "{{{{ steps.files_{at}.missing | default(0) }}}}"
      that: [values.before >= 0, values.warmed or values.files == 0]
  - {{ id: worker_{at}, uses: service.start, with: {{ service: worker }}, if: resources.worker is defined }}
  - {{ id: start_{at}, uses: service.start, with: {{ service: app, ready_timeout: 2m }} }}
  - id: smoke_{at}
    uses: http.smoke
    with:
      target: site
      checks:
        - {{ name: front page, get: /, expect: [status == 200] }}
        - {{ name: search, get: "/search?q=tea", expect: ["json.items | length > 0", elapsed_ms < 500] }}
    budget: 5m{recovered}
  - id: pause_{at}
    uses: wait
    if: inputs.reason != "drill" and steps.start_{at}.ready_seconds > 1
    with: {{ for: 5s }}
"##
    )
}

const ALWAYS: &str = r#"always:
  - { id: announce, uses: notify, with: { channel: ops, message: "{{ run.summary }} ({{ inputs.reason }})" } }
"#;
