//! The indexes whose queries a member embeds. They belong to the revision that embeds: who has the revision has the index of
//! its package, so that both change at one moment, forward and back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use highroad_package::{Digest, VerifiedPackage};
use highroad_task::document_prompt;
use highroad_worker::{Event, Tell};
use metrics::{counter, gauge};

use super::IndexConfig;
use crate::definitions::Definitions;
use crate::error::DeployError;
use crate::index::lance::LanceConfig;
use crate::index::{Index, IndexError, build_by, describe, first_embedder};
use crate::telemetry::{INDEX_ENDS, INDEX_WORKERS, live};

/// Indexes by name, all of them by one package.
pub(crate) type Indexes = Arc<BTreeMap<String, Arc<Index>>>;

/// Where the indexes of a member lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct IndexPlaces(Vec<Place>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    name: String,
    path: PathBuf,
    lance: Option<LanceConfig>,
}

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
        let place = |(name, config): (&String, &IndexConfig)| {
            let IndexConfig { path, lance, .. } = config.clone();
            Place { name: name.clone(), path, lance }
        };
        Self(own.map(place).collect())
    }

    /// Whether `indexes` are all of them.
    pub(crate) fn are_all_in(&self, indexes: &Indexes) -> bool {
        self.0.iter().all(|place| indexes.contains_key(&place.name))
    }

    /// Whether the builds by `package` that are there now are what `indexes` were read from.
    pub(crate) fn are_current(&self, package: &Digest, indexes: &Indexes) -> bool {
        let is_current = |Place { name, path, .. }: &Place| match (indexes.get(name), build_by(path, package)) {
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
        for Place { name, path, lance } in &self.0 {
            match build_by(path, package)? {
                Some(build) => {
                    let index = open(name, &build, lance.as_ref())?;
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

/// Errors if something is told of LanceDB, and the index is not there.
fn open(name: &str, build: &Path, lance: Option<&LanceConfig>) -> Result<Index, IndexError> {
    let is_lance = describe(build)?.0.lance.is_some();
    if lance.is_some() && !is_lance {
        return Err(IndexError::NotLance { path: build.to_owned() });
    }
    let tell = if is_lance { tell(name) } else { Arc::new(|_: Event<'_>| ()) };
    Index::open_with(build, &lance.cloned().unwrap_or_default(), tell)
}

/// What happens to the processes goes to the log and the metrics. What they write is LanceDB's own words: they never write any query or
/// document, and what they were given to open a bucket is not in it.
fn tell(index: &str) -> Tell {
    let index = index.to_owned();
    let live = live(gauge!(INDEX_WORKERS, "index" => index.clone()));
    for reason in ["ended", "hung", "memory", "start"] {
        counter!(INDEX_ENDS, "index" => index.clone(), "reason" => reason).increment(0);
    }
    Arc::new(move |event| match event {
        Event::Line(line) => tracing::info!(index.name = %index, "LanceDB of `{index}`: {line}"),
        Event::Ended { error, pause } => {
            counter!(INDEX_ENDS, "index" => index.clone(), "reason" => error.reason()).increment(1);
            tracing::error!(index.name = %index, "A LanceDB process of `{index}` is started again in {pause:?}: {error}");
        }
        Event::Started => tracing::info!(index.name = %index, "A LanceDB process of `{index}` is ready again"),
        Event::Failed { error, pause } => {
            counter!(INDEX_ENDS, "index" => index.clone(), "reason" => "start").increment(1);
            tracing::error!(
                index.name = %index, "A LanceDB process of `{index}` did not start and is tried again in {pause:?}: {error}"
            );
        }
        Event::Live(n_live) => live(n_live),
    })
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
