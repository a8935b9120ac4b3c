use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::outcome::Mode;
use lifeboat_engine::resource::{Access, ResourceKind, System, Webhook};
use lifeboat_engine::step::{Effect, KindSpec, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use reqwest::StatusCode;
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::codes;

const LIMIT: Duration = Duration::from_secs(10);

/// Posts a message.
#[derive(Debug)]
pub(super) struct Notify;

#[derive(Deserialize)]
struct Params {
    channel: String,
    message: String,
}

const DOC: &str = "\
A `slack` channel gets `{ \"text\": … }`, as Slack, Mattermost and others take it. A `webhook` gets the message with
`run`, `runbook`, `environment`, `mode`, `step` and `time`, and the same `Idempotency-Key` header in every attempt. In
a drill the message says so. A message that cannot be delivered does not stop the run, unless `on_error` says otherwise.";

#[async_trait]
impl StepKind for Notify {
    fn spec(&self) -> KindSpec {
        // Read, because environments rightly share a channel and a message changes no system.
        let channel =
            Type::Resource { kinds: vec![ResourceKind::Slack, ResourceKind::Webhook], access: Access::Read };
        let spec = KindSpec::new("notify", "Posts a message to a channel.", Effect::Idempotent)
            .doc(DOC)
            .param(Field::required("channel", channel, "Where it goes."))
            .param(Field::required("message", Type::String, "What it says."))
            .output("status", Type::Integer, "What the channel answered.");
        KindSpec { continues_on_error: true, ..spec }
    }

    async fn preview(&self, ctx: &StepContext) -> Result<Preview, StepError> {
        let params: Params = ctx.params()?;
        Ok(Preview {
            actions: vec![format!("post to {}: {}", params.channel, params.message)],
            destroys: Vec::new(),
        })
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let body = body(ctx, &params)?;
        let webhook = ctx.system(&params.channel, webhook)?;
        let client = reqwest::Client::builder().timeout(LIMIT).build().map_err(|error| {
            StepError::permanent(codes::LB1704, "the HTTP client cannot be set up").caused_by(&error)
        })?;
        let request = client
            .post(ctx.secret(&webhook.webhook)?.expose_secret())
            .header("Idempotency-Key", ctx.info.idempotency_key())
            .json(&body);
        let response = tokio::select! {
            () = ctx.cancelled() => return Err(undelivered(&params, "the step had to end")),
            response = request.send() => response.map_err(|error| {
                // The address is the secret.
                let error = error.without_url();
                undelivered(&params, "it does not answer").caused_by(&error)
            })?,
        };
        let status = response.status();
        if status.is_success() {
            let outputs = Map::from_iter([("status".to_owned(), status.as_u16().into())]);
            return Ok(Done { outputs, ..Done::default() });
        }
        Err(refused(&params, status))
    }
}

fn webhook(system: &System) -> Option<&Webhook> {
    match system {
        System::Slack(webhook) | System::Webhook(webhook) => Some(webhook),
        _ => None,
    }
}

fn body(ctx: &StepContext, params: &Params) -> Result<Value, StepError> {
    let info = &ctx.info;
    let (mode, mark) = match info.mode {
        Mode::Recovery => ("recovery", ""),
        Mode::Drill => ("drill", "[drill] "),
    };
    let text = format!("{mark}{}", params.message);
    Ok(match ctx.resource(&params.channel)?.system {
        System::Slack(_) => json!({ "text": text }),
        _ => json!({
            "message": text,
            "run": info.run,
            "runbook": info.runbook,
            "environment": info.environment,
            "mode": mode,
            "step": info.step,
            "time": Timestamp::now(),
        }),
    })
}

fn undelivered(params: &Params, why: &str) -> StepError {
    // It may have arrived all the same; a second message does less harm than none.
    StepError::transient(
        codes::LB1704,
        format!("the message to `{}` was not delivered: {why}", params.channel),
    )
    .help("check the network from this machine, and the webhook of the resource")
}

fn refused(params: &Params, status: StatusCode) -> StepError {
    let message = format!("the message to `{}` was refused with status {status}", params.channel);
    let passing = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
    let error = if passing {
        StepError::transient(codes::LB1704, message)
    } else {
        StepError::permanent(codes::LB1704, message)
    };
    error.help(
        "create a new webhook if this one was revoked, and store it where the environment's file points",
    )
}
