use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::model::evidence::Check;
use lifeboat_engine::resource::ResourceKind;
use lifeboat_engine::step::{Effect, KindSpec, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde::Deserialize;
use serde_json::json;

use super::outputs;
use super::restore::listed;
use crate::store::policy::{Policy, Told, Unfinished, Versioning};
use crate::store::{Store, blocking, codes};

/// Compares what a store promises with what is required.
#[derive(Debug)]
pub(super) struct CheckPolicy;

#[derive(Clone, Debug, Deserialize)]
struct Params {
    store: String,
    versioning: Versions,
    versions_kept_days: Option<u32>,
    encryption: Demand,
    private: Demand,
    object_lock: Demand,
    clears_uploads: Demand,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Versions {
    Enabled,
    Any,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Demand {
    Required,
    Any,
}

const DOC: &str = "\
Asks the store for its rules and fails if one of those that are required does not hold. What the store does not tell (a \
right that is missing, a server that does not know the question) counts as not held where it is required, and is named as \
unknown where it is not.

A bucket whose versions can be restored needs `versioning: enabled`; `versions_kept_days` says for how long old versions must \
stay, which a lifecycle rule may cut short. Replication and mirrors carry deletions and damage along and are no substitute. \
Uploads in parts that were begun and never completed are seen in no listing and are paid for. They are counted (below the prefix of \
the store, up to 1000), and where no rule removes them (`AbortIncompleteMultipartUpload`) a warning says so; `clears_uploads: required` \
makes the missing rule an error.

A `dir://` store keeps no versions; `private` there means that others can neither read nor write its directory.";

#[async_trait]
impl StepKind for CheckPolicy {
    fn spec(&self) -> KindSpec {
        let demand = |name: &str, default: &str, summary: &str| {
            Field::defaulted(name, Type::choice(&["required", "any"]), default, summary)
        };
        KindSpec::new(
            "store.check_policy",
            "Compares what a store promises with what is required.",
            Effect::Read,
        )
        .doc(DOC)
        .param(Field::required("store", Type::reads(ResourceKind::Store), "Which store."))
        .param(Field::defaulted(
            "versioning",
            Type::choice(&["enabled", "any"]),
            "enabled",
            "Whether versions must be kept.",
        ))
        .param(Field::optional(
            "versions_kept_days",
            Type::Integer,
            "For how many days old versions must stay.",
        ))
        .param(demand("encryption", "any", "Whether objects must be encrypted by default."))
        .param(demand("private", "any", "Whether public access must be blocked altogether."))
        .param(demand("object_lock", "any", "Whether objects must be lockable against removal."))
        .param(demand("clears_uploads", "any", "Whether a rule must remove uploads that came to nothing."))
        .output("versioning", Type::String, "`enabled`, `suspended`, `never` or `unknown`.")
        .output("versions_kept_days", Type::String, "A number of days, `for ever` or `unknown`.")
        .output("encryption", Type::String, "The algorithm, `none` or `unknown`.")
        .output("private", Type::String, "`yes`, `no` or `unknown`.")
        .output("object_lock", Type::String, "`yes`, `no` or `unknown`.")
        .output("clears_uploads", Type::String, "`yes`, `no` or `unknown`.")
        .output(
            "unfinished_uploads",
            Type::String,
            "How many there are now, `1000 or more`, or `unknown`.",
        )
    }

    async fn run(&self, ctx: &StepContext) -> Result<Done, StepError> {
        let params: Params = ctx.params()?;
        let store = Store::of(ctx, &params.store).await?;
        let name = store.to_string();
        let policy = blocking(move || store.policy()).await?;
        let (checks, unknown) = judge(&params, &policy);
        let failed: Vec<_> = checks
            .iter()
            .filter(|check| !check.passed)
            .map(|check| format!("{}: {}, and must be {}", check.name, check.actual, check.expected))
            .collect();
        if !failed.is_empty() {
            let message = format!("{name} does not promise what is required");
            let causes = failed.into_iter().chain(unknown).collect();
            return Err(listed(StepError::permanent(codes::LB1158, message), causes)
                .help("change the rules of the bucket, or what the step requires; `lifeboat explain LB1158` says how")
                .checks(checks));
        }
        let outputs = outputs(json!({
            "versioning": versioning(&policy), "versions_kept_days": kept(&policy),
            "encryption": encryption(&policy), "private": yes(&policy.is_private),
            "object_lock": yes(&policy.object_lock), "clears_uploads": yes(&policy.clears_uploads),
            "unfinished_uploads": unfinished(&policy),
        }));
        let unknown = unknown.into_iter().map(|what| format!("not known: {what}"));
        let warnings = unknown.chain(orphaned(&policy)).collect();
        Ok(Done { outputs, checks, warnings, ..Done::default() })
    }
}

fn versioning(policy: &Policy) -> &'static str {
    match policy.versioning {
        Told::Yes(Versioning::Enabled) => "enabled",
        Told::Yes(Versioning::Suspended) => "suspended",
        Told::Yes(Versioning::Never) => "never",
        Told::Unknown(_) => "unknown",
    }
}

fn kept(policy: &Policy) -> String {
    match policy.forgets_after_days {
        Told::Yes(Some(days)) => days.to_string(),
        Told::Yes(None) => "for ever".to_owned(),
        Told::Unknown(_) => "unknown".to_owned(),
    }
}

fn encryption(policy: &Policy) -> String {
    match &policy.encryption {
        Told::Yes(Some(algorithm)) => algorithm.clone(),
        Told::Yes(None) => "none".to_owned(),
        Told::Unknown(_) => "unknown".to_owned(),
    }
}

fn yes(told: &Told<bool>) -> &'static str {
    match told {
        Told::Yes(true) => "yes",
        Told::Yes(false) => "no",
        Told::Unknown(_) => "unknown",
    }
}

fn unfinished(policy: &Policy) -> String {
    match policy.unfinished {
        Told::Yes(Unfinished { count, is_all: true, .. }) => count.to_string(),
        Told::Yes(Unfinished { count, .. }) => format!("{count} or more"),
        Told::Unknown(_) => "unknown".to_owned(),
    }
}

/// Tells of uploads that nobody goes on with and nothing removes.
fn orphaned(policy: &Policy) -> Option<String> {
    let Told::Yes(Unfinished { count, oldest, .. }) = policy.unfinished else { return None };
    if count == 0 || policy.clears_uploads == Told::Yes(true) {
        return None;
    }
    let oldest = oldest.map_or(String::new(), |at| format!(", the oldest of {at}"));
    Some(format!(
        "{} uploads were begun and not completed{oldest}: what was sent is kept and paid for, and no rule removes it; give the \
         bucket a lifecycle rule with `AbortIncompleteMultipartUpload`",
        unfinished(policy)
    ))
}

/// Returns a check for everything that is required, and what the store does not tell.
fn judge(params: &Params, policy: &Policy) -> (Vec<Check>, Vec<String>) {
    let check = |name: &str, expected: &str, actual: String, passed: bool| Check {
        name: name.to_owned(),
        expected: expected.to_owned(),
        actual,
        passed,
    };
    let mut checks = Vec::new();
    if params.versioning == Versions::Enabled {
        let is = versioning(policy);
        checks.push(check("versioning", "enabled", is.to_owned(), is == "enabled"));
    }
    if let Some(wanted) = params.versions_kept_days {
        let passed = match policy.forgets_after_days {
            Told::Yes(days) => days.is_none_or(|days| days >= wanted),
            Told::Unknown(_) => false,
        };
        checks.push(check(
            "days for which old versions stay",
            &format!("at least {wanted}"),
            kept(policy),
            passed,
        ));
    }
    if params.encryption == Demand::Required {
        let passed = matches!(policy.encryption, Told::Yes(Some(_)));
        checks.push(check("encryption", "some", encryption(policy), passed));
    }
    let demands = [
        (params.private, "public access blocked", &policy.is_private),
        (params.object_lock, "objects can be locked", &policy.object_lock),
        (params.clears_uploads, "uploads that came to nothing are removed", &policy.clears_uploads),
    ];
    for (_, name, told) in demands.iter().filter(|(demand, ..)| *demand == Demand::Required) {
        checks.push(check(name, "yes", yes(told).to_owned(), yes(told) == "yes"));
    }
    (checks, unknown(policy))
}

fn unknown(policy: &Policy) -> Vec<String> {
    fn why<T>(told: &Told<T>) -> Option<String> {
        match told {
            Told::Unknown(why) => Some(why.clone()),
            Told::Yes(_) => None,
        }
    }
    let told = [
        ("versioning", why(&policy.versioning)),
        ("how long versions stay", why(&policy.forgets_after_days)),
        ("encryption", why(&policy.encryption)),
        ("public access", why(&policy.is_private)),
        ("locks", why(&policy.object_lock)),
        ("uploads that came to nothing", why(&policy.clears_uploads)),
        ("uploads that are there", why(&policy.unfinished)),
    ];
    told.into_iter().filter_map(|(what, why)| Some(format!("{what}: {}", why?))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn params(written: Value) -> Params {
        let mut all = json!({
            "store": "s", "versioning": "enabled", "encryption": "any", "private": "any", "object_lock": "any",
            "clears_uploads": "any",
        });
        all.as_object_mut().unwrap().extend(written.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    }

    fn policy() -> Policy {
        Policy {
            versioning: Told::Yes(Versioning::Enabled),
            forgets_after_days: Told::Yes(Some(30)),
            clears_uploads: Told::Yes(true),
            unfinished: Told::Yes(Unfinished { count: 2, is_all: true, oldest: None }),
            encryption: Told::Yes(Some("AES256".into())),
            is_private: Told::Yes(true),
            object_lock: Told::Yes(false),
        }
    }

    fn failed(written: Value, policy: &Policy) -> Vec<String> {
        let checks = judge(&params(written), policy).0;
        checks.into_iter().filter(|check| !check.passed).map(|check| check.name).collect()
    }

    #[test]
    fn what_is_required_must_hold_and_be_known() {
        assert!(failed(json!({}), &policy()).is_empty());
        assert!(failed(json!({ "versions_kept_days": 30, "private": "required" }), &policy()).is_empty());
        assert_eq!(
            failed(json!({ "versions_kept_days": 31 }), &policy()),
            ["days for which old versions stay"]
        );
        assert_eq!(failed(json!({ "object_lock": "required" }), &policy()), ["objects can be locked"]);
        let silent = Policy {
            versioning: Told::Yes(Versioning::Suspended),
            encryption: Told::Unknown("no right".into()),
            ..policy()
        };
        assert_eq!(failed(json!({ "encryption": "required" }), &silent), ["versioning", "encryption"]);
        assert_eq!(judge(&params(json!({})), &silent).1, ["encryption: no right"]);
        assert_eq!(orphaned(&policy()), None, "a rule removes them");
        let kept = Policy { clears_uploads: Told::Yes(false), ..policy() };
        assert!(orphaned(&kept).is_some_and(|told| told.starts_with("2 uploads")));
        let none = Policy { unfinished: Told::Yes(Unfinished::default()), ..kept };
        assert_eq!(orphaned(&none), None);
        let forever = Policy { forgets_after_days: Told::Yes(None), ..policy() };
        assert!(failed(json!({ "versions_kept_days": 3650 }), &forever).is_empty());
    }
}
