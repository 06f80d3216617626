//! What a trial has seen and decided, over restarts.

use std::path::{Path, PathBuf};

use highroad_eval::RolloutCounts;
use serde::{Deserialize, Serialize};

use crate::rollout::{End, Rollout, Step};

/// Requests between two writes where nothing was decided: what a crash may lose.
const EVERY: u64 = 20;

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Kept {
    rollout: String,
    pub counts: RolloutCounts,
    pub step: Step,
    pub end: Option<End>,
}

impl Kept {
    /// That of the same trial, else a new one's.
    pub(super) fn read(dir: &Path, member: &str, rollout: &Rollout) -> Self {
        let found = std::fs::read(path(dir, member)).ok().and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok());
        found.filter(|kept| kept.rollout == rollout.id).unwrap_or_else(|| {
            let since_ms = jiff::Timestamp::now().as_millisecond();
            let step = Step { rollout: rollout.id.clone(), since_ms, ..Step::default() };
            Self { rollout: rollout.id.clone(), step, ..Self::default() }
        })
    }

    /// Writes it, whole or not at all: a decision at once, counts now and then.
    pub(super) fn write(&self, dir: &Path, member: &str, decides: bool) {
        if !decides && !self.counts.n_asked.is_multiple_of(EVERY) {
            return;
        }
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(dir)?;
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            file.as_file().sync_all()?;
            file.persist(path(dir, member))?;
            Ok(())
        };
        if let Err(error) = write() {
            tracing::warn!(member.name = %member, "Cannot keep what the trial beside `{member}` has seen: {error}");
        }
    }
}

fn path(dir: &Path, member: &str) -> PathBuf {
    dir.join(format!("{member}.trial.json"))
}
