use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::weights::uneven;
use crate::{About, Bootstrap, Cutoff, Observed, Parameter, Resamples, Units};

mod classes;
mod numbers;
mod rankings;
mod texts;

/// What is measured. [`Metric::lower_is_better`] says which way is better, [`Metric::range`] between what it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Metric {
    /// Share of right answers; the same number as micro-averaged precision, recall and F1, as each case has one label.
    Accuracy,
    /// Share of cases whose label is among the k that score highest.
    AccuracyAt(Cutoff),
    /// Mean recall over the labels that are expected.
    BalancedAccuracy,
    /// Share of right answers among those that name the label.
    Precision,
    /// Share of right answers among the cases of the label.
    Recall,
    /// Harmonic mean of precision and recall of the label.
    F1,
    /// Mean precision over the labels that occur.
    PrecisionMacro,
    /// Mean recall over the labels that occur.
    RecallMacro,
    /// Mean F1 over the labels that occur.
    F1Macro,
    /// Matthews' correlation of expected and answered labels, for any number of labels (Gorodkin 2004).
    Mcc,
    /// Chance that a case of the label scores higher than one of another; ties count half.
    Auroc,
    /// Average precision of the label: the area under its precision-recall curve, summed over steps of the score.
    Auprc,
    /// Mean negative natural logarithm of the score of the right label.
    LogLoss,
    /// Mean over cases of half the squared distance between scores and the right label's (Brier 1950, halved).
    Brier,
    /// Expected calibration error of the answered label in 15 bins of equal width (Guo et al. 2017).
    Ece,
    /// Mean cost of the answers, by a table of costs.
    Cost,
    /// Linear correlation with the expected numbers.
    Pearson,
    /// Rank correlation with the expected numbers.
    Spearman,
    /// Share of triplets whose anchor is closer to the positive than to the negative text.
    PairAccuracy,
    /// Mean absolute error.
    Mae,
    /// Square root of the mean squared error.
    Rmse,
    /// Share of the variance that is explained; negative where the mean would be better.
    R2,
    /// Mean over cases of the absolute error in shares of the right number, averaged over the numbers of a case.
    Mape,
    /// Mean over cases of the largest absolute error of a case.
    MaxError,
    /// Mean over cases of the Euclidean length of the error over that of what is right.
    RelativeL2,
    /// Share of the cases with a tolerance that have every number within it.
    WithinTolerance,
    /// Mean over queries of the discounted cumulative gain of the first k documents over that of the best order.
    Ndcg(Cutoff),
    /// Mean over queries of 1 / rank of the first relevant document, 0 where it is not among the first k.
    Mrr(Cutoff),
    /// Mean over queries of the share of relevant documents that are among the first k.
    RecallAt(Cutoff),
    /// Mean over queries of the average precision of all documents.
    Map,
    /// Share of texts that equal a reference, but for white space at their ends.
    ExactMatch,
    /// Mean F1 of the words a text shares with the closest reference, normalised as SQuAD does.
    TokenF1,
    /// Mean F1 of the longest common subsequence of words with the closest reference (Lin 2004).
    RougeL,
    /// F2 of character n-grams up to 6 over all texts (Popović 2015), from 0 to 1.
    Chrf,
    /// BLEU of all texts together (Papineni et al. 2002), from 0 to 1.
    Bleu,
    /// Exponential of the mean negative log-probability of a token.
    Perplexity,
    /// Share of texts that are JSON.
    ValidJson,
    /// Share of texts in which a regular expression finds something.
    MatchesRegex,
    /// Share of texts that are JSON a schema accepts.
    MatchesSchema,
    /// Chance that at least one of k sampled texts is right, estimated without bias from n samples (Chen et al. 2021).
    PassAt(Cutoff),
    /// Mean score of a judge, from 0 to 1.
    Judged,
    /// Mean of what a program of the user's own gives each case.
    Custom,
    /// The same where smaller is better.
    CustomLoss,
    /// Share of the cases that a program of the user's own finds right.
    CustomShare,
}

/// All there is to say about a metric but how it is computed.
struct Declared {
    make: Make,
    /// In `gates.toml`; before the k, for metrics of the first k.
    name: &'static str,
    /// In reports; before the k.
    title: &'static str,
    answers: Answers,
    range: (f64, f64),
    better: Better,
    shown: Shown,
    parameter: Option<Parameter>,
}

enum Make {
    One(Metric),
    /// A metric of the first k.
    At(fn(Cutoff) -> Metric),
}

/// The kind of answers a metric is taken from.
#[derive(Clone, Copy)]
enum Answers {
    Classes,
    Correlated,
    Triplets,
    Numbers,
    Tolerated,
    Rankings,
    Texts,
    /// Values that come from outside.
    Given,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Better {
    Larger,
    Smaller,
}

/// How people read a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Percent,
    Number,
}

const SHARE: (f64, f64) = (0.0, 1.0);
const CORRELATION: (f64, f64) = (-1.0, 1.0);
const UNBOUNDED: (f64, f64) = (0.0, f64::INFINITY);
const ANY: (f64, f64) = (f64::NEG_INFINITY, f64::INFINITY);

/// Every metric, by the names that `gates.toml` and reports use.
const DECLARED: [Declared; 44] = [
    percent(Metric::Accuracy, "accuracy", "accuracy", Answers::Classes),
    percent_at(Metric::AccuracyAt, "accuracy_at_", "accuracy@", Answers::Classes),
    percent(Metric::BalancedAccuracy, "balanced_accuracy", "balanced accuracy", Answers::Classes),
    percent(Metric::Precision, "precision", "precision", Answers::Classes).about(Parameter::Label),
    percent(Metric::Recall, "recall", "recall", Answers::Classes).about(Parameter::Label),
    percent(Metric::F1, "f1", "F1", Answers::Classes).about(Parameter::Label),
    percent(Metric::PrecisionMacro, "precision_macro", "macro precision", Answers::Classes),
    percent(Metric::RecallMacro, "recall_macro", "macro recall", Answers::Classes),
    percent(Metric::F1Macro, "f1_macro", "macro F1", Answers::Classes),
    number(Metric::Mcc, "mcc", "Matthews correlation", Answers::Classes).within(CORRELATION),
    number(Metric::Auroc, "auroc", "AUROC", Answers::Classes).about(Parameter::Label),
    number(Metric::Auprc, "auprc", "AUPRC", Answers::Classes).about(Parameter::Label),
    error(Metric::LogLoss, "log_loss", "log loss", Answers::Classes),
    error(Metric::Brier, "brier", "Brier score", Answers::Classes).within(SHARE),
    error(Metric::Ece, "ece", "calibration error", Answers::Classes).within(SHARE),
    error(Metric::Cost, "cost", "cost", Answers::Classes).about(Parameter::Costs),
    number(Metric::Pearson, "pearson", "Pearson correlation", Answers::Correlated).within(CORRELATION),
    number(Metric::Spearman, "spearman", "Spearman correlation", Answers::Correlated).within(CORRELATION),
    percent(Metric::PairAccuracy, "pair_accuracy", "pair accuracy", Answers::Triplets),
    error(Metric::Mae, "mae", "mean absolute error", Answers::Numbers),
    error(Metric::Rmse, "rmse", "root mean squared error", Answers::Numbers),
    number(Metric::R2, "r2", "R²", Answers::Numbers).within((f64::NEG_INFINITY, 1.0)),
    Declared {
        shown: Shown::Percent,
        ..error(Metric::Mape, "mape", "mean absolute percentage error", Answers::Numbers)
    },
    error(Metric::MaxError, "max_error", "largest absolute error", Answers::Numbers),
    error(Metric::RelativeL2, "relative_l2", "relative L2 error", Answers::Numbers),
    percent(Metric::WithinTolerance, "within_tolerance", "share within tolerance", Answers::Tolerated),
    number_at(Metric::Ndcg, "ndcg_at_", "nDCG@", Answers::Rankings),
    number_at(Metric::Mrr, "mrr_at_", "MRR@", Answers::Rankings),
    number_at(Metric::RecallAt, "recall_at_", "recall@", Answers::Rankings),
    number(Metric::Map, "map", "MAP", Answers::Rankings),
    percent(Metric::ExactMatch, "exact_match", "exact match", Answers::Texts),
    number(Metric::TokenF1, "token_f1", "token F1", Answers::Texts),
    number(Metric::RougeL, "rouge_l", "ROUGE-L", Answers::Texts),
    number(Metric::Chrf, "chrf", "chrF", Answers::Texts),
    number(Metric::Bleu, "bleu", "BLEU", Answers::Texts),
    error(Metric::Perplexity, "perplexity", "perplexity", Answers::Texts).within((1.0, f64::INFINITY)),
    percent(Metric::ValidJson, "valid_json", "valid JSON", Answers::Texts),
    percent(Metric::MatchesRegex, "matches_regex", "matches regex", Answers::Texts).about(Parameter::Regex),
    percent(Metric::MatchesSchema, "matches_schema", "matches schema", Answers::Texts).about(Parameter::Schema),
    percent_at(Metric::PassAt, "pass_at_", "pass@", Answers::Texts),
    number(Metric::Judged, "judged", "score by judge", Answers::Texts).about(Parameter::Judge),
    number(Metric::Custom, "custom", "own metric", Answers::Given).within(ANY).about(Parameter::Custom),
    error(Metric::CustomLoss, "custom_loss", "own loss", Answers::Given).within(ANY).about(Parameter::Custom),
    percent(Metric::CustomShare, "custom_share", "own share", Answers::Given).about(Parameter::Custom),
];

/// The same number as accuracy, as each case has one label.
const ACCURACY_TOO: &str = "f1_micro";

const fn number(metric: Metric, name: &'static str, title: &'static str, answers: Answers) -> Declared {
    let make = Make::One(metric);
    let (range, better, shown) = (SHARE, Better::Larger, Shown::Number);
    Declared { make, name, title, answers, range, better, shown, parameter: None }
}

const fn number_at(of: fn(Cutoff) -> Metric, name: &'static str, title: &'static str, answers: Answers) -> Declared {
    let make = Make::At(of);
    let (range, better, shown) = (SHARE, Better::Larger, Shown::Number);
    Declared { make, name, title, answers, range, better, shown, parameter: None }
}

const fn percent(metric: Metric, name: &'static str, title: &'static str, answers: Answers) -> Declared {
    Declared { shown: Shown::Percent, ..number(metric, name, title, answers) }
}

const fn percent_at(of: fn(Cutoff) -> Metric, name: &'static str, title: &'static str, answers: Answers) -> Declared {
    Declared { shown: Shown::Percent, ..number_at(of, name, title, answers) }
}

const fn error(metric: Metric, name: &'static str, title: &'static str, answers: Answers) -> Declared {
    Declared { range: UNBOUNDED, better: Better::Smaller, ..number(metric, name, title, answers) }
}

impl Declared {
    const fn within(self, range: (f64, f64)) -> Self {
        Self { range, ..self }
    }

    const fn about(self, parameter: Parameter) -> Self {
        Self { parameter: Some(parameter), ..self }
    }

    /// The metric, or that of the first document, whose kind all others of the first k share.
    fn metric(&self) -> Metric {
        match self.make {
            Make::One(metric) => metric,
            Make::At(of) => of(Cutoff::MIN),
        }
    }

    /// The metric called `name`, if it is this one.
    fn parse(&self, name: &str) -> Option<Metric> {
        match self.make {
            Make::One(metric) => (self.name == name).then_some(metric),
            Make::At(of) => {
                let digits = name.strip_prefix(self.name)?;
                let k: Cutoff = digits.parse().ok()?;
                // One metric has one name: no sign, no leading zero.
                (k.to_string() == digits).then(|| of(k))
            }
        }
    }
}

impl Answers {
    fn in_words(self) -> &'static str {
        match self {
            Self::Classes => "a classifier's answers",
            Self::Correlated => "similarities of pairs, or a number a case",
            Self::Triplets => "triplets of texts",
            Self::Numbers => "numbers, or tensors of them",
            Self::Tolerated => "tensors, of cases with a `tolerance`",
            Self::Rankings => "documents ranked for queries",
            Self::Texts => "texts",
            Self::Given => "what a program of your own gives, which is not run here",
        }
    }
}

/// No metric has this name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is no metric: there are {known}", known = known())]
pub struct UnknownMetric(String);

fn known() -> String {
    let name = |declared: &Declared| match declared.make {
        Make::One(_) => format!("`{}`", declared.name),
        Make::At(_) => format!("`{}K`", declared.name),
    };
    DECLARED.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// A metric cannot be taken from these answers.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum MetricError {
    #[error("`{metric}` needs {needed}")]
    OtherAnswers { metric: Metric, needed: &'static str },
    #[error("`{metric}` needs {}", parameter.with_article())]
    Missing { metric: Metric, parameter: Parameter },
    #[error("`{metric}` takes no `{parameter}`")]
    Needless { metric: Metric, parameter: Parameter },
    #[error("label `{label}` is not one of: {labels}")]
    UnknownLabel { label: String, labels: String },
    #[error("`{metric}` of `{label}` is undefined here: every case or none has that label")]
    OneSided { metric: Metric, label: String },
    #[error("`{metric}` has no weighted form, and these cases have different weights")]
    NoWeights { metric: Metric },
    #[error("there is no output `{output}`: the cases expect {outputs}")]
    UnknownOutput { output: String, outputs: String },
    #[error("`{metric}` needs one number a case: name an `output` that has one")]
    SeveralNumbers { metric: Metric },
    #[error("`{metric}` needs as many numbers in each case: name an `output` whose shape never changes")]
    OtherShapes { metric: Metric },
    #[error("`{metric}` takes {limit} numbers at most, over all cases: name an `output` that has fewer")]
    TooManyNumbers { metric: Metric, limit: usize },
    #[error("`{metric}` is undefined where 0 is right, as in case {case_idx}")]
    ZeroExpected { metric: Metric, case_idx: usize },
    #[error("`{metric}` is undefined on fewer than {least} cases")]
    TooFew { metric: Metric, least: usize },
    #[error("`{metric}` needs at least as many samples of every case, and there is one with {n_samples}")]
    TooFewSamples { metric: Metric, n_samples: usize },
    #[error("`{metric}` needs the log-probability of every answer, and case {case_idx} has none")]
    NoLikelihood { metric: Metric, case_idx: usize },
    #[error("`{metric}` has not one value for each case")]
    NotGiven { metric: Metric },
    #[error("`{metric}` needs a value of 0 or 1 for each case, and case {case_idx} has another")]
    NotDecided { metric: Metric, case_idx: usize },
    #[error("`{metric}` needs a reference for each case, and case {case_idx} has none")]
    NoReference { metric: Metric, case_idx: usize },
    #[error("judge `{judge}` has not judged case {case_idx}")]
    NotJudged { judge: String, case_idx: usize },
}

/// From how much each case counts to the value.
type Evaluate = Box<dyn Fn(&[f64]) -> f64 + Send + Sync>;

/// How a metric comes about.
enum Measure {
    /// The share of right answers over fixed cases; `None` for a case that does not count.
    Right(Vec<Option<bool>>),
    /// The mean of one value a case.
    Mean(Vec<f64>),
    /// Anything else.
    Of(Evaluate),
}

/// A metric over fixed cases that can be taken again with each case counted any number of times, which is what a
/// bootstrap does. Sorting happens once, here; each evaluation is linear in the number of cases.
pub struct Statistic {
    metric: Metric,
    n_cases: usize,
    measure: Measure,
    /// Of each case, where they are not all the same.
    weights: Option<Vec<f64>>,
    right: Option<Vec<bool>>,
    /// What each case adds, where the metric is the mean of that.
    of_case: Option<Vec<f64>>,
}

impl Statistic {
    fn new(metric: Metric, n_cases: usize, measure: Measure) -> Self {
        let right = match &measure {
            Measure::Right(flags) => Some(flags.iter().copied().flatten().collect()),
            _ => None,
        };
        let of_case = match &measure {
            Measure::Right(flags) => flags.iter().map(|flag| flag.map(|right| f64::from(u8::from(right)))).collect(),
            Measure::Mean(of_case) => Some(of_case.clone()),
            Measure::Of(_) => None,
        };
        Self { metric, n_cases, measure, weights: None, right, of_case }
    }

    /// The mean of `values`, one a case, that come from outside; of a share each is 0 or 1.
    pub(crate) fn given(metric: Metric, values: Vec<f64>) -> Result<Self, MetricError> {
        let n_cases = values.len();
        let measure = match metric {
            Metric::CustomShare => Measure::Right(decisions(metric, &values)?),
            _ => Measure::Mean(values),
        };
        Ok(Self::new(metric, n_cases, measure))
    }

    /// The metric with each case counted as much as its weight, as scikit-learn's `sample_weight` does.
    ///
    /// Errors if the weights differ and the metric has no weighted form that others agree on.
    ///
    /// # Panics
    /// If there are more or fewer weights than cases.
    pub fn weighted(self, weights: &[f64]) -> Result<Self, MetricError> {
        assert_eq!(weights.len(), self.n_cases, "weights of other cases");
        match uneven(weights.iter().copied()) {
            None => Ok(self),
            Some(_) if !self.metric.takes_weights() => Err(MetricError::NoWeights { metric: self.metric }),
            // Exact tests take each case for one observation like any other.
            Some(weights) => Ok(Self { weights: Some(weights), right: None, ..self }),
        }
    }

    /// The metric with case `i` counted `counts[i]` times; NaN where that leaves it undefined.
    pub fn value(&self, counts: &[u32]) -> f64 {
        self.of_counts(&weighted(counts, self.weights.as_deref()))
    }

    /// The metric with case `i` counted as much as `counts[i]`, its weight included.
    fn of_counts(&self, counts: &[f64]) -> f64 {
        match &self.measure {
            Measure::Right(flags) => share_of_right(flags, counts),
            Measure::Mean(of_case) => mean_of(of_case, counts),
            Measure::Of(evaluate) => evaluate(counts),
        }
    }

    /// The metric with every case counted once.
    pub fn observed(&self) -> f64 {
        self.value(&vec![1; self.n_cases])
    }

    /// Right or wrong, case by case, where the metric is the share of right answers over cases that do not depend on the
    /// answers: what exact tests take. Cases that do not count, such as those of other labels, are left out.
    pub fn right(&self) -> Option<&[bool]> {
        self.right.as_deref()
    }

    /// What each case adds, where the metric is the mean of that over all cases, weighted where they are.
    pub fn of_case(&self) -> Option<&[f64]> {
        self.of_case.as_deref()
    }

    /// The metric on resamples of `units`.
    pub fn resample(&self, units: &Units, resamples: Resamples) -> Bootstrap {
        match &self.of_case {
            Some(of_case) => Bootstrap::of_weighted_mean(units, resamples, of_case, self.weights.as_deref()),
            None => Bootstrap::new(units, resamples, |counts| self.value(counts)),
        }
    }

    /// [`Statistic::resample`] of metrics of the same answers with the same weights, to the same bits: each resample is drawn
    /// once for all of them.
    pub(crate) fn resample_all(all: &[&Self], units: &Units, resamples: Resamples) -> Vec<Bootstrap> {
        let (means, others): (Vec<_>, Vec<_>) = all.iter().enumerate().partition(|(_, one)| one.of_case.is_some());
        let weights = others.first().and_then(|(_, first)| first.weights.as_deref());
        let values = |counts: &[u32]| {
            let counts = weighted(counts, weights);
            others.iter().map(|(_, one)| one.of_counts(&counts)).collect()
        };
        let of_means = means.iter().map(|(place, one)| (*place, one.resample(units, resamples)));
        let of_others =
            others.iter().map(|(place, _)| *place).zip(Bootstrap::each(units, resamples, others.len(), values));
        let mut samples: Vec<(usize, Bootstrap)> = of_means.chain(of_others).collect();
        samples.sort_by_key(|(place, _)| *place);
        samples.into_iter().map(|(_, sample)| sample).collect()
    }
}

/// Right or wrong, as a program that decides says it.
fn decisions(metric: Metric, values: &[f64]) -> Result<Vec<Option<bool>>, MetricError> {
    let decision = |(case_idx, &value): (usize, &f64)| {
        decided(value).map(Some).ok_or(MetricError::NotDecided { metric, case_idx })
    };
    values.iter().enumerate().map(decision).collect()
}

/// 1 for right and 0 for wrong; anything else decides nothing.
pub(crate) fn decided(value: f64) -> Option<bool> {
    match value {
        1.0 => Some(true),
        0.0 => Some(false),
        _ => None,
    }
}

/// Counts times the weights of the cases.
fn weighted(counts: &[u32], weights: Option<&[f64]>) -> Vec<f64> {
    let counts = counts.iter().map(|&count| f64::from(count));
    match weights {
        None => counts.collect(),
        Some(weights) => counts.zip(weights).map(|(count, weight)| count * weight).collect(),
    }
}

impl fmt::Debug for Statistic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Statistic over {} cases", self.n_cases)
    }
}

impl Metric {
    /// What is told of tensors, as far as it is defined on them.
    pub(crate) const OF_TENSORS: [Self; 9] = [
        Self::Mae,
        Self::Rmse,
        Self::R2,
        Self::RelativeL2,
        Self::MaxError,
        Self::Mape,
        Self::Pearson,
        Self::Spearman,
        Self::WithinTolerance,
    ];

    /// Every metric; of those of the first k the one of the first.
    pub fn all() -> impl Iterator<Item = Self> {
        DECLARED.iter().map(Declared::metric)
    }

    /// What must be named beside the metric.
    pub fn parameter(self) -> Option<Parameter> {
        self.declared().parameter
    }

    /// Whether smaller is better.
    pub fn lower_is_better(self) -> bool {
        self.declared().better == Better::Smaller
    }

    /// Whether people read the metric in percent.
    pub fn is_in_percent(self) -> bool {
        self.declared().shown == Shown::Percent
    }

    /// Whether the metric is decided by which answers are right alone, so that a list of flips shows all that changed.
    pub fn is_decided_by_labels(self) -> bool {
        matches!(
            self,
            Self::Accuracy
                | Self::BalancedAccuracy
                | Self::Precision
                | Self::Recall
                | Self::F1
                | Self::PrecisionMacro
                | Self::RecallMacro
                | Self::F1Macro
                | Self::PairAccuracy
                | Self::ExactMatch
                | Self::WithinTolerance
                | Self::CustomShare
        )
    }

    /// Whether the answer that needs no model can have the best value there is.
    pub fn trivial_can_win(self) -> bool {
        matches!(
            self,
            Self::Precision
                | Self::Recall
                | Self::PrecisionMacro
                | Self::Ece
                | Self::Perplexity
                | Self::ValidJson
                | Self::MatchesRegex
                | Self::MatchesSchema
                // Nobody asks a judge about the answer that needs no model.
                | Self::Judged
                | Self::Custom
                | Self::CustomLoss
                | Self::CustomShare
        )
    }

    /// Whether cases may count more or less than others: not where that has no agreed meaning.
    pub fn takes_weights(self) -> bool {
        !matches!(self, Self::Spearman | Self::Chrf | Self::Bleu | Self::Perplexity)
    }

    /// What `gates.toml` and reports call it.
    pub fn name(self) -> String {
        self.with_k(self.declared().name)
    }

    /// The least and the largest value there is.
    pub fn range(self) -> (f64, f64) {
        self.declared().range
    }

    /// The metric of `observed`, ready to be resampled.
    pub fn of<'a>(self, observed: &Observed, about: impl Into<About<'a>>) -> Result<Statistic, MetricError> {
        let about = about.into();
        self.check_parameters(about)?;
        if about.output.is_some() && !matches!(observed, Observed::Tensors(_)) {
            return Err(MetricError::Needless { metric: self, parameter: Parameter::Output });
        }
        let measure = match observed {
            Observed::Classes(classes) => classes::measure(self, classes, about)?,
            Observed::Similarities(pairs) => numbers::correlated(self, &pairs.expected, &pairs.predicted)?,
            Observed::Triplets(triplets) if self == Self::PairAccuracy => {
                Measure::Right(triplets.right().into_iter().map(Some).collect())
            }
            Observed::Triplets(_) => return Err(self.of_other_answers()),
            Observed::Numbers(numbers) => numbers::measure(self, numbers)?,
            Observed::Tensors(tensors) => numbers::of_tensors(self, tensors, about.output)?,
            Observed::Rankings(rankings) => rankings::measure(self, rankings)?,
            Observed::Texts(texts) => texts::measure(self, texts, about)?,
        };
        Ok(Statistic::new(self, observed.n_cases(), measure))
    }

    /// A parameter that is needed and missing, or given and not taken.
    pub(crate) fn misfit(self, about: About<'_>) -> Option<Parameter> {
        let takes_output = matches!(self.declared().answers, Answers::Numbers | Answers::Correlated);
        let needless = (about.output.is_some() && !takes_output).then_some(Parameter::Output);
        about.misfit(self.parameter()).or(needless)
    }

    fn check_parameters(self, about: About<'_>) -> Result<(), MetricError> {
        match self.misfit(about) {
            None => Ok(()),
            Some(parameter) if Some(parameter) == self.parameter() => {
                Err(MetricError::Missing { metric: self, parameter })
            }
            Some(parameter) => Err(MetricError::Needless { metric: self, parameter }),
        }
    }

    fn of_other_answers(self) -> MetricError {
        MetricError::OtherAnswers { metric: self, needed: self.declared().answers.in_words() }
    }

    fn declared(self) -> &'static Declared {
        let kind = std::mem::discriminant(&self);
        let found = DECLARED.iter().find(|declared| std::mem::discriminant(&declared.metric()) == kind);
        found.expect("every metric is declared")
    }

    fn with_k(self, name: &str) -> String {
        match self {
            Self::AccuracyAt(k) | Self::Ndcg(k) | Self::Mrr(k) | Self::RecallAt(k) | Self::PassAt(k) => {
                format!("{name}{k}")
            }
            _ => name.to_owned(),
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_k(self.declared().title))
    }
}

impl FromStr for Metric {
    type Err = UnknownMetric;

    fn from_str(name: &str) -> Result<Self, UnknownMetric> {
        if name == ACCURACY_TOO {
            return Ok(Self::Accuracy);
        }
        let found = DECLARED.iter().find_map(|declared| declared.parse(name));
        found.ok_or_else(|| UnknownMetric(name.to_owned()))
    }
}

impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name())
    }
}

impl<'de> Deserialize<'de> for Metric {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

fn mean_of(of_case: &[f64], counts: &[f64]) -> f64 {
    let total: f64 = of_case.iter().zip(counts).map(|(value, count)| value * count).sum();
    total / counts.iter().sum::<f64>()
}

fn share_of_right(flags: &[Option<bool>], counts: &[f64]) -> f64 {
    let (mut n_right, mut n_counted) = (0.0, 0.0);
    for (flag, count) in flags.iter().zip(counts) {
        n_counted += count * f64::from(u8::from(flag.is_some()));
        n_right += count * f64::from(u8::from(*flag == Some(true)));
    }
    n_right / n_counted
}

/// A function of the sums over cases of `N` numbers a case.
fn of_sums<const N: usize>(rows: Vec<[f64; N]>, of: impl Fn(&[f64; N]) -> f64 + Send + Sync + 'static) -> Measure {
    Measure::Of(Box::new(move |counts| {
        let mut sums = [0.0; N];
        for (row, &count) in rows.iter().zip(counts) {
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += count * value);
        }
        of(&sums)
    }))
}

/// Case indices by ascending value; equal values share a group. Golden sets may have millions of cases, so indices are short
/// and groups lie one behind the other.
struct TieGroups {
    order: Vec<u32>,
    /// Where each group ends in `order`.
    ends: Vec<u32>,
}

impl TieGroups {
    fn of(values: &[f64]) -> Self {
        let n_cases = u32::try_from(values.len()).expect("more than four billion cases do not fit in memory");
        let value = |idx: u32| values[idx as usize];
        let mut order: Vec<u32> = (0..n_cases).collect();
        order.sort_by(|&left, &right| value(left).total_cmp(&value(right)));
        let mut end = 0;
        let groups = order.chunk_by(|&left, &right| value(left) == value(right));
        let ends = groups.map(|group| {
            end += group.len() as u32;
            end
        });
        let ends = ends.collect();
        Self { order, ends }
    }

    /// Ascending.
    fn iter(&self) -> impl DoubleEndedIterator<Item = &[u32]> {
        let start = |group: usize| group.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        (0..self.ends.len()).map(move |group| &self.order[start(group)..self.ends[group] as usize])
    }
}
