//! Highroad's own operators: what fusion passes put in place of several of PyTorch's.

use highroad_tensor::{DType, LayerNorm, LinearWeights, Tensor, Unary, layer_norm, linear};
use smallvec::SmallVec;

use super::convolution::{convolve, infer as infer_convolution};
use super::linear::{infer_linear, pack_linear, release};
use super::normalise::infer_layer_norm;
use super::{first, one};
use crate::op::{Call, Declaration, Meta, Metas, OpError, Outputs, Prepared, Tolerance, Value};
use crate::rows;

const F32: &[DType] = &[DType::F32];

pub(super) const OPS: &[Declaration] = &[
    Declaration::new(
        "highroad::linear(Tensor input, Tensor weight, Tensor? bias, str activation) -> Tensor",
        |call| {
            activation(call)?;
            infer_linear(call)
        },
        linear_activated,
    )
    .prepare(pack_linear)
    .rows(|call| rows::leading(call, "input", 1))
    .within(Tolerance::SUM)
    .dtypes(F32)
    .handwritten(),
    Declaration::new(
        "highroad::linears(Tensor input, Tensor[] weights, Tensor?[] biases) -> Tensor[]",
        infer_linears,
        linears,
    )
    .prepare(pack_linears)
    .rows(|call| rows::leading(call, "input", 1))
    .within(Tolerance::SUM)
    .dtypes(F32)
    .handwritten(),
    Declaration::new(
        "highroad::add_layer_norm(Tensor input, Tensor residual, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float eps) -> Tensor",
        infer_add_layer_norm,
        add_layer_norm,
    )
    .rows(rows::added_and_normalised)
    .within(Tolerance::SUM)
    .dtypes(F32)
    .handwritten(),
    Declaration::new(
        "highroad::conv2d_norm(Tensor input, Tensor weight, Tensor? bias, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups, Tensor? norm_weight, Tensor? norm_bias, Tensor running_mean, Tensor running_var, float eps, str activation) -> Tensor",
        infer_conv2d_norm,
        conv2d_norm,
    )
    .prepare(|call| Some(Box::new(Folded::of_constants(call)?)))
    .rows(rows::first_only)
    .within(Tolerance::SUM)
    .dtypes(F32)
    .handwritten(),
];

/// Activations that a layer can end with, by the name that passes give them.
fn activation(call: &Call<'_>) -> Result<Unary, OpError> {
    Ok(match call.str("activation")? {
        "none" => Unary::Identity,
        "relu6" => Unary::Clamp { min: 0.0, max: 6.0 },
        "relu" => Unary::Relu,
        "gelu" => Unary::Gelu,
        "gelu_tanh" => Unary::GeluTanh,
        "silu" => Unary::Silu,
        "sigmoid" => Unary::Sigmoid,
        "tanh" => Unary::Tanh,
        _ => return Err(OpError::Unsupported("a layer that ends with this activation")),
    })
}

fn only_f32(argument: &'static str, tensor: &Tensor) -> Result<(), OpError> {
    let dtype = tensor.dtype();
    if dtype == DType::F32 { Ok(()) } else { Err(OpError::DType { argument, dtype }) }
}

fn linear_activated(call: &Call<'_>, _: &[Meta]) -> Result<Outputs, OpError> {
    let (x, activation) = (call.tensor("input")?, activation(call)?);
    only_f32("input", x)?;
    match call.prepared::<LinearWeights>() {
        Some(weights) => one(linear(x, weights, activation)?),
        None => {
            let weights = LinearWeights::new(call.tensor("weight")?, call.optional_tensor("bias")?)?;
            one(linear(x, &weights, activation)?)
        }
    }
}

/// Weight and bias of each layer; errors unless there is one bias, or none, for each weight.
fn layers(call: &Call<'_>) -> Result<Vec<(Tensor, Option<Tensor>)>, OpError> {
    let (weights, biases) = (call.tensors("weights")?, call.optional_tensors("biases")?);
    if weights.len() != biases.len() || weights.is_empty() {
        return Err(OpError::Unsupported("layers without a weight and a bias, or none, for each"));
    }
    weights.iter().try_for_each(|weight| only_f32("weights", weight))?;
    Ok(weights.into_iter().cloned().zip(biases.into_iter().map(|bias| bias.cloned())).collect())
}

fn infer_linears(call: &Call<'_>) -> Result<Metas, OpError> {
    let x = call.tensor("input")?;
    only_f32("input", x)?;
    let wrong =
        |expected: &str| OpError::Shape { argument: "input", found: x.shape().into(), expected: expected.to_owned() };
    let (&width, lead) = x.shape().split_last().ok_or_else(|| wrong("at least 1 dimension"))?;
    let out = |(weight, bias): (Tensor, Option<Tensor>)| {
        let fits = weight.ndim() == 2 && weight.shape()[1] == width;
        let n_out = if fits { weight.shape()[0] } else { return Err(wrong("the width of every weight")) };
        match bias {
            Some(bias) if bias.shape() != [n_out] => Err(wrong("a bias as long as its weight has rows")),
            _ => Ok(Meta::new(DType::F32, &lead.iter().copied().chain([n_out]).collect::<SmallVec<[usize; 6]>>())),
        }
    };
    layers(call)?.into_iter().map(out).collect()
}

fn pack_linears(call: &Call<'_>) -> Option<Prepared> {
    if !call.is_constant("weights") || !call.is_constant("biases") {
        return None;
    }
    let layers = layers(call).ok()?;
    let packed = LinearWeights::stacked(&layers).ok()?;
    layers.iter().for_each(|(weight, _)| release(weight));
    Some(Box::new(packed))
}

/// One product; each result is a view of its columns.
fn linears(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let x = call.tensor("input")?;
    let all = match call.prepared::<LinearWeights>() {
        Some(weights) => linear(x, weights, Unary::Identity)?,
        None => linear(x, &LinearWeights::stacked(&layers(call)?)?, Unary::Identity)?,
    };
    let last = x.ndim() - 1;
    let mut start = 0;
    metas
        .iter()
        .map(|meta| {
            let part = all.narrow(last, start, meta.shape[last])?;
            start += meta.shape[last];
            Ok(Value::Tensor(part))
        })
        .collect()
}

fn infer_add_layer_norm(call: &Call<'_>) -> Result<Metas, OpError> {
    let (x, residual) = (call.tensor("input")?, call.tensor("residual")?);
    only_f32("input", x)?;
    only_f32("residual", residual)?;
    if x.shape() != residual.shape() {
        let expected = format!("{:?}", x.shape());
        return Err(OpError::Shape { argument: "residual", found: residual.shape().into(), expected });
    }
    infer_layer_norm(call)
}

fn add_layer_norm(call: &Call<'_>, _: &[Meta]) -> Result<Outputs, OpError> {
    let norm = LayerNorm {
        weight: call.optional_tensor("weight")?,
        bias: call.optional_tensor("bias")?,
        eps: call.float("eps")?,
    };
    let n_dims = call.ints("normalized_shape")?.len();
    one(layer_norm(call.tensor("input")?, Some(call.tensor("residual")?), n_dims, &norm)?)
}

/// The weights of a convolution into which those of the batch norm behind it went.
struct Folded {
    weight: Tensor,
    bias: Tensor,
}

impl Folded {
    /// `norm(conv(x))` is a convolution whose filters are scaled: `y = (w x + b - mean) s + beta` with
    /// `s = gamma / sqrt(var + eps)`. In f64, so that folding rounds once.
    fn of(call: &Call<'_>) -> Result<Self, OpError> {
        let weight = call.tensor("weight")?.contiguous();
        let n = weight.shape().first().copied().unwrap_or(0);
        let channels = |argument: &'static str, absent: f64| -> Result<Vec<f64>, OpError> {
            let Some(tensor) = call.optional_tensor(argument)? else { return Ok(vec![absent; n]) };
            if tensor.shape() != [n] {
                let expected = format!("[{n}]");
                return Err(OpError::Shape { argument, found: tensor.shape().into(), expected });
            }
            let values = tensor.cast(DType::F64)?;
            Ok(values.to_vec().expect("just converted"))
        };
        let (gamma, beta) = (channels("norm_weight", 1.0)?, channels("norm_bias", 0.0)?);
        let (mean, var) = (channels("running_mean", 0.0)?, channels("running_var", 1.0)?);
        let (bias, eps) = (channels("bias", 0.0)?, call.float("eps")?);
        let scales: Vec<f64> = (0..n).map(|o| gamma[o] / (var[o] + eps).sqrt()).collect();
        let shifts: Vec<f32> = (0..n).map(|o| ((bias[o] - mean[o]) * scales[o] + beta[o]) as f32).collect();
        only_f32("weight", &weight)?;
        let values = weight.as_slice::<f32>().expect("made contiguous, and checked to be f32");
        let filter = values.len() / n.max(1);
        let scaled: Vec<f32> =
            values.iter().enumerate().map(|(i, &w)| (f64::from(w) * scales[i / filter]) as f32).collect();
        Ok(Self { weight: Tensor::from_slice(&scaled, weight.shape())?, bias: Tensor::from_slice(&shifts, &[n])? })
    }

    fn of_constants(call: &Call<'_>) -> Option<Self> {
        let names = ["weight", "bias", "norm_weight", "norm_bias", "running_mean", "running_var"];
        let folded = names.iter().all(|name| call.is_constant(name)).then(|| Self::of(call).ok()).flatten()?;
        release(call.tensor("weight").ok()?);
        Some(folded)
    }
}

fn infer_conv2d_norm(call: &Call<'_>) -> Result<Metas, OpError> {
    only_f32("input", call.tensor("input")?)?;
    activation(call)?;
    infer_convolution(call, 2)
}

fn conv2d_norm(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let now;
    let folded = match call.prepared::<Folded>() {
        Some(folded) => folded,
        None => {
            now = Folded::of(call)?;
            &now
        }
    };
    convolve(call, first(metas), &folded.weight, Some(&folded.bias), activation(call)?)
}
