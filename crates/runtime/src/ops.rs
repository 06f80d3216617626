//! The operators, one table a family.

use crate::op::{Declaration, OpError};

mod symbolic;

/// Every table under the name of its family.
pub(crate) const TABLES: &[(&str, &[Declaration])] = &[("symbolic", symbolic::OPS)];

/// The dimension `dim` of a tensor of `ndim` dimensions, counted from the front; a tensor without dimensions has a
/// dimension 0 and -1, as in PyTorch.
pub(crate) fn dim(dim: i64, ndim: usize) -> Result<usize, OpError> {
    let bound = i64::try_from(ndim.max(1)).map_err(|_| OpError::Overflow)?;
    let from_front = if dim < 0 { dim + bound } else { dim };
    if (0..bound).contains(&from_front) { Ok(from_front as usize) } else { Err(OpError::Dim { dim, ndim }) }
}
