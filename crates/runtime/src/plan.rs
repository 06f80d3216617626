//! The plan: a graph turned into flat arrays that run as a loop.
//!
//! Weights and everything computed from constants alone become constant operands; what operators prepare from them
//! (packed weights) is made here, once. Every other value gets a slot that is emptied after its last reader, so its
//! buffer goes back to the pool for the next result.

use std::collections::HashMap;

use highroad_tensor::Tensor;
use smallvec::SmallVec;

use crate::graph::{Argument, Graph, Node, Source, ValueId};
use crate::op::{self, Call, Limits, OpDef, Operand, Prepared, Value};

/// Largest result of a constant operator that is kept instead of being computed on every run: position ids and masks
/// are, a second copy of a weight is not.
const MAX_FOLDED_BYTES: usize = 1 << 20;

/// A graph ready to run.
pub struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) n_slots: usize,
    /// Slot of each user input, by position; `None` where the program ignores it.
    pub(crate) inputs: Vec<Option<usize>>,
    pub(crate) outputs: Vec<Operand>,
}

/// One operator with everything it needs to run.
pub(crate) struct Step {
    pub(crate) op: &'static OpDef,
    pub(crate) operands: Vec<Operand>,
    pub(crate) prepared: Option<Prepared>,
    /// Slot of each result; `None` where nobody reads it.
    pub(crate) outputs: SmallVec<[Option<usize>; 1]>,
    /// Slots whose last reader this is.
    pub(crate) frees: SmallVec<[usize; 2]>,
    /// Name of the first result, for messages.
    pub(crate) name: String,
    /// Where the user's Python called it.
    pub(crate) location: Option<String>,
}

/// Why a graph could not be planned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum PlanError {
    #[error("operator {0} is not supported")]
    UnknownOp(String),
    #[error("{op} is not given its argument `{argument}`")]
    MissingArgument { op: String, argument: String },
    #[error("{op} has no argument `{argument}`")]
    UnknownArgument { op: String, argument: String },
    #[error("{op} must be replaced before planning: it writes to its argument")]
    InPlace { op: String },
    #[error("`%{0}` is used before it is computed")]
    Undefined(String),
    #[error("weight `{0}` is not in the archive")]
    MissingWeight(String),
    #[error("a nested graph remains in {0}")]
    NestedGraph(String),
}

impl Plan {
    /// Plans `graph`, in canonical form; `weights` gives the tensors behind its weight inputs.
    pub fn new(graph: &Graph, weights: impl Fn(&str) -> Option<Tensor>) -> Result<Self, PlanError> {
        let mut planner = Planner { graph, operands: vec![None; graph.values.len()], n_slots: 0 };
        let inputs = planner.place_inputs(weights)?;
        let mut steps = Vec::with_capacity(graph.nodes.len());
        for node in &graph.nodes {
            steps.extend(planner.place(node)?);
        }
        let outputs = graph.outputs.iter().map(|arg| planner.operand(arg, "return")).collect::<Result<_, _>>()?;
        let mut plan = Self { steps, n_slots: planner.n_slots, inputs, outputs };
        plan.free_after_last_reader();
        plan.prepare();
        Ok(plan)
    }

    fn free_after_last_reader(&mut self) {
        let mut last_reader: HashMap<usize, usize> = HashMap::new();
        for (index, step) in self.steps.iter().enumerate() {
            // A result that is never read lives from here to here.
            step.outputs.iter().flatten().for_each(|&slot| _ = last_reader.insert(slot, index));
            step.operands
                .iter()
                .for_each(|operand| for_each_slot(operand, &mut |slot| _ = last_reader.insert(slot, index)));
        }
        self.outputs.iter().for_each(|operand| for_each_slot(operand, &mut |slot| _ = last_reader.remove(&slot)));
        for (slot, index) in last_reader {
            self.steps[index].frees.push(slot);
        }
    }

    fn prepare(&mut self) {
        for step in &mut self.steps {
            let call = Call::new(step.op, &step.operands, &[], Limits::default());
            step.prepared = step.op.declaration().prepare.and_then(|prepare| prepare(&call));
        }
    }
}

struct Planner<'a> {
    graph: &'a Graph,
    /// What each value became, by id.
    operands: Vec<Option<Operand>>,
    n_slots: usize,
}

impl Planner<'_> {
    fn place_inputs(&mut self, weights: impl Fn(&str) -> Option<Tensor>) -> Result<Vec<Option<usize>>, PlanError> {
        let mut by_position = Vec::new();
        for input in &self.graph.inputs {
            let operand = match &input.source {
                Source::Weight(name) => {
                    let tensor = weights(name).ok_or_else(|| PlanError::MissingWeight(name.clone()))?;
                    Operand::Const(Value::Tensor(tensor))
                }
                Source::User { position } => {
                    let slot = self.new_slot();
                    if by_position.len() <= *position {
                        by_position.resize(*position + 1, None);
                    }
                    by_position[*position] = Some(slot);
                    Operand::Slot(slot)
                }
                Source::Operand => return Err(PlanError::NestedGraph(self.name(input.value))),
            };
            self.operands[input.value.0 as usize] = Some(operand);
        }
        Ok(by_position)
    }

    /// The step of `node`; none if its results are constants.
    fn place(&mut self, node: &Node) -> Result<Option<Step>, PlanError> {
        let op = op::lookup(&node.op).ok_or_else(|| PlanError::UnknownOp(node.op.clone()))?;
        if op.functional().is_some() {
            return Err(PlanError::InPlace { op: node.op.clone() });
        }
        let operands = self.arguments(op, node)?;
        if let Some(constants) = fold(op, &operands) {
            for (id, value) in node.outputs.iter().zip(constants) {
                if let Some(id) = id {
                    self.operands[id.0 as usize] = Some(Operand::Const(value));
                }
            }
            return Ok(None);
        }
        let outputs = node.outputs.iter().map(|id| id.map(|id| self.place_result(id))).collect();
        let name = node.outputs.iter().flatten().next().map_or_else(String::new, |&id| self.name(id));
        let frees = SmallVec::new();
        Ok(Some(Step { op, operands, prepared: None, outputs, frees, name, location: node.location.clone() }))
    }

    /// Operands in schema order, defaults filled.
    fn arguments(&self, op: &OpDef, node: &Node) -> Result<Vec<Operand>, PlanError> {
        if let Some((argument, _)) = node.args.iter().find(|(name, _)| op.schema().position(name).is_none()) {
            return Err(PlanError::UnknownArgument { op: node.op.clone(), argument: argument.clone() });
        }
        let missing = |name: &str| PlanError::MissingArgument { op: node.op.clone(), argument: name.to_owned() };
        let argument = |arg: &op::Arg| {
            let given = node.arg(&arg.name).or(arg.default.as_ref()).ok_or_else(|| missing(&arg.name))?;
            self.operand(given, &node.op)
        };
        op.schema().args.iter().map(argument).collect()
    }

    fn operand(&self, arg: &Argument, user: &str) -> Result<Operand, PlanError> {
        Ok(match arg {
            Argument::None | Argument::Ignored(_) => Operand::Const(Value::None),
            Argument::Value(id) => {
                let operand = self.operands.get(id.0 as usize).and_then(Option::as_ref);
                operand.cloned().ok_or_else(|| PlanError::Undefined(self.name(*id)))?
            }
            Argument::Int(int) => Operand::Const(Value::Int(*int)),
            Argument::Float(float) => Operand::Const(Value::Float(*float)),
            Argument::Bool(bool) => Operand::Const(Value::Bool(*bool)),
            Argument::Str(text) => Operand::Const(Value::Str(text.as_str().into())),
            Argument::DType(dtype) => Operand::Const(Value::DType(*dtype)),
            Argument::List(items) => {
                Operand::List(items.iter().map(|item| self.operand(item, user)).collect::<Result<_, _>>()?)
            }
            Argument::Graph(_) => return Err(PlanError::NestedGraph(user.to_owned())),
        })
    }

    fn place_result(&mut self, id: ValueId) -> usize {
        let slot = self.new_slot();
        self.operands[id.0 as usize] = Some(Operand::Slot(slot));
        slot
    }

    fn new_slot(&mut self) -> usize {
        self.n_slots += 1;
        self.n_slots - 1
    }

    fn name(&self, id: ValueId) -> String {
        self.graph.values.get(id.0 as usize).map_or_else(|| format!("{}", id.0), |value| value.name.clone())
    }
}

/// The results of an operator on constants, if they are small or views; `None` too if it fails, so that the run tells.
fn fold(op: &'static OpDef, operands: &[Operand]) -> Option<op::Outputs> {
    let mut n_slots = 0;
    operands.iter().for_each(|operand| for_each_slot(operand, &mut |_| n_slots += 1));
    if n_slots > 0 {
        return None;
    }
    let call = Call::new(op, operands, &[], Limits { tensor_bytes: MAX_FOLDED_BYTES });
    op.declaration().run(&call).ok()
}

fn for_each_slot(operand: &Operand, visit: &mut impl FnMut(usize)) {
    match operand {
        Operand::Slot(slot) => visit(*slot),
        Operand::List(items) => items.iter().for_each(|item| for_each_slot(item, visit)),
        Operand::Const(_) => {}
    }
}
