//! What is promised, and what was seen of it.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use highroad_eval::{Burned, Burning, Counts, Objective};
use jiff::{SignedDuration, Timestamp};
use metrics::gauge;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::book::{Finding, Severity};
use super::config::ObjectiveConfig;
use super::lock;
use super::watch::Went;
use crate::telemetry::{OBJECTIVE_BURN, OBJECTIVE_LEFT};

/// What an objective is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
#[schemars(rename = "ObjectiveScope")]
pub enum Scope {
    Member,
    Pipeline,
    Tenant,
    Key,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Member, Self::Pipeline, Self::Tenant, Self::Key];

    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Pipeline => "pipeline",
            Self::Tenant => "tenant",
            Self::Key => "key",
        }
    }
}

/// What of an answer an objective measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Indicator {
    /// Whether there was one.
    Availability,
    /// Whether it came in time.
    Latency,
}

impl Indicator {
    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Availability => "availability",
            Self::Latency => "latency",
        }
    }
}

/// What one indicator of one objective has seen of one member, pipeline, tenant or key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Series {
    objective: String,
    scope: Scope,
    name: String,
    indicator: Indicator,
    burned: Burned,
}

type Id = (String, String, Indicator);

/// The objectives of a process.
pub struct Objectives {
    configs: BTreeMap<String, ObjectiveConfig>,
    series: Mutex<BTreeMap<Id, Series>>,
}

/// Most series: an objective of every key of a large site is one for each.
const MOST_SERIES: usize = 1024;
/// Longest that an alert outlives its cause beside the short span.
const HOLD: Duration = Duration::from_secs(60);

impl Objectives {
    /// What `configs` promise, with what was seen by an earlier process.
    pub fn new(configs: BTreeMap<String, ObjectiveConfig>, kept: Vec<Series>) -> Self {
        let objectives = Self { configs, series: Mutex::default() };
        let mut series = BTreeMap::new();
        for kept in kept.into_iter().take(MOST_SERIES) {
            let config = objectives.configs.get(&kept.objective);
            let Some(config) = config.filter(|config| config.scope == kept.scope && config.is_about(&kept.name)) else {
                continue;
            };
            let Some(objective) = config.objective(kept.indicator) else { continue };
            let id = (kept.objective.clone(), kept.name.clone(), kept.indicator);
            series.insert(id, Series { burned: kept.burned.fitted(objective), ..kept });
        }
        *lock(&objectives.series) = series;
        objectives
    }

    /// Whether this is all that is promised.
    pub(crate) fn promises(&self, configs: &BTreeMap<String, ObjectiveConfig>) -> bool {
        self.configs == *configs
    }

    /// Whether nothing is promised.
    pub fn is_empty(&self) -> bool {
        self.configs.is_empty()
    }

    /// Longest time that an answer of `member` may take, the share that may take longer, and what was seen in the last hours, where that
    /// is promised.
    pub fn latency_of(&self, member: &str) -> Option<(Duration, f64, Counts)> {
        let about = self.configs.iter().filter(|(_, config)| config.scope == Scope::Member && config.is_about(member));
        let limits = about
            .filter_map(|(name, config)| config.latency.as_ref().map(|(limit, objective)| (name, *limit, objective)));
        let (name, limit, objective) = limits.min_by_key(|(_, limit, _)| *limit)?;
        let span_s = objective.rules.first().map_or(objective.window_s, |rule| rule.long_s);
        let all = lock(&self.series);
        let series = all.get(&(name.clone(), member.to_owned(), Indicator::Latency));
        let seen = series.map(|series| series.burned.seen(Timestamp::now().as_millisecond(), span_s));
        Some((limit, objective.allowed(), seen.unwrap_or_default()))
    }

    pub(crate) fn record(&self, scope: Scope, name: &str, went: Went, took: Duration) {
        if went == Went::Aside {
            return;
        }
        let at_ms = Timestamp::now().as_millisecond();
        for (objective, config) in
            self.configs.iter().filter(|(_, config)| config.scope == scope && config.is_about(name))
        {
            if let Some(promised) = &config.availability {
                let id = (objective.clone(), name.to_owned(), Indicator::Availability);
                self.count(id, scope, promised, at_ms, went == Went::Badly);
            }
            if let Some((limit, promised)) = config.latency.as_ref().filter(|_| went == Went::Well) {
                let id = (objective.clone(), name.to_owned(), Indicator::Latency);
                self.count(id, scope, promised, at_ms, took > *limit);
            }
        }
    }

    fn count(&self, id: Id, scope: Scope, promised: &Objective, at_ms: i64, is_bad: bool) {
        let mut all = lock(&self.series);
        if !all.contains_key(&id) && all.len() >= MOST_SERIES {
            return;
        }
        let (objective, name, indicator) = id.clone();
        let new = || Series { objective, scope, name, indicator, burned: Burned::default().fitted(promised) };
        all.entry(id).or_insert_with(new).burned.add(at_ms, Counts { n: 1, n_bad: u64::from(is_bad) });
    }

    /// What was seen, to be kept.
    pub fn counts(&self) -> Vec<Series> {
        lock(&self.series).values().cloned().collect()
    }

    /// Which objectives burn; tells the metrics where each stands.
    pub fn findings(&self, now: Timestamp) -> Vec<Finding> {
        let at_ms = now.as_millisecond();
        self.each(|objective, series| {
            let burning = series.burned.burning(objective, at_ms);
            series.tell_metrics(objective, &burning, at_ms);
            let worst = |is_urgent| {
                let fires = burning.iter().filter(move |one| one.fires && one.rule.is_urgent == is_urgent);
                fires.max_by(|a, b| a.rule.burn.total_cmp(&b.rule.burn)).copied()
            };
            [worst(true), worst(false)]
                .into_iter()
                .flatten()
                .map(|one| series.finding(objective, one, at_ms))
                .collect::<Vec<_>>()
        })
        .into_iter()
        .flatten()
        .collect()
    }

    /// Where each stands.
    pub fn view(&self, now: Timestamp, may_see: impl Fn(Scope, &str) -> bool) -> ObjectivesShown {
        let at_ms = now.as_millisecond();
        let rows =
            self.each(|objective, series| may_see(series.scope, &series.name).then(|| series.view(objective, at_ms)));
        ObjectivesShown { objectives: rows.into_iter().flatten().collect() }
    }

    fn each<T>(&self, mut of: impl FnMut(&Objective, &Series) -> T) -> Vec<T> {
        let all = lock(&self.series);
        let known = all.values().filter_map(|series| {
            let config = self.configs.get(&series.objective)?;
            Some((config.objective(series.indicator)?, series))
        });
        known.map(|(objective, series)| of(objective, series)).collect()
    }
}

impl Series {
    fn finding(&self, objective: &Objective, burning: Burning, at_ms: i64) -> Finding {
        let Burning { rule, long, counts, .. } = burning;
        let (scope, name, indicator) = (self.scope.name(), &self.name, self.indicator.name());
        let bad = match self.indicator {
            Indicator::Availability => "failed",
            Indicator::Latency => "were slow",
        };
        let left = 100.0 * self.burned.left(objective, at_ms);
        let summary = format!(
            "the {indicator} of {scope} `{name}` burns its error budget {long:.1} times as fast as `{}` allows: {} of {} requests \
             {bad} within {}; {left:.0} % of the budget is left",
            self.objective,
            counts.n_bad,
            counts.n,
            words(rule.long_s)
        );
        let severity = if rule.is_urgent { Severity::Critical } else { Severity::Warning };
        let hold = Duration::from_secs(rule.short_s).min(HOLD);
        let finding = Finding::new("objective_burns", severity, summary)
            .label("objective", self.objective.clone())
            .label(scope, name.clone())
            .label("indicator", indicator)
            .value("burn_rate", long)
            .value("requests", counts.n as f64)
            .value("bad_requests", counts.n_bad as f64)
            .value("budget_left", left / 100.0);
        Finding { hold: SignedDuration::try_from(hold).unwrap_or_default(), ..finding }
    }

    fn tell_metrics(&self, objective: &Objective, burning: &[Burning], at_ms: i64) {
        let of = |name: &'static str, window: String| {
            gauge!(
                name, "objective" => self.objective.clone(), "scope" => self.scope.name(), "name" => self.name.clone(),
                "indicator" => self.indicator.name(), "window" => window
            )
        };
        for one in burning {
            of(OBJECTIVE_BURN, words(one.rule.long_s)).set(one.long);
            of(OBJECTIVE_BURN, words(one.rule.short_s)).set(one.short);
        }
        of(OBJECTIVE_LEFT, words(objective.window_s)).set(self.burned.left(objective, at_ms));
    }

    fn view(&self, objective: &Objective, at_ms: i64) -> ObjectiveShown {
        let seen = self.burned.seen(at_ms, objective.window_s);
        let rates = self.burned.burning(objective, at_ms).into_iter().map(|one| BurnShown {
            burn: one.rule.burn,
            long: words(one.rule.long_s),
            short: words(one.rule.short_s),
            long_rate: one.long,
            short_rate: one.short,
            fires: one.fires,
        });
        ObjectiveShown {
            objective: self.objective.clone(),
            scope: self.scope,
            name: self.name.clone(),
            indicator: self.indicator,
            target: objective.target,
            window: words(objective.window_s),
            requests: seen.n,
            bad_requests: seen.n_bad,
            budget_left: self.burned.left(objective, at_ms),
            rules: rates.collect(),
        }
    }
}

/// What is promised, and what is left of it.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Objectives")]
pub struct ObjectivesShown {
    objectives: Vec<ObjectiveShown>,
}

/// One indicator of one objective, of one member, pipeline, tenant or key.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Objective")]
struct ObjectiveShown {
    /// Its name in the file.
    objective: String,
    scope: Scope,
    /// Of the member, pipeline, tenant or key.
    name: String,
    indicator: Indicator,
    /// The share of good requests that is promised.
    target: f64,
    /// As `30d`.
    window: String,
    /// Requests in the window that count.
    requests: u64,
    /// Those of them that were bad.
    bad_requests: u64,
    /// The share of the allowed bad requests that is left; below 0 where more were bad.
    budget_left: f64,
    rules: Vec<BurnShown>,
}

/// How fast the budget burns, by one rule.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "BurnRule")]
struct BurnShown {
    /// Times as fast as allowed from which on it fires, in both windows.
    burn: f64,
    /// The long window, as `1h`.
    long: String,
    /// The short one.
    short: String,
    long_rate: f64,
    short_rate: f64,
    fires: bool,
}

/// `5m`, `3d`: a span in its largest whole unit.
pub(crate) fn words(seconds: u64) -> String {
    let units = [(24 * 3600, "d"), (3600, "h"), (60, "m")];
    let unit = units.iter().find(|(unit, _)| seconds >= *unit && seconds.is_multiple_of(*unit));
    unit.map_or_else(|| format!("{seconds}s"), |(unit, name)| format!("{}{name}", seconds / unit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alerts::AlertsConfig;

    fn configs(text: &str) -> BTreeMap<String, ObjectiveConfig> {
        let mut problems = Vec::new();
        let config = AlertsConfig::parse(&text.parse().unwrap(), std::path::Path::new(""), &mut problems);
        assert_eq!(problems, [""; 0]);
        config.objectives
    }

    fn both() -> BTreeMap<String, ObjectiveConfig> {
        configs(
            "[objectives.a]\nmember = 'm'\navailability = 0.9\nlatency_ms = 100\n\
             [objectives.b]\ntenant = '*'\navailability = 0.5",
        )
    }

    fn seen(objectives: &Objectives) -> Vec<(String, String, u64, u64)> {
        let view = objectives.view(Timestamp::now(), |_, _| true);
        let row = |row: ObjectiveShown| (row.name, row.indicator.name().to_owned(), row.requests, row.bad_requests);
        view.objectives.into_iter().map(row).collect()
    }

    #[test]
    fn a_request_counts_for_whom_it_should() {
        let objectives = Objectives::new(both(), Vec::new());
        let ms = Duration::from_millis;
        for (outcome, took) in
            [("ok", 10), ("ok", 200), ("failed", 300), ("invalid", 1), ("client_left", 1), ("over_budget", 1)]
        {
            objectives.record(Scope::Member, "m", Went::of(outcome), ms(took));
            objectives.record(Scope::Member, "other", Went::of(outcome), ms(took));
        }
        objectives.record(Scope::Tenant, "acme", Went::Badly, ms(1));
        let row = |name: &str, indicator: &str, n, n_bad| (name.to_owned(), indicator.to_owned(), n, n_bad);
        let expected = [row("m", "availability", 3, 1), row("m", "latency", 2, 1), row("acme", "availability", 1, 1)];
        assert_eq!(seen(&objectives), expected);
        // What an objective that is gone counted is forgotten, and the rest goes on.
        let fewer = both().into_iter().filter(|(name, _)| name == "a").collect();
        assert_eq!(seen(&Objectives::new(fewer, objectives.counts())), expected[..2]);
        let (limit, allowed, counts) = objectives.latency_of("m").unwrap();
        assert_eq!((limit, counts), (ms(100), Counts { n: 2, n_bad: 1 }));
        assert!((allowed - 0.01).abs() < 1e-9 && objectives.latency_of("other").is_none());
    }

    #[test]
    fn many_names_are_bounded() {
        let objectives = Objectives::new(both(), Vec::new());
        for n in 0..2 * MOST_SERIES {
            objectives.record(Scope::Tenant, &format!("t{n}"), Went::Well, Duration::ZERO);
        }
        assert_eq!(objectives.counts().len(), MOST_SERIES);
    }

    #[test]
    fn what_burns_is_found_once_for_each_severity() {
        let objectives = Objectives::new(both(), Vec::new());
        for _ in 0..10 {
            objectives.record(Scope::Member, "m", Went::Badly, Duration::ZERO);
        }
        // All of the requests are bad, which is 10 times as many as allowed: above 6 and 1, below 14.4.
        let found = objectives.findings(Timestamp::now());
        let told: Vec<_> = found.iter().map(|one| (one.alert, one.severity, one.labels["member"].as_str())).collect();
        assert_eq!(told, [("objective_burns", Severity::Critical, "m"), ("objective_burns", Severity::Warning, "m")]);
        assert!(
            found[0].summary.contains("10.0 times as fast") && found[0].summary.contains("within 6h"),
            "{}",
            found[0].summary
        );
        assert_eq!([words(300), words(90), words(86_400), words(7200)], ["5m", "90s", "1d", "2h"]);
    }
}
