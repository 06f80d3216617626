//! Normalisation layers, as they run after training.

use highroad_tensor::{DType, LayerNorm, Tensor, parallel};

use super::reduce::lane_sum;
use super::{first, meta, one};
use crate::op::{Call, Declaration, FLOATS, Meta, Metas, OpError, Outputs, Tolerance};
use crate::rows;

pub(super) const OPS: &[Declaration] = &[
    Declaration::new(
        "aten::layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, Tensor? bias=None, float eps=1e-05, bool cudnn_enable=True) -> Tensor",
        infer_layer_norm,
        layer_norm,
    )
    .rows(rows::layer_normalised)
    .within(Tolerance::SUM)
    .dtypes(FLOATS),
    Declaration::new(
        "aten::rms_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, float? eps=None) -> Tensor",
        infer_layer_norm,
        rms_norm,
    )
    .rows(rows::layer_normalised)
    .within(Tolerance::SUM)
    .dtypes(FLOATS),
    Declaration::new(
        "aten::group_norm(Tensor input, int num_groups, Tensor? weight=None, Tensor? bias=None, float eps=1e-05, bool cudnn_enabled=True) -> Tensor",
        infer_group_norm,
        group_norm,
    )
    .rows(rows::first_only)
    .within(Tolerance::SUM)
    .dtypes(FLOATS),
    Declaration::new(
        "aten::batch_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, bool training, float momentum, float eps, bool cudnn_enabled) -> Tensor",
        infer_batch_norm,
        batch_norm,
    )
    .rows(rows::first_only)
    .within(Tolerance::SUM)
    .dtypes(FLOATS),
    Declaration::new(
        "aten::_native_batch_norm_legit_no_training(Tensor input, Tensor? weight, Tensor? bias, Tensor running_mean, Tensor running_var, float momentum, float eps) -> (Tensor, Tensor, Tensor)",
        |call| {
            let mut metas = infer_batch_norm(call)?;
            metas.extend([Meta::new(metas[0].dtype, &[0]), Meta::new(metas[0].dtype, &[0])]);
            Ok(metas)
        },
        |call, metas| {
            let mut outputs = batch_norm(call, metas)?;
            for meta in &metas[1..] {
                outputs.push(crate::op::Value::Tensor(Tensor::zeros(meta.dtype, &meta.shape)?));
            }
            Ok(outputs)
        },
    )
    .rows(rows::first_only)
    .within(Tolerance::SUM)
    .dtypes(FLOATS)
    .handwritten(),
];

/// Rows below which one thread normalises them all.
const ELEMENTS_PER_TASK: usize = 1 << 14;

fn infer_float(call: &Call<'_>) -> Result<Metas, OpError> {
    let x = call.tensor("input")?;
    if !x.dtype().is_float() {
        return Err(OpError::DType { argument: "input", dtype: x.dtype() });
    }
    meta(x.dtype(), x.shape())
}

pub(super) fn infer_layer_norm(call: &Call<'_>) -> Result<Metas, OpError> {
    let x = call.tensor("input")?;
    let normalised = super::sizes(&call.ints("normalized_shape")?)?;
    if normalised.is_empty() || !x.shape().ends_with(&normalised) {
        let expected = format!("sizes that end with {normalised:?}");
        return Err(OpError::Shape { argument: "input", found: x.shape().into(), expected });
    }
    check_affine(call, "weight", &normalised)?;
    if call.op().schema().position("bias").is_some() {
        check_affine(call, "bias", &normalised)?;
    }
    infer_float(call)
}

fn check_affine(call: &Call<'_>, argument: &'static str, shape: &[usize]) -> Result<(), OpError> {
    match call.optional_tensor(argument)? {
        Some(tensor) if tensor.shape() != shape => {
            Err(OpError::Shape { argument, found: tensor.shape().into(), expected: format!("{shape:?}") })
        }
        _ => Ok(()),
    }
}

/// A vector of `n` parameters as f32, or `default` where it is absent.
fn parameters(call: &Call<'_>, argument: &'static str, n: usize, default: f32) -> Result<Vec<f32>, OpError> {
    match call.optional_tensor(argument)? {
        Some(tensor) => Ok(tensor.cast(DType::F32)?.to_vec::<f32>().expect("just converted")),
        None => Ok(vec![default; n]),
    }
}

/// Calls `normalise(row index, row)` for each run of `n` elements of a copy of `x`.
fn each_row(
    x: &Tensor,
    n: usize,
    meta: &Meta,
    normalise: impl Fn(usize, &mut [f32]) + Sync,
) -> Result<Outputs, OpError> {
    let mut out = Tensor::scratch(DType::F32, x.shape())?;
    let to = out.as_mut_slice::<f32>().expect("just made");
    x.cast(DType::F32)?.copy_into(to)?;
    if let Some(rows) = ELEMENTS_PER_TASK.checked_div(n).map(|rows| rows.max(1)) {
        parallel::for_each_chunk(to, rows * n, |task, chunk| {
            for (row, values) in (task * rows..).zip(chunk.chunks_exact_mut(n)) {
                normalise(row, values);
            }
        });
    }
    one(out.cast(meta.dtype)?)
}

/// Mean and 1 / standard deviation.
fn moments(row: &[f32], eps: f64) -> (f32, f32) {
    let n = row.len() as f64;
    let mean = lane_sum(row, f64::from) / n;
    let variance = lane_sum(row, |x| (f64::from(x) - mean) * (f64::from(x) - mean)) / n;
    (mean as f32, (1.0 / (variance + eps).sqrt()) as f32)
}

fn layer_norm(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let x = call.tensor("input")?.cast(DType::F32)?;
    if x.numel() == 0 {
        return one(Tensor::zeros(first(metas).dtype, x.shape())?);
    }
    let (weight, bias) = (f32_parameter(call, "weight")?, f32_parameter(call, "bias")?);
    let norm = LayerNorm { weight: weight.as_ref(), bias: bias.as_ref(), eps: call.float("eps")? };
    one(highroad_tensor::layer_norm(&x, None, call.ints("normalized_shape")?.len(), &norm)?.cast(first(metas).dtype)?)
}

fn f32_parameter(call: &Call<'_>, argument: &'static str) -> Result<Option<Tensor>, OpError> {
    Ok(call.optional_tensor(argument)?.map(|tensor| tensor.cast(DType::F32)).transpose()?)
}

fn rms_norm(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let n: usize = super::sizes(&call.ints("normalized_shape")?)?.iter().product();
    let weight = parameters(call, "weight", n, 1.0)?;
    let eps = call.optional_float("eps")?.unwrap_or(f64::from(f32::EPSILON));
    each_row(call.tensor("input")?, n, first(metas), |_, row| {
        let mean_square = lane_sum(row, |x| f64::from(x) * f64::from(x)) / row.len() as f64;
        let scale = (1.0 / (mean_square + eps).sqrt()) as f32;
        row.iter_mut().zip(&weight).for_each(|(x, w)| *x = *x * scale * w);
    })
}

/// `[batch, channels, ...]`, its batch size, channels and elements a channel.
fn channels(x: &Tensor) -> Result<[usize; 3], OpError> {
    match x.shape() {
        [batch, channels, inner @ ..] => Ok([*batch, *channels, inner.iter().product()]),
        _ => {
            let expected = "at least 2 dimensions".to_owned();
            Err(OpError::Shape { argument: "input", found: x.shape().into(), expected })
        }
    }
}

fn infer_group_norm(call: &Call<'_>) -> Result<Metas, OpError> {
    let x = call.tensor("input")?;
    let [_, channels, _] = channels(x)?;
    let groups = call.int("num_groups")?;
    if groups <= 0 || !(channels as i64).unsigned_abs().is_multiple_of(groups.unsigned_abs()) {
        let expected = format!("channels that {groups} groups divide");
        return Err(OpError::Shape { argument: "input", found: x.shape().into(), expected });
    }
    check_affine(call, "weight", &[channels])?;
    check_affine(call, "bias", &[channels])?;
    infer_float(call)
}

fn group_norm(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let x = call.tensor("input")?;
    let [_, channels, inner] = channels(x)?;
    let groups = call.int("num_groups")? as usize;
    let (weight, bias) = (parameters(call, "weight", channels, 1.0)?, parameters(call, "bias", channels, 0.0)?);
    let eps = call.float("eps")?;
    let per_group = channels / groups;
    each_row(x, per_group * inner, first(metas), |row, values| {
        let (mean, scale) = moments(values, eps);
        let start = row % groups * per_group;
        for (channel, values) in (start..).zip(values.chunks_exact_mut(inner)) {
            values.iter_mut().for_each(|x| *x = (*x - mean) * scale * weight[channel] + bias[channel]);
        }
    })
}

fn infer_batch_norm(call: &Call<'_>) -> Result<Metas, OpError> {
    if call.op().schema().position("training").is_some() && call.bool("training")? {
        return Err(OpError::Unsupported("batch normalisation while training; call `model.eval()` before the export"));
    }
    let x = call.tensor("input")?;
    // As PyTorch, which looks at nothing else of an empty input.
    if x.numel() == 0 {
        return infer_float(call);
    }
    let [_, channels, _] = channels(x)?;
    for argument in ["running_mean", "running_var"] {
        call.tensor(argument)?;
        check_affine(call, argument, &[channels])?;
    }
    check_affine(call, "weight", &[channels])?;
    check_affine(call, "bias", &[channels])?;
    infer_float(call)
}

fn batch_norm(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let x = call.tensor("input")?.cast(DType::F32)?;
    if x.numel() == 0 {
        return one(Tensor::zeros(first(metas).dtype, x.shape())?);
    }
    let (weight, bias) = (f32_parameter(call, "weight")?, f32_parameter(call, "bias")?);
    let moment = |name| -> Result<Tensor, OpError> { Ok(call.tensor(name)?.cast(DType::F32)?) };
    let norm = LayerNorm { weight: weight.as_ref(), bias: bias.as_ref(), eps: call.float("eps")? };
    let y = highroad_tensor::batch_norm(&x, &moment("running_mean")?, &moment("running_var")?, &norm)?;
    one(y.cast(first(metas).dtype)?)
}
