use std::collections::BTreeMap;

use highroad_eval::Resamples;
use highroad_eval::drift::{
    Alarm, LabelQuality, Pane, Rate, Signal, SignalKind, SignalState, Suffix, Verdict, judge_signals, mmd, psi_excess,
};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use crate::monitor::book::Book;
use crate::monitor::config::MonitorConfig;
use crate::monitor::finding::{Finding, FindingKind};

/// Permutations of the kernel test.
const N_PERMUTATIONS: usize = 199;
/// Fewest embeddings that it is made of.
const MIN_VECTORS: usize = 30;

/// How a member stands.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "MonitorReport")]
pub struct MemberReport {
    /// Its name.
    pub member: String,
    /// The version that is watched.
    pub version: String,
    /// Its package.
    pub package: String,
    /// Where the watching stands.
    pub state: State,
    /// The same in a sentence; where something is missing, what helps.
    pub message: String,
    /// What it is compared with.
    pub baseline: Option<BaselineFacts>,
    /// When the counting began, RFC 3339 in UTC.
    pub since: String,
    /// Length of the window that statistics are of, in seconds.
    pub window_s: u32,
    /// Requests that were looked at.
    pub n_requests: u64,
    /// Inputs that these had.
    pub n_inputs: u64,
    /// Requests that were not looked at because too many waited.
    pub n_dropped: u64,
    /// Requests that were refused for what they asked, by kind.
    pub violations: BTreeMap<String, u64>,
    /// How each signal stands.
    pub signals: Vec<SignalReport>,
    /// Of the newest embeddings against the baseline's; of other models nothing.
    pub mmd: Option<MmdReport>,
    /// How often it is right, where right answers are known.
    pub quality: Option<Quality>,
    /// What differs now.
    pub findings: Vec<Finding>,
    /// Versions that are tried beside it, or were watched before and are still in memory.
    pub other_versions: Vec<String>,
    /// How the signals went; only of one member.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub series: Vec<Series>,
}

/// Where the watching of a member stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "MonitorState")]
pub enum State {
    /// Its package has no baseline.
    NoBaseline,
    /// Too little was seen to judge.
    Collecting,
    /// Nothing differs.
    Same,
    /// Something does.
    Drifted,
}

/// What a member is compared with.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[allow(missing_docs)]
pub struct BaselineFacts {
    pub digest: String,
    /// `golden` or `data`.
    pub kind: String,
    pub name: String,
    pub n: u64,
    pub created_at: String,
    pub created_by: String,
}

/// How a signal stands, and its distributions.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct SignalReport {
    /// How it stands.
    #[serde(flatten)]
    pub state: SignalState,
    /// Both distributions, bin by bin; only of one member.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bins: Vec<Bin>,
}

/// A bin of a signal: shares of the baseline and of the window.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[allow(missing_docs)]
pub struct Bin {
    pub name: String,
    pub baseline: f64,
    pub live: f64,
}

/// A kernel test of embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
#[allow(missing_docs)]
pub struct MmdReport {
    pub n: usize,
    pub n_baseline: usize,
    pub squared: f64,
    pub p: f64,
}

/// One stretch of time.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "EffectSeries")]
pub struct Series {
    /// When it begins, RFC 3339 in UTC.
    pub since: String,
    /// Requests.
    pub n: u64,
    /// Effect of each signal that had enough of them.
    pub effects: BTreeMap<String, f64>,
}

/// How often a member is right, by the right answers that came later.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Quality {
    /// Answers of the version whose right answer is known.
    pub n: u64,
    /// Share of right ones; where documents are ranked absent.
    pub accuracy: Option<Rate>,
    /// Bounds of the accuracy that are ever wrong with probability at most 5 %.
    pub accuracy_always: Option<[f64; 2]>,
    /// Precision, recall and F1 of every label.
    pub labels: Vec<LabelQuality>,
    /// Mean reciprocal rank, with bounds that may be looked at always.
    pub mrr: Option<Rate>,
    /// Mean nDCG of the first ten, likewise.
    pub ndcg_10: Option<Rate>,
    /// By version, all that are known.
    pub by_version: BTreeMap<String, Rate>,
    /// Of this version, by day of the answer.
    pub by_day: BTreeMap<String, Rate>,
    /// The baseline's.
    pub baseline: Option<f64>,
    /// Logarithm of the evidence that it is right less often than in the baseline.
    pub evidence: f64,
    /// What an alarm takes.
    pub threshold: f64,
    /// Since when it is worse.
    pub alarm: Option<Alarm>,
}

impl MemberReport {
    /// Without what only the report of one member has.
    #[must_use]
    pub fn brief(mut self) -> Self {
        self.series = Vec::new();
        self.signals.iter_mut().for_each(|signal| signal.bins = Vec::new());
        self
    }
}

impl Quality {
    pub(crate) fn finding(&self, report: &MemberReport) -> Option<Finding> {
        let (alarm, accuracy, baseline) = (self.alarm?, self.accuracy?, self.baseline?);
        Some(Finding {
            id: format!("{}/{}/quality", report.member, report.version),
            member: report.member.clone(),
            version: report.version.clone(),
            signal: "quality".to_owned(),
            kind: FindingKind::Quality,
            since: time(alarm.since_s),
            n: alarm.n,
            effect: alarm.effect,
            evidence: self.evidence,
            threshold: self.threshold,
            message: format!(
                "`{}` is right on {:.1} % of {} labelled answers, and was on {:.1} % in its baseline",
                report.version,
                100.0 * accuracy.value,
                accuracy.n,
                100.0 * baseline
            ),
        })
    }
}

impl Book {
    /// How it stands, without quality.
    pub(crate) fn report(&self, config: &MonitorConfig, now_s: i64) -> MemberReport {
        let panes = self.kept.panes.newest_first();
        let window_since_s = now_s - i64::from(config.window_s);
        let starts_a_day = 86_400.0 / f64::from(config.pane_s);
        let states = match &self.baseline {
            Some((_, baseline)) => judge_signals(baseline, &panes, window_since_s, starts_a_day, &config.policy),
            None => Vec::new(),
        };
        let findings: Vec<Finding> = states.iter().filter_map(|state| self.finding(state)).collect();
        let state = match &self.baseline {
            None => State::NoBaseline,
            Some(_) if !findings.is_empty() => State::Drifted,
            Some(_) if states.iter().any(|state| state.verdict == Verdict::Same) => State::Same,
            Some(_) => State::Collecting,
        };
        let window = window(&panes, window_since_s);
        let signals = states.into_iter().map(|state| self.with_bins(state, &window)).collect();
        MemberReport {
            member: self.member.clone(),
            version: self.version.clone(),
            package: self.package.to_string(),
            state,
            message: self.message(state, config, &findings),
            baseline: self.baseline.as_ref().map(|(digest, baseline)| BaselineFacts {
                digest: digest.to_string(),
                kind: baseline.source.kind.clone(),
                name: baseline.source.name.clone(),
                n: baseline.n_rows,
                created_at: baseline.created_at.clone(),
                created_by: baseline.created_by.clone(),
            }),
            since: time(self.kept.since_s),
            window_s: config.window_s,
            n_requests: self.kept.n_requests,
            n_inputs: self.kept.n_inputs,
            n_dropped: self.kept.n_dropped,
            violations: self.kept.violations.clone(),
            signals,
            mmd: self.mmd(),
            quality: None,
            findings,
            other_versions: Vec::new(),
            series: self.series(&panes, config),
        }
    }

    fn message(&self, state: State, config: &MonitorConfig, findings: &[Finding]) -> String {
        match state {
            State::NoBaseline => format!(
                "no baseline of {}: `highroad monitor baseline PACKAGE --data FILE` makes one, and so do `highroad eval` and `highroad gate`",
                self.package.short()
            ),
            State::Collecting => format!("fewer than {} requests were looked at", config.policy.min_rows),
            State::Same => "nothing differs from the baseline".to_owned(),
            State::Drifted => {
                let names: Vec<&str> = findings.iter().map(|finding| finding.signal.as_str()).collect();
                format!("differs from the baseline: {}", names.join(", "))
            }
        }
    }

    fn finding(&self, state: &SignalState) -> Option<Finding> {
        let alarm = state.alarm?;
        let kind = match state.kind {
            SignalKind::Input => FindingKind::InputDrift,
            SignalKind::Prediction => FindingKind::PredictionDrift,
            SignalKind::Confidence => FindingKind::ConfidenceDrift,
        };
        let since = time(alarm.since_s);
        Some(Finding {
            id: format!("{}/{}/{}", self.member, self.version, state.signal),
            member: self.member.clone(),
            version: self.version.clone(),
            signal: state.signal.clone(),
            kind,
            n: alarm.n,
            effect: alarm.effect,
            evidence: state.evidence,
            threshold: state.threshold,
            message: format!(
                "`{}` of `{}` differs from the baseline since {since}: a stability index of {:.2} over {} requests",
                state.signal, self.version, alarm.effect, alarm.n
            ),
            since,
        })
    }

    fn with_bins(&self, state: SignalState, window: &Pane) -> SignalReport {
        let signal = self.baseline.as_ref().and_then(|(_, baseline)| baseline.signals.get(&state.signal));
        let bins = signal.map_or_else(Vec::new, |signal| bins(signal, window.counts.get(&state.signal)));
        SignalReport { state, bins }
    }

    fn mmd(&self) -> Option<MmdReport> {
        let (_, baseline) = self.baseline.as_ref()?;
        let recent: Vec<Vec<f32>> = self.recent.iter().cloned().collect();
        if recent.len() < MIN_VECTORS {
            return None;
        }
        let kept = baseline.kept_vectors();
        let test = mmd(kept, &recent, Resamples { n: N_PERMUTATIONS, seed: 0 })?;
        Some(MmdReport { n: recent.len(), n_baseline: kept.len(), squared: test.squared, p: test.p })
    }

    /// One stretch for each coarse or middle pane, and the fine ones put together to middle ones; oldest first.
    fn series(&self, panes: &[Suffix<'_>], config: &MonitorConfig) -> Vec<Series> {
        let Some((_, baseline)) = &self.baseline else { return Vec::new() };
        let width_s = 60 * i64::from(config.pane_s);
        let mut stretches: BTreeMap<i64, Pane> = BTreeMap::new();
        for Suffix { since_s, pane } in panes {
            stretches.entry(since_s - since_s.rem_euclid(width_s)).or_default().merge(pane);
        }
        let effect = |signal: &Signal, counts: &Vec<u64>| {
            let groups = signal.groups();
            let expected = grouped(&groups, signal.counts());
            let live = grouped(&groups, counts);
            (live.iter().sum::<u64>() >= config.policy.min_rows.min(50)).then(|| psi_excess(&expected, &live))
        };
        let of = |(since_s, pane): (i64, Pane)| {
            let effects = baseline
                .signals
                .iter()
                .filter_map(|(name, signal)| Some((name.clone(), effect(signal, pane.counts.get(name)?)?)));
            Series { since: time(since_s), n: pane.n_rows, effects: effects.collect() }
        };
        stretches.into_iter().map(of).collect()
    }
}

fn grouped(groups: &[usize], counts: &[u64]) -> Vec<u64> {
    let mut sums = vec![0_u64; groups.iter().max().map_or(0, |most| most + 1)];
    groups.iter().zip(counts).for_each(|(&group, &count)| sums[group] = sums[group].saturating_add(count));
    sums
}

fn window(panes: &[Suffix<'_>], since_s: i64) -> Pane {
    let mut window = Pane::default();
    panes.iter().take_while(|suffix| suffix.since_s >= since_s).for_each(|suffix| window.merge(suffix.pane));
    window
}

fn bins(signal: &Signal, live: Option<&Vec<u64>>) -> Vec<Bin> {
    let share = |counts: &[u64], at: usize| {
        let total = counts.iter().sum::<u64>().max(1) as f64;
        counts.get(at).map_or(0.0, |&count| count as f64 / total)
    };
    let live = live.map_or(&[][..], Vec::as_slice);
    let names = signal.bin_names().into_iter().enumerate();
    names.map(|(at, name)| Bin { name, baseline: share(signal.counts(), at), live: share(live, at) }).collect()
}

/// RFC 3339 in UTC.
pub(crate) fn time(seconds: i64) -> String {
    Timestamp::from_second(seconds).unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
