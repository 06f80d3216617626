//! The operators, one table a family.
//!
//! To add one, add a row to the table of its family (or a table below): the generic tests and the golden generator
//! find it there.

use highroad_tensor::{Shape, Tensor};
use smallvec::smallvec;

use crate::op::{Declaration, Meta, Metas, OpError, Outputs, Value};

mod attention;
mod binary;
mod convert;
mod convolution;
mod create;
mod fused;
mod index;
mod linear;
mod normalise;
mod pool;
mod promote;
mod reduce;
mod softmax;
mod symbolic;
mod unary;
mod view;

/// Every table under the name of its family.
pub(crate) const TABLES: &[(&str, &[Declaration])] = &[
    ("symbolic", symbolic::OPS),
    ("unary", unary::OPS),
    ("binary", binary::OPS),
    ("convert", convert::OPS),
    ("create", create::OPS),
    ("view", view::OPS),
    ("index", index::OPS),
    ("reduce", reduce::OPS),
    ("softmax", softmax::OPS),
    ("linear", linear::OPS),
    ("attention", attention::OPS),
    ("normalise", normalise::OPS),
    ("convolution", convolution::OPS),
    ("pool", pool::OPS),
    ("fused", fused::OPS),
];

/// The dimension `dim` of a tensor of `ndim` dimensions, counted from the front; a tensor without dimensions has a
/// dimension 0 and -1, as in PyTorch.
pub(crate) fn dim(dim: i64, ndim: usize) -> Result<usize, OpError> {
    let bound = i64::try_from(ndim.max(1)).map_err(|_| OpError::Overflow)?;
    let from_front = if dim < 0 { dim.saturating_add(bound) } else { dim };
    if (0..bound).contains(&from_front) { Ok(from_front as usize) } else { Err(OpError::Dim { dim, ndim }) }
}

/// Several dimensions, each at most once; no dimensions or none given mean all of them.
pub(crate) fn dims(dims: Option<&[i64]>, ndim: usize) -> Result<Shape, OpError> {
    let Some(dims) = dims.filter(|dims| !dims.is_empty()) else { return Ok((0..ndim).collect()) };
    let mut found = Shape::new();
    for &each in dims {
        let at = dim(each, ndim)?;
        if found.contains(&at) {
            return Err(OpError::Dim { dim: each, ndim });
        }
        found.push(at);
    }
    // A tensor without dimensions has none to give.
    found.retain(|at| *at < ndim);
    Ok(found)
}

/// Sizes given as integers; a negative one is an error.
pub(crate) fn sizes(sizes: &[i64]) -> Result<Shape, OpError> {
    sizes.iter().map(|&size| usize::try_from(size).map_err(|_| OpError::Size(size))).collect()
}

/// One result as inference says it.
pub(crate) fn meta(dtype: highroad_tensor::DType, shape: &[usize]) -> Result<Metas, OpError> {
    Ok(smallvec![Meta::new(dtype, shape)])
}

/// One result.
pub(crate) fn one(tensor: Tensor) -> Result<Outputs, OpError> {
    Ok(smallvec![Value::Tensor(tensor)])
}

/// The first meta; evaluation is called with what inference said.
pub(crate) fn first(metas: &[Meta]) -> &Meta {
    metas.first().expect("inference named a result")
}
