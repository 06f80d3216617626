//! Attention as one kernel.

#![allow(unsafe_code)]

use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, SimdOp};

use crate::elementwise::{elements, out_slice};
use crate::gemm::{Part, Product, pack_panels, panel_width, with_thread_scratch};
use crate::math::Unary;
use crate::norm::{exp_row, max_of};
use crate::parallel::{self, Parts};
use crate::{DType, Tensor, TensorError};

/// Elements of the block of scores that a task holds: it stays in the second-level cache.
const BLOCK_ELEMENTS: usize = 1 << 15;
/// Most query rows of a task: keys are rearranged once a task, which this many rows pay for.
const MAX_BLOCK_ROWS: usize = 128;
/// Scores at or below this are masked out where a mask adds them: far below any score, as `torch.finfo(f32).min` is.
const MASKED: f32 = -1e30;

/// What is done to the scores before softmax.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// Factor of the scores.
    pub scale: f32,
    /// `bool` (true takes part) or `f32` (added), broadcast to `[batch, heads, queries, keys]`.
    pub mask: Option<&'a Tensor>,
    /// Which keys a query sees besides.
    pub causality: Causality,
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Causality {
    /// All.
    Full,
    /// Query `t` sees keys `0..=t`.
    Causal,
}

/// `softmax(scale · q kᵀ + mask) v` for `f32` tensors `q` `[B, H, T, D]`, `k` `[B, H, S, D]` and `v` `[B, H, S, E]` of
/// any strides; the result is `[B, H, T, E]`, laid out as `[B, T, H, E]`, so that merging the heads costs nothing.
///
/// `k` and `v` may have fewer heads, if their number divides that of `q`: neighbouring query heads share them. A query
/// that sees no key gives zeros. Keys after the last one that a mask lets through are skipped, so their number does
/// not change a bit.
// B batch, H heads, T query positions, S key positions, D and E head widths
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, options: &Attention<'_>) -> Result<Tensor, TensorError> {
    let &[b, h, t, d] = q.shape() else { return Err(TensorError::Dim { dim: 4, ndim: q.ndim() }) };
    let &[kb, kh, s, kd] = k.shape() else { return Err(TensorError::Dim { dim: 4, ndim: k.ndim() }) };
    let &[vb, vh, vs, e] = v.shape() else { return Err(TensorError::Dim { dim: 4, ndim: v.ndim() }) };
    if (kb, kd, vb, vs) != (b, d, b, s) || kh != vh || kh == 0 || !h.is_multiple_of(kh) {
        let (left, right) = (q.shape().into(), k.shape().into());
        return Err(TensorError::Mismatch { what: "queries and keys", left, right });
    }
    let mask = options.mask.map(|mask| mask.expand(&[b, h, t, s])).transpose()?;
    let side_by_side = |x: &Tensor| if x.strides()[3] == 1 { x.clone() } else { x.contiguous() };
    let (q, v) = (side_by_side(q), side_by_side(v));
    let mut out = Tensor::scratch(DType::F32, &[b, t, h, e])?;
    let rows = (BLOCK_ELEMENTS / s.max(1)).clamp(8, MAX_BLOCK_ROWS);
    let n_blocks = t.div_ceil(rows).max(1);
    // Even blocks, and at least two tasks for two threads where one head has queries enough.
    let rows = t.div_ceil(n_blocks).max(1);
    let n_blocks = t.div_ceil(rows);
    let job = Job {
        q: Operand::new(&q)?,
        k: Operand::new(k)?,
        v: Operand::new(&v)?,
        mask: mask.as_ref(),
        options,
        heads_per_key: h / kh,
        sizes: [h, t, s, d, e],
    };
    let parts = Parts::new(out_slice::<f32>(&mut out)?);
    parallel::for_each(b * h * n_blocks, |task| {
        let (batch, head, block) = (task / n_blocks / h, task / n_blocks % h, task % n_blocks);
        let first = block * rows;
        job.run(&parts, batch, head, first..(first + rows).min(t));
    });
    out.permute(&[0, 2, 1, 3])
}

struct Operand<'a> {
    elements: &'a [f32],
    offset: usize,
    strides: [usize; 4],
}

impl<'a> Operand<'a> {
    fn new(x: &'a Tensor) -> Result<Self, TensorError> {
        let strides = x.strides().try_into().map_err(|_| TensorError::Dim { dim: 4, ndim: x.ndim() })?;
        Ok(Self { elements: elements::<f32>(x)?, offset: x.offset(), strides })
    }

    fn matrix(&self, batch: usize, head: usize, row: usize) -> &'a [f32] {
        let at = self.offset + batch * self.strides[0] + head * self.strides[1] + row * self.strides[2];
        &self.elements[at.min(self.elements.len())..]
    }
}

struct Job<'a> {
    q: Operand<'a>,
    k: Operand<'a>,
    v: Operand<'a>,
    mask: Option<&'a Tensor>,
    options: &'a Attention<'a>,
    heads_per_key: usize,
    sizes: [usize; 5],
}

impl Job<'_> {
    /// Writes query rows `rows` of one head.
    fn run(&self, out: &Parts<'_, f32>, batch: usize, head: usize, rows: std::ops::Range<usize>) {
        let [h, t, _, d, e] = self.sizes;
        let width = panel_width();
        let seen = self.seen(batch, head, &rows);
        let (n_score_panels, n_value_panels) = (seen.div_ceil(width), e.div_ceil(width));
        let row = n_score_panels * width;
        // Values can be used where they lie if panels cover them without a rest.
        let packs_values = !e.is_multiple_of(width);
        let sizes = [
            n_score_panels * width * d,
            if packs_values { n_value_panels * width * seen } else { 0 },
            rows.len() * row,
            row,
        ];
        with_thread_scratch(sizes.iter().sum(), |scratch| {
            let (keys, scratch) = scratch.split_at_mut(sizes[0]);
            let (values, scratch) = scratch.split_at_mut(sizes[1]);
            let (scores, added) = scratch.split_at_mut(sizes[2]);
            let key_head = head / self.heads_per_key;
            let k = self.k.matrix(batch, key_head, 0);
            pack_panels(k, [self.k.strides[3], self.k.strides[2]], [d, seen], keys);
            let part = |n_panels| Part { first_row: 0, n_rows: rows.len(), first_panel: 0, n_panels };
            let product = Product {
                left: self.q.matrix(batch, head, rows.start),
                left_row: if d == 0 { 0 } else { self.q.strides[2] },
                panels: keys,
                panel: d * width,
                panel_row: width,
                depth: d,
                out_row: row,
                n_cols: seen,
                bias: None,
                activation: Unary::Identity,
            };
            // SAFETY: `scores` is this call's own.
            unsafe { product.part(scores.as_mut_ptr(), scores.len(), &part(n_score_panels)) };

            // Where this block's rows lie in the output: row `t` of head `h` is `e` elements at `((b T + t) H + h) E`.
            let (start, out_row) = (((batch * t + rows.start) * h + head) * e, h * e);
            let mut factors = [0.0f32; MAX_BLOCK_ROWS];
            let softmax = ScoreRows { job: self, batch, head, first: rows.start, seen, row, scores, added };
            softmax.run(&mut factors[..rows.len()]);

            let v = self.v.matrix(batch, key_head, 0);
            if packs_values {
                pack_panels(v, [self.v.strides[2], 1], [seen, e], values);
            }
            let (panels, panel, panel_row) =
                if packs_values { (&*values, seen * width, width) } else { (v, width, self.v.strides[2]) };
            let product = Product {
                left: scores,
                left_row: row,
                panels,
                panel,
                panel_row,
                depth: seen,
                out_row,
                n_cols: e,
                bias: None,
                activation: Unary::Identity,
            };
            let end = start + (rows.len() - 1) * out_row + e;
            assert!(end <= out.len(), "the output holds every row of every head");
            // SAFETY: rows of different heads and blocks do not overlap, and the end of this block's was checked.
            unsafe { product.part(out.as_ptr().add(start), end - start, &part(n_value_panels)) };
            for (i, &factor) in factors[..rows.len()].iter().enumerate() {
                // SAFETY: as above; one row of one head.
                let row = unsafe { out.get(start + i * out_row, e) };
                row.iter_mut().for_each(|y| *y *= factor);
            }
        });
    }

    /// How many leading keys any of the query rows sees. All, where a row of an added mask sees none: softmax then
    /// spreads over every key.
    fn seen(&self, batch: usize, head: usize, rows: &std::ops::Range<usize>) -> usize {
        let s = self.sizes[2];
        let limit = match self.options.causality {
            Causality::Full => s,
            Causality::Causal => rows.end.min(s),
        };
        let Some(mask) = self.mask else { return limit };
        let n_distinct = if mask.strides()[2] == 0 { 1 } else { rows.len() };
        let mut seen = 0;
        for row in rows.start..rows.start + n_distinct {
            match (mask.dtype(), self.last_seen(mask, [batch, head, row], limit)) {
                (_, Some(last)) => seen = seen.max(last + 1),
                (DType::Bool, None) => {}
                (_, None) => return limit,
            }
        }
        seen
    }

    fn last_seen(&self, mask: &Tensor, index: [usize; 3], limit: usize) -> Option<usize> {
        let (at, step) = mask_row(mask, index);
        match mask.elements::<f32>() {
            Some(mask) => (0..limit).rev().find(|&s| mask[at + s * step] > MASKED),
            None => {
                let mask = mask.elements::<u8>()?;
                (0..limit).rev().find(|&s| mask[at + s * step] != 0)
            }
        }
    }
}

fn mask_row(mask: &Tensor, index: [usize; 3]) -> (usize, usize) {
    let strides = mask.strides();
    (mask.offset() + (0..3).map(|dim| index[dim] * strides[dim]).sum::<usize>(), strides[3])
}

/// The softmax of a block of scores, without the final division.
struct ScoreRows<'a> {
    job: &'a Job<'a>,
    batch: usize,
    head: usize,
    first: usize,
    seen: usize,
    row: usize,
    scores: &'a mut [f32],
    added: &'a mut [f32],
}

impl ScoreRows<'_> {
    /// Turns scores into `e^(score - max)` and writes to `factors` what makes each row's sum 1.
    fn run(self, factors: &mut [f32]) {
        if self.seen == 0 {
            return;
        }
        let is_shared = self.job.mask.is_none_or(|mask| mask.strides()[2] == 0);
        for (i, (scores, factor)) in self.scores.chunks_exact_mut(self.row).zip(factors).enumerate() {
            let query = self.first + i;
            if let Some(mask) = self.job.mask.filter(|_| i == 0 || !is_shared) {
                fill_added(mask, [self.batch, self.head, query], &mut self.added[..self.seen]);
            }
            let seen = match self.job.options.causality {
                Causality::Full => self.seen,
                Causality::Causal => self.seen.min(query + 1),
            };
            scores[seen..].fill(0.0);
            let added = self.job.mask.map(|_| &*self.added);
            let sum = ScoreRow { scores, seen, added, scale: self.job.options.scale }.dispatch();
            *factor = if sum == 0.0 { 0.0 } else { 1.0 / sum };
        }
    }
}

/// What a mask adds to the scores of one query.
fn fill_added(mask: &Tensor, index: [usize; 3], to: &mut [f32]) {
    let (at, step) = mask_row(mask, index);
    if let Some(mask) = mask.elements::<f32>() {
        to.iter_mut().enumerate().for_each(|(s, to)| *to = mask[at + s * step]);
    } else if let Some(mask) = mask.elements::<u8>() {
        let added = |seen: u8| if seen != 0 { 0.0 } else { f32::NEG_INFINITY };
        to.iter_mut().enumerate().for_each(|(s, to)| *to = added(mask[at + s * step]));
    }
}

/// A row of scores, as long as whole panels are; the first `seen` count.
struct ScoreRow<'a> {
    scores: &'a mut [f32],
    seen: usize,
    /// As long as `scores`.
    added: Option<&'a [f32]>,
    scale: f32,
}

impl SimdOp for ScoreRow<'_> {
    type Output = f32;

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) -> f32 {
        let ops = isa.f32();
        let (scale, low) = (ops.splat(self.scale), ops.splat(f32::NEG_INFINITY));
        let lanes = ops.len();
        // Whole vectors: what is not seen becomes `-∞`, which is no maximum and adds an exact zero to the sum.
        let scores = &mut self.scores[..self.seen.next_multiple_of(lanes)];
        for (part, scores) in scores.chunks_exact_mut(lanes).enumerate() {
            let start = part * lanes;
            let mut x = ops.mul(ops.load(scores), scale);
            if let Some(added) = self.added {
                x = ops.add(x, ops.load(&added[start..start + lanes]));
            }
            if self.seen - start < lanes {
                x = ops.select(x, low, ops.first_n_mask(self.seen - start));
            }
            ops.store(x, scores);
        }
        let most = max_of(isa, scores);
        exp_row(isa, scores, most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{random, worst_difference};
    use crate::{Scalar, Softmax, matmul, softmax, zip};

    /// Attention step by step, on expanded heads.
    fn plain(q: &Tensor, k: &Tensor, v: &Tensor, options: &Attention<'_>) -> Tensor {
        let group = q.shape()[1] / k.shape()[1];
        let heads = |x: &Tensor| {
            let [b, h, s, d] = x.shape().try_into().unwrap();
            let x = x.unsqueeze(2).unwrap().expand(&[b, h, group, s, d]).unwrap();
            x.reshape(&[b, h * group, s, d]).unwrap()
        };
        let (k, v) = (heads(k), heads(v));
        let scores = matmul(q, &k.transpose(2, 3).unwrap()).unwrap();
        let mut scores = zip(&scores, &Tensor::scalar(options.scale), DType::F32, |a: f32, b: f32| a * b).unwrap();
        if let Some(mask) = options.mask {
            let mask = match mask.dtype() {
                DType::Bool => {
                    crate::map(mask, DType::F32, |m: u8| if m == 0 { f32::NEG_INFINITY } else { 0.0 }).unwrap()
                }
                _ => mask.clone(),
            };
            scores = zip(&scores, &mask, DType::F32, |a: f32, b: f32| a + b).unwrap();
        }
        if options.causality == Causality::Causal {
            let (t, s) = (scores.shape()[2], scores.shape()[3]);
            let causal: Vec<f32> = (0..t * s).map(|i| if i % s <= i / s { 0.0 } else { f32::NEG_INFINITY }).collect();
            let causal = Tensor::from_slice(&causal, &[t, s]).unwrap();
            scores = zip(&scores, &causal, DType::F32, |a: f32, b: f32| a + b).unwrap();
        }
        matmul(&softmax(&scores, 3, Softmax::Safe).unwrap(), &v).unwrap()
    }

    /// `[B, T, H · D]` as a linear layer writes it, seen as `[B, H, T, D]`.
    fn heads(b: usize, h: usize, t: usize, d: usize, seed: u64) -> Tensor {
        random(&[b, t, h * d], seed).reshape(&[b, t, h, d]).unwrap().permute(&[0, 2, 1, 3]).unwrap()
    }

    #[test]
    fn attention_equals_its_definition() {
        for (b, h, kh, t, s, d, e) in [
            (2, 3, 3, 7, 7, 32, 32),
            (1, 4, 2, 150, 40, 64, 64),
            (2, 2, 1, 1, 300, 16, 24),
            (1, 1, 1, 5, 3, 7, 1),
            (1, 2, 2, 40, 70, 80, 96),
        ] {
            let (q, k, v) = (heads(b, h, t, d, 1), heads(b, kh, s, d, 2), heads(b, kh, s, e, 3));
            let bools = crate::map(&random(&[b, 1, t, s], 4), DType::Bool, |x: f32| u8::from(x > -0.3)).unwrap();
            let padding =
                crate::map(&random(&[b, 1, 1, s], 5), DType::F32, |x: f32| if x > 0.0 { f32::MIN } else { 0.0 });
            let padding = padding.unwrap();
            let bias = random(&[h, t, s], 6);
            for mask in [None, Some(&bools), Some(&padding), Some(&bias)] {
                for causality in [Causality::Full, Causality::Causal] {
                    let options = Attention { scale: 1.0 / (d as f32).sqrt(), mask, causality };
                    let out = attention(&q, &k, &v, &options).unwrap();
                    assert_eq!(out.shape(), [b, h, t, e]);
                    assert!(out.transpose(1, 2).unwrap().is_contiguous());
                    let expected = plain(&q, &k, &v, &options);
                    assert!(worst_difference(&out, &expected) < 1e-6, "{:?} {causality:?}", mask.map(Tensor::dtype));
                }
            }
        }
    }

    #[test]
    fn masked_padding_does_not_change_a_bit() {
        let (b, h, d) = (3, 2, 32);
        for t in [1, 5, 16, 40, 97] {
            let (q, k, v) = (heads(b, h, t, d, 1), heads(b, h, t, d, 2), heads(b, h, t, d, 3));
            let options = Attention { scale: 0.2, mask: None, causality: Causality::Full };
            let alone = attention(&q, &k, &v, &options).unwrap().to_vec::<f32>();
            for padding in [1, 31, 100] {
                let pad = |x: &Tensor, seed| crate::concat(&[x.clone(), heads(b, h, padding, d, seed)], 2).unwrap();
                let (q, k, v) = (pad(&q, 4), pad(&k, 5), pad(&v, 6));
                let seen: Vec<bool> = (0..b * (t + padding)).map(|i| i % (t + padding) < t).collect();
                let bools = Tensor::from_bools(&seen, &[b, 1, 1, t + padding]).unwrap();
                for low in [None, Some(f32::MIN), Some(f32::NEG_INFINITY), Some(-10_000.0)] {
                    let mask = match low {
                        None => bools.clone(),
                        Some(low) => crate::map(&bools, DType::F32, |m: u8| if m == 0 { low } else { 0.0 }).unwrap(),
                    };
                    let full = mask.expand(&[b, 1, t + padding, t + padding]).unwrap().contiguous();
                    for mask in [&mask, &full] {
                        let options = Attention { scale: 0.2, mask: Some(mask), causality: Causality::Full };
                        let out = attention(&q, &k, &v, &options).unwrap().narrow(2, 0, t).unwrap();
                        assert_eq!(out.to_vec::<f32>(), alone, "{t} + {padding}, {low:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_batch_row_has_the_same_bits_alone_and_with_any_threads() {
        let (q, k, v) = (heads(4, 3, 60, 32, 1), heads(4, 3, 60, 32, 2), heads(4, 3, 60, 32, 3));
        let options = Attention { scale: 0.2, mask: None, causality: Causality::Full };
        let all = attention(&q, &k, &v, &options).unwrap();
        let two = parallel::with_threads(2, || attention(&q, &k, &v, &options).unwrap());
        assert_eq!(two.to_vec::<f32>(), all.to_vec::<f32>());
        let one = |x: &Tensor| x.narrow(0, 2, 1).unwrap();
        let alone = attention(&one(&q), &one(&k), &one(&v), &options).unwrap();
        assert_eq!(alone.to_vec::<f32>(), one(&all).to_vec::<f32>());
    }

    #[test]
    fn a_query_that_sees_nothing_gives_zeros_and_empty_operands_work() {
        let (q, k, v) = (heads(1, 1, 4, 8, 1), heads(1, 1, 6, 8, 2), heads(1, 1, 6, 8, 3));
        let mask = Tensor::full(DType::Bool, &[4, 6], Scalar::Bool(false)).unwrap();
        let options = Attention { scale: 1.0, mask: Some(&mask), causality: Causality::Full };
        assert_eq!(attention(&q, &k, &v, &options).unwrap().to_vec::<f32>(), Some(vec![0.0; 32]));
        let options = Attention { scale: 1.0, mask: None, causality: Causality::Full };
        let none = k.narrow(2, 0, 0).unwrap();
        assert_eq!(attention(&q, &none, &none, &options).unwrap().to_vec::<f32>(), Some(vec![0.0; 32]));
        assert_eq!(attention(&q.narrow(2, 0, 0).unwrap(), &k, &v, &options).unwrap().shape(), [1, 1, 0, 8]);
    }
}
