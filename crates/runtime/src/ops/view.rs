//! Other shapes over the same elements, and what joins or repeats them.

use highroad_tensor::{Shape, Tensor, concat};
use smallvec::SmallVec;

use super::promote::{result_type, to_tensor};
use super::{dim, first, meta, one, sizes};
use crate::op::{Call, Declaration, Eval, Infer, Ints, Meta, Metas, OpError, Outputs, TensorOrScalar, View};
use crate::rows;

pub(super) const OPS: &[Declaration] = &[
    view("aten::view(Tensor(a) self, SymInt[] size) -> Tensor(a)", |c| reshaped(c, "size")).rows(rows::reshaped),
    view("aten::reshape(Tensor(a) self, SymInt[] shape) -> Tensor(a)", |c| reshaped(c, "shape")).rows(rows::reshaped),
    view("aten::_unsafe_view(Tensor self, SymInt[] size) -> Tensor", |c| reshaped(c, "size"))
        .rows(rows::reshaped)
        .handwritten(),
    view("aten::view_as(Tensor(a) self, Tensor other) -> Tensor(a)", |c| reshape_to(c, c.tensor("other")?.shape()))
        .rows(rows::reshaped),
    view("aten::flatten.using_ints(Tensor(a) self, int start_dim=0, int end_dim=-1) -> Tensor(a)", flatten)
        .rows(rows::reshaped),
    view("aten::unflatten.int(Tensor(a) self, int dim, SymInt[] sizes) -> Tensor(a)", unflatten).rows(rows::reshaped),
    view("aten::squeeze(Tensor(a) self) -> Tensor(a)", |c| squeeze(c, None)).rows(rows::squeezed),
    view("aten::squeeze.dim(Tensor(a) self, int dim) -> Tensor(a)", |c| squeeze(c, Some(&[c.int("dim")?])))
        .rows(rows::squeezed),
    view("aten::squeeze.dims(Tensor(a) self, int[] dim) -> Tensor(a)", |c| squeeze(c, Some(&c.ints("dim")?)))
        .rows(rows::squeezed),
    view("aten::unsqueeze(Tensor(a) self, int dim) -> Tensor(a)", unsqueeze).rows(|c| {
        let ndim = c.sizes("self")?.len();
        let at = c.dim("dim", ndim + 1)?;
        c.moved("self", |row| Ok(row + usize::from(at <= row)))
    }),
    view("aten::transpose.int(Tensor(a) self, int dim0, int dim1) -> Tensor(a)", |c| {
        let x = c.tensor("self")?;
        let (a, b) = (dim(c.int("dim0")?, x.ndim())?, dim(c.int("dim1")?, x.ndim())?);
        if x.ndim() == 0 { Ok(x.clone()) } else { Ok(x.transpose(a, b)?) }
    })
    .rows(|c| {
        let ndim = c.sizes("self")?.len();
        let (a, b) = (c.dim("dim0", ndim)?, c.dim("dim1", ndim)?);
        c.moved("self", |row| Ok(if row == a { b } else if row == b { a } else { row }))
    }),
    view("aten::t(Tensor(a) self) -> Tensor(a)", |c| {
        let x = c.tensor("self")?;
        match x.ndim() {
            0 | 1 => Ok(x.clone()),
            2 => Ok(x.transpose(0, 1)?),
            _ => Err(OpError::Shape { argument: "self", found: x.shape().into(), expected: "2 dimensions".to_owned() }),
        }
    })
    .rows(|c| {
        let ndim = c.sizes("self")?.len();
        c.moved("self", |row| Ok(ndim - 1 - row))
    }),
    view("aten::permute(Tensor(a) self, int[] dims) -> Tensor(a)", |c| {
        let x = c.tensor("self")?;
        let order = c.ints("dims")?.iter().map(|&d| dim(d, x.ndim())).collect::<Result<Shape, _>>()?;
        Ok(x.permute(&order)?)
    })
    .rows(|c| {
        let order = c.dims("dims", c.sizes("self")?.len())?.unwrap_or_default();
        c.moved("self", |row| order.iter().position(|&d| d == row).ok_or_else(|| "drops the batch".to_owned()))
    }),
    view("aten::movedim.int(Tensor(a) self, int source, int destination) -> Tensor(a)", |c| {
        let x = c.tensor("self")?;
        Ok(x.permute(&moved_order(dim(c.int("source")?, x.ndim())?, dim(c.int("destination")?, x.ndim())?, x.ndim()))?)
    })
    .rows(|c| {
        let ndim = c.sizes("self")?.len();
        let order = moved_order(c.dim("source", ndim)?, c.dim("destination", ndim)?, ndim);
        c.moved("self", |row| order.iter().position(|&d| d == row).ok_or_else(|| "drops the batch".to_owned()))
    })
    .handwritten(),
    view("aten::expand(Tensor(a) self, SymInt[] size, *, bool implicit=False) -> Tensor(a)", |c| {
        let x = c.tensor("self")?;
        Ok(x.expand(&expanded_shape(x, &c.ints("size")?)?)?)
    })
    .rows(rows::expanded),
    view("aten::expand_as(Tensor(a) self, Tensor other) -> Tensor(a)", |c| {
        Ok(c.tensor("self")?.expand(c.tensor("other")?.shape())?)
    })
    .rows(rows::expanded),
    view("aten::select.int(Tensor(a) self, int dim, SymInt index) -> Tensor(a)", |c| {
        let x = c.tensor("self")?;
        let at = dim(c.int("dim")?, x.ndim())?;
        Ok(x.select(at, entry(x, at, c.int("index")?)?)?)
    })
    .rows(rows::removed),
    view("aten::slice.Tensor(Tensor(a) self, int dim=0, SymInt? start=None, SymInt? end=None, SymInt step=1) -> Tensor(a)", slice)
        .rows(rows::sliced),
    view("aten::narrow(Tensor(a) self, int dim, SymInt start, SymInt length) -> Tensor(a)", |c| {
        let x = c.tensor("self")?;
        let at = dim(c.int("dim")?, x.ndim())?;
        let start = wrap(c.int("start")?, x.size(at)?);
        Ok(x.narrow(at, sizes(&[start])?[0], sizes(&[c.int("length")?])?[0])?)
    })
    .rows(rows::narrowed),
    view("aten::diagonal(Tensor(a) self, int offset=0, int dim1=0, int dim2=1) -> Tensor(a)", |c| {
        let x = c.tensor("self")?;
        let shift = isize::try_from(c.int("offset")?).map_err(|_| OpError::Overflow)?;
        Ok(x.diagonal(shift, dim(c.int("dim1")?, x.ndim())?, dim(c.int("dim2")?, x.ndim())?)?)
    }),
    // Several views of one tensor.
    views("aten::split.Tensor(Tensor(a -> *) self, SymInt split_size, int dim=0) -> Tensor(a)[]", |c| {
        let (x, at) = (c.tensor("self")?, dim(c.int("dim")?, c.tensor("self")?.ndim())?);
        pieces(x, at, |size| equal_parts(size, c.int("split_size")?))
    }),
    views("aten::split_with_sizes(Tensor(a -> *) self, SymInt[] split_sizes, int dim=0) -> Tensor(a)[]", |c| {
        let (x, at) = (c.tensor("self")?, dim(c.int("dim")?, c.tensor("self")?.ndim())?);
        pieces(x, at, |_| Ok(sizes(&c.ints("split_sizes")?)?.to_vec()))
    }),
    views("aten::chunk(Tensor(a -> *) self, int chunks, int dim=0) -> Tensor(a)[]", |c| {
        let (x, at) = (c.tensor("self")?, dim(c.int("dim")?, c.tensor("self")?.ndim())?);
        pieces(x, at, |size| chunk_sizes(size, c.int("chunks")?))
    }),
    views("aten::unbind.int(Tensor(a -> *) self, int dim=0) -> Tensor(a)[]", |c| {
        let (x, at) = (c.tensor("self")?, dim(c.int("dim")?, c.tensor("self")?.ndim())?);
        (0..x.size(at)?).map(|index| Ok(x.select(at, index)?)).collect()
    })
    .rows(rows::removed),
    // Joins, repeats and writes.
    copy("aten::cat(Tensor[] tensors, int dim=0) -> Tensor", infer_cat, cat).rows(rows::joined),
    copy("aten::concat(Tensor[] tensors, int dim=0) -> Tensor", infer_cat, cat).rows(rows::joined),
    copy("aten::stack(Tensor[] tensors, int dim=0) -> Tensor", infer_stack, stack).rows(rows::stacked),
    copy("aten::repeat(Tensor self, SymInt[] repeats) -> Tensor", infer_repeat, repeat),
    copy(
        "aten::repeat_interleave.self_int(Tensor self, SymInt repeats, int? dim=None, *, SymInt? output_size=None) -> Tensor",
        infer_repeat_interleave,
        repeat_interleave,
    )
    .rows(rows::narrowed)
    .handwritten(),
    copy("aten::flip(Tensor self, int[] dims) -> Tensor", like_self, flip).rows(|c| rows::along(c, "self", "dims")),
    copy("aten::roll(Tensor self, SymInt[1] shifts, int[1] dims=[]) -> Tensor", like_self, roll)
        .rows(|c| rows::along(c, "self", "dims")),
    copy(
        "aten::slice_scatter(Tensor self, Tensor src, int dim=0, SymInt? start=None, SymInt? end=None, SymInt step=1) -> Tensor",
        like_self,
        slice_scatter,
    )
    .rows(rows::written),
    copy("aten::select_scatter(Tensor self, Tensor src, int dim, SymInt index) -> Tensor", like_self, select_scatter)
        .rows(rows::written),
];

const fn view(schema: &'static str, make: fn(&Call<'_>) -> Result<Tensor, OpError>) -> Declaration {
    Declaration::of_view(schema, View::One(make))
}

const fn views(schema: &'static str, make: fn(&Call<'_>) -> Result<Vec<Tensor>, OpError>) -> Declaration {
    Declaration::of_view(schema, View::Many(make)).rows(|call| rows::along(call, "self", "dim"))
}

/// Copies; declared with views because most of the work is finding the shape.
const fn copy(schema: &'static str, infer: Infer, eval: Eval) -> Declaration {
    Declaration::new(schema, infer, eval)
}

fn reshaped(call: &Call<'_>, argument: &'static str) -> Result<Tensor, OpError> {
    let x = call.tensor("self")?;
    reshape_to(call, &resolve_size(x, &call.ints(argument)?)?)
}

fn reshape_to(call: &Call<'_>, shape: &[usize]) -> Result<Tensor, OpError> {
    Ok(call.tensor("self")?.reshape(shape)?)
}

/// Sizes of a view, of which one may be -1: what the others leave.
fn resolve_size(x: &Tensor, size: &[i64]) -> Result<Shape, OpError> {
    let error = || OpError::View { from: x.shape().into(), to: size.into() };
    let product = |values: &[i64]| -> Option<usize> {
        let mut known = values.iter().filter(|&&value| value != -1);
        known.try_fold(1usize, |n, &value| n.checked_mul(usize::try_from(value).ok()?))
    };
    let known = product(size).ok_or_else(error)?;
    let n_unknown = size.iter().filter(|&&value| value == -1).count();
    let rest = match n_unknown {
        0 => 0,
        1 if known > 0 && x.numel().is_multiple_of(known) => x.numel() / known,
        _ => return Err(error()),
    };
    let shape: Shape = size.iter().map(|&value| if value == -1 { rest } else { value as usize }).collect();
    if shape.iter().product::<usize>() == x.numel() { Ok(shape) } else { Err(error()) }
}

fn flatten(call: &Call<'_>) -> Result<Tensor, OpError> {
    let x = call.tensor("self")?;
    let (start, end) = (dim(call.int("start_dim")?, x.ndim())?, dim(call.int("end_dim")?, x.ndim())?);
    if x.ndim() == 0 {
        return Ok(x.reshape(&[1])?);
    }
    if start > end {
        return Err(OpError::Dim { dim: call.int("start_dim")?, ndim: x.ndim() });
    }
    let mut shape = Shape::from_slice(&x.shape()[..start]);
    shape.push(x.shape()[start..=end].iter().product());
    shape.extend_from_slice(&x.shape()[end + 1..]);
    Ok(x.reshape(&shape)?)
}

fn unflatten(call: &Call<'_>) -> Result<Tensor, OpError> {
    let x = call.tensor("self")?;
    let at = dim(call.int("dim")?, x.ndim())?;
    let mut size: Ints = x.shape()[..at].iter().map(|&size| size as i64).collect();
    size.extend(call.ints("sizes")?);
    size.extend(x.shape().iter().skip(at + 1).map(|&size| size as i64));
    Ok(x.reshape(&resolve_size(x, &size)?)?)
}

fn squeeze(call: &Call<'_>, dims: Option<&[i64]>) -> Result<Tensor, OpError> {
    let x = call.tensor("self")?;
    let chosen = match dims {
        Some([]) => Shape::new(),
        dims => super::dims(dims, x.ndim())?,
    };
    let kept = (0..x.ndim()).filter(|at| !(chosen.contains(at) && x.shape()[*at] == 1));
    let shape: Shape = kept.map(|at| x.shape()[at]).collect();
    Ok(x.reshape(&shape)?)
}

fn unsqueeze(call: &Call<'_>) -> Result<Tensor, OpError> {
    let x = call.tensor("self")?;
    Ok(x.unsqueeze(dim(call.int("dim")?, x.ndim() + 1)?)?)
}

/// The order of dimensions after `source` has moved to `destination`.
fn moved_order(source: usize, destination: usize, ndim: usize) -> Shape {
    let mut order: Shape = (0..ndim).filter(|&at| at != source).collect();
    order.insert(destination.min(order.len()), source);
    order
}

/// Sizes to expand to, where -1 keeps a size.
fn expanded_shape(x: &Tensor, size: &[i64]) -> Result<Shape, OpError> {
    let error = || OpError::View { from: x.shape().into(), to: size.into() };
    let lead = size.len().checked_sub(x.ndim()).ok_or_else(error)?;
    let resolve = |(at, &size): (usize, &i64)| match usize::try_from(size) {
        Ok(size) => Ok(size),
        Err(_) if size == -1 && at >= lead => Ok(x.shape()[at - lead]),
        Err(_) => Err(error()),
    };
    size.iter().enumerate().map(resolve).collect()
}

/// Entry `index` of dimension `at`, counted from the front.
fn entry(x: &Tensor, at: usize, index: i64) -> Result<usize, OpError> {
    let size = x.shape().get(at).copied().ok_or(OpError::Dim { dim: at as i64, ndim: x.ndim() })?;
    let from_front = wrap(index, size);
    match usize::try_from(from_front) {
        Ok(found) if found < size => Ok(found),
        _ => Err(OpError::Index { index, dim: at, size }),
    }
}

/// A negative index counts from the end.
fn wrap(index: i64, size: usize) -> i64 {
    if index < 0 { index.saturating_add(size as i64) } else { index }
}

struct SliceBounds {
    at: usize,
    start: usize,
    end: usize,
    step: usize,
}

/// Python's slicing: negative bounds count from the end and bounds outside are moved to the edge.
fn slice_bounds(call: &Call<'_>) -> Result<SliceBounds, OpError> {
    let x = call.tensor("self")?;
    let at = dim(call.int("dim")?, x.ndim())?;
    let size = x.size(at)?;
    let clamp = |bound: i64| wrap(bound, size).clamp(0, size as i64) as usize;
    let start = clamp(call.optional_int("start")?.unwrap_or(0));
    let end = clamp(call.optional_int("end")?.unwrap_or(i64::MAX)).max(start);
    let step = usize::try_from(call.int("step")?).ok().filter(|&step| step > 0);
    Ok(SliceBounds { at, start, end, step: step.ok_or(OpError::Unsupported("a slice whose step is not positive"))? })
}

fn slice(call: &Call<'_>) -> Result<Tensor, OpError> {
    let SliceBounds { at, start, end, step } = slice_bounds(call)?;
    Ok(call.tensor("self")?.slice(at, start, end, step)?)
}

/// Neighbouring pieces of dimension `at` with the sizes that `split` gives for its size.
fn pieces(
    x: &Tensor,
    at: usize,
    split: impl FnOnce(usize) -> Result<Vec<usize>, OpError>,
) -> Result<Vec<Tensor>, OpError> {
    let size = x.size(at)?;
    let parts = split(size)?;
    if parts.iter().try_fold(0usize, |sum, &part| sum.checked_add(part)) != Some(size) {
        let expected = format!("{parts:?} entries along dimension {at}");
        return Err(OpError::Shape { argument: "self", found: x.shape().into(), expected });
    }
    let mut start = 0;
    let piece = |len: usize| {
        start += len;
        Ok(x.narrow(at, start - len, len)?)
    };
    parts.into_iter().map(piece).collect()
}

fn equal_parts(size: usize, part: i64) -> Result<Vec<usize>, OpError> {
    let part = usize::try_from(part).map_err(|_| OpError::Size(part))?;
    if size == 0 {
        return Ok(vec![0]);
    }
    if part == 0 {
        return Err(OpError::Size(0));
    }
    Ok((0..size.div_ceil(part)).map(|index| part.min(size - index * part)).collect())
}

fn chunk_sizes(size: usize, chunks: i64) -> Result<Vec<usize>, OpError> {
    let chunks = usize::try_from(chunks).ok().filter(|&n| n > 0).ok_or(OpError::Size(chunks))?;
    if size == 0 {
        // PyTorch gives as many empty pieces as asked; a program cannot ask for more than it names results.
        return Ok(vec![0; chunks.min(1 << 16)]);
    }
    equal_parts(size, size.div_ceil(chunks) as i64)
}

/// The tensors that `cat` joins, in their common dtype; one-dimensional empty ones are skipped, as in PyTorch.
fn parts(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let given = call.tensors("tensors")?;
    let operands: Vec<_> = given.iter().map(|tensor| TensorOrScalar::Tensor(tensor)).collect();
    let dtype = result_type(&operands);
    let is_skipped = |tensor: &&&Tensor| tensor.shape() == [0];
    let kept = given.iter().filter(|tensor| !is_skipped(tensor));
    let mut kept: Vec<Tensor> = kept.map(|tensor| Ok(tensor.cast(dtype)?)).collect::<Result<_, OpError>>()?;
    if kept.is_empty() {
        let first = given.first().ok_or(OpError::Unsupported("no tensors to join"))?;
        kept.push(first.cast(dtype)?);
    }
    Ok(kept)
}

fn infer_cat(call: &Call<'_>) -> Result<Metas, OpError> {
    let parts = parts(call)?;
    let (leading, at) = (&parts[0], dim(call.int("dim")?, parts[0].ndim())?);
    leading.size(at)?;
    let mut shape = Shape::from_slice(leading.shape());
    shape[at] = 0;
    for part in &parts {
        let fits =
            part.ndim() == shape.len() && (0..shape.len()).all(|d| d == at || part.shape()[d] == leading.shape()[d]);
        if !fits {
            let expected = format!("the shape {:?} but for dimension {at}", leading.shape());
            return Err(OpError::Shape { argument: "tensors", found: part.shape().into(), expected });
        }
        shape[at] = shape[at].checked_add(part.shape()[at]).ok_or(OpError::Overflow)?;
    }
    meta(leading.dtype(), &shape)
}

fn cat(call: &Call<'_>, _: &[Meta]) -> Result<Outputs, OpError> {
    let parts = parts(call)?;
    one(concat(&parts, dim(call.int("dim")?, parts[0].ndim())?)?)
}

fn infer_stack(call: &Call<'_>) -> Result<Metas, OpError> {
    let given = call.tensors("tensors")?;
    let leading = given.first().ok_or(OpError::Unsupported("no tensors to stack"))?;
    if let Some(other) = given.iter().find(|tensor| tensor.shape() != leading.shape()) {
        let expected = format!("the shape {:?}", leading.shape());
        return Err(OpError::Shape { argument: "tensors", found: other.shape().into(), expected });
    }
    let operands: Vec<_> = given.iter().map(|tensor| TensorOrScalar::Tensor(tensor)).collect();
    let mut shape = Shape::from_slice(leading.shape());
    shape.insert(dim(call.int("dim")?, leading.ndim() + 1)?, given.len());
    meta(result_type(&operands), &shape)
}

fn stack(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let given = call.tensors("tensors")?;
    let at = dim(call.int("dim")?, first(metas).shape.len())?;
    let part = |tensor: &&Tensor| -> Result<Tensor, OpError> {
        Ok(to_tensor(TensorOrScalar::Tensor(tensor), first(metas).dtype)?.unsqueeze(at)?)
    };
    let parts = given.iter().map(part).collect::<Result<Vec<_>, _>>()?;
    one(concat(&parts, at)?)
}

fn infer_repeat(call: &Call<'_>) -> Result<Metas, OpError> {
    let (x, repeats) = (call.tensor("self")?, sizes(&call.ints("repeats")?)?);
    let lead = repeats.len().checked_sub(x.ndim()).ok_or(OpError::Unsupported("fewer repeats than dimensions"))?;
    let size = |(at, &n): (usize, &usize)| {
        let size = at.checked_sub(lead).map_or(1, |at| x.shape()[at]);
        size.checked_mul(n).ok_or(OpError::Overflow)
    };
    meta(x.dtype(), &repeats.iter().enumerate().map(size).collect::<Result<Shape, _>>()?)
}

/// `[a, b]` repeated `[m, n]` times is `[m, a, n, b]` with new dimensions of stride 0, read in order.
fn repeat(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let (x, repeats) = (call.tensor("self")?, sizes(&call.ints("repeats")?)?);
    let lead = repeats.len() - x.ndim();
    let (mut single, mut expanded) = (Shape::new(), Shape::new());
    for (at, &n) in repeats.iter().enumerate() {
        let size = at.checked_sub(lead).map_or(1, |at| x.shape()[at]);
        single.extend([1, size]);
        expanded.extend([n, size]);
    }
    one(x.reshape(&single)?.expand(&expanded)?.reshape(&first(metas).shape)?)
}

fn infer_repeat_interleave(call: &Call<'_>) -> Result<Metas, OpError> {
    let x = call.tensor("self")?;
    let n = sizes(&[call.int("repeats")?])?[0];
    let mut shape = Shape::from_slice(x.shape());
    match call.optional_int("dim")? {
        Some(at) if x.ndim() > 0 => {
            let at = dim(at, x.ndim())?;
            shape[at] = shape[at].checked_mul(n).ok_or(OpError::Overflow)?;
        }
        _ => shape = SmallVec::from_elem(x.numel().checked_mul(n).ok_or(OpError::Overflow)?, 1),
    }
    meta(x.dtype(), &shape)
}

fn repeat_interleave(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let x = call.tensor("self")?;
    let n = sizes(&[call.int("repeats")?])?[0];
    let (x, at) = match call.optional_int("dim")? {
        Some(at) if x.ndim() > 0 => (x.clone(), dim(at, x.ndim())?),
        _ => (x.reshape(&[x.numel()])?, 0),
    };
    let mut shape = Shape::from_slice(x.shape());
    shape.insert(at + 1, n);
    one(x.unsqueeze(at + 1)?.expand(&shape)?.reshape(&first(metas).shape)?)
}

/// `out[i] = x[pick(i, size)]` along dimension `at`; the pick is in bounds.
fn reordered(x: &Tensor, at: usize, pick: impl Fn(usize, usize) -> usize) -> Result<Tensor, OpError> {
    let size = x.size(at)?;
    if size == 0 {
        return Ok(x.clone());
    }
    let entries =
        (0..size).map(|index| Ok(x.narrow(at, pick(index, size), 1)?)).collect::<Result<Vec<_>, OpError>>()?;
    Ok(concat(&entries, at)?)
}

fn flip(call: &Call<'_>, _: &[Meta]) -> Result<Outputs, OpError> {
    let x = call.tensor("self")?;
    let given = call.ints("dims")?;
    let flipped = if given.is_empty() { Shape::new() } else { super::dims(Some(&given), x.ndim())? };
    one(flipped.iter().try_fold(x.clone(), |x, &at| reordered(&x, at, |i, n| n - 1 - i))?)
}

fn roll(call: &Call<'_>, _: &[Meta]) -> Result<Outputs, OpError> {
    let x = call.tensor("self")?;
    let (shifts, given) = (call.ints("shifts")?, call.ints("dims")?);
    if given.is_empty() {
        let flat = roll_along(&x.reshape(&[x.numel()])?, 0, *shifts.first().unwrap_or(&0))?;
        return one(flat.reshape(x.shape())?);
    }
    if shifts.len() != given.len() {
        return Err(OpError::Unsupported("as many shifts as dimensions"));
    }
    let roll = |x: Tensor, (&at, &shift): (&i64, &i64)| roll_along(&x, dim(at, x.ndim())?, shift);
    one(given.iter().zip(&shifts).try_fold(x.clone(), roll)?)
}

fn roll_along(x: &Tensor, at: usize, shift: i64) -> Result<Tensor, OpError> {
    if x.ndim() == 0 || x.numel() == 0 {
        return Ok(x.clone());
    }
    let size = x.size(at)?;
    let split = size - shift.rem_euclid(size as i64) as usize;
    Ok(concat(&[x.narrow(at, split, size - split)?, x.narrow(at, 0, split)?], at)?)
}

/// `self` with `src` in place of the slice: what a write to a view becomes.
fn scatter(call: &Call<'_>, bounds: SliceBounds, src: &Tensor) -> Result<Outputs, OpError> {
    let x = call.tensor("self")?;
    let SliceBounds { at, start, end, step } = bounds;
    let src = src.cast(x.dtype())?.expand(x.slice(at, start, end, step)?.shape())?;
    if step == 1 {
        let tail = x.narrow(at, end, x.size(at)? - end)?;
        return one(concat(&[x.narrow(at, 0, start)?, src, tail], at)?);
    }
    let entry = |index: usize| {
        let is_written = (start..end).contains(&index) && (index - start).is_multiple_of(step);
        Ok(if is_written { src.narrow(at, (index - start) / step, 1)? } else { x.narrow(at, index, 1)? })
    };
    let entries = (0..x.size(at)?).map(entry).collect::<Result<Vec<_>, OpError>>()?;
    if entries.is_empty() { one(x.clone()) } else { one(concat(&entries, at)?) }
}

fn slice_scatter(call: &Call<'_>, _: &[Meta]) -> Result<Outputs, OpError> {
    scatter(call, slice_bounds(call)?, call.tensor("src")?)
}

fn select_scatter(call: &Call<'_>, _: &[Meta]) -> Result<Outputs, OpError> {
    let x = call.tensor("self")?;
    let at = dim(call.int("dim")?, x.ndim())?;
    let start = entry(x, at, call.int("index")?)?;
    scatter(call, SliceBounds { at, start, end: start + 1, step: 1 }, &call.tensor("src")?.unsqueeze(at)?)
}

fn like_self(call: &Call<'_>) -> Result<Metas, OpError> {
    meta(call.tensor("self")?.dtype(), call.tensor("self")?.shape())
}
