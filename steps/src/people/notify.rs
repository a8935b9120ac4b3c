use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::outcome::Mode;
use lifeboat_engine::notice::{Messenger, Notice};
use lifeboat_engine::resource::{Access, Resource, ResourceKind, System, Webhook};
use lifeboat_engine::secret::Secrets;
use lifeboat_engine::step::{Effect, KindSpec, Preview, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use reqwest::StatusCode;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{codes, slack};

const LIMIT: Duration = Duration::from_secs(10);

/// Posts a message.
#[derive(Debug)]
pub(super) struct Notify;

#[derive(Deserialize)]
struct Params {
    channel: String,
    message: String,
    #[serde(default)]
    fields: Map<String, Value>,
}

impl Params {
    /// Returns the fields as text, as a person reads values.
    fn fields(&self) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
        self.fields.iter().map(|(name, value)| (name.clone(), text(value))).collect()
    }
}

const DOC: &str = "\
A `slack` channel gets the message as `text`, as Slack, Mattermost and others take it, and as `blocks` with the `fields`
beside each other. Signs that Slack reads as markup stand for themselves, so that nothing a step has found rings a whole
channel. A `webhook` gets `message`, `fields`, `run`, `runbook`, `environment`, `mode`, `step` and `time`, and the same
`Idempotency-Key` header in every attempt. In a drill the message says so. A message that cannot be delivered does not stop the
run, unless `on_error` says otherwise.

```yaml
- id: announce
  uses: notify
  with: { channel: ops, message: \"{{ run.summary }}\", fields: { Run: \"{{ run.short }}\", Environment: production } }
```";

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
            .param(Field::optional(
                "fields",
                Type::map(Type::Any),
                "Values by name, shown beside each other.",
            ))
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
        let message = Post {
            address: ctx.secret(&webhook.webhook)?,
            key: ctx.info.idempotency_key(),
            body,
            channel: &params.channel,
        };
        let status = tokio::select! {
            () = ctx.cancelled() => return Err(undelivered(&params.channel, "the step had to end")),
            status = message.send() => status?,
        };
        let outputs = Map::from_iter([("status".to_owned(), status.as_u16().into())]);
        Ok(Done { outputs, ..Done::default() })
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
        System::Slack(_) => slack::message(&text, &params.fields()),
        _ => json!({
            "message": text,
            "fields": params.fields,
            "run": info.run,
            "runbook": info.runbook,
            "environment": info.environment,
            "mode": mode,
            "step": info.step,
            "time": Timestamp::now(),
        }),
    })
}

/// One message on its way to a webhook.
struct Post<'a> {
    /// The address is the secret.
    address: &'a SecretString,
    key: String,
    body: Value,
    channel: &'a str,
}

impl Post<'_> {
    async fn send(self) -> Result<StatusCode, StepError> {
        let client = reqwest::Client::builder().timeout(LIMIT).build().map_err(|error| {
            StepError::permanent(codes::LB1704, "the HTTP client cannot be set up").caused_by(&error)
        })?;
        let request =
            client.post(self.address.expose_secret()).header("Idempotency-Key", &self.key).json(&self.body);
        let response = request.send().await.map_err(|error| {
            let error = error.without_url();
            undelivered(self.channel, "it does not answer").caused_by(&error)
        })?;
        let status = response.status();
        if status.is_success() { Ok(status) } else { Err(refused(self.channel, status)) }
    }
}

/// Posts the notices of runs, in the form in which `notify` posts its messages.
#[derive(Debug)]
pub(super) struct Notices;

#[async_trait]
impl Messenger for Notices {
    async fn post(&self, channel: &Resource, secrets: &Secrets, notice: &Notice) -> Result<(), StepError> {
        let Some(found) = webhook(&channel.system) else {
            return Err(StepError::permanent(codes::LB1704, "the channel takes no messages"));
        };
        let Some(address) = secrets.get(&found.webhook) else {
            return Err(StepError::permanent(codes::LB1704, "the address of the channel was not read"));
        };
        let body = match channel.system {
            System::Slack(_) => slack::message(&notice.message, &fields(notice)),
            _ => {
                let mut body = json!(notice);
                body["time"] = json!(Timestamp::now());
                body
            }
        };
        Post { address, key: notice.idempotency_key(), body, channel: "the channel" }.send().await.map(drop)
    }
}

/// What a notice says besides its text.
fn fields(notice: &Notice) -> Vec<(String, String)> {
    let step = notice.step.as_ref().map(ToString::to_string);
    let fields = [
        ("Runbook", Some(notice.runbook.clone())),
        ("Environment", Some(notice.environment.clone())),
        ("Run", Some(notice.run.short())),
        ("Step", step),
    ];
    fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

fn undelivered(channel: &str, why: &str) -> StepError {
    // It may have arrived all the same; a second message does less harm than none.
    StepError::transient(codes::LB1704, format!("the message to `{channel}` was not delivered: {why}"))
        .help("check the network from this machine, and the webhook of the resource")
}

fn refused(channel: &str, status: StatusCode) -> StepError {
    let message = format!("the message to `{channel}` was refused with status {status}");
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
