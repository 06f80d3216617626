//! `portfolio.toml`: which models are served under which names, and the limits of requests.
//!
//! The file is checked whole: every problem is reported at once, and an unknown key is an error with a suggestion.

mod cache;
mod limits;
mod plan;
mod task;

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use highroad_package::{ParseReferenceError, Reference, Selector};
use highroad_task::PredictorOptions;
use serde::{Deserialize, Serialize};

pub use limits::{MemberLimits, RequestLimits};
use plan::PLAN_KEYS;
pub use plan::RolloutPlan;
pub use task::Task;

use crate::alerts::AlertsConfig;
use crate::batcher::BatchLimits;
use crate::budget::BudgetsConfig;
use crate::cache::CacheConfig;
use crate::config::cache::CacheTable;
use crate::engine::{EngineConfig, EngineTable, KEYS as ENGINE_KEYS};
use crate::hosted::config::{HostedConfig, HostedTable, KEYS as HOSTED_KEYS, check as check_hosted};
use crate::monitor::{MONITOR_KEYS, MonitorConfig, MonitorTable};
use crate::pipeline::{self, IndexConfig, PipelineConfig};

/// What one process serves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PortfolioConfig {
    /// The members by the name that requests use.
    pub members: BTreeMap<String, MemberConfig>,
    /// The members that somebody else hosts.
    pub hosted: BTreeMap<String, HostedConfig>,
    /// What may be spent.
    pub budgets: BudgetsConfig,
    /// What is promised, and who is told.
    pub alerts: AlertsConfig,
    /// What a single request may ask.
    pub limits: RequestLimits,
    /// Pause between two looks at the registry's aliases.
    pub poll_interval: PollInterval,
    /// Indexes that pipelines search.
    pub indexes: BTreeMap<String, IndexConfig>,
    /// Pipelines by the name that requests use.
    pub pipelines: BTreeMap<String, PipelineConfig>,
    /// What rollouts may take and keep here.
    pub rollouts: RolloutConfig,
    /// How versions of members are tried that declare it, by member.
    pub plans: BTreeMap<String, RolloutPlan>,
    /// How members are watched that do not say it themselves.
    pub monitor: MonitorConfig,
}

/// What rollouts may take and keep on this server; what is tried comes from the registry.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RolloutConfig {
    /// Whether the inputs of compared requests are written down; else their digests are.
    pub keep_inputs: bool,
    /// Share of the compared requests that are written down although they were answered alike; all others are.
    pub keep: f64,
    /// Requests that may wait for their second answer; more go without.
    pub queue: NonZeroUsize,
    /// How long a version stays loaded after its candidate took its place, seconds.
    pub warm_s: u64,
    /// Whether a version that has just taken another's place gives it back by itself where it fails what that one answers.
    pub auto_rollback: bool,
}

impl Default for RolloutConfig {
    /// No inputs, a tenth of what is alike, 256 waiting, ten minutes, and back where it fails.
    fn default() -> Self {
        Self { keep_inputs: false, keep: 0.1, queue: DEFAULT_SHADOW_QUEUE, warm_s: 600, auto_rollback: true }
    }
}

const DEFAULT_SHADOW_QUEUE: NonZeroUsize = NonZeroUsize::new(256).expect("256 is not zero");

/// One model and how it runs.
#[derive(Clone, Debug, PartialEq)]
pub struct MemberConfig {
    /// Where the package comes from.
    pub source: ModelSource,
    /// What it has to be for, where that is said: a package for another task does not serve.
    pub task: Option<Task>,
    /// Threads of one program run.
    pub threads: NonZeroUsize,
    /// The batches and the queue.
    pub batching: BatchLimits,
    /// How long a row may wait for its turn.
    pub queue_timeout: Duration,
    /// How it is watched.
    pub monitor: MonitorConfig,
    /// What runs the program.
    pub engine: EngineConfig,
    /// What runs it where a rollout tries a version, if that is something else.
    pub candidate: Option<Candidates>,
    /// The answers that are kept, if any are.
    pub cache: Option<CacheConfig>,
    /// What a request may ask of it.
    pub limits: MemberLimits,
}

/// What runs the versions that rollouts try.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidates {
    /// The engine.
    pub engine: EngineConfig,
    /// Its worker threads, or processes.
    pub replicas: NonZeroUsize,
}

/// Where a member's package comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// A registry; an alias is followed wherever it moves.
    Registry(Reference),
    /// A package directory, read once.
    Directory(PathBuf),
}

/// Pause between two looks at the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollInterval(pub Duration);

impl Default for PollInterval {
    fn default() -> Self {
        Self(Duration::from_secs(1))
    }
}

/// Everything wrong with a `portfolio.toml`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{}", .0.join("\n"))]
pub struct ConfigErrors(pub Vec<String>);

impl PortfolioConfig {
    /// Parses `text`; paths in it are relative to `base`.
    pub fn parse(text: &str, base: &Path) -> Result<Self, ConfigErrors> {
        let table: toml::Table =
            text.parse().map_err(|error: toml::de::Error| ConfigErrors(vec![error.to_string()]))?;
        let mut problems = Vec::new();
        check_keys(&table, TOP_KEYS, "", &mut problems);
        let limits: RequestLimits = part(&table, "limits", LIMIT_KEYS, &mut problems).unwrap_or_default();
        problems.extend(limits.check().err());
        let poll_interval = poll_interval(&table, &mut problems);
        let rollouts: RolloutConfig = part(&table, "rollouts", ROLLOUT_KEYS, &mut problems).unwrap_or_default();
        if !(0.0..=1.0).contains(&rollouts.keep) {
            problems.push(format!("[rollouts] `keep` is a share from 0 to 1, not {}", rollouts.keep));
        }
        let monitor = monitor(&table, &mut problems);
        let members = members(&table, base, &monitor, &mut problems);
        let plans = plans(&table, &members, &mut problems);
        let hosted = hosted(&table, base, &mut problems);
        let budgets = BudgetsConfig::parse(&table, &mut problems);
        if problems.is_empty() {
            check_hosted(&hosted, |name| members.contains_key(name), &budgets, &mut problems);
        }
        let indexes = pipeline::index_configs(&table, base, &members, &mut problems);
        let pipelines = pipeline::pipeline_configs(&table, &limits, &members, &hosted, &indexes, &mut problems);
        for name in budgets.pipelines().filter(|name| !pipelines.contains_key(*name)) {
            problems.push(format!("[budgets.pipelines.{name}] there is no pipeline `{name}`"));
        }
        let alerts = AlertsConfig::parse(&table, base, &mut problems);
        alerts.check(
            |name| members.contains_key(name) || hosted.contains_key(name),
            |name| pipelines.contains_key(name),
            &mut problems,
        );
        if !problems.is_empty() {
            return Err(ConfigErrors(problems));
        }
        Ok(Self {
            members,
            hosted,
            budgets,
            alerts,
            limits,
            poll_interval,
            indexes,
            pipelines,
            rollouts,
            plans,
            monitor,
        })
    }

    /// A portfolio without a file: one member for each reference or package directory, under its model's name.
    pub fn of_models(sources: impl IntoIterator<Item = (String, ModelSource)>) -> Self {
        let members = sources.into_iter().map(|(name, source)| (name, MemberConfig::new(source))).collect();
        Self { members, ..Self::default() }
    }
}

impl MemberConfig {
    /// The defaults: one replica on all cores, 4096 tokens a batch, 4096 waiting rows, 30 seconds of patience.
    pub fn new(source: ModelSource) -> Self {
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self {
            source,
            task: None,
            threads,
            batching: BatchLimits {
                batch_tokens: PredictorOptions::default().max_batch_tokens,
                queue_rows: DEFAULT_QUEUE_ROWS,
                replicas: default_replicas(threads),
            },
            queue_timeout: Duration::from_secs(30),
            monitor: MonitorConfig::default(),
            engine: EngineConfig::Native,
            candidate: None,
            cache: None,
            limits: MemberLimits::default(),
        }
    }

    /// The same for versions that rollouts try.
    pub(crate) fn of_candidates(&self) -> Self {
        let mut config = self.clone();
        if let Some(Candidates { engine, replicas }) = &self.candidate {
            (config.engine, config.batching.replicas) = (engine.clone(), *replicas);
        }
        config
    }
}

const DEFAULT_QUEUE_ROWS: NonZeroUsize = NonZeroUsize::new(4096).expect("4096 is not zero");

/// Workers of a member that does not say how many: requests at once are best served by a core each.
fn default_replicas(threads: NonZeroUsize) -> NonZeroUsize {
    threads.min(NonZeroUsize::new(8).expect("8 is not zero"))
}

impl FromStr for ModelSource {
    type Err = ParseReferenceError;

    /// A path if it starts with `.` or has a `/`, else a reference; a bare `name` means `name@champion`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with('.') || text.contains('/') {
            return Ok(Self::Directory(text.into()));
        }
        let bare = !text.contains(['@', ':']);
        let reference = if bare { format!("{text}@champion").parse()? } else { text.parse()? };
        Ok(Self::Registry(reference))
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => reference.fmt(f),
            Self::Directory(path) => path.display().fmt(f),
        }
    }
}

/// Whether `name` can be a member: 1 to 64 of `A-Z a-z 0-9 . _ -`, so that it fits in URLs, headers and labels.
pub fn is_member_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

const TOP_KEYS: &[&str] = &[
    "members",
    "budgets",
    "objectives",
    "webhooks",
    "limits",
    "monitor",
    "poll_interval_ms",
    "rollouts",
    "indexes",
    "pipelines",
];
const ROLLOUT_KEYS: &[&str] = &["keep_inputs", "keep", "queue", "warm_s", "auto_rollback"];
const LIMIT_KEYS: &[&str] = &["body_bytes", "inputs", "input_bytes", "tokens", "documents"];
const MEMBER_LIMIT_KEYS: &[&str] = &["inputs", "input_bytes", "tokens", "documents"];
const MEMBER_KEYS: &[&str] = &[
    "model",
    "task",
    "rollout",
    "threads",
    "replicas",
    "batch_tokens",
    "queue_rows",
    "queue_timeout_ms",
    "candidate",
    "monitor",
    "cache",
    "limits",
];

#[derive(Deserialize)]
struct MemberTable {
    model: String,
    task: Option<Task>,
    threads: Option<NonZeroUsize>,
    replicas: Option<NonZeroUsize>,
    batch_tokens: Option<NonZeroUsize>,
    queue_rows: Option<NonZeroUsize>,
    queue_timeout_ms: Option<u64>,
    monitor: Option<MonitorTable>,
    #[serde(flatten)]
    engine: EngineTable,
    candidate: Option<toml::Table>,
    cache: Option<CacheTable>,
    #[serde(default)]
    limits: MemberLimits,
}

impl MemberTable {
    fn config(self, base: &Path) -> Result<MemberConfig, String> {
        let source = match self.model.parse().map_err(|error| format!("`model`: {error}"))? {
            ModelSource::Directory(path) => ModelSource::Directory(base.join(path)),
            source @ ModelSource::Registry(_) => source,
        };
        let is_program =
            matches!(&source, ModelSource::Directory(path) if path.extension().is_some_and(|it| it == "pt2"));
        if let Some(task) = self.task.filter(|task| is_program && *task != Task::Tensors) {
            return Err(format!(
                "`task` is `{task}`, and a program alone takes and gives `tensors`: what a task needs besides, such as a tokenizer and labels, is in a package (`highroad export` or `highroad pack` makes one)"
            ));
        }
        let mut config = MemberConfig::new(source);
        config.task = self.task;
        config.threads = self.threads.unwrap_or(config.threads);
        config.batching.batch_tokens = self.batch_tokens.unwrap_or(config.batching.batch_tokens);
        config.batching.queue_rows = self.queue_rows.unwrap_or(config.batching.queue_rows);
        config.queue_timeout = self.queue_timeout_ms.map_or(config.queue_timeout, Duration::from_millis);
        config.engine = self.engine.config(base)?;
        config.batching.replicas = match (&config.engine, self.replicas) {
            (EngineConfig::Torch(_), Some(_)) => {
                return Err("`replicas` are threads of this process: PyTorch has `workers`".to_owned());
            }
            (EngineConfig::Torch(_), None) => self.engine.workers.unwrap_or(NonZeroUsize::MIN),
            (EngineConfig::Native, replicas) => replicas.unwrap_or(default_replicas(config.threads)),
        };
        config.candidate = self.candidate.map(|table| candidates(&table, base)).transpose()?;
        config.cache = self.cache.map(CacheTable::config).transpose()?;
        config.limits = self.limits.check()?;
        Ok(config)
    }
}

fn candidates(table: &toml::Table, base: &Path) -> Result<Candidates, String> {
    let mut problems = Vec::new();
    check_keys(table, ENGINE_KEYS, "candidate", &mut problems);
    if let Some(problem) = problems.pop() {
        return Err(problem);
    }
    let engine: EngineTable = table.clone().try_into().map_err(|error| format!("candidate: {error}"))?;
    let replicas = engine.workers.unwrap_or(NonZeroUsize::MIN);
    Ok(Candidates { engine: engine.config(base).map_err(|error| format!("candidate: {error}"))?, replicas })
}

fn members(
    table: &toml::Table,
    base: &Path,
    monitor: &MonitorConfig,
    problems: &mut Vec<String>,
) -> BTreeMap<String, MemberConfig> {
    let empty = toml::Table::new();
    let tables = match table.get("members") {
        Some(toml::Value::Table(tables)) => tables,
        Some(_) => {
            problems.push("`members` must be a table: [members.NAME]".to_owned());
            &empty
        }
        None => &empty,
    };
    if tables.is_empty() {
        problems.push("a portfolio needs at least one `[members.NAME]`".to_owned());
    }
    let mut members = BTreeMap::new();
    for (name, table) in tables {
        if !is_member_name(name) {
            problems.push(format!("member name `{name}`: only letters, digits, `.`, `_` and `-`, at most 64"));
        }
        if is_hosted(table) {
            continue;
        }
        let known = [MEMBER_KEYS, ENGINE_KEYS].concat();
        let place = format!("members.{name}");
        let Some(member) = part_at::<MemberTable>(tables, (name, &place), &known, problems) else { continue };
        let watched = table.get("monitor").and_then(toml::Value::as_table);
        watched.iter().for_each(|table| check_keys(table, MONITOR_KEYS, &format!("members.{name}.monitor"), problems));
        check_limit_keys(table, name, problems);
        let place = format!("[members.{name}.monitor]");
        let watched = member.monitor.clone().unwrap_or_default().over(monitor, &place, problems);
        match member.config(base) {
            Ok(config) => drop(members.insert(name.clone(), MemberConfig { monitor: watched, ..config })),
            Err(error) => problems.push(format!("[members.{name}] {error}")),
        }
    }
    members
}

/// `[members.NAME.rollout]` of members that are ours.
fn plans(
    table: &toml::Table,
    members: &BTreeMap<String, MemberConfig>,
    problems: &mut Vec<String>,
) -> BTreeMap<String, RolloutPlan> {
    let mut plans = BTreeMap::new();
    let told = |name: &String| table.get("members")?.get(name)?.get("rollout");
    for (name, config) in members {
        let Some(value) = told(name) else { continue };
        let (place, before) = (format!("members.{name}.rollout"), problems.len());
        if let Some(table) = value.as_table() {
            check_keys(table, PLAN_KEYS, &place, problems);
        }
        if problems.len() > before {
            continue;
        }
        let plan = value.clone().try_into().map_err(|error: toml::de::Error| error.to_string().trim().to_owned());
        let plan = plan.and_then(|plan: RolloutPlan| plan.check().map(|()| plan));
        let follows = |plan: RolloutPlan| match &config.source {
            ModelSource::Registry(Reference { selector: Selector::Alias(_), .. }) => Ok(plan),
            source => Err(format!("`{source}` names no alias, so no version is tried beside it")),
        };
        match plan.and_then(follows) {
            Ok(plan) => drop(plans.insert(name.clone(), plan)),
            Err(error) => problems.push(format!("[{place}] {error}")),
        }
    }
    plans
}

fn check_limit_keys(member: &toml::Value, name: &str, problems: &mut Vec<String>) {
    if let Some(limits) = member.get("limits").and_then(toml::Value::as_table) {
        check_keys(limits, MEMBER_LIMIT_KEYS, &format!("members.{name}.limits"), problems);
    }
}

fn monitor(table: &toml::Table, problems: &mut Vec<String>) -> MonitorConfig {
    let told: MonitorTable = part(table, "monitor", MONITOR_KEYS, problems).unwrap_or_default();
    told.over(&MonitorConfig::default(), "[monitor]", problems)
}

fn is_hosted(table: &toml::Value) -> bool {
    table.get("hosted").is_some()
}

fn hosted(table: &toml::Table, base: &Path, problems: &mut Vec<String>) -> BTreeMap<String, HostedConfig> {
    let mut hosted = BTreeMap::new();
    let Some(tables) = table.get("members").and_then(toml::Value::as_table) else { return hosted };
    for name in tables.iter().filter(|(_, table)| is_hosted(table)).map(|(name, _)| name) {
        let place = format!("members.{name}");
        let Some(member) = part_at::<HostedTable>(tables, (name, &place), HOSTED_KEYS, problems) else { continue };
        check_limit_keys(&tables[name], name, problems);
        match member.config(base) {
            Ok(config) => drop(hosted.insert(name.clone(), config)),
            Err(error) => problems.push(format!("[members.{name}] hosted: {error}")),
        }
    }
    hosted
}

fn part<'de, T: Deserialize<'de>>(
    table: &toml::Table,
    key: &str,
    known: &[&str],
    problems: &mut Vec<String>,
) -> Option<T> {
    part_at(table, (key, key), known, problems)
}

/// What `table` has under a key, which problems call by its place in the file.
fn part_at<'de, T: Deserialize<'de>>(
    table: &toml::Table,
    (key, place): (&str, &str),
    known: &[&str],
    problems: &mut Vec<String>,
) -> Option<T> {
    let value = table.get(key)?;
    let before = problems.len();
    if let Some(table) = value.as_table() {
        check_keys(table, known, place, problems);
    }
    if problems.len() > before {
        return None;
    }
    value.clone().try_into().map_err(|error| problems.push(format!("[{place}] {}", in_words(&error)))).ok()
}

/// What serde found, on one line and without the names of Rust's types.
fn in_words(error: &toml::de::Error) -> String {
    let told = error.to_string().trim().replace('\n', " ");
    ["usize", "u64", "u32", "u16"].iter().fold(told, |told, integer| {
        let told = told.replace(&format!("a nonzero {integer}"), "a whole number from 1");
        told.replace(&format!("expected {integer}"), "expected a whole number from 0")
    })
}

fn poll_interval(table: &toml::Table, problems: &mut Vec<String>) -> PollInterval {
    match table.get("poll_interval_ms") {
        None => PollInterval::default(),
        Some(toml::Value::Integer(ms @ 50..=3_600_000)) => PollInterval(Duration::from_millis(ms.unsigned_abs())),
        Some(other) => {
            problems.push(format!("`poll_interval_ms` must be a whole number from 50 to 3600000, not {other}"));
            PollInterval::default()
        }
    }
}

fn check_keys(table: &toml::Table, known: &[&str], place: &str, problems: &mut Vec<String>) {
    let place = if place.is_empty() { String::new() } else { format!("[{place}] ") };
    for key in table.keys().filter(|key| !known.contains(&key.as_str())) {
        let nearest = known.iter().min_by_key(|name| strsim::damerau_levenshtein(name, key));
        let hint = match nearest.filter(|name| strsim::damerau_levenshtein(name, key) <= 3) {
            Some(name) => format!("did you mean `{name}`?"),
            None => {
                format!("known are {}", known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "))
            }
        };
        problems.push(format!("{place}unknown key `{key}`: {hint}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PortfolioConfig, Vec<String>> {
        PortfolioConfig::parse(text, Path::new("/base")).map_err(|errors| errors.0)
    }

    #[test]
    fn a_portfolio_names_its_members_and_limits() {
        let portfolio = parse(
            r#"
            poll_interval_ms = 500
            [limits]
            inputs = 16
            [rollouts]
            keep = 1
            queue = 16
            [members.moderation]
            model = "moderation@champion"
            threads = 1
            replicas = 2
            queue_rows = 8
            [members.moderation.rollout]
            canary = [5, 25, 100]
            step_seconds = 600
            max_differ = 0.1
            [members.embedder]
            model = "./package"
            task = "embed"
            "#,
        )
        .unwrap();
        assert_eq!(
            (portfolio.members["embedder"].task, portfolio.members["moderation"].task),
            (Some(Task::Embed), None)
        );
        let [(name, plan)] = portfolio.plans.iter().collect::<Vec<_>>()[..] else { panic!("{:?}", portfolio.plans) };
        assert_eq!((name.as_str(), plan.canary.as_deref()), ("moderation", Some([5.0, 25.0, 100.0].as_slice())));
        assert_eq!((plan.step_seconds, plan.max_differ), (Some(600.0), Some(0.1)));
        assert_eq!(portfolio.limits, RequestLimits { inputs: 16, ..RequestLimits::default() });
        assert_eq!(portfolio.poll_interval.0, Duration::from_millis(500));
        let queue = NonZeroUsize::new(16).unwrap();
        assert_eq!(portfolio.rollouts, RolloutConfig { keep: 1.0, queue, ..RolloutConfig::default() });
        let moderation = &portfolio.members["moderation"];
        assert_eq!(moderation.source.to_string(), "moderation@champion");
        assert_eq!((moderation.threads.get(), moderation.batching.replicas.get()), (1, 2));
        assert_eq!(moderation.batching.queue_rows.get(), 8);
        assert_eq!(portfolio.members["embedder"].source, ModelSource::Directory("/base/./package".into()));
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let problems = parse(
            r#"
            pol_interval_ms = 500
            [limits]
            colour = 1
            [rollouts]
            keep = 2.0
            [members."a b"]
            model = "moderation:x"
            [members.ok]
            model = "m:1"
            batch_token = 3
            [members.none]
            threads = 1
            [members.zero]
            model = "m:1"
            threads = 0
            [members.odd]
            model = "m:1"
            task = "translate"
            [members.bare]
            model = "./model.pt2"
            task = "rerank"
            [members.pinned]
            model = "m:1"
            rollout = { shadow = 20 }
            [members.tried]
            model = "m"
            rollout = { shadow = 200 }
            [members.misspelt]
            model = "m"
            rollout = { shadows = 20 }
            "#,
        )
        .unwrap_err();
        let text = problems.join("\n");
        for part in [
            "unknown key `pol_interval_ms`: did you mean `poll_interval_ms`?",
            "[limits] unknown key `colour`: known are `body_bytes`, `inputs`, `input_bytes`, `tokens`, `documents`",
            "[rollouts] `keep` is a share from 0 to 1, not 2",
            "member name `a b`",
            "`moderation:x` is not a reference",
            "[members.ok] unknown key `batch_token`: did you mean `batch_tokens`?",
            "[members.none] missing field `model`",
            "[members.zero] invalid value: integer `0`, expected a whole number from 1 in `threads`",
            "[members.odd] unknown variant `translate`, expected one of `classify`, `embed`, `rerank`, `recommend`, `tensors`",
            "[members.bare] `task` is `rerank`, and a program alone takes and gives `tensors`",
            "[members.pinned.rollout] `m:1` names no alias",
            "[members.tried.rollout] a share of 200 % is not above 0 % and up to 100 %",
            "[members.misspelt.rollout] unknown key `shadows`: did you mean `shadow`?",
        ] {
            assert!(text.contains(part), "{part} not in:\n{text}");
        }
    }

    #[test]
    fn a_model_is_a_path_a_reference_or_a_champion() {
        let source = |text: &str| text.parse::<ModelSource>().unwrap().to_string();
        assert_eq!(source("./p"), "./p");
        assert_eq!(source("moderation:3"), "moderation:3");
        assert_eq!(source("moderation"), "moderation@champion");
    }
}
