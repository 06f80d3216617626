//! What a rollout decides on live traffic: from counts of paired requests to a judgement, and from that to the next move.
//!
//! Nothing here knows a server, a clock or a registry: counts of several replicas add up, and the same counts always give
//! the same judgement, so that every replica comes to the same one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{CheckResult, Outcome, Sequential, SequentialError};

/// How a candidate meets traffic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Plan {
    /// It answers a share of the requests a second time, unseen by clients.
    Shadow {
        /// Of all requests, above 0 and up to 100.
        percent: f64,
    },
    /// It answers a growing share of the requests.
    Canary {
        /// Shares, each above 0 and up to 100, growing.
        percents: Vec<f64>,
    },
}

/// What a candidate may do on live traffic, and how sure one has to be that it does more.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RolloutRules {
    /// The chance of ever aborting a candidate that is within all limits is at most this; so is that of passing one that is
    /// beyond one of them.
    pub alpha: f64,
    /// Largest share of requests that it may answer differently.
    pub max_differ: f64,
    /// Largest share of requests that it may fail.
    pub max_errors: f64,
    /// Largest share of requests that may take it longer than its latency budget; `None` where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_slow: Option<f64>,
    /// By how much its share of right answers may be lower, where right answers come to be known; `None` where they do not
    /// count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
}

/// Rules or a plan that cannot be kept.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum RolloutRulesError {
    #[error("{what} is {found}, not above 0 and below 1")]
    Share { what: &'static str, found: f64 },
    #[error("a share of {0} % is not above 0 % and up to 100 %")]
    Percent(f64),
    #[error("a canary needs shares that grow, 1 to 20 of them")]
    Steps,
}

/// What was seen of a candidate, by one replica or by all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RolloutCounts {
    /// Requests that both versions answered.
    pub n_compared: u64,
    /// Those that they answered differently.
    pub n_differ: u64,
    /// Requests that the candidate was asked.
    pub n_asked: u64,
    /// Those that it failed.
    pub n_errors: u64,
    /// Those that took it longer than its budget.
    pub n_slow: u64,
    /// Compared requests whose right answer is known.
    pub n_labelled: u64,
    /// Those that only the stable version got right.
    pub n_regressions: u64,
    /// Those that only the candidate got right.
    pub n_improvements: u64,
}

/// Where a rollout stands, with a check for each rule. The checks have the shape of a gate's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Judgement {
    pub outcome: Outcome,
    pub checks: Vec<CheckResult>,
}

/// How long each share of a canary lasts, the last one before its pass included.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pace {
    /// Requests that the candidate has to be asked at each share.
    pub requests: u64,
    /// Seconds that each share lasts at least.
    pub seconds: f64,
}

/// What a rollout does next.
#[derive(Clone, Debug, PartialEq)]
pub enum Move {
    /// Nothing yet.
    Stay,
    /// The next share.
    Step,
    /// The candidate keeps every rule, at its last share.
    Pass,
    /// It broke the rule of this sentence.
    Abort(String),
}

impl Plan {
    /// Shares of the traffic that take part, in their order.
    pub fn percents(&self) -> &[f64] {
        match self {
            Self::Shadow { percent } => std::slice::from_ref(percent),
            Self::Canary { percents } => percents,
        }
    }

    /// Errors if a share is none, or the shares of a canary do not grow.
    pub fn check(&self) -> Result<(), RolloutRulesError> {
        let percents = self.percents();
        if let Some(&bad) = percents.iter().find(|&&percent| !(percent > 0.0 && percent <= 100.0)) {
            return Err(RolloutRulesError::Percent(bad));
        }
        let grows = percents.windows(2).all(|pair| pair[0] < pair[1]);
        if grows && (1..=20).contains(&percents.len()) { Ok(()) } else { Err(RolloutRulesError::Steps) }
    }
}

impl Default for RolloutRules {
    /// Alpha 0.05, 5 % answered differently, 1 % failed; no latency budget, no right answers.
    fn default() -> Self {
        Self { alpha: 0.05, max_differ: 0.05, max_errors: 0.01, max_slow: None, margin: None }
    }
}

impl RolloutRules {
    /// Errors if a share is none.
    pub fn check(&self) -> Result<(), RolloutRulesError> {
        let shares = [
            ("alpha", Some(self.alpha)),
            ("the share answered differently", Some(self.max_differ)),
            ("the share of errors", Some(self.max_errors)),
            ("the share of slow answers", self.max_slow),
            ("the margin", self.margin),
        ];
        let bad = shares.into_iter().find_map(|(what, share)| Some((what, share?)).filter(|(_, s)| !inside(*s)));
        bad.map_or(Ok(()), |(what, found)| Err(RolloutRulesError::Share { what, found }))
    }

    /// Alpha of each rule, which together have the whole one.
    fn alpha_each(&self) -> f64 {
        let n_rules = 2 + usize::from(self.max_slow.is_some()) + usize::from(self.margin.is_some());
        self.alpha / n_rules as f64
    }

    /// Fewest requests after which a candidate can pass, if it answers all of them as the stable version does.
    pub fn fewest_to_pass(&self) -> u64 {
        let passes = |n: u64| {
            let counts = RolloutCounts { n_compared: n, n_asked: n, n_labelled: n, ..RolloutCounts::default() };
            judge_rollout(self, &counts).is_ok_and(|judgement| judgement.outcome == Outcome::Pass)
        };
        let (mut low, mut high) = (0, 1);
        while !passes(high) && high < 1 << 40 {
            (low, high) = (high, 2 * high);
        }
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if passes(middle) { high = middle } else { low = middle }
        }
        high
    }
}

fn inside(share: f64) -> bool {
    share > 0.0 && share < 1.0
}

impl RolloutCounts {
    /// Takes in what another replica has seen.
    pub fn add(&mut self, other: &Self) {
        let pairs = [
            (&mut self.n_compared, other.n_compared),
            (&mut self.n_differ, other.n_differ),
            (&mut self.n_asked, other.n_asked),
            (&mut self.n_errors, other.n_errors),
            (&mut self.n_slow, other.n_slow),
            (&mut self.n_labelled, other.n_labelled),
            (&mut self.n_regressions, other.n_regressions),
            (&mut self.n_improvements, other.n_improvements),
        ];
        for (sum, more) in pairs {
            *sum = sum.saturating_add(more);
        }
    }
}

/// Judges what was seen so far; asked as often as wanted, see [`Sequential`].
///
/// Fails as soon as one rule is broken for certain, passes once all are kept for certain. Errors if the rules are none.
pub fn judge_rollout(rules: &RolloutRules, counts: &RolloutCounts) -> Result<Judgement, SequentialError> {
    let alpha = rules.alpha_each();
    let mut checks = vec![
        Share { what: "answered differently", n: counts.n_compared, n_bad: counts.n_differ, limit: rules.max_differ }
            .check(alpha)?,
        Share { what: "failed", n: counts.n_asked, n_bad: counts.n_errors, limit: rules.max_errors }.check(alpha)?,
    ];
    if let Some(limit) = rules.max_slow {
        let (n, n_bad) = (counts.n_asked, counts.n_slow);
        checks.push(Share { what: "over the latency budget", n, n_bad, limit }.check(alpha)?);
    }
    if let Some(margin) = rules.margin {
        checks.push(quality(counts, margin, alpha)?);
    }
    let outcome = match () {
        () if checks.iter().any(|check| check.outcome == Outcome::Fail) => Outcome::Fail,
        () if checks.iter().all(|check| check.outcome == Outcome::Pass) => Outcome::Pass,
        () => Outcome::Inconclusive,
    };
    Ok(Judgement { outcome, checks })
}

/// What to do after `judgement`, at share `step_idx` of `plan`, which has seen `n_asked` requests in `seconds`.
///
/// A canary passes once its last share has kept the pace too; a shadow has none and passes as soon as the rules say so.
pub fn next_move(plan: &Plan, pace: &Pace, [step_idx, n_asked]: [u64; 2], seconds: f64, judgement: &Judgement) -> Move {
    if let Some(broken) = judgement.checks.iter().find(|check| check.outcome == Outcome::Fail) {
        return Move::Abort(broken.reason.clone());
    }
    let is_last = step_idx + 1 >= plan.percents().len() as u64;
    let has_lasted = match plan {
        Plan::Shadow { .. } => true,
        Plan::Canary { .. } => n_asked >= pace.requests && seconds >= pace.seconds,
    };
    match judgement.outcome {
        _ if !has_lasted => Move::Stay,
        _ if !is_last => Move::Step,
        Outcome::Pass => Move::Pass,
        _ => Move::Stay,
    }
}

/// A share of requests that has a limit.
struct Share {
    what: &'static str,
    n: u64,
    n_bad: u64,
    limit: f64,
}

impl Share {
    fn check(&self, alpha: f64) -> Result<CheckResult, SequentialError> {
        let n_bad = self.n_bad.min(self.n);
        let mut seen = Sequential::new(alpha, self.limit)?;
        // A bad request counts as the loss of one.
        seen.observe_times(-1.0, n_bad)?;
        seen.observe_times(0.0, self.n - n_bad)?;
        let [low, high] = seen.bounds();
        // Negated, without the sign that a share of none would get.
        let [low, high] = [(0.0 - high).max(0.0), (0.0 - low).min(1.0)];
        let share = n_bad as f64 / self.n.max(1) as f64;
        let outcome = seen.decision();
        let told = match outcome {
            Outcome::Fail => "more than",
            Outcome::Pass => "within",
            Outcome::Inconclusive => "too few requests to tell from",
        };
        let [at_most, found, from, to] = [self.limit, share, low, high].map(percent);
        let rule = format!("at most {at_most} of requests {}", self.what);
        let reason = format!(
            "{n_bad} of {} requests {} ({found}, {from} to {to}), {told} the {at_most} allowed",
            self.n, self.what
        );
        Ok(result(rule, outcome, self.n, share, [low, high], reason))
    }
}

fn quality(counts: &RolloutCounts, margin: f64, alpha: f64) -> Result<CheckResult, SequentialError> {
    let (n, lost, won) = (counts.n_labelled, counts.n_regressions, counts.n_improvements);
    let mut seen = Sequential::new(alpha, margin)?;
    seen.observe_times(-1.0, lost)?;
    seen.observe_times(1.0, won)?;
    seen.observe_times(0.0, n.saturating_sub(lost.saturating_add(won)))?;
    let [low, high] = seen.bounds();
    let outcome = seen.decision();
    let told = match outcome {
        Outcome::Fail => "worse by more than",
        Outcome::Pass => "not worse by",
        Outcome::Inconclusive => "too few right answers to tell from",
    };
    let points = |share: f64| format!("{:+.2} points", 100.0 * share);
    let allowed = format!("{:.2} points", 100.0 * margin);
    let rule = format!("accuracy on live traffic not worse by more than {allowed}");
    let reason = format!(
        "{lost} lost and {won} won of {n} requests whose right answer is known ({}, {} to {}), {told} {allowed}",
        points(seen.mean()),
        points(low),
        points(high)
    );
    Ok(result(rule, outcome, n, seen.mean(), [low, high], reason))
}

fn result(rule: String, outcome: Outcome, n: u64, value: f64, interval: [f64; 2], reason: String) -> CheckResult {
    CheckResult {
        rule,
        outcome,
        n_cases: usize::try_from(n).unwrap_or(usize::MAX),
        candidate: value,
        baseline: None,
        interval: Some(interval),
        p_value: None,
        test: None,
        adjusted_p_value: None,
        minimum_detectable_effect: None,
        pass_power: None,
        cases_needed: None,
        power_note: None,
        waivable: false,
        regressions: None,
        undecided: false,
        improved: false,
        reason,
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn rules() -> RolloutRules {
        RolloutRules { max_differ: 0.05, ..RolloutRules::default() }
    }

    fn seen(n: u64, n_differ: u64, n_errors: u64) -> RolloutCounts {
        RolloutCounts { n_compared: n, n_differ, n_asked: n, n_errors, ..RolloutCounts::default() }
    }

    fn outcome(counts: RolloutCounts) -> Outcome {
        judge_rollout(&rules(), &counts).unwrap().outcome
    }

    #[test]
    fn nothing_is_decided_before_anything_was_seen() {
        let judgement = judge_rollout(&rules(), &RolloutCounts::default()).unwrap();
        assert_eq!(judgement.outcome, Outcome::Inconclusive);
        assert!(judgement.checks.iter().all(|check| check.interval == Some([0.0, 1.0])), "{judgement:?}");
    }

    #[test]
    fn an_equal_candidate_passes_and_a_broken_one_fails_within_a_few_requests() {
        let fewest = rules().fewest_to_pass();
        assert!((400..1200).contains(&fewest), "{fewest}");
        assert_eq!(outcome(seen(fewest, 0, 0)), Outcome::Pass);
        assert_eq!(outcome(seen(fewest - 1, 0, 0)), Outcome::Inconclusive);
        let first = (1..100).find(|&n| outcome(seen(n, 0, n)) == Outcome::Fail).unwrap();
        assert!((5..15).contains(&first), "{first}");
        assert_eq!(outcome(seen(400, 60, 0)), Outcome::Fail);
    }

    #[test]
    fn a_judgement_says_which_rule_was_broken() {
        let judgement = judge_rollout(&rules(), &seen(400, 60, 0)).unwrap();
        let told =
            next_move(&Plan::Shadow { percent: 100.0 }, &Pace { requests: 1, seconds: 0.0 }, [0, 400], 1.0, &judgement);
        let Move::Abort(reason) = told else { panic!("{told:?}") };
        assert!(reason.starts_with("60 of 400 requests answered differently (15.0 %, "), "{reason}");
        assert!(reason.ends_with("more than the 5.0 % allowed"), "{reason}");
    }

    #[test]
    fn right_answers_decide_as_a_gate_does() {
        let rules = RolloutRules { margin: Some(0.02), max_differ: 0.5, ..rules() };
        let labelled = |lost, won| RolloutCounts {
            n_labelled: 2000,
            n_regressions: lost,
            n_improvements: won,
            ..seen(2000, lost + won, 0)
        };
        let outcome = |lost, won| judge_rollout(&rules, &labelled(lost, won)).unwrap().outcome;
        assert_eq!(outcome(160, 10), Outcome::Fail);
        assert_eq!(outcome(10, 12), Outcome::Pass);
        assert_eq!(outcome(60, 25), Outcome::Inconclusive);
    }

    #[test]
    fn a_canary_takes_its_steps_and_passes_once_the_last_has_lasted_too() {
        let plan = Plan::Canary { percents: vec![5.0, 25.0, 100.0] };
        let pace = Pace { requests: 50, seconds: 10.0 };
        let passing = judge_rollout(&rules(), &seen(5000, 0, 0)).unwrap();
        let unsure = judge_rollout(&rules(), &seen(10, 0, 0)).unwrap();
        assert_eq!(next_move(&plan, &pace, [0, 49], 11.0, &passing), Move::Stay);
        assert_eq!(next_move(&plan, &pace, [0, 50], 9.0, &passing), Move::Stay);
        assert_eq!(next_move(&plan, &pace, [1, 50], 10.0, &unsure), Move::Step);
        assert_eq!(next_move(&plan, &pace, [2, 49], 11.0, &passing), Move::Stay);
        assert_eq!(next_move(&plan, &pace, [2, 50], 9.0, &passing), Move::Stay);
        assert_eq!(next_move(&plan, &pace, [2, 50], 10.0, &passing), Move::Pass);
        assert_eq!(next_move(&plan, &pace, [2, 500], 100.0, &unsure), Move::Stay);
        let shadow = Plan::Shadow { percent: 20.0 };
        assert_eq!(next_move(&shadow, &pace, [0, 1], 0.0, &passing), Move::Pass);
    }

    #[test]
    fn replicas_add_up() {
        let mut sum = seen(10, 2, 1);
        sum.add(&seen(5, 1, 0));
        assert_eq!(sum, seen(15, 3, 1));
        sum.add(&seen(u64::MAX, 0, 0));
        assert_eq!(sum.n_compared, u64::MAX);
        assert!(judge_rollout(&rules(), &sum).is_ok());
    }

    #[test]
    fn shares_that_are_none_are_refused() {
        for bad in [f64::NAN, 0.0, 1.0, -0.1] {
            assert!(RolloutRules { max_errors: bad, ..rules() }.check().is_err(), "{bad}");
        }
        assert!(rules().check().is_ok());
        for percents in [vec![], vec![5.0, 5.0], vec![0.0], vec![101.0], vec![f64::NAN]] {
            assert!(Plan::Canary { percents: percents.clone() }.check().is_err(), "{percents:?}");
        }
        assert!(Plan::Shadow { percent: 20.0 }.check().is_ok());
    }

    /// Looked at after every request, candidates exactly at the limit are aborted with probability at most alpha.
    #[test]
    fn false_aborts_stay_below_alpha_however_often_one_looks() {
        let mut n_aborted = 0;
        for seed in 0..200 {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let mut counts = RolloutCounts::default();
            for _ in 0..600 {
                let differs = u64::from(random.random::<f64>() < 0.05);
                counts.add(&seen(1, differs, 0));
                if differs == 1 && outcome(counts) == Outcome::Fail {
                    n_aborted += 1;
                    break;
                }
            }
        }
        assert!(n_aborted <= 10, "{n_aborted} of 200");
    }
}
