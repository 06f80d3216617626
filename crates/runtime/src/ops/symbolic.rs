//! Arithmetic on sizes, as torch.export records it: Python's operators, `torch.sym_*` and `math`.

use highroad_tensor::Scalar;
use smallvec::smallvec;

use crate::op::{Call, Declaration, Eval, Metas, OpError, Outputs, Value};
use crate::rows::{RowCall, Rows};

pub(super) const OPS: &[Declaration] = &[
    sizes("_operator::add(Scalar a, Scalar b) -> Scalar", |call, _| arithmetic(call, i64::checked_add, |a, b| a + b)),
    sizes("_operator::sub(Scalar a, Scalar b) -> Scalar", |call, _| arithmetic(call, i64::checked_sub, |a, b| a - b)),
    sizes("_operator::mul(Scalar a, Scalar b) -> Scalar", |call, _| arithmetic(call, i64::checked_mul, |a, b| a * b)),
    sizes("_operator::floordiv(Scalar a, Scalar b) -> Scalar", |call, _| {
        not_by_zero(call)?;
        arithmetic(call, checked_floor_div, |a, b| (a / b).floor())
    }),
    sizes("_operator::mod(Scalar a, Scalar b) -> Scalar", |call, _| {
        not_by_zero(call)?;
        arithmetic(call, |a, b| Some(a - b.checked_mul(checked_floor_div(a, b)?)?), |a, b| a - b * (a / b).floor())
    }),
    sizes("_operator::truediv(Scalar a, Scalar b) -> Scalar", |call, _| {
        not_by_zero(call)?;
        float(call.float("a")? / call.float("b")?)
    }),
    sizes("_operator::pow(Scalar a, Scalar b) -> Scalar", |call, _| power(call)),
    sizes("_operator::eq(Scalar a, Scalar b) -> bool", |call, _| compare(call, |a, b| a == b)),
    sizes("_operator::ne(Scalar a, Scalar b) -> bool", |call, _| compare(call, |a, b| a != b)),
    sizes("_operator::lt(Scalar a, Scalar b) -> bool", |call, _| compare(call, |a, b| a < b)),
    sizes("_operator::le(Scalar a, Scalar b) -> bool", |call, _| compare(call, |a, b| a <= b)),
    sizes("_operator::gt(Scalar a, Scalar b) -> bool", |call, _| compare(call, |a, b| a > b)),
    sizes("_operator::ge(Scalar a, Scalar b) -> bool", |call, _| compare(call, |a, b| a >= b)),
    sizes("_operator::and_(bool a, bool b) -> bool", |call, _| one(Value::Bool(call.bool("a")? & call.bool("b")?))),
    sizes("_operator::or_(bool a, bool b) -> bool", |call, _| one(Value::Bool(call.bool("a")? | call.bool("b")?))),
    sizes("torch::sym_max(Scalar a, Scalar b) -> Scalar", |call, _| arithmetic(call, |a, b| Some(a.max(b)), f64::max)),
    sizes("torch::sym_min(Scalar a, Scalar b) -> Scalar", |call, _| arithmetic(call, |a, b| Some(a.min(b)), f64::min)),
    sizes("_operator::neg(Scalar a) -> Scalar", |call, _| match call.scalar("a")? {
        Scalar::Float(a) => float(-a),
        a => one(Value::Int(a.to::<i64>().checked_neg().ok_or(OpError::Overflow)?)),
    }),
    sizes("torch::sym_not(bool a) -> bool", |call, _| one(Value::Bool(!call.bool("a")?))),
    sizes("torch::sym_float(Scalar a) -> float", |call, _| float(call.float("a")?)),
    sizes("torch::sym_int(Scalar a) -> int", |call, _| integer(call.float("a")?.trunc())),
    sizes("math::trunc(Scalar a) -> int", |call, _| integer(call.float("a")?.trunc())),
    sizes("math::floor(Scalar a) -> int", |call, _| integer(call.float("a")?.floor())),
    sizes("math::ceil(Scalar a) -> int", |call, _| integer(call.float("a")?.ceil())),
    sizes("_operator::round(Scalar a) -> int", |call, _| integer(call.float("a")?.round_ties_even())),
    sizes("aten::sym_size.int(Tensor self, int dim) -> SymInt", |call, _| sym_size(call))
        .rows(|call| Ok(size_rows(call))),
    sizes("aten::sym_numel(Tensor self) -> SymInt", |call, _| {
        one(Value::Int(i64::try_from(call.tensor("self")?.numel()).map_err(|_| OpError::Overflow)?))
    }),
];

const fn sizes(schema: &'static str, eval: Eval) -> Declaration {
    Declaration::new(schema, |_| Ok(Metas::new()), eval).rows(|_| Ok(Rows::FromSize)).dtypes(&[]).handwritten()
}

fn size_rows(call: &RowCall<'_>) -> Rows {
    let sizes = call.sizes("self").unwrap_or(&[]);
    match call.dim("dim", sizes.len()) {
        Ok(dim) if call.is_batch(&sizes[dim]) => Rows::Size,
        Ok(_) => Rows::Uniform,
        Err(_) => Rows::FromSize,
    }
}

fn sym_size(call: &Call<'_>) -> Result<Outputs, OpError> {
    let tensor = call.tensor("self")?;
    let dim = super::dim(call.int("dim")?, tensor.ndim())?;
    one(Value::Int(i64::try_from(tensor.shape()[dim]).map_err(|_| OpError::Overflow)?))
}

fn arithmetic(
    call: &Call<'_>,
    on_ints: fn(i64, i64) -> Option<i64>,
    on_floats: fn(f64, f64) -> f64,
) -> Result<Outputs, OpError> {
    match (call.scalar("a")?, call.scalar("b")?) {
        (a @ Scalar::Float(_), b) | (a, b @ Scalar::Float(_)) => float(on_floats(a.to::<f64>(), b.to::<f64>())),
        (a, b) => one(Value::Int(on_ints(a.to::<i64>(), b.to::<i64>()).ok_or(OpError::Overflow)?)),
    }
}

/// Python's `**`: an integer where both are integers and the exponent is not negative.
fn power(call: &Call<'_>) -> Result<Outputs, OpError> {
    match (call.scalar("a")?, call.scalar("b")?) {
        (Scalar::Int(a), Scalar::Int(b)) if b >= 0 => {
            let exponent = u32::try_from(b).map_err(|_| OpError::Overflow)?;
            one(Value::Int(a.checked_pow(exponent).ok_or(OpError::Overflow)?))
        }
        (a, b) => float(a.to::<f64>().powf(b.to::<f64>())),
    }
}

fn compare(call: &Call<'_>, holds: fn(f64, f64) -> bool) -> Result<Outputs, OpError> {
    let (a, b) = (call.scalar("a")?, call.scalar("b")?);
    // Sizes stay below 2^53, so that comparing as floats is exact.
    one(Value::Bool(holds(a.to::<f64>(), b.to::<f64>())))
}

fn not_by_zero(call: &Call<'_>) -> Result<(), OpError> {
    if call.scalar("b")?.to::<f64>() == 0.0 { Err(OpError::DivisionByZero) } else { Ok(()) }
}

fn checked_floor_div(a: i64, b: i64) -> Option<i64> {
    let quotient = a.checked_div(b)?;
    Some(if a % b != 0 && (a < 0) != (b < 0) { quotient - 1 } else { quotient })
}

fn integer(value: f64) -> Result<Outputs, OpError> {
    if value.abs() < 9.2e18 { one(Value::Int(value as i64)) } else { Err(OpError::Overflow) }
}

fn float(value: f64) -> Result<Outputs, OpError> {
    one(Value::Float(value))
}

fn one(value: Value) -> Result<Outputs, OpError> {
    Ok(smallvec![value])
}
