//! Objectives on live traffic: how much of an error budget is left, and whether it burns so fast that somebody should look.
//!
//! An objective allows a share of the requests of a window to be bad. The *burn rate* over a span is the share that was bad there, over the
//! share that is allowed: at 1 the budget lasts exactly as long as the window. An alert looks at two spans: a long one, so that it means
//! something, and a short one, so that it ends soon after the cause (Beyer et al., The Site Reliability Workbook, 2018, chapter 5, "Multiwindow,
//! Multi-Burn-Rate Alerts"). Counts are kept in panes of a sixtieth of each span, so that memory does not grow with traffic.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Requests that count, and the bad ones among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// All of them.
    pub n: u64,
    /// Those that were bad.
    pub n_bad: u64,
}

impl Counts {
    /// Share of the bad ones, 0 to 1; 0 of none.
    pub fn bad_share(self) -> f64 {
        self.n_bad as f64 / self.n.max(1) as f64
    }

    fn plus(self, other: Self) -> Self {
        Self { n: self.n.saturating_add(other.n), n_bad: self.n_bad.saturating_add(other.n_bad) }
    }
}

/// When a burning budget is told: over both spans it burns at least `burn` times as fast as it may.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BurnRule {
    /// Burn rate, above 0.
    pub burn: f64,
    /// Seconds.
    pub long_s: u64,
    /// Seconds, shorter than the long span.
    pub short_s: u64,
    /// Whether it is worth waking somebody up.
    pub is_urgent: bool,
}

/// What is promised.
#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    /// Share of the requests that has to be good, above 0 and below 1.
    pub target: f64,
    /// Over how long, seconds.
    pub window_s: u64,
    /// When somebody is told.
    pub rules: Vec<BurnRule>,
    /// Bad requests in the long span without which nobody is told: one error of three requests burns any budget, and says nothing.
    pub min_bad: u64,
}

/// Bad requests without which nobody is told, unless the objective says otherwise.
pub const MIN_BAD: u64 = 5;
/// Windows of at least this take the workbook's spans; shorter windows take shorter spans in proportion.
const USUAL_WINDOW_S: u64 = 28 * 24 * 3600;
const SHORTEST_SPAN_S: u64 = 5;
/// Panes of a span.
const PANES: i64 = 60;

impl Objective {
    /// The workbook's rules: 14.4 times over 1 h and 5 min and 6 times over 6 h and 30 min are urgent, once over 3 d and 6 h is not.
    /// A window shorter than 28 days takes spans as much shorter, the shortest of 5 seconds.
    pub fn usual_rules(window_s: u64) -> Vec<BurnRule> {
        let scaled = |span_s: u64| {
            let share = window_s.min(USUAL_WINDOW_S) as f64 / USUAL_WINDOW_S as f64;
            ((span_s as f64 * share).round() as u64).max(SHORTEST_SPAN_S)
        };
        let rule = |burn, long_s, is_urgent| {
            let short_s = scaled(long_s / 12);
            BurnRule { burn, long_s: scaled(long_s).max(12 * short_s), short_s, is_urgent }
        };
        vec![rule(14.4, 3600, true), rule(6.0, 6 * 3600, true), rule(1.0, 72 * 3600, false)]
    }

    /// Share that may be bad.
    pub fn allowed(&self) -> f64 {
        1.0 - self.target
    }

    fn spans(&self) -> impl Iterator<Item = u64> {
        self.rules.iter().flat_map(|rule| [rule.long_s, rule.short_s]).chain([self.window_s])
    }
}

/// Counts of the last `span_s` seconds, to a sixtieth of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rolling {
    span_s: u64,
    /// By the number of the pane since 1970.
    panes: BTreeMap<i64, Counts>,
}

impl Rolling {
    fn new(span_s: u64) -> Self {
        Self { span_s, panes: BTreeMap::new() }
    }

    fn pane(&self, at_ms: i64) -> i64 {
        at_ms.div_euclid((i64::try_from(self.span_s).unwrap_or(i64::MAX).saturating_mul(1000) / PANES).max(1))
    }

    /// A clock that was put back counts into the newest pane, so that no request is lost and none is counted for longer than the span. What
    /// was counted further ahead than that was counted under a wrong date, would never grow old, and goes.
    fn add(&mut self, at_ms: i64, counts: Counts) {
        drop(self.panes.split_off(&self.furthest(at_ms).saturating_add(1)));
        let newest = self.panes.last_key_value().map_or(i64::MIN, |(pane, _)| *pane);
        let pane = self.pane(at_ms).max(newest);
        let held = self.panes.entry(pane).or_default();
        *held = held.plus(counts);
        while self.panes.first_key_value().is_some_and(|(first, _)| *first <= pane.saturating_sub(PANES)) {
            self.panes.pop_first();
        }
    }

    fn furthest(&self, at_ms: i64) -> i64 {
        self.pane(at_ms).saturating_add(PANES)
    }

    fn sum(&self, at_ms: i64) -> Counts {
        let first = self.pane(at_ms).saturating_sub(PANES - 1);
        self.panes.range(first..=self.furthest(at_ms)).fold(Counts::default(), |sum, (_, counts)| sum.plus(*counts))
    }
}

/// What was seen of the requests that an objective is about: bounded, whatever the traffic.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Burned {
    spans: Vec<Rolling>,
}

/// Where one rule stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Burning {
    /// The rule.
    pub rule: BurnRule,
    /// Burn rate over its long span.
    pub long: f64,
    /// Burn rate over its short span.
    pub short: f64,
    /// What was seen in the long span.
    pub counts: Counts,
    /// Whether somebody should be told.
    pub fires: bool,
}

impl Burned {
    /// What `self` holds for the spans of `objective`, which may have changed since.
    #[must_use]
    pub fn fitted(mut self, objective: &Objective) -> Self {
        let wanted: std::collections::BTreeSet<u64> = objective.spans().collect();
        self.spans.retain(|rolling| wanted.contains(&rolling.span_s));
        for span_s in wanted {
            if !self.spans.iter().any(|rolling| rolling.span_s == span_s) {
                self.spans.push(Rolling::new(span_s));
            }
        }
        self
    }

    /// Takes in requests, at milliseconds since 1970.
    pub fn add(&mut self, at_ms: i64, counts: Counts) {
        self.spans.iter_mut().for_each(|rolling| rolling.add(at_ms, counts));
    }

    /// What was seen in the last `span_s` seconds, for a span of the objective; nothing for others.
    pub fn seen(&self, at_ms: i64, span_s: u64) -> Counts {
        let rolling = self.spans.iter().find(|rolling| rolling.span_s == span_s);
        rolling.map_or_else(Counts::default, |rolling| rolling.sum(at_ms))
    }

    /// Share of the window's budget that is left: 1 untouched, 0 used up, negative where more was bad than allowed.
    pub fn left(&self, objective: &Objective, at_ms: i64) -> f64 {
        1.0 - burn_rate(self.seen(at_ms, objective.window_s), objective.allowed())
    }

    /// Where every rule stands.
    pub fn burning(&self, objective: &Objective, at_ms: i64) -> Vec<Burning> {
        let one = |rule: &BurnRule| {
            let [counts, lately] = [rule.long_s, rule.short_s].map(|span_s| self.seen(at_ms, span_s));
            let [long, short] = [counts, lately].map(|counts| burn_rate(counts, objective.allowed()));
            let fires = long >= rule.burn && short >= rule.burn && counts.n_bad >= objective.min_bad;
            Burning { rule: *rule, long, short, counts, fires }
        };
        objective.rules.iter().map(one).collect()
    }
}

/// How many times as fast as allowed the budget is used; 0 where nothing was asked.
pub fn burn_rate(counts: Counts, allowed: f64) -> f64 {
    counts.bad_share() / allowed
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    fn objective(target: f64) -> Objective {
        let window_s = 28 * 24 * 3600;
        Objective { target, window_s, rules: Objective::usual_rules(window_s), min_bad: MIN_BAD }
    }

    fn counts(n: u64, n_bad: u64) -> Counts {
        Counts { n, n_bad }
    }

    #[test]
    fn a_clock_that_had_the_wrong_date_leaves_no_alarm_behind() {
        let objective = Objective { target: 0.9, window_s: 3600, rules: Vec::new(), min_bad: 1 };
        let mut burned = Burned::default().fitted(&objective);
        let (now, ahead) = (1_795_935_630_000, 1_795_935_630_000 + 400 * 24 * 3_600_000);
        let bad = Counts { n: 10, n_bad: 10 };
        burned.add(ahead, bad);
        assert_eq!(burned.seen(now, 3600), Counts::default());
        burned.add(now, Counts { n: 1, n_bad: 0 });
        assert_eq!(burned.seen(now, 3600), Counts { n: 1, n_bad: 0 });
        // A step back of minutes loses nothing.
        burned.add(now - 120_000, bad);
        assert_eq!(burned.seen(now - 120_000, 3600), Counts { n: 11, n_bad: 10 });
    }

    #[test]
    fn the_usual_rules_are_the_workbooks_and_shrink_with_the_window() {
        let spans = |window_s| {
            Objective::usual_rules(window_s).iter().map(|rule| [rule.long_s, rule.short_s]).collect::<Vec<_>>()
        };
        let usual = vec![[3600, 300], [6 * 3600, 1800], [72 * 3600, 6 * 3600]];
        assert_eq!(spans(28 * 24 * 3600), usual);
        assert_eq!(spans(90 * 24 * 3600), usual);
        // A week is a quarter of 28 days.
        assert_eq!(spans(7 * 24 * 3600), [[900, 75], [5400, 450], [18 * 3600, 5400]]);
        assert_eq!(spans(60), [[60, 5]; 3]);
    }

    #[test]
    fn a_burn_rate_is_what_one_computes_by_hand() {
        // 99.9 % allows 1 bad request of 1,000. 36 of 2,500 are 1.44 %: 14.4 times as many.
        assert!((burn_rate(counts(2500, 36), 0.001) - 14.4).abs() < 1e-9);
        // 2 % of a 30 days' budget go in an hour at 14.4: 14.4 / 720.
        assert!((14.4 * 1.0 / 720.0 - 0.02_f64).abs() < 1e-12);
        assert_eq!(burn_rate(counts(0, 0), 0.001), 0.0);
    }

    #[test]
    fn both_spans_have_to_burn() {
        let objective = objective(0.999);
        let mut burned = Burned::default().fitted(&objective);
        // 20 bad of 1,000 in one minute, an hour's other requests good: 20 of 7,000 are 2.86 times the allowed share.
        let start = 500 * 24 * HOUR_MS;
        burned.add(start, counts(1000, 20));
        let at_once = burned.burning(&objective, start)[0];
        assert!((at_once.long - 20.0).abs() < 1e-9 && at_once.fires);
        burned.add(start + 60_000, counts(6000, 0));
        let diluted = burned.burning(&objective, start + 60_000)[0];
        assert!((diluted.long - 20.0 / 7.0).abs() < 1e-9 && !diluted.fires);
        // Ten minutes later the short span has forgotten it, whatever the long one says.
        let mut burned = Burned::default().fitted(&objective);
        burned.add(start, counts(1000, 100));
        assert!(burned.burning(&objective, start)[0].fires);
        let later = burned.burning(&objective, start + 600_000)[0];
        assert!(later.long >= 14.4 && later.short == 0.0 && !later.fires);
    }

    #[test]
    fn few_requests_raise_no_alarm() {
        let objective = objective(0.999);
        let mut burned = Burned::default().fitted(&objective);
        burned.add(HOUR_MS, counts(3, 1));
        let burning = burned.burning(&objective, HOUR_MS);
        assert!(burning[0].long > 300.0 && burning.iter().all(|burning| !burning.fires));
        burned.add(HOUR_MS, counts(4, 4));
        assert!(burned.burning(&objective, HOUR_MS)[0].fires, "five bad ones are no accident");
    }

    #[test]
    fn a_budget_is_used_up_by_as_many_as_are_allowed() {
        let objective = objective(0.99);
        let mut burned = Burned::default().fitted(&objective);
        burned.add(0, counts(1000, 5));
        assert!((burned.left(&objective, 0) - 0.5).abs() < 1e-9);
        burned.add(0, counts(0, 15));
        assert!((burned.left(&objective, 0) + 1.0).abs() < 1e-9);
        assert_eq!(Burned::default().left(&objective, 0), 1.0);
    }

    #[test]
    fn counts_survive_in_words_and_follow_another_objective() {
        let mut burned = Burned::default().fitted(&objective(0.99));
        burned.add(HOUR_MS, counts(10, 1));
        let text = serde_json::to_string(&burned).unwrap();
        let back: Burned = serde_json::from_str(&text).unwrap();
        assert_eq!(back, burned);
        let other = Objective {
            rules: vec![BurnRule { burn: 2.0, long_s: 3600, short_s: 60, is_urgent: true }],
            ..objective(0.9)
        };
        let fitted = back.fitted(&other);
        assert_eq!(fitted.seen(HOUR_MS, 3600), counts(10, 1));
        assert_eq!(fitted.seen(HOUR_MS, 60), counts(0, 0));
        assert_eq!(fitted.seen(HOUR_MS, 300), counts(0, 0));
    }

    proptest! {
        /// Against the list of all requests: what is summed is everything younger than the span less a pane, and nothing older than it.
        #[test]
        fn panes_sum_what_is_younger_than_the_span(
            times in prop::collection::vec((0i64..4_000_000, any::<bool>()), 1..200), span_s in 1u64..2000, after in 0i64..2_000_000
        ) {
            let mut sorted = times.clone();
            sorted.sort_unstable();
            let mut rolling = Rolling::new(span_s);
            for (at, bad) in &sorted {
                rolling.add(*at, counts(1, u64::from(*bad)));
            }
            let now = sorted.last().unwrap().0 + after;
            let span_ms = span_s as i64 * 1000;
            let pane_ms = (span_ms / PANES).max(1);
            let younger = |age: i64| sorted.iter().filter(|(at, _)| now - at < age).fold(counts(0, 0), |sum, (_, bad)| sum.plus(counts(1, u64::from(*bad))));
            let (sum, least, most) = (rolling.sum(now), younger(pane_ms * (PANES - 1)), younger(pane_ms * PANES));
            prop_assert!(least.n <= sum.n && sum.n <= most.n, "{least:?} {sum:?} {most:?}");
            prop_assert!(least.n_bad <= sum.n_bad && sum.n_bad <= most.n_bad);
            prop_assert!(rolling.panes.len() <= PANES as usize);
        }

        #[test]
        fn a_clock_that_jumps_loses_nothing_and_grows_nothing(times in prop::collection::vec(any::<i64>(), 1..300)) {
            let mut rolling = Rolling::new(60);
            for at in &times {
                rolling.add(*at, counts(1, 0));
            }
            prop_assert!(rolling.panes.len() <= PANES as usize);
            prop_assert!(rolling.sum(*times.last().unwrap()).n >= 1);
        }
    }
}
