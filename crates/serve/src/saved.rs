//! What a member served last and how far its rollout had come, on the disk: a server that starts while the registry is away
//! goes on with it, and what was decided is not lost with the process that decided.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::deployment::{LocalState, read_verdict};
use crate::error::DeployError;
use crate::registry::Resolved;
use crate::revision::{Candidate, Overridden};
use crate::rollout::{End, Rollout, Step};

/// The last good state of a member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Saved {
    /// Format version, 1.
    pub(crate) highroad_serving: u32,
    /// What the member follows; of another source it says nothing.
    pub(crate) source: String,
    pub(crate) serving: SavedVersion,
    pub(crate) rollout: Option<SavedRollout>,
}

/// A version that was fetched, with what lets it serve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedVersion {
    pub(crate) resolved: Resolved,
    pub(crate) overridden: Option<Overridden>,
    pub(crate) admitted_at: Option<String>,
}

/// A rollout as this process last knew it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedRollout {
    pub(crate) rollout: Rollout,
    pub(crate) step: Step,
    pub(crate) candidate: Resolved,
    pub(crate) end: Option<End>,
}

impl SavedVersion {
    pub(crate) fn of(candidate: &Candidate, resolved: &Resolved) -> Self {
        let Candidate { verdict, overridden, admitted_at, .. } = candidate;
        // The verdict that admitted it, where a later one is its newest.
        let verdict = verdict.as_ref().map(|(digest, _)| *digest).or(resolved.verdict);
        let resolved = Resolved { verdict, ..resolved.clone() };
        Self { resolved, overridden: overridden.clone(), admitted_at: admitted_at.clone() }
    }

    /// The version from the local store, verified anew.
    pub(crate) fn candidate(&self, local: &LocalState) -> Result<Candidate, DeployError> {
        let Resolved { package, verdict, .. } = &self.resolved;
        let verdict = match verdict {
            Some(digest) => Some((*digest, read_verdict(&local.verdicts, package, digest)?)),
            None => None,
        };
        Ok(Candidate {
            version: self.resolved.label(),
            package: local.store.get(package)?,
            verdict,
            overridden: self.overridden.clone(),
            admitted_at: self.admitted_at.clone(),
        })
    }
}

/// The state of `member` in `dir`; `None` where there is none that can be read.
pub(crate) fn read(dir: &Path, member: &str, source: &str) -> Option<Saved> {
    let bytes = fs::read(path(dir, member)).ok()?;
    let saved = serde_json::from_slice::<Saved>(&bytes);
    let saved = saved.inspect_err(|error| tracing::warn!("Passing over the last state of `{member}`: {error}")).ok()?;
    (saved.highroad_serving == 1 && saved.source == source).then_some(saved)
}

/// Puts the state of `member` into `dir`, whole and on the disk, or not at all.
pub(crate) fn write(dir: &Path, member: &str, saved: &Saved) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(&serde_json::to_vec_pretty(saved)?)?;
    file.as_file().sync_all()?;
    file.persist(path(dir, member))?;
    Ok(())
}

/// Forgets what `member` served.
pub(crate) fn remove(dir: &Path, member: &str) {
    let _ = fs::remove_file(path(dir, member));
}

/// Names of members are safe as names of files.
fn path(dir: &Path, member: &str) -> PathBuf {
    dir.join(format!("{member}.json"))
}
