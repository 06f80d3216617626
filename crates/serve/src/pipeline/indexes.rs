//! The indexes whose queries a member embeds. They belong to the revision that embeds: who has the revision has the index of
//! its package, so that both change at one moment, forward and back.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use highroad_package::{Digest, VerifiedPackage};
use highroad_task::document_prompt;

use super::IndexConfig;
use crate::definitions::Definitions;
use crate::error::DeployError;
use crate::index::{Index, build_by, first_embedder};

/// Indexes by name, all of them by one package.
pub(crate) type Indexes = Arc<BTreeMap<String, Arc<Index>>>;

/// Where the indexes of a member lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct IndexPlaces(Vec<(String, PathBuf)>);

/// Whether a version may go without an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// It may not serve.
    Refused,
    /// It is only tried, and answers what needs no index.
    Passed,
}

impl IndexPlaces {
    /// Those of `indexes` whose queries `member` embeds.
    pub(crate) fn of(member: &str, indexes: &BTreeMap<String, IndexConfig>) -> Self {
        let own = indexes.iter().filter(|(_, config)| config.embedder == member);
        Self(own.map(|(name, config)| (name.clone(), config.path.clone())).collect())
    }

    /// Whether `indexes` are all of them.
    pub(crate) fn are_all_in(&self, indexes: &Indexes) -> bool {
        self.0.iter().all(|(name, _)| indexes.contains_key(name))
    }

    /// Whether the builds by `package` that are there now are what `indexes` were read from.
    pub(crate) fn are_current(&self, package: &Digest, indexes: &Indexes) -> bool {
        let is_current = |(name, path): &(String, PathBuf)| match (indexes.get(name), build_by(path, package)) {
            (Some(index), Ok(Some(build))) => index.is_still_in(&build),
            _ => false,
        };
        self.0.iter().all(is_current)
    }

    /// Reads the builds by `package`, which is called `version`; blocks for as long as that takes.
    ///
    /// Errors if one cannot be read, was embedded with another prompt than the package has for documents, or, where a missing one is
    /// refused, was embedded by other packages only.
    pub(crate) fn open(
        &self,
        by: &VerifiedPackage,
        version: &str,
        missing: Missing,
        kept: &Definitions,
    ) -> Result<Indexes, DeployError> {
        let (package, prompt) = (&by.digest(), document_prompt(&by.manifest().task));
        let mut indexes = BTreeMap::new();
        for (name, path) in &self.0 {
            match build_by(path, package)? {
                Some(build) => {
                    let index = Index::open(&build)?;
                    let built_with = index.description().embedder.prompt.as_deref();
                    if built_with != prompt {
                        return Err(DeployError::Stale(other_prompt(name, built_with, (version, prompt))));
                    }
                    // A disk that takes nothing stops no server: only replays miss it.
                    if let Err(error) = kept.note_index(&index.digest(), &build) {
                        tracing::warn!("Cannot keep where the index `{name}` lies for replays: {error}");
                    }
                    indexes.insert(name.clone(), Arc::new(index));
                }
                None if missing == Missing::Passed => {}
                None => {
                    let by = first_embedder(path)?;
                    let by = (by.name.as_str(), by.package);
                    return Err(DeployError::Stale(stale(name, by, (version, *package))));
                }
            }
        }
        Ok(Arc::new(indexes))
    }
}

fn other_prompt(index: &str, built_with: Option<&str>, (serves, prompt): (&str, Option<&str>)) -> String {
    let said = |prompt: Option<&str>| prompt.map_or("no prompt".to_owned(), |name| format!("the prompt `{name}`"));
    format!(
        "index `{index}` is stale: its documents were embedded with {}, and {serves} embeds documents with {}; `highroad index` \
         builds it anew",
        said(built_with),
        said(prompt)
    )
}

/// Vectors of two models are not comparable, however alike they look.
pub(super) fn stale(index: &str, (built_by, by): (&str, Digest), (serves, package): (&str, Digest)) -> String {
    format!(
        "index `{index}` is stale: its documents were embedded by {built_by} ({}), queries would be by {serves} ({}); \
         `highroad index` builds it anew, beside the old one",
        by.short(),
        package.short()
    )
}
