use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use highroad_package::registry::{Point, RegistryClient, Run, RunQuery};
use serde::Serialize;
use serde_json::{Value, json};

use crate::record::{self, COMMIT_TAG, DATA_TAGS, DIFF_TAG, ENVIRONMENT_FILE, WEIGHTS_TAGS, tagged};
use crate::standard::Standard;
use crate::tracking::{self, Tracking, TrackingArgs};

/// Metrics that a list shows where none are asked for.
const SHOWN_METRICS: usize = 4;
/// Characters of a run's id that a list shows; as many are enough to name it.
const SHORT_ID: usize = 8;
/// What a list tells of every run before its metrics.
const FIXED_COLUMNS: [&str; 5] = ["run", "name", "status", "began", "took"];
/// From the duration on, columns are numbers.
const FIRST_NUMBER: usize = 4;
/// Runs that are looked through for a name or the beginning of an id.
const SEARCHED_RUNS: usize = 10_000;

/// `highroad runs list|show|diff|export|sync`
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Runs of this repo's experiment, newest first
    List(List),
    /// Everything that one run recorded
    Show(Show),
    /// What differs between two runs: metrics, params, data, environment, code
    Diff(Diff),
    /// Runs, or all points of their metrics, as CSV or one JSON object a line
    Export(Export),
    /// Deliver what killed runs and outages left in the journal of `highroad.run`
    Sync(Sync),
}

/// Where runs are looked for.
#[derive(clap::Args)]
pub struct Place {
    /// Experiment to look in [default: the one of highroad.toml, else all]
    #[arg(long)]
    pub experiment: Option<String>,
    #[command(flatten)]
    pub tracking: TrackingArgs,
}

/// Which runs are meant.
#[derive(clap::Args)]
struct Selection {
    #[command(flatten)]
    place: Place,
    /// Condition in MLflow's grammar, such as `metrics.loss < 0.2 AND params.seed = '7'`
    #[arg(long, default_value = "")]
    filter: String,
    /// Order, such as `metrics.loss ASC` [default: newest first]
    #[arg(long, default_value = "")]
    order_by: String,
}

#[derive(clap::Args)]
struct List {
    #[command(flatten)]
    selection: Selection,
    /// Most runs that are listed
    #[arg(long, default_value_t = 20, value_parser = at_least_one)]
    limit: usize,
    /// Metrics and params to show, such as `validation/loss` [default: the four metrics most runs have]
    #[arg(long, value_delimiter = ',')]
    columns: Vec<String>,
    /// Print the runs as JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Show {
    /// Id, its beginning, name, or `latest`
    run: String,
    #[command(flatten)]
    place: Place,
    /// Print the run as JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Diff {
    /// Id, its beginning, name, or `latest`
    a: String,
    /// Id, its beginning, name, or `latest`
    b: String,
    #[command(flatten)]
    place: Place,
    /// Print what differs as JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Export {
    #[command(flatten)]
    selection: Selection,
    /// Form of the output
    #[arg(long, value_enum, default_value = "csv")]
    format: Format,
    /// Every point of every metric instead of one row for each run
    #[arg(long)]
    points: bool,
}

#[derive(clap::Args)]
struct Sync {
    /// Folder of the journals
    #[arg(long, env = "HIGHROAD_JOURNAL", default_value = ".highroad/journal")]
    journal: PathBuf,
    /// Seconds to try for, for each journal
    #[arg(long, default_value_t = 30)]
    patience: u64,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    Csv,
    Jsonl,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.what {
            What::List(list) => list.run(),
            What::Show(show) => show.run(),
            What::Diff(diff) => diff.run(),
            What::Export(export) => export.run(),
            What::Sync(sync) => sync.run(),
        }
    }
}

impl Sync {
    fn run(self) -> anyhow::Result<ExitCode> {
        let synced = highroad_record::sync(&self.journal, Duration::from_secs(self.patience))
            .with_context(|| format!("cannot read {}", self.journal.display()))?;
        let mut stdout = std::io::stdout().lock();
        for journal in synced.iter().filter(|journal| journal.trouble.is_none()) {
            let refused = match journal.n_refused {
                0 => String::new(),
                n => format!(", {n} entries refused: see {}", journal.dir.join("refused.jsonl").display()),
            };
            writeln!(stdout, "{} delivered{refused}", journal.run_id)?;
        }
        let left: Vec<String> = synced
            .iter()
            .filter_map(|journal| Some(format!("{}: {}", journal.dir.display(), journal.trouble.as_ref()?)))
            .collect();
        if !left.is_empty() {
            bail!("{} of {} journals are not delivered\n{}", left.len(), synced.len(), left.join("\n"));
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Selection {
    async fn runs(&self, client: &RegistryClient, limit: usize) -> anyhow::Result<Vec<Run>> {
        let experiment_ids = experiments(client, self.place.experiment.as_deref()).await?;
        let (filter, order_by) = (self.filter.clone(), self.order_by.clone());
        Ok(client.search_runs(&RunQuery { experiment_ids, filter, order_by, limit }).await?)
    }
}

impl List {
    fn run(self) -> anyhow::Result<ExitCode> {
        let tracking = tracking::client(&self.selection.place.tracking)?;
        let runs = tracking.block_on(self.selection.runs(tracking.client(), self.limit))?;
        let mut stdout = std::io::stdout().lock();
        if self.json {
            writeln!(stdout, "{}", serde_json::to_string_pretty(&runs)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        if runs.is_empty() {
            eprintln!("no run matches");
            return Ok(ExitCode::SUCCESS);
        }
        let columns = if self.columns.is_empty() { common_metrics(&runs) } else { self.columns };
        let mut table = table();
        table.set_header(FIXED_COLUMNS.into_iter().map(str::to_owned).chain(columns.clone()));
        for run in &runs {
            let fixed = [short(&run.id), run.name.clone(), run.status.name().to_lowercase(), began(run), took(run)];
            table.add_row(fixed.into_iter().chain(columns.iter().map(|column| cell(run, column))));
        }
        for idx in FIRST_NUMBER..FIXED_COLUMNS.len() + columns.len() {
            table.column_mut(idx).expect("the header made it").set_cell_alignment(CellAlignment::Right);
        }
        writeln!(stdout, "{table}")?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Show {
    fn run(self) -> anyhow::Result<ExitCode> {
        let tracking = tracking::client(&self.place.tracking)?;
        let run = find(&tracking, self.place.experiment.as_deref(), &self.run)?;
        let mut stdout = std::io::stdout().lock();
        if self.json {
            writeln!(stdout, "{}", serde_json::to_string_pretty(&run)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        writeln!(stdout, "{} {} ({})", run.id, run.name, run.status.name().to_lowercase())?;
        writeln!(stdout, "began {}, took {}", began(&run), took(&run))?;
        let metrics = run.metrics.iter().map(|(key, value)| (key.clone(), number(*value))).collect();
        let data = run.datasets.iter().map(|data| (data.name.clone(), data.digest.clone())).collect();
        if let Some(error) = run.tags.get(record::ERROR_TAG).filter(|error| !error.is_empty()) {
            writeln!(stdout, "\nerror\n  {}", error.replace('\n', "\n  "))?;
        }
        let tags = run.tags.iter().filter(|(name, value)| !value.is_empty() && *name != record::ERROR_TAG);
        let tags = tags.map(|(name, value)| (name.clone(), value.clone())).collect();
        for (title, pairs) in [("metrics", &metrics), ("params", &shown_params(&run)), ("data", &data), ("tags", &tags)]
        {
            section(&mut stdout, title, pairs)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Each parameter as it is at the last start, and what it was at the first where that is another.
fn shown_params(run: &Run) -> BTreeMap<String, String> {
    let first = |name: &str| run.params.get(name).cloned().unwrap_or_default();
    let shown = |(name, now): (String, String)| match first(&name) {
        was if was == now => (name, now),
        was => (name, format!("{now} ({was} at the first start)")),
    };
    record::params(run).into_iter().map(shown).collect()
}

fn section(out: &mut impl std::io::Write, title: &str, pairs: &BTreeMap<String, String>) -> std::io::Result<()> {
    if pairs.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{title}")?;
    let width = pairs.keys().map(|key| key.chars().count()).max().unwrap_or(0);
    for (key, value) in pairs {
        writeln!(out, "  {key:<width$}  {}", value.replace('\n', " "))?;
    }
    Ok(())
}

impl Diff {
    fn run(self) -> anyhow::Result<ExitCode> {
        let tracking = tracking::client(&self.place.tracking)?;
        let experiment = self.place.experiment.as_deref();
        let (a, b) = (find(&tracking, experiment, &self.a)?, find(&tracking, experiment, &self.b)?);
        let found = Differences::between(&tracking, &a, &b);
        let mut stdout = std::io::stdout().lock();
        if self.json {
            let report = json!({ "a": a.id, "b": b.id, "differences": found });
            writeln!(stdout, "{}", serde_json::to_string_pretty(&report)?)?;
        } else {
            found.print(&mut stdout, &a, &b)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What one of two runs has that the other has not, or has otherwise.
#[derive(Serialize)]
struct Differences {
    metrics: Vec<Difference>,
    params: Vec<Difference>,
    data: Vec<Difference>,
    environment: Vec<Difference>,
    code: Vec<Difference>,
    weights: Vec<Difference>,
    /// Files that differ between the two commits, as this repo knows them.
    files: Vec<String>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Difference {
    name: String,
    a: Option<String>,
    b: Option<String>,
}

impl Differences {
    fn between(tracking: &Tracking, a: &Run, b: &Run) -> Self {
        let metrics = |run: &Run| run.metrics.iter().map(|(key, value)| (key.clone(), number(*value))).collect();
        let data = |run: &Run| {
            let mut data = tagged(run, DATA_TAGS);
            data.extend(run.datasets.iter().map(|dataset| (dataset.name.clone(), dataset.digest.clone())));
            data
        };
        let code = |run: &Run| -> BTreeMap<String, String> {
            let tags = [("commit", COMMIT_TAG), ("uncommitted changes", DIFF_TAG)];
            tags.iter()
                .filter_map(|(name, tag)| {
                    Some(((*name).to_owned(), run.tags.get(*tag).filter(|value| !value.is_empty())?.clone()))
                })
                .collect()
        };
        Self {
            metrics: differences(&metrics(a), &metrics(b)),
            params: differences(&record::params(a), &record::params(b)),
            data: differences(&data(a), &data(b)),
            environment: differences(&environment(tracking, a), &environment(tracking, b)),
            code: differences(&code(a), &code(b)),
            weights: differences(&tagged(a, WEIGHTS_TAGS), &tagged(b, WEIGHTS_TAGS)),
            files: changed_files(a, b),
        }
    }

    fn print(&self, out: &mut impl std::io::Write, a: &Run, b: &Run) -> anyhow::Result<()> {
        let sections = [
            ("metrics", &self.metrics),
            ("params", &self.params),
            ("data", &self.data),
            ("environment", &self.environment),
            ("code", &self.code),
            ("weights", &self.weights),
        ];
        let mut table = table();
        table.set_header(["", &format!("{} {}", short(&a.id), a.name), &format!("{} {}", short(&b.id), b.name)]);
        for (title, differences) in sections {
            for difference in differences {
                let side = |side: &Option<String>| side.as_deref().map_or("-".to_owned(), brief);
                table.add_row([format!("{title} {}", difference.name), side(&difference.a), side(&difference.b)]);
            }
        }
        if table.row_iter().next().is_some() {
            writeln!(out, "{table}")?;
        }
        let same: Vec<&str> = sections.iter().filter(|(_, found)| found.is_empty()).map(|(title, _)| *title).collect();
        if !same.is_empty() {
            writeln!(out, "the same: {}", same.join(", "))?;
        }
        for file in &self.files {
            writeln!(out, "code differs in {file}")?;
        }
        Ok(())
    }
}

fn differences(a: &BTreeMap<String, String>, b: &BTreeMap<String, String>) -> Vec<Difference> {
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let differing = names.into_iter().filter(|name| a.get(*name) != b.get(*name));
    differing.map(|name| Difference { name: name.clone(), a: a.get(name).cloned(), b: b.get(name).cloned() }).collect()
}

/// Installed packages and the build of torch, as the run recorded them; empty if it did not.
fn environment(tracking: &Tracking, run: &Run) -> BTreeMap<String, String> {
    let Ok(bytes) = tracking.block_on(tracking.client().run_file(run, ENVIRONMENT_FILE)) else {
        return BTreeMap::new();
    };
    let recorded: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let packages = recorded["packages"].as_object().into_iter().flatten();
    let mut found: BTreeMap<String, String> =
        packages.filter_map(|(name, version)| Some((name.clone(), text(version)?))).collect();
    found.extend(text(&recorded["python"]).map(|version| ("python".to_owned(), version)));
    found.extend(text(&recorded["torch"]["git_version"]).map(|git| ("torch build".to_owned(), git)));
    found
}

/// Names of the files that `git diff` finds between the commits of two runs; empty where this repo lacks one of them.
fn changed_files(a: &Run, b: &Run) -> Vec<String> {
    let (Some(a), Some(b)) = (a.tags.get(COMMIT_TAG), b.tags.get(COMMIT_TAG)) else { return Vec::new() };
    let is_commit = |text: &String| text.len() >= 7 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if a == b || !is_commit(a) || !is_commit(b) {
        return Vec::new();
    }
    let output = std::process::Command::new("git").args(["diff", "--name-only", a, b, "--"]).output();
    let text = output.ok().filter(|output| output.status.success()).map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
}

impl Export {
    fn run(self) -> anyhow::Result<ExitCode> {
        let tracking = tracking::client(&self.selection.place.tracking)?;
        let runs = tracking.block_on(self.selection.runs(tracking.client(), usize::MAX))?;
        let rows: Box<dyn Iterator<Item = anyhow::Result<Row>>> = if self.points {
            Box::new(runs.iter().flat_map(|run| points(&tracking, run)))
        } else {
            let names = Names::of(&runs);
            Box::new(runs.iter().map(move |run| Ok(names.row(run))))
        };
        match self.format {
            Format::Jsonl => write_jsonl(rows)?,
            Format::Csv => write_csv(rows)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// One line of an export: each row of an export has the same columns.
type Row = Vec<(String, Value)>;

/// Every param and metric that any of the runs has, so that all rows have the same columns.
struct Names {
    params: BTreeSet<String>,
    metrics: BTreeSet<String>,
}

impl Names {
    fn of(runs: &[Run]) -> Self {
        Self {
            params: runs.iter().flat_map(|run| run.params.keys().cloned()).collect(),
            metrics: runs.iter().flat_map(|run| run.metrics.keys().cloned()).collect(),
        }
    }

    fn row(&self, run: &Run) -> Row {
        let fixed = [
            ("run_id", json!(run.id)),
            ("name", json!(run.name)),
            ("experiment_id", json!(run.experiment_id)),
            ("status", json!(run.status.name())),
            ("start_ms", json!(run.start_ms)),
            ("end_ms", json!(run.end_ms)),
            ("commit", json!(run.tags.get(COMMIT_TAG))),
        ];
        let known = record::params(run);
        let params = self.params.iter().map(|key| (format!("params.{key}"), json!(known.get(key))));
        let metrics = self.metrics.iter().map(|key| (format!("metrics.{key}"), json!(run.metrics.get(key))));
        fixed.into_iter().map(|(name, value)| (name.to_owned(), value)).chain(params).chain(metrics).collect()
    }
}

fn points<'a>(tracking: &'a Tracking, run: &'a Run) -> Box<dyn Iterator<Item = anyhow::Result<Row>> + 'a> {
    Box::new(run.metrics.keys().flat_map(move |key| {
        match tracking.block_on(tracking.client().metric_history(&run.id, key)) {
            Ok(history) => history.iter().map(|point| Ok(point_row(run, key, point))).collect(),
            Err(error) => vec![Err(error.into())],
        }
    }))
}

fn point_row(run: &Run, key: &str, point: &Point) -> Row {
    let value = if point.value.is_finite() { json!(point.value) } else { json!(point.value.to_string()) };
    [
        ("run_id", json!(run.id)),
        ("metric", json!(key)),
        ("step", json!(point.step)),
        ("timestamp_ms", json!(point.timestamp_ms)),
        ("value", value),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

fn write_jsonl(rows: impl Iterator<Item = anyhow::Result<Row>>) -> anyhow::Result<()> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for row in rows {
        let object: serde_json::Map<String, Value> = row?.into_iter().collect();
        serde_json::to_writer(&mut out, &object)?;
        writeln!(out)?;
    }
    Ok(out.flush()?)
}

fn write_csv(rows: impl Iterator<Item = anyhow::Result<Row>>) -> anyhow::Result<()> {
    let mut out = csv::Writer::from_writer(std::io::stdout().lock());
    for (row_idx, row) in rows.enumerate() {
        let row = row?;
        if row_idx == 0 {
            out.write_record(row.iter().map(|(name, _)| name))?;
        }
        out.write_record(row.iter().map(|(_, value)| match value {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        }))?;
    }
    Ok(out.flush()?)
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "give a number from 1".to_owned())
}

/// Ids of the experiments to look in: the named one, else that of the repo, else all.
async fn experiments(client: &RegistryClient, named: Option<&str>) -> anyhow::Result<Vec<String>> {
    let declared = Standard::find(Path::new("."))?.map(|standard| standard.experiment().to_owned());
    if let Some(name) = named.map(str::to_owned).or(declared) {
        let found = client.experiment_id(&name).await?;
        return match found {
            Some(id) => Ok(vec![id]),
            None if named.is_some() => bail!("the tracking server has no experiment `{name}`"),
            None => bail!("nothing was tracked yet in `{name}`: run `highroad train`, or name an --experiment"),
        };
    }
    Ok(client.experiments().await?.into_keys().collect())
}

/// The run that a person means: an id, the beginning of one, a name, or `latest`.
pub fn find(tracking: &Tracking, experiment: Option<&str>, named: &str) -> anyhow::Result<Run> {
    let client = tracking.client();
    if named.len() == 32 && named.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(tracking.block_on(client.get_run(named))?);
    }
    let runs = tracking.block_on(async {
        let experiment_ids = experiments(client, experiment).await?;
        let limit = if named == "latest" { 1 } else { SEARCHED_RUNS };
        anyhow::Ok(client.search_runs(&RunQuery { experiment_ids, limit, ..RunQuery::default() }).await?)
    })?;
    let mut matching =
        runs.into_iter().filter(|run| named == "latest" || run.name == named || run.id.starts_with(named));
    let found =
        matching.next().with_context(|| format!("no run is called `{named}`: `highroad runs list` shows them"))?;
    match matching.next() {
        Some(other) => bail!("`{named}` may mean {} or {}: give more of the id", found.id, other.id),
        None => Ok(found),
    }
}

/// The metrics that most runs have, of those a training script chose: `system/` ones are for the dashboard.
fn common_metrics(runs: &[Run]) -> Vec<String> {
    let mut counts: BTreeMap<&String, usize> = BTreeMap::new();
    for key in runs.iter().flat_map(|run| run.metrics.keys()).filter(|key| !key.starts_with("system/")) {
        *counts.entry(key).or_default() += 1;
    }
    let mut names: Vec<(&String, usize)> = counts.into_iter().collect();
    names.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), !name.starts_with("validation"), *name));
    names.into_iter().take(SHOWN_METRICS).map(|(name, _)| name.clone()).collect()
}

fn cell(run: &Run, column: &str) -> String {
    let metric = run.metrics.get(column).map(|value| number(*value));
    metric.or_else(|| record::params(run).remove(column)).unwrap_or_default()
}

/// Enough digits to tell two values apart by eye; small and large ones with an exponent.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        small if small < 1e-3 => format!("{value:.3e}"),
        large if large >= 1e6 => format!("{value:.3e}"),
        _ => format!("{value:.5}").trim_end_matches('0').trim_end_matches('.').to_owned(),
    }
}

/// A digest or other long text, shortened for a table.
fn brief(text: &str) -> String {
    let text =
        text.strip_prefix("sha256:").map_or(text.to_owned(), |hex| format!("sha256:{}", hex.get(..12).unwrap_or(hex)));
    if text.chars().count() <= 60 { text } else { text.chars().take(59).chain(['…']).collect() }
}

fn short(id: &str) -> String {
    id.chars().take(SHORT_ID).collect()
}

fn began(run: &Run) -> String {
    let at = run.start_ms.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.map_or_else(String::new, |at| at.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M").to_string())
}

fn took(run: &Run) -> String {
    let (Some(start_ms), Some(end_ms)) = (run.start_ms, run.end_ms) else { return String::new() };
    format!("{:#}", jiff::SignedDuration::from_secs((end_ms - start_ms) / 1000))
}

fn table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_what_tells_them_apart() {
        let shown = [0.0, 0.5, 0.12345678, 0.0001, 12_345_678.0].map(number);
        assert_eq!(shown, ["0", "0.5", "0.12346", "1.000e-4", "1.235e7"]);
    }

    #[test]
    fn what_only_one_run_has_is_a_difference_too() {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let found = differences(&map(&[("x", "1"), ("y", "2")]), &map(&[("x", "1"), ("z", "3")]));
        let names: Vec<(&str, bool)> = found.iter().map(|found| (found.name.as_str(), found.a.is_some())).collect();
        assert_eq!(names, [("y", true), ("z", false)]);
    }
}
