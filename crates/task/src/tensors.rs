//! Tensors by name: what a program of task `tensors` takes and gives.

use std::collections::BTreeMap;
use std::sync::Arc;

use highroad_eval::Array;
use highroad_package::Digest;
use highroad_runtime::TensorSpec;
use highroad_tensor::{DType, Storage, Tensor};
use serde::{Deserialize, Serialize};

use crate::TaskError;

/// An output of a program, with its bits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputTensor {
    /// The program's name for it.
    pub name: String,
    /// As [`DType::name`] has it.
    pub dtype: String,
    /// Its sizes.
    pub shape: Vec<usize>,
    /// Its elements, row-major and little-endian.
    #[serde(rename = "bytes_base64", with = "crate::input::in_base64")]
    pub bytes: Arc<[u8]>,
}

impl OutputTensor {
    /// What a program gave under this name.
    pub fn of(name: &str, tensor: &Tensor) -> Self {
        let (dtype, shape) = (tensor.dtype().name().to_owned(), tensor.shape().to_vec());
        Self { name: name.to_owned(), dtype, shape, bytes: row_major_bytes(tensor).into() }
    }

    /// Its elements as f64, to which 64-bit integers beyond 2^53 are rounded. `None` unless there are as many as the shape says, of a
    /// dtype that programs have.
    pub fn values(&self) -> Option<Vec<f64>> {
        Some(self.tensor()?.cast(DType::F64).ok()?.contiguous().as_slice::<f64>()?.to_vec())
    }

    /// The same as a tensor. `None` unless it has as many elements as the shape says, of a dtype that programs have.
    pub fn tensor(&self) -> Option<Tensor> {
        let dtype = DType::from_name(&self.dtype)?;
        let n_bytes = self.shape.iter().try_fold(dtype.size_bytes(), |n, &size| n.checked_mul(size))?;
        if n_bytes != self.bytes.len() {
            return None;
        }
        let storage = Storage::copy_of(&self.bytes);
        Tensor::from_storage(storage, dtype, &self.shape, &strides(&self.shape), 0).ok()
    }
}

/// The elements of `tensor` in row-major order, little-endian, whatever its strides.
pub fn row_major_bytes(tensor: &Tensor) -> Vec<u8> {
    let tensor = tensor.contiguous();
    let width = tensor.dtype().size_bytes();
    let start = tensor.offset() * width;
    tensor.storage().bytes()[start..start + tensor.numel() * width].to_vec()
}

/// Whether no element is infinite or not a number; tensors of dtypes without such are finite.
pub fn is_finite(tensor: &Tensor) -> bool {
    if !tensor.dtype().is_float() {
        return true;
    }
    let wide = || tensor.cast(DType::F64).ok()?.to_vec::<f64>();
    match tensor.as_slice::<f32>() {
        Some(elements) => elements.iter().all(|element| element.is_finite()),
        None => wide().is_some_and(|elements| elements.iter().all(|element| element.is_finite())),
    }
}

/// The digest of a program's outputs: SHA-256 over their elements, little-endian and row-major, one tensor after the
/// other. For one output of one row that is what [`Answer::digest`](crate::Answer::digest) says of the same values.
pub fn tensors_digest(outputs: &[Tensor]) -> Digest {
    Digest::of(&outputs.iter().flat_map(row_major_bytes).collect::<Vec<u8>>())
}

/// Row-major strides.
pub(crate) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for dim in (1..shape.len()).rev() {
        strides[dim - 1] = strides[dim] * shape[dim].max(1);
    }
    strides
}

/// What is given by name in the order of `specs`. Errors if a name is unknown or missing, or given twice.
pub(crate) fn in_order<T>(
    specs: &[TensorSpec],
    given: impl IntoIterator<Item = (String, T)>,
) -> Result<Vec<(&TensorSpec, T)>, TaskError> {
    let mut slots: Vec<Option<T>> = specs.iter().map(|_| None).collect();
    for (name, tensor) in given {
        let position = specs.iter().position(|spec| spec.name == name);
        let position = position.ok_or_else(|| {
            let known = specs.iter().map(|spec| format!("`{}`", spec.name)).collect::<Vec<_>>().join(", ");
            TaskError::Tensors(format!("there is no input `{name}`: the program takes {known}"))
        })?;
        if slots[position].replace(tensor).is_some() {
            return Err(TaskError::Tensors(format!("input `{name}` is given twice")));
        }
    }
    let slots = specs.iter().zip(slots);
    let filled = slots.map(|(spec, slot)| Ok((spec, slot.ok_or_else(|| missing(spec))?)));
    filled.collect()
}

fn missing(spec: &TensorSpec) -> TaskError {
    TaskError::Tensors(format!("input `{}` is missing: the program takes {spec}", spec.name))
}

/// The inputs of a program that takes `specs`, in its order, of its dtypes. Errors if one is unknown or missing, or holds a number that
/// its dtype does not have; shapes are the program's to check.
pub fn of_arrays(specs: &[TensorSpec], arrays: &BTreeMap<String, Array>) -> Result<Vec<Tensor>, TaskError> {
    let given = in_order(specs, arrays.iter().map(|(name, array)| (name.clone(), array)))?;
    given.into_iter().map(|(spec, array)| tensor(spec, array)).collect()
}

/// Tensors of a program that takes `specs`, by name; of integers beyond 2^53 the nearest f64. What is not finite somewhere is left out.
pub fn arrays_of(specs: &[TensorSpec], tensors: &[Tensor]) -> BTreeMap<String, Array> {
    let array = |(spec, tensor): (&TensorSpec, &Tensor)| {
        let wide = tensor.cast(DType::F64).ok()?.contiguous();
        let array = Array::new(tensor.shape().to_vec(), wide.as_slice::<f64>()?.to_vec())?;
        Some((spec.name.clone(), array))
    };
    specs.iter().zip(tensors).filter_map(array).collect()
}

/// `array` as a tensor of the dtype of `spec`, rounded to the nearest where that is a float. Errors on numbers that the dtype does not
/// have.
fn tensor(spec: &TensorSpec, array: &Array) -> Result<Tensor, TaskError> {
    let dtype = spec.dtype;
    let range = match dtype {
        DType::Bool => 0.0..=1.0,
        DType::U8 => 0.0..=255.0,
        DType::I8 => f64::from(i8::MIN)..=f64::from(i8::MAX),
        DType::I16 => f64::from(i16::MIN)..=f64::from(i16::MAX),
        DType::I32 => f64::from(i32::MIN)..=f64::from(i32::MAX),
        // An array holds no whole number beyond 2^53, where f64 still tells all apart.
        DType::I64 | DType::F16 | DType::BF16 | DType::F32 | DType::F64 => f64::MIN..=f64::MAX,
    };
    let tensor = Tensor::from_slice(array.values(), array.shape())?.cast(dtype)?;
    let rounded = tensor.cast(DType::F64)?;
    let rounded = rounded.as_slice::<f64>().unwrap_or_default();
    let fits = |(given, rounded): (&f64, &f64)| {
        range.contains(given) && rounded.is_finite() && (dtype.is_float() || given == rounded)
    };
    match array.values().iter().zip(rounded).find(|pair| !fits(*pair)) {
        Some((given, _)) => {
            Err(TaskError::Tensors(format!("input `{}` takes {spec}, and {given} is no {dtype}", spec.name)))
        }
        None => Ok(tensor),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use highroad_runtime::graph::Dim;

    use super::*;
    use crate::Answer;

    #[test]
    fn bytes_follow_rows_whatever_the_strides() {
        let tensor = Tensor::from_slice(&[1u8, 2, 3, 4, 5, 6], &[2, 3]).unwrap();
        assert_eq!(row_major_bytes(&tensor), [1, 2, 3, 4, 5, 6]);
        assert_eq!(row_major_bytes(&tensor.permute(&[1, 0]).unwrap()), [1, 4, 2, 5, 3, 6]);
        assert_eq!(row_major_bytes(&Tensor::scalar(7u8)), [7]);
    }

    #[test]
    fn the_digest_of_one_output_row_is_the_answers_digest() {
        let vector = vec![0.5f32, -1.25, 3.0];
        let tensor = Tensor::from_slice(&vector, &[1, 3]).unwrap();
        assert_eq!(tensors_digest(&[tensor]), Answer::Embedding { vector }.digest());
    }

    #[test]
    fn an_output_gives_its_numbers_and_the_digest_of_its_bits() {
        for tensor in [Tensor::from_slice(&[1.5f32, -2.0], &[1, 2]).unwrap(), Tensor::from_slice(&[3i64], &[]).unwrap()]
        {
            let output = OutputTensor::of("y", &tensor);
            let wide = tensor.cast(DType::F64).unwrap();
            assert_eq!(output.values().unwrap(), wide.as_slice::<f64>().unwrap());
            assert_eq!(Answer::Tensors(vec![output.clone()]).digest(), tensors_digest(&[tensor]));
            let back: OutputTensor = serde_json::from_str(&serde_json::to_string(&output).unwrap()).unwrap();
            assert_eq!(back, output);
            assert_eq!(OutputTensor { shape: vec![usize::MAX, 9], ..output.clone() }.values(), None);
            assert_eq!(OutputTensor { dtype: "c64".to_owned(), ..output }.values(), None);
        }
    }

    fn made(dtype: DType, json: &str) -> Result<Tensor, String> {
        let specs = [TensorSpec { name: "x".to_owned(), dtype, sizes: vec![Dim::Symbol("b".to_owned())] }];
        let arrays = serde_json::from_str(json).unwrap();
        of_arrays(&specs, &arrays).map(|tensors| tensors[0].clone()).map_err(|error| error.to_string())
    }

    #[test]
    fn numbers_become_the_dtype_of_the_program_or_are_refused() {
        let bytes = |dtype, json| row_major_bytes(&made(dtype, json).unwrap());
        assert_eq!(bytes(DType::Bool, r#"{"x": [true, 0]}"#), [1, 0]);
        assert_eq!(bytes(DType::U8, r#"{"x": [255.0, 7]}"#), [255, 7]);
        assert_eq!(bytes(DType::F32, r#"{"x": [0.1]}"#), 0.1f32.to_le_bytes());
        assert_eq!(bytes(DType::I64, r#"{"x": [-9007199254740992]}"#), (-9007199254740992i64).to_le_bytes());
        for (dtype, json, problem) in [
            (DType::Bool, r#"{"x": [2]}"#, "input `x` takes bool[b], and 2 is no bool"),
            (DType::U8, r#"{"x": [1, 256]}"#, "input `x` takes u8[b], and 256 is no u8"),
            (DType::I32, r#"{"x": [0.5]}"#, "input `x` takes i32[b], and 0.5 is no i32"),
            (DType::I64, r#"{"x": [1e19]}"#, "is no i64"),
            (DType::F32, r#"{"x": [1e39]}"#, "is no f32"),
            (DType::F16, r#"{"x": [65520]}"#, "input `x` takes f16[b], and 65520 is no f16"),
            (DType::F32, r#"{}"#, "input `x` is missing: the program takes f32[b]"),
            (DType::F32, r#"{"x": [1], "z": [1]}"#, "there is no input `z`: the program takes `x`"),
        ] {
            let error = made(dtype, json).unwrap_err();
            assert!(error.contains(problem), "{json}: {error}");
        }
    }
}
