//! `git.checkout`: the code of a release, in a work tree that nobody has changed.

use std::path::PathBuf;

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::step::{Effect, KindSpec, ParamProblem, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Span, Type};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::repository::{Head, Repository, listed, shown};
use super::{codes, interrupted};

/// Checks a tag or a commit out.
#[derive(Debug)]
pub(super) struct Checkout;

#[derive(Deserialize)]
struct Params {
    dir: PathBuf,
    tag: Option<String>,
    commit: Option<String>,
    expect_commit: Option<String>,
    fetch: Option<Fetch>,
    os_user: Option<String>,
}

#[derive(Deserialize)]
struct Fetch {
    remote: String,
    timeout: Span,
}

/// What an attempt records before it changes anything.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Change {
    before: Head,
    to: String,
}

const CHANGE: &str = "checkout";
/// Shorter ones are soon ambiguous.
const SHORTEST: usize = 7;

const DOC: &str = "\
Give exactly one of `tag` and `commit`. `dir` is the top of a work tree, which must be clean: tracked files that are changed,
untracked files that the commit has as well, ignored ones included, and a merge or rebase that was begun are named, and
nothing is touched. With `fetch` the tag, or for a commit all branches and tags, are fetched from a remote of the repository
first. `expect_commit` is compared with what the tag stands for before anything changes.

No hook of the repository runs, nobody is asked for a password, and submodules stay as they are. The work tree ends on no
branch (a detached HEAD). What was checked out before is recorded, and an aborted run goes back to it. A checkout that was
cut off is completed by the next attempt, if every file is as in the one commit or the other.

```yaml
- id: code
  uses: git.checkout
  with: { dir: /srv/shop, tag: \"{{ inputs.release }}\", fetch: { remote: origin, timeout: 1m } }
```";

#[async_trait]
impl StepKind for Checkout {
    fn spec(&self) -> KindSpec {
        let fetch = vec![
            Field::required("remote", Type::String, "A remote that the repository knows, such as `origin`."),
            Field::defaulted("timeout", Type::Duration, "2m", "How long it may take."),
        ];
        KindSpec::new(
            "git.checkout",
            "Checks a tag or a commit out in a clean work tree.",
            Effect::Idempotent,
        )
        .doc(DOC)
        .param(Field::required("dir", Type::Path, "The top directory of the work tree."))
        .param(Field::optional("tag", Type::String, "The tag, without `refs/tags/`."))
        .param(Field::optional("commit", Type::String, "The commit: its id, or at least 7 digits of it."))
        .param(Field::optional("expect_commit", Type::String, "What the tag must stand for."))
        .param(Field::optional("fetch", Type::Object(fetch), "Fetches it first."))
        .param(Field::optional(
            "os_user",
            Type::String,
            "The system user that git runs as; Lifeboat's own if absent.",
        ))
        .writes_path("dir")
        .undoes("checks out again what was checked out before")
        .output("commit", Type::String, "The id of the commit that is checked out.")
        .output("previous", Type::String, "The id of the commit that was checked out before.")
        .output("previous_branch", Type::String, "The branch that it was on; empty if it was on none.")
        .output("changed", Type::Boolean, "False if it was checked out already.")
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        let text = |name: &str| with.get(name).and_then(Value::as_str);
        let problem =
            |param: &str, message: String| ParamProblem { param: param.into(), message, help: None };
        let mut problems = Vec::new();
        if with.contains_key("tag") && with.contains_key("commit") {
            problems.push(problem("commit", "`tag` and `commit` cannot both be given".into()));
        }
        problems.extend(text("tag").and_then(wrong_tag).map(|message| problem("tag", message)));
        for name in ["commit", "expect_commit"] {
            let wrong = text(name).filter(|id| !is_commit(id));
            problems.extend(wrong.map(|id| problem(name, not_a_commit(id))));
        }
        problems
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        let what = params.tag.as_deref().map(|tag| format!("the tag {tag}"));
        let what = what.or(params.commit.map(|commit| format!("the commit {commit}")));
        let what = what.unwrap_or_else(|| "what an earlier step says".into());
        let fetch = params.fetch.map(|fetch| format!("fetch from {}", fetch.remote));
        let actions = fetch.into_iter().chain([format!("check {what} out in {}", params.dir.display())]);
        Ok(Preview { actions: actions.collect(), destroys: Vec::new() })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let repository = Repository::open(ctx, &params.dir, params.os_user.as_deref()).await?;
        let to = target(&repository, &params).await?;
        let head = repository.head().await?;
        let change = recorded(ctx).filter(|change| change.to == to);
        let before = change.as_ref().map_or_else(|| head.clone(), |change| change.before.clone());
        if head.commit == to {
            refuse_changes(&repository).await?;
        } else if change.is_some_and(|change| change.before.commit == head.commit) {
            go_on(&repository, &head.commit, &to).await?;
        } else {
            refuse_unfinished(&repository)?;
            refuse_changes(&repository).await?;
            refuse_in_the_way(&repository, (&head.commit, &to)).await?;
            let change = Change { before: head.clone(), to: to.clone() };
            let change = serde_json::to_value(change).unwrap_or_default();
            ctx.record(CHANGE, change).await?;
            move_to(&repository, &to, Force::No).await?;
        }
        prove(&repository, &to).await?;
        Ok(done(&params, &before, &to))
    }

    async fn undo(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let Some(Change { before, to }) = recorded(ctx) else { return Ok(Done::default()) };
        let params: Params = ctx.params()?;
        let repository = Repository::open(ctx, &params.dir, params.os_user.as_deref()).await?;
        let head = repository.head().await?;
        if head.commit == before.commit {
            // The checkout may have been cut off before it came to this.
            if !repository.changed().await?.is_empty() || repository.git_dir.join("index.lock").exists() {
                go_on(&repository, &to, &before.commit).await?;
            }
        } else if head.commit == to {
            refuse_unfinished(&repository)?;
            refuse_changes(&repository).await?;
            move_to(&repository, &before.commit, Force::No).await?;
        } else {
            let dir = repository.dir.display();
            let message = format!("{dir} is at {} by now, where this step did not bring it", head.commit);
            return Err(StepError::permanent(codes::LB1540, message)
                .help(format!("before the step it was at {}; nothing was changed", before.commit)));
        }
        let warnings = attach(&repository, &before).await?;
        prove(&repository, &before.commit).await?;
        Ok(Done { warnings: warnings.into_iter().collect(), ..Done::default() })
    }
}

fn recorded(ctx: &StepContext) -> Option<Change> {
    serde_json::from_value(ctx.recorded(CHANGE)?.clone()).ok()
}

fn done(params: &Params, before: &Head, to: &str) -> Done {
    let outputs = json!({
        "commit": to,
        "previous": before.commit,
        "previous_branch": before.branch.clone().unwrap_or_default(),
        "changed": before.commit != to,
    });
    let check = |expected: &String| Check {
        name: "commit of the tag".into(),
        expected: expected.clone(),
        actual: to.to_owned(),
        passed: true,
    };
    let Value::Object(outputs) = outputs else { unreachable!("an object was written") };
    Done { outputs, checks: params.expect_commit.iter().map(check).collect(), ..Done::default() }
}

/// Says what is wrong with the name of a tag. What git would read as something else never reaches it.
fn wrong_tag(tag: &str) -> Option<String> {
    let odd = |c: char| c.is_ascii_control() || " ~^:?*[\\".contains(c);
    let wrong = tag.is_empty()
        || tag.starts_with(['-', '/', '.'])
        || tag.ends_with(['/', '.'])
        || tag.contains("..")
        || tag.contains("@{")
        || tag.contains(odd);
    wrong.then(|| format!("`{tag}` cannot be the name of a tag"))
}

fn is_commit(id: &str) -> bool {
    (SHORTEST..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn not_a_commit(id: &str) -> String {
    format!("`{id}` is not the id of a commit: {SHORTEST} to 64 hexadecimal digits")
}

/// Finds the commit, fetched first if the step says so.
async fn target(repository: &Repository<'_>, params: &Params) -> Result<String, StepError> {
    let unusable = |message: String| {
        StepError::permanent(codes::LB1533, message).help("branches move, and are not taken here")
    };
    let (name, what, refspec) = match (&params.tag, &params.commit) {
        (Some(tag), None) => {
            wrong_tag(tag).map_or(Ok(()), |message| Err(unusable(message)))?;
            (
                format!("refs/tags/{tag}"),
                format!("tag `{tag}`"),
                Some(format!("refs/tags/{tag}:refs/tags/{tag}")),
            )
        }
        (None, Some(commit)) if is_commit(commit) => {
            (commit.to_lowercase(), format!("commit {commit}"), None)
        }
        (None, Some(commit)) => return Err(unusable(not_a_commit(commit))),
        _ => return Err(unusable("exactly one of `tag` and `commit` must be given".into())),
    };
    if let Some(fetch) = &params.fetch {
        repository.fetch(&fetch.remote, refspec.as_deref(), fetch.timeout.0).await?;
    }
    let asked = format!("{name}^{{commit}}");
    let found = repository.line_if(&["rev-parse", "--verify", "--quiet", "--end-of-options", &asked]).await?;
    let found = found.filter(|found| refspec.is_some() || found.starts_with(&name));
    let Some(found) = found else {
        let message = format!("{} has no {what}", repository.dir.display());
        return Err(StepError::permanent(codes::LB1533, message)
            .help("`git.tags` lists the tags that are there; `fetch: { remote: origin }` gets new ones"));
    };
    match &params.expect_commit {
        Some(expected) if !is_commit(expected) => Err(unusable(not_a_commit(expected))),
        Some(expected) if !found.starts_with(&expected.to_lowercase()) => {
            let message = format!("the {what} stands for {found}, not for {expected}");
            Err(StepError::permanent(codes::LB1534, message)
                .help("nothing was checked out; find out who moved the tag, and why"))
        }
        _ => Ok(found),
    }
}

fn refuse_unfinished(repository: &Repository<'_>) -> Result<(), StepError> {
    let Some(what) = repository.unfinished() else { return Ok(()) };
    let message = format!("{} is in the middle of {what}", repository.dir.display());
    Err(StepError::permanent(codes::LB1537, message)
        .help("`git status` there says how to end it; nothing was changed"))
}

async fn refuse_changes(repository: &Repository<'_>) -> Result<(), StepError> {
    let changed = repository.changed().await?;
    if changed.is_empty() {
        return Ok(());
    }
    let message = format!("{} has {} with local changes", repository.dir.display(), files(changed.len()));
    let mut error = StepError::permanent(codes::LB1535, message).help(
        "look at them with `git diff`, then keep them with `git stash` or a commit; nothing was changed",
    );
    error.causes = listed(&changed);
    Err(error)
}

fn files(count: usize) -> String {
    if count == 1 { "1 file".to_owned() } else { format!("{count} files") }
}

/// Names the files that nobody has committed and that the checkout would overwrite, those that git ignores included.
async fn refuse_in_the_way(repository: &Repository<'_>, (from, to): (&str, &str)) -> Result<(), StepError> {
    use std::os::unix::ffi::OsStrExt as _;
    let args = ["diff-tree", "-r", "-z", "--name-only", "--diff-filter=A", "--no-renames", from, to];
    let added = repository.names(&args, None).await?;
    let there = |name: &Vec<u8>| {
        let path = repository.dir.join(std::ffi::OsStr::from_bytes(name));
        path.symlink_metadata().is_ok_and(|found| !found.is_dir())
    };
    let names: Vec<String> = added.iter().filter(|name| there(name)).map(|name| shown(name)).collect();
    if names.is_empty() {
        return Ok(());
    }
    let message = format!(
        "{} that nobody has committed would be overwritten in {}",
        files(names.len()),
        repository.dir.display()
    );
    let mut error = StepError::permanent(codes::LB1536, message)
        .help("move them away if they are needed, or delete them; nothing was changed");
    error.causes = listed(&names);
    Err(error)
}

/// Whether files that differ are replaced. Only after it was proven whose they are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Force {
    No,
    Yes,
}

async fn move_to(repository: &Repository<'_>, to: &str, force: Force) -> Result<(), StepError> {
    let mut args =
        vec!["checkout", "--quiet", "--detach", "--no-recurse-submodules", "--no-overwrite-ignore"];
    if force == Force::Yes {
        args.push("--force");
    }
    args.push(to);
    let output = repository.command(&args).run(repository.ctx).await?;
    if output.exit_code == 0 {
        return Ok(());
    }
    let said = output.stderr.text();
    let error = output.to_error(&format!("git {}", args.join(" ")));
    if said.contains("would be overwritten") || said.contains("would lose untracked files") {
        let message =
            format!("files in {} would be lost, so git checked nothing out", repository.dir.display());
        return Err(StepError { code: codes::LB1536, message, ..error }
            .help("move them away if they are needed, or delete them"));
    }
    Err(StepError { code: codes::LB1530, ..error }
        .help("run it by hand there; a retry goes on with what is left"))
}

/// Completes a checkout that was cut off, if nobody has worked in the files since.
async fn go_on(repository: &Repository<'_>, from: &str, to: &str) -> Result<(), StepError> {
    let interrupted::Found { foreign, left } = interrupted::look(repository, from, to).await?;
    if !foreign.is_empty() {
        let dir = repository.dir.display();
        let message = format!(
            "{dir} was left in the middle of a checkout, and {} neither as before nor as after it",
            if foreign.len() == 1 { "1 file is".to_owned() } else { format!("{} files are", foreign.len()) }
        );
        let mut error = StepError::permanent(codes::LB1535, message).help(format!(
            "keep what is needed of them, then `git -C {dir} checkout --force --detach {to}` completes it"
        ));
        error.causes = listed(&foreign);
        return Err(error);
    }
    // Nobody else's: they were not there before, and what made them is gone.
    for lock in ["index.lock", "HEAD.lock"] {
        let _ = std::fs::remove_file(repository.git_dir.join(lock));
    }
    move_to(repository, to, Force::Yes).await?;
    // What was written and never came into the index is not removed by git.
    for path in left.iter().filter(|path| path.symlink_metadata().is_ok_and(|found| !found.is_dir())) {
        std::fs::remove_file(path).map_err(|error| {
            StepError::transient(codes::LB1530, format!("{} cannot be removed", path.display()))
                .caused_by(&error)
        })?;
    }
    Ok(())
}

/// Goes back on the branch, if it is where it was. Returns a warning if it is not.
async fn attach(repository: &Repository<'_>, before: &Head) -> Result<Option<String>, StepError> {
    let Some(branch) = before.branch.as_deref().filter(|branch| !branch.starts_with('-')) else {
        return Ok(None);
    };
    let name = format!("refs/heads/{branch}");
    let asked = format!("{name}^{{commit}}");
    let tip = repository.line_if(&["rev-parse", "--verify", "--quiet", "--end-of-options", &asked]).await?;
    if tip.as_deref() != Some(&before.commit) {
        return Ok(Some(format!(
            "the branch `{branch}` has moved since; {} is checked out without it",
            before.commit
        )));
    }
    // The files are those of the branch already: only the name is put back.
    repository.line(&["symbolic-ref", "HEAD", &name]).await?;
    Ok(None)
}

async fn prove(repository: &Repository<'_>, to: &str) -> Result<(), StepError> {
    let head = repository.head().await?;
    let changed = repository.changed().await?;
    if head.commit == to && changed.is_empty() {
        return Ok(());
    }
    let dir = repository.dir.display();
    let message = match head.commit == to {
        true => format!("{to} is checked out in {dir}, and files there differ from it"),
        false => format!("{dir} is at {}, not at {to}", head.commit),
    };
    let mut error = StepError::uncertain(codes::LB1539, message).help(
        "does somebody else work there? A filter of git may change files, too: `git status`, `git diff`",
    );
    error.causes = listed(&changed);
    Err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_git_would_read_as_something_else_is_no_name() {
        for tag in ["v1.2", "release/2026-11-22", "v1-rc1", "ä"] {
            assert_eq!(wrong_tag(tag), None, "{tag}");
        }
        for tag in
            ["", "-f", "--upload-pack=x", "v1^{/x}", "v1..v2", "a b", "@{-1}", "a\nb", "/a", "a:b", "v*"]
        {
            assert!(wrong_tag(tag).is_some(), "{tag}");
        }
        assert!(is_commit("abcdef0") && is_commit(&"a".repeat(40)));
        for id in ["abcdef", "HEAD", "main", "-abcdef0", "abcdef0~1"] {
            assert!(!is_commit(id), "{id}");
        }
    }
}
