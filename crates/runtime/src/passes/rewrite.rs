//! What passes share: fresh names, replaced values, sizes that are known by name.

use std::collections::{HashMap, HashSet};

use crate::graph::{Argument, Dim, Graph, Node, Type, ValueId};
use crate::passes::Changed;

/// Gives values names that no other value of the graph has.
pub(super) struct Namer {
    taken: HashSet<String>,
}

impl Namer {
    pub(super) fn new(graph: &Graph) -> Self {
        Self { taken: graph.values.iter().map(|value| value.name.clone()).collect() }
    }

    /// A new value called `base`, or `base` with a number behind it.
    pub(super) fn add(&mut self, graph: &mut Graph, base: &str, ty: Type) -> ValueId {
        let mut name = base.to_owned();
        let mut number = 1;
        while !self.taken.insert(name.clone()) {
            name = format!("{base}.{number}");
            number += 1;
        }
        graph.add_value(name, ty)
    }
}

/// A node with one result.
pub(super) fn node(op: &str, args: Vec<(&str, Argument)>, output: ValueId, location: &Option<String>) -> Node {
    let args = args.into_iter().map(|(name, arg)| (name.to_owned(), arg)).collect();
    Node { op: op.to_owned(), args, outputs: vec![Some(output)], location: location.clone() }
}

/// The one result of a node that has exactly one.
pub(super) fn only_output(node: &Node) -> Option<ValueId> {
    match node.outputs.as_slice() {
        [Some(output)] => Some(*output),
        _ => None,
    }
}

/// The value given as `name`.
pub(super) fn value_arg(node: &Node, name: &str) -> Option<ValueId> {
    node.arg(name).and_then(Argument::as_value)
}

/// The integer given as `name`.
pub(super) fn int_arg(node: &Node, name: &str) -> Option<i64> {
    match node.arg(name) {
        Some(Argument::Int(value)) => Some(*value),
        _ => None,
    }
}

/// Values to be read in place of others, applied to everything that follows.
#[derive(Default)]
pub(super) struct Replacements(HashMap<ValueId, Argument>);

impl Replacements {
    /// From now on `by` is read where `id` was.
    pub(super) fn replace(&mut self, id: ValueId, by: Argument) {
        self.0.insert(id, by);
    }

    pub(super) fn apply(&self, arg: &mut Argument) {
        if !self.0.is_empty() {
            arg.map_values(&mut |id| self.0.get(&id).cloned().unwrap_or(Argument::Value(id)));
        }
    }

    pub(super) fn apply_to(&self, node: &mut Node) {
        node.args.iter_mut().for_each(|(_, arg)| self.apply(arg));
    }
}

/// What becomes of a node.
pub(super) enum Rewrite {
    /// It stays.
    Keep,
    /// It stays with other operator or arguments.
    To(Node),
    /// Its only result is this, which existed before.
    Is(Argument),
}

/// Visits nodes in order, each with its arguments already rewritten. `decide` sees the nodes kept so far through
/// `graph.nodes`, and may push new ones there, before the one that it decides about.
pub(super) fn rewrite_each(graph: &mut Graph, mut decide: impl FnMut(&mut Graph, &Node) -> Rewrite) -> Changed {
    let mut replacements = Replacements::default();
    let mut changed = Changed::No;
    for mut node in std::mem::take(&mut graph.nodes) {
        replacements.apply_to(&mut node);
        match decide(graph, &node) {
            Rewrite::Keep => graph.nodes.push(node),
            Rewrite::To(node) => {
                changed = Changed::Yes;
                graph.nodes.push(node);
            }
            Rewrite::Is(argument) => {
                changed = Changed::Yes;
                match only_output(&node) {
                    Some(output) => replacements.replace(output, argument),
                    None => graph.nodes.push(node),
                }
            }
        }
    }
    graph.outputs.iter_mut().for_each(|output| replacements.apply(output));
    changed
}

/// Which node of `graph.nodes` defines each value so far.
pub(super) struct Producers(HashMap<ValueId, usize>);

impl Producers {
    pub(super) fn new() -> Self {
        Self(HashMap::new())
    }

    /// Takes in the nodes that were added since the last call.
    pub(super) fn extend(&mut self, graph: &Graph, seen: &mut usize) {
        for (index, node) in graph.nodes.iter().enumerate().skip(*seen) {
            node.outputs.iter().flatten().for_each(|output| _ = self.0.insert(*output, index));
        }
        *seen = graph.nodes.len();
    }

    pub(super) fn get<'a>(&self, graph: &'a Graph, id: ValueId) -> Option<&'a Node> {
        self.0.get(&id).map(|&index| &graph.nodes[index])
    }
}

/// Integers computed so far that hold the size a symbol stands for.
#[derive(Default)]
pub(super) struct Symbols(HashMap<String, ValueId>);

impl Symbols {
    /// Takes note if `node` reads a symbolic size.
    pub(super) fn note(&mut self, graph: &Graph, node: &Node) {
        if node.op != "aten.sym_size.int" {
            return;
        }
        let (Some(tensor), Some(dim), Some(output)) =
            (value_arg(node, "self"), int_arg(node, "dim"), only_output(node))
        else {
            return;
        };
        let Some(ty) = graph.tensor_type(tensor) else { return };
        if let Some(Dim::Symbol(symbol)) = wrap(dim, ty.sizes.len()).and_then(|dim| ty.sizes.get(dim)) {
            self.0.entry(symbol.clone()).or_insert(output);
        }
    }

    /// The size as an argument; `None` if no value holds it yet.
    pub(super) fn argument(&self, size: &Dim) -> Option<Argument> {
        match size {
            Dim::Known(size) => i64::try_from(*size).ok().map(Argument::Int),
            Dim::Symbol(symbol) => self.0.get(symbol).map(|&id| Argument::Value(id)),
        }
    }

    /// The symbol whose size `arg` is.
    pub(super) fn symbol(&self, arg: &Argument) -> Option<Dim> {
        let id = arg.as_value()?;
        self.0.iter().find(|(_, held)| **held == id).map(|(symbol, _)| Dim::Symbol(symbol.clone()))
    }

    /// Whether `arg` is exactly `size` on every run.
    pub(super) fn is(&self, arg: &Argument, size: &Dim) -> bool {
        self.argument(size).as_ref() == Some(arg)
    }
}

/// A dimension counted from the front; `None` if it does not exist.
pub(super) fn wrap(dim: i64, ndim: usize) -> Option<usize> {
    let from_front = if dim < 0 { dim.checked_add(i64::try_from(ndim).ok()?)? } else { dim };
    usize::try_from(from_front).ok().filter(|&dim| dim < ndim)
}
