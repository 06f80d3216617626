use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    About, CostRule, Costs, CustomRule, JudgeMode, JudgeRule, MemoryRule, Metric, Pattern, Schema, ThroughputRule,
    Traffic,
};

/// The rules of `gates.toml`. [`Gates::parse`] checks them: every number is in its range and every rule decides something.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gates {
    /// Risk a rule runs of releasing a candidate that is worse by its margin.
    #[serde(default = "default_alpha")]
    pub alpha: f64,
    /// Chance a rule should have to pass a candidate that equals the baseline, and to find a drop.
    #[serde(default = "default_power")]
    pub power: f64,
    /// How a check counts that is inconclusive.
    #[serde(default)]
    pub inconclusive: Inconclusive,
    /// Bootstrap resamples.
    #[serde(default = "default_resamples")]
    pub resamples: usize,
    /// Seed of the bootstrap.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// What must hold.
    #[serde(default, rename(deserialize = "rule"))]
    pub rules: Vec<Rule>,
    /// Limits on service time: of single inputs, or at the declared traffic where there is one.
    #[serde(default)]
    pub latency: Vec<LatencyRule>,
    /// Slices that are not written in the cases: an expression by the slice's name. Whoever reads the golden set applies them.
    #[serde(default, rename(deserialize = "slice"), skip_serializing_if = "BTreeMap::is_empty")]
    pub slices: BTreeMap<String, String>,
    /// Hosted models that judge texts, by name.
    #[serde(default, rename(deserialize = "judge"), skip_serializing_if = "BTreeMap::is_empty")]
    pub judges: BTreeMap<String, JudgeRule>,
    /// Programs of the user's own that measure answers, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub custom: BTreeMap<String, CustomRule>,
    /// The traffic that what follows is judged at.
    pub traffic: Option<Traffic>,
    /// What a process must answer at most load.
    pub throughput: Option<ThroughputRule>,
    /// What a process may hold.
    pub memory: Option<MemoryRule>,
    /// What serving may cost.
    pub cost: Option<CostRule>,
}

/// How a check counts that the cases cannot decide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Inconclusive {
    /// It leaves the gate inconclusive; where the set is too small, named persons may accept the flips.
    #[default]
    Ask,
    /// As failed.
    Fail,
    /// As passed, so that only what is shown blocks. Of single rules; never of what a judge says that tells nothing.
    Pass,
}

/// One metric on all cases or one slice, with a margin against the baseline, an absolute limit, or both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What is measured.
    pub metric: Metric,
    /// The label it belongs to, for precision, recall, F1, AUROC and AUPRC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// What wrong answers cost, for `cost`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub costs: Option<Costs>,
    /// What a text must hold, for `matches_regex`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regex: Option<Pattern>,
    /// The JSON schema a text must have, for `matches_schema`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Schema>,
    /// Who judges, for `judged`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge: Option<String>,
    /// Which program gives the values, for `custom` and `custom_loss`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom: Option<String>,
    /// The output it is about, for metrics of numbers where a program gives tensors; all of them if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// The slice; `*` for each slice of the golden set in turn; all cases if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slice: Option<String>,
    /// The drop against the baseline that is still acceptable; 0 demands an improvement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// The gain over the baseline that has to be shown, in place of a `margin`; 0 demands any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub improvement: Option<f64>,
    /// The least acceptable value, for metrics that are better when larger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<f64>,
    /// The largest acceptable value, for metrics that are better when smaller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ceiling: Option<f64>,
    /// The share of cases on which two models of this kind differ, where it is known from earlier comparisons; the
    /// observed share otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discordant: Option<f64>,
    /// How its checks count that are inconclusive; as all others if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inconclusive: Option<Inconclusive>,
}

/// A limit on a percentile of the time from asking to answer: of single cases, or of requests at the declared traffic.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatencyRule {
    /// Between 1 and 99.
    pub percentile: u8,
    /// The largest acceptable value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ms: Option<f64>,
    /// The largest acceptable ratio to the baseline's, at the declared traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ratio: Option<f64>,
}

/// `gates.toml` is not usable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum GatesError {
    #[error("{0}")]
    Syntax(#[from] toml::de::Error),
    #[error("{key} = {value} is out of range: expected {expected}")]
    Range { key: String, value: f64, expected: &'static str },
    #[error("there is no [[rule]], so nothing would be gated")]
    NoRules,
    #[error("`inconclusive = \"pass\"` is for single rules: write it in the [[rule]] it is about, not for all")]
    PassAll,
    #[error("rule {number} ({metric}): {problem}")]
    Rule { number: usize, metric: Metric, problem: String },
    #[error("[judge.{name}]: {problem}")]
    Judge { name: String, problem: String },
    #[error("[custom.{name}]: {problem}")]
    Custom { name: String, problem: String },
    #[error("[[latency]] {number}: needs a `max_ms` or a `max_ratio`")]
    NoLatencyLimit { number: usize },
    #[error("{0} needs [traffic], which says what is asked, how often, and of how many threads")]
    NoTraffic(&'static str),
}

fn default_alpha() -> f64 {
    0.05
}

fn default_power() -> f64 {
    0.8
}

fn default_resamples() -> usize {
    10_000
}

fn default_seed() -> u64 {
    20_260_101
}

impl Gates {
    /// Reads the text of a `gates.toml`.
    pub fn parse(text: &str) -> Result<Self, GatesError> {
        let gates: Self = toml::from_str(text)?;
        in_range("alpha", gates.alpha, 0.0001..=0.2, "0.0001 to 0.2")?;
        in_range("power", gates.power, 0.5..=0.999, "0.5 to 0.999")?;
        in_range("resamples", gates.resamples as f64, 10_000.0..=1_000_000.0, "10000 to 1000000")?;
        if gates.rules.is_empty() {
            return Err(GatesError::NoRules);
        }
        if gates.inconclusive == Inconclusive::Pass {
            return Err(GatesError::PassAll);
        }
        gates.rules.iter().enumerate().try_for_each(|(idx, rule)| rule.check(idx + 1))?;
        gates.latency.iter().enumerate().try_for_each(|(idx, rule)| rule.check(idx + 1))?;
        gates.check_judges()?;
        gates.check_custom()?;
        gates.check_traffic()?;
        Ok(gates)
    }

    fn check_judges(&self) -> Result<(), GatesError> {
        self.judges.iter().try_for_each(|(name, judge)| judge.check(name))?;
        for (idx, rule) in self.rules.iter().enumerate() {
            let Some(name) = rule.judge.as_ref().filter(|name| !self.judges.contains_key(*name)) else { continue };
            let problem = format!("there is no [judge.{name}]");
            return Err(GatesError::Rule { number: idx + 1, metric: rule.metric, problem });
        }
        Ok(())
    }

    fn check_custom(&self) -> Result<(), GatesError> {
        self.custom.iter().try_for_each(|(name, custom)| custom.check(name))?;
        for (idx, rule) in self.rules.iter().enumerate() {
            let Some(name) = &rule.custom else { continue };
            let problem = match self.custom.get(name) {
                None => format!("there is no [custom.{name}]"),
                Some(custom) if custom.metric() != rule.metric => {
                    format!("[custom.{name}] says which way is better, so the metric is `{}`", custom.metric().name())
                }
                Some(_) => continue,
            };
            return Err(GatesError::Rule { number: idx + 1, metric: rule.metric, problem });
        }
        Ok(())
    }

    /// Whether some judge compares two answers, so that there must be a baseline that writes.
    pub fn compares_texts(&self) -> bool {
        self.judges.values().any(|judge| judge.mode == JudgeMode::Pairwise)
    }

    fn check_traffic(&self) -> Result<(), GatesError> {
        self.throughput.as_ref().map_or(Ok(()), ThroughputRule::check)?;
        self.memory.as_ref().map_or(Ok(()), MemoryRule::check)?;
        self.cost.as_ref().map_or(Ok(()), CostRule::check)?;
        let of_traffic = [
            ("`max_ratio`", self.compares_latency()),
            ("[throughput]", self.throughput.is_some()),
            ("[memory]", self.memory.is_some()),
            ("[cost]", self.cost.is_some()),
        ];
        match (&self.traffic, of_traffic.into_iter().find(|(_, is_there)| *is_there)) {
            (Some(traffic), _) => traffic.check(),
            (None, Some((what, _))) => Err(GatesError::NoTraffic(what)),
            (None, None) => Ok(()),
        }
    }

    /// Whether some rule compares the latency with the baseline's, so that both are loaded.
    pub fn compares_latency(&self) -> bool {
        self.latency.iter().any(|rule| rule.max_ratio.is_some())
    }

    /// Whether some rule limits a value by itself, which a first version needs.
    pub fn has_absolute_limits(&self) -> bool {
        self.rules.iter().any(|rule| rule.floor.is_some() || rule.ceiling.is_some())
    }
}

impl Rule {
    /// The gain over the baseline that must be shown, below 0 for a drop that is still acceptable; `None` where the rule
    /// compares with nothing.
    pub fn needed_gain(&self) -> Option<f64> {
        self.margin.map(|margin| -margin).or(self.improvement)
    }

    /// What its metric is about, beside the answers.
    pub fn about(&self) -> About<'_> {
        let Self { label, costs, regex, schema, judge, custom, output, .. } = self;
        About {
            label: label.as_deref(),
            costs: costs.as_ref(),
            regex: regex.as_ref(),
            schema: schema.as_ref(),
            judge: judge.as_deref(),
            custom: custom.as_deref(),
            output: output.as_deref(),
        }
    }

    fn check(&self, number: usize) -> Result<(), GatesError> {
        let wrong = |problem: &str| Err(GatesError::Rule { number, metric: self.metric, problem: problem.to_owned() });
        if self.needed_gain().is_none() && self.floor.is_none() && self.ceiling.is_none() {
            return wrong("needs a `margin`, an `improvement`, a `floor` or a `ceiling`");
        }
        if self.margin.is_some() && self.improvement.is_some() {
            return wrong("takes a `margin` (not worse by more) or an `improvement` (better by as much), not both");
        }
        if let Some(parameter) = self.metric.misfit(self.about()) {
            return match self.metric.parameter() {
                Some(needed) if needed == parameter => wrong(&format!("needs {}", needed.with_article())),
                _ => wrong(&format!("takes no `{parameter}`")),
            };
        }
        if self.metric.lower_is_better() && self.floor.is_some() {
            return wrong("is better when smaller, so it takes a `ceiling`, not a `floor`");
        }
        if !self.metric.lower_is_better() && self.ceiling.is_some() {
            return wrong("is better when larger, so it takes a `floor`, not a `ceiling`");
        }
        let largest = self.metric.range().1.min(f64::MAX);
        let limits = [
            ("margin", self.margin),
            ("improvement", self.improvement),
            ("floor", self.floor),
            ("ceiling", self.ceiling),
        ];
        for (key, value) in limits.into_iter().filter_map(|(key, value)| Some((key, value?))) {
            in_range(key, value, 0.0..=largest, "0 or more, and at most 1 where the metric is")?;
        }
        if let Some(problem) = self.vacuous() {
            return wrong(&problem);
        }
        self.discordant.map_or(Ok(()), |share| in_range("discordant", share, 0.0001..=1.0, "0.0001 to 1"))
    }
}

impl Rule {
    /// A limit that no candidate can break, which would let everything through.
    fn vacuous(&self) -> Option<String> {
        let (least, most) = self.metric.range();
        let holds_always = |key: &str, limit: Option<f64>, holds: fn(f64, f64, f64) -> bool| {
            let limit = limit.filter(|limit| holds(*limit, least, most))?;
            Some(format!("has `{key} = {limit}`, which no model can break: the metric goes from {least} to {most}"))
        };
        holds_always("margin", self.margin, |margin, least, most| margin >= most - least)
            .or_else(|| holds_always("floor", self.floor, |floor, least, _| floor <= least))
            .or_else(|| holds_always("ceiling", self.ceiling, |ceiling, _, most| ceiling >= most))
    }
}

impl LatencyRule {
    fn check(&self, number: usize) -> Result<(), GatesError> {
        in_range("percentile", f64::from(self.percentile), 1.0..=99.0, "1 to 99")?;
        if self.max_ms.is_none() && self.max_ratio.is_none() {
            return Err(GatesError::NoLatencyLimit { number });
        }
        let limits = [("max_ms", self.max_ms), ("max_ratio", self.max_ratio)];
        let mut limits = limits.into_iter().filter_map(|(key, value)| Some((key, value?)));
        limits.try_for_each(|(key, value)| in_range(key, value, f64::MIN_POSITIVE..=f64::MAX, "a positive number"))
    }
}

pub(crate) fn in_range(
    key: &str,
    value: f64,
    range: std::ops::RangeInclusive<f64>,
    expected: &'static str,
) -> Result<(), GatesError> {
    if range.contains(&value) { Ok(()) } else { Err(GatesError::Range { key: key.to_owned(), value, expected }) }
}
