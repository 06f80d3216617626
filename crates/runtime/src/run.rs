//! Running a plan: a loop over its steps.

use std::time::{Duration, Instant};

use highroad_tensor::{DType, Tensor};

use crate::op::{Call, Limits, OpError, Operand, Outputs, Value};
use crate::plan::{Plan, Step};

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum RunError {
    #[error("the program takes {expected} inputs, {given} were given")]
    InputCount { expected: usize, given: usize },
    #[error("input `{name}` is {found} where {expected} is needed")]
    InputDType { name: String, expected: DType, found: DType },
    #[error("input `{name}` has shape {found:?} where {expected} is needed")]
    InputShape { name: String, expected: String, found: Vec<usize> },
    #[error(transparent)]
    Node(#[from] Box<NodeError>),
    #[error("output {0} is no tensor")]
    OutputKind(usize),
}

/// An operator that refused its arguments, and where in the program it stands.
#[derive(Debug, thiserror::Error)]
#[error("`%{name} = {op}({inputs})`{at}: {source}", inputs = inputs.join(", "), at = at(location))]
pub struct NodeError {
    /// Name of its first result.
    pub name: String,
    /// Its overload, `aten.add.Tensor`.
    pub op: String,
    /// Dtypes and shapes of its tensor arguments.
    pub inputs: Vec<String>,
    /// Where the user's Python called it.
    pub location: Option<String>,
    /// What is wrong.
    pub source: OpError,
}

fn at(location: &Option<String>) -> String {
    location.as_ref().map(|location| format!(" at {location}")).unwrap_or_default()
}

/// Runs `plan` on checked inputs; `note` learns how long each step took.
pub(crate) fn run(
    plan: &Plan,
    inputs: &[Tensor],
    limits: Limits,
    mut note: impl FnMut(&Step, Duration),
) -> Result<Vec<Tensor>, RunError> {
    let mut slots = vec![Value::None; plan.n_slots];
    for (input, slot) in inputs.iter().zip(&plan.inputs) {
        if let Some(slot) = *slot {
            slots[slot] = Value::Tensor(input.clone());
        }
    }
    for step in &plan.steps {
        let start = Instant::now();
        let outputs = step.run(&slots, limits).map_err(|source| step.failed(&slots, source))?;
        note(step, start.elapsed());
        for (value, slot) in outputs.into_iter().zip(&step.outputs) {
            if let Some(slot) = *slot {
                slots[slot] = value;
            }
        }
        for &slot in &step.frees {
            slots[slot] = Value::None;
        }
    }
    plan.outputs.iter().enumerate().map(|(index, output)| collect(output, &slots, index)).collect()
}

impl Step {
    fn run(&self, slots: &[Value], limits: Limits) -> Result<Outputs, OpError> {
        let declaration = self.op.declaration();
        let call = Call::new(self.op, &self.operands, slots, limits).with_prepared(self.prepared.as_ref());
        declaration.run(&call)
    }

    fn failed(&self, slots: &[Value], source: OpError) -> RunError {
        let mut inputs = Vec::new();
        self.operands.iter().for_each(|operand| describe(operand, slots, &mut inputs));
        let (name, location) = (self.name.clone(), self.location.clone());
        RunError::Node(Box::new(NodeError { name, op: self.op.name().to_owned(), inputs, location, source }))
    }
}

fn describe(operand: &Operand, slots: &[Value], inputs: &mut Vec<String>) {
    match operand {
        Operand::Const(Value::Tensor(tensor)) => inputs.push(format!("{tensor:?}")),
        Operand::Slot(slot) => inputs.push(match &slots[*slot] {
            Value::Tensor(tensor) => format!("{tensor:?}"),
            value => format!("{value:?}"),
        }),
        Operand::List(items) => items.iter().for_each(|item| describe(item, slots, inputs)),
        Operand::Const(_) => {}
    }
}

fn collect(output: &Operand, slots: &[Value], index: usize) -> Result<Tensor, RunError> {
    let value = match output {
        Operand::Const(value) => value,
        Operand::Slot(slot) => &slots[*slot],
        Operand::List(_) => return Err(RunError::OutputKind(index)),
    };
    match value {
        Value::Tensor(tensor) => Ok(tensor.clone()),
        Value::Int(int) => Ok(Tensor::scalar(*int)),
        Value::Float(float) => Ok(Tensor::scalar(*float)),
        Value::Bool(bool) => Tensor::from_bools(&[*bool], &[]).map_err(|_| RunError::OutputKind(index)),
        _ => Err(RunError::OutputKind(index)),
    }
}
