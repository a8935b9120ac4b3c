use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::kind::{KindSpec, StepKind};
use super::preflight::ResourceProbe;
use crate::notice::Messenger;
use crate::resource::ResourceKind;

/// The step kinds that runbooks may use: an ordinary value, so that tests can bring their own.
#[derive(Clone, Default)]
pub struct Registry {
    kinds: BTreeMap<String, Entry>,
    messenger: Option<Arc<dyn Messenger>>,
    probes: Vec<Arc<dyn ResourceProbe>>,
}

#[derive(Clone)]
struct Entry {
    spec: Arc<KindSpec>,
    kind: Arc<dyn StepKind>,
}

impl Registry {
    /// Makes an empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a kind.
    ///
    /// # Panics
    /// If the name is taken: two kinds of one name are a mistake in the program, not in its input.
    pub fn register(&mut self, kind: impl StepKind) {
        let spec = Arc::new(kind.spec());
        let name = spec.name.clone();
        let previous = self.kinds.insert(name.clone(), Entry { spec, kind: Arc::new(kind) });
        assert!(previous.is_none(), "the step kind `{name}` is registered twice");
    }

    /// Sets who posts the notices of runs; without one nobody is told.
    pub fn set_messenger(&mut self, messenger: impl Messenger + 'static) {
        self.messenger = Some(Arc::new(messenger));
    }

    /// Returns who posts the notices of runs.
    pub fn messenger(&self) -> Option<Arc<dyn Messenger>> {
        self.messenger.clone()
    }

    /// Adds a probe of resources.
    pub fn register_probe(&mut self, probe: impl ResourceProbe) {
        self.probes.push(Arc::new(probe));
    }

    /// Returns the probes of a kind of resource.
    pub fn probes(&self, kind: ResourceKind) -> impl Iterator<Item = Arc<dyn ResourceProbe>> {
        self.probes.iter().filter(move |probe| probe.kinds().contains(&kind)).map(Arc::clone)
    }

    /// Returns the description of a kind.
    pub fn spec(&self, name: &str) -> Option<&KindSpec> {
        self.kinds.get(name).map(|entry| &*entry.spec)
    }

    /// Returns a kind.
    pub fn kind(&self, name: &str) -> Option<Arc<dyn StepKind>> {
        self.kinds.get(name).map(|entry| Arc::clone(&entry.kind))
    }

    /// Iterates over the descriptions, by name.
    pub fn specs(&self) -> impl Iterator<Item = &KindSpec> {
        self.kinds.values().map(|entry| &*entry.spec)
    }

    /// Returns the kind that a body key such as `run` stands for, with the parameter that takes its value.
    pub fn by_body_key(&self, key: &str) -> Option<(&KindSpec, &str)> {
        self.specs().find_map(|spec| match &spec.body_key {
            Some((body_key, param)) if body_key == key => Some((spec, param.as_str())),
            _ => None,
        })
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.kinds.keys()).finish()
    }
}
