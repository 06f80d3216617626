use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

use super::{Classes, Observed, Similarities};
use crate::{Generated, Likelihood, Numbers, Rankings, Texts, Triplets};

/// Answers made of other answers to the same cases, for simulations.
impl Observed {
    /// These answers, with those of `other` where `take_other` says so.
    ///
    /// # Panics
    /// If the sides are of two kinds or lengths: they must answer the same cases.
    pub(crate) fn choose(&self, other: &Self, take_other: &[bool]) -> Self {
        match (self, other) {
            (Self::Classes(this), Self::Classes(that)) => Self::Classes(this.choose(that, take_other)),
            (Self::Similarities(this), Self::Similarities(that)) => Self::Similarities(Similarities {
                expected: this.expected.clone(),
                predicted: pick(&this.predicted, &that.predicted, take_other),
            }),
            (Self::Rankings(this), Self::Rankings(that)) => Self::Rankings(Rankings {
                // Searches may have found different documents beside those of the case.
                expected: pick(&this.expected, &that.expected, take_other),
                predicted: pick(&this.predicted, &that.predicted, take_other),
            }),
            (Self::Triplets(this), Self::Triplets(that)) => {
                Self::Triplets(Triplets { similarities: pick(&this.similarities, &that.similarities, take_other) })
            }
            (Self::Numbers(this), Self::Numbers(that)) => Self::Numbers(Numbers {
                expected: this.expected.clone(),
                predicted: pick(&this.predicted, &that.predicted, take_other),
            }),
            (Self::Texts(this), Self::Texts(that)) => Self::Texts(Texts {
                references: this.references.clone(),
                generated: pick(&this.generated, &that.generated, take_other),
            }),
            (Self::Tensors(this), Self::Tensors(that)) => {
                assert_eq!(this.n_cases(), take_other.len(), "answers to other cases");
                Self::Tensors(this.with_answers(|idx| (if take_other[idx] { that } else { this }, idx)))
            }
            _ => panic!("answers of two kinds"),
        }
    }

    /// Every answer made worse, as a bad model might: a right label exchanged with the next best one, the score of a most
    /// relevant document with that of any other one, the two similarities of a triplet; a similarity, number, tensor or text taken
    /// from any other case, and a text half as likely. Wrong labels and triplets stay.
    pub(crate) fn spoilt(&self, rng: &mut ChaCha8Rng) -> Self {
        match self {
            Self::Classes(classes) => Self::Classes(classes.spoilt()),
            Self::Similarities(Similarities { expected, predicted }) => {
                let any = |_: &f64| predicted[rng.random_range(0..predicted.len())];
                Self::Similarities(Similarities {
                    expected: expected.clone(),
                    predicted: predicted.iter().map(any).collect(),
                })
            }
            Self::Triplets(Triplets { similarities }) => {
                let worst = |&[positive, negative]: &[f64; 2]| [positive.min(negative), positive.max(negative)];
                Self::Triplets(Triplets { similarities: similarities.iter().map(worst).collect() })
            }
            Self::Numbers(Numbers { expected, predicted }) => {
                let any = |_: &f64| predicted[rng.random_range(0..predicted.len())];
                Self::Numbers(Numbers { expected: expected.clone(), predicted: predicted.iter().map(any).collect() })
            }
            Self::Texts(Texts { references, generated }) => {
                let any = |one: &Generated| generated[rng.random_range(0..generated.len())].less_likely_than(one);
                Self::Texts(Texts { references: references.clone(), generated: generated.iter().map(any).collect() })
            }
            Self::Tensors(tensors) => {
                let n_cases = tensors.n_cases();
                let from: Vec<usize> = (0..n_cases).map(|_| rng.random_range(0..n_cases)).collect();
                Self::Tensors(tensors.with_answers(|idx| (tensors, from[idx])))
            }
            Self::Rankings(rankings) => {
                let mut predicted = rankings.predicted.clone();
                for (scores, relevances) in predicted.iter_mut().zip(&rankings.expected) {
                    let best = (0..relevances.len()).max_by_key(|&idx| relevances[idx]);
                    if let Some(best) = best {
                        let any = rng.random_range(0..scores.len());
                        scores.swap(best, any);
                    }
                }
                Self::Rankings(Rankings { expected: rankings.expected.clone(), predicted })
            }
        }
    }

    /// What a case takes in memory, in numbers.
    pub(crate) fn n_scores_per_case(&self) -> usize {
        match self {
            Self::Classes(classes) => classes.labels.len().max(1),
            Self::Similarities(_) | Self::Triplets(_) | Self::Numbers(_) | Self::Texts(_) => 1,
            Self::Tensors(tensors) => tensors.n_values_per_case(),
            Self::Rankings(rankings) => rankings.predicted.iter().map(Vec::len).max().unwrap_or(1).max(1),
        }
    }
}

impl Generated {
    /// These texts, and twice the improbability of the text they stand for.
    fn less_likely_than(&self, one: &Self) -> Self {
        let halve = |of: Likelihood| Likelihood { log_probability: 2.0 * of.log_probability, ..of };
        Self { likelihood: one.likelihood.map(halve), ..self.clone() }
    }
}

impl Classes {
    fn choose(&self, other: &Self, take_other: &[bool]) -> Self {
        assert_eq!(self.labels, other.labels, "answers in other labels");
        let n_labels = self.labels.len();
        let row = |(idx, &take_other): (usize, &bool)| {
            let scores = if take_other { &other.scores } else { &self.scores };
            &scores[idx * n_labels..(idx + 1) * n_labels]
        };
        Self {
            labels: self.labels.clone(),
            expected: self.expected.clone(),
            predicted: pick(&self.predicted, &other.predicted, take_other),
            scores: take_other.iter().enumerate().flat_map(row).copied().collect(),
        }
    }

    fn spoilt(&self) -> Self {
        let mut spoilt = self.clone();
        let rows = spoilt.scores.chunks_mut(self.labels.len().max(1));
        for ((scores, predicted), &expected) in rows.zip(&mut spoilt.predicted).zip(&self.expected) {
            let others = (0..scores.len()).filter(|&label| label != expected);
            let next = others.max_by(|&left, &right| scores[left].total_cmp(&scores[right]));
            if let Some(next) = next.filter(|_| *predicted == expected) {
                scores.swap(expected, next);
                *predicted = next;
            }
        }
        spoilt
    }
}

fn pick<T: Clone>(these: &[T], those: &[T], take_other: &[bool]) -> Vec<T> {
    assert!(these.len() == those.len() && these.len() == take_other.len(), "answers to other cases");
    let sides = these.iter().zip(those).zip(take_other);
    sides.map(|((this, that), &take_other)| if take_other { that } else { this }.clone()).collect()
}
