//! Does a gate keep its word on this very golden set? Simulated, with the models' own answers.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::thread;

use serde::Serialize;
use statrs::distribution::{Binomial, DiscreteCDF as _};

use crate::gate::{Known, decide_again, slices_of};
use crate::power::normal_power;
use crate::{
    Case, CheckResult, Comparison, Decision, GateError, Gates, Inconclusive, Metric, NonInferiority, Observed, Outcome,
    Rule, Side, Test,
};

mod fault;
mod population;

pub use fault::Fault;
use population::{Drawn, Population};

/// What the simulated models are made of.
#[derive(Clone, Copy, Debug)]
pub enum Models<'a> {
    /// The answers of two models of one recipe, trained with other seeds: how such models differ is known.
    Retrained([&'a Observed; 2]),
    /// The answers of one model. The other is the same one with worse answers on the share `discordant` of the cases.
    One {
        /// Of the model.
        answers: &'a Observed,
        /// How often two models of this kind differ, as somebody supposes.
        discordant: f64,
    },
}

/// How many golden sets are drawn, with which seed, on how many threads. The numbers do not depend on the threads.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Simulations {
    pub n: usize,
    pub seed: u64,
    pub threads: NonZeroUsize,
}

/// What the simulations showed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SelfTest {
    /// Pass: the gate keeps its promises, and each broken gate was caught. Fail: it does not. Inconclusive: it does, but
    /// the golden set is too small to tell it from a broken gate.
    pub outcome: Outcome,
    /// The risk the gate was asked to keep.
    pub alpha: f64,
    /// Golden sets drawn for each promise.
    pub n_simulations: usize,
    /// Of the simulations.
    pub seed: u64,
    /// Each rule with a margin or an improvement, on each slice it is about.
    pub rules: Vec<RuleTest>,
    /// Deliberately broken gates, put to the same test.
    pub broken: Vec<BrokenTest>,
}

/// One rule on the cases it is about.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RuleTest {
    /// The rule in words.
    pub rule: String,
    /// How many of the golden cases it is about.
    pub n_cases: usize,
    /// Share of the cases that only one of two equal models has right, on average; absent where nothing is just right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discordant: Option<f64>,
    /// How each promise was kept.
    pub promises: Vec<Kept>,
}

/// What a gate promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Promise {
    /// Models equal up to the seed fail at most with probability alpha.
    EqualFails,
    /// A model that is worse by exactly the margin passes at most with probability alpha.
    DropPasses,
    /// A model that is better by exactly the required improvement passes at most with probability alpha.
    GainPasses,
    /// A model that is better by exactly the required improvement fails at most with probability alpha.
    GainFails,
    /// Equal models fail a required improvement as often as a paired test of these cases can let them.
    EqualFailsAsPaired,
    /// Equal models pass as often as the gate said.
    EqualPassesAsTold,
    /// Equal models pass as often as a paired test of these cases can let them.
    EqualPassesAsPaired,
    /// The listed flips are the cases on which exactly one side was right.
    Flips,
}

/// One promise and how it was kept.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Kept {
    /// Which.
    pub promise: Promise,
    /// Share of the simulated gates in which it happened.
    pub observed: f64,
    /// The share that was promised: at most, for risks; about, for passes; exactly 1, for flips.
    pub promised: f64,
    /// Whether the observed share can be put down to the luck of the simulation.
    pub kept: bool,
}

/// A broken gate and whether the promises showed it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BrokenTest {
    /// What is wrong with it.
    pub fault: Fault,
    /// The first rule and promise that it broke; absent where none showed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caught_by: Option<String>,
}

/// A promise is called broken where the simulation would show so much with less than this probability if it were kept.
const SIGNIFICANT: f64 = 1e-3;
/// What a bootstrapped rule may exceed alpha by: BCa bounds of small sets are not exact (docs/reference/gates.md).
const BOOTSTRAP_SLACK: f64 = 0.02;
/// What the told chance to pass may be off: it is an estimate, from the flips of one golden set.
const TOLD_SLACK: f64 = 0.05;
/// What the chance of a paired test may be off, as it is computed for the average number of flips.
const PAIRED_SLACK: f64 = 0.1;
/// Resamples of a simulated gate: fewer than of a true one, as its luck is averaged over all simulations.
const MOST_RESAMPLES: usize = 2_000;
/// A broken gate differs so much that a part of the simulations shows it.
const BROKEN_SHARE: usize = 4;
const FEWEST_SIMULATIONS: usize = 200;

/// Puts every rule with a margin or an improvement to the test, on golden sets drawn from `cases` with replacement (whole sources at a time)
/// and pairs of models made from `models`: equal ones by exchanging their answers case by case at random, and one that is
/// worse by exactly the margin by spoiling right answers as often as that takes; of a required improvement the baseline's are
/// spoilt, so that the model is better by exactly that. Must-pass flags, floors, latency limits and what the rules make of an
/// inconclusive check play no part. `progress` is told how many of how many simulated gates are done.
///
/// Method: `statistics.md` 6.2, item 12. Errors as [`decide`](crate::decide) does, where no rule has a margin or an improvement, and
/// where two retrained models answer alike everywhere.
pub fn self_test(
    gates: &Gates,
    cases: &[Case],
    models: Models<'_>,
    simulations: Simulations,
    mut progress: impl FnMut(usize, usize),
) -> Result<SelfTest, GateError> {
    if let Models::Retrained([first, second]) = models
        && first == second
    {
        return Err(GateError::NothingDiffers);
    }
    let scopes = scopes(gates, cases)?;
    let Simulations { n, seed, .. } = simulations;
    let n_broken = (n / BROKEN_SHARE).max(FEWEST_SIMULATIONS.min(n));
    let n_all = scopes.len() * (n + Fault::ALL.len() * n_broken);
    let mut n_done = 0;
    let mut tick = |more| {
        n_done += more;
        progress(n_done, n_all);
    };
    let populations = scopes
        .iter()
        .map(|scope| Population::new(scope.rule, &scope.cases, &scope.idxs, models, seed))
        .collect::<Result<Vec<_>, _>>()?;
    let mut rules = Vec::new();
    for (scope, population) in scopes.iter().zip(&populations) {
        rules.push(scope.test(population, simulations, None, &mut tick)?);
    }
    let mut broken = Vec::new();
    for fault in Fault::ALL {
        let fewer = Simulations { n: n_broken, ..simulations };
        let mut caught_by = None;
        for (scope, population) in scopes.iter().zip(&populations) {
            let tested = scope.test(population, fewer, Some(fault), &mut tick)?;
            let worst = tested.promises.iter().find(|kept| !kept.kept);
            caught_by = caught_by.or_else(|| worst.map(|kept| format!("{}: {}", tested.rule, kept.in_words())));
        }
        broken.push(BrokenTest { fault, caught_by });
    }
    let outcome = outcome(&rules, &broken);
    Ok(SelfTest { outcome, alpha: gates.alpha, n_simulations: n, seed, rules, broken })
}

fn outcome(rules: &[RuleTest], broken: &[BrokenTest]) -> Outcome {
    let all_kept = rules.iter().flat_map(|rule| &rule.promises).all(|kept| kept.kept);
    match (all_kept, broken.iter().all(|broken| broken.caught_by.is_some())) {
        (false, _) => Outcome::Fail,
        (true, false) => Outcome::Inconclusive,
        (true, true) => Outcome::Pass,
    }
}

/// One rule that compares and the cases it is about, all else taken off.
struct Scope<'a> {
    rule: &'a Rule,
    gates: Gates,
    cases: Vec<Case>,
    /// Where they are in the golden set.
    idxs: Vec<usize>,
    known: Known,
}

fn scopes<'a>(gates: &'a Gates, cases: &[Case]) -> Result<Vec<Scope<'a>>, GateError> {
    let mut scopes = Vec::new();
    for rule in gates.rules.iter().filter(|rule| rule.needed_gain().is_some()) {
        for slice in slices_of(rule, cases)? {
            let idxs = crate::gate::in_slice(cases, slice)?;
            let slice = slice.map(str::to_owned);
            let alone = Rule { slice, floor: None, ceiling: None, inconclusive: None, ..rule.clone() };
            let (resamples, inconclusive) = (gates.resamples.min(MOST_RESAMPLES), Inconclusive::Ask);
            let gates = Gates { rules: vec![alone], latency: Vec::new(), resamples, inconclusive, ..gates.clone() };
            let cases = idxs.iter().map(|&idx| Case { must_pass: false, ..cases[idx].clone() }).collect();
            scopes.push(Scope { rule, gates, cases, idxs, known: Known::of_many() });
        }
    }
    if scopes.is_empty() { Err(GateError::NothingToTest) } else { Ok(scopes) }
}

/// What one simulated golden set showed.
struct Seen {
    equal: CheckResult,
    /// What became of a candidate that is just as bad as the rule says is too bad.
    edge: Outcome,
    /// Difference of two equal models.
    difference: f64,
    /// Share of the cases on which exactly one of them is right.
    discordant: Option<f64>,
    flips_right: bool,
}

impl Scope<'_> {
    fn test(
        &self,
        population: &Population<'_>,
        simulations: Simulations,
        fault: Option<Fault>,
        tick: &mut impl FnMut(usize),
    ) -> Result<RuleTest, GateError> {
        let mut seen = Vec::with_capacity(simulations.n);
        // Small enough for a progress bar to move, large enough to keep the threads busy.
        let n_at_once = simulations.threads.get() * 8;
        for start in (0..simulations.n).step_by(n_at_once) {
            let streams: Vec<usize> = (start..(start + n_at_once).min(simulations.n)).collect();
            let n_each = streams.len().div_ceil(simulations.threads.get());
            let done: Vec<Result<Seen, GateError>> = thread::scope(|scope| {
                let workers: Vec<_> = streams
                    .chunks(n_each)
                    .map(|streams| {
                        let simulate = |&stream| self.simulate(population, stream, fault);
                        scope.spawn(move || streams.iter().map(simulate).collect::<Vec<_>>())
                    })
                    .collect();
                workers.into_iter().flat_map(|worker| worker.join().expect("a simulation does not panic")).collect()
            });
            tick(done.len());
            seen.extend(done.into_iter().collect::<Result<Vec<_>, _>>()?);
        }
        Ok(self.sum_up(&seen))
    }

    fn simulate(&self, population: &Population<'_>, stream: usize, fault: Option<Fault>) -> Result<Seen, GateError> {
        let Drawn { cases, baseline, equal, edge, seed } = population.draw(stream);
        let bench = Bench { gates: &self.gates, known: &self.known };
        let judge = |sides: [&Observed; 2]| fault::decide(fault, &bench, &cases, sides, seed);
        let equals = judge([&equal, &baseline])?;
        let at_edge = judge(edge.each_ref())?;
        let differing = population::differing(&equal, &baseline);
        let weights: Vec<f64> = cases.iter().map(|case| case.weight).collect();
        let value = |observed: &Observed| population.metric_of(observed, &weights);
        Ok(Seen {
            difference: value(&equal)? - value(&baseline)?,
            discordant: differing.as_ref().map(|idxs| idxs.len() as f64 / cases.len() as f64),
            flips_right: differing.is_none_or(|idxs| {
                let mut listed: Vec<&str> = equals.flips.iter().map(|flip| flip.case.as_str()).collect();
                let mut true_ones: Vec<&str> = idxs.iter().map(|&idx| cases[idx].id.as_str()).collect();
                listed.sort_unstable();
                true_ones.sort_unstable();
                listed == true_ones
            }),
            equal: equals.checks.into_iter().next().expect("one rule that compares gives one check"),
            edge: at_edge.checks.first().map_or(Outcome::Inconclusive, |check| check.outcome),
        })
    }

    fn sum_up(&self, seen: &[Seen]) -> RuleTest {
        let n = seen.len() as f64;
        let share = |of: &dyn Fn(&Seen) -> bool| seen.iter().filter(|seen| of(seen)).count() as f64 / n;
        let mean = |of: &dyn Fn(&Seen) -> Option<f64>| {
            let values: Option<Vec<f64>> = seen.iter().map(of).collect();
            values.map(|values| values.iter().sum::<f64>() / n)
        };
        let is_exact =
            seen.iter().all(|seen| matches!(seen.equal.test, Some(Test::ExactMcnemar | Test::ExactUnconditional)));
        let risk = self.gates.alpha + if is_exact { 0.0 } else { BOOTSTRAP_SLACK };
        let at_most = |promise, observed| Kept {
            promise,
            observed,
            promised: self.gates.alpha,
            kept: !is_more(observed, seen.len(), risk),
        };
        let at_least = |promise, promised: f64, observed: f64, slack: f64| Kept {
            promise,
            observed,
            promised,
            kept: !is_less(observed, seen.len(), promised - slack),
        };
        let equal = |outcome| share(&|seen| seen.equal.outcome == outcome);
        let edge = |outcome| share(&|seen| seen.edge == outcome);
        let (fails, passes) = (equal(Outcome::Fail), equal(Outcome::Pass));
        let discordant = mean(&|seen| seen.discordant);
        let needs_gain = self.needed_gain() > 0.0;
        let mut promises = if needs_gain {
            vec![at_most(Promise::GainPasses, edge(Outcome::Pass)), at_most(Promise::GainFails, edge(Outcome::Fail))]
        } else {
            vec![at_most(Promise::EqualFails, fails), at_most(Promise::DropPasses, edge(Outcome::Pass))]
        };
        if let Some(told) = mean(&|seen| seen.equal.pass_power) {
            promises.push(at_least(Promise::EqualPassesAsTold, told, passes, TOLD_SLACK));
        }
        let paired = self.paired_power(seen, is_exact.then_some(discordant).flatten());
        // That an equal model is found to lack a gain mirrors that it is found to have no such drop.
        promises.extend(paired.map(|paired| match needs_gain {
            true => at_least(Promise::EqualFailsAsPaired, paired, fails, PAIRED_SLACK),
            false => at_least(Promise::EqualPassesAsPaired, paired, passes, PAIRED_SLACK),
        }));
        if discordant.is_some() {
            let right = share(&|seen| seen.flips_right);
            promises.push(Kept { promise: Promise::Flips, observed: right, promised: 1.0, kept: right == 1.0 });
        }
        RuleTest { rule: seen[0].equal.rule.clone(), n_cases: self.cases.len(), discordant, promises }
    }

    /// The chance of an equal model, from how the simulated models truly differ rather than from what a gate saw of it. `None`
    /// where the rule allows no distance, or where the models never differed, which tells nothing.
    fn paired_power(&self, seen: &[Seen], discordant: Option<f64>) -> Option<f64> {
        let (n, alpha, margin) = (seen.len() as f64, self.gates.alpha, self.needed_gain().abs());
        let error = (seen.iter().map(|seen| seen.difference.powi(2)).sum::<f64>() / n).sqrt();
        if margin == 0.0 || (error == 0.0 && discordant.is_none_or(|share| share == 0.0)) {
            return None;
        }
        Some(match discordant.filter(|&share| share > 0.0) {
            Some(discordant) => {
                let n_cases = seen.iter().map(|seen| seen.equal.n_cases).sum::<usize>() as f64 / n;
                let n_cases = n_cases.round() as u64;
                NonInferiority { n_cases, discordant, margin, alpha }.pass_power(0.0)
            }
            None => normal_power(error, margin, alpha, self.gates.power).pass_power,
        })
    }

    fn needed_gain(&self) -> f64 {
        self.rule.needed_gain().unwrap_or(0.0)
    }
}

/// Whether `observed` of `n` is more than a rate of at most `rate` explains.
fn is_more(observed: f64, n: usize, rate: f64) -> bool {
    let count = (observed * n as f64).round() as u64;
    let happening = Binomial::new(rate.clamp(0.0, 1.0), n as u64).expect("clamped to a probability");
    count > 0 && happening.sf(count - 1) < SIGNIFICANT
}

/// Whether `observed` of `n` is less than a rate of at least `rate` explains.
fn is_less(observed: f64, n: usize, rate: f64) -> bool {
    let count = (observed * n as f64).round() as u64;
    let happening = Binomial::new(rate.clamp(0.0, 1.0), n as u64).expect("clamped to a probability");
    happening.cdf(count) < SIGNIFICANT
}

impl Kept {
    /// The promise and its numbers, in words.
    pub fn in_words(&self) -> String {
        let [observed, promised] = [self.observed, self.promised].map(|share| format!("{:.1} %", 100.0 * share));
        match self.promise {
            Promise::EqualFails => format!("equal models fail in {observed}, promised at most {promised}"),
            Promise::DropPasses => format!("a drop of one margin passes in {observed}, promised at most {promised}"),
            Promise::GainPasses => {
                format!("a gain of just the improvement passes in {observed}, promised at most {promised}")
            }
            Promise::GainFails => {
                format!("a gain of just the improvement fails in {observed}, promised at most {promised}")
            }
            Promise::EqualFailsAsPaired => {
                format!("equal models fail in {observed}, a paired test of these cases lets {promised} fail")
            }
            Promise::EqualPassesAsTold => format!("equal models pass in {observed}, told {promised}"),
            Promise::EqualPassesAsPaired => {
                format!("equal models pass in {observed}, a paired test of these cases lets {promised} pass")
            }
            Promise::Flips => format!("the listed flips are the true ones in {observed} of the gates"),
        }
    }
}

/// The metric that a population's rule is about, for the population module.
fn statistic_of(rule: &Rule, observed: &Observed, weights: &[f64]) -> Result<f64, GateError> {
    let metric: Metric = rule.metric;
    let statistic = metric.of(observed, rule.about()).and_then(|statistic| statistic.weighted(weights));
    let named = |source| GateError::Metric { rule: metric.to_string(), source };
    Ok(statistic.map_err(named)?.observed())
}

/// Judges simulated golden sets with the code that judges true ones.
struct Bench<'a> {
    gates: &'a Gates,
    known: &'a Known,
}

impl Bench<'_> {
    fn judge(&self, cases: &[Case], [candidate, baseline]: [&Observed; 2]) -> Result<Decision, GateError> {
        let baseline = Side::Package(baseline);
        decide_again(
            self.gates,
            &Comparison { cases, candidate, baseline, latencies_ms: &[] },
            &BTreeMap::new(),
            &[],
            self.known,
        )
    }
}

#[cfg(test)]
mod tests;
