//! What is found of Redis servers before a run.

use async_trait::async_trait;
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{Finding, FindingState, PreflightFacts, ResourceProbe, StepContext};

use super::client::{Client, server};

/// Logs in and asks for a sign of life.
pub(super) struct Servers;

#[async_trait]
impl ResourceProbe for Servers {
    fn kinds(&self) -> &[ResourceKind] {
        &[ResourceKind::Redis]
    }

    async fn probe(&self, ctx: &StepContext, name: &str, facts: &PreflightFacts) -> Vec<Finding> {
        const WHAT: &str = "login";
        let Ok(redis) = server(ctx, name) else { return Vec::new() };
        if redis.password.as_ref().is_some_and(|password| ctx.secret(password).is_err()) {
            return vec![
                Finding::ok(name, WHAT, "not tried without its password").state(FindingState::Unknown),
            ];
        }
        let finding = match Client::connect_if_up(ctx, name).await {
            Ok(Some(mut client)) => match client.info().await {
                Ok(info) => {
                    let version = info.text("redis_version");
                    Finding::ok(name, WHAT, format!("{} answers, Redis {version}", redis.url))
                }
                Err(error) => Finding::failed(name, WHAT, &error),
            },
            Ok(None) => match facts.replaced.get(name) {
                Some(step) => {
                    Finding::ok(name, WHAT, format!("nothing listens at {}; `{step}` restores it", redis.url))
                }
                None => Finding::ok(name, WHAT, format!("nothing listens at {}", redis.url))
                    .state(FindingState::Failed)
                    .help(format!("start it; `redis-cli -u {} ping` tells on this machine", redis.url)),
            },
            Err(error) => Finding::failed(name, WHAT, &error),
        };
        vec![finding]
    }
}
