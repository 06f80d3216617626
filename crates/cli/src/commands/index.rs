use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use highroad_package::TaskKind;
use highroad_serve::index::{Builder, Document, Embedder, Index, MAX_DOCUMENT_BYTES};
use highroad_task::{Answer, Input, Predictor, PredictorOptions};
use serde_json::json;

use crate::outln;
use crate::progress;
use crate::resolve::{Home, Target};

/// `highroad index DOCUMENTS --embedder PACKAGE`
#[derive(clap::Args)]
pub struct Args {
    /// The documents: JSONL, each line an object with `text` and, if they have names, `id`; what else it has is handed through.
    documents: PathBuf,
    /// What embeds them: a package directory, a digest in the local store, or a reference. Pipelines must embed queries with the same package.
    #[arg(long, value_name = "PACKAGE")]
    embedder: Target,
    /// The index's folder; it must not exist.
    #[arg(long, short, value_name = "DIR", default_value = "index")]
    output: PathBuf,
    /// Threads; all cores unless told.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Documents embedded at one time, so that memory does not grow with their number.
const AT_ONCE: usize = 256;

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let home = Home::find();
        let resolved = self.embedder.resolve(&home)?;
        let package = resolved.package;
        let threads = self.threads.or_else(|| std::thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN);
        let predictor = Predictor::open(&package, &PredictorOptions { threads, ..PredictorOptions::default() })?;
        let TaskKind::Embed { dimensions, .. } = predictor.manifest().task.kind else {
            bail!("`{}` does not embed", predictor.manifest().name);
        };
        let embedder = Embedder {
            package: predictor.digest(),
            name: predictor.manifest().name.clone(),
            numerics_id: predictor.numerics_id(),
        };
        let mut builder = Builder::new(&self.output, embedder, dimensions as usize)?;
        let n_truncated = embed(&self.documents, &predictor, &mut builder)?;
        builder.finish()?;
        let index = Index::open(&self.output)?;
        let description = index.description();
        if self.json {
            outln!(
                "{}",
                json!({ "index": self.output, "digest": index.digest(), "description": description, "n_truncated": n_truncated })
            );
        } else {
            outln!("{}", index.digest());
            let (n, name) = (description.n_documents, &description.embedder.name);
            eprintln!(
                "{n} documents, embedded by {name} ({}), in `{}`",
                description.embedder.package.short(),
                self.output.display()
            );
        }
        if n_truncated > 0 {
            eprintln!("{n_truncated} documents are longer than the model reads: only their beginnings are found");
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Embeds every line of `path`; gives the number of documents that were cut.
fn embed(path: &Path, predictor: &Predictor, builder: &mut Builder) -> anyhow::Result<usize> {
    let fail = || format!("cannot read `{}`", path.display());
    let file = File::open(path).with_context(fail)?;
    let bar = progress::bar("embedding");
    bar.set_length(file.metadata().with_context(fail)?.len());
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let (mut documents, mut line_number, mut n_truncated) = (Vec::new(), 0, 0);
    loop {
        let mut line = Vec::new();
        let n_bytes =
            (&mut reader).take(MAX_DOCUMENT_BYTES as u64 + 2).read_until(b'\n', &mut line).with_context(fail)?;
        if n_bytes == 0 {
            break;
        }
        line_number += 1;
        bar.inc(n_bytes as u64);
        let text = std::str::from_utf8(&line).with_context(|| format!("document {line_number}: it is not UTF-8"))?;
        if text.trim().is_empty() {
            continue;
        }
        documents.push(Document::parse(text.trim_end(), line_number)?);
        if documents.len() == AT_ONCE {
            n_truncated += add(predictor, builder, &documents)?;
            documents.clear();
        }
    }
    n_truncated += add(predictor, builder, &documents)?;
    bar.finish_and_clear();
    if line_number == 0 {
        bail!("`{}` holds no document", path.display());
    }
    Ok(n_truncated)
}

fn add(predictor: &Predictor, builder: &mut Builder, documents: &[Document]) -> anyhow::Result<usize> {
    let prepare = |document: &Document| predictor.prepare(&Input::Text(document.text.clone()));
    let prepared = documents.iter().map(prepare).collect::<Result<Vec<_>, _>>()?;
    let n_truncated = prepared.iter().filter(|prepared| prepared.truncated()).count();
    for (document, answer) in documents.iter().zip(predictor.predict_prepared(&prepared)?) {
        let Answer::Embedding { vector } = answer else { bail!("document `{}` was not embedded", document.id) };
        builder.add(document, &vector)?;
    }
    Ok(n_truncated)
}
