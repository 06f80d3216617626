//! Vectorised functions of one `f32`.
//!
//! `exp`, `tanh`, `sigmoid`, `sin` and `cos` are those of `rten-vecmath` (at most 1 to 4 ulp); its `erf` is off by up to
//! 6.6e-7, so the error function is our own.

use rten_simd::ops::{BitOps, FloatOps, NumOps};
use rten_simd::{Isa, SimdOp, SimdUnaryOp};
use rten_vecmath as vecmath;

use crate::elementwise::{for_each_span, out_slice};
use crate::{DType, Tensor, TensorError};

/// The error function, within 2 ulp.
///
/// Two polynomials by Norbert Juffa (<https://stackoverflow.com/a/35148199>): near zero in x², beyond as
/// `1 - exp(p(|x|))`.
#[derive(Default)]
pub(crate) struct Erf;

impl SimdUnaryOp<f32> for Erf {
    #[inline(always)]
    fn eval<I: Isa>(&self, isa: I, x: I::F32) -> I::F32 {
        let ops = isa.f32();
        let (t, s) = (ops.abs(x), ops.mul(x, x));
        let chain = |start: f32, by: I::F32, coefficients: &[f32]| {
            coefficients.iter().fold(ops.splat(start), |sum, &c| ops.mul_add(sum, by, ops.splat(c)))
        };
        let near =
            chain(-5.967_617e-4, s, &[4.991_194_2e-3, -2.676_813_5e-2, 0.112_819_925, -0.376_125_34, 0.128_379_17]);
        let near = ops.mul_add(near, x, x);
        let high = chain(-1.728_534_7e-5, t, &[3.831_971_3e-4]);
        let low = chain(-3.883_964_4e-3, t, &[2.425_462_2e-2]);
        let far = ops.mul_add(high, s, low);
        let far =
            [-0.106_777_88, -0.634_846_7, -0.128_717_51].iter().fold(far, |sum, &c| ops.mul_add(sum, t, ops.splat(c)));
        let far = ops.mul_add(far, t, ops.neg(t));
        // Past 10 the result is 1 anyway; without the bound the polynomial runs into infinities of both signs.
        let far = ops.sub(ops.one(), vecmath::Exp::apply(isa, ops.max(far, ops.splat(-100.0))));
        let far = ops.select(ops.neg(far), far, ops.lt(x, ops.zero()));
        let is_near = ops.le(t, ops.splat(0.927_734_4));
        let y = ops.select(near, far, is_near);
        // NaN compares false with itself and stays NaN.
        ops.select(y, x, ops.eq(x, x))
    }
}

/// `x/2 (1 + erf(x/√2))`, as `torch.nn.functional.gelu(x)` computes it.
#[derive(Default)]
pub(crate) struct Gelu;

impl SimdUnaryOp<f32> for Gelu {
    #[inline(always)]
    fn eval<I: Isa>(&self, isa: I, x: I::F32) -> I::F32 {
        let ops = isa.f32();
        let erf = Erf.eval(isa, ops.mul(x, ops.splat(std::f32::consts::FRAC_1_SQRT_2)));
        ops.mul(ops.mul(x, ops.splat(0.5)), ops.add(erf, ops.one()))
    }
}

/// `max(x, min)` then `min(x, max)`; NaN stays.
pub(crate) struct Clamp {
    pub min: f32,
    pub max: f32,
}

impl SimdUnaryOp<f32> for Clamp {
    #[inline(always)]
    fn eval<I: Isa>(&self, isa: I, x: I::F32) -> I::F32 {
        let ops = isa.f32();
        let (min, max) = (ops.splat(self.min), ops.splat(self.max));
        let y = ops.select(min, x, ops.lt(x, min));
        ops.select(max, y, ops.gt(y, max))
    }
}

/// A function of one `f32` with a vectorised kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Unary {
    /// `x`
    Identity,
    /// `max(x, 0)`
    Relu,
    /// `min(max(x, min), max)`
    Clamp {
        /// Lower bound.
        min: f32,
        /// Upper bound.
        max: f32,
    },
    /// `x/2 (1 + erf(x/√2))`
    Gelu,
    /// GELU by its tanh approximation.
    GeluTanh,
    /// `x / (1 + e^-x)`
    Silu,
    /// `1 / (1 + e^-x)`
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
    /// Exponential.
    Exp,
    /// Error function.
    Erf,
    /// Sine.
    Sin,
    /// Cosine.
    Cos,
}

/// Calls `$body` with `$op` bound to the `SimdUnaryOp` of a [`Unary`] that is not `Identity`.
macro_rules! with_unary {
    ($unary:expr, $op:ident => $body:expr, else $identity:expr) => {
        match $unary {
            $crate::math::Unary::Identity => $identity,
            $crate::math::Unary::Relu => {
                let $op = $crate::math::Clamp { min: 0.0, max: f32::INFINITY };
                $body
            }
            $crate::math::Unary::Clamp { min, max } => {
                let $op = $crate::math::Clamp { min, max };
                $body
            }
            $crate::math::Unary::Gelu => {
                let $op = $crate::math::Gelu;
                $body
            }
            $crate::math::Unary::GeluTanh => {
                let $op = rten_vecmath::ApproxGelu {};
                $body
            }
            $crate::math::Unary::Silu => {
                let $op = rten_vecmath::Silu {};
                $body
            }
            $crate::math::Unary::Sigmoid => {
                let $op = rten_vecmath::Sigmoid {};
                $body
            }
            $crate::math::Unary::Tanh => {
                let $op = rten_vecmath::Tanh {};
                $body
            }
            $crate::math::Unary::Exp => {
                let $op = rten_vecmath::Exp {};
                $body
            }
            $crate::math::Unary::Erf => {
                let $op = $crate::math::Erf;
                $body
            }
            $crate::math::Unary::Sin => {
                let $op = rten_vecmath::Sin::default();
                $body
            }
            $crate::math::Unary::Cos => {
                let $op = rten_vecmath::Cos::default();
                $body
            }
        }
    };
}
pub(crate) use with_unary;

/// `function` of every element of `x`, which is `f32`.
pub fn unary(x: &Tensor, function: Unary) -> Result<Tensor, TensorError> {
    let x = x.contiguous();
    let from = x.as_slice::<f32>().ok_or(TensorError::DType { expected: "f32", got: x.dtype() })?;
    let mut out = Tensor::scratch(DType::F32, x.shape())?;
    for_each_span(out_slice::<f32>(&mut out)?, |start, to| {
        to.copy_from_slice(&from[start..start + to.len()]);
        apply(function, to);
    });
    Ok(out)
}

/// `function` of every element of `data`, in place.
pub(crate) fn apply(function: Unary, data: &mut [f32]) {
    with_unary!(function, op => Span { to: data, op }.dispatch(), else ());
}

struct Span<'a, Op> {
    to: &'a mut [f32],
    op: Op,
}

impl<Op: SimdUnaryOp<f32>> SimdOp for Span<'_, Op> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let ops = isa.f32();
        let mut chunks = self.to.chunks_exact_mut(ops.len());
        for chunk in &mut chunks {
            ops.store(self.op.eval(isa, ops.load(chunk)), chunk);
        }
        let tail = chunks.into_remainder();
        if !tail.is_empty() {
            // Padded to a whole vector, so that an element's bits do not depend on where a slice ends.
            let mut padded = [0.0; MAX_LANES];
            padded[..tail.len()].copy_from_slice(tail);
            let y = self.op.eval(isa, ops.load(&padded[..ops.len()]));
            ops.store(y, &mut padded[..ops.len()]);
            tail.copy_from_slice(&padded[..tail.len()]);
        }
    }
}

/// Lanes of the widest `f32` vector of any instruction set used.
pub(crate) const MAX_LANES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    /// erf by its Taylor series and, beyond 3, its continued fraction; in f64.
    fn erf_f64(x: f64) -> f64 {
        if x.abs() < 3.0 {
            let (mut term, mut sum) = (x, x);
            for n in 1..200 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            return sum * 2.0 / std::f64::consts::PI.sqrt();
        }
        let t = x.abs();
        let fraction = (1..60).rev().fold(t, |f, n| t + f64::from(n) / 2.0 / f);
        (1.0 - (-t * t).exp() / fraction / std::f64::consts::PI.sqrt()).copysign(x)
    }

    /// Largest error of `function` over `range`, in units in the last place of the exact result.
    fn worst_ulp(function: Unary, from: f32, to: f32, exact: impl Fn(f64) -> f64) -> f64 {
        let n = 200_000;
        let xs: Vec<f32> = (0..=n).map(|i| from + (to - from) * i as f32 / n as f32).collect();
        let ys = unary(&Tensor::from_slice(&xs, &[xs.len()]).unwrap(), function).unwrap().to_vec::<f32>().unwrap();
        let ulp = |y: f64| {
            let y = (y as f32).abs().max(f32::MIN_POSITIVE);
            f64::from(f32::from_bits(y.to_bits() + 1)) - f64::from(y)
        };
        let errors = xs.iter().zip(&ys).map(|(&x, &y)| {
            let exact = exact(f64::from(x));
            (f64::from(y) - exact).abs() / ulp(exact)
        });
        errors.fold(0.0, f64::max)
    }

    #[test]
    fn functions_are_as_accurate_as_stated() {
        let gelu = |x: f64| 0.5 * x * (1.0 + erf_f64(x * std::f64::consts::FRAC_1_SQRT_2));
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        assert!(worst_ulp(Unary::Erf, -6.0, 6.0, erf_f64) <= 2.0);
        assert!(worst_ulp(Unary::Exp, -80.0, 80.0, f64::exp) <= 1.1);
        assert!(worst_ulp(Unary::Tanh, -10.0, 10.0, f64::tanh) <= 3.0);
        assert!(worst_ulp(Unary::Sigmoid, -20.0, 20.0, sigmoid) <= 4.0);
        assert!(worst_ulp(Unary::Silu, -10.0, 20.0, |x| x * sigmoid(x)) <= 4.0);
        // Left of zero 1 + erf cancels, in PyTorch's formula as here.
        assert!(worst_ulp(Unary::Gelu, 0.0, 10.0, gelu) <= 3.0);
    }

    #[test]
    fn special_values_pass_as_in_pytorch() {
        let x = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 30.0, -30.0];
        let x = Tensor::from_slice(&x, &[6]).unwrap();
        let of = |function| unary(&x, function).unwrap().to_vec::<f32>().unwrap();
        let relu = of(Unary::Relu);
        assert!(relu[0].is_nan() && relu[1] == f32::INFINITY && relu[2] == 0.0);
        assert!(
            of(Unary::Erf)[0].is_nan() && of(Unary::Erf)[1..3] == [1.0, -1.0] && of(Unary::Erf)[4..] == [1.0, -1.0]
        );
        assert!(of(Unary::Exp)[0].is_nan() && of(Unary::Exp)[1..3] == [f32::INFINITY, 0.0]);
        assert!(of(Unary::Tanh)[0].is_nan() && of(Unary::Tanh)[1..3] == [1.0, -1.0]);
        assert!(of(Unary::Sigmoid)[0].is_nan() && of(Unary::Sigmoid)[1..3] == [1.0, 0.0]);
        assert!(
            of(Unary::Gelu)[0].is_nan() && of(Unary::Gelu)[1] == f32::INFINITY && of(Unary::Gelu)[4..] == [30.0, 0.0]
        );
    }

    #[test]
    fn an_element_has_the_same_bits_anywhere_in_any_slice() {
        let xs: Vec<f32> = (0..100_003).map(|i| ((i * 7919) % 10_007) as f32 / 1000.0 - 5.0).collect();
        let whole = Tensor::from_slice(&xs, &[xs.len()]).unwrap();
        for function in [Unary::Gelu, Unary::Tanh, Unary::Exp, Unary::Silu] {
            let all = unary(&whole, function).unwrap().to_vec::<f32>().unwrap();
            let threads = crate::parallel::with_threads(3, || unary(&whole, function).unwrap());
            assert_eq!(threads.to_vec::<f32>().unwrap(), all);
            for (start, len) in [(0, 1), (5, 3), (99_990, 13), (17, 33)] {
                let part = unary(&whole.narrow(0, start, len).unwrap(), function).unwrap();
                assert_eq!(part.to_vec::<f32>().unwrap(), all[start..start + len]);
            }
        }
    }
}
