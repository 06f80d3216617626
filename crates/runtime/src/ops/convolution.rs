//! Convolutions over one or two spatial dimensions.
//!
//! A convolution is a product of the weight, one row a filter, with the patches of the image, one column a position;
//! a depthwise one (a filter a channel) is computed directly. Each output is one chain of multiply-adds over channels and
//! filter positions in order, so its bits do not depend on the batch.

use highroad_tensor::{DType, Shape, Tensor, matmul, parallel};

use super::{first, meta, one};
use crate::op::{Call, Declaration, FLOATS, Infer, Ints, Meta, Metas, OpError, Outputs, Tolerance};
use crate::rows;

pub(super) const OPS: &[Declaration] = &[
    convolution("aten::conv2d(Tensor input, Tensor weight, Tensor? bias=None, SymInt[2] stride=1, SymInt[2] padding=0, SymInt[2] dilation=1, SymInt groups=1) -> Tensor", |c| infer(c, 2)),
    convolution("aten::conv2d.padding(Tensor input, Tensor weight, Tensor? bias=None, SymInt[2] stride=1, str padding=\"valid\", SymInt[2] dilation=1, SymInt groups=1) -> Tensor", |c| infer(c, 2)),
    convolution("aten::conv1d(Tensor input, Tensor weight, Tensor? bias=None, SymInt[1] stride=1, SymInt[1] padding=0, SymInt[1] dilation=1, SymInt groups=1) -> Tensor", |c| infer(c, 1)),
    convolution("aten::convolution(Tensor input, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool transposed, SymInt[] output_padding, SymInt groups) -> Tensor", |c| {
        if c.bool("transposed")? {
            return Err(OpError::Unsupported("transposed convolution"));
        }
        infer(c, c.ints("stride")?.len())
    })
    .handwritten(),
];

const fn convolution(schema: &'static str, infer: Infer) -> Declaration {
    Declaration::new(schema, infer, eval).rows(rows::first_only).within(Tolerance::SUM).dtypes(FLOATS)
}

/// A convolution over height and width; one over a single dimension has height 1.
///
/// Input `[n_images, groups * in_channels, height, width]`, weight `[groups * out_channels, in_channels, kernel...]`.
#[derive(Clone, Debug)]
struct Geometry {
    n_images: usize,
    groups: usize,
    in_channels: usize,
    out_channels: usize,
    size: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
    /// Before the image; what is missing after it counts as padding too.
    padding: [usize; 2],
    out: [usize; 2],
    is_batched: bool,
    n_spatial: usize,
}

impl Geometry {
    fn of(call: &Call<'_>, n_spatial: usize) -> Result<Self, OpError> {
        if !(1..=2).contains(&n_spatial) {
            return Err(OpError::Unsupported("convolutions over other than one or two dimensions"));
        }
        let (x, weight) = (call.tensor("input")?, call.tensor("weight")?);
        let wrong = |argument, tensor: &Tensor, expected: String| OpError::Shape {
            argument,
            found: tensor.shape().into(),
            expected,
        };
        let is_batched = x.ndim() == n_spatial + 2;
        if !is_batched && x.ndim() != n_spatial + 1 {
            return Err(wrong("input", x, format!("{} or {} dimensions", n_spatial + 1, n_spatial + 2)));
        }
        if weight.ndim() != n_spatial + 2 {
            return Err(wrong("weight", weight, format!("{} dimensions", n_spatial + 2)));
        }
        let lead = usize::from(is_batched);
        let groups =
            usize::try_from(call.int("groups")?).ok().filter(|&n| n > 0).ok_or(OpError::Size(call.int("groups")?))?;
        let (filters, in_channels) = (weight.shape()[0], weight.shape()[1]);
        if in_channels.checked_mul(groups) != Some(x.shape()[lead]) || !filters.is_multiple_of(groups) {
            return Err(wrong(
                "input",
                x,
                format!("{in_channels} x {groups} channels for weight {:?}", weight.shape()),
            ));
        }
        let size = planar(&x.shape()[lead + 1..], 1);
        let kernel = planar(&weight.shape()[2..], 1);
        let stride = planar(&positive(&call.ints("stride")?, n_spatial)?, 1);
        let dilation = planar(&positive(&call.ints("dilation")?, n_spatial)?, 1);
        let reach = [0, 1].map(|d| kernel[d].saturating_sub(1).saturating_mul(dilation[d]));
        let (padding, total) = padding(call, n_spatial, reach, stride)?;
        let mut out = [0; 2];
        for d in 0..2 {
            let padded = size[d].checked_add(total[d]).ok_or(OpError::Overflow)?;
            let free = padded.checked_sub(reach[d].saturating_add(1)).filter(|_| kernel[d] > 0);
            let free = free.ok_or_else(|| wrong("input", x, format!("an image that holds the kernel {kernel:?}")))?;
            out[d] = free / stride[d] + 1;
        }
        let n_images = if is_batched { x.shape()[0] } else { 1 };
        let out_channels = filters / groups;
        Ok(Self {
            n_images,
            groups,
            in_channels,
            out_channels,
            size,
            kernel,
            stride,
            dilation,
            padding,
            out,
            is_batched,
            n_spatial,
        })
    }

    fn out_shape(&self) -> Shape {
        let batch = self.is_batched.then_some(self.n_images);
        let spatial = &self.out[2 - self.n_spatial..];
        batch.into_iter().chain([self.groups * self.out_channels]).chain(spatial.iter().copied()).collect()
    }

    /// The input position that kernel position `k` sees from output position `o`; `None` in the padding.
    fn source(&self, d: usize, o: usize, k: usize) -> Option<usize> {
        (o * self.stride[d] + k * self.dilation[d]).checked_sub(self.padding[d]).filter(|&at| at < self.size[d])
    }

    /// Whether patches are the image itself.
    fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.stride == [1, 1] && self.padding == [0, 0]
    }
}

/// One spatial dimension becomes a height of `filler` and a width.
fn planar(values: &[usize], filler: usize) -> [usize; 2] {
    match *values {
        [width] => [filler, width],
        [height, width] => [height, width],
        _ => [filler, filler],
    }
}

/// As many numbers as spatial dimensions, each at least 1; one number stands for all.
fn positive(values: &[i64], n: usize) -> Result<Shape, OpError> {
    let values = spread(values, n)?;
    values.iter().map(|&v| usize::try_from(v).ok().filter(|&v| v > 0).ok_or(OpError::Size(v))).collect()
}

fn spread(values: &[i64], n: usize) -> Result<Ints, OpError> {
    match values {
        [one] => Ok(Ints::from_elem(*one, n)),
        values if values.len() == n => Ok(values.into()),
        _ => Err(OpError::Unsupported("as many numbers as spatial dimensions")),
    }
}

/// Padding before the image, and before and after it together.
fn padding(
    call: &Call<'_>,
    n_spatial: usize,
    reach: [usize; 2],
    stride: [usize; 2],
) -> Result<([usize; 2], [usize; 2]), OpError> {
    if let Ok(mode) = call.str("padding") {
        return match mode {
            "valid" => Ok(([0; 2], [0; 2])),
            // An odd total puts the larger half after the image, as in PyTorch.
            "same" if stride == [1, 1] => Ok((reach.map(|n| n / 2), reach)),
            _ => Err(OpError::Unsupported("padding `same` needs stride 1, others must be `valid`")),
        };
    }
    let before = super::sizes(&spread(&call.ints("padding")?, n_spatial)?)?;
    let before = planar(&before, 0);
    let twice = |n: usize| n.checked_mul(2).ok_or(OpError::Overflow);
    Ok((before, [twice(before[0])?, twice(before[1])?]))
}

fn infer(call: &Call<'_>, n_spatial: usize) -> Result<Metas, OpError> {
    let (x, weight) = (call.tensor("input")?, call.tensor("weight")?);
    let geometry = Geometry::of(call, n_spatial)?;
    if !x.dtype().is_float() || weight.dtype() != x.dtype() {
        return Err(OpError::DType { argument: "weight", dtype: weight.dtype() });
    }
    if let Some(bias) = call.optional_tensor("bias")?
        && bias.shape() != [weight.shape()[0]]
    {
        let expected = format!("[{}]", weight.shape()[0]);
        return Err(OpError::Shape { argument: "bias", found: bias.shape().into(), expected });
    }
    // Patches of one image are the largest intermediate; refuse it where a result of that size is refused.
    let patches = [geometry.in_channels, geometry.kernel[0], geometry.kernel[1], geometry.out[0], geometry.out[1]];
    crate::op::check_size(&Meta::new(DType::F32, &patches), call.limits())?;
    meta(x.dtype(), &geometry.out_shape())
}

fn eval(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let meta = first(metas);
    let geometry = Geometry::of(call, call.tensor("weight")?.ndim() - 2)?;
    let x = call.tensor("input")?.cast(DType::F32)?.contiguous();
    let weight = call.tensor("weight")?.cast(DType::F32)?.contiguous();
    let bias = call.optional_tensor("bias")?.map(|bias| bias.cast(DType::F32)).transpose()?;
    let bias: Option<Vec<f32>> = bias.map(|bias| bias.to_vec().expect("just converted"));
    let mut out = Tensor::scratch(DType::F32, &meta.shape)?;
    if meta.shape.contains(&0) {
        return one(out.cast(meta.dtype)?);
    }
    let to = out.as_mut_slice::<f32>().expect("just made");
    if geometry.in_channels == 1 && geometry.out_channels == 1 {
        depthwise(&geometry, slice(&x), slice(&weight), to);
    } else {
        by_products(&geometry, &x, &weight, to)?;
    }
    if let Some(bias) = bias {
        let inner = geometry.out[0] * geometry.out[1];
        for (channel, values) in to.chunks_exact_mut(inner).enumerate() {
            let bias = bias[channel % bias.len()];
            values.iter_mut().for_each(|x| *x += bias);
        }
    }
    one(out.cast(meta.dtype)?)
}

fn slice(x: &Tensor) -> &[f32] {
    x.as_slice().expect("made contiguous and converted by the caller")
}

/// Each image and group: weight `[out_channels, in_channels * kernel]` times patches `[in_channels * kernel, positions]`.
fn by_products(geometry: &Geometry, x: &Tensor, weight: &Tensor, to: &mut [f32]) -> Result<(), OpError> {
    let Geometry { n_images, groups, in_channels, out_channels, size, kernel, out, .. } = *geometry;
    let depth = in_channels * kernel[0] * kernel[1];
    let positions = out[0] * out[1];
    let image = in_channels * size[0] * size[1];
    let x = x.reshape(&[n_images * groups, image])?;
    let weight = weight.reshape(&[groups, out_channels, depth])?;
    for (at, to) in (0..n_images * groups).zip(to.chunks_exact_mut(out_channels * positions)) {
        let image = x.select(0, at)?;
        let columns = if geometry.is_pointwise() {
            image.reshape(&[depth, positions])?
        } else {
            patches(geometry, slice(&image))?
        };
        matmul(&weight.select(0, at % groups)?, &columns)?.copy_into(to)?;
    }
    Ok(())
}

/// What each output position sees: `[in_channels * kernel, positions]`, zeros where it sees padding.
fn patches(geometry: &Geometry, image: &[f32]) -> Result<Tensor, OpError> {
    let Geometry { in_channels, size, kernel, out, stride, .. } = *geometry;
    let positions = out[0] * out[1];
    let mut columns = Tensor::zeros(DType::F32, &[in_channels * kernel[0] * kernel[1], positions])?;
    let to = columns.as_mut_slice::<f32>().expect("just made");
    parallel::for_each_chunk(to, kernel[0] * kernel[1] * positions, |channel, to| {
        let plane = &image[channel * size[0] * size[1]..][..size[0] * size[1]];
        for (k, row) in to.chunks_exact_mut(positions).enumerate() {
            let (ky, kx) = (k / kernel[1], k % kernel[1]);
            for (oy, to) in row.chunks_exact_mut(out[1]).enumerate() {
                let Some(y) = geometry.source(0, oy, ky) else { continue };
                let line = &plane[y * size[1]..][..size[1]];
                let (first, last) = seen(geometry, kx);
                let Some(start) = (first < last).then(|| geometry.source(1, first, kx)).flatten() else { continue };
                let from = line[start..].iter().step_by(stride[1]);
                to[first..last].iter_mut().zip(from).for_each(|(to, &from)| *to = from);
            }
        }
    });
    Ok(columns)
}

/// The output columns from which kernel column `kx` sees the image rather than padding.
fn seen(geometry: &Geometry, kx: usize) -> (usize, usize) {
    let is_seen = |ox: &usize| geometry.source(1, *ox, kx).is_some();
    let first = (0..geometry.out[1]).find(is_seen).unwrap_or(geometry.out[1]);
    let last = (first..geometry.out[1]).rev().find(is_seen).map_or(first, |ox| ox + 1);
    (first, last)
}

/// One filter a channel: sums its positions in order, a line of output at a time.
fn depthwise(geometry: &Geometry, x: &[f32], weight: &[f32], to: &mut [f32]) {
    let Geometry { groups, size, kernel, out, stride, .. } = *geometry;
    let (plane, taps) = (size[0] * size[1], kernel[0] * kernel[1]);
    let seen: Vec<(usize, usize)> = (0..kernel[1]).map(|kx| seen(geometry, kx)).collect();
    parallel::for_each_chunk(to, out[0] * out[1], |at, to| {
        to.fill(0.0);
        let (image, filter) = (&x[at * plane..][..plane], &weight[at % groups * taps..][..taps]);
        for (oy, to) in to.chunks_exact_mut(out[1]).enumerate() {
            for ky in 0..kernel[0] {
                let Some(y) = geometry.source(0, oy, ky) else { continue };
                let line = &image[y * size[1]..][..size[1]];
                for (kx, &(first, last)) in seen.iter().enumerate() {
                    let Some(start) = (first < last).then(|| geometry.source(1, first, kx)).flatten() else { continue };
                    let tap = filter[ky * kernel[1] + kx];
                    let to = &mut to[first..last];
                    if stride[1] == 1 {
                        to.iter_mut().zip(&line[start..]).for_each(|(to, &x)| *to += x * tap);
                    } else {
                        to.iter_mut().zip(line[start..].iter().step_by(stride[1])).for_each(|(to, &x)| *to += x * tap);
                    }
                }
            }
        }
    });
}
