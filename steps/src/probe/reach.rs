use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use lifeboat_engine::resource::{Manager, ResourceKind, System};
use lifeboat_engine::step::{Finding, FindingState, PreflightFacts, ResourceProbe, StepContext};
use secrecy::ExposeSecret;

/// Whoever does not answer within this is down.
const LIMIT: Duration = Duration::from_secs(10);

/// Web services answer; with what, is the business of smoke tests.
pub(super) struct Http;

/// Addresses of channels are addresses. Nothing is posted.
pub(super) struct Channels;

/// The programs that start services are there.
pub(super) struct Services;

#[async_trait]
impl ResourceProbe for Http {
    fn kinds(&self) -> &[ResourceKind] {
        &[ResourceKind::Http]
    }

    async fn probe(&self, ctx: &StepContext, name: &str, facts: &PreflightFacts) -> Vec<Finding> {
        const WHAT: &str = "answer";
        let Ok(System::Http(http)) = ctx.resource(name).map(|resource| &resource.system) else {
            return Vec::new();
        };
        let built = reqwest::Client::builder()
            .timeout(LIMIT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!("lifeboat/", env!("CARGO_PKG_VERSION")))
            .build();
        let client = match built {
            Ok(client) => client,
            Err(error) => {
                return vec![Finding::ok(name, WHAT, error.to_string()).state(FindingState::Unknown)];
            }
        };
        vec![match client.head(&http.url).send().await {
            Ok(answer) => Finding::ok(name, WHAT, format!("{} answers with {}", http.url, answer.status())),
            // It may well be down before the plan has restored it.
            Err(error) if facts.starts_services => {
                let detail =
                    format!("{} does not answer now; the plan starts services: {}", http.url, why(&error));
                Finding::ok(name, WHAT, detail).state(FindingState::Unknown)
            }
            Err(error) => Finding::ok(name, WHAT, format!("{} does not answer: {}", http.url, why(&error)))
                .state(FindingState::Failed)
                .help(format!("try `curl -I {}` on this machine", http.url)),
        }]
    }
}

/// Returns the innermost cause, which is the one that people can act on.
fn why(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[async_trait]
impl ResourceProbe for Channels {
    fn kinds(&self) -> &[ResourceKind] {
        &[ResourceKind::Slack, ResourceKind::Webhook]
    }

    async fn probe(&self, ctx: &StepContext, name: &str, _: &PreflightFacts) -> Vec<Finding> {
        const WHAT: &str = "address";
        let Ok(System::Slack(hook) | System::Webhook(hook)) = ctx.resource(name).map(|it| &it.system) else {
            return Vec::new();
        };
        // One that cannot be read has its own finding.
        let Ok(secret) = ctx.secret(&hook.webhook) else { return Vec::new() };
        let url = reqwest::Url::parse(secret.expose_secret());
        let Some(host) = url.as_ref().ok().and_then(|url| url.host_str()) else {
            let finding = Finding::ok(name, WHAT, "the webhook is no address of a web service");
            return vec![
                finding.state(FindingState::Failed).help("store the whole address, `https://` included"),
            ];
        };
        let (host, port) =
            (host.to_owned(), url.ok().and_then(|url| url.port_or_known_default()).unwrap_or(443));
        let found = tokio::time::timeout(LIMIT, tokio::net::lookup_host((host.as_str(), port))).await;
        let known = found.is_ok_and(|found| found.is_ok_and(|addresses| addresses.count() > 0));
        vec![match known {
            true => Finding::ok(name, WHAT, format!("the host {host} is known; nothing was posted")),
            false => Finding::ok(name, WHAT, format!("the host {host} of the webhook is not known here"))
                .state(FindingState::Failed)
                .help("check the network and the name servers of this machine"),
        }]
    }
}

#[async_trait]
impl ResourceProbe for Services {
    fn kinds(&self) -> &[ResourceKind] {
        &[ResourceKind::Service]
    }

    async fn probe(&self, ctx: &StepContext, name: &str, _: &PreflightFacts) -> Vec<Finding> {
        let Ok(System::Service(service)) = ctx.resource(name).map(|it| &it.system) else { return Vec::new() };
        let program = match &service.manager {
            Manager::Systemd { .. } => "systemctl",
            Manager::Docker { .. } | Manager::Compose { .. } => "docker",
            Manager::Process { command, .. } => match command.first() {
                Some(program) => program,
                None => return Vec::new(),
            },
        };
        vec![program_found(name, program)]
    }
}

/// Finds out whether a program is there and may be executed.
pub(crate) fn program_found(subject: &str, program: &str) -> Finding {
    const WHAT: &str = "program";
    let is_program =
        |path: &Path| path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
    let found = if program.contains('/') {
        Some(Path::new(program).to_owned()).filter(|path| is_program(path))
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| is_program(path))
    };
    match found {
        Some(path) => Finding::ok(subject, WHAT, format!("{} is there", path.display())),
        None => Finding::ok(subject, WHAT, format!("`{program}` is not there, or may not be executed"))
            .state(FindingState::Failed)
            .help(format!("install it, or correct the resource: `command -v {program}`")),
    }
}
