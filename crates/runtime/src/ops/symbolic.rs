//! Arithmetic on sizes, as torch.export records it: Python's operators, `torch.sym_*` and `math`.

use smallvec::smallvec;

use crate::op::{Call, Declaration, Form, Metas, OpError, Outputs, Samples, Scalar, Tolerance, Value};
use crate::rows::{RowCall, Rows};

pub(super) const OPS: &[Declaration] = &[
    binary("_operator::add(Scalar a, Scalar b) -> Scalar", |call, _| arithmetic(call, i64::checked_add, |a, b| a + b)),
    binary("_operator::sub(Scalar a, Scalar b) -> Scalar", |call, _| arithmetic(call, i64::checked_sub, |a, b| a - b)),
    binary("_operator::mul(Scalar a, Scalar b) -> Scalar", |call, _| arithmetic(call, i64::checked_mul, |a, b| a * b)),
    binary("_operator::floordiv(Scalar a, Scalar b) -> Scalar", |call, _| {
        not_by_zero(call)?;
        arithmetic(call, checked_floor_div, |a, b| (a / b).floor())
    }),
    binary("_operator::mod(Scalar a, Scalar b) -> Scalar", |call, _| {
        not_by_zero(call)?;
        arithmetic(call, |a, b| Some(a - b.checked_mul(checked_floor_div(a, b)?)?), |a, b| a - b * (a / b).floor())
    }),
    binary("_operator::truediv(Scalar a, Scalar b) -> Scalar", |call, _| {
        not_by_zero(call)?;
        float(call.float("a")? / call.float("b")?)
    }),
    binary("_operator::pow(Scalar a, Scalar b) -> Scalar", |call, _| power(call)),
    binary("_operator::eq(Scalar a, Scalar b) -> bool", |call, _| compare(call, |a, b| a == b)),
    binary("_operator::ne(Scalar a, Scalar b) -> bool", |call, _| compare(call, |a, b| a != b)),
    binary("_operator::lt(Scalar a, Scalar b) -> bool", |call, _| compare(call, |a, b| a < b)),
    binary("_operator::le(Scalar a, Scalar b) -> bool", |call, _| compare(call, |a, b| a <= b)),
    binary("_operator::gt(Scalar a, Scalar b) -> bool", |call, _| compare(call, |a, b| a > b)),
    binary("_operator::ge(Scalar a, Scalar b) -> bool", |call, _| compare(call, |a, b| a >= b)),
    binary("_operator::and_(bool a, bool b) -> bool", |call, _| one(Value::Bool(call.bool("a")? & call.bool("b")?))),
    binary("_operator::or_(bool a, bool b) -> bool", |call, _| one(Value::Bool(call.bool("a")? | call.bool("b")?))),
    binary("torch::sym_max(Scalar a, Scalar b) -> Scalar", |call, _| arithmetic(call, |a, b| Some(a.max(b)), f64::max)),
    binary("torch::sym_min(Scalar a, Scalar b) -> Scalar", |call, _| arithmetic(call, |a, b| Some(a.min(b)), f64::min)),
    binary("_operator::neg(Scalar a) -> Scalar", |call, _| match call.scalar("a")? {
        Scalar::Float(a) => float(-a),
        a => one(Value::Int(a.to_i64().checked_neg().ok_or(OpError::Overflow)?)),
    }),
    binary("torch::sym_not(bool a) -> bool", |call, _| one(Value::Bool(!call.bool("a")?))),
    binary("torch::sym_float(Scalar a) -> float", |call, _| float(call.float("a")?)),
    binary("torch::sym_int(Scalar a) -> int", |call, _| integer(call.float("a")?.trunc())),
    binary("math::trunc(Scalar a) -> int", |call, _| integer(call.float("a")?.trunc())),
    binary("math::floor(Scalar a) -> int", |call, _| integer(call.float("a")?.floor())),
    binary("math::ceil(Scalar a) -> int", |call, _| integer(call.float("a")?.ceil())),
    binary("_operator::round(Scalar a) -> int", |call, _| integer(call.float("a")?.round_ties_even())),
    Declaration {
        rows: |call| Ok(size_rows(call)),
        ..binary("aten::sym_size.int(Tensor self, int dim) -> SymInt", |call, _| sym_size(call))
    },
    Declaration {
        rows: |_| Ok(Rows::FromSize),
        ..binary("aten::sym_numel(Tensor self) -> SymInt", |call, _| {
            one(Value::Int(i64::try_from(call.tensor("self")?.numel()).map_err(|_| OpError::Overflow)?))
        })
    },
];

const fn binary(schema: &'static str, eval: crate::op::Eval) -> Declaration {
    Declaration {
        schema,
        form: Form::Functional,
        infer: |_| Ok(Metas::new()),
        eval,
        prepare: None,
        rows: |_| Ok(Rows::FromSize),
        dtypes: &[],
        tolerance: Tolerance::EXACT,
        samples: Samples::Handwritten,
    }
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
        (a @ Scalar::Float(_), b) | (a, b @ Scalar::Float(_)) => float(on_floats(a.to_f64(), b.to_f64())),
        (a, b) => one(Value::Int(on_ints(a.to_i64(), b.to_i64()).ok_or(OpError::Overflow)?)),
    }
}

/// Python's `**`: an integer where both are integers and the exponent is not negative.
fn power(call: &Call<'_>) -> Result<Outputs, OpError> {
    match (call.scalar("a")?, call.scalar("b")?) {
        (Scalar::Int(a), Scalar::Int(b)) if b >= 0 => {
            let exponent = u32::try_from(b).map_err(|_| OpError::Overflow)?;
            one(Value::Int(a.checked_pow(exponent).ok_or(OpError::Overflow)?))
        }
        (a, b) => float(a.to_f64().powf(b.to_f64())),
    }
}

fn compare(call: &Call<'_>, holds: fn(f64, f64) -> bool) -> Result<Outputs, OpError> {
    let (a, b) = (call.scalar("a")?, call.scalar("b")?);
    // Sizes stay below 2^53, so that comparing as floats is exact.
    one(Value::Bool(holds(a.to_f64(), b.to_f64())))
}

fn not_by_zero(call: &Call<'_>) -> Result<(), OpError> {
    if call.scalar("b")?.to_f64() == 0.0 { Err(OpError::DivisionByZero) } else { Ok(()) }
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
