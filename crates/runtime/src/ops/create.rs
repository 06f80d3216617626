//! Tensors made from sizes and numbers alone.

use highroad_tensor::{Convert, DType, Element, Scalar, Shape, Tensor, with_element};

use super::promote::scalar_dtype;
use super::{first, meta, one, sizes};
use crate::op::{Call, Declaration, Eval, Infer, Meta, Metas, NUMBERS, OpError, Outputs, check_size};
use crate::rows::{self, RowRule};

const OPTIONS: RowRule = |call| rows::sized(call, "size");

pub(super) const OPS: &[Declaration] = &[
    filled("aten::zeros(SymInt[] size, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None) -> Tensor", ZERO),
    filled("aten::ones(SymInt[] size, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None) -> Tensor", ONE),
    // What an empty tensor holds is never part of a program's meaning.
    filled("aten::empty.memory_format(SymInt[] size, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None, MemoryFormat? memory_format=None) -> Tensor", ZERO),
    filled("aten::new_zeros(Tensor self, SymInt[] size, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None) -> Tensor", ZERO),
    filled("aten::new_ones(Tensor self, SymInt[] size, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None) -> Tensor", ONE),
    filled("aten::new_empty(Tensor self, SymInt[] size, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None) -> Tensor", ZERO),
    Declaration { infer: infer_full, ..filled("aten::full(SymInt[] size, Scalar fill_value, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None) -> Tensor", FILL) },
    filled("aten::new_full(Tensor self, SymInt[] size, Scalar fill_value, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None) -> Tensor", FILL),
    like("aten::zeros_like(Tensor self, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None, MemoryFormat? memory_format=None) -> Tensor", ZERO),
    like("aten::ones_like(Tensor self, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None, MemoryFormat? memory_format=None) -> Tensor", ONE),
    like("aten::empty_like(Tensor self, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None, MemoryFormat? memory_format=None) -> Tensor", ZERO),
    like("aten::full_like(Tensor self, Scalar fill_value, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None, MemoryFormat? memory_format=None) -> Tensor", FILL),
    like("aten::fill.Scalar(Tensor self, Scalar value) -> Tensor", |c, m| fill(m, c.scalar("value")?)).in_place().handwritten(),
    like("aten::zero(Tensor self) -> Tensor", ZERO).in_place().handwritten(),
    Declaration::new("aten::scalar_tensor(Scalar s, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None) -> Tensor", infer_scalar, |c, m| fill(m, c.scalar("s")?))
        .rows(rows::elementwise),
    range("aten::arange(Scalar end, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None) -> Tensor"),
    range("aten::arange.start(Scalar start, Scalar end, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None) -> Tensor"),
    range("aten::arange.start_step(Scalar start, Scalar end, Scalar step=1, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None) -> Tensor"),
    Declaration::new("aten::tril(Tensor self, SymInt diagonal=0) -> Tensor", like_self, |c, m| triangle(c, m, Side::Lower))
        .rows(|c| rows::leading(c, "self", 2))
        .in_place(),
    Declaration::new("aten::triu(Tensor self, SymInt diagonal=0) -> Tensor", like_self, |c, m| triangle(c, m, Side::Upper))
        .rows(|c| rows::leading(c, "self", 2))
        .in_place(),
];

const ZERO: Eval = |_, metas| fill(metas, Scalar::Int(0));
const ONE: Eval = |_, metas| fill(metas, Scalar::Int(1));
const FILL: Eval = |call, metas| fill(metas, call.scalar("fill_value")?);

const fn filled(schema: &'static str, eval: Eval) -> Declaration {
    let infer: Infer = |call| {
        let default = if has(call, "self") { call.tensor("self")?.dtype() } else { DType::F32 };
        meta(call.optional_dtype("dtype")?.unwrap_or(default), &sizes(&call.ints("size")?)?)
    };
    Declaration::new(schema, infer, eval).rows(OPTIONS).handwritten()
}

const fn like(schema: &'static str, eval: Eval) -> Declaration {
    let infer: Infer = |call| {
        let x = call.tensor("self")?;
        let dtype = if has(call, "dtype") { call.optional_dtype("dtype")? } else { None };
        meta(dtype.unwrap_or(x.dtype()), x.shape())
    };
    Declaration::new(schema, infer, eval).rows(|call| rows::constant_like(call, "self"))
}

const fn range(schema: &'static str) -> Declaration {
    Declaration::new(schema, infer_range, eval_range).rows(rows::counted).dtypes(NUMBERS).handwritten()
}

fn has(call: &Call<'_>, argument: &str) -> bool {
    call.op().schema().position(argument).is_some()
}

fn like_self(call: &Call<'_>) -> Result<Metas, OpError> {
    meta(call.tensor("self")?.dtype(), call.tensor("self")?.shape())
}

fn fill(metas: &[Meta], value: Scalar) -> Result<Outputs, OpError> {
    let meta = first(metas);
    // One element, repeated without a copy.
    one(Tensor::full(meta.dtype, &[], value)?.expand(&meta.shape)?)
}

fn infer_full(call: &Call<'_>) -> Result<Metas, OpError> {
    let dtype = call.optional_dtype("dtype")?.unwrap_or(scalar_dtype(call.scalar("fill_value")?));
    meta(dtype, &sizes(&call.ints("size")?)?)
}

fn infer_scalar(call: &Call<'_>) -> Result<Metas, OpError> {
    meta(call.optional_dtype("dtype")?.unwrap_or(DType::F32), &[])
}

/// `start`, `end` and `step` with their defaults.
fn bounds(call: &Call<'_>) -> Result<[Scalar; 3], OpError> {
    let or = |name, default| if has(call, name) { call.scalar(name) } else { Ok(Scalar::Int(default)) };
    Ok([or("start", 0)?, call.scalar("end")?, or("step", 1)?])
}

fn infer_range(call: &Call<'_>) -> Result<Metas, OpError> {
    let bounds = bounds(call)?;
    let is_float = bounds.iter().any(|bound| matches!(bound, Scalar::Float(_)));
    let dtype = call.optional_dtype("dtype")?.unwrap_or(if is_float { DType::F32 } else { DType::I64 });
    let meta = Meta::new(dtype, &[range_len(bounds)?]);
    check_size(&meta, call.limits())?;
    Ok(Metas::from_elem(meta, 1))
}

fn range_len([start, end, step]: [Scalar; 3]) -> Result<usize, OpError> {
    const WRONG_WAY: OpError = OpError::Unsupported("a range whose step is zero or points away from its end");
    if let (Scalar::Int(start), Scalar::Int(end), Scalar::Int(step)) = (start, end, step) {
        let span = end.checked_sub(start).ok_or(OpError::Overflow)?;
        if step == 0 || (span != 0 && (span < 0) != (step < 0)) {
            return Err(WRONG_WAY);
        }
        return Ok(usize::try_from(span.unsigned_abs().div_ceil(step.unsigned_abs())).unwrap_or(usize::MAX));
    }
    let n = ((end.to::<f64>() - start.to::<f64>()) / step.to::<f64>()).ceil();
    // Also refuses NaN.
    if n >= 0.0 { Ok(n as usize) } else { Err(WRONG_WAY) }
}

fn eval_range(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let [start, _, step] = bounds(call)?;
    let meta = first(metas);
    let n = meta.shape[0];
    one(match meta.dtype {
        DType::F32 | DType::F64 | DType::F16 | DType::BF16 => {
            let (start, step) = (start.to::<f64>(), step.to::<f64>());
            let values: Vec<f64> = (0..n).map(|i| start + step * i as f64).collect();
            Tensor::from_slice(&values, &[n])?.cast(meta.dtype)?
        }
        _ => {
            let (start, step) = (start.to::<i64>(), step.to::<i64>());
            let values: Vec<i64> = (0..n).map(|i| start.wrapping_add(step.wrapping_mul(i as i64))).collect();
            Tensor::from_slice(&values, &[n])?.cast(meta.dtype)?
        }
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Side {
    Lower,
    Upper,
}

fn triangle(call: &Call<'_>, metas: &[Meta], side: Side) -> Result<Outputs, OpError> {
    let x = call.tensor("self")?;
    if x.ndim() < 2 {
        let expected = "at least 2 dimensions".to_owned();
        return Err(OpError::Shape { argument: "self", found: x.shape().into(), expected });
    }
    let diagonal = call.int("diagonal")?;
    let meta = first(metas);
    with_element!(meta.dtype, T => one(triangle_of::<T>(x, &meta.shape, diagonal, side)?))
}

fn triangle_of<T: Element + Convert>(x: &Tensor, shape: &Shape, diagonal: i64, side: Side) -> Result<Tensor, OpError> {
    let mut out = Tensor::zeros(x.dtype(), shape)?;
    let [.., n_rows, n_columns] = shape.as_slice() else { return Ok(out) };
    let source = x.contiguous();
    let from = source.as_slice::<T>().expect("just made contiguous");
    let to = out.as_mut_slice::<T>().expect("just made");
    for (at, (to, &from)) in to.iter_mut().zip(from).enumerate() {
        let (row, column) = ((at / n_columns % n_rows) as i64, (at % n_columns) as i64);
        let distance = (column - row).saturating_sub(diagonal);
        let is_kept = if side == Side::Lower { distance <= 0 } else { distance >= 0 };
        if is_kept {
            *to = from;
        }
    }
    Ok(out)
}
