use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::diagnostic::{Diagnostic, codes};
use crate::model::outcome::Mode;
use crate::plan::Plan;
use crate::resource::{Access, Manager, Resource, ResourceKind, System};
use crate::spec::EnvironmentSpec;
use crate::step::Effect;

/// Refuses a plan that would touch what a protected environment names: a write from an unprotected environment, or
/// anything but reading of `access: read` resources by a drill in a protected one.
///
/// Looks at the file system of this machine to resolve symbolic links; call it again before each destructive step.
pub fn fence<'e>(
    plan: &Plan,
    environments: impl IntoIterator<Item = &'e EnvironmentSpec>,
) -> Vec<Diagnostic> {
    let environments: Vec<_> = environments.into_iter().collect();
    if plan.protected {
        return if plan.mode == Mode::Drill { drill_in_protected(plan) } else { Vec::new() };
    }
    let writes = plan.everything().flat_map(|step| step.writes.iter().cloned());
    match environments.iter().find(|environment| environment.name.value == plan.environment) {
        Some(own) => fence_writes(own, writes, environments.iter().copied()),
        None => {
            let message = format!("the project has no environment `{}`", plan.environment);
            vec![Diagnostic::error(codes::LB0207, message)]
        }
    }
}

fn drill_in_protected(plan: &Plan) -> Vec<Diagnostic> {
    let refuse = |step: &crate::plan::PlannedStep, why: String| {
        Diagnostic::error(
            codes::LB0140,
            format!("a drill in the protected environment `{}` would {why}", plan.environment),
        )
        .help(format!("`{}` ({}); drill in an unprotected environment with `--env`", step.id, step.place))
    };
    let mut found = Vec::new();
    for step in plan.everything() {
        let is_message = |name: &String| {
            let kind = plan.resources.get(name).map(Resource::kind);
            matches!(kind, Some(ResourceKind::Slack | ResourceKind::Webhook))
        };
        if let Some(name) = step.writes.iter().find(|name| !is_message(name)) {
            found.push(refuse(step, format!("write `{name}`")));
        }
        let open = |name: &&String| {
            plan.resources.get(*name).is_some_and(|resource| resource.access != Access::Read)
        };
        if let Some(name) = step.reads.iter().find(open) {
            found.push(refuse(step, format!("use `{name}`, which is not declared `access: read`")));
        }
        if step.with.get("script").is_some() && step.effect != Effect::Read {
            found.push(refuse(step, "run a script that changes something".to_owned()));
        }
    }
    found
}

/// Compares the resources that are written with everything that protected environments name.
pub(super) fn fence_writes<'e>(
    own: &EnvironmentSpec,
    writes: impl IntoIterator<Item = String>,
    environments: impl IntoIterator<Item = &'e EnvironmentSpec>,
) -> Vec<Diagnostic> {
    let writes: BTreeSet<_> = writes.into_iter().collect();
    let protected: Vec<_> = environments.into_iter().filter(|environment| environment.protected).collect();
    let mut found = Vec::new();
    for name in &writes {
        // Writing what may only be read is an error of its own.
        let Some(spec) = own.resources.get(name).filter(|spec| spec.resource.access == Access::Write) else {
            continue;
        };
        let mine = identities(&spec.resource);
        for environment in &protected {
            let same = environment.resources.iter().find_map(|(other, resource)| {
                let theirs = identities(&resource.resource);
                let shared = mine.iter().find(|mine| theirs.iter().any(|theirs| mine.overlaps(theirs)))?;
                Some((other, shared.to_string()))
            });
            if let Some((other, shared)) = same {
                let message = format!(
                    "`{name}` of `{}` would be written, and is `{other}` of the protected environment `{}`: {shared}",
                    own.name.value, environment.name.value
                );
                found
                    .push(Diagnostic::error(codes::LB0141, message).at(&own.source, spec.span.clone()).help(
                    "give this environment a system of its own; declare `access: read` if it is only read",
                ));
            }
        }
    }
    found
}

/// Returns what a run of the plan must have for itself: the identity of everything that it writes.
pub fn written_identities(plan: &Plan) -> BTreeSet<String> {
    let written: BTreeSet<_> = plan.everything().flat_map(|step| &step.writes).collect();
    let resources = written.into_iter().filter_map(|name| plan.resources.get(name));
    resources.flat_map(identities).map(|identity| identity.to_string()).collect()
}

/// What a system can be recognised by.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Identity {
    /// A directory, links resolved: overlaps with everything above and below it.
    Path(PathBuf),
    /// An address, unit or bucket, spelled in one way.
    Name(String),
}

impl Identity {
    fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Path(a), Self::Path(b)) => a.starts_with(b) || b.starts_with(a),
            (Self::Name(a), Self::Name(b)) => a == b || is_below(a, b) || is_below(b, a),
            _ => false,
        }
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// `s3://bucket/a/b` is below `s3://bucket/a`.
fn is_below(inner: &str, outer: &str) -> bool {
    outer.starts_with("s3://") && inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'))
}

fn identities(resource: &Resource) -> Vec<Identity> {
    match &resource.system {
        System::Postgres(postgres) => {
            let mut all = path(postgres.data_dir.as_deref());
            let host = postgres.host.as_deref().unwrap_or("localhost");
            all.push(Identity::Name(format!("tcp://{}:{}", host_name(host), postgres.port)));
            all
        }
        System::Redis(redis) => {
            let mut all = path(redis.data_dir.as_deref());
            all.push(Identity::Name(authority(&redis.url, 6379)));
            all
        }
        System::Store(store) => match store.url.strip_prefix("dir://") {
            Some(dir) => path(Some(Path::new(dir))),
            None => vec![Identity::Name(store.url.trim_end_matches('/').to_owned())],
        },
        System::Files(files) => path(Some(&files.path)),
        System::Service(service) => manager(&service.manager),
        System::Http(http) => {
            let default = if http.url.starts_with("https") { 443 } else { 80 };
            vec![Identity::Name(authority(&http.url, default))]
        }
        // Messages harm nothing, and the machine itself is shared by all environments on it.
        System::Host(_) | System::Slack(_) | System::Webhook(_) => Vec::new(),
    }
}

fn path(path: Option<&Path>) -> Vec<Identity> {
    path.map(|path| Identity::Path(resolved(path))).into_iter().collect()
}

fn manager(manager: &Manager) -> Vec<Identity> {
    match manager {
        Manager::Systemd { unit } => {
            vec![Identity::Name(format!("systemd:{}", unit.trim_end_matches(".service")))]
        }
        Manager::Docker { container } => vec![Identity::Name(format!("docker:{container}"))],
        Manager::Compose { service, project_dir } => {
            let dir = project_dir.as_deref().map(resolved).unwrap_or_default();
            vec![Identity::Name(format!("compose:{}:{service}", dir.display()))]
        }
        Manager::Process { pid_file, .. } => path(pid_file.as_deref()),
    }
}

/// Resolves symbolic links as far as the path exists.
fn resolved(path: &Path) -> PathBuf {
    let mut missing = Vec::new();
    let mut existing = path;
    loop {
        if let Ok(real) = existing.canonicalize() {
            return missing.into_iter().rev().fold(real, |path, part| path.join(part));
        }
        match (existing.parent(), existing.file_name()) {
            (Some(parent), Some(name)) => {
                missing.push(name);
                existing = parent;
            }
            _ => return path.to_owned(),
        }
    }
}

fn authority(url: &str, default_port: u16) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next().unwrap_or(rest);
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => (host, port.to_owned()),
        _ => (authority, default_port.to_string()),
    };
    format!("tcp://{}:{port}", host_name(host))
}

fn host_name(host: &str) -> String {
    let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
    let local = host == "localhost" || host == "::1" || host.starts_with("127.") || host.starts_with('/');
    if local { "localhost".to_owned() } else { host }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_spelled_in_one_way() {
        assert_eq!(authority("redis://127.0.0.1:6380/0", 6379), "tcp://localhost:6380");
        assert_eq!(authority("redis://Cache", 6379), "tcp://cache:6379");
        assert_eq!(authority("https://[::1]/x", 443), "tcp://localhost:443");
    }

    #[test]
    fn paths_overlap_above_and_below_and_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::os::unix::fs::symlink(&data, dir.path().join("link")).unwrap();
        let at = |path: &Path| Identity::Path(resolved(path));
        assert!(at(&dir.path().join("link/inner")).overlaps(&at(&data)));
        assert!(at(&data).overlaps(&at(&dir.path().join("data/deeper/still"))));
        assert!(!at(&dir.path().join("data2")).overlaps(&at(&data)));
        let name = |text: &str| Identity::Name(text.to_owned());
        assert!(name("s3://b/a/c").overlaps(&name("s3://b/a")));
        assert!(!name("s3://b/ab").overlaps(&name("s3://b/a")));
    }
}
