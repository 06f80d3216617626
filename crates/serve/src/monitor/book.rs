use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use highroad_eval::drift::{Baseline, Observation};
use highroad_package::{Baselines, Digest};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::monitor::config::MonitorConfig;
use crate::monitor::panes::Panes;

/// Embeddings that a kernel test is made of: the newest. They are in memory only.
const N_RECENT: usize = 128;
/// Kinds of violations that are counted by name.
const MAX_KINDS: usize = 32;
/// Versions of a member that are kept on the disk.
const MAX_FILES: usize = 16;
/// Largest file that is read back.
const MAX_FILE_BYTES: u64 = 32 << 20;
/// How often a baseline is looked for, in seconds: it may be made while the member serves.
const LOOK_S: i64 = 5;

/// What one version of a member has met.
#[derive(Clone)]
pub(crate) struct Book {
    pub(crate) member: String,
    pub(crate) version: String,
    pub(crate) package: Digest,
    pub(crate) baseline: Option<(Digest, Arc<Baseline>)>,
    /// The same for those who count here, without waiting for the book.
    pub(crate) has_baseline: Arc<AtomicBool>,
    pub(crate) kept: Kept,
    pub(crate) recent: VecDeque<Vec<f32>>,
    dir: PathBuf,
    baselines: Baselines,
    pane_s: u32,
    keep_days: u32,
    looked_s: i64,
    turned_s: i64,
    has_changed: bool,
}

/// What is on the disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kept {
    /// Format version, 1.
    highroad_monitor: u32,
    version: String,
    package: Digest,
    /// Whose bins the panes have.
    baseline: Option<Digest>,
    pane_s: u32,
    pub(crate) since_s: i64,
    pub(crate) n_requests: u64,
    pub(crate) n_inputs: u64,
    pub(crate) n_dropped: u64,
    pub(crate) violations: BTreeMap<String, u64>,
    pub(crate) panes: Panes,
}

impl Book {
    /// As it was left on the disk, else a new one.
    pub(crate) fn open(
        member: &str,
        version: &str,
        package: Digest,
        dir: &Path,
        baselines: Baselines,
        config: &MonitorConfig,
        now_s: i64,
    ) -> Self {
        let baseline = newest(&baselines, &package);
        let new = Kept {
            highroad_monitor: 1,
            version: version.to_owned(),
            package,
            baseline: baseline.as_ref().map(|(digest, _)| *digest),
            pane_s: config.pane_s,
            since_s: now_s,
            n_requests: 0,
            n_inputs: 0,
            n_dropped: 0,
            violations: BTreeMap::new(),
            panes: Panes::default(),
        };
        let path = dir.join(format!("{}.json", package.hex()));
        // Counts in the bins of another baseline, or of another version's name, mean nothing here.
        let fits = |kept: &Kept| {
            kept.highroad_monitor == 1
                && (&kept.version, kept.baseline, kept.pane_s) == (&new.version, new.baseline, new.pane_s)
        };
        let kept = read(&path).filter(fits).unwrap_or(new);
        Self {
            member: member.to_owned(),
            version: version.to_owned(),
            package,
            has_baseline: Arc::new(AtomicBool::new(baseline.is_some())),
            baseline,
            kept,
            recent: VecDeque::new(),
            dir: dir.to_owned(),
            baselines,
            pane_s: config.pane_s,
            keep_days: config.keep_days,
            looked_s: now_s,
            turned_s: now_s,
            has_changed: false,
        }
    }

    /// Whether it is of a version, with panes of `pane_s` seconds; of any where that is 0.
    pub(crate) fn is_of(&self, version: &str, package: &Digest, pane_s: u32) -> bool {
        self.version == version && self.package == *package && (pane_s == 0 || self.pane_s == pane_s)
    }

    /// Counts one input of a request that had `n_inputs`, and what was seen of it if there was a baseline then.
    pub(crate) fn count(&mut self, observation: Option<&Observation>, n_inputs: u64, now_s: i64) {
        self.kept.n_requests += 1;
        self.kept.n_inputs += n_inputs;
        self.has_changed = true;
        let pane = self.kept.panes.at(now_s, self.pane_s);
        let Some((_, baseline)) = &self.baseline else {
            pane.n_rows += 1;
            return;
        };
        let Some(observation) = observation else { return };
        baseline.count(observation, pane);
        if let Some(vector) = baseline.project(&observation.vector) {
            if self.recent.len() == N_RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back(vector);
        }
    }

    pub(crate) fn dropped(&mut self) {
        self.kept.n_dropped += 1;
        self.has_changed = true;
    }

    pub(crate) fn violation(&mut self, kind: &str) {
        let violations = &mut self.kept.violations;
        let kind = if violations.contains_key(kind) || violations.len() < MAX_KINDS { kind } else { "other" };
        *violations.entry(kind.to_owned()).or_default() += 1;
        self.has_changed = true;
    }

    /// Puts old panes together, looks for a baseline that was made meanwhile, and writes down what has changed, each once a
    /// pane; whether it did now.
    pub(crate) fn turn(&mut self, now_s: i64) -> bool {
        if now_s - self.looked_s >= LOOK_S {
            self.looked_s = now_s;
            self.look_for_baseline(now_s);
        }
        let is_over = now_s - self.turned_s >= i64::from(self.pane_s);
        if is_over {
            self.turned_s = now_s;
            self.kept.panes.turn(now_s, self.pane_s, self.keep_days);
            self.save();
        }
        is_over
    }

    fn look_for_baseline(&mut self, now_s: i64) {
        let digests = self.baselines.list(&self.package).unwrap_or_default();
        let known = self.baseline.as_ref().map(|(digest, _)| *digest);
        if digests.is_empty() || (digests.len() == 1 && Some(digests[0]) == known) {
            return;
        }
        let Some((digest, baseline)) =
            newest(&self.baselines, &self.package).filter(|(digest, _)| Some(*digest) != known)
        else {
            return;
        };
        info!(member.name = %self.member, "`{}` is watched against baseline {} from now on", self.member, digest.short());
        self.baseline = Some((digest, baseline));
        self.has_baseline.store(true, Ordering::Relaxed);
        self.recent.clear();
        self.kept.baseline = Some(digest);
        self.kept.panes = Panes::default();
        self.kept.since_s = now_s;
        self.has_changed = true;
    }

    /// A copy to work on while this one counts on.
    pub(crate) fn snapshot(&self) -> Self {
        self.clone()
    }

    /// `[wrong, right]` answers of the baseline.
    pub(crate) fn baseline_quality(&self) -> Option<[u64; 2]> {
        self.baseline.as_ref().and_then(|(_, baseline)| baseline.quality)
    }

    /// Writes it down, whole or not at all. A disk that is full stops nothing.
    pub(crate) fn save(&mut self) {
        if !self.has_changed {
            return;
        }
        self.has_changed = false;
        if let Err(error) = write(&self.dir, &format!("{}.json", self.package.hex()), &self.kept) {
            warn!(member.name = %self.member, "Cannot keep what `{}` met: {error}", self.member);
        }
    }
}

/// The baseline that was made last, of those that can be read; one of data goes before those of golden sets.
pub(crate) fn newest(baselines: &Baselines, package: &Digest) -> Option<(Digest, Arc<Baseline>)> {
    let read = |digest: Digest| {
        let bytes = baselines.get(package, &digest).map_err(|error| error.to_string());
        let baseline = bytes.and_then(|bytes| Baseline::parse(&bytes).map_err(|error| error.to_string()));
        match baseline {
            Ok(baseline) if baseline.package == package.to_string() => Some((digest, baseline)),
            Ok(_) => None,
            Err(error) => {
                warn!(package.digest = %package, "Passing over baseline {}: {error}", digest.short());
                None
            }
        }
    };
    let found = baselines.list(package).unwrap_or_default().into_iter().filter_map(read);
    // Data is chosen by a person for this; a golden set is what happened to be evaluated.
    let rank = |(digest, baseline): &(Digest, Baseline)| {
        (baseline.source.kind == "data", baseline.created_at.clone(), *digest)
    };
    let newest = found.max_by_key(rank);
    newest.map(|(digest, baseline)| (digest, Arc::new(baseline)))
}

/// Makes room for another version.
fn forget_oldest(dir: &Path) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let books = entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "json"));
    let mut books: Vec<_> =
        books.filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()))).collect();
    books.sort();
    for (_, path) in books.iter().take((books.len() + 1).saturating_sub(MAX_FILES)) {
        let _ = fs::remove_file(path);
    }
}

/// Version, package and width of the panes of what was left in a file.
pub(crate) fn left_in(path: &Path) -> Option<(String, Digest, u32)> {
    read(path).map(|kept| (kept.version, kept.package, kept.pane_s))
}

fn read(path: &Path) -> Option<Kept> {
    if fs::metadata(path).ok()?.len() > MAX_FILE_BYTES {
        warn!("Passing over `{}`: it is too large to be ours", path.display());
        return None;
    }
    let kept = serde_json::from_slice(&fs::read(path).ok()?);
    kept.inspect_err(|error| warn!("Passing over `{}`: {error}", path.display())).ok()
}

fn write(dir: &Path, name: &str, value: &impl Serialize) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    if !dir.join(name).exists() {
        forget_oldest(dir);
    }
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    file.as_file().sync_all()?;
    file.persist(dir.join(name))?;
    Ok(())
}
