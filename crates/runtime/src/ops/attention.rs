//! Scaled dot-product attention.

use highroad_tensor::{Attention, Causality, DType, Shape, Tensor, broadcast_shapes};

use super::{first, meta, one};
use crate::op::{Call, Declaration, FLOATS, Meta, Metas, OpError, Outputs, Tolerance};
use crate::rows;

pub(super) const OPS: &[Declaration] = &[Declaration::new(
    "aten::scaled_dot_product_attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None, float dropout_p=0.0, bool is_causal=False, *, float? scale=None, bool enable_gqa=False) -> Tensor",
    infer,
    attention,
)
.rows(rows::attended)
.within(Tolerance::SUM)
.dtypes(FLOATS)];

/// `query [.., T, D]`, `key [.., S, D]`, `value [.., S, V]`, mask broadcasting to `[.., T, S]`: result `[.., T, V]`.
fn infer(call: &Call<'_>) -> Result<Metas, OpError> {
    let [query, key, value] = [call.tensor("query")?, call.tensor("key")?, call.tensor("value")?];
    if call.float("dropout_p")? != 0.0 {
        return Err(OpError::Unsupported("attention with dropout"));
    }
    for (argument, tensor) in [("query", query), ("key", key), ("value", value)] {
        if !tensor.dtype().is_float() || tensor.dtype() != query.dtype() {
            return Err(OpError::DType { argument, dtype: tensor.dtype() });
        }
        if tensor.ndim() < 2 {
            let expected = "at least 2 dimensions".to_owned();
            return Err(OpError::Shape { argument, found: tensor.shape().into(), expected });
        }
    }
    let (lead, t, v) = shape(call, query, key, value)?;
    let out: Shape = lead.iter().copied().chain([t, v]).collect();
    meta(query.dtype(), &out)
}

fn shape(call: &Call<'_>, query: &Tensor, key: &Tensor, value: &Tensor) -> Result<(Shape, usize, usize), OpError> {
    let broken = || OpError::Broadcast { left: query.shape().into(), right: key.shape().into() };
    let ([lead_q @ .., t, d], [lead_k @ .., s, d_key], [lead_v @ .., s_value, v]) =
        (query.shape(), key.shape(), value.shape())
    else {
        return Err(broken());
    };
    if d != d_key || s != s_value {
        return Err(broken());
    }
    let lead = if call.bool("enable_gqa")? {
        grouped(lead_q, lead_k).filter(|_| lead_k == lead_v).ok_or_else(broken)?;
        Shape::from_slice(lead_q)
    } else {
        broadcast_shapes(&broadcast_shapes(lead_q, lead_k)?, lead_v)?
    };
    if let Some(mask) = call.optional_tensor("attn_mask")? {
        if call.bool("is_causal")? {
            return Err(OpError::Unsupported("a mask and causality together"));
        }
        let scores: Shape = lead.iter().copied().chain([*t, *s]).collect();
        mask.expand(&scores)?;
    }
    Ok((lead, *t, *v))
}

/// Query heads that share one key head.
fn grouped(lead_q: &[usize], lead_k: &[usize]) -> Option<usize> {
    let ([batch_q @ .., q], [batch_k @ .., k]) = (lead_q, lead_k) else { return None };
    (batch_q == batch_k && *k > 0 && q.is_multiple_of(*k)).then(|| q / k)
}

fn attention(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let result = first(metas);
    let [query, key, value] = [call.tensor("query")?, call.tensor("key")?, call.tensor("value")?];
    let lead = &result.shape[..result.shape.len() - 2];
    let shares_heads = call.bool("enable_gqa")?;
    let [query, key, value] = [query, key, value].map(|x| {
        let lead = if shares_heads { &x.shape()[..x.ndim() - 2] } else { lead };
        in_four_dims(&x.cast(DType::F32)?, lead)
    });
    let scores: Shape = lead
        .iter()
        .copied()
        .chain([call.tensor("query")?, call.tensor("key")?].map(|x| x.shape()[x.ndim() - 2]))
        .collect();
    let mask = match call.optional_tensor("attn_mask")? {
        Some(mask) if mask.dtype() == DType::Bool => Some(masks_in_four_dims(mask, &scores)?),
        Some(mask) => Some(masks_in_four_dims(&mask.cast(DType::F32)?, &scores)?),
        None => None,
    };
    let query = query?;
    let width = query.shape()[3] as f64;
    let options = Attention {
        scale: call.optional_float("scale")?.unwrap_or(1.0 / width.sqrt()) as f32,
        mask: mask.as_ref(),
        causality: if call.bool("is_causal")? { Causality::Causal } else { Causality::Full },
    };
    let out = highroad_tensor::attention(&query, &key?, &value?, &options)?;
    let out = if out.ndim() == result.shape.len() { out } else { out.reshape(&result.shape)? };
    one(out.cast(result.dtype)?)
}

/// `[.., rows, width]` with its leading dimensions expanded to `lead`, as `[batch, heads, rows, width]`.
fn in_four_dims(x: &Tensor, lead: &[usize]) -> Result<Tensor, OpError> {
    let matrix = &x.shape()[x.ndim() - 2..];
    let expanded: Shape = lead.iter().chain(matrix).copied().collect();
    let x = x.expand(&expanded)?;
    if lead.len() == 2 {
        return Ok(x);
    }
    let (batch, heads) = merged(lead);
    Ok(x.reshape(&[batch, heads, matrix[0], matrix[1]])?)
}

/// A mask that broadcasts to `scores`, for scores in four dimensions.
fn masks_in_four_dims(mask: &Tensor, scores: &[usize]) -> Result<Tensor, OpError> {
    match scores {
        [_, _, _, _] => Ok(mask.clone()),
        [lead @ .., t, s] => {
            let (batch, heads) = merged(lead);
            Ok(mask.expand(scores)?.reshape(&[batch, heads, *t, *s])?)
        }
        _ => Ok(mask.clone()),
    }
}

/// Leading dimensions as a batch and heads: the last one is the heads, all before are the batch.
fn merged(lead: &[usize]) -> (usize, usize) {
    match lead {
        [] => (1, 1),
        [batch @ .., heads] => (batch.iter().product(), *heads),
    }
}
