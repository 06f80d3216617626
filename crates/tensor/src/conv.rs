//! Convolution and pooling of images, `[N, C, H, W]`.
//!
//! A convolution is a product of the weight with a matrix whose columns are the patches under each output pixel; a 1x1
//! convolution needs no such matrix, and a depthwise one is computed directly. Each output element is one chain over its
//! patch, whatever the batch and the number of threads.

#![allow(unsafe_code)]

use rten_simd::SimdOp;

use crate::elementwise::{Wide, elements, out_slice};
use crate::gemm::{Part, Product, pack_panels, panel_width, with_thread_scratch};
use crate::math::{Unary, apply};
use crate::parallel;
use crate::{DType, Tensor, TensorError};

/// Elements of the patches that a task lays out: they stay in the second-level cache.
const PATCH_ELEMENTS: usize = 1 << 17;

/// How a window moves over an image; `[vertical, horizontal]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Size of the window.
    pub size: [usize; 2],
    /// Pixels from one position to the next; at least 1.
    pub stride: [usize; 2],
    /// Rows and columns added on each side.
    pub padding: [usize; 2],
    /// Pixels between neighbours in the window; at least 1.
    pub dilation: [usize; 2],
}

impl Window {
    /// Positions of the window along dimension `dim` (0 or 1) of an image of `size`; `None` if it does not fit.
    pub fn positions(&self, dim: usize, size: usize) -> Option<usize> {
        let reach = self.dilation[dim].checked_mul(self.size[dim].checked_sub(1)?)?.checked_add(1)?;
        let padded = size.checked_add(self.padding[dim].checked_mul(2)?)?;
        Some(padded.checked_sub(reach)?.checked_div(self.stride[dim])? + 1)
    }
}

/// How a convolution goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Convolution {
    /// Where the filter is laid; `padding` is that before the image.
    pub window: Window,
    /// Channels fall into so many groups, which filters see one of.
    pub groups: usize,
    /// Positions of the window, `[vertical, horizontal]`; what they see after the image counts as padding.
    pub out: [usize; 2],
}

impl Convolution {
    /// A convolution of images of `size` with as much padding after the image as before; `None` if the window does not
    /// fit.
    pub fn of(window: Window, groups: usize, size: [usize; 2]) -> Option<Self> {
        Some(Self { window, groups, out: [window.positions(0, size[0])?, window.positions(1, size[1])?] })
    }
}

/// `activation(convolution of x with weight + bias)`: `x` `[N, C, H, W]`, `weight` `[O, C / groups, h, w]`, `bias` `[O]`, in
/// `f32`; the result is `[N, O, out[0], out[1]]`.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    convolution: &Convolution,
    activation: Unary,
) -> Result<Tensor, TensorError> {
    let Convolution { window, groups, out: [out_h, out_w] } = *convolution;
    let mismatch = || {
        let (left, right) = (x.shape().into(), weight.shape().into());
        TensorError::Mismatch { what: "convolution", left, right }
    };
    let &[n, c, h, w] = x.shape() else { return Err(mismatch()) };
    let &[o, c_group, kh, kw] = weight.shape() else { return Err(mismatch()) };
    let fits =
        groups > 0 && c_group.checked_mul(groups) == Some(c) && o.is_multiple_of(groups) && window.size == [kh, kw];
    if !fits {
        return Err(mismatch());
    }
    let (x, weight) = (x.contiguous(), weight.contiguous());
    let bias: Option<Vec<f32>> = match bias {
        None => None,
        Some(bias) => {
            elements::<f32>(bias)?;
            Some(bias.expand(&[o])?.iter::<f32>().expect("checked to be f32").collect())
        }
    };
    let mut out = Tensor::scratch(DType::F32, &[n, o, out_h, out_w])?;
    let job = Job {
        x: whole(&x)?,
        weight: whole(&weight)?,
        bias: bias.as_deref(),
        window: &window,
        activation,
        groups,
        channels: [c, o],
        image: [h, w],
        out: [out_h, out_w],
    };
    if out.numel() == 0 {
        return Ok(out);
    }
    let to = out_slice::<f32>(&mut out)?;
    if c_group == 1 && groups == o {
        job.depthwise(to)
    } else {
        job.product(to, n)
    }
    Ok(out)
}

fn whole(x: &Tensor) -> Result<&[f32], TensorError> {
    x.as_slice::<f32>().ok_or(TensorError::DType { expected: "f32", got: x.dtype() })
}

struct Job<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    window: &'a Window,
    activation: Unary,
    groups: usize,
    channels: [usize; 2],
    image: [usize; 2],
    out: [usize; 2],
}

impl Job<'_> {
    fn depthwise(&self, out: &mut [f32]) {
        let area = self.out[0] * self.out[1];
        parallel::for_each_chunk(out, area, |plane, out| {
            let channel = plane % self.channels[1];
            let image = &self.x[plane * self.image[0] * self.image[1]..][..self.image[0] * self.image[1]];
            let n_taps = self.window.size[0] * self.window.size[1];
            let taps = &self.weight[channel * n_taps..][..n_taps];
            out.fill(0.0);
            Wide(
                #[inline(always)]
                || {
                    for (row, out) in out.chunks_exact_mut(self.out[1]).enumerate() {
                        self.depthwise_row(image, taps, row, out);
                    }
                },
            )
            .dispatch();
            self.finish(out, channel);
        });
    }

    #[inline(always)]
    fn depthwise_row(&self, image: &[f32], taps: &[f32], row: usize, out: &mut [f32]) {
        let Window { size: [kh, kw], stride, padding, dilation } = *self.window;
        for i in 0..kh {
            let Some(y) = (row * stride[0] + i * dilation[0]).checked_sub(padding[0]).filter(|&y| y < self.image[0])
            else {
                continue;
            };
            let line = &image[y * self.image[1]..(y + 1) * self.image[1]];
            for j in 0..kw {
                let tap = taps[i * kw + j];
                let (first, last) = self.columns(j);
                if first >= last {
                    continue;
                }
                let from = &line[first * stride[1] + j * dilation[1] - padding[1]..];
                let to = &mut out[first..last];
                match stride[1] {
                    1 => to.iter_mut().zip(from).for_each(|(to, &x)| *to += tap * x),
                    2 => to.iter_mut().zip(from.iter().step_by(2)).for_each(|(to, &x)| *to += tap * x),
                    step => to.iter_mut().zip(from.iter().step_by(step)).for_each(|(to, &x)| *to += tap * x),
                }
            }
        }
    }

    /// Output columns whose tap `j` of a window row lies inside the image.
    #[inline(always)]
    fn columns(&self, j: usize) -> (usize, usize) {
        let (stride, shift) = (self.window.stride[1], j * self.window.dilation[1]);
        let first = self.window.padding[1].saturating_sub(shift).div_ceil(stride);
        let end = (self.image[1] + self.window.padding[1]).saturating_sub(shift).div_ceil(stride);
        (first, end.min(self.out[1]))
    }

    /// Adds the bias of one channel and applies the activation.
    fn finish(&self, out: &mut [f32], channel: usize) {
        if let Some(bias) = self.bias {
            let bias = bias[channel];
            out.iter_mut().for_each(|y| *y += bias);
        }
        apply(self.activation, out);
    }

    fn product(&self, out: &mut [f32], n_images: usize) {
        let Window { size: [kh, kw], stride, padding, .. } = *self.window;
        let [c, o] = self.channels;
        let (c_group, o_group) = (c / self.groups, o / self.groups);
        let depth = c_group * kh * kw;
        let area = self.out[0] * self.out[1];
        let width = panel_width();
        let panels_per_task = (PATCH_ELEMENTS / (depth.max(1) * width)).max(1);
        let cols_per_task = panels_per_task * width;
        let n_blocks = area.div_ceil(cols_per_task);
        let is_pointwise = (kh, kw, stride, padding) == (1, 1, [1, 1], [0, 0]) && self.out == self.image;
        let out_len = out.len();
        let parts = parallel::Parts::new(out);
        parallel::for_each(n_images * self.groups * n_blocks, |task| {
            let (image, group, block) = (task / n_blocks / self.groups, task / n_blocks % self.groups, task % n_blocks);
            let first = block * cols_per_task;
            let n_cols = cols_per_task.min(area - first);
            let n_panels = n_cols.div_ceil(width);
            let plane = self.image[0] * self.image[1];
            let source = &self.x[(image * c + group * c_group) * plane..][..c_group * plane];
            with_thread_scratch(n_panels * width * depth, |panels| {
                if is_pointwise {
                    pack_panels(&source[first..], [area, 1], [depth, n_cols], panels);
                } else {
                    self.lay_out(source, first, n_cols, panels);
                }
                let product = Product {
                    left: &self.weight[group * o_group * depth..][..o_group * depth],
                    left_row: depth,
                    panels,
                    panel: depth * width,
                    panel_row: width,
                    depth,
                    out_row: area,
                    n_cols,
                    bias: None,
                    activation: Unary::Identity,
                };
                let start = (image * o + group * o_group) * area + first;
                let end = start + (o_group - 1) * area + n_cols;
                assert!(end <= out_len, "the output holds every channel");
                let part = Part { first_row: 0, n_rows: o_group, first_panel: 0, n_panels };
                // SAFETY: tasks write different images, channels or columns; the end was checked.
                unsafe { product.part(parts.as_ptr().add(start), end - start, &part) };
                for channel in 0..o_group {
                    // SAFETY: as above, one row of this task's part.
                    let row = unsafe { parts.get(start + channel * area, n_cols) };
                    self.finish(row, group * o_group + channel);
                }
            });
        });
    }

    /// The patches under output pixels `first .. first + n_cols` as the columns of panels.
    fn lay_out(&self, source: &[f32], first: usize, n_cols: usize, panels: &mut [f32]) {
        let Window { size: [kh, kw], stride, padding, dilation } = *self.window;
        let (width, plane) = (panel_width(), self.image[0] * self.image[1]);
        let depth = source.len() / plane * kh * kw;
        for (panel, to) in panels.chunks_exact_mut(depth * width).enumerate() {
            let start = first + panel * width;
            let n = width.min(first + n_cols - start);
            // Corner of each column's window, in padded coordinates.
            let mut corners = [(0usize, 0usize); 64];
            for (j, corner) in corners[..n].iter_mut().enumerate() {
                *corner = ((start + j) / self.out[1] * stride[0], (start + j) % self.out[1] * stride[1]);
            }
            for (k, to) in to.chunks_exact_mut(width).enumerate() {
                let (channel, i, j) = (k / (kh * kw), k / kw % kh, k % kw);
                let image = &source[channel * plane..(channel + 1) * plane];
                to[n..].fill(0.0);
                for (to, &(y, x)) in to.iter_mut().zip(&corners[..n]) {
                    let y = (y + i * dilation[0]).wrapping_sub(padding[0]);
                    let x = (x + j * dilation[1]).wrapping_sub(padding[1]);
                    let is_inside = y < self.image[0] && x < self.image[1];
                    *to = if is_inside { image[y * self.image[1] + x] } else { 0.0 };
                }
            }
        }
    }
}

/// What pooling makes of the pixels under a window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pool {
    /// The largest; NaN if any is NaN.
    Max,
    /// The mean of the pixels inside the image.
    MeanInside,
    /// The mean, where padding counts as zeros.
    MeanPadded,
    /// The sum divided by this number.
    SumOver(f64),
}

/// Pools each channel of the `f32` tensor `x` `[N, C, H, W]` to `[N, C, out[0], out[1]]`; `out` may be larger than
/// [`Window::positions`], where windows reach past the padding (`ceil_mode`).
pub fn pool2d(x: &Tensor, window: &Window, out: [usize; 2], pool: Pool) -> Result<Tensor, TensorError> {
    let span = |dim: usize, at: usize, size: usize| {
        let start = (at * window.stride[dim]).wrapping_sub(window.padding[dim]) as isize;
        let last = start + (window.dilation[dim] * (window.size[dim] - 1) + 1) as isize;
        let padded_end = last.min((size + window.padding[dim]) as isize);
        (start, last, (padded_end - start).max(0) as usize)
    };
    let step = window.dilation;
    pool_planes(x, out, |plane, [h, w], [y, x]| {
        let ((y0, y1, high), (x0, x1, wide)) = (span(0, y, h), span(1, x, w));
        let ys = (y0..y1).step_by(step[0]).filter(|&y| (0..h as isize).contains(&y));
        let taps = ys.flat_map(|y| {
            let xs = (x0..x1).step_by(step[1]).filter(move |&x| (0..w as isize).contains(&x));
            xs.map(move |x| plane[y as usize * w + x as usize])
        });
        let mean = |n: f64| taps.clone().map(f64::from).sum::<f64>() / n;
        match pool {
            Pool::Max => taps.fold(f32::NEG_INFINITY, |most, x| if x > most || x.is_nan() { x } else { most }),
            Pool::MeanInside => mean(taps.clone().count() as f64) as f32,
            Pool::MeanPadded => mean((high * wide) as f64) as f32,
            Pool::SumOver(n) => mean(n) as f32,
        }
    })
}

/// The means of the `f32` tensor `x` `[N, C, H, W]` over `out` areas as even as whole pixels allow.
pub fn adaptive_mean_pool2d(x: &Tensor, out: [usize; 2]) -> Result<Tensor, TensorError> {
    let range = |at: usize, size: usize, n: usize| (at * size / n, ((at + 1) * size).div_ceil(n));
    pool_planes(x, out, |plane, [h, w], [y, x]| {
        let ((y0, y1), (x0, x1)) = (range(y, h, out[0]), range(x, w, out[1]));
        let rows = plane[..y1 * w].chunks_exact(w).skip(y0);
        let total: f64 = rows.map(|row| row[x0..x1].iter().map(|&x| f64::from(x)).sum::<f64>()).sum();
        (total / ((y1 - y0) * (x1 - x0)) as f64) as f32
    })
}

fn pool_planes(
    x: &Tensor,
    out: [usize; 2],
    pool: impl Fn(&[f32], [usize; 2], [usize; 2]) -> f32 + Sync,
) -> Result<Tensor, TensorError> {
    let &[n, c, h, w] = x.shape() else { return Err(TensorError::Dim { dim: 4, ndim: x.ndim() }) };
    let x = x.contiguous();
    let from = whole(&x)?;
    let mut result = Tensor::scratch(DType::F32, &[n, c, out[0], out[1]])?;
    parallel::for_each_chunk(out_slice::<f32>(&mut result)?, out[0] * out[1], |plane, to| {
        let from = &from[plane * h * w..(plane + 1) * h * w];
        for (at, to) in to.iter_mut().enumerate() {
            *to = pool(from, [h, w], [at / out[1], at % out[1]]);
        }
    });
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{random, worst_difference};

    fn plain(x: &Tensor, weight: &Tensor, bias: &Tensor, window: &Window, groups: usize) -> Tensor {
        let [n, c, h, w] = x.shape().try_into().unwrap();
        let [o, cg, kh, kw] = weight.shape().try_into().unwrap();
        let (oh, ow) = (window.positions(0, h).unwrap(), window.positions(1, w).unwrap());
        let at = |t: &Tensor| t.to_vec::<f32>().unwrap();
        let (x, weight, bias) = (at(x), at(weight), at(bias));
        let mut out = Vec::new();
        for index in 0..n * o * oh * ow {
            let (image, channel, y, xx) = (index / (o * oh * ow), index / (oh * ow) % o, index / ow % oh, index % ow);
            let mut total = f64::from(bias[channel]);
            for k in 0..cg * kh * kw {
                let (ci, i, j) = (k / (kh * kw), k / kw % kh, k % kw);
                let row = (y * window.stride[0] + i * window.dilation[0]) as isize - window.padding[0] as isize;
                let col = (xx * window.stride[1] + j * window.dilation[1]) as isize - window.padding[1] as isize;
                if (0..h as isize).contains(&row) && (0..w as isize).contains(&col) {
                    let source = channel / (o / groups) * cg + ci;
                    let pixel = x[((image * c + source) * h + row as usize) * w + col as usize];
                    total += f64::from(pixel) * f64::from(weight[channel * cg * kh * kw + k]);
                }
            }
            out.push(total);
        }
        Tensor::from_slice(&out, &[n, o, oh, ow]).unwrap()
    }

    #[test]
    fn convolutions_equal_the_definition() {
        for (c, o, groups, size, stride, padding, dilation) in [
            (3, 8, 1, [3, 3], [1, 1], [1, 1], [1, 1]),
            (3, 8, 1, [7, 5], [2, 3], [3, 0], [1, 1]),
            (8, 40, 1, [1, 1], [1, 1], [0, 0], [1, 1]),
            (8, 4, 1, [1, 1], [2, 2], [0, 0], [1, 1]),
            (6, 6, 6, [3, 3], [1, 1], [1, 1], [1, 1]),
            (6, 6, 6, [5, 5], [2, 2], [2, 2], [1, 1]),
            (6, 6, 6, [3, 3], [1, 3], [4, 4], [2, 2]),
            (6, 9, 3, [3, 2], [1, 1], [0, 1], [2, 1]),
        ] {
            let (x, weight) = (random(&[2, c, 13, 17], 1), random(&[o, c / groups, size[0], size[1]], 2));
            let bias = random(&[o], 3);
            let window = Window { size, stride, padding, dilation };
            let how = Convolution::of(window, groups, [13, 17]).unwrap();
            let out = conv2d(&x, &weight, Some(&bias), &how, Unary::Identity).unwrap();
            assert!(worst_difference(&out, &plain(&x, &weight, &bias, &window, groups)) < 2e-5, "{window:?} {groups}");
            let two = parallel::with_threads(2, || conv2d(&x, &weight, Some(&bias), &how, Unary::Relu));
            let relu = crate::unary(&out, Unary::Relu).unwrap();
            assert_eq!(two.unwrap().to_vec::<f32>(), relu.to_vec::<f32>());
            let one = conv2d(&x.narrow(0, 1, 1).unwrap(), &weight, Some(&bias), &how, Unary::Identity);
            assert_eq!(one.unwrap().to_vec::<f32>(), out.narrow(0, 1, 1).unwrap().to_vec::<f32>());
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let window = Window { size: [3, 3], stride: [1, 1], padding: [0, 0], dilation: [1, 1] };
        assert_eq!(Convolution::of(window, 1, [2, 8]), None);
        assert_eq!(Convolution::of(Window { stride: [0, 1], ..window }, 1, [8, 8]), None);
        let x = random(&[1, 3, 8, 8], 1);
        let how = |groups| Convolution { window, groups, out: [6, 6] };
        assert!(conv2d(&x, &random(&[4, 2, 3, 3], 2), None, &how(1), Unary::Identity).is_err());
        assert!(conv2d(&x, &random(&[4, 3, 3, 3], 2), None, &how(0), Unary::Identity).is_err());
        assert!(conv2d(&x, &random(&[4, 3, 2, 2], 2), None, &how(1), Unary::Identity).is_err());
    }

    #[test]
    fn positions_past_the_padding_see_zeros() {
        for (c, o, groups) in [(3, 5, 1), (4, 4, 4)] {
            let (x, weight) = (random(&[1, c, 6, 7], 1), random(&[o, c / groups, 2, 2], 2));
            let window = Window { size: [2, 2], stride: [1, 1], padding: [0, 0], dilation: [1, 1] };
            let same = Convolution { window, groups, out: [6, 7] };
            let out = conv2d(&x, &weight, None, &same, Unary::Identity).unwrap();
            let zeros = |shape: &[usize]| Tensor::zeros(DType::F32, shape).unwrap();
            let wide = crate::concat(&[x, zeros(&[1, c, 6, 1])], 3).unwrap();
            let wide = crate::concat(&[wide, zeros(&[1, c, 1, 8])], 2).unwrap();
            let how = Convolution::of(window, groups, [7, 8]).unwrap();
            let expected = conv2d(&wide, &weight, None, &how, Unary::Identity).unwrap();
            assert_eq!(out.to_vec::<f32>(), expected.to_vec::<f32>());
        }
    }

    #[test]
    fn pools_of_a_small_image() {
        let x: Vec<f32> = (0..16).map(|i| i as f32).collect();
        let x = Tensor::from_slice(&x, &[1, 1, 4, 4]).unwrap();
        let window = Window { size: [2, 2], stride: [2, 2], padding: [0, 0], dilation: [1, 1] };
        let of = |window: &Window, out, pool| pool2d(&x, window, out, pool).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(of(&window, [2, 2], Pool::Max), [5.0, 7.0, 13.0, 15.0]);
        assert_eq!(of(&window, [2, 2], Pool::MeanPadded), [2.5, 4.5, 10.5, 12.5]);
        let padded = Window { padding: [1, 1], ..window };
        assert_eq!(of(&padded, [3, 3], Pool::MeanInside)[..3], [0.0, 1.5, 3.0]);
        assert_eq!(of(&padded, [3, 3], Pool::MeanPadded)[..3], [0.0, 0.75, 0.75]);
        assert_eq!(of(&padded, [3, 3], Pool::SumOver(2.0))[0], 0.0);
        let wide = Window { size: [3, 3], stride: [3, 3], ..window };
        assert_eq!(of(&wide, [2, 2], Pool::Max), [10.0, 11.0, 14.0, 15.0]);
        let mean = adaptive_mean_pool2d(&x, [1, 1]).unwrap();
        assert_eq!(mean.to_vec::<f32>(), Some(vec![7.5]));
        assert_eq!(adaptive_mean_pool2d(&x, [3, 3]).unwrap().to_vec::<f32>().unwrap()[..2], [2.5, 3.5]);
    }
}
