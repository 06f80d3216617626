use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, anyhow, bail};
use highroad_package::registry::dependents::{Build, DependentIndex};
use highroad_package::{Digest, Reference, Selector, TaskKind};
use highroad_serve::config::is_member_name;
use highroad_serve::index::{
    Approximate, Builder, DESCRIPTION, Description, Embedder, Index, IndexError, Recall, Wanted, build_by, describe,
};
use highroad_task::{Predictor, PredictorOptions, document_prompt};
use serde_json::json;

use super::gate::REQUIRED;
use crate::resolve::{Home, Target};
use crate::tracking::{self, TrackingArgs};
use crate::{outln, progress};

mod corpus;
mod lance;

/// Embed documents into an index, or forget that one depends on an alias.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Command {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    build: Args,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Forget that an index depends on an alias: the alias moves without regard to it.
    Forget(Forget),
}

/// `highroad index DOCUMENTS --embedder PACKAGE`
#[derive(clap::Args)]
pub struct Args {
    /// The documents: JSONL, each line an object with `text` and, if they have names, `id`; what else it has is handed through.
    #[arg(required = true)]
    documents: Option<PathBuf>,
    /// What embeds them: a package directory, a digest in the local store, or a reference; what --for names unless told. Pipelines
    /// must embed queries with the same package.
    #[arg(long, value_name = "PACKAGE", required_unless_present = "dependence")]
    embedder: Option<Target>,
    /// The index's folder. Where it holds the same index as another package embedded it, this one goes into a folder inside it.
    #[arg(long, short, value_name = "DIR", default_value = "index")]
    output: PathBuf,
    /// The alias that the index's embedder follows, such as `embedder@champion`: the registry then moves it to no package by which
    /// there is no build of this index.
    #[arg(id = "dependence", long = "for", value_name = "MODEL@ALIAS")]
    dependence: Option<Reference>,
    /// What the registry calls the index; the folder's name unless told.
    #[arg(long, requires = "dependence")]
    name: Option<String>,
    /// Search a part of the vectors, so much that this share of the exact search's nearest documents is found: 0.95 unless told. For
    /// corpora that are too large to be read whole for every query.
    #[arg(long, value_name = "RECALL", num_args = 0..=1, require_equals = true, default_missing_value = "0.95", value_parser = parse_recall)]
    approximate: Option<f64>,
    /// With --approximate: queries as they will come, JSONL, each line an object with `text`: that share of their nearest documents is to be
    /// found. Unless told, documents are sought, and queries may be less like them.
    #[arg(long, value_name = "FILE", requires = "approximate")]
    queries: Option<PathBuf>,
    #[command(flatten)]
    lance: lance::LanceArgs,
    /// Threads; all cores unless told.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tracking: TrackingArgs,
}

/// `highroad index forget NAME --for MODEL@ALIAS`
#[derive(clap::Args)]
struct Forget {
    /// What the registry calls the index.
    name: String,
    /// The alias that it depends on.
    #[arg(long = "for", value_name = "MODEL@ALIAS")]
    dependence: Reference,
    #[command(flatten)]
    tracking: TrackingArgs,
}

impl Command {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.action {
            Some(Action::Forget(args)) => args.run(),
            None => self.build.run(),
        }
    }
}

impl Forget {
    fn run(self) -> anyhow::Result<ExitCode> {
        let (model, alias) = aliased(&self.dependence)?;
        let tracking = tracking::client(&self.tracking)?;
        tracking.block_on(tracking.client().forget_index([model, alias], &self.name))?;
        eprintln!("`{model}@{alias}` moves without regard to the index `{}`", self.name);
        Ok(ExitCode::SUCCESS)
    }
}

fn parse_recall(text: &str) -> Result<f64, String> {
    let recall: f64 = text.parse().map_err(|_| "expected a share, such as 0.95")?;
    if recall > 0.0 && recall <= 1.0 { Ok(recall) } else { Err("expected above 0 and up to 1".to_owned()) }
}

/// The model and the alias of a reference.
fn aliased(reference: &Reference) -> anyhow::Result<(&str, &str)> {
    match &reference.selector {
        Selector::Alias(alias) => Ok((&reference.name, alias)),
        _ => bail!("`{reference}` follows no alias: expected such as `{}@champion`", reference.name),
    }
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let documents = self.documents.as_deref().expect(REQUIRED);
        corpus::check(documents)?;
        let home = Home::find();
        // A declaration that cannot be made is told before anything takes long.
        let declaration = self.declaration(documents)?;
        let predictor = self.open_embedder(&home)?;
        let TaskKind::Embed { dimensions, .. } = predictor.manifest().task.kind else {
            bail!("`{}` does not embed", predictor.manifest().name);
        };
        let embedder = Embedder {
            package: predictor.digest(),
            name: predictor.manifest().name.clone(),
            numerics_id: predictor.numerics_id(),
            prompt: document_prompt(&predictor.manifest().task).map(str::to_owned),
        };
        let there = if declaration.is_some() { self.build_there(&predictor.digest())? } else { None };
        let (folder, n_truncated) = match there {
            Some(folder) => {
                eprintln!("`{}` holds this build already: it is declared as it is", folder.display());
                drop(Index::open(&folder)?);
                (folder, 0)
            }
            None => self.build(documents, &predictor, embedder, dimensions as usize)?,
        };
        let (description, digest) = describe(&folder)?;
        if let Some(declaration) = declaration {
            declaration.make(Build { package: predictor.digest(), digest })?;
        }
        self.report(&folder, &description, digest, n_truncated)?;
        Ok(ExitCode::SUCCESS)
    }

    /// The build by `package` that the output holds.
    fn build_there(&self, package: &Digest) -> anyhow::Result<Option<PathBuf>> {
        if self.output.join(DESCRIPTION).exists() { Ok(build_by(&self.output, package)?) } else { Ok(None) }
    }

    /// Embeds the documents; gives the folder, and how many of them were cut.
    fn build(
        &self,
        documents: &Path,
        predictor: &Predictor,
        embedder: Embedder,
        dimensions: usize,
    ) -> anyhow::Result<(PathBuf, usize)> {
        let n_threads = self.threads().get();
        let queries = self.queries.as_deref().map(|queries| corpus::queries(queries, predictor)).transpose()?;
        let queries = queries.unwrap_or_default();
        let wanted = self.approximate.map(|recall| Wanted { recall, queries, n_threads });
        if let Some(parent) = self.output.parent() {
            std::fs::create_dir_all(parent)
                .with_context(|| format!("cannot make the folder `{}`", parent.display()))?;
        }
        if let Some(store) = self.lance.store(&self.output, wanted.clone(), n_threads)? {
            return store.build(documents, predictor, (embedder, dimensions), &self.output, n_threads);
        }
        let unmade = |error| unmade(error, &self.output);
        let mut builder = Builder::new(&self.output, embedder, dimensions).map_err(unmade)?.approximate(wanted);
        let mut n_documents = 0;
        let add = |document: &_, vector: &[f32]| {
            n_documents += 1;
            builder.add(document, vector).map_err(unmade)
        };
        let n_truncated = corpus::embed(documents, predictor, 0, add)?;
        let bar = progress::bar("");
        let finishing = builder.finish(&|n_linked| progress::show(&bar, "linking".to_owned(), [n_linked, n_documents]));
        bar.finish_and_clear();
        let folder = finishing.map_err(unmade)?;
        drop(Index::open(&folder)?);
        Ok((folder, n_truncated))
    }

    fn threads(&self) -> NonZeroUsize {
        self.threads.or_else(|| std::thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN)
    }

    fn open_embedder(&self, home: &Home) -> anyhow::Result<Predictor> {
        let followed = || self.dependence.as_ref().map(|reference| reference.to_string().parse::<Target>());
        let target = match &self.embedder {
            Some(target) => target.clone(),
            None => followed().expect(REQUIRED)?,
        };
        let package = target.resolve(home)?.package;
        let threads = self.threads();
        Ok(Predictor::open(&package, &PredictorOptions { threads, ..PredictorOptions::default() })?)
    }

    fn declaration(&self, documents: &Path) -> anyhow::Result<Option<Declaration>> {
        let Some(reference) = &self.dependence else { return Ok(None) };
        let (model, alias) = aliased(reference)?;
        let folder_name = || self.output.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = self.name.clone().or_else(folder_name).unwrap_or_default();
        if !is_member_name(&name) {
            bail!(
                "`{name}` cannot name an index: letters, digits, `.`, `_` and `-`, at most 64\nhint: --name gives it another"
            );
        }
        let index =
            DependentIndex::new([&name, alias], &documents.display().to_string(), &self.output.display().to_string());
        let tracking = tracking::client(&self.tracking)?;
        tracking.block_on(tracking.client().model_tags(model))?;
        Ok(Some(Declaration { model: model.to_owned(), index, tracking: self.tracking.clone() }))
    }

    fn report(
        &self,
        folder: &Path,
        description: &Description,
        digest: Digest,
        n_truncated: usize,
    ) -> anyhow::Result<()> {
        if self.json {
            outln!(
                "{}",
                json!({ "index": folder, "digest": digest, "description": description, "n_truncated": n_truncated })
            );
        } else {
            outln!("{digest}");
            let (n, name) = (description.n_documents, &description.embedder.name);
            eprintln!(
                "{n} documents, embedded by {name} ({}), in `{}`",
                description.embedder.package.short(),
                folder.display()
            );
        }
        if let Some(Approximate { breadth, n_links, recall, .. }) = description.approximate {
            tell_recall(&format!("along {n_links} links, {breadth} documents at a time,"), recall);
            if self.approximate.is_some_and(|wanted| recall.value < wanted) {
                eprintln!("warning: that is as many as this search can find: leave out --approximate to find all");
            }
        }
        if let Some(table) = &description.lance {
            eprintln!("version {} of the table `{}` in LanceDB", table.version, table.name);
            if let Some(ann) = table.ann {
                tell_recall(
                    &format!("in {} of {} partitions ({})", ann.n_probes, ann.n_partitions, ann.kind.as_str()),
                    ann.recall,
                );
            }
        }
        if n_truncated > 0 {
            eprintln!("{n_truncated} documents are longer than the model reads: only their beginnings are found");
        }
        Ok(())
    }
}

/// Why there is no index in `output`, in the words of who asked for it: what is not whole yet lies beside it under another name.
fn unmade(error: IndexError, output: &Path) -> anyhow::Error {
    let output = output.display();
    match error {
        IndexError::Io { path, source } if is_unfinished(&path) => {
            anyhow!("cannot write the index `{output}`: {source}")
        }
        IndexError::Lance { uri, reason } if is_unfinished(Path::new(&uri)) => {
            anyhow!("cannot make the index `{output}` in LanceDB: {reason}")
        }
        IndexError::Exists { .. } => anyhow!(
            "`{output}` exists already\nhint: build into another folder and name that in `[indexes]` of the portfolio, which running servers \
             take up; or remove this one first"
        ),
        error => error.into(),
    }
}

fn is_unfinished(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str().to_string_lossy().starts_with(".index-"))
}

fn tell_recall(how: &str, recall: Recall) {
    let Recall { at, value, n_queries } = recall;
    if n_queries == 0 {
        eprintln!("there are too few documents to measure what a search finds: it reads all of them");
        return;
    }
    eprintln!("a search {how} finds {:.1} % of the {at} nearest documents ({n_queries} queries)", 100.0 * value);
}

/// What the registry is told once the index is there.
struct Declaration {
    model: String,
    index: DependentIndex,
    tracking: TrackingArgs,
}

impl Declaration {
    fn make(self, build: Build) -> anyhow::Result<()> {
        let Self { model, index, tracking } = self;
        let tracking = tracking::client(&tracking)?;
        let declared = tracking.block_on(tracking.client().declare_index(&model, index, build))?;
        eprintln!(
            "`{model}@{}` moves only to packages that embedded the index `{}`: {} so far",
            declared.alias,
            declared.index,
            declared.builds.len()
        );
        Ok(())
    }
}
