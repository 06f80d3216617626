//! The graph of a program: a list of nodes in execution order over named values.
//!
//! One form serves from the archive to the planner. What `torch.export` saved is the raw graph (in-place operators,
//! aliases, omitted default arguments); passes turn it into the functional, canonical graph that the planner takes.

use std::collections::BTreeMap;

use highroad_tensor::{DType, Tensor};

/// A value in one [`Graph`]; an index into [`Graph::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

/// A program's graph, or the body of a higher-order operator.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    /// Every value by id; a value without a producer that is no input is dead.
    pub values: Vec<Value>,
    /// Values given from outside, in order.
    pub inputs: Vec<Input>,
    /// Operators in execution order: a node uses only inputs and outputs of earlier nodes.
    pub nodes: Vec<Node>,
    /// What the graph returns, in order.
    pub outputs: Vec<Argument>,
    /// Tensors behind the inputs whose source is [`Source::Weight`]; empty in the bodies of higher-order operators.
    pub weights: Weights,
}

/// Tensors by name: what the archive stores, and what passes computed from it.
///
/// Two are equal if names, dtypes and sizes are; elements are not compared, for there may be gigabytes.
#[derive(Clone, Debug, Default)]
pub struct Weights(pub BTreeMap<String, Tensor>);

impl PartialEq for Weights {
    fn eq(&self, other: &Self) -> bool {
        let describe = |(name, tensor): (_, &Tensor)| (name, tensor.dtype(), tensor.shape().to_vec());
        self.0.iter().map(describe).eq(other.0.iter().map(describe))
    }
}

/// A named value and what is known about it before running.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// Unique in its graph; `%name` in text.
    pub name: String,
    /// What the value is.
    pub ty: Type,
}

/// What a value is.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    /// A tensor.
    Tensor(TensorType),
    /// Not known: text without types, or a value that a pass made before shapes are inferred.
    Unknown,
    /// A size or other integer computed while running.
    Int,
    /// A float computed while running.
    Float,
    /// A condition computed while running.
    Bool,
}

/// Element type and sizes of a tensor; strides are never part of a program's meaning here.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Sizes, outermost dimension first.
    pub sizes: Vec<Dim>,
}

/// One size of a tensor type.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Dim {
    /// The same on every run.
    Known(usize),
    /// A symbol (`s77`) or an expression over symbols in torch's own notation, kept as text: equal text means equal
    /// sizes, and nothing else is derived from it (operators recompute every size they use).
    Symbol(String),
}

/// Where an input's value comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// Given by the caller; `position` counts the flattened leaves of the user's arguments that are no constants.
    User {
        /// Position among the leaves that are given on each run.
        position: usize,
    },
    /// A parameter, buffer or tensor constant, by its fully qualified name in [`Graph::weights`].
    Weight(String),
    /// An operand of the higher-order operator that owns this graph.
    Operand,
}

/// A graph input.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// The value it defines.
    pub value: ValueId,
    /// Where it comes from.
    pub source: Source,
}

/// One application of an operator.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Operator with overload: `aten.add.Tensor`, `_operator.mul`, `higher_order.cond`, `highroad.linear_gelu`.
    pub op: String,
    /// Arguments under their schema names. The reader keeps what the archive holds (defaults omitted); the pass
    /// `fill_defaults` completes them in schema order.
    pub args: Vec<(String, Argument)>,
    /// What it returns, lists of tensors (`split`, `chunk`, `unbind`) flattened; `None` for a result that is
    /// undefined or never used.
    pub outputs: Vec<Option<ValueId>>,
    /// Where the user's Python called it, as `file.py:41`, when the archive tells.
    pub location: Option<String>,
}

impl Node {
    /// The argument called `name`; `None` when it was left to its default.
    pub fn arg(&self, name: &str) -> Option<&Argument> {
        self.args.iter().find(|(arg, _)| arg == name).map(|(_, value)| value)
    }
}

/// An argument of a node or an output of a graph.
#[derive(Clone, Debug, PartialEq)]
pub enum Argument {
    /// Absent optional.
    None,
    /// A value of this graph.
    Value(ValueId),
    /// An integer constant.
    Int(i64),
    /// A float constant, infinities and NaN included.
    Float(f64),
    /// A boolean constant.
    Bool(bool),
    /// A string constant (`mode="mean"`).
    Str(String),
    /// An element type.
    DType(DType),
    /// A device, layout or memory format: names that mean nothing on the CPU.
    Ignored(String),
    /// Several arguments: integers, floats, values, optional tensors, in any mix.
    List(Vec<Argument>),
    /// The body of a higher-order operator.
    Graph(Box<Graph>),
}

impl Argument {
    /// Calls `visit` for every value in this argument, lists included; bodies of higher-order operators have values of
    /// their own and are left out.
    pub fn for_each_value(&self, visit: &mut impl FnMut(ValueId)) {
        match self {
            Self::Value(id) => visit(*id),
            Self::List(items) => items.iter().for_each(|item| item.for_each_value(visit)),
            _ => {}
        }
    }

    /// Replaces every value in this argument by what `replace` gives.
    pub fn map_values(&mut self, replace: &mut impl FnMut(ValueId) -> Argument) {
        match self {
            Self::Value(id) => *self = replace(*id),
            Self::List(items) => items.iter_mut().for_each(|item| item.map_values(replace)),
            _ => {}
        }
    }

    /// The value, if this is one.
    pub fn as_value(&self) -> Option<ValueId> {
        match self {
            Self::Value(id) => Some(*id),
            _ => None,
        }
    }
}

impl Graph {
    /// Adds a value and gives its id. The caller keeps names unique.
    pub fn add_value(&mut self, name: impl Into<String>, ty: Type) -> ValueId {
        let id = ValueId(u32::try_from(self.values.len()).expect("the reader limits the number of values"));
        self.values.push(Value { name: name.into(), ty });
        id
    }

    /// The value behind `id`.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    /// The dtype and sizes of `id`, if it is a tensor whose type is known.
    pub fn tensor_type(&self, id: ValueId) -> Option<&TensorType> {
        match &self.value(id).ty {
            Type::Tensor(ty) => Some(ty),
            _ => None,
        }
    }

    /// The tensor behind `id`, if it is a weight input.
    pub fn weight(&self, id: ValueId) -> Option<&Tensor> {
        self.inputs.iter().find(|input| input.value == id).and_then(|input| match &input.source {
            Source::Weight(name) => self.weights.0.get(name),
            _ => None,
        })
    }

    /// How often each value is used, by id: as an argument or as an output of the graph.
    pub fn use_counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.values.len()];
        let args = self.nodes.iter().flat_map(|node| node.args.iter().map(|(_, arg)| arg));
        for arg in args.chain(&self.outputs) {
            arg.for_each_value(&mut |id| counts[id.0 as usize] += 1);
        }
        counts
    }
}
