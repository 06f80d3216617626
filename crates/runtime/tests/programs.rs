//! Whole programs give what eager PyTorch gave when they were made.

#![allow(clippy::unwrap_used)]

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use highroad_runtime::{Program, RunOptions};
use highroad_tensor::{DType, Tensor};
use safetensors::{Dtype, SafeTensors};

/// Relative root mean square error of a whole output in f32.
const RELATIVE_RMS: f64 = 1e-5;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../conformance/programs")
}

/// Tensors `{case}.{kind}.0`, `{case}.{kind}.1`, …
fn recorded(file: &SafeTensors<'_>, case: usize, kind: &str) -> Vec<Tensor> {
    (0..).map_while(|i| file.tensor(&format!("{case}.{kind}.{i}")).ok()).map(|view| tensor(&view)).collect()
}

fn tensor(view: &safetensors::tensor::TensorView<'_>) -> Tensor {
    fn elements<const N: usize, T>(bytes: &[u8], from: fn([u8; N]) -> T) -> Vec<T> {
        bytes.chunks_exact(N).map(|bytes| from(bytes.try_into().unwrap())).collect()
    }
    let (bytes, shape) = (view.data(), view.shape());
    match view.dtype() {
        Dtype::F32 => Tensor::from_slice(&elements(bytes, f32::from_le_bytes), shape),
        Dtype::I64 => Tensor::from_slice(&elements(bytes, i64::from_le_bytes), shape),
        Dtype::BOOL => Tensor::from_bools(&bytes.iter().map(|&byte| byte != 0).collect::<Vec<_>>(), shape),
        dtype => panic!("no case has {dtype:?}"),
    }
    .unwrap()
}

/// Elements in order, whatever the strides.
fn values(tensor: &Tensor) -> Vec<f64> {
    let mut places = vec![tensor.offset()];
    for (&size, &stride) in tensor.shape().iter().zip(tensor.strides()) {
        places = places.iter().flat_map(|&place| (0..size).map(move |i| place + i * stride)).collect();
    }
    let value = |&place: &usize| match tensor.dtype() {
        DType::F32 => f64::from(tensor.elements::<f32>().unwrap()[place]),
        DType::I64 => tensor.elements::<i64>().unwrap()[place] as f64,
        DType::Bool => f64::from(tensor.elements::<u8>().unwrap()[place]),
        dtype => panic!("no case returns {dtype}"),
    };
    places.iter().map(value).collect()
}

fn check(program: &Path) {
    let name = program.file_stem().unwrap().to_string_lossy().into_owned();
    let bytes = std::fs::read(program.with_extension("safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let program = Program::open(program).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut n_cases = 0;
    for case in 0.. {
        let inputs = recorded(&file, case, "input");
        if inputs.is_empty() {
            break;
        }
        n_cases += 1;
        let options = RunOptions::with_threads(NonZeroUsize::MIN);
        let outputs = program.run(&inputs, &options).unwrap_or_else(|error| panic!("{name} case {case}: {error}"));
        let expected = recorded(&file, case, "output");
        assert_eq!(outputs.len(), expected.len(), "{name} case {case}");
        for (index, (output, expected)) in outputs.iter().zip(&expected).enumerate() {
            let place = format!("{name} case {case} output {index}");
            assert_eq!((output.dtype(), output.shape()), (expected.dtype(), expected.shape()), "{place}");
            let rms = relative_rms(&values(output), &values(expected));
            assert!(rms <= RELATIVE_RMS, "{place} differs by {rms:e}");
        }
    }
    assert!(n_cases >= 2, "{name} has {n_cases} cases");
}

fn relative_rms(ours: &[f64], theirs: &[f64]) -> f64 {
    let square = |difference: f64| if difference.is_nan() { 0.0 } else { difference * difference };
    // An infinity or NaN where the other has none makes the whole differ.
    if ours.iter().zip(theirs).any(|(a, b)| a.is_nan() != b.is_nan() || (a.is_infinite() || b.is_infinite()) && a != b)
    {
        return f64::INFINITY;
    }
    let error: f64 = ours.iter().zip(theirs).map(|(a, b)| if a == b { 0.0 } else { square(a - b) }).sum();
    let size: f64 = theirs.iter().filter(|b| b.is_finite()).map(|b| b * b).sum();
    if error == 0.0 { 0.0 } else { (error / size).sqrt() }
}

fn programs_in(folder: &Path) -> Vec<PathBuf> {
    let mut programs: Vec<PathBuf> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    programs.retain(|path| path.extension().is_some_and(|extension| extension == "pt2"));
    programs.sort();
    programs
}

fn check_all(programs: &[PathBuf]) {
    let failures: Vec<String> = programs
        .iter()
        .filter_map(|program| {
            let result = std::panic::catch_unwind(|| check(program));
            let reason = |panic: Box<dyn std::any::Any + Send>| panic.downcast_ref::<String>().cloned();
            result.err().map(|panic| format!("{}: {}", program.display(), reason(panic).unwrap_or_default()))
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_small_program_agrees_with_pytorch() {
    let programs = programs_in(&folder());
    assert!(programs.len() >= 10, "{} programs", programs.len());
    check_all(&programs);
}

#[test]
fn files_of_every_supported_release_agree_with_pytorch() {
    for release in 9..15 {
        let programs = programs_in(&folder().join(format!("torch-2.{release}")));
        assert_eq!(programs.len(), 5, "torch 2.{release}");
        check_all(&programs);
    }
}

#[test]
fn rows_of_an_encoder_are_proved_independent() {
    for name in ["mlp", "attention", "convolution"] {
        let program = Program::open(&folder().join(format!("{name}.pt2"))).unwrap();
        assert!(program.row_independence().is_proved(), "{name}: {:?}", program.row_independence());
    }
}
