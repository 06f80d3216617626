use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::Bench;
use crate::{Case, Decision, GateError, Observed, Outcome};

/// What is wrong with a deliberately broken gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The answers of the two sides are not those to the same case.
    Unpaired,
    /// Candidate and baseline are taken for each other.
    SwappedSides,
    /// The margin, or the improvement, is not used: where the gate can let equal models pass, it asks for a gain; where it hardly can, it
    /// passes whatever is not significantly worse.
    IgnoredMargin,
}

impl Fault {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Unpaired, Self::SwappedSides, Self::IgnoredMargin];

    /// In words, after "a gate that".
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Unpaired => "does not pair the answers case by case",
            Self::SwappedSides => "takes the candidate for the baseline",
            Self::IgnoredMargin => "ignores the margin",
        }
    }
}

/// What a gate with that fault decides, or a sound one. `seed` is for what the fault does at random.
pub(super) fn decide(
    fault: Option<Fault>,
    bench: &Bench<'_>,
    cases: &[Case],
    [candidate, baseline]: [&Observed; 2],
    seed: u64,
) -> Result<Decision, GateError> {
    match fault {
        None => bench.judge(cases, [candidate, baseline]),
        Some(Fault::Unpaired) => bench.judge(cases, [&candidate.subset(&mixed_up(candidate, seed)), baseline]),
        Some(Fault::SwappedSides) => bench.judge(cases, [baseline, candidate]),
        Some(Fault::IgnoredMargin) => {
            let mut decision = bench.judge(cases, [candidate, baseline])?;
            let lower_is_better = bench.gates.rules[0].metric.lower_is_better();
            for check in &mut decision.checks {
                let Some([low, high]) = check.interval else { continue };
                let [worst, best] = if lower_is_better { [-high, -low] } else { [low, high] };
                let can_pass = check.pass_power.is_some_and(|chance| chance >= bench.gates.power / 2.0);
                check.outcome = match can_pass {
                    true if worst > 0.0 => Outcome::Pass,
                    true => Outcome::Inconclusive,
                    false if best < 0.0 => Outcome::Fail,
                    false => Outcome::Pass,
                };
            }
            Ok(decision)
        }
    }
}

/// Cases in another order, each with one of the same expected label where there are labels.
fn mixed_up(observed: &Observed, seed: u64) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let n_cases = observed.n_cases();
    let group = |idx: usize| if let Observed::Classes(classes) = observed { classes.expected()[idx] } else { 0 };
    let mut order: Vec<usize> = (0..n_cases).collect();
    order.sort_by_key(|&idx| group(idx));
    let mut shuffled = order.clone();
    shuffled.chunk_by_mut(|&left, &right| group(left) == group(right)).for_each(|same| same.shuffle(&mut rng));
    let mut mixed = vec![0; n_cases];
    order.into_iter().zip(shuffled).for_each(|(at, from)| mixed[at] = from);
    mixed
}
