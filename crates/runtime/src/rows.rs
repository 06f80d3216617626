//! Row independence: the proof that row `i` of every output depends on row `i` of the inputs alone.
//!
//! Batching may put any requests side by side, so a served program must not let one row see another. The proof is a
//! dataflow analysis over the canonical graph: every value gets a [`Rows`], each operator's rule derives the result's
//! from its arguments', and whatever no rule covers counts as mixed. It is about meaning; that the kernels also give
//! the same *bits* in any batch is their promise and is tested.

use std::fmt;

use crate::graph::{Argument, Dim, Graph, Node, Source, Type, ValueId};
use crate::op;

/// How a value relates to the rows of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// The same whatever the batch holds and however many rows it has.
    Uniform,
    /// Slice `i` along this dimension depends on row `i` of the inputs and on no other.
    Row(usize),
    /// Slice `i` along this dimension holds the number `i` (`arange(batch)`, as masks index with it); all other
    /// dimensions have size 1.
    Iota(usize),
    /// The number of rows.
    Size,
    /// An integer computed from the number of rows.
    FromSize,
}

/// Derives the rows of an operator's results from its arguments; the error says in words why rows may mix.
pub type RowRule = fn(&RowCall<'_>) -> Result<Rows, String>;

/// Whether the rows of a batch can influence each other.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RowIndependence {
    /// Row `i` of every output depends on row `i` of the inputs alone: the same row gives the same bits alone and in
    /// any batch.
    Proved,
    /// Not proved; `reason` names the first offending node or output.
    NotProved {
        /// Why, in words.
        reason: String,
    },
}

impl RowIndependence {
    /// Whether it was proved.
    pub fn is_proved(&self) -> bool {
        *self == Self::Proved
    }

    /// Analyses the canonical graph of a program.
    pub fn of(graph: &Graph) -> Self {
        match prove(graph) {
            Ok(()) => Self::Proved,
            Err(reason) => Self::NotProved { reason },
        }
    }
}

impl fmt::Display for RowIndependence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Proved => f.write_str("proved: every row is computed from that row alone"),
            Self::NotProved { reason } => write!(f, "not proved: {reason}"),
        }
    }
}

fn prove(graph: &Graph) -> Result<(), String> {
    let batch = batch_symbol(graph)?;
    let mut rows: Vec<Option<Rows>> = vec![None; graph.values.len()];
    for input in &graph.inputs {
        let is_batched = matches!(input.source, Source::User { .. }) && leads_with(graph, input.value, &batch);
        rows[input.value.0 as usize] = Some(if is_batched { Rows::Row(0) } else { Rows::Uniform });
    }
    for node in &graph.nodes {
        let call = RowCall { graph, node, rows: &rows, batch: &batch };
        let result = call.rule().map_err(|why| format!("{} {why}", describe(graph, node)))?;
        for id in node.outputs.iter().flatten() {
            rows[id.0 as usize] = Some(result);
        }
    }
    graph.outputs.iter().enumerate().try_for_each(|(index, output)| match output {
        Argument::Value(id) => match rows[id.0 as usize] {
            Some(Rows::Row(0)) => Ok(()),
            _ => {
                Err(format!("output {index} (`%{}`) does not have the rows of the batch first", graph.value(*id).name))
            }
        },
        _ => Ok(()),
    })
}

/// The symbol of dimension 0 of the first user input that has one.
fn batch_symbol(graph: &Graph) -> Result<Dim, String> {
    let first_dims = graph.inputs.iter().filter(|input| matches!(input.source, Source::User { .. }));
    first_dims
        .filter_map(|input| sizes(graph, input.value)?.first())
        .find(|dim| matches!(dim, Dim::Symbol(_)))
        .cloned()
        .ok_or_else(|| "no input has a dynamic batch dimension".to_owned())
}

fn leads_with(graph: &Graph, value: ValueId, batch: &Dim) -> bool {
    sizes(graph, value).is_some_and(|sizes| sizes.first() == Some(batch))
}

fn sizes(graph: &Graph, value: ValueId) -> Option<&[Dim]> {
    match &graph.value(value).ty {
        Type::Tensor(ty) => Some(&ty.sizes),
        _ => None,
    }
}

fn describe(graph: &Graph, node: &Node) -> String {
    let name = node.outputs.iter().flatten().next().map_or("?", |&id| &graph.value(id).name);
    let location = node.location.as_ref().map(|location| format!(" ({location})")).unwrap_or_default();
    format!("`%{name} = {}`{location}", node.op)
}

/// A node as its rule sees it: arguments by schema name, with their rows and sizes.
pub struct RowCall<'a> {
    graph: &'a Graph,
    node: &'a Node,
    rows: &'a [Option<Rows>],
    batch: &'a Dim,
}

impl<'a> RowCall<'a> {
    fn rule(&self) -> Result<Rows, String> {
        if self.all_values().all(|(_, rows)| rows == Rows::Uniform) {
            return Ok(Rows::Uniform);
        }
        let op = op::lookup(&self.node.op).ok_or("is not known")?;
        (op.declaration().rows)(self)
    }

    /// Every value among the arguments, lists included, with its rows.
    pub fn all_values(&self) -> impl Iterator<Item = (ValueId, Rows)> {
        let mut ids = Vec::new();
        self.node.args.iter().for_each(|(_, arg)| collect_values(arg, &mut ids));
        ids.into_iter().map(|id| (id, self.rows_of(id)))
    }

    /// The values of argument `name`, lists included, with their rows.
    pub fn values(&self, name: &str) -> Vec<(ValueId, Rows)> {
        let mut ids = Vec::new();
        if let Some(arg) = self.node.arg(name) {
            collect_values(arg, &mut ids);
        }
        ids.into_iter().map(|id| (id, self.rows_of(id))).collect()
    }

    /// Rows of the argument `name`; uniform if it is a constant or absent.
    pub fn rows(&self, name: &str) -> Rows {
        self.values(name).first().map_or(Rows::Uniform, |&(_, rows)| rows)
    }

    /// Sizes of the tensor argument `name`.
    pub fn sizes(&self, name: &str) -> Result<&'a [Dim], String> {
        let &(id, _) = self.values(name).first().ok_or_else(|| format!("has no tensor `{name}`"))?;
        self.sizes_of(id)
    }

    /// Sizes of the value `id`.
    pub fn sizes_of(&self, id: ValueId) -> Result<&'a [Dim], String> {
        sizes(self.graph, id).ok_or_else(|| format!("uses `%{}` of unknown shape", self.graph.value(id).name))
    }

    /// Sizes of the first result.
    pub fn out_sizes(&self) -> Result<&'a [Dim], String> {
        let id = self.node.outputs.iter().flatten().next().ok_or("has no result")?;
        self.sizes_of(*id)
    }

    /// The argument `name` as the graph holds it.
    pub fn arg(&self, name: &str) -> Option<&'a Argument> {
        self.node.arg(name)
    }

    /// The constant integer `name`.
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.arg(name)? {
            Argument::Int(int) => Some(*int),
            _ => None,
        }
    }

    /// The constant dimension `name` of a tensor of `ndim` dimensions, counted from the front.
    pub fn dim(&self, name: &str, ndim: usize) -> Result<usize, String> {
        self.int(name).and_then(|dim| from_front(dim, ndim)).ok_or_else(|| format!("has a `{name}` that is unknown"))
    }

    /// The constant dimensions `name`, one or several, counted from the front; `None` where the argument is absent or
    /// empty, which reductions read as "all".
    pub fn dims(&self, name: &str, ndim: usize) -> Result<Option<Vec<usize>>, String> {
        let unknown = || format!("has a `{name}` that is unknown");
        match self.arg(name) {
            None | Some(Argument::None) => Ok(None),
            Some(Argument::List(items)) if items.is_empty() => Ok(None),
            Some(Argument::List(items)) => {
                let dim = |item: &Argument| match item {
                    Argument::Int(dim) => from_front(*dim, ndim),
                    _ => None,
                };
                items.iter().map(|item| dim(item).ok_or_else(unknown)).collect::<Result<_, _>>().map(Some)
            }
            Some(Argument::Int(dim)) => Ok(Some(vec![from_front(*dim, ndim).ok_or_else(unknown)?])),
            Some(_) => Err(unknown()),
        }
    }

    /// Whether `size` is the number of rows.
    pub fn is_batch(&self, size: &Dim) -> bool {
        size == self.batch
    }

    fn rows_of(&self, id: ValueId) -> Rows {
        self.rows[id.0 as usize].unwrap_or(Rows::FromSize)
    }
}

fn from_front(dim: i64, ndim: usize) -> Option<usize> {
    let ndim = i64::try_from(ndim).ok()?;
    let dim = if dim < 0 { dim + ndim } else { dim };
    (0..ndim).contains(&dim).then_some(dim as usize)
}

fn collect_values(arg: &Argument, ids: &mut Vec<ValueId>) {
    match arg {
        Argument::Value(id) => ids.push(*id),
        Argument::List(items) => items.iter().for_each(|item| collect_values(item, ids)),
        _ => {}
    }
}
