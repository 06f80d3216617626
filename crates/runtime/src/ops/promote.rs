//! Type promotion: the rules of `torch.result_type`.

use highroad_tensor::{DType, Scalar, Tensor};

use crate::op::{OpError, TensorOrScalar};

/// The dtype in which operands meet. Tensors with dimensions decide; tensors without any and Python numbers only
/// widen the kind (bool, integer, float), never the width within it.
pub(crate) fn result_type(operands: &[TensorOrScalar<'_>]) -> DType {
    let mut ranks: [Option<DType>; 3] = [None; 3];
    for operand in operands {
        let (rank, dtype) = match operand {
            TensorOrScalar::Tensor(tensor) => (usize::from(tensor.ndim() == 0), tensor.dtype()),
            TensorOrScalar::Scalar(scalar) => (2, scalar_dtype(*scalar)),
        };
        ranks[rank] = Some(ranks[rank].map_or(dtype, |so_far| promote(so_far, dtype)));
    }
    ranks.into_iter().flatten().reduce(combine).unwrap_or(DType::F32)
}

/// The dtype PyTorch gives a tensor made of this number.
pub(crate) fn scalar_dtype(scalar: Scalar) -> DType {
    match scalar {
        Scalar::Bool(_) => DType::Bool,
        Scalar::Int(_) => DType::I64,
        Scalar::Float(_) => DType::F32,
    }
}

/// `lower` widens `higher` only to another kind.
fn combine(higher: DType, lower: DType) -> DType {
    let is_same_kind_or_narrower =
        higher.is_float() || (higher.is_int() && !lower.is_float()) || (higher == DType::Bool && lower == DType::Bool);
    if is_same_kind_or_narrower { higher } else { promote(higher, lower) }
}

/// The smallest dtype that holds both, as `torch.promote_types` says.
pub(crate) fn promote(a: DType, b: DType) -> DType {
    use DType::{BF16, Bool, F16, F32, F64, I8, I16, U8};
    match (a, b) {
        _ if a == b => a,
        (Bool, other) | (other, Bool) => other,
        (F16, BF16) | (BF16, F16) => F32,
        (F64, _) | (_, F64) => F64,
        (F32, _) | (_, F32) => F32,
        (half @ (F16 | BF16), _) | (_, half @ (F16 | BF16)) => half,
        (U8, I8) | (I8, U8) => I16,
        (U8, wider) | (wider, U8) => wider,
        _ => {
            if a.size_bytes() >= b.size_bytes() {
                a
            } else {
                b
            }
        }
    }
}

/// Floats stay, everything else becomes f32, PyTorch's default.
pub(crate) fn to_float(dtype: DType) -> DType {
    if dtype.is_float() { dtype } else { DType::F32 }
}

/// The dtype that arithmetic on `dtype` runs in: narrower types widen, and results are rounded or wrapped once.
pub(crate) fn compute(dtype: DType) -> DType {
    match dtype {
        DType::F64 => DType::F64,
        DType::F32 | DType::F16 | DType::BF16 => DType::F32,
        _ => DType::I64,
    }
}

/// The operand as a tensor of `dtype`.
pub(crate) fn to_tensor(operand: TensorOrScalar<'_>, dtype: DType) -> Result<Tensor, OpError> {
    Ok(match operand {
        TensorOrScalar::Tensor(tensor) => tensor.cast(dtype)?,
        TensorOrScalar::Scalar(scalar) => Tensor::full(dtype, &[], scalar)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(operands: &[(&Tensor, bool)], scalar: Option<Scalar>) -> DType {
        let tensors = operands.iter().map(|(tensor, _)| TensorOrScalar::Tensor(tensor));
        let all: Vec<_> = tensors.chain(scalar.map(TensorOrScalar::Scalar)).collect();
        result_type(&all)
    }

    fn zeros(dtype: DType, shape: &[usize]) -> Tensor {
        Tensor::zeros(dtype, shape).expect("small")
    }

    #[test]
    fn a_tensor_without_dimensions_widens_the_kind_and_not_the_width() {
        let (row, point) = (zeros(DType::F32, &[2]), zeros(DType::F64, &[]));
        assert_eq!(result(&[(&row, true), (&point, true)], None), DType::F32);
        let (row, point) = (zeros(DType::I32, &[2]), zeros(DType::I64, &[]));
        assert_eq!(result(&[(&row, true), (&point, true)], None), DType::I32);
        let (row, point) = (zeros(DType::I64, &[2]), zeros(DType::F64, &[]));
        assert_eq!(result(&[(&row, true), (&point, true)], None), DType::F64);
    }

    #[test]
    fn a_python_number_is_weaker_than_any_tensor() {
        let point = zeros(DType::I32, &[]);
        assert_eq!(result(&[(&point, true)], Some(Scalar::Int(3))), DType::I32);
        assert_eq!(result(&[(&point, true)], Some(Scalar::Float(0.5))), DType::F32);
        assert_eq!(result(&[(&zeros(DType::Bool, &[2]), true)], Some(Scalar::Int(3))), DType::I64);
        assert_eq!(result(&[(&zeros(DType::F16, &[2]), true)], Some(Scalar::Float(3.0))), DType::F16);
    }

    #[test]
    fn unsigned_and_signed_bytes_meet_in_sixteen_bits() {
        assert_eq!(promote(DType::U8, DType::I8), DType::I16);
        assert_eq!(promote(DType::U8, DType::I32), DType::I32);
        assert_eq!(promote(DType::F16, DType::I64), DType::F16);
        assert_eq!(promote(DType::F16, DType::BF16), DType::F32);
    }
}
