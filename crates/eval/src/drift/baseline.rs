use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::builder::Observation;
use super::pane::Pane;
use super::space::{Space, project};
use super::vocabulary::Vocabulary;

/// Largest baseline that is read.
pub const MAX_BASELINE_BYTES: u64 = 2 << 20;
/// Most bins of a signal.
const MAX_BINS: usize = 256;
/// Most signals: those of tensors, and as many again.
const MAX_SIGNALS: usize = 2 * MAX_TENSOR_SIGNALS;
/// Most signals of a program's tensors: each is judged against every minute of two hours, and is a metric of its own.
pub const MAX_TENSOR_SIGNALS: usize = 128;
/// Longest name of a signal or a class.
pub(super) const MAX_NAME_BYTES: usize = 200;
/// Bins that evidence is taken from: more would cost evidence for what they rarely show.
const N_GROUPS: usize = 8;
/// Classes that have a group of their own.
const N_NAMED: usize = 11;

/// The signals of tokens, and of words, that the baseline did not meet.
pub(super) const UNSEEN_TOKENS: &str = "unseen_tokens";
pub(super) const UNSEEN_WORDS: &str = "unseen_words";
/// What signals of tensors that come out of a program begin with; those of tensors that go in begin with `input.`.
const OUTPUT: &str = "output.";
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
    /// Names of a tensor's features, where they are known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) features: BTreeMap<String, Vec<String>>,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
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
            "label" | "relevance" | "answer_chars" | "answer_tokens" | "finish_reason" | "empty" | "refused" => {
                Self::Prediction
            }
            "confidence" | "abstained" => Self::Confidence,
            output if output.starts_with(OUTPUT) => Self::Prediction,
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
    #[error("it names {found} features of tensors; the limit is {MAX_TENSOR_SIGNALS}")]
    Signals { found: usize },
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
        let n_features = baseline.features.values().map(Vec::len).sum::<usize>();
        if n_features > MAX_TENSOR_SIGNALS || baseline.features.len() > MAX_TENSOR_SIGNALS {
            return Err(BaselineError::Signals { found: n_features });
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
        if let Some(vocabulary) = &self.vocabulary {
            // A baseline has the one signal or the other, and its vocabulary is of that.
            for (name, ids) in [(UNSEEN_TOKENS, &observation.tokens), (UNSEEN_WORDS, &observation.words)] {
                if !ids.is_empty() {
                    let unseen = vocabulary.unseen(ids);
                    add(name, &|signal| signal.bin_of(unseen));
                }
            }
        }
        for row in &observation.tensors {
            for (name, value) in row.signals(self.features.get(&row.name).map(Vec::as_slice)) {
                add(&name, &|signal| signal.bin_of(value));
            }
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
                // Neighbours hold one value between them: see the builder.
                let is_one = |pair: &[f64]| pair[0].next_up() == pair[1];
                let between = edges.windows(2).map(|pair| match is_one(pair) {
                    true => short(pair[1]),
                    false => format!("{} … {}", short(pair[0]), short(pair[1])),
                });
                let below = match edges.get(1).filter(|_| is_one(&edges[..2])) {
                    Some(least) => format!("< {}", short(*least)),
                    None => format!("≤ {}", short(*first)),
                };
                std::iter::once(below).chain(between).chain([format!("> {}", short(*last))]).collect()
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
                    let is_beyond = at == 0 || at + 1 == counts.len();
                    let key = (*group, counts[at] == 0 && is_beyond);
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
    if value != 0.0 && !(1e-3..1e9).contains(&value.abs()) {
        return format!("{value:.2e}");
    }
    let text = if value == value.trunc() { format!("{value:.0}") } else { format!("{value:.3}") };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}
