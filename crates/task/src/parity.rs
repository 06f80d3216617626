use highroad_package::VerifiedPackage;
use highroad_runtime::{Program, RunOptions};
use highroad_tensor::{DType, Storage, Tensor};
use safetensors::{Dtype, SafeTensors};

use crate::TaskError;

/// How well a program reproduced its parity cases.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ParityReport {
    /// Number of cases, all of them in agreement.
    pub n_cases: u32,
    /// Largest relative root mean square of a case's output.
    pub worst_relative_rms: f64,
}

pub(crate) fn check(
    program: &Program,
    package: &VerifiedPackage,
    options: &RunOptions,
) -> Result<ParityReport, TaskError> {
    let parity = &package.manifest().parity;
    let bytes = package.read(&parity.file)?;
    let cases = SafeTensors::deserialize(&bytes)
        .map_err(|error| TaskError::Parity { case_idx: 0, reason: format!("`{}`: {error}", parity.file) })?;
    let mut worst_relative_rms = 0.0f64;
    for case_idx in 0..parity.n_cases {
        let fail = |reason: String| TaskError::Parity { case_idx, reason };
        let read = |kind: &str, n: usize| -> Result<Vec<Tensor>, TaskError> {
            (0..n).map(|i| tensor(&cases, &format!("{case_idx}.{kind}.{i}")).map_err(fail)).collect()
        };
        let expected = read("output", program.outputs().len())?;
        let found = program.run(&read("input", program.inputs().len())?, options)?;
        for (found, expected) in found.iter().zip(&expected) {
            let rms = relative_rms(found, expected).ok_or_else(|| fail(format!("{found:?} is not {expected:?}")))?;
            let limit = parity.check.relative_rms;
            // `<=` so that a NaN is a mismatch.
            if !(rms <= limit) {
                return Err(fail(format!("relative rms {rms:.3e} is over {limit:.1e}")));
            }
            worst_relative_rms = worst_relative_rms.max(rms);
        }
    }
    Ok(ParityReport { n_cases: parity.n_cases, worst_relative_rms })
}

fn tensor(cases: &SafeTensors<'_>, name: &str) -> Result<Tensor, String> {
    let view = cases.tensor(name).map_err(|error| format!("`{name}`: {error}"))?;
    let dtype = match view.dtype() {
        Dtype::BOOL => DType::Bool,
        Dtype::U8 => DType::U8,
        Dtype::I8 => DType::I8,
        Dtype::I16 => DType::I16,
        Dtype::I32 => DType::I32,
        Dtype::I64 => DType::I64,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        other => return Err(format!("`{name}` is {other:?}, which no program takes")),
    };
    let mut strides = vec![1; view.shape().len()];
    for dim in (1..strides.len()).rev() {
        strides[dim - 1] = strides[dim] * view.shape()[dim].max(1);
    }
    Tensor::from_storage(Storage::copy_of(view.data()), dtype, view.shape(), &strides, 0)
        .map_err(|error| format!("`{name}`: {error}"))
}

/// Root mean square of the difference over that of `expected`; 0 where both are equal. `None` if dtype or shape differ.
fn relative_rms(found: &Tensor, expected: &Tensor) -> Option<f64> {
    if found.dtype() != expected.dtype() || found.shape() != expected.shape() {
        return None;
    }
    let (found, expected) = (found.cast(DType::F64).ok()?, expected.cast(DType::F64).ok()?);
    let (found, expected) = (found.to_vec::<f64>()?, expected.to_vec::<f64>()?);
    let difference: f64 = found.iter().zip(&expected).map(|(a, b)| (a - b) * (a - b)).sum();
    let reference: f64 = expected.iter().map(|b| b * b).sum();
    // Against zeros there is no relative difference, only an absolute one.
    Some(if difference == 0.0 { 0.0 } else { (difference / reference.max(f64::MIN_POSITIVE)).sqrt() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_rms_is_over_the_reference() {
        let tensor = |values: &[f32]| Tensor::from_slice(values, &[2]).unwrap();
        assert_eq!(relative_rms(&tensor(&[1.0, 2.0]), &tensor(&[1.0, 2.0])), Some(0.0));
        assert_eq!(relative_rms(&tensor(&[3.0, 8.0]), &tensor(&[3.0, 4.0])), Some(0.8));
        assert!(relative_rms(&tensor(&[f32::NAN, 2.0]), &tensor(&[1.0, 2.0])).is_some_and(f64::is_nan));
        assert_eq!(relative_rms(&tensor(&[1.0, 2.0]), &Tensor::from_slice(&[1i64, 2], &[2]).unwrap()), None);
    }
}
