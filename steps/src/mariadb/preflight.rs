//! What is found of MariaDB servers before a run.

use async_trait::async_trait;
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{Finding, FindingState, PreflightFacts, ResourceProbe, StepContext};

use super::connect::{DbError, Login, server};
use super::facts;

/// Logs in and asks who answers.
pub(super) struct Servers;

#[async_trait]
impl ResourceProbe for Servers {
    fn kinds(&self) -> &[ResourceKind] {
        &[ResourceKind::Mariadb]
    }

    async fn probe(&self, ctx: &StepContext, name: &str, facts: &PreflightFacts) -> Vec<Finding> {
        const WHAT: &str = "login";
        let Ok(mariadb) = server(ctx, name) else { return Vec::new() };
        if mariadb.password.as_ref().is_some_and(|password| ctx.secret(password).is_err()) {
            let finding = Finding::ok(name, WHAT, "not tried without its password");
            return vec![finding.state(FindingState::Unknown)];
        }
        let login = match Login::of(ctx, name) {
            Ok(login) => login,
            Err(error) => return vec![Finding::failed(name, WHAT, &error)],
        };
        let finding = match login.connect().await {
            Ok(mut client) => match facts::read(&mut client).await {
                Ok(found) => match facts::check_place(mariadb, &found) {
                    Ok(()) => {
                        let text = format!("{} answers, MariaDB {}", login.endpoint, found.version);
                        Finding::ok(name, WHAT, text)
                    }
                    Err(error) => Finding::failed(name, WHAT, &error),
                },
                Err(error) => Finding::failed(name, WHAT, &error),
            },
            Err(DbError::Unreachable { endpoint, .. }) if facts.replaced.contains_key(name) => {
                let text = format!("nothing answers at {endpoint}; `{}` restores it", facts.replaced[name]);
                Finding::ok(name, WHAT, text)
            }
            Err(error) => Finding::failed(name, WHAT, &error.into()),
        };
        vec![finding]
    }
}
