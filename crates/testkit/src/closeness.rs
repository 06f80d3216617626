//! How far two tensors are from each other.

use highroad_tensor::{DType, Tensor};

/// Whether `|found - expected| <= absolute + relative * |expected|` for every element; NaN is close to NaN alone. The
/// error says what differs, in words.
pub fn check_close(found: &Tensor, expected: &Tensor, absolute: f64, relative: f64) -> Result<(), String> {
    if (found.dtype(), found.shape()) != (expected.dtype(), expected.shape()) {
        return Err(format!("found {found:?}, expected {expected:?}"));
    }
    let pairs = values(found).into_iter().zip(values(expected));
    for (at, (found, expected)) in pairs.enumerate() {
        let is_same = found == expected || (found.is_nan() && expected.is_nan());
        let is_close = (found - expected).abs() <= absolute + relative * expected.abs();
        if !(is_same || is_close && expected.is_finite()) {
            return Err(format!("element {at} is {found:e}, expected {expected:e}"));
        }
    }
    Ok(())
}

/// Whether dtype, shape and every bit agree, whatever the strides.
pub fn same_bits(left: &Tensor, right: &Tensor) -> bool {
    (left.dtype(), left.shape()) == (right.dtype(), right.shape()) && bytes(left) == bytes(right)
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.cast(DType::F64).expect("every dtype widens").to_vec().expect("just converted")
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    let tensor = tensor.contiguous();
    let start = tensor.offset() * tensor.dtype().size_bytes();
    tensor.storage().bytes()[start..][..tensor.numel() * tensor.dtype().size_bytes()].to_vec()
}
