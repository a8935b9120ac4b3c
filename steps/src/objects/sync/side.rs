use std::collections::BTreeMap;
use std::path::PathBuf;

use lifeboat_engine::step::StepError;

use super::super::tree::Tree;
use crate::store::named::Current;
use crate::store::{Key, Store};

/// One of the two places that are made alike.
#[derive(Clone, Debug)]
pub(super) enum Side {
    Dir(PathBuf),
    Store(Part),
}

/// What lies in a store below a prefix.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) store: Store,
    pub(super) below: Option<Key>,
}

/// What is in a place, by names that both places share.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) objects: BTreeMap<String, Current>,
    /// Of a directory.
    pub(super) tree: Tree,
}

impl Part {
    /// Returns what the store calls a name.
    pub(super) fn full(&self, name: &str) -> String {
        self.below.as_ref().map_or_else(|| name.to_owned(), |below| format!("{below}/{name}"))
    }

    pub(super) fn key(&self, name: &str) -> Result<Key, StepError> {
        Key::new(self.full(name))
    }

    fn list(&self) -> Result<BTreeMap<String, Current>, StepError> {
        let skipped = self.below.as_ref().map_or(0, |below| below.as_str().len() + 1);
        let found = self.store.everything(self.below.as_ref())?;
        let named = found.into_iter().filter_map(|object| {
            let name = object.name.get(skipped..).filter(|name| !name.is_empty())?.to_owned();
            Some((name, object))
        });
        Ok(named.collect())
    }
}

impl Side {
    pub(super) fn list(&self) -> Result<Listing, StepError> {
        match self {
            Self::Store(part) => Ok(Listing { objects: part.list()?, tree: Tree::default() }),
            Self::Dir(dir) if !dir.exists() => Ok(Listing::default()),
            Self::Dir(dir) => {
                let tree = Tree::read(dir)?;
                let files = tree.files.clone();
                Ok(Listing {
                    objects: files.into_iter().map(|file| (file.name.clone(), file)).collect(),
                    tree,
                })
            }
        }
    }
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dir(dir) => dir.display().fmt(f),
            Self::Store(part) => match &part.below {
                Some(below) => write!(f, "`{below}/` in {}", part.store),
                None => part.store.fmt(f),
            },
        }
    }
}
