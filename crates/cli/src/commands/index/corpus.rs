//! Documents, line by line: never all of them in memory.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;

use anyhow::{Context as _, anyhow, bail};
use highroad_serve::index::lance::{Survey, Surveyed};
use highroad_serve::index::{Document, IndexError, MAX_DOCUMENT_BYTES};
use highroad_task::{Answer, Input, Predictor, Prompt, Purpose};

use crate::progress;

/// Documents embedded at one time, so that memory does not grow with their number.
const AT_ONCE: usize = 256;
/// Most queries that recall is measured by: each is compared with every document.
const MAX_QUERIES: usize = 10_000;

/// Errors where no texts can be read from `path`, before anything takes long.
pub fn check(path: &Path) -> anyhow::Result<()> {
    // Not opened: what comes through a pipe comes once.
    let about = std::fs::metadata(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    if about.is_dir() {
        bail!("`{}` is a folder\nhint: expected one file of JSONL", path.display());
    }
    Ok(())
}

/// Embeds every document of `path` but the first `n_there`, and hands each on with its vector; gives the number of those that were cut.
pub fn embed(
    path: &Path,
    predictor: &Predictor,
    n_there: usize,
    mut add: impl FnMut(&Document, &[f32]) -> anyhow::Result<()>,
) -> anyhow::Result<usize> {
    let (mut waiting, mut n_seen, mut n_truncated) = (Vec::new(), 0, 0);
    each(path, Of::Documents, "embedding", |document| {
        n_seen += 1;
        if n_seen <= n_there {
            return Ok(());
        }
        waiting.push(document);
        if waiting.len() == AT_ONCE {
            n_truncated += embed_some(predictor, &waiting, &mut add)?;
            waiting.clear();
        }
        Ok(())
    })?;
    n_truncated += embed_some(predictor, &waiting, &mut add)?;
    if n_seen == 0 {
        bail!("`{}` holds no document", path.display());
    }
    Ok(n_truncated)
}

/// Goes through every document of `path` before anything takes long. Errors if one is none, or two have one id.
pub fn survey(path: &Path) -> anyhow::Result<Surveyed> {
    let mut survey = Survey::new().map_err(in_temporary_folder)?;
    each(path, Of::Documents, "reading", |document| survey.add(&document).map_err(in_temporary_folder))?;
    match survey.finish() {
        Ok(surveyed) if surveyed.n_documents == 0 => bail!("`{}` holds no document", path.display()),
        Err(IndexError::Twice { hash }) => {
            let mut found = None;
            each(path, Of::Documents, "reading", |document| {
                if Survey::is_hash(&hash, &document.id) {
                    found = Some(document.id);
                }
                Ok(())
            })?;
            bail!("the id `{}` is there twice", found.unwrap_or_default());
        }
        surveyed => surveyed.map_err(in_temporary_folder),
    }
}

/// Ids are compared in files of their own, wherever the index goes.
fn in_temporary_folder(error: IndexError) -> anyhow::Error {
    let folder = std::env::temp_dir();
    match error {
        IndexError::Io { path, source } if path.starts_with(&folder) => {
            anyhow!(
                "cannot compare the documents' ids in `{}`: {source}\nhint: TMPDIR names another folder for it",
                folder.display()
            )
        }
        error => error.into(),
    }
}

/// What a file holds.
#[derive(Clone, Copy)]
enum Of {
    Documents,
    Queries,
}

impl Of {
    /// All of them, and one with its article.
    fn in_words(self) -> [&'static str; 2] {
        match self {
            Self::Documents => ["documents", "a document"],
            Self::Queries => ["queries", "a query"],
        }
    }
}

/// Every document or query of `path`, with a bar that says `what` is done to them.
fn each(
    path: &Path,
    of: Of,
    what: &str,
    mut hand_on: impl FnMut(Document) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let fail = || format!("cannot read `{}`", path.display());
    let located = |line_number: usize| format!("`{}`, line {line_number}", path.display());
    let file = File::open(path).with_context(fail)?;
    let bar = progress::bar(what);
    bar.set_length(file.metadata().with_context(fail)?.len());
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let (mut line, mut line_number) = (Vec::new(), 0);
    loop {
        line.clear();
        let n_bytes =
            (&mut reader).take(MAX_DOCUMENT_BYTES as u64 + 2).read_until(b'\n', &mut line).with_context(fail)?;
        if n_bytes == 0 {
            break;
        }
        line_number += 1;
        bar.inc(n_bytes as u64);
        if n_bytes > MAX_DOCUMENT_BYTES && !line.ends_with(b"\n") {
            let [_, one] = of.in_words();
            bail!("{}: it has more bytes than the {MAX_DOCUMENT_BYTES} that {one} may have", located(line_number));
        }
        let text = std::str::from_utf8(&line)
            .with_context(|| format!("{}: it is not UTF-8, and so no JSONL", located(line_number)))?;
        // A byte order mark is not part of the first line.
        let text = if line_number == 1 { text.trim_start_matches('\u{feff}') } else { text };
        if !text.trim().is_empty() {
            let document = Document::parse(text.trim_end(), line_number).map_err(|error| unread(error, path, of))?;
            hand_on(document)?;
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// What is wrong with a line, with the name of its file.
fn unread(error: IndexError, path: &Path, of: Of) -> anyhow::Error {
    match error {
        IndexError::Document { line: 1, reason } => {
            let [all, _] = of.in_words();
            let hint =
                format!(r#"hint: the {all} are JSONL, on each line an object such as {{"id": "a", "text": "…"}}"#);
            anyhow!("`{}`, line 1: {reason}\n{hint}", path.display())
        }
        IndexError::Document { line, reason } => anyhow!("`{}`, line {line}: {reason}", path.display()),
        error => error.into(),
    }
}

fn embed_some(
    predictor: &Predictor,
    documents: &[Document],
    add: &mut impl FnMut(&Document, &[f32]) -> anyhow::Result<()>,
) -> anyhow::Result<usize> {
    let (vectors, n_truncated) = embedded(predictor, documents, Purpose::Document)?;
    for (document, vector) in documents.iter().zip(vectors) {
        add(document, &vector)?;
    }
    Ok(n_truncated)
}

/// The vectors of `texts`, and how many of them were cut.
fn embedded(predictor: &Predictor, texts: &[Document], purpose: Purpose) -> anyhow::Result<(Vec<Vec<f32>>, usize)> {
    let input = |text: &Document| Input::Prompted { text: text.text.clone(), prompt: Prompt::For(purpose) };
    let prepared = texts.iter().map(|text| predictor.prepare(&input(text))).collect::<Result<Vec<_>, _>>()?;
    let n_truncated = prepared.iter().filter(|prepared| prepared.truncated()).count();
    let answers = texts.iter().zip(predictor.predict_prepared(&prepared)?);
    let vector = |(text, answer): (&Document, Answer)| match answer {
        Answer::Embedding { vector } => Ok(vector),
        _ => bail!("`{}` was not embedded", text.id),
    };
    Ok((answers.map(vector).collect::<anyhow::Result<_>>()?, n_truncated))
}

/// The vectors of the queries in `path`, one after another.
pub fn queries(path: &Path, predictor: &Predictor) -> anyhow::Result<Vec<f32>> {
    check(path)?;
    let mut queries = Vec::new();
    each(path, Of::Queries, "reading", |query| {
        if queries.len() == MAX_QUERIES {
            bail!("`{}` holds over {MAX_QUERIES} queries: recall is measured as well by fewer", path.display());
        }
        queries.push(query);
        Ok(())
    })?;
    if queries.is_empty() {
        bail!("`{}` holds no query", path.display());
    }
    let mut vectors = Vec::new();
    for queries in queries.chunks(AT_ONCE) {
        vectors.extend(embedded(predictor, queries, Purpose::Query)?.0.into_iter().flatten());
    }
    Ok(vectors)
}
