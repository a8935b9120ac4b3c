//! Stand-ins for step kinds: the language does not depend on which ones there are.

use async_trait::async_trait;
use lifeboat_engine::model::event::Done;
use lifeboat_engine::resource::{Access, ResourceKind};
use lifeboat_engine::step::{Effect, KindSpec, ParamProblem, Registry, StepContext, StepError, StepKind};
use lifeboat_engine::value::{Field, Type};
use serde_json::{Map, Value};

struct StandIn(KindSpec);

#[async_trait]
impl StepKind for StandIn {
    fn spec(&self) -> KindSpec {
        self.0.clone()
    }

    fn check(&self, with: &Map<String, Value>) -> Vec<ParamProblem> {
        let empty = with.get("text").is_some_and(|text| text == "");
        let problem = || ParamProblem {
            param: "text".into(),
            message: "is empty".into(),
            help: Some("write something".into()),
        };
        empty.then(problem).into_iter().collect()
    }

    async fn run(&self, _ctx: &StepContext) -> Result<Done, StepError> {
        Ok(Done::default())
    }
}

fn kind(name: &str, effect: Effect, params: Vec<Field>) -> KindSpec {
    params.into_iter().fold(KindSpec::new(name, "Stands in.", effect), KindSpec::param)
}

fn need(name: &str, ty: Type) -> Field {
    Field::required(name, ty, "what it says")
}

fn may(name: &str, ty: Type) -> Field {
    Field::optional(name, ty, "what it says")
}

fn postgres_kinds() -> Vec<KindSpec> {
    let store = || need("store", Type::reads(ResourceKind::Store));
    let cluster = || need("cluster", Type::writes(ResourceKind::Postgres));
    let reads = need("cluster", Type::reads(ResourceKind::Postgres));
    let target = || need("target_time", Type::Timestamp);
    let backup = Type::Object(vec![need("label", Type::String)]);
    let existing = may("existing", Type::choice(&["refuse", "move_aside"]));
    let query =
        vec![need("name", Type::String), need("sql", Type::Sql), may("expect", Type::conditions(&["rows"]))];
    let restore = vec![store(), need("backup", backup.clone()), cluster(), existing];
    vec![
        kind("postgres.select_backup", Effect::Read, vec![store(), target()]).output("backup", backup, ""),
        kind("postgres.restore_base", Effect::Guarded, restore).destroys("the data directory").restores(),
        kind("postgres.recover", Effect::Guarded, vec![store(), cluster(), target()]).output(
            "reached",
            Type::Timestamp,
            "",
        ),
        kind("postgres.verify", Effect::Read, vec![reads, need("queries", Type::list(Type::Object(query)))]),
        kind("postgres.promote", Effect::Guarded, vec![cluster()]),
        kind("postgres.clone", Effect::Guarded, vec![store()])
            .output("port", Type::Integer, "")
            .creates(ResourceKind::Postgres),
    ]
}

fn people_kinds() -> Vec<KindSpec> {
    let kinds = vec![ResourceKind::Slack, ResourceKind::Webhook];
    let channel = Type::Resource { kinds, access: Access::Write };
    let approval = vec![need("role", Type::String), need("message", Type::String)];
    let notify = vec![need("channel", channel), need("message", Type::String)];
    vec![
        KindSpec { waits_for_people: true, ..kind("approval", Effect::Read, approval) },
        KindSpec { continues_on_error: true, ..kind("notify", Effect::Once, notify) },
    ]
}

fn other_kinds() -> Vec<KindSpec> {
    let service = |name| need(name, Type::writes(ResourceKind::Service));
    let check = vec![
        need("name", Type::String),
        may("get", Type::String),
        may("expect", Type::conditions(&["status"])),
    ];
    let smoke = vec![
        need("target", Type::reads(ResourceKind::Http)),
        need("checks", Type::list(Type::Object(check))),
    ];
    let as_of = vec![
        need("store", Type::reads(ResourceKind::Store)),
        need("at", Type::Timestamp),
        need("to", Type::Path),
    ];
    let script = vec![
        need("script", Type::Script),
        may("env", Type::EnvMap),
        may("dir", Type::Path),
        may("probe", Type::Script),
    ];
    let run = kind("run", Effect::Once, script).output("stdout", Type::String, "");
    vec![
        kind("note", Effect::Read, vec![need("text", Type::String), may("count", Type::Integer)]).output(
            "words",
            Type::Integer,
            "",
        ),
        kind("store.restore_as_of", Effect::Idempotent, as_of),
        kind("store.prune", Effect::Idempotent, vec![need("store", Type::writes(ResourceKind::Store))]),
        kind("redis.clone", Effect::Guarded, vec![need("store", Type::reads(ResourceKind::Store))])
            .output("socket", Type::Path, "")
            .creates(ResourceKind::Redis),
        kind("cache.flush", Effect::Idempotent, vec![need("server", Type::writes(ResourceKind::Redis))]),
        kind("service.stop", Effect::Idempotent, vec![service("service")]),
        kind("access.open", Effect::Idempotent, vec![service("gate")]),
        kind("http.smoke", Effect::Read, smoke),
        KindSpec { effect: None, body_key: Some(("run".into(), "script".into())), ..run },
    ]
}

pub(super) fn registry() -> Registry {
    let mut registry = Registry::new();
    for kind in [postgres_kinds(), people_kinds(), other_kinds()].into_iter().flatten() {
        registry.register(StandIn(kind));
    }
    registry
}
