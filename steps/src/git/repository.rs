//! Runs git in one work tree: without hooks, prompts and pagers, and never through a shell.

use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lifeboat_engine::step::{StepContext, StepError};
use lifeboat_engine::value::Span;
use serde_json::Value;

use super::codes;
use crate::process::{Command, Output};

/// Settings that hold whatever the repository's own configuration says: nothing of it runs but filters of files.
const SETTINGS: [&str; 7] = [
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.quotePath=false",
    "submodule.recurse=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "advice.detachedHead=false",
];
const NAMES_SHOWN: usize = 20;

/// A work tree, and who git runs as.
pub(super) struct Repository<'a> {
    pub(super) ctx: &'a StepContext,
    pub(super) dir: PathBuf,
    pub(super) os_user: Option<String>,
    /// Where git keeps its own files.
    pub(super) git_dir: PathBuf,
}

/// What is checked out.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Head {
    pub(super) commit: String,
    /// The branch, if it is on one.
    pub(super) branch: Option<String>,
}

impl<'a> Repository<'a> {
    /// Opens a work tree by its top directory.
    pub(super) async fn open(
        ctx: &'a StepContext,
        dir: &Path,
        os_user: Option<&str>,
    ) -> Result<Self, StepError> {
        let dir = ctx.info.project_dir.join(dir);
        let os_user = os_user.map(ToOwned::to_owned);
        let mut found = Self { ctx, dir, os_user, git_dir: PathBuf::new() };
        let asked = ["rev-parse", "--is-bare-repository", "--show-toplevel", "--absolute-git-dir"];
        let output = found.command(&asked).quiet_stdout().run(ctx).await?;
        if output.exit_code != 0 {
            return Err(found.cannot_open(&output));
        }
        let text = output.stdout.text();
        let mut lines = text.lines();
        let (bare, top, git_dir) = (lines.next(), lines.next(), lines.next());
        let same = |path: &str| {
            let of = |path: &Path| path.canonicalize().ok();
            of(Path::new(path)).is_some_and(|top| Some(top) == of(&found.dir))
        };
        match (bare, top, git_dir) {
            (Some("false"), Some(top), Some(git_dir)) if same(top) => {
                found.git_dir = PathBuf::from(git_dir);
                Ok(found)
            }
            (_, Some(top), _) => Err(found.not_top(&format!("the top of its work tree is {top}"))),
            _ => Err(found.not_top("it has no work tree")),
        }
    }

    fn not_top(&self, why: &str) -> StepError {
        let message = format!("{} cannot be checked out: {why}", self.dir.display());
        StepError::permanent(codes::LB1531, message).help("name the directory that has `.git` in it")
    }

    fn cannot_open(&self, output: &Output) -> StepError {
        let said = output.stderr.text();
        if said.contains("dubious ownership") {
            return self.another_owner();
        }
        let mut error = self.not_top("git knows no repository there");
        error.causes = output.stderr.last_lines(3);
        error
    }

    fn another_owner(&self) -> StepError {
        let dir = self.dir.display();
        let message =
            format!("{dir} belongs to another user than the one that git runs as, so git refuses it");
        StepError::permanent(codes::LB1532, message).help(format!(
            "say who owns it with `os_user` (`stat -c %U {dir}` names the owner), so that files keep their owner; or, for \
             the user of Lifeboat: git config --global --add safe.directory {dir}"
        ))
    }

    /// Begins a command of git.
    pub(super) fn command(&self, args: &[&str]) -> Command {
        let settings = SETTINGS.iter().flat_map(|setting| ["-c", setting]);
        Command::new("git")
            .args(["--no-pager"])
            .args(settings)
            .args(args)
            .name(format!("git {}", args.join(" ")))
            .dir(&self.dir)
            .os_user(self.os_user.as_deref())
            .env("LC_ALL", "C")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_OPTIONAL_LOCKS", "0")
            // ssh would ask the terminal for passwords and unknown hosts.
            .env("SSH_ASKPASS", "false")
            .env("SSH_ASKPASS_REQUIRE", "force")
    }

    /// Runs git and returns the one line that it prints.
    pub(super) async fn line(&self, args: &[&str]) -> Result<String, StepError> {
        let output = self.command(args).quiet_stdout().run(self.ctx).await?;
        if output.exit_code == 0 { Ok(output.stdout.text()) } else { Err(failed(args, &output)) }
    }

    /// Runs git and returns the one line that it prints, or `None` if it ends with another exit code than 0.
    pub(super) async fn line_if(&self, args: &[&str]) -> Result<Option<String>, StepError> {
        let output = self.command(args).quiet_stdout().run(self.ctx).await?;
        Ok((output.exit_code == 0).then(|| output.stdout.text()))
    }

    /// Runs git and returns what it prints, as names that NUL separates. With `index` it works on another index.
    pub(super) async fn names(&self, args: &[&str], index: Option<&Path>) -> Result<Vec<Vec<u8>>, StepError> {
        let all = self.bytes(args, index).await?;
        Ok(all.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
    }

    /// Runs git and returns the fields that it prints, with a NUL behind each; they may be empty.
    pub(super) async fn names_and_gaps(&self, args: &[&str]) -> Result<Vec<Vec<u8>>, StepError> {
        let all = self.bytes(args, None).await?;
        Ok(all.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect())
    }

    async fn bytes(&self, args: &[&str], index: Option<&Path>) -> Result<Vec<u8>, StepError> {
        let unusable = |error: &std::io::Error| {
            StepError::transient(codes::LB1530, "no file can be made for what git prints").caused_by(error)
        };
        let mut file = tempfile::tempfile().map_err(|error| unusable(&error))?;
        let writing = file.try_clone().map_err(|error| unusable(&error))?;
        let mut command = self.command(args).stdout_to(writing);
        if let Some(index) = index {
            command = command.env("GIT_INDEX_FILE", index);
        }
        let output = command.run(self.ctx).await?;
        if output.exit_code != 0 {
            return Err(failed(args, &output));
        }
        let mut all = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut all)).map_err(|error| unusable(&error))?;
        Ok(all)
    }

    /// Returns what is checked out.
    pub(super) async fn head(&self) -> Result<Head, StepError> {
        let commit = self.line_if(&["rev-parse", "--verify", "--quiet", "HEAD^{commit}"]).await?;
        let Some(commit) = commit else {
            return Err(self.not_top("it has no commit yet"));
        };
        let branch = self.line_if(&["symbolic-ref", "--quiet", "HEAD"]).await?;
        let branch = branch.and_then(|name| name.strip_prefix("refs/heads/").map(ToOwned::to_owned));
        Ok(Head { commit, branch })
    }

    /// Returns tracked files that are not as they were committed.
    pub(super) async fn changed(&self) -> Result<Vec<String>, StepError> {
        let args = ["status", "--porcelain=v1", "-z", "--untracked-files=no", "--no-renames"];
        let names = self.names(&args, None).await?;
        Ok(names.iter().map(|name| shown(name.get(3..).unwrap_or(name))).collect())
    }

    /// Fetches from a remote of the repository, and gives up when the time is over.
    pub(super) async fn fetch(
        &self,
        remote: &str,
        refspec: Option<&str>,
        limit: Duration,
    ) -> Result<(), StepError> {
        let remotes = self.line(&["remote"]).await?;
        if !remotes.lines().any(|known| known == remote) {
            let message = format!("{} has no remote `{remote}`", self.dir.display());
            return Err(StepError::permanent(codes::LB1538, message)
                .help(format!("it has: {}", remotes.lines().collect::<Vec<_>>().join(", "))));
        }
        let mut args = vec!["fetch", "--no-recurse-submodules"];
        args.push(if refspec.is_some() { "--no-tags" } else { "--tags" });
        args.extend(["--", remote]);
        args.extend(refspec);
        let limited = self.ctx.look(Value::Null, self.ctx.link());
        let fetching = self.command(&args).grace(Duration::from_secs(5)).run(&limited);
        tokio::pin!(fetching);
        let output = tokio::select! {
            output = &mut fetching => output?,
            () = tokio::time::sleep(limit) => {
                limited.cancel.cancel();
                drop(fetching.await);
                let message = format!("`{remote}` did not give what was asked for within {}", Span(limit));
                return Err(StepError::transient(codes::LB1538, message)
                    .help("nothing was checked out; without `fetch` the step uses what is there already"));
            }
        };
        if output.exit_code == 0 { Ok(()) } else { Err(not_fetched(remote, &output)) }
    }

    /// Says what a person has begun in the work tree and not ended.
    pub(super) fn unfinished(&self) -> Option<&'static str> {
        const MARKS: [(&str, &str); 7] = [
            ("MERGE_HEAD", "a merge"),
            ("rebase-merge", "a rebase"),
            ("rebase-apply", "a rebase"),
            ("CHERRY_PICK_HEAD", "a cherry-pick"),
            ("REVERT_HEAD", "a revert"),
            ("BISECT_LOG", "a bisection"),
            ("index.lock", "another git command (`index.lock`)"),
        ];
        let found = MARKS.iter().find(|(name, _)| self.git_dir.join(name).exists());
        found.map(|(_, what)| *what)
    }
}

fn not_fetched(remote: &str, output: &Output) -> StepError {
    let said = output.stderr.text();
    let mut error = if said.contains("would clobber existing tag") {
        let message = format!("the tag stands for another commit at `{remote}` than here");
        StepError::permanent(codes::LB1534, message)
            .help("find out who moved it, and why; name the commit instead of the tag")
    } else if said.contains("couldn't find remote ref") {
        StepError::permanent(codes::LB1533, format!("`{remote}` has no such tag"))
            .help("`git.tags` lists those that are here")
    } else {
        StepError::transient(codes::LB1538, format!("nothing could be fetched from `{remote}`")).help(
            "nobody is asked for a password: the credentials must be where git finds them without a terminal",
        )
    };
    error.causes = output.stderr.last_lines(5);
    error
}

fn failed(args: &[&str], output: &Output) -> StepError {
    let error = output.to_error(&format!("git {}", args.join(" ")));
    StepError { code: codes::LB1530, ..error }
}

/// Writes the name of a file for people.
pub(super) fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// Lists files within a sentence, so that many of them fill no screen.
pub(super) fn listed(names: &[String]) -> Vec<String> {
    let mut lines: Vec<String> = names.iter().take(NAMES_SHOWN).cloned().collect();
    if names.len() > NAMES_SHOWN {
        lines.push(format!("… and {} more", names.len() - NAMES_SHOWN));
    }
    lines
}
