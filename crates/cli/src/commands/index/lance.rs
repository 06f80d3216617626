//! `--store lance`: an index in a table of LanceDB, on this machine or in a bucket.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{anyhow, bail};
use highroad_serve::index::lance::{AnnKind, LanceBuilder, LanceConfig, Phase, Plan, uri_problem};
use highroad_serve::index::{DESCRIPTION, Embedder, Wanted, describe};
use highroad_task::Predictor;

use super::{corpus, unmade};
use crate::progress;

#[derive(clap::Args)]
pub struct LanceArgs {
    /// Where vectors and documents go: into the index's folder, to be searched in memory, or into a table of LanceDB, for corpora that
    /// outgrow memory; unless told as the folder holds them by another package, else `folder`.
    #[arg(long, value_name = "STORE")]
    store: Option<StoreKind>,
    /// With `--store lance`: where the table goes, a folder or `s3://BUCKET/PREFIX`; into the index's folder unless told. Credentials and
    /// endpoint are those of the environment.
    #[arg(long, value_name = "URI")]
    to: Option<String>,
    /// With `--store lance` and --approximate: the kind of index, `ivf-flat` unless told, `ivf-pq` or `ivf-hnsw-sq`.
    #[arg(long, value_name = "KIND", value_parser = parse_kind, requires = "approximate")]
    ann: Option<AnnKind>,
    /// With `--store lance`: most memory of the LanceDB process, MiB.
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    memory_mb: Option<u64>,
    /// With `--store lance`: an interpreter with the package `lancedb`; that of the folder or the active environment unless told.
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq)]
enum StoreKind {
    Folder,
    Lance,
}

impl FromStr for StoreKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "folder" => Ok(Self::Folder),
            "lance" => Ok(Self::Lance),
            _ => Err("expected `folder` or `lance`".to_owned()),
        }
    }
}

fn parse_kind(text: &str) -> Result<AnnKind, String> {
    let known = AnnKind::ALL.into_iter().find(|kind| kind.as_str() == text);
    known.ok_or_else(|| "expected `ivf-flat`, `ivf-pq` or `ivf-hnsw-sq`".to_owned())
}

/// A table that is to be.
pub struct LanceStore {
    uri: Option<String>,
    ann: Option<(AnnKind, Wanted)>,
    config: LanceConfig,
}

impl LanceArgs {
    /// The table that documents go to, where they go to one: told, or because the index in `output` by another package is in one. Errors
    /// where an option is about a table and there is none.
    pub fn store(
        &self,
        output: &Path,
        approximate: Option<Wanted>,
        n_threads: usize,
    ) -> anyhow::Result<Option<LanceStore>> {
        let beside = match output.join(DESCRIPTION).exists() {
            true => describe(output)?.0.lance,
            false => None,
        };
        let is_lance = self.store.map_or(beside.is_some(), |store| store == StoreKind::Lance);
        if !is_lance {
            let given = [
                ("--to", self.to.is_some()),
                ("--ann", self.ann.is_some()),
                ("--memory-mb", self.memory_mb.is_some()),
                ("--python", self.python.is_some()),
            ];
            if let Some((option, _)) = given.iter().find(|(_, is_given)| *is_given) {
                bail!("{option} is about a table of LanceDB\nhint: add `--store lance`");
            }
            return Ok(None);
        }
        let place = self.to.as_deref().map(place).transpose()?;
        let kind = |wanted| (self.ann.unwrap_or(AnnKind::IvfFlat), wanted);
        // As the first build is, unless anything is told.
        let as_beside = || {
            let ann = beside.as_ref().and_then(|table| table.ann)?;
            Some((ann.kind, Wanted { recall: ann.recall.value.min(0.95), queries: Vec::new(), n_threads }))
        };
        let (python, memory_mb) = (self.python.clone(), self.memory_mb);
        Ok(Some(LanceStore {
            uri: place.or_else(|| beside.as_ref().and_then(|table| table.uri.clone())),
            ann: approximate.map(kind).or_else(|| as_beside().filter(|_| self.store.is_none())),
            config: LanceConfig { python, memory_mb, ..LanceConfig::default() },
        }))
    }
}

/// A folder by its whole path, because the description says it to servers that run elsewhere; a bucket as it is.
fn place(uri: &str) -> anyhow::Result<String> {
    if let Some(problem) = uri_problem(uri) {
        bail!("--to: {problem}");
    }
    match uri.contains("://") {
        true => Ok(uri.trim_end_matches('/').to_owned()),
        false => Ok(std::path::absolute(uri)?.display().to_string()),
    }
}

impl LanceStore {
    /// Embeds the documents into the table; gives the index's folder, and how many documents were cut.
    pub fn build(
        self,
        documents: &Path,
        predictor: &Predictor,
        (embedder, dimensions): (Embedder, usize),
        output: &Path,
        n_threads: usize,
    ) -> anyhow::Result<(PathBuf, usize)> {
        let surveyed = corpus::survey(documents)?;
        let unmade = |error| unmade(error, output);
        let Self { uri, ann, config } = self;
        let target = output.to_owned();
        let plan = Plan { target, uri, embedder, dimensions, surveyed, ann, n_threads, config };
        let mut builder = LanceBuilder::begin(plan).map_err(unmade)?;
        let n_there = builder.n_there();
        if n_there > 0 {
            eprintln!("{n_there} of {} documents are there from an earlier build: it goes on", surveyed.n_documents);
        }
        let add = |document: &_, vector: &[f32]| builder.add(document, vector).map_err(|error| goes_on(unmade(error)));
        let n_truncated = corpus::embed(documents, predictor, n_there, add)?;
        let bar = progress::bar("");
        let folder = builder.finish(&mut |phase, done| progress::show(&bar, message(phase).to_owned(), done));
        bar.finish_and_clear();
        Ok((folder.map_err(|error| goes_on(unmade(error)))?, n_truncated))
    }
}

/// An error after which a table is begun.
fn goes_on(error: anyhow::Error) -> anyhow::Error {
    anyhow!("{error:#}\nhint: the table that was begun stays; the same command goes on with it")
}

fn message(phase: Phase) -> &'static str {
    match phase {
        Phase::Indexing => "building the approximate index",
        Phase::Reading => "reading back",
        Phase::Measuring => "measuring recall",
    }
}
