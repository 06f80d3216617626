//! Convolutions over one or two spatial dimensions; one over a single dimension has height 1.

use highroad_tensor::{Convolution, DType, Shape, Tensor, Unary, Window, conv2d};

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

pub(super) fn infer(call: &Call<'_>, n_spatial: usize) -> Result<Metas, OpError> {
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
    meta(x.dtype(), &geometry.out_shape())
}

fn eval(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let f32 = |tensor: &Tensor| tensor.cast(DType::F32);
    let weight = f32(call.tensor("weight")?)?;
    let bias = call.optional_tensor("bias")?.map(f32).transpose()?;
    convolve(call, first(metas), &weight, bias.as_ref(), Unary::Identity)
}

/// The convolution that `call` describes, with these weights in `f32`.
pub(super) fn convolve(
    call: &Call<'_>,
    meta: &Meta,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Unary,
) -> Result<Outputs, OpError> {
    let geometry = Geometry::of(call, weight.ndim() - 2)?;
    let Geometry { n_images, groups, in_channels, out_channels, size, kernel, stride, dilation, padding, out, .. } =
        geometry;
    if meta.shape.contains(&0) {
        return one(Tensor::zeros(meta.dtype, &meta.shape)?);
    }
    let x = call.tensor("input")?.cast(DType::F32)?.reshape(&[n_images, groups * in_channels, size[0], size[1]])?;
    let weight = weight.reshape(&[groups * out_channels, in_channels, kernel[0], kernel[1]])?;
    let convolution = Convolution { window: Window { size: kernel, stride, padding, dilation }, groups, out };
    let y = conv2d(&x, &weight, bias, &convolution, activation)?;
    one(y.reshape(&meta.shape)?.cast(meta.dtype)?)
}
