use std::collections::BTreeSet;

use highroad_eval::{RolloutCounts, RolloutRules, judge_rollout};
use schemars::JsonSchema;
use serde::Serialize;

use crate::rollout::Latencies;

/// Most points of a course; beyond it every other one is let go.
const MOST: usize = 200;

/// What was seen in the course of a rollout, at moments that grow further apart: the counts alone, which say all that any rule says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Course {
    points: Vec<Point>,
    /// Requests between two points.
    stride: u64,
    /// Requests at which the next point is kept.
    next: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    at_ms: i64,
    counts: RolloutCounts,
}

/// The course of each rule of a rollout: bounds that held at every moment, as the sequential test promises.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "Course")]
pub struct CourseShown {
    /// The rules, in the order of the columns of each point.
    pub rules: Vec<RuleShown>,
    /// Moments, the oldest first. The last is the present.
    pub points: Vec<PointShown>,
    /// What both versions took lately for the same requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latencies>,
}

/// A rule and what it allows.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "CourseRule")]
pub struct RuleShown {
    /// In words.
    pub rule: String,
    /// A share of requests may be at most this; a difference of accuracy at least this.
    pub limit: f64,
    /// Whether the rule is about a difference of accuracy, and not a share of requests.
    pub is_difference: bool,
}

/// What the rules said at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "CoursePoint")]
pub struct PointShown {
    /// Milliseconds since 1970, UTC.
    pub at_ms: i64,
    /// Requests that each rule had seen.
    pub n: Vec<usize>,
    /// What each rule is about, as seen.
    pub value: Vec<f64>,
    /// Lower bound of what it really is.
    pub low: Vec<f64>,
    /// Upper bound.
    pub high: Vec<f64>,
}

impl Course {
    /// Keeps `counts` if it is time for a point.
    pub(crate) fn note(&mut self, at_ms: i64, counts: RolloutCounts) {
        let n = n_events(&counts);
        if n < self.next {
            return;
        }
        self.points.push(Point { at_ms, counts });
        if self.points.len() > MOST {
            let mut idx = 0;
            self.points.retain(|_| {
                idx += 1;
                idx % 2 == 1
            });
            self.stride *= 2;
        }
        self.stride = self.stride.max(1);
        self.next = n.saturating_add(self.stride);
    }

    /// What the rules said at each point and say now. Takes some tens of milliseconds.
    pub(crate) fn shown(&self, rules: &RolloutRules, now: (i64, RolloutCounts)) -> CourseShown {
        let last = Point { at_ms: now.0, counts: now.1 };
        let mut shown = CourseShown::default();
        let mut seen = BTreeSet::new();
        for point in self.points.iter().filter(|point| n_events(&point.counts) < n_events(&last.counts)).chain([&last])
        {
            if !seen.insert(n_events(&point.counts)) {
                continue;
            }
            let Ok(judgement) = judge_rollout(rules, &point.counts) else { continue };
            if shown.rules.is_empty() {
                let limits = limits(rules);
                shown.rules = judgement
                    .checks
                    .iter()
                    .zip(limits)
                    .map(|(check, (limit, is_difference))| RuleShown { rule: check.rule.clone(), limit, is_difference })
                    .collect();
            }
            let bounds = || judgement.checks.iter().map(|check| check.interval.unwrap_or([0.0, 1.0]));
            shown.points.push(PointShown {
                at_ms: point.at_ms,
                n: judgement.checks.iter().map(|check| check.n_cases).collect(),
                value: judgement.checks.iter().map(|check| check.candidate).collect(),
                low: bounds().map(|[low, _]| low).collect(),
                high: bounds().map(|[_, high]| high).collect(),
            });
        }
        shown
    }
}

/// What each rule allows, in the order of a judgement's checks, and whether it is about a difference.
fn limits(rules: &RolloutRules) -> Vec<(f64, bool)> {
    let slow = rules.max_slow.map(|share| (share, false));
    let margin = rules.margin.map(|margin| (-margin, true));
    [Some((rules.max_differ, false)), Some((rules.max_errors, false)), slow, margin].into_iter().flatten().collect()
}

fn n_events(counts: &RolloutCounts) -> u64 {
    counts.n_asked.saturating_add(counts.n_compared).saturating_add(counts.n_labelled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(n: u64) -> RolloutCounts {
        RolloutCounts { n_compared: n, n_asked: n, n_differ: n / 50, ..RolloutCounts::default() }
    }

    #[test]
    fn a_course_stays_short_and_its_bounds_close_in_on_what_was_seen() {
        let rules = RolloutRules { margin: Some(0.02), max_slow: Some(0.1), ..RolloutRules::default() };
        let mut course = Course::default();
        (1..=20_000).for_each(|n| course.note(i64::try_from(n).unwrap_or(0), seen(n)));
        assert!((MOST / 2..=MOST).contains(&course.points.len()), "{}", course.points.len());
        let shown = course.shown(&rules, (20_001, seen(20_001)));
        let limits: Vec<_> = shown.rules.iter().map(|rule| (rule.limit, rule.is_difference)).collect();
        assert_eq!(limits, [(0.05, false), (0.01, false), (0.1, false), (-0.02, true)]);
        let width = |point: &PointShown| point.high[0] - point.low[0];
        let (first, last) = (&shown.points[1], shown.points.last().expect("there is one"));
        assert!(width(last) < 0.02 && width(first) > width(last));
        assert_eq!((last.at_ms, last.n[0]), (20_001, 20_001));
        assert!(shown.points.windows(2).all(|pair| pair[0].at_ms < pair[1].at_ms));
    }

    #[test]
    fn a_rollout_that_has_seen_nothing_has_one_point() {
        let shown = Course::default().shown(&RolloutRules::default(), (7, RolloutCounts::default()));
        assert_eq!((shown.points.len(), shown.points[0].high.as_slice()), (1, [1.0, 1.0].as_slice()));
    }
}
