//! Products of matrices.

use highroad_tensor::{DType, LinearWeights, Scalar, Shape, Tensor, Unary, broadcast_shapes, linear, matmul, zip};

use super::promote::compute;
use super::{first, meta, one};
use crate::op::{Call, Declaration, FLOATS, Meta, Metas, OpError, Outputs, Prepared, Tolerance};
use crate::rows;

pub(super) const OPS: &[Declaration] = &[
    Declaration::new(
        "aten::linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor",
        infer_linear,
        eval_linear,
    )
    .prepare(pack_linear)
    .rows(|call| rows::leading(call, "input", 1))
    .within(Tolerance::SUM)
    .dtypes(FLOATS),
    product("aten::matmul(Tensor self, Tensor other) -> Tensor", infer_matmul),
    product("aten::mm(Tensor self, Tensor mat2) -> Tensor", |call| {
        with_ndim(call, &[("self", 2), ("mat2", 2)])?;
        infer_matmul(call)
    }),
    product("aten::bmm(Tensor self, Tensor mat2) -> Tensor", |call| {
        with_ndim(call, &[("self", 3), ("mat2", 3)])?;
        infer_matmul(call)
    }),
    product("aten::mv(Tensor self, Tensor vec) -> Tensor", |call| {
        with_ndim(call, &[("self", 2), ("vec", 1)])?;
        infer_matmul(call)
    }),
    product("aten::dot(Tensor self, Tensor tensor) -> Tensor", |call| {
        with_ndim(call, &[("self", 1), ("tensor", 1)])?;
        infer_matmul(call)
    }),
    sum_with_product("aten::addmm(Tensor self, Tensor mat1, Tensor mat2, *, Scalar beta=1, Scalar alpha=1) -> Tensor"),
    sum_with_product(
        "aten::baddbmm(Tensor self, Tensor batch1, Tensor batch2, *, Scalar beta=1, Scalar alpha=1) -> Tensor",
    ),
];

const fn product(schema: &'static str, infer: crate::op::Infer) -> Declaration {
    Declaration::new(schema, infer, |call, _| {
        let [left, right] = factors(call)?;
        one(matmul(left, right)?)
    })
    .rows(rows::multiplied)
    .within(Tolerance::SUM)
    .dtypes(FLOATS)
}

const fn sum_with_product(schema: &'static str) -> Declaration {
    Declaration::new(schema, infer_add_product, eval_add_product)
        .rows(rows::multiplied)
        .in_place()
        .within(Tolerance::SUM)
        .dtypes(FLOATS)
}

fn float(argument: &'static str, tensor: &Tensor) -> Result<(), OpError> {
    if tensor.dtype().is_float() { Ok(()) } else { Err(OpError::DType { argument, dtype: tensor.dtype() }) }
}

pub(super) fn infer_linear(call: &Call<'_>) -> Result<Metas, OpError> {
    let (x, weight) = (call.tensor("input")?, call.tensor("weight")?);
    float("input", x)?;
    let (n_out, n_in) = match *weight.shape() {
        [n_out, n_in] => (Some(n_out), n_in),
        [n_in] => (None, n_in),
        _ => return Err(wrong_shape("weight", weight, "1 or 2 dimensions".to_owned())),
    };
    let Some((&width, lead)) = x.shape().split_last() else {
        return Err(wrong_shape("input", x, "at least 1 dimension".to_owned()));
    };
    if width != n_in {
        return Err(wrong_shape("input", x, format!("a last dimension of {n_in}")));
    }
    if let Some(dtype) =
        [Some(weight), call.optional_tensor("bias")?].into_iter().flatten().map(Tensor::dtype).find(|&d| d != x.dtype())
    {
        return Err(OpError::DType { argument: "weight", dtype });
    }
    if let Some(bias) = call.optional_tensor("bias")?
        && bias.shape() != n_out.as_slice()
    {
        return Err(wrong_shape("bias", bias, format!("{:?}", n_out.as_slice())));
    }
    let shape: Shape = lead.iter().copied().chain(n_out).collect();
    meta(x.dtype(), &shape)
}

fn wrong_shape(argument: &'static str, tensor: &Tensor, expected: String) -> OpError {
    OpError::Shape { argument, found: tensor.shape().into(), expected }
}

/// The packed weight, when weight and bias are constants; the unpacked pages are given back.
pub(super) fn pack_linear(call: &Call<'_>) -> Option<Prepared> {
    if !call.is_constant("weight") || !call.is_constant("bias") {
        return None;
    }
    let (weight, bias) = (call.tensor("weight").ok()?, call.optional_tensor("bias").ok()?);
    if weight.dtype() != DType::F32 || weight.ndim() != 2 {
        return None;
    }
    let packed = LinearWeights::new(weight, bias).ok()?;
    release(weight);
    Some(Box::new(packed))
}

/// Gives back the pages of a mapped weight that was packed: it is not read again.
pub(super) fn release(weight: &Tensor) {
    weight.storage().release();
}

fn eval_linear(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let x = call.tensor("input")?;
    if let Some(weights) = call.prepared::<LinearWeights>() {
        return one(linear(x, weights, Unary::Identity)?);
    }
    let (weight, bias) = (call.tensor("weight")?, call.optional_tensor("bias")?);
    if x.dtype() == DType::F32 && weight.ndim() == 2 {
        return one(linear(x, &LinearWeights::new(weight, bias)?, Unary::Identity)?);
    }
    let weight = if weight.ndim() == 2 { weight.transpose(0, 1)? } else { weight.clone() };
    let product = matmul(x, &weight)?;
    match bias {
        Some(bias) => one(combined(bias, 1.0, &product, 1.0)?.cast(first(metas).dtype)?),
        None => one(product),
    }
}

/// The operands under whatever names the schema gives them.
fn factors<'a>(call: &Call<'a>) -> Result<[&'a Tensor; 2], OpError> {
    const NAMES: [[&str; 2]; 6] = [
        ["self", "other"],
        ["self", "mat2"],
        ["self", "vec"],
        ["self", "tensor"],
        ["mat1", "mat2"],
        ["batch1", "batch2"],
    ];
    let has = |name: &str| call.op().schema().position(name).is_some();
    let [left, right] =
        NAMES.into_iter().rev().find(|[l, r]| has(l) && has(r)).ok_or(OpError::Unsupported("two factors"))?;
    Ok([call.tensor(left)?, call.tensor(right)?])
}

fn with_ndim(call: &Call<'_>, wanted: &[(&'static str, usize)]) -> Result<(), OpError> {
    for &(argument, ndim) in wanted {
        let tensor = call.tensor(argument)?;
        if tensor.ndim() != ndim {
            return Err(wrong_shape(argument, tensor, format!("{ndim} dimensions")));
        }
    }
    Ok(())
}

fn infer_matmul(call: &Call<'_>) -> Result<Metas, OpError> {
    let [left, right] = factors(call)?;
    if left.dtype() != right.dtype() || left.dtype() == DType::Bool {
        return Err(OpError::DType { argument: "self", dtype: left.dtype() });
    }
    if left.ndim() >= 3
        && right.ndim() >= 3
        && call.op().name() == "aten.bmm.default"
        && left.shape()[0] != right.shape()[0]
    {
        return Err(OpError::Broadcast { left: left.shape().into(), right: right.shape().into() });
    }
    meta(left.dtype(), &product_shape(left, right)?)
}

fn product_shape(left: &Tensor, right: &Tensor) -> Result<Shape, OpError> {
    let error = || OpError::Broadcast { left: left.shape().into(), right: right.shape().into() };
    let (l, r) = (left.shape(), right.shape());
    let (&depth, rows) = l.split_last().ok_or_else(error)?;
    let (right_depth, columns, right_lead) = match r {
        [] => return Err(error()),
        [k] => (*k, None, &[][..]),
        [lead @ .., k, n] => (*k, Some(*n), lead),
    };
    if depth != right_depth {
        return Err(error());
    }
    let (left_lead, row) = match rows {
        [] => (&[][..], None),
        [lead @ .., m] => (lead, Some(*m)),
    };
    let mut shape = broadcast_shapes(left_lead, right_lead)?;
    shape.extend(row);
    shape.extend(columns);
    Ok(shape)
}

fn infer_add_product(call: &Call<'_>) -> Result<Metas, OpError> {
    let [left, right] = factors(call)?;
    let x = call.tensor("self")?;
    float("self", x)?;
    if left.dtype() != x.dtype() || right.dtype() != x.dtype() {
        return Err(OpError::DType { argument: "self", dtype: x.dtype() });
    }
    let ndim = if call.op().schema().position("mat1").is_some() { 2 } else { 3 };
    if left.ndim() != ndim || right.ndim() != ndim {
        return Err(wrong_shape("mat2", right, format!("{ndim} dimensions")));
    }
    let shape = product_shape(left, right)?;
    x.expand(&shape)?;
    meta(x.dtype(), &shape)
}

fn eval_add_product(call: &Call<'_>, metas: &[Meta]) -> Result<Outputs, OpError> {
    let [left, right] = factors(call)?;
    let (beta, alpha) = (call.float("beta")?, call.float("alpha")?);
    one(combined(call.tensor("self")?, beta, &matmul(left, right)?, alpha)?.cast(first(metas).dtype)?)
}

/// `beta * x + alpha * product`; `x` does not count at all where `beta` is 0, as in PyTorch.
fn combined(x: &Tensor, beta: f64, product: &Tensor, alpha: f64) -> Result<Tensor, OpError> {
    let width = compute(product.dtype());
    let (x, product) = (x.cast(width)?, product.cast(width)?);
    let x = if beta == 0.0 { Tensor::full(width, &[], Scalar::Int(0))? } else { x };
    Ok(match width {
        DType::F64 => zip(&x, &product, width, move |x: f64, p: f64| beta * x + alpha * p)?,
        _ => {
            let (beta, alpha) = (beta as f32, alpha as f32);
            zip(&x, &product, width, move |x: f32, p: f32| beta * x + alpha * p)?
        }
    })
}
