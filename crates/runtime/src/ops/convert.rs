//! Copies, conversions between dtypes, and what does nothing while running a model.

use super::{first, meta, one};
use crate::op::{Call, Declaration, Eval, Infer, Meta, Metas, OpError, Outputs};
use crate::rows;

pub(super) const OPS: &[Declaration] = &[
    cast("aten::to.dtype(Tensor(a) self, ScalarType dtype, bool non_blocking=False, bool copy=False, MemoryFormat? memory_format=None) -> Tensor(a)"),
    cast("aten::to.device(Tensor(a) self, Device device, ScalarType dtype, bool non_blocking=False, bool copy=False, MemoryFormat? memory_format=None) -> Tensor(a)"),
    cast("aten::to.dtype_layout(Tensor(a) self, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None, bool non_blocking=False, bool copy=False, MemoryFormat? memory_format=None) -> Tensor(a)"),
    cast("aten::_to_copy(Tensor self, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None, bool non_blocking=False, MemoryFormat? memory_format=None) -> Tensor"),
    convert(
        "aten::to.other(Tensor(a) self, Tensor other, bool non_blocking=False, bool copy=False, MemoryFormat? memory_format=None) -> Tensor(a)",
        like_other,
    ),
    convert("aten::type_as(Tensor self, Tensor other) -> Tensor", like_other),
    same("aten::clone(Tensor self, *, MemoryFormat? memory_format=None) -> Tensor"),
    same("aten::contiguous(Tensor(a) self, *, MemoryFormat memory_format=contiguous_format) -> Tensor(a)"),
    same("aten::alias(Tensor(a) self) -> Tensor(a)"),
    same("aten::detach(Tensor(a) self) -> Tensor(a)"),
    same("aten::lift_fresh_copy(Tensor self) -> Tensor"),
    same_in("aten::dropout(Tensor input, float p, bool train) -> Tensor", |c| not_training(c, "train")).in_place(),
    same_in("aten::feature_dropout(Tensor input, float p, bool train) -> Tensor", |c| not_training(c, "train")).in_place(),
    Declaration::new(
        "aten::copy(Tensor self, Tensor src, bool non_blocking=False) -> Tensor",
        |c| meta(c.tensor("self")?.dtype(), c.tensor("self")?.shape()),
        |c, m| one(c.tensor("src")?.cast(first(m).dtype)?.expand(&first(m).shape)?),
    )
    .rows(rows::elementwise)
    .in_place()
    .handwritten(),
    Declaration::new(
        "aten::_assert_tensor_metadata(Tensor a, SymInt[]? size=None, SymInt[]? stride=None, ScalarType? dtype=None, *, Device? device=None, Layout? layout=None) -> ()",
        |_| Ok(Metas::new()),
        |_, _| Ok(Outputs::new()),
    )
    .rows(|_| Ok(rows::Rows::Uniform))
    .handwritten(),
];

const fn cast(schema: &'static str) -> Declaration {
    convert(schema, |call| {
        let x = call.tensor("self")?;
        meta(call.optional_dtype("dtype")?.unwrap_or(x.dtype()), x.shape())
    })
}

const fn convert(schema: &'static str, infer: Infer) -> Declaration {
    let eval: Eval = |call, metas| one(call.tensor("self")?.cast(first(metas).dtype)?);
    Declaration::new(schema, infer, eval).rows(|call| rows::same_as(call, "self")).handwritten()
}

/// Values are never written once computed, so a copy is the tensor itself.
const fn same(schema: &'static str) -> Declaration {
    convert(schema, |call| meta(call.tensor("self")?.dtype(), call.tensor("self")?.shape()))
}

const fn same_in(schema: &'static str, infer: Infer) -> Declaration {
    let eval: Eval = |call, _: &[Meta]| one(call.tensor("input")?.clone());
    Declaration::new(schema, infer, eval).rows(|call| rows::same_as(call, "input")).handwritten()
}

fn like_other(call: &Call<'_>) -> Result<Metas, OpError> {
    meta(call.tensor("other")?.dtype(), call.tensor("self")?.shape())
}

fn not_training(call: &Call<'_>, flag: &'static str) -> Result<Metas, OpError> {
    if call.bool(flag)? && call.float("p")? > 0.0 {
        return Err(OpError::Unsupported("dropout while training"));
    }
    meta(call.tensor("input")?.dtype(), call.tensor("input")?.shape())
}
