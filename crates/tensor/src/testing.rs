//! What the tests of kernels share.

use crate::{DType, Tensor};

/// Values in -1..1 that depend on `seed` only.
pub(crate) fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let n: usize = shape.iter().product();
    let data: Vec<f32> = (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::from_slice(&data, shape).unwrap()
}

/// Largest absolute difference of two tensors of one shape, in f64; infinite where one is NaN and the other is not.
pub(crate) fn worst_difference(left: &Tensor, right: &Tensor) -> f64 {
    assert_eq!(left.shape(), right.shape());
    let values = |x: &Tensor| x.cast(DType::F64).unwrap().to_vec::<f64>().unwrap();
    let difference = |(a, b): (f64, f64)| match (a.is_nan(), b.is_nan()) {
        (true, true) => 0.0,
        (false, false) if a == b => 0.0,
        (false, false) => (a - b).abs(),
        _ => f64::INFINITY,
    };
    values(left).into_iter().zip(values(right)).map(difference).fold(0.0, f64::max)
}
