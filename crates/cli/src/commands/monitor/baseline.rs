use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::available_parallelism;

use anyhow::{Context as _, bail};
use highroad_assess::{
    GoldenSet, HostedModel, KeptAnswers, KeptReplies, Results, golden_baseline, hosted_baseline, observe,
};
use highroad_data::{Field, Kind, Local, OnBad, Place, Table};
use highroad_eval::drift::{Baseline, BaselineBuilder, BaselineError, MAX_BASELINE_ROWS, Source};
use highroad_package::registry::{RegistryClient, ResolvedVersion};
use highroad_package::{Baselines, Digest, TaskKind, VerifiedPackage};
use highroad_task::{Input, Predictor, PredictorOptions};
use jiff::Timestamp;
use serde_json::json;

use crate::commands::eval::print_json;
use crate::commands::golden::{self, Unblessed};
use crate::commands::monitor::tensors;
use crate::progress;
use crate::repo::file_digest;
use crate::resolve::{Home, Target};
use crate::tracking;

/// Make what monitoring compares a package's traffic with: distributions of lengths, languages, tokens, embeddings, tensors and answers. No
/// text is in it. `highroad eval` and `highroad gate` make one of their golden set; one of data goes before it.
#[derive(clap::Args)]
pub struct Args {
    /// The package: a directory, a digest in the local store, or a reference such as `router:7`.
    package: Target,
    /// Data like what production will ask, such as the training data: JSONL, CSV, TSV, Parquet, Arrow or text; of a package that computes
    /// tensors also safetensors, with each input by its name, rows first. May be given again.
    #[arg(long, value_name = "FILE", conflicts_with = "golden")]
    data: Vec<PathBuf>,
    /// The column of the text; of a reranker the query's and the document's; of a package whose only input is rows of features one for each
    /// of these, which signals are called after.
    #[arg(long, value_name = "NAME", default_value = "text")]
    column: Vec<String>,
    /// The column of the right label, where there is one: the accuracy that live answers are compared with.
    #[arg(long, value_name = "NAME", requires = "data")]
    label: Option<String>,
    /// The golden set (JSONL) where there is no --data; the one of highroad.toml unless told.
    #[arg(long, value_name = "FILE")]
    golden: Option<PathBuf>,
    /// Answers less sure than this count as abstentions; unless told, those less sure than nineteen of twenty of the baseline's.
    #[arg(long, value_name = "CONFIDENCE")]
    abstain_below: Option<f64>,
    /// Threads; all cores unless told.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Write the baseline to this file too.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print digest, rows and signals as JSON.
    #[arg(long)]
    json: bool,
}

/// Rows that are answered at a time.
const AT_ONCE: usize = 256;

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let home = Home::find();
        let package = self.package.resolve(&home)?.package;
        let predictor = open(&package, self.threads)?;
        let builder = BaselineBuilder::default().abstaining_below(self.abstain_below);
        let is_tensors = matches!(package.manifest().task.kind, TaskKind::Tensors);
        let (builder, source) = match self.data.is_empty() {
            true if is_tensors => {
                bail!("a package that computes tensors has its baseline of data: name it with --data")
            }
            true => {
                let golden = golden::read(self.golden.as_deref(), Unblessed::Warn)?;
                let answers = KeptAnswers::none();
                (golden_baseline(&predictor, &golden, None, &answers, builder)?, source_of(&golden))
            }
            false if is_tensors => (self.of_tensors(&predictor, builder)?, source_of_files(&self.data)?),
            false => (self.of_data(&predictor, builder)?, source_of_files(&self.data)?),
        };
        let (digest, baseline, bytes) = keep(&home, &package.digest(), builder, source)?;
        if let Some(path) = &self.out {
            std::fs::write(path, bytes).with_context(|| format!("cannot write `{}`", path.display()))?;
        }
        if self.json {
            let signals: Vec<&String> = baseline.signals.keys().collect();
            print_json(
                &json!({ "baseline": digest, "package": baseline.package, "n_rows": baseline.n_rows, "signals": signals }),
            )?;
        } else {
            crate::outln!("{digest}");
            eprintln!("{} inputs, {} signals; `highroad push` sends it along", baseline.n_rows, baseline.signals.len());
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Of what a program that takes tensors was trained on.
    fn of_tensors(&self, predictor: &Predictor, builder: BaselineBuilder) -> anyhow::Result<BaselineBuilder> {
        if self.label.is_some() {
            bail!("a package that computes tensors answers no labels: leave out --label");
        }
        if self.data.iter().all(|path| tensors::is_tensors(path)) {
            return tensors::of_files(predictor, &self.data, builder);
        }
        let (tensor, n_features) = tensors::features(predictor)?;
        if self.column.len() != n_features {
            bail!("name each of the {n_features} features of `{tensor}` with --column, in their order");
        }
        if let Some(twice) = self.column.iter().enumerate().find(|(at, name)| self.column[..*at].contains(name)) {
            bail!("column `{}` is named twice, and signals are called after columns", twice.1);
        }
        let fields = self.column.iter().map(|name| Field { name: name.clone(), kind: Kind::F64 }).collect();
        let place = Place::new(None).context("cannot make a folder for intermediate files")?;
        let (table, rows) = self.table(fields, &place)?;
        tensors::of_table(predictor, &table, &rows, builder.naming(&tensor, self.column.clone()))
    }

    /// The data as records, and the rows that are taken, evenly spread.
    fn table(&self, fields: Vec<Field>, place: &Place) -> anyhow::Result<(Table, Vec<u32>)> {
        let threads = self.threads.or_else(|| available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN).get();
        let files: Vec<String> = self.data.iter().map(|path| path.display().to_string()).collect();
        let files: Vec<Local> = highroad_data::resolve(&files, &Default::default(), place)?;
        let table = Table::open(&files, None, fields, OnBad::Skip, place, threads)?;
        if table.n_bad() > 0 {
            eprintln!("warning: {} records have no value in {}", table.n_bad(), self.column.join(", "));
        }
        let n = table.len() as usize;
        let n_taken = n.min(MAX_BASELINE_ROWS);
        Ok((table, (0..n_taken).map(|at| (at * n / n_taken) as u32).collect()))
    }

    fn of_data(&self, predictor: &Predictor, mut builder: BaselineBuilder) -> anyhow::Result<BaselineBuilder> {
        let is_rerank = matches!(predictor.manifest().task.kind, TaskKind::Rerank);
        let n_texts = if is_rerank { 2 } else { 1 };
        if predictor.manifest().task.image.is_some() {
            bail!("a package that sees images has its baseline from a golden set: leave out --data");
        }
        if self.column.len() != n_texts {
            bail!("name {n_texts} column(s) with --column: this package is asked {n_texts} text(s) at a time");
        }
        let place = Place::new(None).context("cannot make a folder for intermediate files")?;
        let columns = self.column.iter().chain(&self.label);
        let fields = columns.map(|name| Field { name: name.clone(), kind: Kind::Str }).collect();
        let (table, rows) = self.table(fields, &place)?;
        let bar = progress::bar("answering");
        bar.set_length(rows.len() as u64);
        for chunk in rows.chunks(AT_ONCE) {
            let texts = chunk.iter().map(|&row| table.texts(row)).collect::<Result<Vec<_>, _>>()?;
            let input = |texts: &Vec<std::borrow::Cow<'_, str>>| match texts.as_slice() {
                [query, document, ..] if is_rerank => {
                    Input::Pair { query: query.to_string(), document: document.to_string() }
                }
                texts => Input::Text(texts.first().map(ToString::to_string).unwrap_or_default()),
            };
            let (inputs, labels): (Vec<Input>, Vec<Option<String>>) = texts
                .iter()
                .filter(|texts| !texts[0].trim().is_empty())
                .map(|texts| (input(texts), texts.get(n_texts).map(ToString::to_string)))
                .unzip();
            let observed = observe(predictor, &inputs, None)?;
            for (observation, right) in observed.into_iter().zip(labels) {
                let answered =
                    observation.classes.iter().find(|(name, _)| *name == "label").map(|(_, label)| label.clone());
                if let Some((right, answered)) = right.zip(answered) {
                    builder.judged(right == answered);
                }
                builder.add(observation);
            }
            bar.inc(chunk.len() as u64);
        }
        bar.finish_and_clear();
        Ok(builder)
    }
}

fn source_of_files(files: &[PathBuf]) -> anyhow::Result<Source> {
    let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let digests = files.iter().map(|path| Ok(file_digest(path)?.map_or(String::new(), |digest| digest.to_string())));
    let digests = digests.collect::<anyhow::Result<Vec<String>>>()?;
    let digest = match digests.as_slice() {
        [only] => only.clone(),
        several => Digest::of(several.join("\n").as_bytes()).to_string(),
    };
    let names: Vec<String> = files.iter().map(name).collect();
    Ok(Source { kind: "data".to_owned(), name: names.join(", "), digest })
}

fn open(package: &VerifiedPackage, threads: Option<NonZeroUsize>) -> anyhow::Result<Predictor> {
    let threads = threads.or_else(|| available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN);
    let options = PredictorOptions { threads, ..PredictorOptions::default() };
    Predictor::open(package, &options).with_context(|| format!("cannot load package {}", package.digest().short()))
}

fn source_of(golden: &GoldenSet) -> Source {
    Source { kind: "golden".to_owned(), name: golden.name.clone(), digest: golden.digest.to_string() }
}

/// Where baselines are kept.
fn baselines(home: &Home) -> Baselines {
    Baselines::at(home.path().join("baselines"))
}

fn keep(
    home: &Home,
    package: &Digest,
    builder: BaselineBuilder,
    source: Source,
) -> anyhow::Result<(Digest, Baseline, Vec<u8>)> {
    let at = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string();
    let baseline = builder.finish(package.to_string(), source, at, tracking::whoami())?;
    let bytes = serde_json::to_vec(&baseline)?;
    // What is written must be read again.
    let baseline = Baseline::parse(&bytes)?;
    let digest = baselines(home).put(package, &bytes)?;
    Ok((digest, baseline, bytes))
}

/// Keeps a baseline of what was just evaluated, unless there is one of the same golden set. Evaluating goes on without it.
pub fn keep_of_golden(package: &VerifiedPackage, golden: &GoldenSet, results: &Results) {
    // Tensors are compared with the rows that trained the program, of which there are enough.
    let is_tensors = matches!(package.manifest().task.kind, TaskKind::Tensors);
    let home = Home::find();
    if is_tensors || is_known(&home, &package.digest(), &golden.digest.to_string()) {
        return;
    }
    let make = || -> anyhow::Result<()> {
        let predictor = open(package, None)?;
        let root = home.path().join("answers");
        let kept = KeptAnswers::open(&root, &predictor.digest(), &predictor.numerics_id())?;
        let builder = golden_baseline(&predictor, golden, Some(results), &kept, BaselineBuilder::default())?;
        keep(&home, &package.digest(), builder, source_of(golden)).map(drop)
    };
    tell_unless_small(make());
}

/// Keeps a baseline of the rows that trained a program, unless there is one of the same file.
pub fn keep_of_training(package: &VerifiedPackage, training: &Path) -> anyhow::Result<()> {
    let home = Home::find();
    let source = source_of_files(std::slice::from_ref(&training.to_owned()))?;
    if is_known(&home, &package.digest(), &source.digest) {
        return Ok(());
    }
    let builder = tensors::of_files(&open(package, None)?, &[training.to_owned()], BaselineBuilder::default())?;
    tell_unless_small(keep(&home, &package.digest(), builder, source).map(drop));
    Ok(())
}

/// [`keep_of_golden`] of a model that somebody else hosts, under the digest of its description.
pub fn keep_of_hosted(model: &HostedModel, golden: &GoldenSet, results: &Results) {
    let home = Home::find();
    if is_known(&home, &model.digest(), &golden.digest.to_string()) {
        return;
    }
    let make = || -> anyhow::Result<()> {
        let kept = KeptReplies::open(&home.path().join("answers"), &model.digest())?;
        let builder = hosted_baseline(model.hosted(), golden, results, &kept, BaselineBuilder::default())?;
        keep(&home, &model.digest(), builder, source_of(golden)).map(drop)
    };
    tell_unless_small(make());
}

/// Whether there is a baseline of a golden set or a file.
fn is_known(home: &Home, package: &Digest, source: &str) -> bool {
    let known = baselines(home);
    let of_this_set = |digest: Digest| {
        let bytes = known.get(package, &digest).ok()?;
        Baseline::parse(&bytes).ok().filter(|baseline| baseline.source.digest == source)
    };
    known.list(package).unwrap_or_default().into_iter().any(|digest| of_this_set(digest).is_some())
}

fn tell_unless_small(made: anyhow::Result<()>) {
    let too_small = |error: &anyhow::Error| matches!(error.downcast_ref(), Some(BaselineError::Small { .. }));
    if let Err(error) = made
        && !too_small(&error)
    {
        eprintln!("note: no baseline for monitoring is kept: {error:#}");
    }
}

/// Sends the baselines of a package that was pushed as `version`, the one that counts last.
pub async fn send_newest(client: &RegistryClient, home: &Home, version: &ResolvedVersion) -> anyhow::Result<()> {
    let known = baselines(home);
    let read = |digest: Digest| {
        let bytes = known.get(&version.package, &digest).ok()?;
        let baseline = Baseline::parse(&bytes).ok()?;
        Some(((baseline.source.kind == "data", baseline.created_at), bytes))
    };
    let mut found: Vec<_> = known.list(&version.package)?.into_iter().filter_map(read).collect();
    found.sort();
    // An answer of a server takes no more than a few.
    for (_, bytes) in found.into_iter().rev().take(MOST_SENT).rev() {
        client.push_baseline(version, bytes).await?;
    }
    Ok(())
}

/// Most baselines of a package that travel with it.
const MOST_SENT: usize = 4;
