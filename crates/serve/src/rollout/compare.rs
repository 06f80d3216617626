use highroad_task::{Answer, OutputTensor, ranked};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::hosted::{Preferred, text_similarity};

/// The relative difference of a tensor and its opposite, and of what cannot be compared: no other is larger.
const MOST_RELATIVE: f64 = 2.0;

/// Which answers count as different, and which as slow.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ComparisonLimits")]
pub struct Limits {
    /// Embeddings differ where their cosine is below this.
    pub min_cosine: f64,
    /// Rankings differ where their overlap is below this; see [`Compared::overlap`].
    pub min_overlap: f64,
    /// Texts differ where their similarity is below this; see [`Compared::similarity`].
    #[serde(default = "min_similarity", skip_serializing_if = "is_usual")]
    pub min_similarity: f64,
    /// Tensors differ where their relative difference is above this; see [`Compared::relative`].
    #[serde(default = "max_relative", skip_serializing_if = "is_usual_relative")]
    pub max_relative: f64,
    /// The candidate is slow where it takes longer: as a canary from the parsed request to the answer, in the shadow its own
    /// time on the processor. `None` where it has all the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
}

impl Default for Limits {
    /// Cosines from 0.95, overlaps from 0.8, similarities from 0.5, relative differences to 0.1, all the time.
    fn default() -> Self {
        let (min_similarity, max_relative) = (min_similarity(), max_relative());
        Self { min_cosine: 0.95, min_overlap: 0.8, min_similarity, max_relative, latency_ms: None }
    }
}

// Older servers know no such limit, and pass over a rollout with words that they do not know.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_usual(similarity: &f64) -> bool {
    *similarity == min_similarity()
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_usual_relative(relative: &f64) -> bool {
    *relative == max_relative()
}

fn max_relative() -> f64 {
    0.1
}

fn min_similarity() -> f64 {
    0.5
}

impl Limits {
    pub(crate) fn are_sound(&self) -> bool {
        (-1.0..=1.0).contains(&self.min_cosine)
            && (0.0..=1.0).contains(&self.min_overlap)
            && (0.0..=1.0).contains(&self.min_similarity)
            && (0.0..=MOST_RELATIVE).contains(&self.max_relative)
            && self.latency_ms.is_none_or(|ms| ms > 0.0 && ms.is_finite())
    }
}

/// The answers of two versions to one request, side by side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Compared {
    /// Whether the request counts as answered differently: one of its labels flipped, or a vector, a tensor or the ranking is further off
    /// than the limits say.
    pub differs: bool,
    /// Inputs whose label is another.
    pub n_flips: usize,
    /// Largest change of a label's score over all inputs, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift: Option<f64>,
    /// Smallest cosine over all inputs; of tensors over all outputs of more than one number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cosine: Option<f64>,
    /// Of tensors: the largest Euclidean length of an output's difference over that of the longer of both, 0 to 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relative: Option<f64>,
    /// Of tensors: the largest difference of two numbers in one place; none where outputs have other names, dtypes or shapes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub absolute: Option<f64>,
    /// How much of the two rankings is the same, 0 to 1: the share of common documents among the first one, two, … ten of
    /// both, on average. 1 only if all of these are in one order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlap: Option<f64>,
    /// How alike the two texts are, 0 to 1: 1 less their edit distance as a share of the longer one; see [`text_similarity`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub similarity: Option<f64>,
    /// Characters of the two texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_chars: Option<[usize; 2]>,
    /// Tokens of the two texts, as their hosts counted them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<[u64; 2]>,
    /// What the two answers cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<[f64; 2]>,
    /// What a judge prefers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preferred: Option<Preferred>,
    /// How bad it is, for putting the worst first; comparable within one task.
    pub severity: f64,
}

/// Compares the answers of two versions to the inputs of one request; `stable` and `candidate` are in one order. `None` if they
/// are not answers of one task to the same inputs.
pub fn compare(limits: &Limits, stable: &[Answer], candidate: &[Answer]) -> Option<Compared> {
    if stable.len() != candidate.len() {
        return None;
    }
    let pairs = || stable.iter().zip(candidate);
    match (stable.first()?, candidate.first()?) {
        (Answer::Class { .. }, Answer::Class { .. }) | (Answer::Labels { .. }, Answer::Labels { .. }) => {
            pairs().try_fold(Compared::default(), with_label)
        }
        (Answer::Embedding { .. }, Answer::Embedding { .. }) => {
            let cosines = pairs().map(cosine).collect::<Option<Vec<f64>>>()?;
            let cosine = cosines.into_iter().fold(1.0, f64::min);
            let differs = cosine < limits.min_cosine;
            Some(Compared { differs, cosine: Some(cosine), severity: 1.0 - cosine, ..Compared::default() })
        }
        (Answer::Tensors(stable), Answer::Tensors(candidate)) => Some(tensors(limits, stable, candidate)),
        (Answer::Relevance { .. }, Answer::Relevance { .. }) => {
            let overlap = overlap(stable, candidate);
            let differs = overlap < limits.min_overlap;
            Some(Compared { differs, overlap: Some(overlap), severity: 1.0 - overlap, ..Compared::default() })
        }
        _ => None,
    }
}

/// Compares what two programs gave. Outputs of other names, dtypes or shapes are as far apart as can be.
fn tensors(limits: &Limits, stable: &[OutputTensor], candidate: &[OutputTensor]) -> Compared {
    let signature = |outputs: &[OutputTensor]| -> Vec<_> {
        outputs.iter().map(|output| (output.name.clone(), output.dtype.clone(), output.shape.clone())).collect()
    };
    let apart =
        Compared { differs: true, relative: Some(MOST_RELATIVE), severity: MOST_RELATIVE, ..Compared::default() };
    if signature(stable) != signature(candidate) {
        return apart;
    }
    let mut found = Compared { relative: Some(0.0), absolute: Some(0.0), ..Compared::default() };
    for (stable, candidate) in stable.iter().zip(candidate) {
        let Some((stable, candidate)) = stable.values().zip(candidate.values()) else { return apart };
        let far = Far::of(&stable, &candidate);
        found.relative = found.relative.map(|so_far| so_far.max(far.relative));
        found.absolute = found.absolute.map(|so_far| so_far.max(far.absolute));
        if stable.len() > 1 {
            found.cosine = Some(found.cosine.unwrap_or(1.0).min(far.cosine));
        }
    }
    found.severity = found.relative.unwrap_or_default();
    found.differs = found.severity > limits.max_relative;
    found
}

/// How far two lists of numbers are apart.
struct Far {
    relative: f64,
    absolute: f64,
    cosine: f64,
}

impl Far {
    /// `left` and `right` have one length. Infinities and NaNs are as themselves, and as far as can be from all else.
    fn of(left: &[f64], right: &[f64]) -> Self {
        let (mut squares, mut dot, mut absolute) = ([0.0; 3], 0.0, 0.0_f64);
        for (&left, &right) in left.iter().zip(right) {
            if left.to_bits() == right.to_bits() && !left.is_finite() {
                continue;
            }
            if !left.is_finite() || !right.is_finite() {
                return Self { relative: MOST_RELATIVE, absolute: f64::MAX, cosine: -1.0 };
            }
            let difference = left - right;
            absolute = absolute.max(difference.abs());
            squares = [squares[0] + difference * difference, squares[1] + left * left, squares[2] + right * right];
            dot += left * right;
        }
        let [difference, left, right] = squares.map(f64::sqrt);
        let longer = left.max(right);
        let relative = if difference == 0.0 { 0.0 } else { difference / longer };
        let cosine = if difference == 0.0 {
            1.0
        } else if left == 0.0 || right == 0.0 {
            0.0
        } else {
            dot / (left * right)
        };
        Self { relative, absolute, cosine }
    }
}

/// Compares the texts that two versions wrote.
pub fn compare_texts(limits: &Limits, stable: &str, candidate: &str) -> Compared {
    let similarity = text_similarity(stable, candidate);
    Compared {
        differs: similarity < limits.min_similarity,
        similarity: Some(similarity),
        n_chars: Some([stable.chars().count(), candidate.chars().count()]),
        severity: 1.0 - similarity,
        ..Compared::default()
    }
}

fn with_label(so_far: Compared, pair: (&Answer, &Answer)) -> Option<Compared> {
    let ((was, is), (before, after)) = (pair.0.label().zip(pair.1.label())?, (pair.0.values(), pair.1.values()));
    if before.len() != after.len() {
        return None;
    }
    let shift = before.iter().zip(after).map(|(before, after)| f64::from((before - after).abs())).fold(0.0, f64::max);
    let flipped = was != is;
    Some(Compared {
        differs: so_far.differs || flipped,
        n_flips: so_far.n_flips + usize::from(flipped),
        shift: Some(so_far.shift.unwrap_or(0.0).max(shift)),
        // A flip is worse than any shift.
        severity: so_far.severity.max(shift + f64::from(u8::from(flipped))),
        ..so_far
    })
}

/// The cosine of two vectors of one length; `None` of others. A vector of length 0 is like no other, and like itself.
fn cosine((left, right): (&Answer, &Answer)) -> Option<f64> {
    let (Answer::Embedding { vector: left }, Answer::Embedding { vector: right }) = (left, right) else { return None };
    if left.len() != right.len() {
        return None;
    }
    let dot =
        |left: &[f32], right: &[f32]| left.iter().zip(right).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let lengths = (dot(left, left) * dot(right, right)).sqrt();
    Some(match lengths {
        0.0 => f64::from(u8::from(left == right)),
        _ => (dot(left, right) / lengths).clamp(-1.0, 1.0),
    })
}

/// Documents at the top that count.
const DEPTH: usize = 10;

fn overlap(stable: &[Answer], candidate: &[Answer]) -> f64 {
    let order = |answers| ranked(answers).iter().take(DEPTH).map(|document| document.index).collect::<Vec<_>>();
    let (before, after) = (order(stable), order(candidate));
    let at = |depth: usize| {
        let common = before[..depth].iter().filter(|index| after[..depth].contains(index)).count();
        common as f64 / depth as f64
    };
    let depth = before.len();
    (1..=depth).map(at).sum::<f64>() / depth.max(1) as f64
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn class(label: &str, scores: &[f32]) -> Answer {
        Answer::Class { label: label.to_owned(), scores: scores.to_vec() }
    }

    fn relevances(logits: &[f32]) -> Vec<Answer> {
        logits.iter().map(|&logit| Answer::Relevance { logit }).collect()
    }

    fn outputs(name: &str, shape: &[usize], values: &[f32]) -> Vec<Answer> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let output =
            OutputTensor { name: name.to_owned(), dtype: "f32".to_owned(), shape: shape.to_vec(), bytes: bytes.into() };
        vec![Answer::Tensors(vec![output])]
    }

    #[test]
    fn tensors_are_as_far_apart_as_their_difference_beside_the_longer_one() {
        let found = of(&outputs("y", &[2], &[3.0, 4.0]), &outputs("y", &[2], &[3.0, 3.0])).unwrap();
        assert!(found.differs && (found.relative, found.absolute) == (Some(0.2), Some(1.0)));
        assert!((found.cosine.unwrap() - 21.0 / (5.0 * 18.0f64.sqrt())).abs() < 1e-12);
        let near = of(&outputs("y", &[1, 1], &[100.0]), &outputs("y", &[1, 1], &[99.0])).unwrap();
        assert_eq!((near.differs, near.relative, near.cosine), (false, Some(0.01), None));
        let same = of(&outputs("y", &[2], &[0.0, f32::NAN]), &outputs("y", &[2], &[0.0, f32::NAN])).unwrap();
        assert_eq!((same.differs, same.relative), (false, Some(0.0)));
        let stable = outputs("y", &[2], &[1.0, 2.0]);
        for other in [
            outputs("z", &[2], &[1.0, 2.0]),
            outputs("y", &[1, 2], &[1.0, 2.0]),
            outputs("y", &[2], &[1.0, f32::INFINITY]),
        ] {
            let found = of(&stable, &other).unwrap();
            assert!(found.differs && found.severity == 2.0, "{found:?}");
        }
    }

    fn embedding(vector: &[f32]) -> Answer {
        Answer::Embedding { vector: vector.to_vec() }
    }

    fn of(stable: &[Answer], candidate: &[Answer]) -> Option<Compared> {
        compare(&Limits::default(), stable, candidate)
    }

    #[test]
    fn a_label_that_flips_is_worse_than_a_score_that_shifts() {
        let shifted = of(&[class("a", &[0.75, 0.25])], &[class("a", &[0.5, 0.5])]).unwrap();
        assert_eq!((shifted.differs, shifted.shift), (false, Some(0.25)));
        let two = [class("a", &[0.75, 0.25]), class("a", &[0.5, 0.5])];
        let flipped = of(&two, &[class("a", &[0.75, 0.25]), class("b", &[0.25, 0.75])]).unwrap();
        assert_eq!((flipped.differs, flipped.n_flips, flipped.severity), (true, 1, 1.25));
    }

    #[test]
    fn vectors_differ_by_their_angle() {
        let same = of(&[embedding(&[3.0, 4.0])], &[embedding(&[6.0, 8.0])]).unwrap();
        assert_eq!((same.differs, same.cosine), (false, Some(1.0)));
        let turned = of(&[embedding(&[1.0, 0.0])], &[embedding(&[0.0, 1.0])]).unwrap();
        assert_eq!((turned.differs, turned.cosine, turned.severity), (true, Some(0.0), 1.0));
        let none = of(&[embedding(&[0.0, 0.0])], &[embedding(&[0.0, 1.0])]).unwrap();
        assert_eq!(none.cosine, Some(0.0));
    }

    #[test]
    fn rankings_differ_most_where_the_top_does() {
        let before = relevances(&[4.0, 3.0, 2.0, 1.0]);
        let overlap = |logits: &[f32]| of(&before, &relevances(logits)).unwrap().overlap.unwrap();
        assert_eq!(overlap(&[4.0, 3.0, 2.0, 1.0]), 1.0);
        assert_eq!(overlap(&[4.0, 3.0, 1.0, 2.0]), (1.0 + 1.0 + 2.0 / 3.0 + 1.0) / 4.0);
        assert_eq!(overlap(&[3.0, 4.0, 2.0, 1.0]), (0.0 + 1.0 + 1.0 + 1.0) / 4.0);
        assert!(of(&before, &relevances(&[3.0, 4.0, 2.0, 1.0])).unwrap().differs);
    }

    #[test]
    fn texts_differ_by_their_edits() {
        let of = |candidate: &str| compare_texts(&Limits::default(), "Paris.", candidate);
        assert_eq!((of("Paris.").differs, of("Paris.").severity), (false, 0.0));
        let far = of("It is the city of Paris.");
        assert_eq!((far.differs, far.similarity, far.n_chars), (true, Some(0.25), Some([6, 24])));
    }

    #[test]
    fn answers_of_two_tasks_or_lengths_are_not_compared() {
        assert_eq!(of(&[class("a", &[1.0])], &[embedding(&[1.0])]), None);
        assert_eq!(of(&[class("a", &[1.0])], &[class("a", &[0.5, 0.5])]), None);
        assert_eq!(of(&[embedding(&[1.0])], &[embedding(&[1.0, 0.0])]), None);
        assert_eq!(of(&[embedding(&[1.0])], &[]), None);
        assert_eq!(of(&[], &[]), None);
    }
}
