//! A program that runs: what everything above the runtime uses.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use highroad_tensor::{DType, Tensor, instruction_set, parallel};

use crate::LoadError;
use crate::archive::Archive;
use crate::graph::{Argument, Dim, Graph, Source, Type, ValueId};
use crate::import;
use crate::op::Limits;
use crate::passes;
use crate::plan::{Plan, Step};
use crate::rows::RowIndependence;
use crate::run::{self, RunError};

/// A loaded `.pt2` program, ready to run from any number of threads at once.
pub struct Program {
    plan: Plan,
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
    row_independence: RowIndependence,
    graph: Graph,
}

/// A tensor that a program takes or returns.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// Its name in the program.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Sizes; equal symbols stand for equal sizes.
    pub sizes: Vec<Dim>,
}

/// How long one operator of a program took.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct NodeTime {
    /// Its overload, `aten.add.Tensor`.
    pub op: String,
    /// Name of its first result.
    pub name: String,
    /// Where the user's Python called it.
    pub location: Option<String>,
    /// Time from its first instruction to its last.
    pub time: Duration,
}

impl NodeTime {
    fn new(step: &Step, time: Duration) -> Self {
        Self { op: step.op.name().to_owned(), name: step.name.clone(), location: step.location.clone(), time }
    }
}

/// How to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunOptions {
    /// Threads that kernels may use; the result does not depend on it.
    pub threads: NonZeroUsize,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self { threads: NonZeroUsize::MIN }
    }
}

impl RunOptions {
    /// These options with `threads`.
    pub fn with_threads(threads: NonZeroUsize) -> Self {
        Self { threads }
    }
}

impl Program {
    /// Reads, checks, rewrites, plans and prepacks the program in `path`; its weights stay mapped.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let mut graph = import::exported(&Archive::open(path)?)?.graph;
        passes::run(&mut graph)?;
        let weights = graph.weights.clone();
        Self::from_graph(graph, |name| weights.0.get(name).cloned())
    }

    /// A program of a graph in canonical form; `weights` gives the tensors behind its weight inputs.
    pub fn from_graph(graph: Graph, weights: impl Fn(&str) -> Option<Tensor>) -> Result<Self, LoadError> {
        let plan = Plan::new(&graph, weights).map_err(|error| LoadError::Malformed(error.to_string()))?;
        let inputs = input_specs(&graph)?;
        let outputs = output_specs(&graph)?;
        let row_independence = RowIndependence::of(&graph);
        Ok(Self { plan, inputs, outputs, row_independence, graph })
    }

    /// What [`Program::run`] takes, in order.
    pub fn inputs(&self) -> &[TensorSpec] {
        &self.inputs
    }

    /// What [`Program::run`] returns, in order.
    pub fn outputs(&self) -> &[TensorSpec] {
        &self.outputs
    }

    /// Calls the outputs by these names, one for each of [`Program::outputs`] in their order. Others are left as they are.
    pub fn name_outputs(&mut self, names: &[String]) {
        self.outputs.iter_mut().zip(names).for_each(|(output, name)| output.name.clone_from(name));
    }

    /// Runs the program on `inputs`, one tensor for each of [`Program::inputs`].
    ///
    /// The same inputs give the same bits on any number of threads. Results may share memory with inputs. Errors if
    /// inputs do not fit their specs or an operator refuses its arguments.
    pub fn run(&self, inputs: &[Tensor], options: &RunOptions) -> Result<Vec<Tensor>, RunError> {
        self.check(inputs)?;
        parallel::with_threads(options.threads.get(), || run::run(&self.plan, inputs, Limits::default(), |_, _| {}))
    }

    /// Whether `inputs` have the number, dtypes and sizes that the program takes.
    pub fn check(&self, inputs: &[Tensor]) -> Result<(), RunError> {
        check_inputs(&self.inputs, inputs)
    }

    /// Runs the program and tells how long each of its operators took, in the order they ran.
    pub fn profile(&self, inputs: &[Tensor], options: &RunOptions) -> Result<(Vec<Tensor>, Vec<NodeTime>), RunError> {
        check_inputs(&self.inputs, inputs)?;
        let mut times = Vec::with_capacity(self.plan.steps.len());
        let note = |step: &Step, time| times.push(NodeTime::new(step, time));
        let run = || run::run(&self.plan, inputs, Limits::default(), note);
        let outputs = parallel::with_threads(options.threads.get(), run)?;
        Ok((outputs, times))
    }

    /// The canonical graph as text.
    pub fn graph_text(&self) -> String {
        self.graph.to_string()
    }

    /// Whether rows of a batch can influence each other.
    pub fn row_independence(&self) -> &RowIndependence {
        &self.row_independence
    }

    /// What decides the bits of a result besides program and inputs: kernel set, instruction path and precision.
    pub fn numerics_id(&self) -> String {
        numerics_id()
    }
}

/// Version of the kernels' arithmetic: grows when any result changes in any bit.
const KERNEL_SET: u32 = 1;

/// The numerics id of this binary on this machine: `highroad-1/avx512/f32`.
pub fn numerics_id() -> String {
    format!("highroad-{KERNEL_SET}/{}/f32", instruction_set())
}

fn input_specs(graph: &Graph) -> Result<Vec<TensorSpec>, LoadError> {
    let mut specs: Vec<(usize, TensorSpec)> = Vec::new();
    for input in &graph.inputs {
        if let Source::User { position } = input.source {
            specs.push((position, spec(graph, input.value)?));
        }
    }
    specs.sort_by_key(|(position, _)| *position);
    if specs.iter().enumerate().any(|(index, (position, _))| index != *position) {
        return Err(LoadError::Malformed("the positions of its inputs have gaps or repeat".to_owned()));
    }
    Ok(specs.into_iter().map(|(_, spec)| spec).collect())
}

fn output_specs(graph: &Graph) -> Result<Vec<TensorSpec>, LoadError> {
    let output = |(index, output): (usize, &Argument)| match output {
        Argument::Value(id) => spec(graph, *id),
        Argument::Int(_) => Ok(scalar_spec(index, DType::I64)),
        Argument::Float(_) => Ok(scalar_spec(index, DType::F64)),
        Argument::Bool(_) => Ok(scalar_spec(index, DType::Bool)),
        _ => Err(LoadError::Malformed(format!("output {index} is no tensor"))),
    };
    graph.outputs.iter().enumerate().map(output).collect()
}

fn scalar_spec(index: usize, dtype: DType) -> TensorSpec {
    TensorSpec { name: index.to_string(), dtype, sizes: Vec::new() }
}

fn spec(graph: &Graph, id: ValueId) -> Result<TensorSpec, LoadError> {
    let value = graph.value(id);
    let (dtype, sizes) = match &value.ty {
        Type::Tensor(ty) => (ty.dtype, ty.sizes.clone()),
        Type::Int => (DType::I64, Vec::new()),
        Type::Float => (DType::F64, Vec::new()),
        Type::Bool => (DType::Bool, Vec::new()),
        _ => return Err(LoadError::Malformed(format!("`%{}` is no tensor of known type", value.name))),
    };
    Ok(TensorSpec { name: value.name.clone(), dtype, sizes })
}

fn check_inputs(specs: &[TensorSpec], inputs: &[Tensor]) -> Result<(), RunError> {
    if specs.len() != inputs.len() {
        return Err(RunError::InputCount { expected: specs.len(), given: inputs.len() });
    }
    let mut symbols: HashMap<&str, usize> = HashMap::new();
    for (spec, input) in specs.iter().zip(inputs) {
        let (name, expected, found) = (spec.name.clone(), spec.dtype, input.dtype());
        if expected != found {
            return Err(RunError::InputDType { name, expected, found });
        }
        let fits = spec.sizes.len() == input.ndim()
            && spec.sizes.iter().zip(input.shape()).all(|(dim, &size)| match dim {
                Dim::Known(known) => *known == size,
                Dim::Symbol(symbol) => *symbols.entry(symbol).or_insert(size) == size,
            });
        if !fits {
            return Err(RunError::InputShape { name, expected: spec.to_string(), found: input.shape().into() });
        }
    }
    Ok(())
}

impl fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (dim, size) in self.sizes.iter().enumerate() {
            let comma = if dim == 0 { "" } else { ", " };
            match size {
                Dim::Known(size) => write!(f, "{comma}{size}")?,
                Dim::Symbol(symbol) => write!(f, "{comma}{symbol}")?,
            }
        }
        f.write_str("]")
    }
}
