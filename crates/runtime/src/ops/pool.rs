//! Pooling and padding of images.

use std::ops::Range;

use highroad_tensor::{DType, Scalar, Shape, Tensor, concat, parallel};

use super::{first, meta, one, sizes};
use crate::op::{Call, Declaration, FLOATS, Ints, Meta, Metas, OpError, Outputs, Tolerance};
use crate::rows;

pub(super) const OPS: &[Declaration] = &[
    Declaration::new(
        "aten::max_pool2d(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0, int[2] dilation=1, bool ceil_mode=False) -> Tensor",
        infer_pool,
        |call, metas| {
            let windows = Windows::of(call)?;
            pool(call, metas, &windows.window_ranges(), |window| {
                window.fold(f32::NEG_INFINITY, |max, x| if x > max || x.is_nan() { x } else { max })
            })
        },
    )
    .rows(rows::first_only)
    .dtypes(FLOATS),
    Declaration::new(
        "aten::avg_pool2d(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0, bool ceil_mode=False, bool count_include_pad=True, int? divisor_override=None) -> Tensor",
        infer_pool,
        avg_pool,
    )
    .rows(rows::first_only)
    .within(Tolerance::SUM)
    .dtypes(FLOATS),
    Declaration::new(
        "aten::adaptive_avg_pool2d(Tensor self, SymInt[2] output_size) -> Tensor",
        infer_adaptive,
        |call, metas| {
            let ranges = adaptive_ranges(call)?;
            let n = |y: usize, x: usize| (ranges[0][y].len() * ranges[1][x].len()) as f64;
            let ranges = [0, 1].map(|d| ranges[d].iter().map(|range| stepped(range.clone(), 1)).collect());
            averages(call, metas, &ranges, n)
        },
    )
    .rows(rows::first_only)
    .within(Tolerance::SUM)
    .dtypes(FLOATS),
    Declaration::new(
        "aten::constant_pad_nd(Tensor self, SymInt[] pad, Scalar value=0) -> Tensor",
        infer_pad,
        |call, metas| pad(call, metas, call.scalar("value")?),
    )
    .rows(rows::padded),
    Declaration::new(
        "aten::pad(Tensor self, SymInt[] pad, str mode=\"constant\", float? value=None) -> Tensor",
        |call| match call.str("mode")? {
            "constant" => infer_pad(call),
            _ => Err(OpError::Unsupported("padding other than with a constant")),
        },
        |call, metas| pad(call, metas, call.optional_scalar("value")?.unwrap_or(Scalar::Int(0))),
    )
    .rows(rows::padded)
    .handwritten(),
];

/// Input positions that one output position reads along one dimension.
#[derive(Clone, Debug)]
struct Reads {
    positions: Range<usize>,
    step: usize,
}

fn stepped(positions: Range<usize>, step: usize) -> Reads {
    Reads { positions, step }
}

impl Reads {
    fn iter(&self) -> impl Iterator<Item = usize> + Clone {
        self.positions.clone().step_by(self.step)
    }
}

/// Windows over height and width.
#[derive(Clone, Copy, Debug)]
struct Windows {
    size: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    dilation: [usize; 2],
    out: [usize; 2],
}

impl Windows {
    fn of(call: &Call<'_>) -> Result<Self, OpError> {
        let x = image(call)?;
        let kernel = pair(&call.ints("kernel_size")?, 1)?;
        let stride = call.ints("stride")?;
        let stride = if stride.is_empty() { kernel } else { pair(&stride, 1)? };
        let padding = pair(&call.ints("padding")?, 0)?;
        let has_dilation = call.op().schema().position("dilation").is_some();
        let dilation = if has_dilation { pair(&call.ints("dilation")?, 1)? } else { [1, 1] };
        let size = [x.shape()[x.ndim() - 2], x.shape()[x.ndim() - 1]];
        if (0..2).any(|d| padding[d] > kernel[d] / 2) {
            return Err(OpError::Unsupported("padding of more than half the window"));
        }
        let is_ceil = call.bool("ceil_mode")?;
        let mut out = [0; 2];
        for d in 0..2 {
            let reach = (kernel[d] - 1).checked_mul(dilation[d]).ok_or(OpError::Overflow)?;
            let free = (size[d] + 2 * padding[d]).checked_sub(reach + 1).ok_or_else(|| too_small(x))?;
            let n = if is_ceil { free.div_ceil(stride[d]) } else { free / stride[d] };
            // The last window must start inside the image or its leading padding.
            let starts_outside = is_ceil && n * stride[d] >= size[d] + padding[d];
            out[d] = n + usize::from(!starts_outside);
        }
        Ok(Self { size, kernel, stride, padding, dilation, out })
    }

    fn window_ranges(&self) -> [Vec<Reads>; 2] {
        [0, 1].map(|d| (0..self.out[d]).map(|o| self.reads(d, o)).collect())
    }

    fn reads(&self, d: usize, o: usize) -> Reads {
        let (start, step) = (o * self.stride[d], self.dilation[d]);
        // The first tap that is not in the padding before the image.
        let skipped = self.padding[d].saturating_sub(start).div_ceil(step);
        let first = (start + skipped * step).saturating_sub(self.padding[d]);
        let end = (start + (self.kernel[d] - 1) * step + 1).saturating_sub(self.padding[d]).min(self.size[d]);
        stepped(first..end.max(first), step)
    }

    /// Positions of the window, padding included, as `count_include_pad` counts them.
    fn padded_len(&self, d: usize, o: usize) -> usize {
        let start = o * self.stride[d];
        (start + self.kernel[d]).min(self.size[d] + 2 * self.padding[d]).saturating_sub(start)
    }
}

fn too_small(x: &Tensor) -> OpError {
    OpError::Shape { argument: "self", found: x.shape().into(), expected: "an image that holds the window".to_owned() }
}

/// `[batch?, channels, height, width]`.
fn image<'a>(call: &Call<'a>) -> Result<&'a Tensor, OpError> {
    let x = call.tensor("self")?;
    if !x.dtype().is_float() {
        return Err(OpError::DType { argument: "self", dtype: x.dtype() });
    }
    if !(3..=4).contains(&x.ndim()) || x.shape()[x.ndim() - 2..].contains(&0) {
        let expected = "3 or 4 dimensions with a height and a width".to_owned();
        return Err(OpError::Shape { argument: "self", found: x.shape().into(), expected });
    }
    Ok(x)
}

/// Height and width of at least `min` and at most 2^31.
fn pair(values: &[i64], min: usize) -> Result<[usize; 2], OpError> {
    let one =
        |&value: &i64| usize::try_from(value).ok().filter(|n| (min..1 << 31).contains(n)).ok_or(OpError::Size(value));
    match values {
        [both] => Ok([one(both)?; 2]),
        [height, width] => Ok([one(height)?, one(width)?]),
        _ => Err(OpError::Unsupported("one number, or a height and a width")),
    }
}

fn with_size(x: &Tensor, out: [usize; 2]) -> Result<Metas, OpError> {
    let mut shape = Shape::from_slice(x.shape());
    let ndim = shape.len();
    shape[ndim - 2..].copy_from_slice(&out);
    meta(x.dtype(), &shape)
}

fn infer_pool(call: &Call<'_>) -> Result<Metas, OpError> {
    with_size(image(call)?, Windows::of(call)?.out)
}

/// Reduces the elements of each window in row-major order.
fn pool(
    call: &Call<'_>,
    metas: &[Meta],
    ranges: &[Vec<Reads>; 2],
    reduce: impl Fn(&mut dyn Iterator<Item = f32>) -> f32 + Sync,
) -> Result<Outputs, OpError> {
    each_window(call, metas, ranges, |window, _, _| reduce(window))
}

fn each_window(
    call: &Call<'_>,
    metas: &[Meta],
    ranges: &[Vec<Reads>; 2],
    reduce: impl Fn(&mut dyn Iterator<Item = f32>, usize, usize) -> f32 + Sync,
) -> Result<Outputs, OpError> {
    let (x, result) = (image(call)?, first(metas));
    let (height, width) = (x.shape()[x.ndim() - 2], x.shape()[x.ndim() - 1]);
    let source = x.cast(DType::F32)?.contiguous();
    let from = source.as_slice::<f32>().expect("just converted");
    let mut out = Tensor::scratch(DType::F32, &result.shape)?;
    let to = out.as_mut_slice::<f32>().expect("just made");
    let n_columns = ranges[1].len();
    parallel::for_each_chunk(to, ranges[0].len() * n_columns, |plane, to| {
        let from = &from[plane * height * width..][..height * width];
        for (at, to) in to.iter_mut().enumerate() {
            let (oy, ox) = (at / n_columns, at % n_columns);
            let (rows, columns) = (&ranges[0][oy], &ranges[1][ox]);
            let mut window = rows.iter().flat_map(|y| columns.iter().map(move |x| from[y * width + x]));
            *to = reduce(&mut window, oy, ox);
        }
    });
    one(out.cast(result.dtype)?)
}

fn averages(
    call: &Call<'_>,
    metas: &[Meta],
    ranges: &[Vec<Reads>; 2],
    divisor: impl Fn(usize, usize) -> f64 + Sync,
) -> Result<Outputs, OpError> {
    each_window(call, metas, ranges, |window, oy, ox| {
        let sum: f64 = window.map(f64::from).sum();
        (sum / divisor(oy, ox)) as f32
    })
}

fn avg_pool(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let windows = Windows::of(call)?;
    let ranges = windows.window_ranges();
    let includes_padding = call.bool("count_include_pad")?;
    let given = call.optional_int("divisor_override")?;
    if given == Some(0) {
        return Err(OpError::DivisionByZero);
    }
    let inner = |d: usize, o: usize| ranges[d][o].positions.len();
    averages(call, metas, &ranges, |oy, ox| match given {
        Some(n) => n as f64,
        None if includes_padding => (windows.padded_len(0, oy) * windows.padded_len(1, ox)) as f64,
        None => (inner(0, oy) * inner(1, ox)) as f64,
    })
}

fn output_size(call: &Call<'_>) -> Result<[usize; 2], OpError> {
    pair(&call.ints("output_size")?, 0)
}

fn infer_adaptive(call: &Call<'_>) -> Result<Metas, OpError> {
    with_size(image(call)?, output_size(call)?)
}

/// Output `o` of `n` reads from `⌊o · size / n⌋` up to `⌈(o + 1) · size / n⌉`.
fn adaptive_ranges(call: &Call<'_>) -> Result<[Vec<Range<usize>>; 2], OpError> {
    let (x, out) = (image(call)?, output_size(call)?);
    let size = [x.shape()[x.ndim() - 2], x.shape()[x.ndim() - 1]];
    Ok([0, 1].map(|d| (0..out[d]).map(|o| o * size[d] / out[d]..((o + 1) * size[d]).div_ceil(out[d])).collect()))
}

/// Padding of each dimension, first to last; `pad` lists pairs from the last dimension on. Negative padding crops.
fn paddings(call: &Call<'_>) -> Result<Vec<(i64, i64)>, OpError> {
    let (x, pad): (_, Ints) = (call.tensor("self")?, call.ints("pad")?);
    if !pad.len().is_multiple_of(2) || pad.len() / 2 > x.ndim() {
        return Err(OpError::Unsupported("a pair of numbers for each padded dimension"));
    }
    let mut paddings: Vec<(i64, i64)> = pad.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
    paddings.resize(x.ndim(), (0, 0));
    paddings.reverse();
    Ok(paddings)
}

fn infer_pad(call: &Call<'_>) -> Result<Metas, OpError> {
    let x = call.tensor("self")?;
    let size = |(&size, (before, after)): (&usize, (i64, i64))| {
        let size = i64::try_from(size).map_err(|_| OpError::Overflow)?;
        size.checked_add(before).and_then(|n| n.checked_add(after)).ok_or(OpError::Overflow)
    };
    let shape: Ints = x.shape().iter().zip(paddings(call)?).map(size).collect::<Result<_, OpError>>()?;
    meta(x.dtype(), &sizes(&shape)?)
}

fn pad(call: &Call<'_>, metas: &[Meta], value: Scalar) -> Result<Outputs, OpError> {
    let mut x = call.tensor("self")?.clone();
    let fill = Tensor::full(first(metas).dtype, &[], value)?;
    for (at, (before, after)) in paddings(call)?.into_iter().enumerate() {
        x = crop(&x, at, before, after)?;
        let mut parts = vec![x.clone()];
        for (place, n) in [(0, before), (usize::MAX, after)] {
            if n > 0 {
                let mut shape = Shape::from_slice(x.shape());
                shape[at] = n as usize;
                let part = fill.expand(&shape)?;
                parts.insert(place.min(parts.len()), part);
            }
        }
        if parts.len() > 1 {
            x = concat(&parts, at)?;
        }
    }
    one(x)
}

fn crop(x: &Tensor, at: usize, before: i64, after: i64) -> Result<Tensor, OpError> {
    let cut = |n: i64| usize::try_from(n.saturating_neg().max(0)).unwrap_or(usize::MAX);
    let (first, last) = (cut(before), cut(after));
    let size = x.size(at)?;
    // Inference allows to crop and pad to a size that cropping alone would make negative.
    let kept = size.saturating_sub(first).saturating_sub(last);
    if first > size || (kept == 0 && size < first.saturating_add(last)) {
        return Err(OpError::Unsupported("cropping more than there is"));
    }
    Ok(x.narrow(at, first, kept)?)
}
