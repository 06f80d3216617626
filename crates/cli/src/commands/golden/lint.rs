use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::available_parallelism;

use anyhow::{Context as _, bail, ensure};
use highroad_assess::report::one_line;
use highroad_assess::{Finding, GoldenSet, Level, LintOptions, Training, alike_by_meaning, leaks, lint};
use highroad_package::{TaskKind, VerifiedPackage};
use highroad_task::{Predictor, PredictorOptions};
use serde::Serialize;

use super::{path_or_declared, with_declared_slices};
use crate::commands::eval::print_json;
use crate::outln;
use crate::progress;
use crate::reports::new_table;
use crate::resolve::{Home, Target};

/// Find what makes a golden set lie: copies, contradictions, cases that were trained on, lopsided labels, slices that are too
/// small. Exit code 1: there is an error among the findings.
#[derive(clap::Args)]
pub struct Args {
    /// The golden set; the one of highroad.toml unless told.
    golden: Option<PathBuf>,
    /// Files of training data (CSV, JSONL, Parquet, Arrow or text) that must hold none of the cases; may be given again.
    #[arg(long, value_name = "FILE")]
    against: Vec<String>,
    /// The columns of those files that are texts; may be given again.
    #[arg(long, value_name = "NAME", default_value = "text")]
    column: Vec<String>,
    /// Share of 5-character shingles in common (0 to 1) from which on two texts are near copies.
    #[arg(long, value_name = "SHARE", default_value_t = LintOptions::default().near, value_parser = share)]
    near: f64,
    /// An embedding package: texts that mean the same to it are found too.
    #[arg(long, value_name = "PACKAGE")]
    by_embedding: Option<Target>,
    /// Cosine (0 to 1) from which on two texts mean the same.
    #[arg(long, value_name = "COSINE", default_value = "0.95", value_parser = share)]
    cosine: f64,
    /// A package whose labels the cases must expect.
    #[arg(long, value_name = "PACKAGE")]
    package: Option<Target>,
    /// Fewest cases of a slice.
    #[arg(long, value_name = "N", default_value_t = LintOptions::default().fewest_in_slice)]
    fewest: usize,
    /// Rules whose slice expressions are looked at too; those of highroad.toml unless told.
    #[arg(long, value_name = "FILE")]
    gates: Option<PathBuf>,
    /// Print every finding as JSON.
    #[arg(long)]
    json: bool,
    /// Threads; all cores unless told.
    #[arg(long)]
    threads: Option<NonZeroUsize>,
}

#[derive(Serialize)]
struct Report<'a> {
    golden_set: String,
    digest: String,
    n_cases: usize,
    n_training_records: usize,
    findings: &'a [Finding],
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let path = path_or_declared(self.golden.as_deref())?;
        let golden = with_declared_slices(GoldenSet::read(&path)?, self.gates.as_deref())?;
        let home = Home::find();
        let known = self.package.as_ref().map(|package| labels(&package.resolve(&home)?.package)).transpose()?;
        let options = LintOptions { near: self.near, fewest_in_slice: self.fewest, ..LintOptions::default() };
        let mut findings = lint(&golden, known.as_deref(), &options)?;
        let training = self.training()?;
        if let Some(training) = &training {
            findings.extend(self.leaks(&golden, training)?);
        }
        if let Some(package) = &self.by_embedding {
            findings.extend(self.by_meaning(&golden, training.as_ref(), &package.resolve(&home)?.package)?);
        }
        let report = Report {
            golden_set: path.display().to_string(),
            digest: golden.digest.to_string(),
            n_cases: golden.cases.len(),
            n_training_records: training.as_ref().map_or(0, Training::len),
            findings: &findings,
        };
        if self.json {
            print_json(&report)?
        } else {
            print_findings(&report)
        }
        let is_wrong = findings.iter().any(|finding| finding.level == Level::Error);
        Ok(if is_wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    fn threads(&self) -> NonZeroUsize {
        self.threads.or_else(|| available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN)
    }

    fn training(&self) -> anyhow::Result<Option<Training>> {
        if self.against.is_empty() {
            return Ok(None);
        }
        let training = Training::open(&self.against, &self.column, self.threads())?;
        let n_bad = training.n_bad();
        if training.is_empty() && n_bad > 0 {
            // Records without the text were left out, and with them what else they have.
            let all = Training::open(&self.against, &[], self.threads())?;
            let fields = all.schema().into_keys().collect::<Vec<_>>().join(", ");
            ensure!(!fields.is_empty(), "no record can be read: {}", training.first_bad().unwrap_or_default());
            bail!("no record has the text `{}`; there are: {fields}\nhint: --column NAME", self.column.join("`, `"));
        }
        if n_bad > 0 {
            eprintln!("warning: {n_bad} record(s) without the text `{}` were left out", self.column.join("`, `"));
        }
        Ok(Some(training))
    }

    fn leaks(&self, golden: &GoldenSet, training: &Training) -> anyhow::Result<Vec<Finding>> {
        let bar = progress::bar("comparing");
        bar.set_length(training.len() as u64);
        let found = leaks(golden, training, self.near, self.threads(), |n| bar.inc(n as u64));
        bar.finish_and_clear();
        Ok(found?)
    }

    fn by_meaning(
        &self,
        golden: &GoldenSet,
        training: Option<&Training>,
        package: &VerifiedPackage,
    ) -> anyhow::Result<Vec<Finding>> {
        if !matches!(package.manifest().task.kind, TaskKind::Embed { .. }) {
            bail!("package {} does not embed texts", package.digest().short());
        }
        let options = PredictorOptions { threads: self.threads(), ..PredictorOptions::default() };
        let predictor = Predictor::open(package, &options)
            .with_context(|| format!("cannot load package {}", package.digest().short()))?;
        let bar = progress::bar("embedding");
        bar.set_length((golden.cases.len() + training.map_or(0, Training::len)) as u64);
        let found = alike_by_meaning(golden, training, &predictor, self.cosine, |n| bar.inc(n as u64));
        bar.finish_and_clear();
        Ok(found?)
    }
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "expected a number from 0 to 1")?;
    if share > 0.0 && share <= 1.0 { Ok(share) } else { Err("expected more than 0 and at most 1".to_owned()) }
}

fn labels(package: &VerifiedPackage) -> anyhow::Result<Vec<String>> {
    match &package.manifest().task.kind {
        TaskKind::Classify { labels, .. } | TaskKind::Recommend { items: labels } => Ok(labels.clone()),
        _ => bail!("package {} has no labels: it is no classifier", package.digest().short()),
    }
}

/// How many findings of a kind are printed; `--json` has all.
const MOST_SHOWN: usize = 20;

fn print_findings(report: &Report<'_>) {
    let mut by_kind: BTreeMap<_, Vec<&Finding>> = BTreeMap::new();
    for finding in report.findings {
        by_kind.entry((finding.level, finding.kind)).or_default().push(finding);
    }
    for ((level, kind), findings) in &by_kind {
        outln!("{}: {} x {kind}", word(*level), findings.len());
        let mut table = new_table(["", "cases", "alike", "what", "where"]);
        for finding in findings.iter().take(MOST_SHOWN) {
            let alike = finding.similarity.map_or_else(String::new, |similarity| format!("{similarity:.3}"));
            let place = finding.place.clone().unwrap_or_default();
            table.add_row([String::new(), named(&finding.cases), alike, finding.message.clone(), place]);
        }
        outln!("{table}");
        if findings.len() > MOST_SHOWN {
            outln!("and {} more with --json", findings.len() - MOST_SHOWN);
        }
    }
    let n_errors = report.findings.iter().filter(|finding| finding.level == Level::Error).count();
    outln!(
        "{} cases, {} training records: {n_errors} error(s), {} warning(s)",
        report.n_cases,
        report.n_training_records,
        report.findings.len() - n_errors
    );
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warning => "warning",
    }
}

fn named(cases: &[String]) -> String {
    let named = cases.iter().take(3).map(|id| one_line(id, 40)).collect::<Vec<_>>().join(", ");
    if cases.len() > 3 { format!("{named} and {} more", cases.len() - 3) } else { named }
}
