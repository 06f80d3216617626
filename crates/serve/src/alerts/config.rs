//! `[objectives]` and `[webhooks]` of `portfolio.toml`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use highroad_eval::{BurnRule, MIN_BAD, Objective};
use serde::Deserialize;

use super::EVENTS;
use super::objectives::{Indicator, Scope};
use super::webhook::Secret;

/// What is promised, and who is told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AlertsConfig {
    /// Objectives by name.
    pub objectives: BTreeMap<String, ObjectiveConfig>,
    /// Webhooks by name.
    pub webhooks: BTreeMap<String, WebhookConfig>,
}

/// What is promised of one member, pipeline, tenant or key, or of each.
#[derive(Clone, Debug, PartialEq)]
pub struct ObjectiveConfig {
    /// What it is about.
    pub scope: Scope,
    /// Whose; `*` for each.
    pub name: String,
    /// Share of the requests that are answered.
    pub availability: Option<Objective>,
    /// Share of the answers that come in time, and the time.
    pub latency: Option<(Duration, Objective)>,
}

/// Who is told, and how.
#[derive(Clone, PartialEq)]
pub struct WebhookConfig {
    /// Where to; it may hold a secret, so nothing shows it.
    pub(super) url: reqwest::Url,
    pub(super) secret: Option<Secret>,
    /// The shape of the body.
    pub format: Format,
    /// Which events: their names, or `alert.*`.
    pub events: Vec<String>,
}

/// The shape of a webhook's body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Standard Webhooks: `type`, `timestamp`, `data`, and a `text` beside them.
    #[default]
    Standard,
    /// `text`, as Slack, Mattermost and their like take it.
    Slack,
    /// As Prometheus' Alertmanager tells its receivers; alerts only.
    Alertmanager,
}

impl fmt::Debug for WebhookConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookConfig")
            .field("format", &self.format)
            .field("events", &self.events)
            .finish_non_exhaustive()
    }
}

impl WebhookConfig {
    /// Whether it is told events of this kind.
    pub fn wants(&self, kind: &str) -> bool {
        let fits =
            |wanted: &String| *wanted == kind || wanted.strip_suffix('*').is_some_and(|start| kind.starts_with(start));
        let takes = self.format != Format::Alertmanager || kind.starts_with("alert.");
        takes && self.events.iter().any(fits)
    }
}

impl ObjectiveConfig {
    /// Whether it is about `name`.
    pub fn is_about(&self, name: &str) -> bool {
        self.name == "*" || self.name == name
    }

    /// What is promised of one indicator.
    pub fn objective(&self, indicator: Indicator) -> Option<&Objective> {
        match indicator {
            Indicator::Availability => self.availability.as_ref(),
            Indicator::Latency => self.latency.as_ref().map(|(_, objective)| objective),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ObjectiveTable {
    member: Option<String>,
    pipeline: Option<String>,
    tenant: Option<String>,
    key: Option<String>,
    availability: Option<f64>,
    latency_ms: Option<f64>,
    quantile: Option<f64>,
    window: Option<String>,
    min_bad: Option<u64>,
    alerts: Option<Vec<RuleTable>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleTable {
    burn: f64,
    long: String,
    short: String,
    severity: RuleSeverity,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RuleSeverity {
    Critical,
    Warning,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WebhookTable {
    url: Option<String>,
    url_env: Option<String>,
    url_file: Option<PathBuf>,
    secret_env: Option<String>,
    secret_file: Option<PathBuf>,
    #[serde(default)]
    format: Format,
    events: Option<Vec<String>>,
}

const MOST_RULES: usize = 8;
const MOST_OBJECTIVES: usize = 256;
const MOST_WEBHOOKS: usize = 16;
const USUAL_WINDOW: &str = "28d";
const SHORTEST_WINDOW_S: u64 = 60;
const LONGEST_WINDOW_S: u64 = 90 * 24 * 3600;

impl AlertsConfig {
    /// Reads both tables of a portfolio; what is wrong is added to `problems`. Paths are relative to `base`.
    pub fn parse(portfolio: &toml::Table, base: &Path, problems: &mut Vec<String>) -> Self {
        let objectives =
            tables(portfolio, "objectives", MOST_OBJECTIVES, problems, |table: ObjectiveTable| table.config());
        let webhooks = tables(portfolio, "webhooks", MOST_WEBHOOKS, problems, |table: WebhookTable| table.config(base));
        Self { objectives, webhooks }
    }

    /// Whether tenants or keys are promised anything, which only keys make known.
    pub fn needs_keys(&self) -> bool {
        self.objectives.values().any(|objective| matches!(objective.scope, Scope::Tenant | Scope::Key))
    }

    /// Adds to `problems` what is promised of members and pipelines that there are none of.
    pub fn check(
        &self,
        has_member: impl Fn(&str) -> bool,
        has_pipeline: impl Fn(&str) -> bool,
        problems: &mut Vec<String>,
    ) {
        for (name, objective) in &self.objectives {
            let (about, scope) = (&objective.name, objective.scope.name());
            let is_there = match objective.scope {
                Scope::Member => has_member(about),
                Scope::Pipeline => has_pipeline(about),
                Scope::Tenant | Scope::Key => true,
            };
            if !is_there && about != "*" {
                problems.push(format!("[objectives.{name}] there is no {scope} `{about}`"));
            }
        }
    }
}

fn tables<T: serde::de::DeserializeOwned, C>(
    portfolio: &toml::Table,
    key: &str,
    most: usize,
    problems: &mut Vec<String>,
    config: impl Fn(T) -> Result<C, String>,
) -> BTreeMap<String, C> {
    let mut configs = BTreeMap::new();
    let tables = match portfolio.get(key) {
        None => return configs,
        Some(toml::Value::Table(tables)) if tables.len() <= most => tables,
        Some(toml::Value::Table(_)) => {
            problems.push(format!("`{key}` has more than {most} entries"));
            return configs;
        }
        Some(_) => {
            problems.push(format!("`{key}` must be a table: [{key}.NAME]"));
            return configs;
        }
    };
    for (name, value) in tables {
        if !crate::config::is_member_name(name) {
            problems.push(format!("[{key}] name `{name}`: only letters, digits, `.`, `_` and `-`, at most 64"));
            continue;
        }
        let read = value.clone().try_into().map_err(|error| error.message().to_owned());
        match read.and_then(&config) {
            Ok(config) => drop(configs.insert(name.clone(), config)),
            Err(problem) => problems.push(format!("[{key}.{name}] {problem}")),
        }
    }
    configs
}

impl ObjectiveTable {
    fn config(self) -> Result<ObjectiveConfig, String> {
        let Self { member, pipeline, tenant, key, availability, latency_ms, quantile, window, min_bad, alerts } = self;
        let about = [(Scope::Member, member), (Scope::Pipeline, pipeline), (Scope::Tenant, tenant), (Scope::Key, key)];
        let mut about = about.into_iter().filter_map(|(scope, name)| Some((scope, name?)));
        let (Some((scope, name)), None) = (about.next(), about.next()) else {
            return Err("it is about one of `member`, `pipeline`, `tenant` and `key`".to_owned());
        };
        let window_s = seconds("window", window.as_deref().unwrap_or(USUAL_WINDOW))?;
        if !(SHORTEST_WINDOW_S..=LONGEST_WINDOW_S).contains(&window_s) {
            return Err("`window` must be from 1m to 90d".to_owned());
        }
        let rules = rules(alerts, window_s)?;
        let promised = |what: &str, target: f64| {
            if !(target > 0.0 && target < 1.0) {
                return Err(format!("`{what}` is a share between 0 and 1, as 0.99, not {target}"));
            }
            Ok(Objective { target, window_s, rules: rules.clone(), min_bad: min_bad.unwrap_or(MIN_BAD).max(1) })
        };
        let availability = availability.map(|target| promised("availability", target)).transpose()?;
        let latency = match (latency_ms, quantile) {
            (None, None) => None,
            (None, Some(_)) => return Err("`quantile` goes with `latency_ms`".to_owned()),
            (Some(ms), quantile) => {
                let limit = Duration::try_from_secs_f64(ms / 1e3).ok().filter(|limit| !limit.is_zero());
                let limit = limit.ok_or_else(|| format!("`latency_ms` must be above 0, not {ms}"))?;
                Some((limit, promised("quantile", quantile.unwrap_or(0.99))?))
            }
        };
        if availability.is_none() && latency.is_none() {
            return Err("it promises nothing: give `availability`, `latency_ms` or both".to_owned());
        }
        Ok(ObjectiveConfig { scope, name, availability, latency })
    }
}

fn rules(tables: Option<Vec<RuleTable>>, window_s: u64) -> Result<Vec<BurnRule>, String> {
    let Some(tables) = tables else { return Ok(Objective::usual_rules(window_s)) };
    if tables.len() > MOST_RULES {
        return Err(format!("`alerts` has more than {MOST_RULES} rules"));
    }
    let rule = |table: RuleTable| {
        let (long_s, short_s) = (seconds("long", &table.long)?, seconds("short", &table.short)?);
        if !(table.burn.is_finite() && table.burn > 0.0) {
            return Err(format!("`burn` must be above 0, not {}", table.burn));
        }
        if short_s == 0 || short_s > long_s || long_s > window_s {
            return Err(format!(
                "`short` ({}) is at most `long` ({}), and that at most the window",
                table.short, table.long
            ));
        }
        Ok(BurnRule { burn: table.burn, long_s, short_s, is_urgent: table.severity == RuleSeverity::Critical })
    };
    tables.into_iter().map(rule).collect()
}

/// Seconds of `90s`, `5m`, `1h`, `28d`.
fn seconds(key: &str, text: &str) -> Result<u64, String> {
    let wrong = || format!("`{key}` must be a time such as \"30s\", \"5m\", \"1h\" or \"28d\", not \"{text}\"");
    let unit_s = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 24 * 3600,
        _ => return Err(wrong()),
    };
    let n: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    n.checked_mul(unit_s).ok_or_else(wrong)
}

impl WebhookTable {
    fn config(self, base: &Path) -> Result<WebhookConfig, String> {
        let url = match (self.url, self.url_env, self.url_file) {
            (Some(url), None, None) => url,
            (None, env, file) if env.is_some() != file.is_some() => told("url", env, file, base)?,
            _ => return Err("it needs one of `url`, `url_env` and `url_file`".to_owned()),
        };
        let url = reqwest::Url::parse(url.trim()).map_err(|error| format!("its address is no URL: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err("its address must begin with `https://` or `http://`".to_owned());
        }
        let secret = match (self.secret_env, self.secret_file) {
            (None, None) => None,
            (Some(_), Some(_)) => return Err("it needs one of `secret_env` and `secret_file`".to_owned()),
            (env, file) => Some(Secret::parse(&told("secret", env, file, base)?)?),
        };
        let events = self.events.unwrap_or_else(|| vec!["*".to_owned()]);
        let known = |wanted: &String| {
            EVENTS
                .iter()
                .any(|kind| kind == wanted || wanted.strip_suffix('*').is_some_and(|start| kind.starts_with(start)))
        };
        if let Some(unknown) = events.iter().find(|wanted| !known(wanted)) {
            return Err(format!("there is no event `{unknown}`; there are {}", EVENTS.join(", ")));
        }
        Ok(WebhookConfig { url, secret, format: self.format, events })
    }
}

/// What an environment variable or a file holds; its value is in no message.
fn told(what: &str, env: Option<String>, file: Option<PathBuf>, base: &Path) -> Result<String, String> {
    let text = match (env, file) {
        (Some(env), _) => std::env::var(&env).map_err(|_| format!("`{what}_env`: `{env}` is not set"))?,
        (None, Some(file)) => {
            let path = base.join(file);
            std::fs::read_to_string(&path)
                .map_err(|error| format!("`{what}_file`: cannot read `{}`: {error}", path.display()))?
        }
        (None, None) => String::new(),
    };
    let text = text.trim().to_owned();
    if text.is_empty() { Err(format!("its {what} is empty")) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> (AlertsConfig, Vec<String>) {
        let mut problems = Vec::new();
        let config = AlertsConfig::parse(&text.parse().unwrap(), Path::new("/base"), &mut problems);
        (config, problems)
    }

    #[test]
    fn an_objective_says_what_is_promised_of_whom() {
        let (config, problems) = parse(
            "[objectives.fast]\nmember = 'moderation'\nlatency_ms = 50\navailability = 0.999\n\
             [objectives.all]\ntenant = '*'\navailability = 0.9\nwindow = '1h'\nmin_bad = 2\n\
             alerts = [{ burn = 2, long = '1m', short = '5s', severity = 'warning' }]",
        );
        assert_eq!(problems, [""; 0]);
        let fast = &config.objectives["fast"];
        assert_eq!((fast.scope, fast.name.as_str()), (Scope::Member, "moderation"));
        let (limit, latency) = fast.latency.as_ref().unwrap();
        assert_eq!((limit.as_millis(), latency.target, latency.window_s), (50, 0.99, 28 * 24 * 3600));
        assert_eq!(latency.rules, Objective::usual_rules(28 * 24 * 3600));
        let all = &config.objectives["all"];
        assert!(all.is_about("anybody") && config.needs_keys());
        let rule = BurnRule { burn: 2.0, long_s: 60, short_s: 5, is_urgent: false };
        assert_eq!(
            (all.availability.as_ref().unwrap().rules.clone(), all.availability.as_ref().unwrap().min_bad),
            (vec![rule], 2)
        );
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, problem) in [
            ("[objectives.a]\navailability = 0.9", "it is about one of"),
            ("[objectives.a]\nmember = 'm'\nkey = 'k'\navailability = 0.9", "it is about one of"),
            ("[objectives.a]\nmember = 'm'", "promises nothing"),
            ("[objectives.a]\nmember = 'm'\navailability = 1.0", "between 0 and 1"),
            ("[objectives.a]\nmember = 'm'\nlatency_ms = 0", "above 0"),
            ("[objectives.a]\nmember = 'm'\nlatency_ms = inf", "above 0"),
            ("[objectives.a]\nmember = 'm'\nquantile = 0.5", "goes with"),
            ("[objectives.a]\nmember = 'm'\navailability = 0.9\nwindow = '4w'", "must be a time"),
            ("[objectives.a]\nmember = 'm'\navailability = 0.9\nwindow = '99999999999999999999d'", "must be a time"),
            ("[objectives.a]\nmember = 'm'\navailability = 0.9\nwindow = 'é'", "must be a time"),
            ("[objectives.a]\nmember = 'm'\navailability = 0.9\navailabilty = 1", "unknown field"),
            ("[webhooks.a]", "one of `url`"),
            ("[webhooks.a]\nurl = 'file:///etc/passwd'", "must begin with"),
            ("[webhooks.a]\nurl = 'https://h'\nevents = ['alert.*', 'nothing']", "there is no event `nothing`"),
            ("[webhooks.a]\nurl = 'https://h'\nsecret_env = 'HIGHROAD_NOT_SET_ANYWHERE'", "is not set"),
            ("[webhooks.a]\nurl = 'https://h'\nformat = 'xml'", "unknown variant"),
        ] {
            let (_, problems) = parse(text);
            assert!(problems.len() == 1 && problems[0].contains(problem), "{text}: {problems:?}");
        }
    }

    #[test]
    fn a_webhook_wants_what_it_says_and_shows_no_secret() {
        let (config, problems) = parse(
            "[webhooks.all]\nurl = 'https://hooks.example/T0/secret-path'\n\
             [webhooks.some]\nurl = 'http://127.0.0.1:9'\nevents = ['rollout.*', 'alert.firing']\n\
             [webhooks.manager]\nurl = 'http://127.0.0.1:9'\nformat = 'alertmanager'",
        );
        assert_eq!(problems, [""; 0]);
        let wants = |name: &str, kind: &str| config.webhooks[name].wants(kind);
        assert!(
            wants("all", "deployment.rolled_back") && wants("some", "rollout.aborted") && wants("some", "alert.firing")
        );
        assert!(
            !wants("some", "alert.resolved")
                && !wants("manager", "rollout.aborted")
                && wants("manager", "alert.resolved")
        );
        assert!(!format!("{config:?}").contains("secret-path"));
    }
}
