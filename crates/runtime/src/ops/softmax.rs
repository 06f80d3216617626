//! Softmax and its logarithm.

use highroad_tensor::{DType, Softmax, Tensor, softmax};

use super::{dim, first, meta, one};
use crate::op::{Call, Declaration, Eval, FLOATS, Meta, Metas, OpError, Outputs, Tolerance};
use crate::rows;

pub(super) const OPS: &[Declaration] = &[
    row("aten::softmax.int(Tensor self, int dim, ScalarType? dtype=None) -> Tensor", |c, m| eval(c, m, Softmax::Plain)),
    row("aten::_softmax(Tensor self, int dim, bool half_to_float) -> Tensor", |c, m| eval(c, m, Softmax::Plain))
        .handwritten(),
    row("aten::_safe_softmax(Tensor self, int dim, ScalarType? dtype=None) -> Tensor", |c, m| {
        eval(c, m, Softmax::Safe)
    })
    .handwritten(),
    row("aten::log_softmax.int(Tensor self, int dim, ScalarType? dtype=None) -> Tensor", |c, m| {
        eval(c, m, Softmax::Log)
    }),
    row("aten::_log_softmax(Tensor self, int dim, bool half_to_float) -> Tensor", |c, m| eval(c, m, Softmax::Log))
        .handwritten(),
];

const fn row(schema: &'static str, eval: Eval) -> Declaration {
    Declaration::new(schema, infer, eval)
        .rows(|call| rows::along(call, "self", "dim"))
        .within(Tolerance::CLOSE)
        .dtypes(FLOATS)
}

fn infer(call: &Call<'_>) -> Result<Metas, OpError> {
    let x = call.tensor("self")?;
    dim(call.int("dim")?, x.ndim())?;
    let has_dtype = call.op().schema().position("dtype").is_some();
    let dtype = if has_dtype { call.optional_dtype("dtype")? } else { None }.unwrap_or(x.dtype());
    if !dtype.is_float() {
        return Err(OpError::DType { argument: "self", dtype });
    }
    meta(dtype, x.shape())
}

fn eval(call: &Call<'_>, metas: &[Meta], kind: Softmax) -> Result<Outputs, OpError> {
    let (x, result) = (call.tensor("self")?, first(metas));
    let at = dim(call.int("dim")?, x.ndim())?;
    if x.numel() == 0 {
        return one(Tensor::zeros(result.dtype, x.shape())?);
    }
    let x = x.cast(DType::F32)?;
    let y = if x.ndim() == 0 { softmax(&x.unsqueeze(0)?, 0, kind)?.select(0, 0)? } else { softmax(&x, at, kind)? };
    one(y.cast(result.dtype)?)
}
