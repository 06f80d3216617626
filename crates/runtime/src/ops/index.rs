//! Elements picked and placed by index tensors.

use highroad_tensor::{DType, Element, Shape, Strides, Tensor, broadcast_shapes, with_element};

use super::promote::to_tensor;
use super::{dim, first, meta, one};
use crate::op::{Call, Declaration, Meta, Metas, OpError, Outputs};
use crate::rows;

pub(super) const OPS: &[Declaration] = &[
    Declaration::new(
        "aten::embedding(Tensor weight, Tensor indices, SymInt padding_idx=-1, bool scale_grad_by_freq=False, bool sparse=False) -> Tensor",
        infer_embedding,
        |call, metas| select_rows(call.tensor("weight")?, 0, call.tensor("indices")?, first(metas)),
    )
    .rows(rows::looked_up),
    Declaration::new(
        "aten::index_select(Tensor self, int dim, Tensor index) -> Tensor",
        infer_index_select,
        |call, metas| {
            let x = call.tensor("self")?;
            select_rows(x, dim(call.int("dim")?, x.ndim())?, call.tensor("index")?, first(metas))
        },
    )
    .rows(rows::index_selected),
    Declaration::new(
        "aten::gather(Tensor self, int dim, Tensor index, *, bool sparse_grad=False) -> Tensor",
        infer_gather,
        gather,
    )
    .rows(rows::gathered),
    Declaration::new("aten::index.Tensor(Tensor self, Tensor?[] indices) -> Tensor", infer_index, index)
        .rows(rows::indexed),
    Declaration::new(
        "aten::scatter.src(Tensor self, int dim, Tensor index, Tensor src) -> Tensor",
        infer_scatter,
        |call, metas| scatter(call, metas, Source::Tensor),
    )
    .in_place(),
    Declaration::new(
        "aten::scatter.value(Tensor self, int dim, Tensor index, Scalar value) -> Tensor",
        infer_scatter,
        |call, metas| scatter(call, metas, Source::Value),
    )
    .in_place(),
];

fn indices<'a>(call: &Call<'a>, argument: &'static str) -> Result<&'a Tensor, OpError> {
    let indices = call.tensor(argument)?;
    let dtype = indices.dtype();
    if dtype.is_int() { Ok(indices) } else { Err(OpError::DType { argument, dtype }) }
}

/// An index as a position, if it lies in `0..size`.
fn position(index: i64, dim: usize, size: usize) -> Result<usize, OpError> {
    match usize::try_from(index) {
        Ok(position) if position < size => Ok(position),
        _ => Err(OpError::Index { index, dim, size }),
    }
}

fn positions(indices: &Tensor, dim: usize, size: usize) -> Result<Vec<usize>, OpError> {
    let indices = indices.cast(DType::I64)?;
    let values = indices.iter::<i64>().expect("just converted");
    values.map(|index| position(index, dim, size)).collect()
}

fn infer_embedding(call: &Call<'_>) -> Result<Metas, OpError> {
    let (weight, indices) = (call.tensor("weight")?, indices(call, "indices")?);
    let &[_, width] = weight.shape() else {
        let expected = "2 dimensions".to_owned();
        return Err(OpError::Shape { argument: "weight", found: weight.shape().into(), expected });
    };
    let shape: Shape = indices.shape().iter().copied().chain([width]).collect();
    meta(weight.dtype(), &shape)
}

fn infer_index_select(call: &Call<'_>) -> Result<Metas, OpError> {
    let (x, index) = (call.tensor("self")?, indices(call, "index")?);
    if index.ndim() > 1 || (x.ndim() == 0 && index.numel() != 1) {
        let expected = "1 dimension, and 1 element where `self` is a scalar".to_owned();
        return Err(OpError::Shape { argument: "index", found: index.shape().into(), expected });
    }
    let at = dim(call.int("dim")?, x.ndim())?;
    let mut shape = Shape::from_slice(x.shape());
    if let Some(size) = shape.get_mut(at) {
        *size = index.numel();
    }
    meta(x.dtype(), &shape)
}

/// Entries of dimension `at` of `x`, one for each index.
fn select_rows(x: &Tensor, at: usize, indices: &Tensor, meta: &Meta) -> Result<Outputs, OpError> {
    let (n_entries, inner) = match x.shape().get(at..) {
        Some([size, inner @ ..]) => (*size, inner.iter().product::<usize>()),
        _ => (1, 1),
    };
    let picked = positions(indices, at, n_entries)?;
    let x = x.contiguous();
    let mut out = Tensor::scratch(meta.dtype, &meta.shape)?;
    with_element!(meta.dtype, T => {
        let from = x.as_slice::<T>().expect("just made contiguous");
        let to = out.as_mut_slice::<T>().expect("just made");
        if !to.is_empty() {
            // [outer, entries, inner] -> [outer, picked, inner]
            for (outer, to) in to.chunks_exact_mut(picked.len() * inner).enumerate() {
                let from = &from[outer * n_entries * inner..][..n_entries * inner];
                for (to, &entry) in to.chunks_exact_mut(inner).zip(&picked) {
                    to.copy_from_slice(&from[entry * inner..][..inner]);
                }
            }
        }
    });
    one(out)
}

/// `index` picks along one dimension and stays inside `x` along all others.
fn check_gather(x: &Tensor, at: usize, index: &Tensor, argument: &'static str) -> Result<(), OpError> {
    let fits = index.numel() == 0
        || index.ndim().max(1) == x.ndim().max(1)
            && index.shape().iter().zip(x.shape()).enumerate().all(|(d, (i, x))| d == at || i <= x);
    if fits {
        return Ok(());
    }
    let expected = format!("at most {:?} but for dimension {at}", x.shape());
    Err(OpError::Shape { argument, found: index.shape().into(), expected })
}

fn infer_gather(call: &Call<'_>) -> Result<Metas, OpError> {
    let (x, index) = (call.tensor("self")?, indices(call, "index")?);
    check_gather(x, dim(call.int("dim")?, x.ndim())?, index, "index")?;
    meta(x.dtype(), index.shape())
}

fn gather(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let (x, index) = (call.tensor("self")?, call.tensor("index")?);
    let at = dim(call.int("dim")?, x.ndim())?;
    let meta = first(metas);
    let offsets = if meta.shape.contains(&0) { Vec::new() } else { picked_offsets(x, at, index)? };
    let mut out = Tensor::scratch(meta.dtype, &meta.shape)?;
    with_element!(meta.dtype, T => pick::<T>(x, &offsets, &mut out));
    one(out)
}

/// Where in the storage of `x` each element that `index` names lies.
fn picked_offsets(x: &Tensor, at: usize, index: &Tensor) -> Result<Vec<usize>, OpError> {
    let size = x.shape().get(at).copied().unwrap_or(1);
    let stride = x.strides().get(at).copied().unwrap_or(0);
    let mut strides = Strides::from_slice(x.strides());
    if let Some(stride) = strides.get_mut(at) {
        *stride = 0;
    }
    let bases = offsets(index.shape(), &strides, x.offset());
    Ok(bases.into_iter().zip(positions(index, at, size)?).map(|(base, entry)| base + entry * stride).collect())
}

/// Offsets of all elements of a view in row-major order.
fn offsets(shape: &[usize], strides: &[usize], start: usize) -> Vec<usize> {
    let mut offsets = vec![start];
    for (&size, &stride) in shape.iter().zip(strides) {
        offsets = offsets.iter().flat_map(|&at| (0..size).map(move |i| at + i * stride)).collect();
    }
    offsets
}

fn pick<T: Element>(x: &Tensor, offsets: &[usize], out: &mut Tensor) {
    let from = x.elements::<T>().expect("the caller matched the dtype");
    let to = out.as_mut_slice::<T>().expect("just made with that dtype");
    to.iter_mut().zip(offsets).for_each(|(to, &at)| *to = from[at]);
}

/// `x[i, :, j]`: index tensors with the dimension each picks from.
struct Selection {
    picks: Vec<(usize, Tensor)>,
    shape: Shape,
}

/// Boolean indices become the positions of their true elements.
fn selection(call: &Call<'_>) -> Result<Selection, OpError> {
    let x = call.tensor("self")?;
    let mut picks = Vec::new();
    let mut at = 0;
    for index in call.optional_tensors("indices")? {
        match index {
            None => at += 1,
            Some(mask) if matches!(mask.dtype(), DType::Bool | DType::U8) => {
                if x.shape().get(at..at + mask.ndim()) != Some(mask.shape()) {
                    let expected = format!("the sizes of {:?} from dimension {at}", x.shape());
                    return Err(OpError::Shape { argument: "indices", found: mask.shape().into(), expected });
                }
                let n_dims = mask.ndim();
                picks.extend(true_positions(mask)?.into_iter().enumerate().map(|(d, index)| (at + d, index)));
                at += n_dims;
            }
            Some(index) => {
                if !index.dtype().is_int() {
                    return Err(OpError::DType { argument: "indices", dtype: index.dtype() });
                }
                picks.push((at, index.cast(DType::I64)?));
                at += 1;
            }
        }
    }
    if at > x.ndim() {
        return Err(OpError::Dim { dim: at as i64 - 1, ndim: x.ndim() });
    }
    let shape = picks.iter().try_fold(Shape::new(), |shape, (_, index)| broadcast_shapes(&shape, index.shape()))?;
    Ok(Selection { picks, shape })
}

fn true_positions(mask: &Tensor) -> Result<Vec<Tensor>, OpError> {
    let mut found: Vec<Vec<i64>> = vec![Vec::new(); mask.ndim()];
    let values = mask.iter::<u8>().expect("masks are stored as bytes");
    for (at, _) in values.enumerate().filter(|(_, value)| *value != 0) {
        let mut rest = at;
        for d in (0..mask.ndim()).rev() {
            found[d].push((rest % mask.shape()[d]) as i64);
            rest /= mask.shape()[d];
        }
    }
    found.iter().map(|values| Ok(Tensor::from_slice(values, &[values.len()])?)).collect()
}

/// Where the picked dimensions go: to the place of the first if they are neighbours, else to the front.
fn picked_place(picks: &[(usize, Tensor)]) -> usize {
    let are_neighbours = picks.windows(2).all(|pair| pair[0].0 + 1 == pair[1].0);
    if are_neighbours { picks.first().map_or(0, |pick| pick.0) } else { 0 }
}

fn infer_index(call: &Call<'_>) -> Result<Metas, OpError> {
    let x = call.tensor("self")?;
    let selection = selection(call)?;
    let is_picked = |d: &usize| selection.picks.iter().any(|(at, _)| at == d);
    let mut shape: Shape = (0..x.ndim()).filter(|d| !is_picked(d)).map(|d| x.shape()[d]).collect();
    shape.insert_from_slice(picked_place(&selection.picks), &selection.shape);
    meta(x.dtype(), &shape)
}

fn index(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let x = call.tensor("self")?;
    let Selection { picks, shape } = selection(call)?;
    let kept: Vec<usize> = (0..x.ndim()).filter(|d| !picks.iter().any(|(at, _)| at == d)).collect();
    let kept_shape: Shape = kept.iter().map(|&d| x.shape()[d]).collect();
    let kept_strides: Strides = kept.iter().map(|&d| x.strides()[d]).collect();
    let inner = offsets(&kept_shape, &kept_strides, 0);
    let mut bases = vec![x.offset(); shape.iter().product()];
    for (at, index) in &picks {
        let (size, stride) = (x.shape()[*at], x.strides()[*at]);
        let index = index.expand(&shape)?;
        for (base, index) in bases.iter_mut().zip(index.iter::<i64>().expect("indices are i64")) {
            let from_front = if index < 0 { index.saturating_add(size as i64) } else { index };
            let entry = position(from_front, *at, size).map_err(|_| OpError::Index { index, dim: *at, size })?;
            *base += entry * stride;
        }
    }
    // Picked dimensions first, the others after them; then into place.
    let out_shape: Shape = shape.iter().chain(&kept_shape).copied().collect();
    let mut out = Tensor::scratch(x.dtype(), &out_shape)?;
    if !inner.is_empty() {
        with_element!(x.dtype(), T => {
            let from = x.elements::<T>().expect("matched the dtype");
            let to = out.as_mut_slice::<T>().expect("just made with that dtype");
            for (to, &base) in to.chunks_exact_mut(inner.len()).zip(&bases) {
                to.iter_mut().zip(&inner).for_each(|(to, &at)| *to = from[base + at]);
            }
        });
    }
    let place = picked_place(&picks);
    let n_picked = shape.len();
    let order: Shape =
        (0..place).map(|d| n_picked + d).chain(0..n_picked).chain(n_picked + place..out_shape.len()).collect();
    let out = out.permute(&order)?;
    debug_assert_eq!(out.shape(), first(metas).shape.as_slice());
    one(out)
}

#[derive(Clone, Copy)]
enum Source {
    Tensor,
    Value,
}

fn infer_scatter(call: &Call<'_>) -> Result<Metas, OpError> {
    let (x, index) = (call.tensor("self")?, indices(call, "index")?);
    check_gather(x, dim(call.int("dim")?, x.ndim())?, index, "index")?;
    meta(x.dtype(), x.shape())
}

fn scatter(call: &Call<'_>, metas: &[Meta], source: Source) -> Result<Outputs, OpError> {
    let (x, index) = (call.tensor("self")?, call.tensor("index")?);
    let at = dim(call.int("dim")?, x.ndim())?;
    let meta = first(metas);
    let values = match source {
        Source::Value => to_tensor(call.tensor_or_scalar("value")?, meta.dtype)?.expand(index.shape())?,
        Source::Tensor => {
            let src = call.tensor("src")?;
            if src.dtype() != meta.dtype {
                return Err(OpError::DType { argument: "src", dtype: src.dtype() });
            }
            check_gather(src, usize::MAX, index, "index")?;
            let whole = index.shape().iter().enumerate();
            whole.filter(|_| src.ndim() > 0).try_fold(src.clone(), |src, (d, &size)| src.narrow(d, 0, size))?
        }
    };
    let mut out = Tensor::scratch(meta.dtype, &meta.shape)?;
    let target = Tensor::clone(&out);
    let offsets = if index.numel() == 0 { Vec::new() } else { picked_offsets(&target, at, index)? };
    drop(target);
    with_element!(meta.dtype, T => {
        let to = out.as_mut_slice::<T>().expect("just made, and the clone is gone");
        x.copy_into(to)?;
        let values = values.iter::<T>().expect("converted to that dtype");
        offsets.iter().zip(values).for_each(|(&at, value)| to[at] = value);
    });
    one(out)
}
