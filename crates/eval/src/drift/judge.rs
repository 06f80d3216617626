use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::baseline::{Baseline, Signal, SignalKind};
use super::divergence::{jensen_shannon, psi, psi_excess, psi_under_null};
use super::evidence::drift_evidence;
use super::pane::Pane;
use super::two_sample::{g_test, kolmogorov_smirnov};
use crate::benjamini_hochberg;

/// When a difference is worth waking somebody.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriftPolicy {
    /// Days between two false alarms of one member, at least, on average; see [`DriftPolicy::threshold`].
    pub false_alarm_days: f64,
    /// Smallest effect that matters: the population stability index without what chance contributes.
    pub min_effect: f64,
    /// Fewest observations that are judged.
    pub min_rows: u64,
}

impl Default for DriftPolicy {
    /// A false alarm a quarter, effects from 0.1, a hundred observations.
    fn default() -> Self {
        Self { false_alarm_days: 90.0, min_effect: 0.1, min_rows: 100 }
    }
}

impl DriftPolicy {
    /// The evidence that an alarm takes, a logarithm.
    ///
    /// A change may begin with every pane, and evidence is gathered from each beginning on. By [`drift_evidence`] each of these ever
    /// exceeds ln c by chance with probability 1/c; so of the beginnings of a day and the signals together, at most
    /// `starts_a_day * n_signals / c` do on average, whatever else they have in common and however often anybody looks.
    pub fn threshold(&self, starts_a_day: f64, n_signals: usize) -> f64 {
        (self.false_alarm_days * starts_a_day * n_signals.max(1) as f64).max(1.0).ln()
    }
}

/// What was counted from some time on until the next pane's.
#[derive(Clone, Copy, Debug)]
pub struct Suffix<'a> {
    /// When the pane begins, seconds since 1970, UTC.
    pub since_s: i64,
    /// What it counted.
    pub pane: &'a Pane,
}

/// How a signal stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SignalState {
    /// Its name.
    pub signal: String,
    /// What it is about.
    pub kind: SignalKind,
    /// Observations in the window.
    pub n: u64,
    /// Observations in the baseline.
    pub n_baseline: u64,
    /// `ks` of numbers, `g` of classes.
    pub statistic: String,
    /// Its value in the window.
    pub value: f64,
    /// Of the window, looked at once.
    pub p: f64,
    /// The same with all signals of the member taken into account (Benjamini and Hochberg).
    pub q: f64,
    /// Population stability index.
    pub psi: f64,
    /// What it exceeds by chance once in twenty times.
    pub psi_by_chance: f64,
    /// Without what chance contributes on average.
    pub effect: f64,
    /// Jensen-Shannon distance, 0 to 1.
    pub js: f64,
    /// The strongest evidence of all beginnings; nothing before there are enough observations.
    pub evidence: f64,
    /// What an alarm takes.
    pub threshold: f64,
    /// How it stands.
    pub verdict: Verdict,
    /// Where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alarm: Option<Alarm>,
}

/// Whether a signal is as in the baseline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "SignalVerdict")]
pub enum Verdict {
    /// Too few observations to judge.
    Collecting,
    /// Nothing speaks against it, or nothing that matters.
    Same,
    /// It differs.
    Drifted,
}

/// Since when a signal differs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Alarm {
    /// The beginning with the strongest evidence, seconds since 1970, UTC.
    pub since_s: i64,
    /// Observations from there on.
    pub n: u64,
    /// The effect from there on.
    pub effect: f64,
}

/// How every signal of `baseline` stands.
///
/// `panes` are what was counted, newest first; those that begin at `window_since_s` or later are the window that statistics are of, and
/// the evidence is of all. `starts_a_day` is how many panes a day has.
pub fn judge_signals(
    baseline: &Baseline,
    panes: &[Suffix<'_>],
    window_since_s: i64,
    starts_a_day: f64,
    policy: &DriftPolicy,
) -> Vec<SignalState> {
    let threshold = policy.threshold(starts_a_day, baseline.signals.len());
    let mut states: Vec<SignalState> = baseline
        .signals
        .iter()
        .map(|(name, signal)| judge(name, signal, panes, window_since_s, threshold, policy))
        .collect();
    let adjusted = benjamini_hochberg(&states.iter().map(|state| state.p).collect::<Vec<f64>>());
    states.iter_mut().zip(adjusted).for_each(|(state, q)| state.q = q);
    states
}

fn judge(
    name: &str,
    signal: &Signal,
    panes: &[Suffix<'_>],
    window_since_s: i64,
    threshold: f64,
    policy: &DriftPolicy,
) -> SignalState {
    let groups = signal.groups();
    let expected = Signal::grouped(&groups, signal.counts());
    let mut window = vec![0_u64; signal.counts().len()];
    let mut so_far = vec![0_u64; signal.counts().len()];
    let (mut best, mut recent): (Option<(f64, Alarm)>, Option<f64>) = (None, None);
    for Suffix { since_s, pane } in panes {
        let Some(counts) = pane.counts.get(name).filter(|counts| counts.len() == so_far.len()) else { continue };
        add(&mut so_far, counts);
        if *since_s >= window_since_s {
            add(&mut window, counts);
        }
        let live = Signal::grouped(&groups, &so_far);
        let n = live.iter().sum();
        if n < policy.min_rows {
            continue;
        }
        let (evidence, effect) = (drift_evidence(&expected, &live), psi_excess(&expected, &live));
        recent.get_or_insert(effect);
        if best.is_none_or(|(most, _)| evidence > most) {
            best = Some((evidence, Alarm { since_s: *since_s, n, effect }));
        }
    }
    // What was over before the newest observations began is over.
    let goes_on = recent.is_some_and(|effect| effect >= policy.min_effect / 2.0);
    let alarm = best.filter(|(evidence, alarm)| *evidence >= threshold && alarm.effect >= policy.min_effect && goes_on);
    let verdict = match (&best, &alarm) {
        (_, Some(_)) => Verdict::Drifted,
        (Some(_), None) => Verdict::Same,
        (None, None) => Verdict::Collecting,
    };
    let (statistic, value, p) = match signal {
        Signal::Numbers { .. } => {
            let test = kolmogorov_smirnov(signal.counts(), &window);
            ("ks", test.distance, test.p)
        }
        Signal::Classes { .. } => {
            let test = g_test(&expected, &Signal::grouped(&groups, &window));
            ("g", test.statistic, test.p)
        }
    };
    let live = Signal::grouped(&groups, &window);
    let (n, n_baseline) = (live.iter().sum(), expected.iter().sum());
    SignalState {
        signal: name.to_owned(),
        kind: SignalKind::of(name),
        n,
        n_baseline,
        statistic: statistic.to_owned(),
        value,
        p,
        q: p,
        psi: if n > 0 { psi(&expected, &live) } else { 0.0 },
        psi_by_chance: psi_under_null(expected.len(), n_baseline, n, 0.95),
        effect: psi_excess(&expected, &live),
        js: jensen_shannon(&expected, &live),
        evidence: best.map_or(0.0, |(evidence, _)| evidence),
        threshold,
        verdict,
        alarm: alarm.map(|(_, alarm)| alarm),
    }
}

fn add(sum: &mut [u64], counts: &[u64]) {
    sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum = sum.saturating_add(*count));
}
