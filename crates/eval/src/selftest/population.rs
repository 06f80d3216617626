use std::collections::BTreeMap;

use rand::{Rng, RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::{Models, statistic_of};
use crate::paired::bisect;
use crate::{Case, GateError, Observed, Rule};

/// The cases a rule is about, answered by two models, and how often a right answer has to be spoilt to make a model worse
/// by the rule's margin, or by its improvement.
pub(super) struct Population<'a> {
    rule: &'a Rule,
    cases: Vec<Case>,
    /// Of the two models, and each one's answers spoilt where they can be.
    models: [Observed; 2],
    spoilt_share: f64,
    seed: u64,
}

/// A golden set drawn from a population, answered by three models.
pub(super) struct Drawn {
    pub cases: Vec<Case>,
    pub baseline: Observed,
    /// By a model as good as the baseline.
    pub equal: Observed,
    /// By a candidate that is worse than its baseline by the margin, or better by the improvement.
    pub edge: [Observed; 2],
    /// For what else is random.
    pub seed: u64,
}

/// About how many cases the share of spoilt answers is found on.
const N_CASES_TO_CALIBRATE: usize = 50_000;
/// Most scores that are held to find it.
const MAX_SCORES_TO_CALIBRATE: usize = 8_000_000;

impl<'a> Population<'a> {
    /// The golden cases at `idxs` of the set that `models` answered.
    pub fn new(
        rule: &'a Rule,
        cases: &[Case],
        idxs: &[usize],
        models: Models<'_>,
        seed: u64,
    ) -> Result<Self, GateError> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let models = match models {
            Models::Retrained(both) => both.map(|answers| answers.subset(idxs)),
            Models::One { answers, discordant } => {
                let one = answers.subset(idxs);
                let n_right = one.right().map(|right| right.iter().filter(|&&right| right == Some(true)).count());
                // Only what is right can be spoilt.
                let share = n_right.map_or(discordant, |n| discordant * idxs.len() as f64 / n.max(1) as f64);
                let spoil: Vec<bool> = idxs.iter().map(|_| rng.random::<f64>() < share).collect();
                let other = one.choose(&one.spoilt(&mut rng), &spoil);
                [one, other]
            }
        };
        let mut population = Self { rule, cases: cases.to_vec(), models, spoilt_share: 0.0, seed };
        population.spoilt_share = population.calibrate(&mut rng)?;
        Ok(population)
    }

    /// The `stream`th golden set.
    pub fn draw(&self, stream: usize) -> Drawn {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        // Stream 0 made the population.
        rng.set_stream(stream as u64 + 1);
        let (cases, idxs) = self.draw_cases(&mut rng);
        let [first, second] = self.models.each_ref().map(|answers| answers.subset(&idxs));
        // Cases of one source are exchanged together, so that their errors stay alike.
        let mut exchanged = BTreeMap::new();
        let take_second: Vec<bool> =
            cases.iter().map(|case| *exchanged.entry(case.sources).or_insert_with(|| rng.random())).collect();
        let take_first: Vec<bool> = take_second.iter().map(|second| !second).collect();
        let (equal, baseline) = (first.choose(&second, &take_second), first.choose(&second, &take_first));
        let spoil: Vec<bool> = cases.iter().map(|_| rng.random::<f64>() < self.spoilt_share).collect();
        let needs_gain = self.rule.needed_gain().is_some_and(|gain| gain > 0.0);
        let better = if needs_gain { &equal } else { &baseline };
        let sound = if needs_gain { &baseline } else { &equal };
        let worse = sound.choose(&sound.spoilt(&mut rng), &spoil);
        let edge = if needs_gain { [better.clone(), worse] } else { [worse, better.clone()] };
        Drawn { cases, baseline, equal, edge, seed: rng.next_u64() }
    }

    /// `weights` say how much each case counts.
    pub fn metric_of(&self, observed: &Observed, weights: &[f64]) -> Result<f64, GateError> {
        statistic_of(self.rule, observed, weights)
    }

    /// Sources with replacement, and the cases they bring: a case of two sources as often as both were drawn together.
    fn draw_cases(&self, rng: &mut ChaCha8Rng) -> (Vec<Case>, Vec<usize>) {
        let mut sources: Vec<usize> = self.cases.iter().flat_map(|case| case.sources).collect();
        sources.sort_unstable();
        sources.dedup();
        let mut copies: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for copy in 0..sources.len() {
            copies.entry(sources[rng.random_range(0..sources.len())]).or_default().push(copy);
        }
        let none = Vec::new();
        let of = |source: usize| copies.get(&source).unwrap_or(&none);
        let (mut cases, mut idxs) = (Vec::new(), Vec::new());
        for (idx, case) in self.cases.iter().enumerate() {
            let [left, right] = case.sources;
            let pairs: Vec<[usize; 2]> = if left == right {
                of(left).iter().map(|&copy| [copy, copy]).collect()
            } else {
                of(left).iter().flat_map(|&left| of(right).iter().map(move |&right| [left, right])).collect()
            };
            for sources in pairs {
                cases.push(Case { id: cases.len().to_string(), sources, ..case.clone() });
                idxs.push(idx);
            }
        }
        (cases, idxs)
    }

    /// The share of cases to spoil for a drop of one margin or one improvement, on so many copies of the golden set that their own luck does
    /// not matter.
    fn calibrate(&self, rng: &mut ChaCha8Rng) -> Result<f64, GateError> {
        let size = self.rule.needed_gain().unwrap_or(0.0).abs();
        let n_cases = self.cases.len();
        let n_copies = (N_CASES_TO_CALIBRATE / n_cases)
            .min(MAX_SCORES_TO_CALIBRATE / (n_cases * self.models[0].n_scores_per_case()))
            .max(2);
        let idxs: Vec<usize> = (0..n_cases).cycle().take(n_cases * n_copies).collect();
        let [first, second] = self.models.each_ref().map(|answers| answers.subset(&idxs));
        let is_second: Vec<bool> = (0..idxs.len()).map(|at| (at / n_cases) % 2 == 1).collect();
        let sound = first.choose(&second, &is_second);
        let spoilt = sound.spoilt(rng);
        // Each case is spoilt in its share of copies, to the nearest copy, in copies of either model alike.
        let offsets: Vec<f64> = (0..n_cases).map(|_| rng.random()).collect();
        let n_pairs = n_copies.div_ceil(2) as f64;
        let place = |at: usize| (offsets[at % n_cases] + (at / n_cases / 2) as f64 / n_pairs).fract();
        let places: Vec<f64> = (0..idxs.len()).map(place).collect();
        let weights: Vec<f64> = idxs.iter().map(|&idx| self.cases[idx].weight).collect();
        let value = self.metric_of(&sound, &weights)?;
        let sign = if self.rule.metric.lower_is_better() { -1.0 } else { 1.0 };
        let drop = |share: f64| -> Result<f64, GateError> {
            let spoil: Vec<bool> = places.iter().map(|&place| place < share).collect();
            Ok(sign * (value - self.metric_of(&sound.choose(&spoilt, &spoil), &weights)?))
        };
        if size == 0.0 {
            return Ok(0.0);
        }
        if drop(1.0)? < size {
            return Err(GateError::DropOutOfReach { rule: self.rule.metric.to_string(), size });
        }
        Ok(bisect(0.0, 1.0, |share| drop(share).is_ok_and(|drop| drop >= size)))
    }
}

/// Positions of the cases on which exactly one side is right; `None` where nothing is just right.
pub(super) fn differing(candidate: &Observed, baseline: &Observed) -> Option<Vec<usize>> {
    let sides = candidate.right()?.into_iter().zip(baseline.right()?);
    Some(sides.enumerate().filter(|(_, (left, right))| left != right).map(|(idx, _)| idx).collect())
}
