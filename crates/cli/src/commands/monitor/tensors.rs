//! Training data of a program that takes tensors.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use highroad_assess::observe_tensors;
use highroad_data::Table;
use highroad_eval::drift::{BaselineBuilder, MAX_BASELINE_ROWS};
use highroad_task::Predictor;
use highroad_task::raw::{DType, Dim, Tensor, TensorSpec};

use crate::commands::run::in_order;
use crate::progress;

/// Rows that are computed at a time.
const AT_ONCE: usize = 256;

/// Whether a file is of tensors, and not of records.
pub fn is_tensors(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "safetensors")
}

/// The rows of safetensors files that hold every input of the program by its name, or its number, along their first dimension. Beyond
/// [`MAX_BASELINE_ROWS`] evenly spread ones.
pub fn of_files(
    predictor: &Predictor,
    files: &[PathBuf],
    mut builder: BaselineBuilder,
) -> anyhow::Result<BaselineBuilder> {
    let specs = predictor.program().inputs();
    let all = files.iter().map(|path| {
        let tensors = in_order(specs, crate::tensors::read(path)?);
        tensors
            .and_then(|tensors| Samples::of(specs, tensors))
            .with_context(|| format!("`{}` is no data of this program", path.display()))
    });
    let all = all.collect::<anyhow::Result<Vec<Samples>>>()?;
    let n: usize = all.iter().map(|samples| samples.n).sum();
    let step = n.div_ceil(MAX_BASELINE_ROWS).max(1);
    let bar = progress::bar("computing");
    bar.set_length(n as u64);
    let mut n_done = 0;
    for samples in &all {
        let at_once = if samples.has_rows { AT_ONCE * step } else { step };
        for start in (0..samples.n).step_by(at_once) {
            let end = samples.n.min(start + at_once);
            let inputs = samples.rows(start, end, step)?;
            observe_tensors(predictor, &inputs, n_done)?.into_iter().for_each(|observation| builder.add(observation));
            n_done += (end - start).div_ceil(step);
            bar.inc((end - start) as u64);
        }
    }
    bar.finish_and_clear();
    Ok(builder)
}

/// Inputs of a program for many rows.
struct Samples {
    inputs: Vec<Sampled>,
    n: usize,
    /// Whether the program takes several at once.
    has_rows: bool,
}

struct Sampled {
    tensor: Tensor,
    dtype: DType,
    /// Else it is the same for all.
    has_rows: bool,
}

impl Samples {
    fn of(specs: &[TensorSpec], tensors: Vec<Tensor>) -> anyhow::Result<Self> {
        let batch = specs.first().and_then(|spec| spec.sizes.first()).filter(|dim| matches!(dim, Dim::Symbol(_)));
        let (mut inputs, mut n_rows) = (Vec::new(), None);
        for (spec, tensor) in specs.iter().zip(tensors) {
            // A program without a batch takes one row at a time.
            let has_rows = batch.is_none() || spec.sizes.first() == batch;
            let n_dims = spec.sizes.len() + usize::from(batch.is_none());
            if tensor.ndim() != n_dims {
                let found = tensor.shape();
                bail!("tensor `{}` has shape {found:?}, and {n_dims} dimensions are needed, rows first", spec.name);
            }
            let n = tensor.shape().first().copied().unwrap_or(0);
            let others = if has_rows { *n_rows.get_or_insert(n) } else { n };
            if others != n {
                bail!("tensor `{}` has {n} rows, and the one before it {others}", spec.name);
            }
            inputs.push(Sampled { tensor, dtype: spec.dtype, has_rows });
        }
        Ok(Self { inputs, n: n_rows.unwrap_or(0), has_rows: batch.is_some() })
    }

    /// Every `step`th of rows `start` to `end`, as the program takes them.
    fn rows(&self, start: usize, end: usize, step: usize) -> anyhow::Result<Vec<Tensor>> {
        let rows = |sampled: &Sampled| {
            let tensor = match (sampled.has_rows, self.has_rows) {
                (false, _) => sampled.tensor.clone(),
                (true, true) => sampled.tensor.slice(0, start, end, step)?,
                (true, false) => sampled.tensor.select(0, start)?,
            };
            Ok(tensor.cast(sampled.dtype)?.contiguous())
        };
        self.inputs.iter().map(rows).collect()
    }
}

/// The features that a table's columns are, in their order: those of the only input. Its name, and how many there must be.
pub fn features(predictor: &Predictor) -> anyhow::Result<(String, usize)> {
    match predictor.program().inputs() {
        [spec] => match spec.sizes.as_slice() {
            [Dim::Symbol(_), Dim::Known(n)] => Ok((format!("input.{}", spec.name), *n)),
            _ => bail!(
                "its input `{}` is {spec}, and columns are the features of one that is [rows, features]",
                spec.name
            ),
        },
        several => bail!("it takes {} tensors: give a .safetensors file, in which each has its name", several.len()),
    }
}

/// The rows of a table whose columns are the features of the only input.
pub fn of_table(
    predictor: &Predictor,
    table: &Table,
    rows: &[u32],
    mut builder: BaselineBuilder,
) -> anyhow::Result<BaselineBuilder> {
    let spec = predictor.program().inputs().first().context("it takes no tensor")?;
    let bar = progress::bar("computing");
    bar.set_length(rows.len() as u64);
    let mut n_done = 0;
    for chunk in rows.chunks(AT_ONCE) {
        let values = chunk.iter().map(|&row| table.numbers(row)).collect::<Result<Vec<_>, _>>()?;
        let shape = [values.len(), values.first().map_or(0, Vec::len)];
        let inputs = [Tensor::from_slice(&values.concat(), &shape)?.cast(spec.dtype)?];
        observe_tensors(predictor, &inputs, n_done)?.into_iter().for_each(|observation| builder.add(observation));
        n_done += chunk.len();
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    Ok(builder)
}
