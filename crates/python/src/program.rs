use std::num::NonZeroUsize;
use std::path::PathBuf;

use highroad_runtime::archive::Archive;
use highroad_runtime::graph::Argument;
use highroad_runtime::import::{Interface, Leaf, exported};
use highroad_runtime::treespec::TreeSpec;
use highroad_runtime::{LoadError, RunOptions, TensorSpec};
use pyo3::IntoPyObjectExt as _;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::load_error;
use crate::tensors::{Given, Returned, from_python, to_python};

/// A loaded `.pt2` program; `highroad.Program` wraps it.
#[pyclass(frozen, module = "highroad._highroad")]
pub struct Program {
    program: highroad_runtime::Program,
    interface: Interface,
    options: RunOptions,
}

#[pymethods]
impl Program {
    /// Reads, checks, plans and prepacks the program in `path`.
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf, threads: NonZeroUsize) -> PyResult<Self> {
        let load = || -> Result<_, LoadError> {
            let interface = exported(&Archive::open(&path)?)?.interface;
            Ok((highroad_runtime::Program::open(&path)?, interface))
        };
        let (program, interface) = py.detach(load).map_err(|error| explain(py, &error))?;
        Ok(Self { program, interface, options: RunOptions::with_threads(threads) })
    }

    /// Runs the program on its tensor leaves; other Python threads go on meanwhile.
    fn run(&self, py: Python<'_>, inputs: Vec<Given<'_>>) -> PyResult<Vec<Returned>> {
        let inputs = inputs.iter().map(from_python).collect::<PyResult<Vec<_>>>()?;
        let outputs = py.detach(|| self.program.run(&inputs, &self.options));
        let outputs = outputs.map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
        Ok(outputs.iter().map(|tensor| to_python(py, tensor)).collect())
    }

    /// The canonical graph as text.
    fn graph_text(&self, py: Python<'_>) -> String {
        py.detach(|| self.program.graph_text())
    }

    /// Name, dtype and sizes of each tensor input; a size is a number or the name of a symbol.
    fn inputs(&self) -> Vec<(String, &'static str, String)> {
        self.program.inputs().iter().map(describe).collect()
    }

    /// As `inputs`, for what the program returns.
    fn outputs(&self) -> Vec<(String, &'static str, String)> {
        self.program.outputs().iter().map(describe).collect()
    }

    /// Structure of the arguments: a tuple of the positional ones' tuple and the keyword ones' dictionary.
    fn in_spec<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        tree(py, &self.interface.in_spec)
    }

    /// Structure of the result.
    fn out_spec<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        tree(py, &self.interface.out_spec)
    }

    /// Names of the positional parameters, if the archive tells.
    fn arg_names(&self) -> Vec<String> {
        self.interface.arg_names.clone()
    }

    /// For each leaf of the arguments: `None` if a tensor is given there, else a tuple of the constant it must equal.
    fn constants<'py>(&self, py: Python<'py>) -> PyResult<Vec<Option<Bound<'py, PyTuple>>>> {
        constants(py, &self.interface.leaves)
    }

    /// The same for each leaf of the result: `None` where `run` returns a tensor.
    fn constant_results<'py>(&self, py: Python<'py>) -> PyResult<Vec<Option<Bound<'py, PyTuple>>>> {
        constants(py, &self.interface.results)
    }

    /// What decides the bits of a result: kernel set, instruction path and precision.
    fn numerics_id(&self) -> String {
        self.program.numerics_id()
    }

    /// Whether rows of a batch can influence each other, in words.
    fn row_independence(&self) -> String {
        self.program.row_independence().to_string()
    }
}

fn describe(spec: &TensorSpec) -> (String, &'static str, String) {
    (spec.name.clone(), spec.dtype.name(), spec.to_string())
}

fn tree<'py>(py: Python<'py>, spec: &TreeSpec) -> PyResult<Bound<'py, PyAny>> {
    let items = || spec.children().map(|(_, child)| tree(py, child)).collect::<PyResult<Vec<_>>>();
    let fields = || {
        let field =
            |(key, child): (Option<&str>, &TreeSpec)| Ok((key.unwrap_or_default().to_owned(), tree(py, child)?));
        spec.children().map(field).collect::<PyResult<Vec<_>>>()
    };
    match spec {
        TreeSpec::None => ("none",).into_bound_py_any(py),
        TreeSpec::Tuple(_) => ("tuple", items()?).into_bound_py_any(py),
        TreeSpec::List(_) => ("list", items()?).into_bound_py_any(py),
        TreeSpec::Dict(_) => ("dict", fields()?).into_bound_py_any(py),
        TreeSpec::Named { type_name, .. } => ("named", type_name, fields()?).into_bound_py_any(py),
        _ => ("leaf",).into_bound_py_any(py),
    }
}

fn constants<'py>(py: Python<'py>, leaves: &[Leaf]) -> PyResult<Vec<Option<Bound<'py, PyTuple>>>> {
    let constant = |leaf: &Leaf| match leaf {
        Leaf::Constant(argument) => PyTuple::new(py, [literal(py, argument)?]).map(Some),
        _ => Ok(None),
    };
    leaves.iter().map(constant).collect()
}

fn literal<'py>(py: Python<'py>, argument: &Argument) -> PyResult<Bound<'py, PyAny>> {
    match argument {
        Argument::Int(value) => value.into_bound_py_any(py),
        Argument::Float(value) => value.into_bound_py_any(py),
        Argument::Bool(value) => value.into_bound_py_any(py),
        Argument::Str(value) => value.into_bound_py_any(py),
        _ => Ok(py.None().into_bound(py)),
    }
}

/// The Python error, with the operators that are missing as its attribute `missing_ops`.
fn explain(py: Python<'_>, error: &LoadError) -> PyErr {
    let explained = load_error(error);
    let missing: Vec<String> = match error {
        LoadError::MissingOps(missing) => missing.iter().map(|missing| missing.op.clone()).collect(),
        _ => Vec::new(),
    };
    match explained.value(py).setattr("missing_ops", missing) {
        Ok(()) => explained,
        Err(error) => error,
    }
}
