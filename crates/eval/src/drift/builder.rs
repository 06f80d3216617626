use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::baseline::{
    ABSTAINED, Baseline, BaselineError, CONFIDENCE, EMBEDDING, EMBEDDING_DISTANCE, MAX_NAME_BYTES, MAX_TENSOR_SIGNALS,
    Signal, Source, UNSEEN_TOKENS, UNSEEN_WORDS, cell_name, yes_or_no,
};
use super::space::{MAX_WIDTH, Space, project};
use super::tensor_row::TensorRow;
use super::vocabulary::Vocabulary;

/// Most inputs of a baseline: more tell nothing new.
pub const MAX_BASELINE_ROWS: usize = 100_000;
/// Fewest: below, nothing that is not glaring could be told from chance.
const MIN_ROWS: usize = 30;
/// Bins of a numeric signal, and named classes of one of classes.
const N_BINS: usize = 32;
const N_NAMES: usize = 32;

/// What is looked at of one input and its answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// Numbers by the name of their signal.
    pub numbers: Vec<(&'static str, f64)>,
    /// Classes by the name of their signal.
    pub classes: Vec<(&'static str, String)>,
    /// Token ids; none of what has no tokens.
    pub tokens: Vec<u32>,
    /// Numbers of the words, where the tokens are somebody else's; not both.
    pub words: Vec<u32>,
    /// The embedding, where the answer is one.
    pub vector: Vec<f32>,
    /// One row of what goes into a program and comes out of it, of packages that compute tensors.
    pub tensors: Vec<TensorRow>,
}

/// Makes a [`Baseline`] of observations. Holds some hundred bytes of each, never its text.
#[derive(Default)]
pub struct BaselineBuilder {
    n_rows: usize,
    numbers: BTreeMap<&'static str, Vec<f64>>,
    classes: BTreeMap<&'static str, HashMap<String, u64>>,
    /// Of tensors, by signal.
    features: BTreeMap<String, Vec<f64>>,
    /// Names of the features of a tensor.
    names: BTreeMap<String, Vec<String>>,
    /// Tokens or words of each row.
    tokens: Vec<Vec<u32>>,
    has_words: bool,
    n_rows_of_token: HashMap<u32, u32>,
    width: usize,
    projected: Vec<Vec<f32>>,
    quality: Option<[u64; 2]>,
    abstain_below: Option<f64>,
}

/// Without a threshold, answers count as abstentions that are less sure than all but this share of the baseline's.
const ABSTAINING_SHARE: f64 = 0.05;

impl BaselineBuilder {
    /// The same with a confidence below which answers count as abstentions.
    #[must_use]
    pub fn abstaining_below(self, confidence: Option<f64>) -> Self {
        Self { abstain_below: confidence, ..self }
    }

    /// The same with names of a tensor's features, in their order: `input.x` has the signals `input.x[age]`, … then.
    #[must_use]
    pub fn naming(mut self, tensor: &str, features: Vec<String>) -> Self {
        self.names.insert(tensor.to_owned(), features);
        self
    }

    /// Takes in one input; beyond [`MAX_BASELINE_ROWS`] nothing. Numbers that are none are left out.
    pub fn add(&mut self, observation: Observation) {
        if self.n_rows >= MAX_BASELINE_ROWS {
            return;
        }
        self.n_rows += 1;
        for (name, value) in observation.numbers.into_iter().filter(|(_, value)| value.is_finite()) {
            self.numbers.entry(name).or_default().push(value);
        }
        for (name, class) in observation.classes {
            *self.classes.entry(name).or_default().entry(class).or_default() += 1;
        }
        for row in &observation.tensors {
            let names = self.names.get(&row.name).map(Vec::as_slice);
            for (name, value) in row.signals(names).into_iter().filter(|(_, value)| value.is_finite()) {
                if self.features.len() < MAX_TENSOR_SIGNALS || self.features.contains_key(&name) {
                    self.features.entry(name).or_default().push(value);
                }
            }
        }
        let ids = if observation.words.is_empty() { observation.tokens } else { observation.words.clone() };
        if !ids.is_empty() {
            self.has_words |= !observation.words.is_empty();
            for &id in ids.iter().collect::<BTreeSet<_>>() {
                *self.n_rows_of_token.entry(id).or_default() += 1;
            }
            self.tokens.push(ids);
        }
        let width = observation.vector.len();
        if (1..=MAX_WIDTH).contains(&width) && (self.width == 0 || self.width == width) {
            self.width = width;
            self.projected.push(project(&observation.vector));
        }
    }

    /// Tells whether the model was right about an input.
    pub fn judged(&mut self, right: bool) {
        self.quality.get_or_insert_default()[usize::from(right)] += 1;
    }

    /// The baseline of `package`. Errors if it has too few inputs.
    pub fn finish(
        mut self,
        package: String,
        source: Source,
        created_at: String,
        created_by: String,
    ) -> Result<Baseline, BaselineError> {
        if self.n_rows < MIN_ROWS {
            return Err(BaselineError::Small { found: self.n_rows, least: MIN_ROWS });
        }
        // A token is unseen for its own row if no other row has it, as it would be for a row to come.
        let unseen =
            |ids: &Vec<u32>| ids.iter().filter(|id| self.n_rows_of_token[*id] == 1).count() as f64 / ids.len() as f64;
        if !self.tokens.is_empty() {
            let shares = self.tokens.iter().map(unseen).collect();
            self.numbers.insert(if self.has_words { UNSEEN_WORDS } else { UNSEEN_TOKENS }, shares);
        }
        if let Some(confidences) = self.numbers.get(CONFIDENCE) {
            let mut sorted = confidences.clone();
            sorted.sort_unstable_by(f64::total_cmp);
            let least = *self.abstain_below.get_or_insert_with(|| crate::quantile(&sorted, ABSTAINING_SHARE));
            let n_yes = sorted.partition_point(|&confidence| confidence < least) as u64;
            let counts = [(true, n_yes), (false, sorted.len() as u64 - n_yes)];
            let counts = counts.map(|(yes, n)| (yes_or_no(yes).to_owned(), n));
            self.classes.insert(ABSTAINED, counts.into());
        }
        let space = (self.projected.len() >= MIN_ROWS).then(|| Space::of(self.width, &self.projected));
        let mut signals: BTreeMap<String, Signal> = BTreeMap::new();
        if let Some(space) = &space {
            let held_out = || self.projected.iter().skip(1).step_by(2);
            let cells = held_out().map(|vector| cell_name(space.cell(vector)));
            let mut counts: HashMap<String, u64> = (0..space.cells.len()).map(|cell| (cell_name(cell), 0)).collect();
            cells.for_each(|cell| *counts.entry(cell).or_default() += 1);
            signals.insert(EMBEDDING.to_owned(), classes(counts));
            let distances = self.projected.iter().map(|vector| space.distance(vector)).collect();
            self.numbers.insert(EMBEDDING_DISTANCE, distances);
        }
        signals.extend(self.numbers.into_iter().map(|(name, values)| (name.to_owned(), numbers(values, Below::With))));
        signals.extend(self.features.into_iter().map(|(name, values)| (name, numbers(values, Below::Apart))));
        signals.extend(self.classes.into_iter().map(|(name, counts)| (name.to_owned(), classes(counts))));
        let ids: BTreeSet<u32> = self.n_rows_of_token.keys().copied().collect();
        Ok(Baseline {
            highroad_baseline: 1,
            package,
            source,
            created_at,
            created_by,
            n_rows: self.n_rows as u64,
            signals,
            quality: self.quality,
            abstain_below: self.abstain_below,
            vocabulary: (!ids.is_empty()).then(|| Vocabulary::of(&ids)),
            space,
            features: self.names,
        })
    }
}

/// Whether values below all of the baseline's have a bin of their own where its smallest value is frequent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Below {
    /// Nothing can be below, as with lengths and shares, or it would not matter.
    With,
    /// A feature that was always 5, or mostly 0, and is less now.
    Apart,
}

/// Bins of about one mass each; a value that is frequent has one of its own.
fn numbers(mut values: Vec<f64>, below: Below) -> Signal {
    values.sort_unstable_by(f64::total_cmp);
    let n = values.len();
    // Not the largest value: what is beyond it would have no neighbours to be compared with.
    let mut edges: Vec<f64> = (1..N_BINS).map(|at| values[(at * n / N_BINS).min(n - 1)]).collect();
    edges.dedup();
    // Else the first bin has the smallest values together with what would be below them.
    let least = values.first().copied().filter(|_| below == Below::Apart && edges.first() == values.first());
    if let Some(least) = least {
        edges.insert(0, least.next_down());
    }
    let mut signal = Signal::Numbers { counts: vec![0; edges.len() + 1], edges };
    for value in values {
        let bin = signal.bin_of(value);
        if let (Signal::Numbers { counts, .. }, Some(bin)) = (&mut signal, bin) {
            counts[bin] += 1;
        }
    }
    signal
}

/// The most frequent classes by name, the rest together.
fn classes(counts: HashMap<String, u64>) -> Signal {
    let mut sorted: Vec<(String, u64)> = counts.into_iter().collect();
    sorted.sort_unstable_by(|left, right| right.1.cmp(&left.1).then_with(|| left.0.cmp(&right.0)));
    let (named, others): (Vec<_>, Vec<_>) =
        sorted.into_iter().enumerate().partition(|(at, (name, _))| *at < N_NAMES && name.len() <= MAX_NAME_BYTES);
    let rest = others.iter().map(|(_, (_, count))| count).sum();
    let (names, mut counts): (Vec<String>, Vec<u64>) = named.into_iter().map(|(_, pair)| pair).unzip();
    counts.push(rest);
    Signal::Classes { names, counts }
}
