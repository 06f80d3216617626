//! Many elements into one along some dimensions, running sums, and order statistics.
//!
//! Sums add element `i` to lane `i % 8` and then the lanes, in f64: the result depends on the values in order and
//! neither on the shape around them nor on zeros appended to them.

use std::cmp::Ordering;

use highroad_tensor::{DType, Shape, Tensor, parallel};

use super::promote::{compute, to_float};
use super::{dim, dims, first, meta, one};
use crate::op::{
    ALL, Call, Declaration, Eval, FLOATS, Infer, Ints, Meta, Metas, NUMBERS, OpError, Outputs, Tolerance, Value,
};
use crate::rows;

pub(super) const OPS: &[Declaration] = &[
    reduce("aten::sum(Tensor self, *, ScalarType? dtype=None) -> Tensor", infer_sum, sum).within(Tolerance::SUM),
    reduce("aten::sum.dim_IntList(Tensor self, int[1]? dim, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor", infer_sum, sum)
        .within(Tolerance::SUM),
    reduce("aten::mean(Tensor self, *, ScalarType? dtype=None) -> Tensor", infer_mean, mean).within(Tolerance::SUM).dtypes(FLOATS),
    reduce("aten::mean.dim(Tensor self, int[1]? dim, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor", infer_mean, mean)
        .within(Tolerance::SUM)
        .dtypes(FLOATS),
    reduce("aten::prod(Tensor self, *, ScalarType? dtype=None) -> Tensor", infer_sum, prod).within(Tolerance::SUM),
    reduce("aten::prod.dim_int(Tensor self, int dim, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor", infer_sum, prod)
        .within(Tolerance::SUM),
    reduce("aten::amax(Tensor self, int[1] dim=[], bool keepdim=False) -> Tensor", infer_same, |c, m| extreme(c, m, Ordering::Greater)),
    reduce("aten::amin(Tensor self, int[1] dim=[], bool keepdim=False) -> Tensor", infer_same, |c, m| extreme(c, m, Ordering::Less)),
    reduce("aten::max(Tensor self) -> Tensor", infer_same, |c, m| extreme(c, m, Ordering::Greater)),
    reduce("aten::min(Tensor self) -> Tensor", infer_same, |c, m| extreme(c, m, Ordering::Less)),
    reduce("aten::max.dim(Tensor self, int dim, bool keepdim=False) -> (Tensor values, Tensor indices)", infer_found, |c, m| found(c, m, Ordering::Greater)),
    reduce("aten::min.dim(Tensor self, int dim, bool keepdim=False) -> (Tensor values, Tensor indices)", infer_found, |c, m| found(c, m, Ordering::Less)),
    reduce("aten::argmax(Tensor self, int? dim=None, bool keepdim=False) -> Tensor", infer_arg, |c, m| arg(c, m, Ordering::Greater))
        .dtypes(NUMBERS),
    reduce("aten::argmin(Tensor self, int? dim=None, bool keepdim=False) -> Tensor", infer_arg, |c, m| arg(c, m, Ordering::Less))
        .dtypes(NUMBERS),
    reduce("aten::any(Tensor self) -> Tensor", infer_condition, any),
    reduce("aten::any.dim(Tensor self, int dim, bool keepdim=False) -> Tensor", infer_condition, any),
    reduce("aten::any.dims(Tensor self, int[]? dim=None, bool keepdim=False) -> Tensor", infer_condition, any).handwritten(),
    reduce("aten::all(Tensor self) -> Tensor", infer_condition, all),
    reduce("aten::all.dim(Tensor self, int dim, bool keepdim=False) -> Tensor", infer_condition, all),
    reduce("aten::all.dims(Tensor self, int[]? dim=None, bool keepdim=False) -> Tensor", infer_condition, all).handwritten(),
    reduce("aten::var.correction(Tensor self, int[1]? dim=None, *, Scalar? correction=None, bool keepdim=False) -> Tensor", infer_same, |c, m| variance(c, m, |v| v))
        .within(Tolerance::SUM)
        .dtypes(FLOATS),
    reduce("aten::std.correction(Tensor self, int[1]? dim=None, *, Scalar? correction=None, bool keepdim=False) -> Tensor", infer_same, |c, m| variance(c, m, f64::sqrt))
        .within(Tolerance::SUM)
        .dtypes(FLOATS),
    reduce("aten::linalg_vector_norm(Tensor self, Scalar ord=2, int[1]? dim=None, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor", infer_mean, norm)
        .within(Tolerance::SUM)
        .dtypes(FLOATS),
    reduce("aten::logsumexp(Tensor self, int[1] dim, bool keepdim=False) -> Tensor", infer_mean, logsumexp)
        .within(Tolerance::SUM)
        .dtypes(FLOATS),
    // Along one dimension, which stays.
    Declaration::new("aten::cumsum(Tensor self, int dim, *, ScalarType? dtype=None) -> Tensor", infer_cumsum, cumsum)
        .rows(|c| rows::along(c, "self", "dim"))
        .within(Tolerance::SUM)
        .dtypes(ALL),
    Declaration::new("aten::topk(Tensor self, SymInt k, int dim=-1, bool largest=True, bool sorted=True) -> (Tensor values, Tensor indices)", infer_topk, topk)
        .rows(|c| rows::along(c, "self", "dim"))
        .dtypes(NUMBERS),
    Declaration::new("aten::sort(Tensor self, int dim=-1, bool descending=False) -> (Tensor values, Tensor indices)", infer_sort, sort)
        .rows(|c| rows::along(c, "self", "dim"))
        .dtypes(NUMBERS),
    Declaration::new("aten::argsort(Tensor self, int dim=-1, bool descending=False) -> Tensor", |c| infer_sort(c).map(|metas| metas[1..].into()), |c, m| {
        let metas = [Meta::new(c.tensor("self")?.dtype(), &first(m).shape), first(m).clone()];
        Ok(sort(c, &metas)?.into_iter().skip(1).collect())
    })
    .rows(|c| rows::along(c, "self", "dim"))
    .dtypes(NUMBERS),
];

const fn reduce(schema: &'static str, infer: Infer, eval: Eval) -> Declaration {
    Declaration::new(schema, infer, eval).rows(rows::reduced)
}

/// Lanes of a sum.
const LANES: usize = 8;
/// Elements below which one thread reduces them all.
const PARALLEL_ELEMENTS: usize = 1 << 15;

/// The sum of `term(x)` over all elements, in f64.
pub(super) fn lane_sum<T: Copy>(values: &[T], term: impl Fn(T) -> f64) -> f64 {
    let mut lanes = [0.0; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &value)| *lane += term(value));
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, &value)| *lane += term(value));
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// The dimensions that `dim` names; all of them where the schema has none or none are given.
fn reduced_dims(call: &Call<'_>) -> Result<Shape, OpError> {
    let given: Option<Ints> = if has(call, "dim") { call.optional_ints("dim")? } else { None };
    dims(given.as_deref(), call.tensor("self")?.ndim())
}

fn has(call: &Call<'_>, argument: &str) -> bool {
    call.op().schema().position(argument).is_some()
}

fn reduced_shape(call: &Call<'_>) -> Result<Shape, OpError> {
    let (x, reduced) = (call.tensor("self")?, reduced_dims(call)?);
    let keeps = has(call, "keepdim") && call.bool("keepdim")?;
    let size = |(at, &size): (usize, &usize)| match (reduced.contains(&at), keeps) {
        (false, _) => Some(size),
        (true, true) => Some(1),
        (true, false) => None,
    };
    Ok(x.shape().iter().enumerate().filter_map(size).collect())
}

fn infer_as(call: &Call<'_>, dtype: DType) -> Result<Metas, OpError> {
    meta(dtype, &reduced_shape(call)?)
}

fn infer_same(call: &Call<'_>) -> Result<Metas, OpError> {
    infer_as(call, call.tensor("self")?.dtype())
}

/// Integers and booleans add up in i64.
fn infer_sum(call: &Call<'_>) -> Result<Metas, OpError> {
    let dtype = call.tensor("self")?.dtype();
    let default = if dtype.is_float() { dtype } else { DType::I64 };
    infer_as(call, call.optional_dtype("dtype")?.unwrap_or(default))
}

fn infer_mean(call: &Call<'_>) -> Result<Metas, OpError> {
    let given = if has(call, "dtype") { call.optional_dtype("dtype")? } else { None };
    let dtype = call.tensor("self")?.dtype();
    match given {
        None if has(call, "dtype") && !dtype.is_float() => Err(OpError::DType { argument: "self", dtype }),
        given => infer_as(call, given.unwrap_or(to_float(dtype))),
    }
}

fn infer_condition(call: &Call<'_>) -> Result<Metas, OpError> {
    infer_as(call, DType::Bool)
}

fn infer_arg(call: &Call<'_>) -> Result<Metas, OpError> {
    infer_as(call, DType::I64)
}

fn infer_found(call: &Call<'_>) -> Result<Metas, OpError> {
    let shape = reduced_shape(call)?;
    Ok([call.tensor("self")?.dtype(), DType::I64].iter().map(|&dtype| Meta::new(dtype, &shape)).collect())
}

/// `x` as rows: the dimensions `reduced` last and next to each other, in their order.
pub(super) fn as_rows(x: &Tensor, reduced: &[usize]) -> Result<(Tensor, usize), OpError> {
    let mut order: Shape = (0..x.ndim()).filter(|at| !reduced.contains(at)).collect();
    let mut last = Shape::from_slice(reduced);
    last.sort_unstable();
    let n = last.iter().map(|&at| x.shape()[at]).product();
    order.extend(last);
    Ok((x.permute(&order)?.contiguous(), n))
}

/// One result for each row of `x` along the reduced dimensions.
fn each_row<T: highroad_tensor::Element, U: highroad_tensor::Element>(
    x: &Tensor,
    reduced: &[usize],
    meta: &Meta,
    reduce_row: impl Fn(&[T]) -> U + Sync,
) -> Result<Tensor, OpError> {
    let (rows, n) = as_rows(x, reduced)?;
    let from = rows.as_slice::<T>().ok_or(OpError::DType { argument: "self", dtype: x.dtype() })?;
    let mut out = Tensor::scratch(meta.dtype, &meta.shape)?;
    let to = out.as_mut_slice::<U>().expect("the caller matched the result's dtype");
    let rows_per_task = (PARALLEL_ELEMENTS / n.max(1)).max(1);
    parallel::for_each_chunk(to, rows_per_task, |task, to| {
        for (row, to) in (task * rows_per_task..).zip(to) {
            *to = reduce_row(&from[row * n..][..n]);
        }
    });
    Ok(out)
}

/// Reduces in f64 for floats and in i64 otherwise, and rounds once to the result's dtype.
fn numbers(
    call: &Call<'_>,
    metas: &[Meta],
    narrow: impl Fn(&[f32]) -> f64 + Sync,
    wide: impl Fn(&[f64]) -> f64 + Sync,
    ints: impl Fn(&[i64]) -> i64 + Sync,
) -> Result<Outputs, OpError> {
    let (result, reduced) = (first(metas), reduced_dims(call)?);
    let width = compute(result.dtype);
    let x = call.tensor("self")?.cast(width)?;
    let wide_meta = |dtype| Meta { dtype, shape: result.shape.clone() };
    let out = match width {
        DType::F32 => each_row(&x, &reduced, &wide_meta(DType::F32), |row| narrow(row) as f32)?,
        DType::F64 => each_row(&x, &reduced, &wide_meta(DType::F64), wide)?,
        _ => each_row(&x, &reduced, &wide_meta(DType::I64), ints)?,
    };
    one(out.cast(result.dtype)?)
}

/// [`numbers`] of floats alone.
fn floats(call: &Call<'_>, metas: &[Meta], f: impl Fn(&[f64]) -> f64 + Sync) -> Result<Outputs, OpError> {
    let (result, reduced) = (first(metas), reduced_dims(call)?);
    if !result.dtype.is_float() {
        return Err(OpError::DType { argument: "self", dtype: result.dtype });
    }
    let x = call.tensor("self")?.cast(DType::F64)?;
    let out = each_row(&x, &reduced, &Meta { dtype: DType::F64, shape: result.shape.clone() }, f)?;
    one(out.cast(result.dtype)?)
}

fn sum(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    numbers(
        call,
        metas,
        |row| lane_sum(row, f64::from),
        |row| lane_sum(row, |x| x),
        |row| row.iter().fold(0, |sum, &x| sum.wrapping_add(x)),
    )
}

fn mean(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    numbers(
        call,
        metas,
        |row| lane_sum(row, f64::from) / row.len() as f64,
        |row| lane_sum(row, |x| x) / row.len() as f64,
        |_| 0,
    )
}

fn prod(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    numbers(
        call,
        metas,
        |row| row.iter().map(|&x| f64::from(x)).product(),
        |row| row.iter().product(),
        |row| row.iter().fold(1, |product, &x| product.wrapping_mul(x)),
    )
}

fn any(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let x = call.tensor("self")?.cast(DType::Bool)?;
    one(each_row(&x, &reduced_dims(call)?, first(metas), |row: &[u8]| u8::from(row.iter().any(|&x| x != 0)))?)
}

fn all(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let x = call.tensor("self")?.cast(DType::Bool)?;
    one(each_row(&x, &reduced_dims(call)?, first(metas), |row: &[u8]| u8::from(row.iter().all(|&x| x != 0)))?)
}

fn variance(call: &Call<'_>, metas: &[Meta], finish: fn(f64) -> f64) -> Result<Outputs, OpError> {
    let correction = call.optional_float("correction")?.unwrap_or(1.0);
    floats(call, metas, |row| {
        let n = row.len() as f64;
        let mean = lane_sum(row, |x| x) / n;
        finish(lane_sum(row, |x| (x - mean) * (x - mean)) / (n - correction).max(0.0))
    })
}

fn norm(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let order = call.float("ord")?;
    let largest = |row: &[f64]| row.iter().fold(0.0, |max, x| if x.is_nan() || x.abs() > max { x.abs() } else { max });
    let smallest =
        |row: &[f64]| row.iter().fold(f64::INFINITY, |min, x| if x.is_nan() || x.abs() < min { x.abs() } else { min });
    floats(call, metas, |row| match order {
        2.0 => lane_sum(row, |x| x * x).sqrt(),
        1.0 => lane_sum(row, f64::abs),
        0.0 => lane_sum(row, |x| f64::from(u8::from(x != 0.0))),
        f64::INFINITY => largest(row),
        f64::NEG_INFINITY => smallest(row),
        order => lane_sum(row, |x| x.abs().powf(order)).powf(order.recip()),
    })
}

fn logsumexp(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    floats(call, metas, |row| {
        let max = row.iter().fold(f64::NEG_INFINITY, |max, &x| if x > max || x.is_nan() { x } else { max });
        let shift = if max.is_finite() { max } else { 0.0 };
        lane_sum(row, |x| (x - shift).exp()).ln() + shift
    })
}

/// Position of the first extreme element; NaN counts as the most extreme, as in PyTorch.
fn extreme_position<T: PartialOrd + Copy>(row: &[T], wanted: Ordering) -> usize {
    let is_nan = |x: T| x.partial_cmp(&x).is_none();
    let mut best = 0;
    for (at, &x) in row.iter().enumerate() {
        if is_nan(row[best]) {
            break;
        }
        if is_nan(x) || x.partial_cmp(&row[best]) == Some(wanted) {
            best = at;
        }
    }
    best
}

/// Calls `$body` with `$x` widened to a type that holds every value of its dtype.
macro_rules! widened {
    ($x:expr, $ty:ident, $wide:ident => $body:expr) => {
        if $x.dtype().is_float() {
            type $ty = f64;
            let $wide = $x.cast(DType::F64)?;
            $body
        } else {
            type $ty = i64;
            let $wide = $x.cast(DType::I64)?;
            $body
        }
    };
}

fn refuse_empty(x: &Tensor, reduced: &[usize], out: &Meta) -> Result<(), OpError> {
    let is_empty = reduced.iter().any(|&at| x.shape()[at] == 0) && !out.shape.contains(&0);
    if is_empty { Err(OpError::Unsupported("the largest or smallest of no elements")) } else { Ok(()) }
}

fn extreme(call: &Call<'_>, metas: &[Meta], wanted: Ordering) -> Result<Outputs, OpError> {
    let (x, reduced, result) = (call.tensor("self")?, reduced_dims(call)?, first(metas));
    refuse_empty(x, &reduced, result)?;
    widened!(x, T, wide => {
        let meta = Meta { dtype: wide.dtype(), shape: result.shape.clone() };
        let out = each_row(&wide, &reduced, &meta, |row: &[T]| row[extreme_position(row, wanted)])?;
        one(out.cast(result.dtype)?)
    })
}

fn arg(call: &Call<'_>, metas: &[Meta], wanted: Ordering) -> Result<Outputs, OpError> {
    let (x, reduced, result) = (call.tensor("self")?, reduced_dims(call)?, first(metas));
    refuse_empty(x, &reduced, result)?;
    widened!(x, T, wide => one(each_row(&wide, &reduced, result, |row: &[T]| extreme_position(row, wanted) as i64)?))
}

fn found(call: &Call<'_>, metas: &[Meta], wanted: Ordering) -> Result<Outputs, OpError> {
    let [values, indices] = metas else { return Err(OpError::Unsupported("two results")) };
    let mut outputs = extreme(call, std::slice::from_ref(values), wanted)?;
    outputs.extend(arg(call, std::slice::from_ref(indices), wanted)?);
    Ok(outputs)
}

fn infer_cumsum(call: &Call<'_>) -> Result<Metas, OpError> {
    let x = call.tensor("self")?;
    dim(call.int("dim")?, x.ndim())?;
    let default = if x.dtype().is_float() { x.dtype() } else { DType::I64 };
    meta(call.optional_dtype("dtype")?.unwrap_or(default), x.shape())
}

/// Applies `scan` to each row along one dimension of a tensor that keeps its shape.
pub(super) fn along<T: highroad_tensor::Element>(
    x: &Tensor,
    at: usize,
    scan: impl Fn(&mut [T]) + Sync,
) -> Result<Tensor, OpError> {
    let last = x.ndim().saturating_sub(1);
    let moved = if x.ndim() == 0 { x.clone() } else { x.transpose(at, last)? };
    let n = moved.shape().last().copied().unwrap_or(1);
    let mut out = Tensor::scratch(moved.dtype(), moved.shape())?;
    let to = out.as_mut_slice::<T>().expect("the caller matched the dtype");
    moved.copy_into(to)?;
    let rows_per_task = (PARALLEL_ELEMENTS / n.max(1)).max(1);
    if n > 0 {
        parallel::for_each_chunk(to, rows_per_task * n, |_, rows| rows.chunks_exact_mut(n).for_each(&scan));
    }
    if x.ndim() == 0 { Ok(out) } else { Ok(out.transpose(at, last)?) }
}

fn cumsum(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let (x, dtype) = (call.tensor("self")?, first(metas).dtype);
    let at = dim(call.int("dim")?, x.ndim())?;
    let out = if dtype.is_float() {
        along(&x.cast(DType::F64)?, at, |row: &mut [f64]| {
            row.iter_mut().fold(0.0, |sum, x| {
                *x += sum;
                *x
            });
        })?
    } else {
        along(&x.cast(DType::I64)?, at, |row: &mut [i64]| {
            row.iter_mut().fold(0i64, |sum, x| {
                *x = x.wrapping_add(sum);
                *x
            });
        })?
    };
    one(out.cast(dtype)?)
}

fn infer_sort(call: &Call<'_>) -> Result<Metas, OpError> {
    let x = call.tensor("self")?;
    dim(call.int("dim")?, x.ndim())?;
    Ok([x.dtype(), DType::I64].iter().map(|&dtype| Meta::new(dtype, x.shape())).collect())
}

fn infer_topk(call: &Call<'_>) -> Result<Metas, OpError> {
    let x = call.tensor("self")?;
    let at = dim(call.int("dim")?, x.ndim())?;
    let k = call.int("k")?;
    let size = x.shape().get(at).copied().unwrap_or(1);
    let mut shape = Shape::from_slice(x.shape());
    let n = usize::try_from(k).ok().filter(|&k| k <= size).ok_or(OpError::Index { index: k, dim: at, size })?;
    if let Some(size) = shape.get_mut(at) {
        *size = n;
    }
    Ok([x.dtype(), DType::I64].iter().map(|&dtype| Meta::new(dtype, &shape)).collect())
}

/// Positions of the elements along `at` in order; equal elements keep theirs.
fn sorted_positions(x: &Tensor, at: usize, is_descending: bool) -> Result<Tensor, OpError> {
    widened!(x, T, wide => {
        let (rows, n) = as_rows(&wide, if x.ndim() == 0 { &[] } else { std::slice::from_ref(&at) })?;
        let values = rows.as_slice::<T>().expect("just converted");
        let mut out = Tensor::zeros(DType::I64, rows.shape())?;
        let to = out.as_mut_slice::<i64>().expect("just made");
        for (row, to) in values.chunks_exact(n.max(1)).zip(to.chunks_exact_mut(n.max(1))) {
            let mut order: Vec<usize> = (0..row.len()).collect();
            // NaN is the largest.
            let compare = |a: &usize, b: &usize| row[*a].partial_cmp(&row[*b]).unwrap_or_else(|| nan_last(row[*a], row[*b]));
            order.sort_by(|a, b| if is_descending { compare(b, a) } else { compare(a, b) });
            to.iter_mut().zip(order).for_each(|(to, at)| *to = at as i64);
        }
        put_back(&out, at)
    })
}

/// Rows have the dimension `at` last; this puts it back.
fn put_back(rows: &Tensor, at: usize) -> Result<Tensor, OpError> {
    let Some(last) = rows.ndim().checked_sub(1) else { return Ok(rows.clone()) };
    let mut order: Shape = (0..last).collect();
    order.insert(at, last);
    Ok(rows.permute(&order)?)
}

fn nan_last<T: PartialOrd>(a: T, b: T) -> Ordering {
    let is_nan = |x: &T| x.partial_cmp(x).is_none();
    is_nan(&a).cmp(&is_nan(&b))
}

/// The elements of `x` at `positions` along `at`.
fn at_positions(x: &Tensor, at: usize, positions: &Tensor) -> Result<Tensor, OpError> {
    widened!(x, T, wide => {
        let (rows, n) = as_rows(&wide, if x.ndim() == 0 { &[] } else { std::slice::from_ref(&at) })?;
        let (picked, k) = as_rows(positions, if x.ndim() == 0 { &[] } else { std::slice::from_ref(&at) })?;
        let (from, picks) = (rows.as_slice::<T>().expect("widened"), picked.as_slice::<i64>().expect("positions"));
        let mut out = Tensor::scratch(wide.dtype(), picked.shape())?;
        let to = out.as_mut_slice::<T>().expect("just made");
        let rows = from.chunks_exact(n.max(1)).zip(picks.chunks_exact(k.max(1))).zip(to.chunks_exact_mut(k.max(1)));
        for ((from, picks), to) in rows {
            to.iter_mut().zip(picks).for_each(|(to, &pick)| *to = from[pick as usize]);
        }
        put_back(&out.cast(x.dtype())?, at)
    })
}

fn sort(call: &Call<'_>, _: &[Meta]) -> Result<Outputs, OpError> {
    let x = call.tensor("self")?;
    let at = dim(call.int("dim")?, x.ndim())?;
    let positions = sorted_positions(x, at, call.bool("descending")?)?;
    Ok([at_positions(x, at, &positions)?, positions].into_iter().map(Value::Tensor).collect())
}

fn topk(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let x = call.tensor("self")?;
    let at = dim(call.int("dim")?, x.ndim())?;
    let mut positions = sorted_positions(x, at, call.bool("largest")?)?;
    if x.ndim() > 0 {
        positions = positions.narrow(at, 0, first(metas).shape[at])?;
    }
    Ok([at_positions(x, at, &positions)?, positions].into_iter().map(Value::Tensor).collect())
}
