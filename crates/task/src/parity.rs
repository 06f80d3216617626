use std::collections::BTreeMap;

use highroad_package::{Check, VerifiedPackage};
use highroad_runtime::{Program, RunOptions};
use highroad_tensor::{DType, Storage, Tensor};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::tensors::strides;
use crate::{Engine, Predictor, PredictorOptions, TaskError};

/// How far a program is from what eager PyTorch computed at export.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "disagreement is in the report"]
pub struct ParityReport {
    /// Every output of every case, in order.
    pub cases: Vec<ParityCase>,
    /// Largest accepted relative root mean square.
    pub limit: f64,
    /// What computed this side.
    pub numerics_id: String,
}

/// One output of one case.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ParityCase {
    /// Number of the case, from 0.
    pub case: u32,
    /// Position among the program's outputs.
    pub output: usize,
    /// Root mean square of the difference over that of the reference; infinite where shapes, dtypes or integers
    /// differ or a value is not finite on one side only.
    pub relative_rms: f64,
    /// Largest difference of two values.
    pub max_abs_difference: f64,
}

impl ParityReport {
    /// Whether every output agrees.
    pub fn passed(&self) -> bool {
        self.worst().relative_rms <= self.limit
    }

    /// This, with disagreement as an error.
    fn checked(self) -> Result<Self, TaskError> {
        match self.passed() {
            true => Ok(self),
            false => Err(TaskError::NoParity { worst: *self.worst(), limit: self.limit }),
        }
    }

    /// The output with the largest relative root mean square.
    pub fn worst(&self) -> &ParityCase {
        let by_rms = |a: &&ParityCase, b: &&ParityCase| a.relative_rms.total_cmp(&b.relative_rms);
        self.cases.iter().max_by(by_rms).expect("a report has at least one case")
    }
}

/// Opens `package` and replays its parity cases: [`Predictor::parity`] for who needs no predictor afterwards.
pub fn verify_parity(package: &VerifiedPackage, options: &PredictorOptions) -> Result<ParityReport, TaskError> {
    Predictor::open(package, options)?.parity()
}

impl Predictor {
    /// [`Predictor::parity`], with disagreement as an error: what must hold before a package answers for anyone.
    pub fn check_parity(&self) -> Result<ParityReport, TaskError> {
        self.parity()?.checked()
    }

    /// Replays the package's parity cases. Errors if they cannot be run; disagreement is in the report.
    pub fn parity(&self) -> Result<ParityReport, TaskError> {
        let parity = &self.manifest().parity;
        let cases = self.package().read(&parity.file)?;
        check_cases(self.program(), &cases, parity.check, &self.run_options())
    }
}

/// Runs `program` on the cases of a safetensors file (`0.input.0`, …, `0.output.0`, …) and compares outputs.
pub fn check_cases(
    program: &Program,
    safetensors: &[u8],
    check: Check,
    options: &RunOptions,
) -> Result<ParityReport, TaskError> {
    let run = |inputs: &[Tensor]| Ok(program.run(inputs, options)?);
    compare(run, safetensors, check, program.numerics_id())
}

/// Replays the parity cases of `package` on another engine than the package's own runtime, whose numerics are `numerics_id`. Errors if they
/// cannot be run, and where an output is further off than the package accepts.
pub fn check_parity_on(
    engine: &impl Engine,
    package: &VerifiedPackage,
    numerics_id: &str,
) -> Result<ParityReport, TaskError> {
    let parity = &package.manifest().parity;
    let run = |inputs: &[Tensor]| engine.run(inputs);
    compare(run, &package.read(&parity.file)?, parity.check, numerics_id.to_owned())?.checked()
}

/// The inputs of the first parity case. Errors if there is none.
pub(crate) fn first_inputs(safetensors: &[u8]) -> Result<Vec<Tensor>, TaskError> {
    let file = SafeTensors::deserialize(safetensors).map_err(|e| TaskError::Parity(e.to_string()))?;
    let tensors: BTreeMap<String, TensorView<'_>> = file.tensors().into_iter().collect();
    (0..).map_while(|i| tensors.get(&format!("0.input.{i}"))).map(tensor).collect()
}

fn compare(
    run: impl Fn(&[Tensor]) -> Result<Vec<Tensor>, TaskError>,
    safetensors: &[u8],
    check: Check,
    numerics_id: String,
) -> Result<ParityReport, TaskError> {
    let file = SafeTensors::deserialize(safetensors).map_err(|e| TaskError::Parity(e.to_string()))?;
    let tensors: BTreeMap<String, TensorView<'_>> = file.tensors().into_iter().collect();
    let side = |case: u32, side: &str| -> Result<Vec<Tensor>, TaskError> {
        (0..).map_while(|i| tensors.get(&format!("{case}.{side}.{i}"))).map(tensor).collect()
    };
    let mut cases = Vec::new();
    for case in 0.. {
        let (inputs, expected) = (side(case, "input")?, side(case, "output")?);
        if inputs.is_empty() || expected.is_empty() {
            break;
        }
        let found = run(&inputs)?;
        if found.len() != expected.len() {
            let (found, expected) = (found.len(), expected.len());
            return Err(TaskError::Parity(format!("case {case} has {expected} outputs, the program {found}")));
        }
        for (output, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let (relative_rms, max_abs_difference) = distance(found, expected);
            cases.push(ParityCase { case, output, relative_rms, max_abs_difference });
        }
    }
    if cases.is_empty() {
        return Err(TaskError::Parity("there is no case `0.input.0`, `0.output.0`".to_owned()));
    }
    Ok(ParityReport { cases, limit: check.relative_rms, numerics_id })
}

/// Relative root mean square and largest difference, in f64; infinite where the two cannot be compared.
fn distance(found: &Tensor, expected: &Tensor) -> (f64, f64) {
    const APART: (f64, f64) = (f64::INFINITY, f64::INFINITY);
    if found.dtype() != expected.dtype() || found.shape() != expected.shape() {
        return APART;
    }
    let wide = |tensor: &Tensor| tensor.cast(DType::F64).map(|tensor| tensor.contiguous());
    let (Ok(found), Ok(wide_expected)) = (wide(found), wide(expected)) else { return APART };
    let (Some(found), Some(reference)) = (found.as_slice::<f64>(), wide_expected.as_slice::<f64>()) else {
        return APART;
    };
    let mut squares = [0.0, 0.0];
    let mut max_abs_difference: f64 = 0.0;
    for (&found, &reference) in found.iter().zip(reference) {
        // Infinities and NaNs agree only with themselves.
        let same = found == reference || (found.is_nan() && reference.is_nan());
        let difference = if same { 0.0 } else { (found - reference).abs() };
        if difference.is_nan() || (difference > 0.0 && !expected.dtype().is_float()) {
            return APART;
        }
        max_abs_difference = max_abs_difference.max(difference);
        squares[0] += difference * difference;
        squares[1] += if reference.is_finite() { reference * reference } else { 0.0 };
    }
    let relative_rms = if squares[0] == 0.0 { 0.0 } else { (squares[0] / squares[1]).sqrt() };
    (relative_rms, max_abs_difference)
}

fn tensor(view: &TensorView<'_>) -> Result<Tensor, TaskError> {
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
        other => return Err(TaskError::Parity(format!("dtype {other:?} is not supported"))),
    };
    let shape = view.shape();
    Ok(Tensor::from_storage(Storage::copy_of(view.data()), dtype, shape, &strides(shape), 0)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::from_slice(values, &[values.len()]).unwrap()
    }

    #[test]
    fn the_distance_is_the_difference_over_the_reference() {
        // rms of [0, 0, 0, 2] over rms of [1, 2, 2, 4]
        assert_eq!(distance(&tensor(&[1., 2., 2., 6.]), &tensor(&[1., 2., 2., 4.])), (0.4, 2.0));
    }

    #[test]
    fn what_cannot_be_compared_is_infinitely_far() {
        let far = (f64::INFINITY, f64::INFINITY);
        assert_eq!(distance(&tensor(&[1.0]), &tensor(&[1.0, 2.0])), far);
        assert_eq!(distance(&tensor(&[f32::NAN]), &tensor(&[1.0])), far);
        assert_eq!(distance(&Tensor::scalar(1i64), &Tensor::scalar(2i64)), far);
        assert_eq!(distance(&Tensor::scalar(1i64), &Tensor::scalar(1.0f32)), far);
        assert_eq!(distance(&tensor(&[1.0]), &tensor(&[0.0])).0, f64::INFINITY);
    }

    #[test]
    fn infinities_agree_with_themselves() {
        assert_eq!(distance(&tensor(&[f32::NEG_INFINITY, 1.0]), &tensor(&[f32::NEG_INFINITY, 1.0])), (0.0, 0.0));
        assert_eq!(distance(&tensor(&[f32::INFINITY]), &tensor(&[f32::NEG_INFINITY])).0, f64::INFINITY);
    }
}
