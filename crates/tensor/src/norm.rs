//! Softmax and normalisation of rows.
//!
//! A row is summed in [`SUMS`] vectors, element `i` always in the same lane of the same vector, and the lanes are added
//! in one order. So a row's bits depend on its elements only, and elements at its end that contribute zero (masked
//! keys) change nothing.

use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, SimdOp, SimdUnaryOp};
use rten_vecmath::Exp;

use crate::elementwise::{elements, out_slice};
use crate::{DType, Tensor, TensorError, parallel};

/// Vectors that partial sums are kept in: enough to hide the latency of an addition.
const SUMS: usize = 4;
/// Elements of one task, about.
const TASK_ELEMENTS: usize = 1 << 13;

/// Rows per task so that a task is worth starting.
pub(crate) fn rows_per_task(width: usize) -> usize {
    TASK_ELEMENTS.div_ceil(width.max(1))
}

/// Adds up `f(vector)` over a row; the last vector is padded with `pad`.
#[inline(always)]
pub(crate) fn sum_by<I: Isa>(isa: I, row: &[f32], pad: f32, f: impl Fn(I::F32) -> I::F32) -> f32 {
    let ops = isa.f32();
    let lanes = ops.len();
    let mut sums = [ops.zero(); SUMS];
    let mut blocks = row.chunks_exact(SUMS * lanes);
    for block in &mut blocks {
        for (j, sum) in sums.iter_mut().enumerate() {
            *sum = ops.add(*sum, f(ops.load(&block[j * lanes..(j + 1) * lanes])));
        }
    }
    for (sum, part) in sums.iter_mut().zip(blocks.remainder().chunks(lanes)) {
        *sum = ops.add(*sum, f(load_padded(isa, part, pad)));
    }
    ops.sum(ops.add(ops.add(sums[0], sums[1]), ops.add(sums[2], sums[3])))
}

/// The largest of `f(vector)` over a row; the last vector is padded with `-∞`.
#[inline(always)]
pub(crate) fn max_of<I: Isa>(isa: I, row: &[f32]) -> f32 {
    let ops = isa.f32();
    let lanes = ops.len();
    let low = ops.splat(f32::NEG_INFINITY);
    let mut most = [low; SUMS];
    let mut blocks = row.chunks_exact(SUMS * lanes);
    for block in &mut blocks {
        for (j, most) in most.iter_mut().enumerate() {
            *most = ops.max(ops.load(&block[j * lanes..(j + 1) * lanes]), *most);
        }
    }
    for (most, part) in most.iter_mut().zip(blocks.remainder().chunks(lanes)) {
        *most = ops.max(load_padded(isa, part, f32::NEG_INFINITY), *most);
    }
    let most = ops.max(ops.max(most[0], most[1]), ops.max(most[2], most[3]));
    ops.fold_splat(most, f32::NEG_INFINITY, f32::max).lane0(isa)
}

/// Reads a value that all lanes hold.
trait Lane0<I: Isa> {
    fn lane0(self, isa: I) -> f32;
}

impl<I: Isa> Lane0<I> for I::F32 {
    #[inline(always)]
    fn lane0(self, isa: I) -> f32 {
        let mut lanes = [0.0; crate::math::MAX_LANES];
        isa.f32().store(self, &mut lanes);
        lanes[0]
    }
}

/// A vector from at most as many elements as it has lanes.
#[inline(always)]
pub(crate) fn load_padded<I: Isa>(isa: I, part: &[f32], pad: f32) -> I::F32 {
    let ops = isa.f32();
    if part.len() == ops.len() {
        return ops.load(part);
    }
    let mut lanes = [pad; crate::math::MAX_LANES];
    lanes[..part.len()].copy_from_slice(part);
    ops.load(&lanes)
}

/// Writes as many lanes of `x` as `part` has elements.
#[inline(always)]
pub(crate) fn store_cut<I: Isa>(isa: I, x: I::F32, part: &mut [f32]) {
    let ops = isa.f32();
    if part.len() == ops.len() {
        ops.store(x, part);
        return;
    }
    let mut lanes = [0.0; crate::math::MAX_LANES];
    ops.store(x, &mut lanes);
    part.copy_from_slice(&lanes[..part.len()]);
}

/// `to[i] = f(vector of from)` along a row; lanes past its end are dropped.
#[inline(always)]
pub(crate) fn map_row<I: Isa>(isa: I, from: &[f32], to: &mut [f32], f: impl Fn(usize, I::F32) -> I::F32) {
    let ops = isa.f32();
    let lanes = ops.len();
    let mut at = 0;
    while at + lanes <= to.len() {
        let y = f(at, ops.load(&from[at..at + lanes]));
        ops.store(y, &mut to[at..at + lanes]);
        at += lanes;
    }
    if at < to.len() {
        let y = f(at, load_padded(isa, &from[at..to.len()], 0.0));
        let mut padded = [0.0; crate::math::MAX_LANES];
        ops.store(y, &mut padded);
        let n = to.len() - at;
        to[at..].copy_from_slice(&padded[..n]);
    }
}

/// `e^(row - most)` in place, where `most` is the row's largest element; gives the sum. A row of `-∞` alone becomes
/// zeros with the sum 0.
#[inline(always)]
pub(crate) fn exp_row<I: Isa>(isa: I, row: &mut [f32], most: f32) -> f32 {
    if most == f32::NEG_INFINITY {
        row.fill(0.0);
        return 0.0;
    }
    let ops = isa.f32();
    let lanes = ops.len();
    let most = ops.splat(most);
    let exp = |x: I::F32| Exp::apply(isa, ops.sub(x, most));
    let mut sums = [ops.zero(); SUMS];
    let mut blocks = row.chunks_exact_mut(SUMS * lanes);
    for block in &mut blocks {
        for (j, sum) in sums.iter_mut().enumerate() {
            let part = &mut block[j * lanes..(j + 1) * lanes];
            let y = exp(ops.load(part));
            ops.store(y, part);
            *sum = ops.add(*sum, y);
        }
    }
    for (sum, part) in sums.iter_mut().zip(blocks.into_remainder().chunks_mut(lanes)) {
        let y = exp(load_padded(isa, part, f32::NEG_INFINITY));
        store_cut(isa, y, part);
        *sum = ops.add(*sum, y);
    }
    ops.sum(ops.add(ops.add(sums[0], sums[1]), ops.add(sums[2], sums[3])))
}

/// Which softmax.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Softmax {
    /// `e^x / Σ e^x`
    Plain,
    /// Its logarithm.
    Log,
    /// Plain, but zeros where every element is `-∞`, as `aten::_safe_softmax`.
    Safe,
}

/// Softmax of the `f32` tensor `x` along `dim`.
pub fn softmax(x: &Tensor, dim: usize, kind: Softmax) -> Result<Tensor, TensorError> {
    let width = x.size(dim)?;
    let last = x.ndim() - 1;
    let moved = x.transpose(dim, last)?.contiguous();
    let from = moved.as_slice::<f32>().ok_or(TensorError::DType { expected: "f32", got: x.dtype() })?;
    let mut out = Tensor::scratch(DType::F32, moved.shape())?;
    let to = out_slice::<f32>(&mut out)?;
    let per_task = rows_per_task(width);
    parallel::for_each_chunk(to, per_task * width, |task, to| {
        let from = &from[task * per_task * width..][..to.len()];
        SoftmaxRows { from, to, width, kind }.dispatch();
    });
    if dim == last { Ok(out) } else { Ok(out.transpose(dim, last)?.contiguous()) }
}

struct SoftmaxRows<'a> {
    from: &'a [f32],
    to: &'a mut [f32],
    width: usize,
    kind: Softmax,
}

impl SimdOp for SoftmaxRows<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let ops = isa.f32();
        for (from, to) in self.from.chunks_exact(self.width).zip(self.to.chunks_exact_mut(self.width)) {
            let most = max_of(isa, from);
            if self.kind == Softmax::Log {
                let top = ops.splat(most);
                let log = sum_by(isa, from, f32::NEG_INFINITY, |x| Exp::apply(isa, ops.sub(x, top))).ln();
                map_row(isa, from, to, |_, x| ops.sub(ops.sub(x, top), ops.splat(log)));
                continue;
            }
            to.copy_from_slice(from);
            let sum = exp_row(isa, to, most);
            match (sum == 0.0, self.kind) {
                (true, Softmax::Safe) => {}
                (true, _) => to.fill(f32::NAN),
                _ => to.iter_mut().for_each(|y| *y /= sum),
            }
        }
    }
}

/// Weight and bias of a layer norm, each of the normalised shape, and the number added to the variance.
#[derive(Clone, Copy)]
pub struct LayerNorm<'a> {
    /// Factor; 1 if absent.
    pub weight: Option<&'a Tensor>,
    /// Summand; 0 if absent.
    pub bias: Option<&'a Tensor>,
    /// Added to the variance.
    pub eps: f64,
}

/// Layer norm of `x` (plus `residual`, of the same shape, if given) over its last `n_dims` dimensions, in `f32`.
pub fn layer_norm(
    x: &Tensor,
    residual: Option<&Tensor>,
    n_dims: usize,
    norm: &LayerNorm<'_>,
) -> Result<Tensor, TensorError> {
    let first = x.ndim().checked_sub(n_dims).ok_or(TensorError::Dim { dim: n_dims, ndim: x.ndim() })?;
    let shape = &x.shape()[first..];
    let width: usize = shape.iter().product();
    let x = x.contiguous();
    let from = x.as_slice::<f32>().ok_or(TensorError::DType { expected: "f32", got: x.dtype() })?;
    let residual =
        residual.map(|residual| residual.expand(x.shape()).map(|residual| residual.contiguous())).transpose()?;
    let added = residual.as_ref().map(|residual| whole(residual)).transpose()?;
    let affine = |tensor: Option<&Tensor>| tensor.map(|tensor| Ok(tensor.expand(shape)?.contiguous())).transpose();
    let (weight, bias) = (affine(norm.weight)?, affine(norm.bias)?);
    let weight = weight.as_ref().map(|weight| whole(weight)).transpose()?;
    let bias = bias.as_ref().map(|bias| whole(bias)).transpose()?;
    let mut out = Tensor::scratch(DType::F32, x.shape())?;
    let to = out_slice::<f32>(&mut out)?;
    let per_task = rows_per_task(width);
    parallel::for_each_chunk(to, per_task * width, |task, to| {
        let start = task * per_task * width;
        let added = added.map(|added| &added[start..start + to.len()]);
        let from = &from[start..start + to.len()];
        LayerNormRows { from, added, to, width, weight, bias, eps: norm.eps }.dispatch();
    });
    Ok(out)
}

fn whole(tensor: &Tensor) -> Result<&[f32], TensorError> {
    tensor.as_slice::<f32>().ok_or(TensorError::DType { expected: "f32", got: tensor.dtype() })
}

struct LayerNormRows<'a> {
    from: &'a [f32],
    added: Option<&'a [f32]>,
    to: &'a mut [f32],
    width: usize,
    weight: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
    eps: f64,
}

impl SimdOp for LayerNormRows<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let ops = isa.f32();
        for (i, to) in self.to.chunks_exact_mut(self.width).enumerate() {
            let row = i * self.width..(i + 1) * self.width;
            let from = &self.from[row.clone()];
            match self.added {
                None => to.copy_from_slice(from),
                Some(added) => {
                    let added = &added[row];
                    map_row(isa, from, to, |at, x| {
                        let n = ops.len().min(added.len() - at);
                        ops.add(x, load_padded(isa, &added[at..at + n], 0.0))
                    });
                }
            }
            let (mean, factor) = moments(isa, to, self.eps);
            let (mean, factor) = (ops.splat(mean), ops.splat(factor));
            let affine = |values: Option<&[f32]>, at: usize, absent: f32| match values {
                None => ops.splat(absent),
                Some(values) => load_padded(isa, &values[at..(at + ops.len()).min(values.len())], 0.0),
            };
            let lanes = ops.len();
            for (part, to) in to.chunks_mut(lanes).enumerate() {
                let x = ops.mul(ops.sub(load_padded(isa, to, 0.0), mean), factor);
                let y = ops.mul_add(x, affine(self.weight, part * lanes, 1.0), affine(self.bias, part * lanes, 0.0));
                if to.len() == lanes {
                    ops.store(y, to);
                } else {
                    let mut padded = [0.0; crate::math::MAX_LANES];
                    ops.store(y, &mut padded);
                    to.copy_from_slice(&padded[..to.len()]);
                }
            }
        }
    }
}

/// Mean and `1 / √(variance + eps)` of a row; the variance is that of the whole, not of a sample.
#[inline(always)]
fn moments<I: Isa>(isa: I, row: &[f32], eps: f64) -> (f32, f32) {
    let ops = isa.f32();
    let n = row.len() as f32;
    let mean = sum_by(isa, row, 0.0, |x| x) / n;
    let center = ops.splat(mean);
    // The padding is the mean itself, so that it adds nothing to the variance.
    let squares = sum_by(isa, row, mean, |x| {
        let d = ops.sub(x, center);
        ops.mul(d, d)
    });
    (mean, (1.0 / (f64::from(squares / n) + eps).sqrt()) as f32)
}

/// `weight · (x - mean) / √(variance + eps) + bias` along dimension 1 of the `f32` tensor `x`, with given moments.
pub fn batch_norm(x: &Tensor, mean: &Tensor, variance: &Tensor, norm: &LayerNorm<'_>) -> Result<Tensor, TensorError> {
    let n_channels = x.size(1)?;
    let channel = |tensor: &Tensor| -> Result<Vec<f32>, TensorError> {
        elements::<f32>(tensor)?;
        Ok(tensor.expand(&[n_channels])?.iter::<f32>().expect("checked to be f32").collect())
    };
    let (mean, variance) = (channel(mean)?, channel(variance)?);
    let weight = norm.weight.map(channel).transpose()?;
    let bias = norm.bias.map(channel).transpose()?;
    let scales: Vec<f32> = (0..n_channels)
        .map(|c| {
            let factor = 1.0 / (f64::from(variance[c]) + norm.eps).sqrt();
            (factor * weight.as_ref().map_or(1.0, |weight| f64::from(weight[c]))) as f32
        })
        .collect();
    let shifts: Vec<f32> =
        (0..n_channels).map(|c| bias.as_ref().map_or(0.0, |bias| bias[c]) - mean[c] * scales[c]).collect();
    let x = x.contiguous();
    let from = whole(&x)?;
    let area: usize = x.shape()[2..].iter().product();
    let mut out = Tensor::scratch(DType::F32, x.shape())?;
    parallel::for_each_chunk(out_slice::<f32>(&mut out)?, area, |plane, to| {
        let (scale, shift) = (scales[plane % n_channels], shifts[plane % n_channels]);
        let from = &from[plane * area..][..to.len()];
        to.iter_mut().zip(from).for_each(|(to, &x)| *to = x * scale + shift);
    });
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{random, worst_difference};

    fn rows(x: &Tensor, f: impl Fn(&[f64]) -> Vec<f64>) -> Tensor {
        let width = x.shape()[x.ndim() - 1];
        let values = x.cast(DType::F64).unwrap().to_vec::<f64>().unwrap();
        let out: Vec<f64> = values.chunks(width).flat_map(f).collect();
        Tensor::from_slice(&out, x.shape()).unwrap()
    }

    fn plain_softmax(row: &[f64]) -> Vec<f64> {
        let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let exps: Vec<f64> = row.iter().map(|x| (x - most).exp()).collect();
        let sum: f64 = exps.iter().sum();
        exps.iter().map(|x| x / sum).collect()
    }

    fn plain_layer_norm(row: &[f64]) -> Vec<f64> {
        let n = row.len() as f64;
        let mean = row.iter().sum::<f64>() / n;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        row.iter().map(|x| (x - mean) / (variance + 1e-5).sqrt()).collect()
    }

    #[test]
    fn softmax_equals_its_definition_along_every_dimension() {
        let scale = |x: &Tensor| crate::map(x, DType::F32, |x: f32| x * 20.0).unwrap();
        for width in [1, 2, 15, 16, 17, 64, 100, 257] {
            let x = scale(&random(&[5, width], width as u64));
            assert!(worst_difference(&softmax(&x, 1, Softmax::Plain).unwrap(), &rows(&x, plain_softmax)) < 3e-7);
            let log = rows(&x, |row| plain_softmax(row).iter().map(|y| y.ln()).collect());
            assert!(worst_difference(&softmax(&x, 1, Softmax::Log).unwrap(), &log) < 1e-5);
            let t = x.transpose(0, 1).unwrap();
            let across = softmax(&t, 0, Softmax::Plain).unwrap().transpose(0, 1).unwrap();
            assert_eq!(across.to_vec::<f32>(), softmax(&x, 1, Softmax::Plain).unwrap().to_vec::<f32>());
        }
    }

    #[test]
    fn masked_padding_at_the_end_of_a_row_does_not_change_a_bit() {
        for width in [1, 7, 16, 33, 100] {
            let x = random(&[4, width], 3);
            let alone = softmax(&x, 1, Softmax::Plain).unwrap().to_vec::<f32>().unwrap();
            for padding in [1, 15, 64, 200] {
                for low in [f32::NEG_INFINITY, f32::MIN] {
                    let pad = Tensor::full(DType::F32, &[4, padding], crate::Scalar::Float(low.into())).unwrap();
                    let padded = crate::concat(&[x.clone(), pad], 1).unwrap();
                    let out = softmax(&padded, 1, Softmax::Plain).unwrap().narrow(1, 0, width).unwrap();
                    assert_eq!(out.to_vec::<f32>().unwrap(), alone);
                }
            }
        }
    }

    #[test]
    fn a_row_of_negative_infinities_is_nan_or_by_choice_zero() {
        let x = Tensor::full(DType::F32, &[1, 20], crate::Scalar::Float(f64::NEG_INFINITY)).unwrap();
        assert!(softmax(&x, 1, Softmax::Plain).unwrap().to_vec::<f32>().unwrap().iter().all(|y| y.is_nan()));
        assert!(softmax(&x, 1, Softmax::Safe).unwrap().to_vec::<f32>().unwrap().iter().all(|&y| y == 0.0));
    }

    #[test]
    fn layer_norm_equals_its_definition() {
        for width in [1, 5, 16, 31, 384] {
            let (x, r) = (random(&[7, width], 1), random(&[7, width], 2));
            let sum = crate::zip(&x, &r, DType::F32, |a: f32, b: f32| a + b).unwrap();
            let plain = LayerNorm { weight: None, bias: None, eps: 1e-5 };
            let out = layer_norm(&x, None, 1, &plain).unwrap();
            assert!(worst_difference(&out, &rows(&x, plain_layer_norm)) < 3e-6 * (width as f64).sqrt());
            let fused = layer_norm(&x, Some(&r), 1, &plain).unwrap().to_vec::<f32>();
            assert_eq!(fused, layer_norm(&sum, None, 1, &plain).unwrap().to_vec::<f32>());
            let (weight, bias) = (random(&[width], 3), random(&[width], 4));
            let affine = LayerNorm { weight: Some(&weight), bias: Some(&bias), eps: 1e-5 };
            let by_hand = crate::zip(
                &crate::zip(&out, &weight, DType::F32, |a: f32, b: f32| a * b).unwrap(),
                &bias,
                DType::F32,
                |a: f32, b: f32| a + b,
            )
            .unwrap();
            assert!(worst_difference(&layer_norm(&x, None, 1, &affine).unwrap(), &by_hand) < 1e-6);
        }
    }

    #[test]
    fn rows_have_the_same_bits_alone_and_with_any_threads() {
        let x = random(&[300, 130], 1);
        let norm = LayerNorm { weight: None, bias: None, eps: 1e-12 };
        let all = layer_norm(&x, None, 1, &norm).unwrap().to_vec::<f32>().unwrap();
        let soft = softmax(&x, 1, Softmax::Plain).unwrap().to_vec::<f32>().unwrap();
        parallel::with_threads(3, || {
            assert_eq!(layer_norm(&x, None, 1, &norm).unwrap().to_vec::<f32>().unwrap(), all);
            assert_eq!(softmax(&x, 1, Softmax::Plain).unwrap().to_vec::<f32>().unwrap(), soft);
        });
        let row = x.narrow(0, 211, 1).unwrap();
        assert_eq!(layer_norm(&row, None, 1, &norm).unwrap().to_vec::<f32>().unwrap(), all[211 * 130..212 * 130]);
        assert_eq!(softmax(&row, 1, Softmax::Plain).unwrap().to_vec::<f32>().unwrap(), soft[211 * 130..212 * 130]);
    }

    #[test]
    fn batch_norm_scales_each_channel() {
        let x = random(&[2, 3, 4, 5], 1);
        let (mean, weight, bias) = (random(&[3], 2), random(&[3], 3), random(&[3], 4));
        let variance = crate::map(&random(&[3], 5), DType::F32, |x: f32| x.abs() + 0.5).unwrap();
        let norm = LayerNorm { weight: Some(&weight), bias: Some(&bias), eps: 1e-3 };
        let out = batch_norm(&x, &mean, &variance, &norm).unwrap();
        let at = |t: &Tensor, c: usize| f64::from(t.to_vec::<f32>().unwrap()[c]);
        let expected: Vec<f64> = x
            .iter::<f32>()
            .unwrap()
            .enumerate()
            .map(|(i, x)| {
                let c = i / 20 % 3;
                (f64::from(x) - at(&mean, c)) / (at(&variance, c) + 1e-3).sqrt() * at(&weight, c) + at(&bias, c)
            })
            .collect();
        assert!(worst_difference(&out, &Tensor::from_slice(&expected, &[2, 3, 4, 5]).unwrap()) < 1e-5);
    }
}
