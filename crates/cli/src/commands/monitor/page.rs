//! What a server tells of its members, as people read it.

use highroad_assess::report::{
    Chart, Fact, MonitorReport, MonitoredMember, SignalRow, distribution_chart, effect_chart, one_line,
};
use highroad_eval::Outcome;
use serde::Deserialize;
use serde_json::Value;

/// Most signals that charts are drawn of.
const MOST_CHARTED: usize = 16;
/// Longest name and sentence that is shown: a server may say anything.
const MOST_CHARS: usize = 300;

/// What is read of a member; the rest is for programs.
#[derive(Deserialize)]
struct Member {
    member: String,
    version: String,
    message: String,
    since: String,
    n_requests: u64,
    n_dropped: u64,
    baseline: Option<Baseline>,
    #[serde(default)]
    violations: std::collections::BTreeMap<String, u64>,
    #[serde(default)]
    signals: Vec<Signal>,
    mmd: Option<Mmd>,
    quality: Option<Quality>,
    #[serde(default)]
    findings: Vec<Finding>,
    #[serde(default)]
    series: Vec<Series>,
}

#[derive(Deserialize)]
struct Baseline {
    digest: String,
    kind: String,
    name: String,
    n: u64,
    created_at: String,
}

#[derive(Deserialize)]
struct Signal {
    signal: String,
    n: u64,
    statistic: String,
    value: f64,
    p: f64,
    effect: f64,
    evidence: f64,
    threshold: f64,
    verdict: String,
    #[serde(default)]
    bins: Vec<Bin>,
}

#[derive(Deserialize)]
struct Bin {
    name: String,
    baseline: f64,
    live: f64,
}

#[derive(Deserialize)]
struct Mmd {
    n: u64,
    squared: f64,
    p: f64,
}

#[derive(Deserialize)]
struct Quality {
    n: u64,
    accuracy: Option<Rate>,
    accuracy_always: Option<[f64; 2]>,
    #[serde(default)]
    labels: Vec<Label>,
    mrr: Option<Rate>,
    baseline: Option<f64>,
}

#[derive(Deserialize)]
struct Label {
    label: String,
    precision: Rate,
    recall: Rate,
    f1: Rate,
}

#[derive(Deserialize)]
struct Rate {
    value: f64,
    interval: [f64; 2],
}

#[derive(Deserialize)]
struct Finding {
    message: String,
}

#[derive(Deserialize)]
struct Series {
    since: String,
    #[serde(default)]
    effects: std::collections::BTreeMap<String, f64>,
}

/// The report on `members`, as `GET /v1/highroad/monitor` tells them. Errors if that is not what they are.
pub fn report(members: &[Value]) -> anyhow::Result<MonitorReport> {
    let members = members.iter().map(|member| Ok(Member::deserialize(member)?));
    let members = members.collect::<anyhow::Result<Vec<Member>>>()?;
    let n_findings: usize = members.iter().map(|member| member.findings.len()).sum();
    let judged = members.iter().flat_map(|member| &member.signals).any(|signal| signal.verdict != "collecting");
    let (outcome, headline) = match (n_findings, judged) {
        (0, false) => (Outcome::Inconclusive, "nothing can be judged yet".to_owned()),
        (0, true) => (Outcome::Pass, "nothing differs from its baseline".to_owned()),
        (1, _) => (Outcome::Fail, "1 signal differs from its baseline".to_owned()),
        (n, _) => (Outcome::Fail, format!("{n} signals differ from their baseline")),
    };
    let members = members.iter().map(of_member).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(MonitorReport { outcome, headline, members })
}

fn of_member(member: &Member) -> anyhow::Result<MonitoredMember> {
    Ok(MonitoredMember {
        name: one_line(&format!("{} ({})", member.member, member.version), MOST_CHARS),
        message: one_line(&member.message, MOST_CHARS),
        findings: member.findings.iter().map(|finding| one_line(&finding.message, MOST_CHARS)).collect(),
        signals: member.signals.iter().map(row).collect(),
        facts: facts(member),
        charts: charts(member)?,
    })
}

fn row(signal: &Signal) -> SignalRow {
    let outcome = match signal.verdict.as_str() {
        "drifted" => Outcome::Fail,
        "same" => Outcome::Pass,
        _ => Outcome::Inconclusive,
    };
    SignalRow {
        outcome,
        signal: one_line(&signal.signal, MOST_CHARS),
        n: signal.n.to_string(),
        statistic: format!("{} {:.3}", one_line(&signal.statistic, 8), signal.value),
        p: format!("{:.2e}", signal.p),
        effect: format!("{:.3}", signal.effect),
        evidence: format!("{:.1} of {:.1}", signal.evidence, signal.threshold),
    }
}

fn facts(member: &Member) -> Vec<Fact> {
    let mut facts = vec![
        Fact { name: "since", value: one_line(&member.since, MOST_CHARS) },
        Fact {
            name: "requests",
            value: format!("{} looked at, {} not, as too many waited", member.n_requests, member.n_dropped),
        },
    ];
    facts.extend(member.baseline.as_ref().map(|baseline| {
        let Baseline { digest, kind, name, n, created_at } = baseline;
        Fact {
            name: "baseline",
            value: one_line(&format!("{digest}: {kind} {name}, {n} inputs, {created_at}"), MOST_CHARS),
        }
    }));
    if !member.violations.is_empty() {
        let told: Vec<String> = member.violations.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
        facts.push(Fact { name: "refused", value: one_line(&told.join(", "), MOST_CHARS) });
    }
    facts.extend(member.mmd.as_ref().map(|mmd| Fact {
        name: "mmd",
        value: format!("{:.4} over the newest {} embeddings, p {:.3}", mmd.squared, mmd.n, mmd.p),
    }));
    facts.extend(member.quality.iter().flat_map(quality_facts));
    facts
}

fn quality_facts(quality: &Quality) -> Vec<Fact> {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let between = |[low, high]: [f64; 2]| format!("{} to {}", percent(low), percent(high));
    let mut facts = vec![Fact { name: "labels", value: format!("{} answers", quality.n) }];
    facts.extend(quality.accuracy.as_ref().map(|accuracy| {
        let always =
            quality.accuracy_always.map_or(String::new(), |bounds| format!("; looked at always {}", between(bounds)));
        let baseline = quality.baseline.map_or(String::new(), |share| format!("; in the baseline {}", percent(share)));
        let value = format!("{} ({}{always}{baseline})", percent(accuracy.value), between(accuracy.interval));
        Fact { name: "accuracy", value }
    }));
    facts.extend(quality.mrr.as_ref().map(|mrr| {
        let [low, high] = mrr.interval;
        Fact { name: "mrr", value: format!("{:.3} ({low:.3} to {high:.3})", mrr.value) }
    }));
    facts.extend(quality.labels.iter().take(MOST_CHARTED).map(|label| {
        let of = |rate: &Rate| format!("{} ({})", percent(rate.value), between(rate.interval));
        let Label { label, precision, recall, f1 } = label;
        let value = format!("{label}: precision {}, recall {}, F1 {}", of(precision), of(recall), of(f1));
        Fact { name: "label", value: one_line(&value, MOST_CHARS) }
    }));
    facts
}

/// Of what differs first.
fn charts(member: &Member) -> anyhow::Result<Vec<Chart>> {
    let mut signals: Vec<&Signal> = member.signals.iter().filter(|signal| !signal.bins.is_empty()).collect();
    signals.sort_by_key(|signal| std::cmp::Reverse(signal.verdict == "drifted"));
    let mut charts = Vec::new();
    for signal in signals.into_iter().take(MOST_CHARTED) {
        let bins: Vec<(String, f64, f64)> =
            signal.bins.iter().map(|bin| (one_line(&bin.name, MOST_CHARS), bin.baseline, bin.live)).collect();
        charts.push(distribution_chart(&one_line(&signal.signal, MOST_CHARS), &bins)?);
        let points: Vec<(String, f64)> = member
            .series
            .iter()
            .filter_map(|stretch| Some((one_line(&stretch.since, MOST_CHARS), *stretch.effects.get(&signal.signal)?)))
            .collect();
        if points.len() > 1 {
            charts.push(effect_chart(&one_line(&signal.signal, MOST_CHARS), &points, MATTERS)?);
        }
    }
    Ok(charts)
}

/// The line that charts show: the default of `min_effect`.
const MATTERS: f64 = 0.1;
