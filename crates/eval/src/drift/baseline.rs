use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::builder::Observation;
use super::pane::Pane;
use super::space::{Space, project};
use super::vocabulary::Vocabulary;

/// Largest baseline that is read.
pub const MAX_BASELINE_BYTES: u64 = 2 << 20;
/// Most bins of a signal.
const MAX_BINS: usize = 256;
/// Most signals.
const MAX_SIGNALS: usize = 64;
/// Longest name of a signal or a class.
pub(super) const MAX_NAME_BYTES: usize = 200;
/// Bins that evidence is taken from: more would cost evidence for what they rarely show.
const N_GROUPS: usize = 8;
/// Classes that have a group of their own.
const N_NAMED: usize = 11;

/// The signal of tokens that the baseline did not meet.
pub(super) const UNSEEN_TOKENS: &str = "unseen_tokens";
/// How sure the model is, and the answers that are less sure than a threshold.
pub(super) const CONFIDENCE: &str = "confidence";
pub(super) const ABSTAINED: &str = "abstained";
/// The signal of the region of the model's space.
pub(super) const EMBEDDING: &str = "embedding";
/// The signal of the distance from the centre.
pub(super) const EMBEDDING_DISTANCE: &str = "embedding_distance";

/// The distributions of what a package was judged or trained on. Holds counts, the set of token ids and a few projected vectors; no text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// Format version, 1.
    pub highroad_baseline: u32,
    /// Digest of the package.
    pub package: String,
    /// What it was made from.
    pub source: Source,
    /// When, RFC 3339 in UTC.
    pub created_at: String,
    /// Who made it.
    pub created_by: String,
    /// Inputs that were counted.
    pub n_rows: u64,
    /// Each distribution, by name.
    pub signals: BTreeMap<String, Signal>,
    /// `[wrong, right]` answers, where it is known which are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<[u64; 2]>,
    /// Answers that are less sure than this count as abstentions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abstain_below: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) vocabulary: Option<Vocabulary>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) space: Option<Space>,
}

/// What a baseline was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// `golden` or `data`.
    pub kind: String,
    /// Name of the file.
    pub name: String,
    /// Digest of the golden set or the file.
    pub digest: String,
}

/// One distribution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "of", deny_unknown_fields)]
pub enum Signal {
    /// Of numbers: bin `i` holds those above `edges[i - 1]` and up to `edges[i]`; there is one bin more than edges.
    Numbers {
        /// Ascending.
        edges: Vec<f64>,
        /// One more than edges.
        counts: Vec<u64>,
    },
    /// Of classes: the last bin holds every class that has no name here.
    Classes {
        /// The most frequent first.
        names: Vec<String>,
        /// One more than names.
        counts: Vec<u64>,
    },
}

/// What a signal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignalKind {
    /// What is asked.
    Input,
    /// What is answered.
    Prediction,
    /// How sure the model is.
    Confidence,
}

impl SignalKind {
    /// Of a signal, by its name.
    pub fn of(signal: &str) -> Self {
        match signal {
            "label" | "relevance" => Self::Prediction,
            "confidence" | "abstained" => Self::Confidence,
            _ => Self::Input,
        }
    }
}

/// A file is no baseline that can be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum BaselineError {
    #[error("it is no baseline: {0}")]
    Json(#[from] serde_json::Error),
    #[error("it has {found} bytes; the limit is {limit}")]
    Size { found: usize, limit: u64 },
    #[error("it is of format {0}; this version reads 1")]
    Format(u32),
    #[error("signal `{0}` is not sound")]
    Signal(String),
    #[error("its space of embeddings is not sound")]
    Space,
    #[error("a baseline needs at least {least} inputs, and there are {found}")]
    Small { found: usize, least: usize },
}

impl Baseline {
    /// Reads a baseline that may come from anywhere.
    pub fn parse(bytes: &[u8]) -> Result<Self, BaselineError> {
        if bytes.len() as u64 > MAX_BASELINE_BYTES {
            return Err(BaselineError::Size { found: bytes.len(), limit: MAX_BASELINE_BYTES });
        }
        let baseline: Self = serde_json::from_slice(bytes)?;
        if baseline.highroad_baseline != 1 {
            return Err(BaselineError::Format(baseline.highroad_baseline));
        }
        let n_signals = baseline.signals.len();
        let unsound = |(name, signal): &(&String, &Signal)| {
            n_signals > MAX_SIGNALS || name.len() > MAX_NAME_BYTES || !signal.is_sound()
        };
        if let Some((name, _)) = baseline.signals.iter().find(unsound) {
            return Err(BaselineError::Signal(name.chars().take(MAX_NAME_BYTES).collect()));
        }
        if baseline.space.as_ref().is_some_and(|space| !space.is_sound()) {
            return Err(BaselineError::Space);
        }
        Ok(baseline)
    }

    /// Counts an observation. Signals that the baseline does not have are passed over, and so are numbers that are none.
    pub fn count(&self, observation: &Observation, pane: &mut Pane) {
        pane.n_rows = pane.n_rows.saturating_add(1);
        let mut add = |name: &str, bin: &dyn Fn(&Signal) -> Option<usize>| {
            let Some(signal) = self.signals.get(name) else { return };
            if let Some(bin) = bin(signal) {
                pane.add(name, bin, signal.counts().len());
            }
        };
        for &(name, value) in &observation.numbers {
            add(name, &|signal| signal.bin_of(value));
            if let Some(least) = self.abstain_below.filter(|_| name == CONFIDENCE && !value.is_nan()) {
                add(ABSTAINED, &|signal| signal.bin_of_class(yes_or_no(value < least)));
            }
        }
        for (name, class) in &observation.classes {
            add(name, &|signal| signal.bin_of_class(class));
        }
        if let Some(vocabulary) = self.vocabulary.as_ref().filter(|_| !observation.tokens.is_empty()) {
            let unseen = vocabulary.unseen(&observation.tokens);
            add(UNSEEN_TOKENS, &|signal| signal.bin_of(unseen));
        }
        if let Some(space) = self.space.as_ref().filter(|space| space.width == observation.vector.len()) {
            let projected = project(&observation.vector);
            add(EMBEDDING, &|signal| signal.bin_of_class(&cell_name(space.cell(&projected))));
            add(EMBEDDING_DISTANCE, &|signal| signal.bin_of(space.distance(&projected)));
        }
    }

    /// A vector as [`Baseline::kept_vectors`] are; `None` where embeddings have no part in the baseline, or another width.
    pub fn project(&self, vector: &[f32]) -> Option<Vec<f32>> {
        self.space.as_ref().filter(|space| space.width == vector.len()).map(|_| project(vector))
    }

    /// Some projected vectors, for a kernel test; none where the model does not embed.
    pub fn kept_vectors(&self) -> &[Vec<f32>] {
        self.space.as_ref().map_or(&[], |space| &space.kept)
    }
}

/// Two classes.
pub(super) fn yes_or_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

/// What a region of the model's space is called.
pub(super) fn cell_name(cell: usize) -> String {
    format!("cell {}", cell + 1)
}

impl Signal {
    /// Observations in each bin.
    pub fn counts(&self) -> &[u64] {
        match self {
            Self::Numbers { counts, .. } | Self::Classes { counts, .. } => counts,
        }
    }

    /// What each bin is called: `≤ 12`, `12 … 40`, `> 40`, or the class.
    pub fn bin_names(&self) -> Vec<String> {
        match self {
            Self::Classes { names, .. } => names.iter().cloned().chain(["other".to_owned()]).collect(),
            Self::Numbers { edges, .. } => {
                let Some((first, last)) = edges.first().zip(edges.last()) else { return vec!["all".to_owned()] };
                let between = edges.windows(2).map(|pair| format!("{} … {}", short(pair[0]), short(pair[1])));
                std::iter::once(format!("≤ {}", short(*first)))
                    .chain(between)
                    .chain([format!("> {}", short(*last))])
                    .collect()
            }
        }
    }

    /// The bin of a number; `None` if it is none, or the signal is of classes.
    pub(crate) fn bin_of(&self, value: f64) -> Option<usize> {
        let Self::Numbers { edges, .. } = self else { return None };
        (!value.is_nan()).then(|| edges.partition_point(|&edge| edge < value))
    }

    /// The bin of a class; `None` if the signal is of numbers.
    pub(crate) fn bin_of_class(&self, class: &str) -> Option<usize> {
        let Self::Classes { names, .. } = self else { return None };
        Some(names.iter().position(|name| name == class).unwrap_or(names.len()))
    }

    /// The group of each bin that evidence is taken from: of numbers about eight of one baseline mass, of classes the most frequent.
    pub fn groups(&self) -> Vec<usize> {
        match self {
            Self::Classes { names, .. } => (0..=names.len())
                .map(|at| if at < names.len() { at.min(N_NAMED) } else { names.len().min(N_NAMED) })
                .collect(),
            Self::Numbers { counts, .. } => {
                let total = counts.iter().sum::<u64>().max(1) as f64;
                let mut below = 0;
                let group = |&count: &u64| {
                    let middle = (below as f64 + count as f64 / 2.0) / total;
                    below += count;
                    ((middle * N_GROUPS as f64) as usize).min(N_GROUPS - 1)
                };
                let mut groups: Vec<usize> = counts.iter().map(group).collect();
                // Beyond everything that the baseline held is a group of its own, and so is what nothing fell into.
                let mut renumbered = Vec::with_capacity(groups.len());
                let (mut last, mut number) = (None, 0);
                for (at, group) in groups.iter().enumerate() {
                    let key = (*group, counts[at] == 0 && at + 1 == counts.len());
                    if last.is_some_and(|last| last != key) {
                        number += 1;
                    }
                    last = Some(key);
                    renumbered.push(number);
                }
                groups = renumbered;
                groups
            }
        }
    }

    /// Counts of the groups.
    pub(crate) fn grouped(groups: &[usize], counts: &[u64]) -> Vec<u64> {
        let mut sums = vec![0_u64; groups.iter().max().map_or(0, |most| most + 1)];
        groups.iter().zip(counts).for_each(|(&group, &count)| sums[group] = sums[group].saturating_add(count));
        sums
    }

    fn is_sound(&self) -> bool {
        let (n_bins, sound) = match self {
            Self::Numbers { edges, counts } => {
                let ascends = edges.windows(2).all(|pair| pair[0] < pair[1]);
                (
                    edges.len() + 1,
                    ascends && edges.iter().all(|edge| edge.is_finite()) && counts.len() == edges.len() + 1,
                )
            }
            Self::Classes { names, counts } => (
                names.len() + 1,
                counts.len() == names.len() + 1 && names.iter().all(|name| name.len() <= MAX_NAME_BYTES),
            ),
        };
        sound && n_bins <= MAX_BINS && self.counts().iter().all(|&count| count <= 1 << 40)
    }
}

/// A number in few digits.
fn short(value: f64) -> String {
    let text = if value == value.trunc() && value.abs() < 1e9 { format!("{value:.0}") } else { format!("{value:.3}") };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}
