//! Two operands, broadcast and promoted, element by element; comparisons, logic and choices among them.

use highroad_tensor::{DType, Scalar, Tensor, broadcast_shapes, map, select, zip};

use super::promote::{compute, result_type, to_float, to_tensor};
use super::{first, meta, one};
use crate::op::{
    ALL, Call, Declaration, Eval, FLOATS, INTEGERS, Infer, Meta, Metas, NUMBERS, OpError, Outputs, TensorOrScalar,
    Tolerance,
};
use crate::rows;

pub(super) const OPS: &[Declaration] = &[
    arithmetic("aten::add.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor", add),
    arithmetic("aten::add.Scalar(Tensor self, Scalar other, Scalar alpha=1) -> Tensor", add).handwritten(),
    arithmetic("aten::sub.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor", sub).dtypes(NUMBERS),
    arithmetic("aten::sub.Scalar(Tensor self, Scalar other, Scalar alpha=1) -> Tensor", sub)
        .dtypes(NUMBERS)
        .handwritten(),
    arithmetic("aten::rsub.Scalar(Tensor self, Scalar other, Scalar alpha=1) -> Tensor", rsub)
        .dtypes(NUMBERS)
        .functional_only(),
    arithmetic("aten::rsub.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor", rsub)
        .dtypes(NUMBERS)
        .functional_only(),
    arithmetic("aten::mul.Tensor(Tensor self, Tensor other) -> Tensor", mul),
    arithmetic("aten::mul.Scalar(Tensor self, Scalar other) -> Tensor", mul).handwritten(),
    quotient("aten::div.Tensor(Tensor self, Tensor other) -> Tensor", div),
    quotient("aten::div.Scalar(Tensor self, Scalar other) -> Tensor", div).handwritten(),
    Declaration {
        infer: infer_divided,
        ..arithmetic("aten::div.Tensor_mode(Tensor self, Tensor other, *, str? rounding_mode) -> Tensor", div_mode)
    }
    .dtypes(NUMBERS),
    Declaration {
        infer: infer_divided,
        ..arithmetic("aten::div.Scalar_mode(Tensor self, Scalar other, *, str? rounding_mode) -> Tensor", div_mode)
    }
    .dtypes(NUMBERS)
    .handwritten(),
    arithmetic("aten::floor_divide(Tensor self, Tensor other) -> Tensor", floor_div)
        .in_place_as("aten.floor_divide_.Tensor")
        .dtypes(NUMBERS),
    arithmetic("aten::remainder.Tensor(Tensor self, Tensor other) -> Tensor", remainder).dtypes(NUMBERS),
    arithmetic("aten::remainder.Scalar(Tensor self, Scalar other) -> Tensor", remainder).dtypes(NUMBERS).handwritten(),
    arithmetic("aten::fmod.Tensor(Tensor self, Tensor other) -> Tensor", fmod).dtypes(NUMBERS),
    arithmetic("aten::fmod.Scalar(Tensor self, Scalar other) -> Tensor", fmod).dtypes(NUMBERS).handwritten(),
    arithmetic("aten::pow.Tensor_Scalar(Tensor self, Scalar exponent) -> Tensor", pow)
        .in_place_as("aten.pow_.Scalar")
        .dtypes(NUMBERS)
        .within(Tolerance::CLOSE),
    arithmetic("aten::pow.Tensor_Tensor(Tensor self, Tensor exponent) -> Tensor", pow)
        .in_place_as("aten.pow_.Tensor")
        .dtypes(NUMBERS)
        .within(Tolerance::CLOSE),
    arithmetic("aten::maximum(Tensor self, Tensor other) -> Tensor", maximum).functional_only(),
    arithmetic("aten::max.other(Tensor self, Tensor other) -> Tensor", maximum).functional_only(),
    arithmetic("aten::minimum(Tensor self, Tensor other) -> Tensor", minimum).functional_only(),
    arithmetic("aten::min.other(Tensor self, Tensor other) -> Tensor", minimum).functional_only(),
    quotient("aten::atan2(Tensor self, Tensor other) -> Tensor", |c, m| {
        on_numbers(c, m, |_, _| 0, f32::atan2, f64::atan2)
    })
    .within(Tolerance::CLOSE)
    .dtypes(FLOATS),
    // Comparisons.
    comparison("aten::eq.Tensor(Tensor self, Tensor other) -> Tensor", |c, _| compare(c, |a, b| a == b, |a, b| a == b)),
    comparison("aten::ne.Tensor(Tensor self, Tensor other) -> Tensor", |c, _| compare(c, |a, b| a != b, |a, b| a != b)),
    comparison("aten::lt.Tensor(Tensor self, Tensor other) -> Tensor", |c, _| compare(c, |a, b| a < b, |a, b| a < b)),
    comparison("aten::le.Tensor(Tensor self, Tensor other) -> Tensor", |c, _| compare(c, |a, b| a <= b, |a, b| a <= b)),
    comparison("aten::gt.Tensor(Tensor self, Tensor other) -> Tensor", |c, _| compare(c, |a, b| a > b, |a, b| a > b)),
    comparison("aten::ge.Tensor(Tensor self, Tensor other) -> Tensor", |c, _| compare(c, |a, b| a >= b, |a, b| a >= b)),
    comparison("aten::eq.Scalar(Tensor self, Scalar other) -> Tensor", |c, _| compare(c, |a, b| a == b, |a, b| a == b)),
    comparison("aten::ne.Scalar(Tensor self, Scalar other) -> Tensor", |c, _| compare(c, |a, b| a != b, |a, b| a != b)),
    comparison("aten::lt.Scalar(Tensor self, Scalar other) -> Tensor", |c, _| compare(c, |a, b| a < b, |a, b| a < b)),
    comparison("aten::le.Scalar(Tensor self, Scalar other) -> Tensor", |c, _| compare(c, |a, b| a <= b, |a, b| a <= b)),
    comparison("aten::gt.Scalar(Tensor self, Scalar other) -> Tensor", |c, _| compare(c, |a, b| a > b, |a, b| a > b)),
    comparison("aten::ge.Scalar(Tensor self, Scalar other) -> Tensor", |c, _| compare(c, |a, b| a >= b, |a, b| a >= b)),
    // Logic on truth values and on bits.
    comparison("aten::logical_and(Tensor self, Tensor other) -> Tensor", |c, _| logic(c, |a, b| a & b)),
    comparison("aten::logical_or(Tensor self, Tensor other) -> Tensor", |c, _| logic(c, |a, b| a | b)),
    comparison("aten::logical_xor(Tensor self, Tensor other) -> Tensor", |c, _| logic(c, |a, b| a ^ b)),
    bits("aten::bitwise_and.Tensor(Tensor self, Tensor other) -> Tensor", |c, m| on_bits(c, m, |a, b| a & b)),
    bits("aten::bitwise_or.Tensor(Tensor self, Tensor other) -> Tensor", |c, m| on_bits(c, m, |a, b| a | b)),
    bits("aten::bitwise_xor.Tensor(Tensor self, Tensor other) -> Tensor", |c, m| on_bits(c, m, |a, b| a ^ b)),
    bits("aten::bitwise_and.Scalar(Tensor self, Scalar other) -> Tensor", |c, m| on_bits(c, m, |a, b| a & b))
        .handwritten(),
    bits("aten::bitwise_or.Scalar(Tensor self, Scalar other) -> Tensor", |c, m| on_bits(c, m, |a, b| a | b))
        .handwritten(),
    bits("aten::__and__.Tensor(Tensor self, Tensor other) -> Tensor", |c, m| on_bits(c, m, |a, b| a & b))
        .functional_only()
        .handwritten(),
    bits("aten::__or__.Tensor(Tensor self, Tensor other) -> Tensor", |c, m| on_bits(c, m, |a, b| a | b))
        .functional_only()
        .handwritten(),
    bits("aten::__xor__.Tensor(Tensor self, Tensor other) -> Tensor", |c, m| on_bits(c, m, |a, b| a ^ b))
        .functional_only()
        .handwritten(),
    // Choices.
    choice("aten::where.self(Tensor condition, Tensor self, Tensor other) -> Tensor", infer_where, eval_where),
    choice("aten::where.ScalarSelf(Tensor condition, Scalar self, Tensor other) -> Tensor", infer_where, eval_where)
        .handwritten(),
    choice("aten::where.ScalarOther(Tensor condition, Tensor self, Scalar other) -> Tensor", infer_where, eval_where)
        .handwritten(),
    choice("aten::where.Scalar(Tensor condition, Scalar self, Scalar other) -> Tensor", infer_where, eval_where)
        .handwritten(),
    choice(
        "aten::masked_fill.Scalar(Tensor self, Tensor mask, Scalar value) -> Tensor",
        infer_masked_fill,
        masked_fill,
    )
    .in_place(),
    choice(
        "aten::masked_fill.Tensor(Tensor self, Tensor mask, Tensor value) -> Tensor",
        infer_masked_fill,
        masked_fill,
    )
    .in_place(),
    choice("aten::clamp(Tensor self, Scalar? min=None, Scalar? max=None) -> Tensor", infer_clamp, clamp)
        .in_place()
        .dtypes(NUMBERS),
    choice("aten::clamp.Tensor(Tensor self, Tensor? min=None, Tensor? max=None) -> Tensor", infer_clamp, clamp)
        .in_place()
        .dtypes(NUMBERS),
    choice("aten::clamp_min(Tensor self, Scalar min) -> Tensor", infer_clamp, clamp)
        .in_place()
        .dtypes(NUMBERS)
        .handwritten(),
    choice("aten::clamp_max(Tensor self, Scalar max) -> Tensor", infer_clamp, clamp)
        .in_place()
        .dtypes(NUMBERS)
        .handwritten(),
    choice("aten::lerp.Scalar(Tensor self, Tensor end, Scalar weight) -> Tensor", infer_lerp, lerp)
        .dtypes(FLOATS)
        .within(Tolerance::CLOSE),
    choice(
        "aten::addcmul(Tensor self, Tensor tensor1, Tensor tensor2, *, Scalar value=1) -> Tensor",
        infer_addc,
        |c, m| addc(c, m, |a, b| a * b),
    )
    .dtypes(FLOATS)
    .within(Tolerance::CLOSE),
    choice(
        "aten::addcdiv(Tensor self, Tensor tensor1, Tensor tensor2, *, Scalar value=1) -> Tensor",
        infer_addc,
        |c, m| addc(c, m, |a, b| a / b),
    )
    .dtypes(FLOATS)
    .within(Tolerance::CLOSE),
];

const fn arithmetic(schema: &'static str, eval: Eval) -> Declaration {
    Declaration::new(schema, infer_promoted, eval).rows(rows::elementwise).in_place()
}

const fn quotient(schema: &'static str, eval: Eval) -> Declaration {
    Declaration { infer: infer_quotient, ..arithmetic(schema, eval) }
}

const fn comparison(schema: &'static str, eval: Eval) -> Declaration {
    Declaration { infer: infer_condition, ..arithmetic(schema, eval) }.functional_only().dtypes(ALL)
}

const fn bits(schema: &'static str, eval: Eval) -> Declaration {
    arithmetic(schema, eval).dtypes(INTEGERS)
}

const fn choice(schema: &'static str, infer: Infer, eval: Eval) -> Declaration {
    Declaration::new(schema, infer, eval).rows(rows::elementwise)
}

/// The two operands: `self` and, under whatever name the schema gives it, the second.
fn operands<'a>(call: &Call<'a>) -> Result<[TensorOrScalar<'a>; 2], OpError> {
    let second = if call.op().schema().position("exponent").is_some() { "exponent" } else { "other" };
    Ok([call.tensor_or_scalar("self")?, call.tensor_or_scalar(second)?])
}

fn shape_of<'a>(operand: &TensorOrScalar<'a>) -> &'a [usize] {
    match operand {
        TensorOrScalar::Tensor(tensor) => tensor.shape(),
        TensorOrScalar::Scalar(_) => &[],
    }
}

fn infer_with(call: &Call<'_>, dtype: impl Fn(DType) -> DType) -> Result<Metas, OpError> {
    let operands = operands(call)?;
    meta(dtype(result_type(&operands)), &broadcast_shapes(shape_of(&operands[0]), shape_of(&operands[1]))?)
}

fn infer_promoted(call: &Call<'_>) -> Result<Metas, OpError> {
    infer_with(call, |dtype| dtype)
}

fn infer_quotient(call: &Call<'_>) -> Result<Metas, OpError> {
    infer_with(call, to_float)
}

fn infer_condition(call: &Call<'_>) -> Result<Metas, OpError> {
    infer_with(call, |_| DType::Bool)
}

fn infer_divided(call: &Call<'_>) -> Result<Metas, OpError> {
    if call.str("rounding_mode")?.is_empty() { infer_quotient(call) } else { infer_promoted(call) }
}

/// Both operands in the dtype that the result is computed in.
fn converted(call: &Call<'_>, dtype: DType) -> Result<[Tensor; 2], OpError> {
    let [left, right] = operands(call)?;
    // A number meets an integer result as an integer and a float result as a float, never by way of the other.
    Ok([to_tensor(left, dtype)?, to_tensor(right, dtype)?])
}

fn on_numbers(
    call: &Call<'_>,
    metas: &[Meta],
    on_ints: impl Fn(i64, i64) -> i64 + Sync + Copy,
    narrow: impl Fn(f32, f32) -> f32 + Sync + Copy,
    wide: impl Fn(f64, f64) -> f64 + Sync + Copy,
) -> Result<Outputs, OpError> {
    let dtype = first(metas).dtype;
    let width = compute(dtype);
    let [left, right] = converted(call, width)?;
    let result = match width {
        DType::F32 => zip(&left, &right, width, narrow)?,
        DType::F64 => zip(&left, &right, width, wide)?,
        _ => zip(&left, &right, width, on_ints)?,
    };
    one(result.cast(dtype)?)
}

/// `alpha` as the integer and the float that it multiplies with.
fn alpha(call: &Call<'_>) -> Result<(i64, f64), OpError> {
    let alpha = call.scalar("alpha")?;
    Ok((alpha.to(), alpha.to()))
}

fn add(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    match alpha(call)? {
        (1, 1.0) => on_numbers(call, metas, i64::wrapping_add, |a, b| a + b, |a, b| a + b),
        (int, float) => {
            let narrow = float as f32;
            let on_ints = move |a: i64, b: i64| a.wrapping_add(b.wrapping_mul(int));
            on_numbers(call, metas, on_ints, move |a, b| a + b * narrow, move |a, b| a + b * float)
        }
    }
}

fn sub(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let (int, float) = alpha(call)?;
    let narrow = float as f32;
    let on_ints = move |a: i64, b: i64| a.wrapping_sub(b.wrapping_mul(int));
    on_numbers(call, metas, on_ints, move |a, b| a - b * narrow, move |a, b| a - b * float)
}

fn rsub(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let (int, float) = alpha(call)?;
    let narrow = float as f32;
    let on_ints = move |a: i64, b: i64| b.wrapping_sub(a.wrapping_mul(int));
    on_numbers(call, metas, on_ints, move |a, b| b - a * narrow, move |a, b| b - a * float)
}

fn mul(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    on_numbers(call, metas, i64::wrapping_mul, |a, b| a * b, |a, b| a * b)
}

fn div(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    on_numbers(call, metas, |_, _| 0, |a, b| a / b, |a, b| a / b)
}

fn div_mode(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    match call.str("rounding_mode")? {
        "" => div(call, metas),
        "floor" => floor_div(call, metas),
        "trunc" => {
            refuse_zero(call, metas)?;
            on_numbers(call, metas, i64::wrapping_div, |a, b| (a / b).trunc(), |a, b| (a / b).trunc())
        }
        _ => Err(OpError::Unsupported("`rounding_mode` is neither `floor` nor `trunc`")),
    }
}

fn floor_div(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    refuse_zero(call, metas)?;
    on_numbers(
        call,
        metas,
        |a, b| if a.wrapping_rem(b) != 0 && (a < 0) != (b < 0) { a.wrapping_div(b) - 1 } else { a.wrapping_div(b) },
        floor_div_f32,
        |a, b| f64::from(floor_div_f32(a as f32, b as f32)),
    )
}

/// Python's `//` on floats as PyTorch computes it: from the remainder, so that it agrees with `remainder`.
fn floor_div_f32(a: f32, b: f32) -> f32 {
    if b == 0.0 {
        return a / b;
    }
    let modulo = a % b;
    let mut quotient = (a - modulo) / b;
    if modulo != 0.0 && (b < 0.0) != (modulo < 0.0) {
        quotient -= 1.0;
    }
    if quotient == 0.0 {
        return 0.0f32.copysign(a / b);
    }
    let floor = quotient.floor();
    if quotient - floor > 0.5 { floor + 1.0 } else { floor }
}

fn remainder(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    refuse_zero(call, metas)?;
    on_numbers(
        call,
        metas,
        |a, b| {
            let modulo = a.wrapping_rem(b);
            if modulo != 0 && (modulo < 0) != (b < 0) { modulo + b } else { modulo }
        },
        |a, b| {
            let modulo = a % b;
            if modulo != 0.0 && (b < 0.0) != (modulo < 0.0) { modulo + b } else { modulo }
        },
        |a, b| {
            let modulo = a % b;
            if modulo != 0.0 && (b < 0.0) != (modulo < 0.0) { modulo + b } else { modulo }
        },
    )
}

fn fmod(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    refuse_zero(call, metas)?;
    on_numbers(call, metas, i64::wrapping_rem, |a, b| a % b, |a, b| a % b)
}

/// Integer division by zero is an error, wherever it stands in the divisor.
fn refuse_zero(call: &Call<'_>, metas: &[Meta]) -> Result<(), OpError> {
    if first(metas).dtype.is_float() {
        return Ok(());
    }
    let [_, divisor] = converted(call, DType::I64)?;
    let has_zero = divisor.iter::<i64>().is_some_and(|mut values| values.any(|value| value == 0));
    if has_zero { Err(OpError::DivisionByZero) } else { Ok(()) }
}

fn pow(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let [_, exponent] = operands(call)?;
    if let TensorOrScalar::Scalar(exponent) = exponent {
        return pow_scalar(call, metas, exponent);
    }
    on_numbers(call, metas, int_pow, f32::powf, f64::powf)
}

/// PyTorch's shortcuts for the exponents that models use.
fn pow_scalar(call: &Call<'_>, metas: &[Meta], exponent: Scalar) -> Result<Outputs, OpError> {
    let negative_int = matches!(exponent, Scalar::Int(n) if n < 0) && !first(metas).dtype.is_float();
    if negative_int {
        return Err(OpError::Unsupported("integers to negative integer powers"));
    }
    match exponent.to::<f64>() {
        2.0 => on_numbers(call, metas, |a, _| a.wrapping_mul(a), |a, _| a * a, |a, _| a * a),
        3.0 => on_numbers(call, metas, |a, _| int_pow(a, 3), |a, _| a * a * a, |a, _| a * a * a),
        0.5 => on_numbers(call, metas, int_pow, |a, _| a.sqrt(), |a, _| a.sqrt()),
        -0.5 => on_numbers(call, metas, int_pow, |a, _| 1.0 / a.sqrt(), |a, _| 1.0 / a.sqrt()),
        -1.0 => on_numbers(call, metas, int_pow, |a, _| 1.0 / a, |a, _| 1.0 / a),
        _ => on_numbers(call, metas, int_pow, f32::powf, f64::powf),
    }
}

/// Wraps like PyTorch; a negative exponent gives 0 but for the bases 1 and -1.
fn int_pow(base: i64, exponent: i64) -> i64 {
    match (base, exponent) {
        (1, _) => 1,
        (-1, n) => {
            if n % 2 == 0 {
                1
            } else {
                -1
            }
        }
        (_, n) if n < 0 => 0,
        (base, n) => {
            let (mut result, mut square, mut n) = (1i64, base, n);
            while n > 0 {
                if n & 1 == 1 {
                    result = result.wrapping_mul(square);
                }
                square = square.wrapping_mul(square);
                n >>= 1;
            }
            result
        }
    }
}

fn maximum(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    // NaN wins, as in PyTorch.
    on_numbers(
        call,
        metas,
        i64::max,
        |a, b| if a > b || a.is_nan() { a } else { b },
        |a, b| if a > b || a.is_nan() { a } else { b },
    )
}

fn minimum(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    on_numbers(
        call,
        metas,
        i64::min,
        |a, b| if a < b || a.is_nan() { a } else { b },
        |a, b| if a < b || a.is_nan() { a } else { b },
    )
}

/// Compares in the promoted dtype.
fn compare(
    call: &Call<'_>,
    ints: impl Fn(i64, i64) -> bool + Sync + Copy,
    floats: impl Fn(f64, f64) -> bool + Sync + Copy,
) -> Result<Outputs, OpError> {
    let width = compute(result_type(&operands(call)?));
    let [left, right] = converted(call, width)?;
    // f32 widens to f64 without changing any comparison.
    one(match width {
        DType::I64 => zip(&left, &right, DType::Bool, move |a, b| u8::from(ints(a, b)))?,
        DType::F64 => zip(&left, &right, DType::Bool, move |a, b| u8::from(floats(a, b)))?,
        _ => zip(&left, &right, DType::Bool, move |a: f32, b: f32| u8::from(floats(f64::from(a), f64::from(b))))?,
    })
}

fn logic(call: &Call<'_>, f: impl Fn(u8, u8) -> u8 + Sync + Copy) -> Result<Outputs, OpError> {
    let [left, right] = converted(call, DType::Bool)?;
    one(zip(&left, &right, DType::Bool, f)?)
}

fn on_bits(call: &Call<'_>, metas: &[Meta], f: impl Fn(i64, i64) -> i64 + Sync + Copy) -> Result<Outputs, OpError> {
    let dtype = first(metas).dtype;
    if dtype.is_float() {
        return Err(OpError::DType { argument: "self", dtype });
    }
    on_numbers(call, metas, f, |a, _| a, |a, _| a)
}

fn infer_where(call: &Call<'_>) -> Result<Metas, OpError> {
    let condition = call.tensor("condition")?;
    if !matches!(condition.dtype(), DType::Bool | DType::U8) {
        return Err(OpError::DType { argument: "condition", dtype: condition.dtype() });
    }
    let operands = operands(call)?;
    let shape = broadcast_shapes(shape_of(&operands[0]), shape_of(&operands[1]))?;
    meta(result_type(&operands), &broadcast_shapes(&shape, condition.shape())?)
}

fn eval_where(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let [left, right] = converted(call, first(metas).dtype)?;
    one(select(call.tensor("condition")?, &left, &right)?)
}

fn infer_masked_fill(call: &Call<'_>) -> Result<Metas, OpError> {
    let (x, mask) = (call.tensor("self")?, call.tensor("mask")?);
    if mask.dtype() != DType::Bool {
        return Err(OpError::DType { argument: "mask", dtype: mask.dtype() });
    }
    meta(x.dtype(), &broadcast_shapes(x.shape(), mask.shape())?)
}

fn masked_fill(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let value = to_tensor(call.tensor_or_scalar("value")?, first(metas).dtype)?;
    if value.ndim() != 0 {
        let expected = "no dimension".to_owned();
        return Err(OpError::Shape { argument: "value", found: value.shape().into(), expected });
    }
    one(select(call.tensor("mask")?, &value, call.tensor("self")?)?)
}

/// The bound `name`, if the operator has it and it is given.
fn bound<'a>(call: &Call<'a>, name: &'static str) -> Result<Option<TensorOrScalar<'a>>, OpError> {
    if call.op().schema().position(name).is_none() || call.is_absent(name) {
        return Ok(None);
    }
    call.tensor_or_scalar(name).map(Some)
}

fn infer_clamp(call: &Call<'_>) -> Result<Metas, OpError> {
    let x = call.tensor("self")?;
    let mut operands = vec![TensorOrScalar::Tensor(x)];
    operands.extend(bound(call, "min")?);
    operands.extend(bound(call, "max")?);
    let shape = operands.iter().try_fold(x.shape().into(), |shape: highroad_tensor::Shape, operand| {
        broadcast_shapes(&shape, shape_of(operand))
    })?;
    meta(result_type(&operands), &shape)
}

fn clamp(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let dtype = first(metas).dtype;
    let width = compute(dtype);
    let mut x = call.tensor("self")?.cast(width)?;
    // `max` wins where the bounds cross, as in PyTorch, so it comes last.
    if let Some(low) = bound(call, "min")? {
        x = bounded(&x, &to_tensor(low, width)?, |a, b| a.max(b), |a, b| if a < b || b.is_nan() { b } else { a })?;
    }
    if let Some(high) = bound(call, "max")? {
        x = bounded(&x, &to_tensor(high, width)?, |a, b| a.min(b), |a, b| if a > b || b.is_nan() { b } else { a })?;
    }
    one(x.cast(dtype)?)
}

fn bounded(
    x: &Tensor,
    bound: &Tensor,
    ints: impl Fn(i64, i64) -> i64 + Sync + Copy,
    floats: impl Fn(f64, f64) -> f64 + Sync + Copy,
) -> Result<Tensor, OpError> {
    Ok(match x.dtype() {
        DType::I64 => zip(x, bound, DType::I64, ints)?,
        DType::F64 => zip(x, bound, DType::F64, floats)?,
        dtype => zip(x, bound, dtype, move |a: f32, b: f32| floats(f64::from(a), f64::from(b)) as f32)?,
    })
}

fn infer_lerp(call: &Call<'_>) -> Result<Metas, OpError> {
    let (x, end) = (call.tensor("self")?, call.tensor("end")?);
    meta(x.dtype(), &broadcast_shapes(x.shape(), end.shape())?)
}

fn lerp(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let weight = call.float("weight")? as f32;
    let (x, end) = (call.tensor("self")?.cast(DType::F32)?, call.tensor("end")?.cast(DType::F32)?);
    let towards = move |a: f32, b: f32| if weight < 0.5 { a + weight * (b - a) } else { b - (b - a) * (1.0 - weight) };
    one(zip(&x, &end, DType::F32, towards)?.cast(first(metas).dtype)?)
}

fn infer_addc(call: &Call<'_>) -> Result<Metas, OpError> {
    let (x, a, b) = (call.tensor("self")?, call.tensor("tensor1")?, call.tensor("tensor2")?);
    meta(x.dtype(), &broadcast_shapes(x.shape(), &broadcast_shapes(a.shape(), b.shape())?)?)
}

fn addc(call: &Call<'_>, metas: &[Meta], f: impl Fn(f32, f32) -> f32 + Sync + Copy) -> Result<Outputs, OpError> {
    let value = call.float("value")? as f32;
    let cast = |name| -> Result<Tensor, OpError> { Ok(call.tensor(name)?.cast(DType::F32)?) };
    let term = map(&zip(&cast("tensor1")?, &cast("tensor2")?, DType::F32, f)?, DType::F32, move |x: f32| x * value)?;
    one(zip(&cast("self")?, &term, DType::F32, |a: f32, b: f32| a + b)?.cast(first(metas).dtype)?)
}
