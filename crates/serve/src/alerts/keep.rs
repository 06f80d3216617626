//! What survives a restart: counts of objectives, alerts, and what is still to be told.
//!
//! Whole files that are replaced. Counts are written every ten seconds and at the end, so a killed process loses at most those; alerts and what
//! waits to be told are written when they change. A file that cannot be read begins anew, which is told: nobody is refused for it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::book::Book;
use super::objectives::Series;
use super::outbox::Delivery;

const COUNTS: &str = "objectives.json";
const STATE: &str = "alerts.json";
const LOCK: &str = "lock";
/// Largest file that is read.
const MOST_BYTES: u64 = 64 << 20;
/// Version of the files.
pub(super) const FORMAT: u32 = 1;

/// The directory of one process.
pub(super) struct Kept {
    dir: PathBuf,
    // Held for as long as the process writes.
    _lock: File,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    pub highroad_alerts: u32,
    pub book: Book,
    pub waiting: Vec<Delivery>,
    pub told: BTreeMap<String, String>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counted {
    highroad_objectives: u32,
    series: Vec<Series>,
}

impl Kept {
    /// `None`, and a word in the log, where it cannot be written or another process writes there.
    pub(super) fn open(dir: PathBuf) -> Option<Self> {
        let locked = || -> Result<File, String> {
            fs::create_dir_all(&dir).map_err(|error| error.to_string())?;
            let lock = OpenOptions::new().create(true).truncate(false).write(true).open(dir.join(LOCK));
            let lock = lock.map_err(|error| error.to_string())?;
            lock.try_lock().map_err(|error| match error {
                fs::TryLockError::WouldBlock => "another process writes there".to_owned(),
                fs::TryLockError::Error(error) => error.to_string(),
            })?;
            Ok(lock)
        };
        match locked() {
            Ok(lock) => Some(Self { dir, _lock: lock }),
            Err(reason) => {
                tracing::warn!("Objectives and alerts begin anew, and are not kept in `{}`: {reason}", dir.display());
                None
            }
        }
    }

    pub(super) fn counts(&self) -> Vec<Series> {
        let counted: Counted = read(&self.dir.join(COUNTS));
        counted.series
    }

    pub(super) fn state(&self) -> State {
        read(&self.dir.join(STATE))
    }

    pub(super) fn put_counts(&self, series: &[Series]) {
        self.put(COUNTS, &Counted { highroad_objectives: FORMAT, series: series.to_vec() });
    }

    pub(super) fn put_state(&self, state: &State) {
        self.put(STATE, state);
    }

    // A full disk takes nothing down: what is told and counted goes on in memory.
    fn put(&self, name: &str, value: &impl Serialize) {
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
            file.write_all(&serde_json::to_vec(value)?)?;
            file.as_file().sync_data()?;
            file.persist(self.dir.join(name))?;
            Ok(())
        };
        if let Err(error) = write() {
            tracing::error!("Cannot keep `{name}` in `{}`: {error}", self.dir.display());
        }
    }
}

fn read<T: DeserializeOwned + Default>(path: &Path) -> T {
    let bytes = match fs::metadata(path) {
        Ok(meta) if meta.len() <= MOST_BYTES => fs::read(path),
        Ok(_) => Err(std::io::Error::other("it is too large")),
        Err(error) => Err(error),
    };
    let read = match bytes {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return T::default(),
        Err(error) => Err(error.to_string()),
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| error.to_string()),
    };
    read.unwrap_or_else(|reason| {
        tracing::error!("`{}` cannot be read ({reason}), so what it held begins anew", path.display());
        T::default()
    })
}
