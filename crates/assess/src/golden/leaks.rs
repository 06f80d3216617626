//! Golden cases that training data hold too.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;

use highroad_data::{DataError, Field, Local, OnBad, Place, Table};
use highroad_task::{Answer, Input, TaskError};

use super::lint::{Finding, Kind, Level};
use super::near::{Match, Texts, normalised};
use super::{GoldenKind, GoldenSet};
use crate::{GoldenError, Model};

/// Records that one thread compares at a time.
const CHUNK: u32 = 256;

/// Texts that are embedded at a time.
const EMBEDDED_AT_ONCE: u32 = 256;

/// Records a model was, or will be, trained on.
pub struct Training {
    table: Table,
    /// File and number of samples up to its end.
    ends: Vec<(String, u64)>,
}

/// The best match of a golden text among the records so far.
#[derive(Clone, Debug)]
struct Leak {
    similarity: f64,
    sample: u32,
    n_samples: usize,
}

impl Training {
    /// Opens files (JSONL, CSV, TSV, Parquet, Arrow or text, by suffix; patterns and `s3://` too) for the texts in `columns`.
    ///
    /// Records without such a text are left out and counted in [`Training::n_bad`].
    pub fn open(files: &[String], columns: &[String], threads: NonZeroUsize) -> Result<Self, DataError> {
        let place = Place::new(None).map_err(DataError::Cache)?;
        let files: Vec<Local> = highroad_data::resolve(files, &BTreeMap::new(), &place)?;
        let field = |name: &String| Field { name: name.clone(), kind: highroad_data::Kind::Str };
        let fields: Vec<Field> = columns.iter().map(field).collect();
        let table = Table::open(&files, None, fields, OnBad::Skip, &place, threads.get())?;
        let mut end = 0;
        let ends = table.files(threads.get()).into_iter().map(|file| {
            end += file.rows as u64;
            (file.path, end)
        });
        Ok(Self { ends: ends.collect(), table })
    }

    /// Number of records with texts.
    pub fn len(&self) -> usize {
        self.table.len() as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of records without.
    pub fn n_bad(&self) -> u64 {
        self.table.n_bad()
    }

    /// Where and why the first record without was left out.
    pub fn first_bad(&self) -> Option<String> {
        self.table.bad().first().map(|bad| format!("{}:{}: {}", bad.path, bad.line, bad.reason))
    }

    /// Fields of the files with their types.
    pub fn schema(&self) -> BTreeMap<String, String> {
        self.table.schema()
    }

    fn place_of(&self, sample: u32) -> String {
        let file = self.ends.partition_point(|&(_, end)| end <= u64::from(sample));
        let before = if file == 0 { 0 } else { self.ends[file - 1].1 };
        format!("{}: record {}", self.ends[file].0, u64::from(sample) - before + 1)
    }
}

/// Each golden case whose text is in `training`, as it is or nearly, told once with its closest record.
///
/// `progress` is called with the number of records just looked at, from any thread.
pub fn leaks(
    golden: &GoldenSet,
    training: &Training,
    near: f64,
    threads: NonZeroUsize,
    progress: impl Fn(usize) + Sync,
) -> Result<Vec<Finding>, DataError> {
    let held_out = HeldOut::of(golden).map_err(unreadable)?;
    let texts = Texts::new(held_out.texts.clone());
    let n_samples = training.len() as u32;
    let look = |chunk: usize| -> Result<Vec<(u32, Match)>, DataError> {
        let start = chunk as u32 * CHUNK;
        let samples = start..(start + CHUNK).min(n_samples);
        let n = samples.len();
        let found = texts_of(training, samples)?.into_iter().flat_map(|(sample, text)| {
            texts.like(&normalised(&text), near).into_iter().map(move |found| (sample, found))
        });
        let found = found.collect();
        progress(n);
        Ok(found)
    };
    let mut best: BTreeMap<usize, Leak> = BTreeMap::new();
    for found in highroad_data::in_parallel(n_samples.div_ceil(CHUNK) as usize, threads.get(), look) {
        for (sample, Match { idx, overlap }) in found? {
            note(&mut best, idx, sample, overlap);
        }
    }
    let kind = |similarity| if similarity == 1.0 { Kind::Leak } else { Kind::NearLeak };
    Ok(held_out.findings(&best, training, kind))
}

/// What an embedding model takes for the same meaning: golden cases alike among themselves (warnings) and golden cases alike to
/// a record of `training` (errors), from a cosine of `least` on.
///
/// `progress` is called with the number of texts just embedded.
pub fn alike_by_meaning(
    golden: &GoldenSet,
    training: Option<&Training>,
    model: &impl Model,
    least: f64,
    mut progress: impl FnMut(usize),
) -> Result<Vec<Finding>, MeaningError> {
    let held_out = HeldOut::of(golden)?;
    if held_out.originals.is_empty() {
        return Ok(Vec::new());
    }
    let mut embed = |texts: Vec<String>| -> Result<Vec<Vec<f32>>, MeaningError> {
        let n = texts.len();
        let inputs: Vec<Input> = texts.into_iter().map(Input::Text).collect();
        let vectors =
            model.answer_all(&inputs)?.into_iter().map(|(answer, _)| unit(answer)).collect::<Result<_, _>>()?;
        progress(n);
        Ok(vectors)
    };
    let golden_vectors = embed(held_out.originals.clone())?;
    let mut findings = same_meaning(golden, &held_out, &golden_vectors, least);
    let Some(training) = training else { return Ok(findings) };
    let mut best: BTreeMap<usize, Leak> = BTreeMap::new();
    let n_samples = training.len() as u32;
    for start in (0..n_samples).step_by(EMBEDDED_AT_ONCE as usize) {
        let samples: Vec<(u32, String)> = texts_of(training, start..(start + EMBEDDED_AT_ONCE).min(n_samples))?;
        let vectors = embed(samples.iter().map(|(_, text)| text.clone()).collect())?;
        for ((sample, _), vector) in samples.iter().zip(&vectors) {
            for (idx, golden) in golden_vectors.iter().enumerate() {
                let cosine = f64::from(dot(golden, vector));
                if cosine >= least {
                    note(&mut best, idx, *sample, cosine);
                }
            }
        }
    }
    findings.extend(held_out.findings(&best, training, |_| Kind::EmbeddingLeak));
    Ok(findings)
}

/// Texts cannot be compared by meaning.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum MeaningError {
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Golden(#[from] GoldenError),
    #[error(transparent)]
    Task(#[from] TaskError),
    #[error("the package does not embed texts")]
    NoEmbedding,
}

fn texts_of(training: &Training, samples: std::ops::Range<u32>) -> Result<Vec<(u32, String)>, DataError> {
    let mut texts = Vec::new();
    for sample in samples {
        texts.extend(training.table.texts(sample)?.into_iter().map(|text| (sample, text.into_owned())));
    }
    Ok(texts)
}

fn same_meaning(golden: &GoldenSet, held_out: &HeldOut, vectors: &[Vec<f32>], least: f64) -> Vec<Finding> {
    // Pairs repeat texts on purpose.
    if golden.kind() == GoldenKind::Similarities {
        return Vec::new();
    }
    let closest = |idx: usize| {
        let cosines = (0..idx).map(|other| (other, f64::from(dot(&vectors[other], &vectors[idx]))));
        cosines.filter(|&(_, cosine)| cosine >= least).max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)))
    };
    let finding = |idx: usize| {
        let (other, cosine) = closest(idx)?;
        let [first, second] = [other, idx].map(|idx| &golden.cases[held_out.cases[idx][0]]);
        let same_source = first.source.is_some() && first.source == second.source;
        let agree = first.case.expected == second.case.expected;
        (!(agree && same_source)).then(|| Finding {
            level: Level::Warning,
            kind: Kind::EmbeddingDuplicate,
            cases: vec![first.case.id.clone(), second.case.id.clone()],
            place: None,
            similarity: Some(cosine),
            message: format!(
                "to the model they mean the same{}",
                if agree { "" } else { ", and they expect different answers" }
            ),
        })
    };
    (0..vectors.len()).filter_map(finding).collect()
}

/// The distinct texts that must not be trained on, and the cases that ask each.
struct HeldOut {
    ids: Vec<String>,
    /// Normalised.
    texts: Vec<String>,
    originals: Vec<String>,
    cases: Vec<Vec<usize>>,
}

impl HeldOut {
    fn of(golden: &GoldenSet) -> Result<Self, GoldenError> {
        let ids = golden.ids();
        let mut this = Self { ids, texts: Vec::new(), originals: Vec::new(), cases: Vec::new() };
        let mut seen: HashMap<String, usize> = HashMap::new();
        for case_idx in 0..golden.cases.len() {
            for text in golden.input(case_idx)?.held_out() {
                let next = seen.len();
                let idx = *seen.entry(normalised(text)).or_insert(next);
                if idx == next {
                    this.texts.push(normalised(text));
                    this.originals.push(text.to_owned());
                    this.cases.push(Vec::new());
                }
                this.cases[idx].push(case_idx);
            }
        }
        Ok(this)
    }

    fn findings(&self, best: &BTreeMap<usize, Leak>, training: &Training, kind: impl Fn(f64) -> Kind) -> Vec<Finding> {
        let finding = |(&idx, leak): (&usize, &Leak)| {
            let kind = kind(leak.similarity);
            let how = match kind {
                Kind::Leak => "is trained on",
                Kind::NearLeak => "is nearly trained on",
                _ => "means the same as what is trained on",
            };
            let more = if leak.n_samples > 1 { format!(", {} records in all", leak.n_samples) } else { String::new() };
            Finding {
                level: Level::Error,
                kind,
                cases: self.cases[idx].iter().map(|&case| self.ids[case].clone()).collect(),
                place: Some(training.place_of(leak.sample)),
                similarity: Some(leak.similarity),
                message: format!("{how}{more}"),
            }
        };
        best.iter().map(finding).collect()
    }
}

fn unreadable(error: GoldenError) -> DataError {
    DataError::File { path: "the golden set".to_owned(), reason: error.to_string() }
}

fn note(best: &mut BTreeMap<usize, Leak>, idx: usize, sample: u32, similarity: f64) {
    let leak = best.entry(idx).or_insert(Leak { similarity, sample, n_samples: 0 });
    leak.n_samples += 1;
    if similarity > leak.similarity {
        (leak.similarity, leak.sample) = (similarity, sample);
    }
}

fn unit(answer: Answer) -> Result<Vec<f32>, MeaningError> {
    let Answer::Embedding { mut vector } = answer else { return Err(MeaningError::NoEmbedding) };
    let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    Ok(vector)
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    // Eight sums at a time, which the compiler keeps in one register.
    let mut sums = [0.0_f32; 8];
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(&x, &y)| x * y).sum();
    for (xs, ys) in a_chunks.zip(b_chunks) {
        for (sum, (&x, &y)) in sums.iter_mut().zip(xs.iter().zip(ys)) {
            *sum += x * y;
        }
    }
    sums.iter().sum::<f32>() + rest
}
