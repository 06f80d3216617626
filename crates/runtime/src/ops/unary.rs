//! One tensor in, one of the same shape out, element by element.

use highroad_tensor::{DType, Tensor, Unary, map, unary};

use super::promote::{compute, to_float};
use super::{first, meta, one};
use crate::op::{Call, Declaration, Eval, FLOATS, INTEGERS, Infer, Meta, Metas, NUMBERS, OpError, Outputs, Tolerance};
use crate::rows;

pub(super) const OPS: &[Declaration] = &[
    // Functions on floats; integers become f32 first.
    float("aten::exp(Tensor self) -> Tensor", |c, m| vectorised(c, m, Unary::Exp)),
    float("aten::expm1(Tensor self) -> Tensor", |c, m| on_floats(c, m, f32::exp_m1, f64::exp_m1)),
    float("aten::log(Tensor self) -> Tensor", |c, m| on_floats(c, m, f32::ln, f64::ln)),
    float("aten::log2(Tensor self) -> Tensor", |c, m| on_floats(c, m, f32::log2, f64::log2)),
    float("aten::log10(Tensor self) -> Tensor", |c, m| on_floats(c, m, f32::log10, f64::log10)),
    float("aten::log1p(Tensor self) -> Tensor", |c, m| on_floats(c, m, f32::ln_1p, f64::ln_1p)),
    float("aten::sqrt(Tensor self) -> Tensor", |c, m| on_floats(c, m, f32::sqrt, f64::sqrt)),
    float("aten::rsqrt(Tensor self) -> Tensor", |c, m| on_floats(c, m, |x| 1.0 / x.sqrt(), |x| 1.0 / x.sqrt())),
    float("aten::reciprocal(Tensor self) -> Tensor", |c, m| on_floats(c, m, f32::recip, f64::recip)),
    float("aten::sin(Tensor self) -> Tensor", |c, m| vectorised(c, m, Unary::Sin)),
    float("aten::cos(Tensor self) -> Tensor", |c, m| vectorised(c, m, Unary::Cos)),
    float("aten::tanh(Tensor self) -> Tensor", |c, m| vectorised(c, m, Unary::Tanh)),
    float("aten::erf(Tensor self) -> Tensor", |c, m| vectorised(c, m, Unary::Erf)),
    float("aten::sigmoid(Tensor self) -> Tensor", |c, m| vectorised(c, m, Unary::Sigmoid)),
    float("aten::log_sigmoid(Tensor self) -> Tensor", |c, m| {
        on_floats(c, m, |x| x.min(0.0) - (-x.abs()).exp().ln_1p(), |x| x.min(0.0) - (-x.abs()).exp().ln_1p())
    })
    .functional_only(),
    float("aten::silu(Tensor self) -> Tensor", |c, m| vectorised(c, m, Unary::Silu)),
    float("aten::mish(Tensor self) -> Tensor", |c, m| on_f32(c, m, |x| x * softplus(x).tanh())),
    float("aten::gelu(Tensor self, *, str approximate='none') -> Tensor", |c, m| match c.str("approximate")? {
        "tanh" => vectorised(c, m, Unary::GeluTanh),
        "none" => vectorised(c, m, Unary::Gelu),
        _ => Err(OpError::Unsupported("`approximate` other than `none` and `tanh`")),
    }),
    float("aten::softplus(Tensor self, Scalar beta=1, Scalar threshold=20) -> Tensor", |c, m| {
        let (beta, threshold) = (c.float("beta")? as f32, c.float("threshold")? as f32);
        on_f32(c, m, |x| if x * beta > threshold { x } else { (x * beta).exp().ln_1p() / beta })
    })
    .functional_only(),
    float("aten::elu(Tensor self, Scalar alpha=1, Scalar scale=1, Scalar input_scale=1) -> Tensor", |c, m| {
        let (alpha, scale, input) =
            (c.float("alpha")? as f32, c.float("scale")? as f32, c.float("input_scale")? as f32);
        on_f32(c, m, |x| if x > 0.0 { x * scale } else { (x * input).exp_m1() * alpha * scale })
    }),
    float("aten::leaky_relu(Tensor self, Scalar negative_slope=0.01) -> Tensor", |c, m| {
        let slope = c.float("negative_slope")? as f32;
        on_f32(c, m, |x| if x > 0.0 { x } else { x * slope })
    }),
    float("aten::hardswish(Tensor self) -> Tensor", |c, m| on_f32(c, m, |x| x * clamp(x + 3.0, 0.0, 6.0) / 6.0)),
    float("aten::hardsigmoid(Tensor self) -> Tensor", |c, m| on_f32(c, m, |x| clamp(x + 3.0, 0.0, 6.0) / 6.0)),
    // Numbers of any kind.
    number("aten::relu(Tensor self) -> Tensor", |c, m| {
        on_numbers(c, m, |x| x.max(0), |x| clamp(x, 0.0, f32::INFINITY))
    }),
    number("aten::relu6(Tensor self) -> Tensor", |c, m| on_numbers(c, m, |x| x.clamp(0, 6), |x| clamp(x, 0.0, 6.0)))
        .handwritten(),
    number("aten::hardtanh(Tensor self, Scalar min_val=-1, Scalar max_val=1) -> Tensor", |c, m| {
        let (low, high) = (c.scalar("min_val")?, c.scalar("max_val")?);
        let ints = (low.to::<i64>(), high.to::<i64>());
        on_numbers(c, m, |x| x.max(ints.0).min(ints.1), |x| clamp(x, low.to(), high.to()))
    }),
    number("aten::neg(Tensor self) -> Tensor", |c, m| on_numbers(c, m, i64::wrapping_neg, |x| -x)),
    number("aten::abs(Tensor self) -> Tensor", |c, m| on_numbers(c, m, i64::wrapping_abs, f32::abs)),
    number("aten::square(Tensor self) -> Tensor", |c, m| on_numbers(c, m, |x| x.wrapping_mul(x), |x| x * x)),
    number("aten::sign(Tensor self) -> Tensor", |c, m| on_numbers(c, m, i64::signum, sign)),
    number("aten::floor(Tensor self) -> Tensor", |c, m| on_numbers(c, m, |x| x, f32::floor)),
    number("aten::ceil(Tensor self) -> Tensor", |c, m| on_numbers(c, m, |x| x, f32::ceil)),
    number("aten::trunc(Tensor self) -> Tensor", |c, m| on_numbers(c, m, |x| x, f32::trunc)),
    number("aten::round(Tensor self) -> Tensor", |c, m| on_numbers(c, m, |x| x, f32::round_ties_even)),
    // Conditions.
    condition("aten::logical_not(Tensor self) -> Tensor", |c, _| {
        one(map(&c.tensor("self")?.cast(DType::Bool)?, DType::Bool, |x: u8| u8::from(x == 0))?)
    })
    .in_place(),
    condition("aten::isnan(Tensor self) -> Tensor", |c, m| test(c, m, f32::is_nan)),
    condition("aten::isinf(Tensor self) -> Tensor", |c, m| test(c, m, f32::is_infinite)),
    condition("aten::isfinite(Tensor self) -> Tensor", |c, m| test(c, m, f32::is_finite)),
    number("aten::bitwise_not(Tensor self) -> Tensor", |c, m| {
        let x = c.tensor("self")?;
        match x.dtype() {
            DType::Bool => one(map(x, DType::Bool, |x: u8| u8::from(x == 0))?),
            dtype if dtype.is_float() => Err(OpError::DType { argument: "self", dtype }),
            _ => on_numbers(c, m, |x| !x, |x| x),
        }
    })
    .dtypes(INTEGERS),
];

const fn float(schema: &'static str, eval: Eval) -> Declaration {
    elementwise(schema, |c| meta(to_float(c.tensor("self")?.dtype()), c.tensor("self")?.shape()), eval)
        .dtypes(FLOATS)
        .within(Tolerance::CLOSE)
}

const fn number(schema: &'static str, eval: Eval) -> Declaration {
    elementwise(schema, like_self, eval).dtypes(NUMBERS)
}

const fn condition(schema: &'static str, eval: Eval) -> Declaration {
    elementwise(schema, |c| meta(DType::Bool, c.tensor("self")?.shape()), eval).functional_only()
}

const fn elementwise(schema: &'static str, infer: Infer, eval: Eval) -> Declaration {
    Declaration::new(schema, infer, eval).rows(rows::elementwise).in_place()
}

fn like_self(call: &Call<'_>) -> Result<Metas, OpError> {
    let x = call.tensor("self")?;
    meta(x.dtype(), x.shape())
}

/// Applies the function of the width in which the result's dtype is computed.
fn on_floats(
    call: &Call<'_>,
    metas: &[Meta],
    narrow: impl Fn(f32) -> f32 + Sync + Copy,
    wide: impl Fn(f64) -> f64 + Sync + Copy,
) -> Result<Outputs, OpError> {
    let dtype = first(metas).dtype;
    let x = call.tensor("self")?.cast(compute(dtype))?;
    let y = if x.dtype() == DType::F64 { map(&x, DType::F64, wide)? } else { map(&x, DType::F32, narrow)? };
    one(y.cast(dtype)?)
}

/// A function that the kernels have for vectors of f32.
fn vectorised(call: &Call<'_>, metas: &[Meta], function: Unary) -> Result<Outputs, OpError> {
    let x = call.tensor("self")?.cast(DType::F32)?;
    one(unary(&x, function)?.cast(first(metas).dtype)?)
}

fn on_f32(call: &Call<'_>, metas: &[Meta], f: impl Fn(f32) -> f32 + Sync + Copy) -> Result<Outputs, OpError> {
    on_floats(call, metas, f, |x| f64::from(f(x as f32)))
}

fn on_numbers(
    call: &Call<'_>,
    metas: &[Meta],
    on_ints: impl Fn(i64) -> i64 + Sync + Copy,
    on_float: impl Fn(f32) -> f32 + Sync + Copy,
) -> Result<Outputs, OpError> {
    let x = call.tensor("self")?;
    if x.dtype().is_float() {
        return on_f32(call, metas, on_float);
    }
    one(map(&x.cast(DType::I64)?, DType::I64, on_ints)?.cast(x.dtype())?)
}

fn test(call: &Call<'_>, _: &[Meta], holds: fn(f32) -> bool) -> Result<Outputs, OpError> {
    let x: Tensor = call.tensor("self")?.cast(DType::F32)?;
    one(map(&x, DType::Bool, move |x: f32| u8::from(holds(x)))?)
}

/// NaN stays NaN, as in PyTorch.
fn clamp(x: f32, low: f32, high: f32) -> f32 {
    if x < low {
        low
    } else if x > high {
        high
    } else {
        x
    }
}

fn sign(x: f32) -> f32 {
    if x > 0.0 {
        1.0
    } else if x < 0.0 {
        -1.0
    } else {
        0.0
    }
}

fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}
