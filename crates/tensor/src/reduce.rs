//! Reductions in a fixed order, and rows picked by index.

use rten_simd::{Isa, SimdOp};
use smallvec::SmallVec;

use crate::elementwise::{Wide, elements, out_slice};
use crate::norm::{rows_per_task, sum_by};
use crate::{DType, Element, Shape, Tensor, TensorError, parallel, with_element};

/// Elements summed in f32 before their sum goes into an f64 total.
const SUM_BLOCK: usize = 1 << 12;

/// What remains of reduced dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing.
    Drop,
    /// Dimensions of size 1.
    One,
}

/// The shape of `x` with `dims` reduced. Errors if a dimension does not exist.
pub fn reduced_shape(x: &Tensor, dims: &[usize], keep: Keep) -> Result<Shape, TensorError> {
    if let Some(&dim) = dims.iter().find(|&&dim| dim >= x.ndim()) {
        return Err(TensorError::Dim { dim, ndim: x.ndim() });
    }
    let sizes = x.shape().iter().enumerate();
    Ok(sizes
        .filter_map(|(dim, &size)| match (dims.contains(&dim), keep) {
            (false, _) => Some(size),
            (true, Keep::One) => Some(1),
            (true, Keep::Drop) => None,
        })
        .collect())
}

/// `x` with the dimensions `dims` moved to the end, and how many elements they hold.
fn reduced_last(x: &Tensor, dims: &[usize]) -> Result<(Tensor, usize), TensorError> {
    let kept = (0..x.ndim()).filter(|dim| !dims.contains(dim));
    let reduced = (0..x.ndim()).filter(|dim| dims.contains(dim));
    let order: SmallVec<[usize; 6]> = kept.chain(reduced.clone()).collect();
    let n = reduced.map(|dim| x.shape()[dim]).product();
    Ok((x.permute(&order)?, n))
}

/// Folds the elements along `dims`, in row-major order of those, with `step`, then turns each total into a result.
pub fn fold<T: Element, A: Copy + Sync, O: Element>(
    x: &Tensor,
    (dims, keep): (&[usize], Keep),
    dtype: DType,
    start: A,
    step: impl Fn(A, T) -> A + Sync,
    finish: impl Fn(A) -> O + Sync,
) -> Result<Tensor, TensorError> {
    let shape = reduced_shape(x, dims, keep)?;
    let (x, n) = reduced_last(x, dims)?;
    let x = x.contiguous();
    elements::<T>(&x)?;
    let from = x.as_slice::<T>().expect("made contiguous, of the dtype just checked");
    let mut out = Tensor::scratch(dtype, &shape)?;
    let per_task = rows_per_task(n);
    parallel::for_each_chunk(out_slice::<O>(&mut out)?, per_task, |task, to| {
        for (i, to) in to.iter_mut().enumerate() {
            let row = (task * per_task + i) * n;
            *to = finish(from[row..row + n].iter().fold(start, |total, &x| step(total, x)));
        }
    });
    Ok(out)
}

/// The sum of the `f32` tensor `x` along `dims`, times `factor`. Zeros at the end of a reduced dimension do not change
/// a bit.
pub fn sum(x: &Tensor, dims: &[usize], keep: Keep, factor: f64) -> Result<Tensor, TensorError> {
    let shape = reduced_shape(x, dims, keep)?;
    elements::<f32>(x)?;
    let first = dims.iter().copied().min().unwrap_or(x.ndim());
    let last = dims.iter().copied().max().map_or(first, |dim| dim + 1);
    let is_run = (first..last).all(|dim| dims.contains(&dim));
    let x = if is_run { x.contiguous() } else { reduced_last(x, dims)?.0.contiguous() };
    let (first, last) = if is_run { (first, last) } else { (x.ndim() - dims.len(), x.ndim()) };
    let n: usize = x.shape()[first..last].iter().product();
    let inner: usize = x.shape()[last..].iter().product();
    let from = x.as_slice::<f32>().expect("made contiguous, of the dtype just checked");
    let mut out = Tensor::scratch(DType::F32, &shape)?;
    let to = out_slice::<f32>(&mut out)?;
    if inner == 1 {
        let per_task = rows_per_task(n);
        parallel::for_each_chunk(to, per_task, |task, to| {
            for (i, to) in to.iter_mut().enumerate() {
                let row = (task * per_task + i) * n;
                *to = (row_sum(&from[row..row + n]) * factor) as f32;
            }
        });
    } else {
        parallel::for_each_chunk(to, inner, |outer, to| {
            column_sums(&from[outer * n * inner..(outer + 1) * n * inner], to, factor);
        });
    }
    Ok(out)
}

fn row_sum(row: &[f32]) -> f64 {
    struct Blocks<'a>(&'a [f32]);
    impl SimdOp for Blocks<'_> {
        type Output = f64;

        #[inline(always)]
        fn eval<I: Isa>(self, isa: I) -> f64 {
            self.0.chunks(SUM_BLOCK).map(|block| f64::from(sum_by(isa, block, 0.0, |x| x))).sum()
        }
    }
    Blocks(row).dispatch()
}

fn column_sums(from: &[f32], to: &mut [f32], factor: f64) {
    const WIDTH: usize = 64;
    let inner = to.len();
    for (block, to) in to.chunks_mut(WIDTH).enumerate() {
        let mut totals = [0.0f64; WIDTH];
        let totals = &mut totals[..to.len()];
        Wide(
            #[inline(always)]
            || {
                for row in from.chunks_exact(inner) {
                    let row = &row[block * WIDTH..][..totals.len()];
                    totals.iter_mut().zip(row).for_each(|(total, &x)| *total += f64::from(x));
                }
            },
        )
        .dispatch();
        to.iter_mut().zip(totals).for_each(|(to, total)| *to = (*total * factor) as f32);
    }
}

/// Rows of `table` picked by `ids`: `out[i, ..] = table[ids[i], ..]`.
///
/// `table` is `[n_rows, …]`, `ids` an `i64` or `i32` tensor of any shape; the result is `ids.shape + [width, …]`. Errors
/// if an id is outside `0..n_rows`, including negative ids, as `aten::embedding` does on CPU.
pub fn gather_rows(table: &Tensor, ids: &Tensor) -> Result<Tensor, TensorError> {
    let n_rows = table.size(0)?;
    let ids_i64 = ids.cast(DType::I64)?;
    let ids_i64: Vec<i64> = ids_i64.iter().ok_or(TensorError::DType { expected: "i64", got: ids.dtype() })?.collect();
    let rows: Vec<usize> = ids_i64
        .into_iter()
        .map(|id| {
            usize::try_from(id).ok().filter(|&row| row < n_rows).ok_or(TensorError::Index { index: id, len: n_rows })
        })
        .collect::<Result<_, _>>()?;
    let shape: Shape = ids.shape().iter().chain(&table.shape()[1..]).copied().collect();
    let mut out = Tensor::scratch(table.dtype(), &shape)?;
    let width: usize = table.shape()[1..].iter().product();
    if width == 0 || rows.is_empty() {
        return Ok(out);
    }
    with_element!(table.dtype(), T => {
        let to = out_slice::<T>(&mut out)?;
        let is_plain = table.select(0, 0)?.is_contiguous();
        let (source, stride) = (elements::<T>(table)?, table.strides()[0]);
        for (&row, to) in rows.iter().zip(to.chunks_exact_mut(width)) {
            if is_plain {
                let start = table.offset() + row * stride;
                to.copy_from_slice(&source[start..start + width]);
            } else {
                table.select(0, row)?.copy_into(to)?;
            }
        }
    });
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{random, worst_difference};

    #[test]
    fn sums_equal_folds_in_f64_over_any_dimensions_and_layouts() {
        let x = random(&[3, 5, 7, 70], 1);
        for x in [x.clone(), x.permute(&[2, 0, 3, 1]).unwrap()] {
            for dims in [vec![], vec![0], vec![1], vec![3], vec![2, 3], vec![0, 1], vec![1, 3], vec![0, 1, 2, 3]] {
                for keep in [Keep::Drop, Keep::One] {
                    let out = sum(&x, &dims, keep, 0.5).unwrap();
                    let to_half = |total: f64| total * 0.5;
                    let plain =
                        fold(&x, (&dims, keep), DType::F64, 0.0, |total: f64, x: f32| total + f64::from(x), to_half);
                    assert!(worst_difference(&out, &plain.unwrap()) < 2e-5, "{dims:?}");
                }
            }
        }
        assert!(sum(&x, &[4], Keep::Drop, 1.0).is_err());
        assert_eq!(sum(&x.narrow(0, 0, 0).unwrap(), &[0], Keep::Drop, 1.0).unwrap().to_vec(), Some(vec![0.0f32; 2450]));
    }

    #[test]
    fn zeros_at_the_end_and_threads_do_not_change_a_bit() {
        let x = random(&[2, 50, 33], 1);
        let zeros = Tensor::zeros(DType::F32, &[2, 90, 33]).unwrap();
        let padded = crate::concat(&[x.clone(), zeros], 1).unwrap();
        for (x, padded) in [(x.clone(), padded.clone()), (x.transpose(1, 2).unwrap(), padded.transpose(1, 2).unwrap())]
        {
            for dim in [1, 2] {
                if x.shape()[dim] != 50 {
                    continue;
                }
                let alone = sum(&x, &[dim], Keep::Drop, 1.0).unwrap().to_vec::<f32>();
                assert_eq!(sum(&padded, &[dim], Keep::Drop, 1.0).unwrap().to_vec::<f32>(), alone);
                let threads = parallel::with_threads(3, || sum(&padded, &[dim], Keep::Drop, 1.0).unwrap());
                assert_eq!(threads.to_vec::<f32>(), alone);
            }
        }
    }

    #[test]
    fn gathered_rows_are_those_of_the_table_and_bad_ids_are_errors() {
        let table = random(&[6, 4], 1);
        let ids = Tensor::from_slice(&[5i64, 0, 5, 2], &[2, 2]).unwrap();
        for table in [table.clone(), table.transpose(0, 1).unwrap().contiguous().transpose(0, 1).unwrap()] {
            let out = gather_rows(&table, &ids).unwrap();
            assert_eq!(out.shape(), [2, 2, 4]);
            let row = out.select(0, 1).unwrap().select(0, 1).unwrap();
            assert_eq!(row.to_vec::<f32>(), table.select(0, 2).unwrap().to_vec::<f32>());
        }
        for bad in [-1i64, 6, i64::MIN] {
            assert!(gather_rows(&table, &Tensor::scalar(bad)).is_err());
        }
    }
}
