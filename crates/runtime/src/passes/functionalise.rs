//! Writes turned into values: after this pass nothing is written to.
//!
//! In PyTorch `y = x.view(-1); y.add_(1)` changes `x`. The pass follows which values are views of which, replaces each
//! write by the operator that computes the new value, and carries that value back through the views to the memory they
//! share: a write to `x.select(0, 2)` becomes `select_scatter`. A view read after a write is taken again.
//!
//! Where PyTorch decides by strides whether two values share memory (`reshape`, `contiguous`), they are taken as
//! separate, and a program that writes to one and then reads the other is refused.

use std::collections::{HashMap, HashSet};

use highroad_tensor::DType;

use crate::graph::{Argument, Dim, Graph, Node, Source, Type, ValueId};
use crate::op;
use crate::passes::rewrite::{Namer, int_arg, node, only_output, value_arg, wrap};
use crate::passes::{Changed, PassError};

pub(super) fn functionalise(graph: &mut Graph) -> Result<Changed, PassError> {
    refuse_training(graph)?;
    if !graph.nodes.iter().any(|node| writes(&node.op)) {
        return Ok(Changed::No);
    }
    let nodes = std::mem::take(&mut graph.nodes);
    let mut pass = Functionaliser { namer: Namer::new(graph), graph, memory: Vec::new(), values: HashMap::new() };
    for node in nodes {
        pass.node(node)?;
    }
    pass.outputs()?;
    Ok(Changed::Yes)
}

/// Batch normalisation in training mode writes to its running statistics without an underscore in its name.
fn refuse_training(graph: &Graph) -> Result<(), PassError> {
    let trains = |node: &&Node| {
        let flag = match node.op.as_str() {
            "aten.batch_norm.default" | "aten.native_batch_norm.default" => node.arg("training"),
            "aten.instance_norm.default" => node
                .arg("use_input_stats")
                .filter(|_| node.arg("running_mean").is_some_and(|mean| *mean != Argument::None)),
            "aten.dropout.default" | "aten.feature_dropout.default" | "aten.dropout_.default" => node.arg("train"),
            _ => None,
        };
        flag == Some(&Argument::Bool(true))
    };
    match graph.nodes.iter().find(trains) {
        None => Ok(()),
        Some(node) => {
            let what = format!("{} in training mode (call `model.eval()` before export)", node.op);
            Err(PassError::unsupported(what, &node.location))
        }
    }
}

/// Whether the operator writes to its first argument: `aten.relu_.default`, but not `aten.__and__.Tensor`.
fn writes(op: &str) -> bool {
    stem(op).is_some_and(|stem| match stem.strip_prefix("__") {
        Some(dunder) => {
            dunder.starts_with('i') && stem.ends_with("__") && DUNDERS.contains(&dunder.trim_end_matches('_'))
        }
        None => stem.ends_with('_'),
    })
}

/// `__iadd__` and its like write; `__invert__` does not.
const DUNDERS: &[&str] = &["iadd", "isub", "imul", "idiv", "iand", "ior", "ixor", "ilshift", "irshift"];

/// Operators that give booleans, unless they write.
const COMPARISONS: &[&str] = &[
    "aten.eq",
    "aten.ne",
    "aten.lt",
    "aten.le",
    "aten.gt",
    "aten.ge",
    "aten.logical_and",
    "aten.logical_or",
    "aten.logical_xor",
    "aten.logical_not",
];

/// `relu_` of `aten.relu_.default`.
fn stem(op: &str) -> Option<&str> {
    let mut parts = op.split('.');
    let namespace = parts.next()?;
    (namespace != "_operator" && namespace != "higher_order").then(|| parts.next()).flatten()
}

/// The operator that computes what `op` writes.
fn functional_name(op: &str) -> String {
    if let Some(functional) = op::lookup(op).and_then(|op| op.functional()) {
        return functional.name().to_owned();
    }
    let stem = stem(op).unwrap_or_default();
    let functional = match stem.strip_prefix("__i") {
        Some(dunder) => format!("__{dunder}"),
        None => stem.trim_end_matches('_').to_owned(),
    };
    op.replacen(stem, &functional, 1)
}

/// Memory that values share.
struct Memory {
    /// Counts writes; a value seen at an older version is stale.
    version: usize,
    /// Memory that may be the same, depending on strides.
    maybe_same: Vec<usize>,
    /// Set when memory that may be the same was written: what is in this one is no longer known.
    unknown: bool,
    /// Why it must not be written to, if so.
    read_only: Option<String>,
}

/// What is known about a tensor of the original graph.
#[derive(Clone)]
struct Known {
    memory: usize,
    /// The value and the node that this is a view of; `None` if it is all of its memory.
    view: Option<View>,
    /// What holds its content now, as of `version`.
    current: ValueId,
    version: usize,
}

#[derive(Clone)]
struct View {
    parent: ValueId,
    kind: ViewKind,
    node: Node,
    /// Which result of the node.
    output: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum ViewKind {
    /// The same elements in the same order and shape.
    Same,
    /// The same elements in the same order, in another shape.
    Reshape,
    /// The same elements with dimensions reordered.
    Permute,
    /// Some of the elements.
    Part,
    /// Elements that lie at several places, or a form that is not written back here.
    ReadOnly,
}

/// How a node's results relate to the memory of its first argument.
enum Relation {
    View(ViewKind),
    /// A copy or a view, depending on strides.
    Either,
    New,
}

struct Functionaliser<'a> {
    graph: &'a mut Graph,
    namer: Namer,
    memory: Vec<Memory>,
    values: HashMap<ValueId, Known>,
}

impl Functionaliser<'_> {
    fn node(&mut self, mut node: Node) -> Result<(), PassError> {
        if writes(&node.op) {
            return self.write(node);
        }
        let relation = self.relation(&node);
        let parent = first_value(&node);
        let original = node.clone();
        self.read_args(&mut node)?;
        let outputs: Vec<(usize, ValueId)> =
            node.outputs.iter().enumerate().filter_map(|(i, output)| Some((i, (*output)?))).collect();
        self.graph.nodes.push(node);
        for (position, output) in outputs {
            match (&relation, parent) {
                (Relation::View(kind), Some(parent)) => {
                    let view = View { parent, kind: *kind, node: original.clone(), output: position };
                    self.add_view(output, view);
                }
                (Relation::Either, Some(parent)) => {
                    let memory = self.add_memory(output);
                    let other = self.known(parent).memory;
                    self.memory[memory].maybe_same.push(other);
                    self.memory[other].maybe_same.push(memory);
                }
                _ => _ = self.add_memory(output),
            }
        }
        Ok(())
    }

    fn relation(&self, node: &Node) -> Relation {
        let op = node.op.as_str();
        match op.rsplit_once('.').map_or(op, |(name, _)| name) {
            "aten.alias" | "aten.detach" | "aten.lift_fresh" | "aten.dropout" | "aten.feature_dropout" => {
                Relation::View(ViewKind::Same)
            }
            "aten.view" | "aten.unsqueeze" | "aten.squeeze" | "aten.unflatten" | "aten.view_as" => {
                Relation::View(ViewKind::Reshape)
            }
            "aten.transpose" | "aten.t" | "aten.permute" | "aten.numpy_T" | "aten.mT" => {
                Relation::View(ViewKind::Permute)
            }
            "aten.select" | "aten.slice" | "aten.narrow" | "aten.split" | "aten.split_with_sizes" | "aten.unbind" => {
                Relation::View(ViewKind::Part)
            }
            "aten.chunk"
            | "aten.expand"
            | "aten.expand_as"
            | "aten.diagonal"
            | "aten.unfold"
            | "aten.as_strided"
            | "aten.movedim"
            | "aten.swapaxes"
            | "aten.real"
            | "aten.imag"
            | "aten.view_as_real"
            | "aten.view_as_complex" => Relation::View(ViewKind::ReadOnly),
            "aten.reshape" | "aten.flatten" | "aten.contiguous" | "aten.ravel" => Relation::Either,
            "aten.to" | "aten.type_as" | "aten.float" if self.keeps_dtype(node) => match node.arg("copy") {
                Some(Argument::Bool(true)) => Relation::New,
                _ => Relation::View(ViewKind::Same),
            },
            _ => match op::lookup(op) {
                // A view that was declared after this list was made.
                Some(op) if op.schema().args.iter().any(|arg| arg.access == op::Access::Alias) => Relation::Either,
                _ => Relation::New,
            },
        }
    }

    fn keeps_dtype(&self, node: &Node) -> bool {
        let dtype = |id: Option<ValueId>| id.and_then(|id| self.graph.tensor_type(id)).map(|ty| ty.dtype);
        let result = dtype(only_output(node));
        result.is_some() && result == dtype(first_value(node))
    }

    /// Replaces `x.op_(…)` by `op(x, …)` and carries the result to everything that shares memory with `x`.
    fn write(&mut self, mut node: Node) -> Result<(), PassError> {
        let place = node.location.clone();
        let target = first_value(&node)
            .ok_or_else(|| PassError::unsupported(format!("{} without a tensor to write to", node.op), &place))?;
        let results: Vec<ValueId> = node.outputs.iter().flatten().copied().collect();
        match stem(&node.op) {
            Some(
                "t_" | "transpose_" | "squeeze_" | "unsqueeze_" | "swapaxes_" | "swapdims_" | "as_strided_" | "resize_"
                | "set_" | "resize_as_",
            ) => {
                return Err(PassError::unsupported(
                    format!("{}, which changes a tensor's shape in place,", node.op),
                    &place,
                ));
            }
            Some("detach_" | "dropout_" | "requires_grad_") => {
                self.alias_results(target, &results, &node);
                return Ok(());
            }
            _ => {}
        }
        self.check_writable(target, &place)?;
        self.read_args(&mut node)?;
        let written = self.new_value(target, &mut node);
        self.carry_back(target, written, &place)?;
        self.alias_results(target, &results, &node);
        Ok(())
    }

    fn check_writable(&mut self, target: ValueId, place: &Option<String>) -> Result<(), PassError> {
        let memory = self.known(target).memory;
        match &self.memory[memory].read_only {
            Some(why) => Err(PassError::unsupported(why.clone(), place)),
            None => Ok(()),
        }
    }

    /// Adds the node that computes what was written; its arguments are current already.
    fn new_value(&mut self, target: ValueId, node: &mut Node) -> ValueId {
        let ty = self.graph.value(target).ty.clone();
        let name = match node.outputs.first() {
            Some(Some(output)) => self.graph.value(*output).name.clone(),
            _ => self.graph.value(target).name.clone(),
        };
        node.op = functional_name(&node.op);
        let casts = self.mixes_dtypes(target, node);
        let written = self.namer.add(self.graph, &name, if casts { Type::Unknown } else { ty.clone() });
        let location = node.location.clone();
        self.graph.nodes.push(Node { outputs: vec![Some(written)], ..node.clone() });
        match ty {
            // A write keeps the dtype of what is written to, whatever the other arguments would promote to.
            Type::Tensor(tensor) if casts => {
                let args = vec![("self", Argument::Value(written)), ("dtype", Argument::DType(tensor.dtype))];
                let cast = self.namer.add(self.graph, &name, Type::Tensor(tensor));
                self.graph.nodes.push(self::node("aten.to.dtype", args, cast, &location));
                cast
            }
            _ => written,
        }
    }

    fn mixes_dtypes(&self, target: ValueId, node: &Node) -> bool {
        // These say themselves which dtype they give.
        if matches!(
            node.op.as_str(),
            "aten.copy.default" | "aten.fill.Scalar" | "aten.fill.Tensor" | "aten.zero.default"
        ) {
            return false;
        }
        let dtype = self.graph.tensor_type(target).map(|ty| ty.dtype);
        if COMPARISONS.contains(&node.op.rsplit_once('.').map_or("", |(name, _)| name)) {
            return dtype != Some(DType::Bool);
        }
        let mut others = Vec::new();
        node.args.iter().for_each(|(_, arg)| arg.for_each_value(&mut |id| others.push(id)));
        let is_mask = |id: &ValueId| value_arg(node, "mask") == Some(*id) || value_arg(node, "index") == Some(*id);
        let is_index = matches!(node.arg("indices"), Some(Argument::List(_)));
        !is_index
            && others.iter().filter(|id| !is_mask(id)).any(|&id| match &self.graph.value(id).ty {
                Type::Tensor(ty) => Some(ty.dtype) != dtype,
                _ => false,
            })
    }

    /// Makes `written` the content of `target` and of all that shares memory with it.
    fn carry_back(&mut self, target: ValueId, written: ValueId, place: &Option<String>) -> Result<(), PassError> {
        // What the parents held before the write is what parts are written back into.
        let mut chain = Vec::new();
        let mut id = target;
        while let Some(view) = self.known(id).view {
            let old = self.current(view.parent, place)?;
            chain.push((id, view.clone(), old));
            id = view.parent;
        }
        let root = id;
        let memory = self.known(target).memory;
        self.memory[memory].version += 1;
        let version = self.memory[memory].version;
        let mut content = written;
        for (id, view, old) in chain {
            self.set_current(id, content, version);
            content = self.written_back(&view, old, content, place)?;
        }
        self.set_current(root, content, version);
        self.forget_what_may_be_the_same(memory);
        Ok(())
    }

    fn set_current(&mut self, id: ValueId, current: ValueId, version: usize) {
        if let Some(known) = self.values.get_mut(&id) {
            known.current = current;
            known.version = version;
        }
    }

    fn forget_what_may_be_the_same(&mut self, memory: usize) {
        let mut seen = HashSet::from([memory]);
        let mut next = vec![memory];
        while let Some(memory) = next.pop() {
            for &other in &self.memory[memory].maybe_same {
                if seen.insert(other) {
                    next.push(other);
                }
            }
        }
        seen.remove(&memory);
        seen.into_iter().for_each(|other| self.memory[other].unknown = true);
    }

    /// The parent's content once a view of it holds `content`; `old` is what it held before.
    fn written_back(
        &mut self,
        view: &View,
        old: ValueId,
        content: ValueId,
        place: &Option<String>,
    ) -> Result<ValueId, PassError> {
        let refused = || PassError::unsupported(format!("a write to the result of {}", view.node.op), place);
        let new = Argument::Value(content);
        let (op, args) = match view.kind {
            ViewKind::Same => return Ok(content),
            ViewKind::ReadOnly => return Err(refused()),
            ViewKind::Reshape => {
                let size = self.sizes(old, place).ok_or_else(refused)?;
                ("aten.view.default", vec![("self", new), ("size", size)])
            }
            ViewKind::Permute => {
                let ndim = self.graph.tensor_type(old).map(|ty| ty.sizes.len()).ok_or_else(refused)?;
                let dims = inverse_permutation(&view.node, ndim).ok_or_else(refused)?;
                ("aten.permute.default", vec![("self", new), ("dims", dims)])
            }
            ViewKind::Part => {
                let (op, place_args) = scatter(view).ok_or_else(refused)?;
                let mut args = vec![("self", Argument::Value(old)), ("src", new)];
                args.extend(place_args);
                (op, args)
            }
        };
        let ty = self.graph.value(view.parent).ty.clone();
        let name = self.graph.value(view.parent).name.clone();
        let output = self.namer.add(self.graph, &name, ty);
        self.graph.nodes.push(node(op, args, output, place));
        Ok(output)
    }

    /// The sizes of `id` as an argument; symbolic ones are read from it.
    fn sizes(&mut self, id: ValueId, place: &Option<String>) -> Option<Argument> {
        let sizes = self.graph.tensor_type(id)?.sizes.clone();
        let mut args = Vec::with_capacity(sizes.len());
        for (dim, size) in sizes.iter().enumerate() {
            let dim = i64::try_from(dim).ok()?;
            args.push(match size {
                Dim::Known(size) => Argument::Int(i64::try_from(*size).ok()?),
                Dim::Symbol(_) => {
                    let output = self.namer.add(self.graph, "size", Type::Int);
                    let args = vec![("self", Argument::Value(id)), ("dim", Argument::Int(dim))];
                    self.graph.nodes.push(node("aten.sym_size.int", args, output, place));
                    Argument::Value(output)
                }
            });
        }
        Some(Argument::List(args))
    }

    /// An in-place operator returns what it wrote to.
    fn alias_results(&mut self, target: ValueId, results: &[ValueId], node: &Node) {
        for &result in results {
            let view = View { parent: target, kind: ViewKind::Same, node: node.clone(), output: 0 };
            let known = self.known(target).clone();
            // Never read itself: `current` goes through the parent.
            self.values.insert(result, Known { view: Some(view), version: usize::MAX, ..known });
        }
    }

    fn read_args(&mut self, node: &mut Node) -> Result<(), PassError> {
        let place = node.location.clone();
        for (_, arg) in &mut node.args {
            self.read(arg, &place)?;
        }
        Ok(())
    }

    fn read(&mut self, arg: &mut Argument, place: &Option<String>) -> Result<(), PassError> {
        let mut error = None;
        arg.map_values(&mut |id| match self.current(id, place) {
            Ok(current) => Argument::Value(current),
            Err(refused) => {
                error = Some(refused);
                Argument::Value(id)
            }
        });
        error.map_or(Ok(()), Err)
    }

    /// What holds the content of `id` now; a view that is older than the last write is taken again.
    fn current(&mut self, id: ValueId, place: &Option<String>) -> Result<ValueId, PassError> {
        if !self.is_tensor(id) {
            return Ok(id);
        }
        let known = self.known(id);
        let memory = &self.memory[known.memory];
        if memory.unknown {
            let name = &self.graph.value(id).name;
            let what = format!(
                "reading `{name}` after a write to a tensor that may or may not share its memory (clone it first)"
            );
            return Err(PassError::unsupported(what, place));
        }
        let version = memory.version;
        let Some(view) = known.view.filter(|_| known.version != version) else { return Ok(known.current) };
        let parent = self.current(view.parent, place)?;
        let current = match view.kind {
            ViewKind::Same => parent,
            _ => self.take_again(id, &view, parent, place)?,
        };
        self.set_current(id, current, version);
        Ok(current)
    }

    fn take_again(
        &mut self,
        id: ValueId,
        view: &View,
        parent: ValueId,
        place: &Option<String>,
    ) -> Result<ValueId, PassError> {
        let mut node = view.node.clone();
        // Other arguments of a view are numbers, which are never written to, or the tensor it is shaped after.
        for (position, (_, arg)) in node.args.iter_mut().enumerate() {
            if position == 0 {
                *arg = Argument::Value(parent);
            } else {
                self.read(arg, place)?;
            }
        }
        let value = self.graph.value(id);
        let (name, ty) = (value.name.clone(), value.ty.clone());
        let output = self.namer.add(self.graph, &name, ty);
        node.outputs = vec![None; node.outputs.len()];
        node.outputs[view.output] = Some(output);
        self.graph.nodes.push(node);
        Ok(output)
    }

    fn outputs(&mut self) -> Result<(), PassError> {
        let mut outputs = std::mem::take(&mut self.graph.outputs);
        for output in &mut outputs {
            self.read(output, &None)?;
        }
        self.graph.outputs = outputs;
        Ok(())
    }

    fn is_tensor(&self, id: ValueId) -> bool {
        matches!(self.graph.value(id).ty, Type::Tensor(_) | Type::Unknown)
    }

    fn known(&mut self, id: ValueId) -> Known {
        if !self.values.contains_key(&id) {
            self.add_memory(id);
        }
        self.values[&id].clone()
    }

    fn add_memory(&mut self, id: ValueId) -> usize {
        let memory = self.memory.len();
        let read_only = self.graph.inputs.iter().find(|input| input.value == id).map(|input| {
            let name = &self.graph.value(id).name;
            match &input.source {
                Source::Weight(name) => format!(
                    "a write to `{name}`, a weight, buffer or constant of the program (its changes would be lost between runs),"
                ),
                _ => format!("a write to the input `{name}` (clone it first)"),
            }
        });
        self.memory.push(Memory { version: 0, maybe_same: Vec::new(), unknown: false, read_only });
        self.values.insert(id, Known { memory, view: None, current: id, version: 0 });
        memory
    }

    fn add_view(&mut self, id: ValueId, view: View) {
        let memory = self.known(view.parent).memory;
        let version = self.memory[memory].version;
        self.values.insert(id, Known { memory, view: Some(view), current: id, version });
    }
}

fn first_value(node: &Node) -> Option<ValueId> {
    node.args.first().and_then(|(_, arg)| arg.as_value())
}

fn inverse_permutation(node: &Node, ndim: usize) -> Option<Argument> {
    let stem = stem(&node.op)?;
    let mut order: Vec<usize> = (0..ndim).collect();
    match stem {
        "permute" => {
            let Some(Argument::List(dims)) = node.arg("dims") else { return None };
            let dims: Option<Vec<usize>> =
                dims.iter().map(|dim| if let Argument::Int(dim) = dim { wrap(*dim, ndim) } else { None }).collect();
            for (position, dim) in dims?.into_iter().enumerate() {
                *order.get_mut(dim)? = position;
            }
        }
        "transpose" => order.swap(wrap(int_arg(node, "dim0")?, ndim)?, wrap(int_arg(node, "dim1")?, ndim)?),
        "mT" => order.swap(ndim.checked_sub(1)?, ndim.checked_sub(2)?),
        _ => order.reverse(),
    }
    let order: Option<Vec<Argument>> =
        order.into_iter().map(|dim| Some(Argument::Int(i64::try_from(dim).ok()?))).collect();
    order.map(Argument::List)
}

/// The operator that puts a part back, and where it goes.
fn scatter(view: &View) -> Option<(&'static str, Vec<(&'static str, Argument)>)> {
    let node = &view.node;
    let arg = |name: &str, default: Argument| node.arg(name).cloned().unwrap_or(default);
    let dim = ("dim", arg("dim", Argument::Int(0)));
    let slice = |start: Argument, end: Argument, step: Argument| {
        Some(("aten.slice_scatter.default", vec![dim.clone(), ("start", start), ("end", end), ("step", step)]))
    };
    let one = Argument::Int(1);
    let position = i64::try_from(view.output).ok()?;
    match stem(&node.op)? {
        "select" => Some(("aten.select_scatter.default", vec![dim, ("index", arg("index", Argument::None))])),
        "unbind" => Some(("aten.select_scatter.default", vec![dim, ("index", Argument::Int(position))])),
        "slice" => slice(arg("start", Argument::None), arg("end", Argument::None), arg("step", one)),
        "narrow" => {
            let (start, length) = (int_arg(node, "start")?, int_arg(node, "length")?);
            // Counted from the end, the end of the part would have to be too.
            let end = start.checked_add(length).filter(|_| start >= 0)?;
            slice(Argument::Int(start), Argument::Int(end), one)
        }
        "split" => {
            let size = int_arg(node, "split_size")?;
            let start = size.checked_mul(position)?;
            slice(Argument::Int(start), Argument::Int(start.checked_add(size)?), one)
        }
        "split_with_sizes" => {
            let Some(Argument::List(sizes)) = node.arg("split_sizes") else { return None };
            let mut start = 0i64;
            for size in sizes.iter().take(view.output) {
                let Argument::Int(size) = size else { return None };
                start = start.checked_add(*size)?;
            }
            let Argument::Int(size) = sizes.get(view.output)? else { return None };
            slice(Argument::Int(start), Argument::Int(start.checked_add(*size)?), one)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::test::{check, error_of};
    use crate::passes::unused::remove_unused;

    const PASSES: &[crate::passes::Pass] = &[functionalise, remove_unused];

    #[test]
    fn a_write_to_a_whole_tensor_is_a_new_value() {
        check(
            PASSES,
            "graph(%x: f32[2]):
               %a: f32[2] = aten.neg.default(self=%x)
               %b: f32[2] = aten.relu_.default(self=%a)
               %c: f32[2] = aten.add.Tensor(self=%a, other=%b)
               return (%c, %a)",
            "graph(%x: f32[2]):
               %a = aten.neg.default(self=%x)
               %b = aten.relu.default(self=%a)
               %c = aten.add.Tensor(self=%b, other=%b)
               return (%c, %b)",
        );
    }

    #[test]
    fn a_write_to_a_part_reaches_the_whole_and_other_views_of_it() {
        check(
            PASSES,
            "graph(%x: f32[4, 2], %y: f32[2]):
               %a: f32[4, 2] = aten.neg.default(self=%x)
               %flat: f32[8] = aten.view.default(self=%a, size=[8])
               %row: f32[2] = aten.select.int(self=%a, dim=0, index=1)
               %w: f32[2] = aten.copy_.default(self=%row, src=%y)
               %s: f32[8] = aten.sin.default(self=%flat)
               return (%a, %s, %w)",
            "graph(%x: f32[4, 2], %y: f32[2]):
               %a = aten.neg.default(self=%x)
               %row = aten.select.int(self=%a, dim=0, index=1)
               %w = aten.copy.default(self=%row, src=%y)
               %a.1 = aten.select_scatter.default(self=%a, src=%w, dim=0, index=1)
               %flat = aten.view.default(self=%a.1, size=[8])
               %s = aten.sin.default(self=%flat)
               return (%a.1, %s, %w)",
        );
    }

    #[test]
    fn a_write_goes_back_through_a_chain_of_views() {
        check(
            PASSES,
            "graph(%x: f32[s0, 6]):
               %a: f32[s0, 6] = aten.neg.default(self=%x)
               %b: f32[s0, 2, 3] = aten.view.default(self=%a, size=[-1, 2, 3])
               %c: f32[2, s0, 3] = aten.transpose.int(self=%b, dim0=0, dim1=1)
               %d: f32[1, s0, 3] = aten.slice.Tensor(self=%c, dim=0, start=1)
               %e: f32[1, s0, 3] = aten.fill_.Scalar(self=%d, value=7)
               return (%a)",
            "graph(%x: f32[s0, 6]):
               %a = aten.neg.default(self=%x)
               %b = aten.view.default(self=%a, size=[-1, 2, 3])
               %c = aten.transpose.int(self=%b, dim0=0, dim1=1)
               %d = aten.slice.Tensor(self=%c, dim=0, start=1)
               %e = aten.fill.Scalar(self=%d, value=7)
               %c1 = aten.slice_scatter.default(self=%c, src=%e, dim=0, start=1, end=None, step=1)
               %b1 = aten.permute.default(self=%c1, dims=[1, 0, 2])
               %n = aten.sym_size.int(self=%a, dim=0)
               %a1 = aten.view.default(self=%b1, size=[%n, 6])
               return (%a1)",
        );
    }

    #[test]
    fn one_of_several_results_is_written_back_to_its_place() {
        check(
            PASSES,
            "graph(%x: f32[6]):
               %a: f32[6] = aten.neg.default(self=%x)
               %b: f32[1], %c: f32[2], %d: f32[3] = aten.split_with_sizes.default(self=%a, split_sizes=[1, 2, 3])
               %e: f32[2] = aten.zero_.default(self=%c)
               return (%a, %d)",
            "graph(%x: f32[6]):
               %a = aten.neg.default(self=%x)
               _, %c, _ = aten.split_with_sizes.default(self=%a, split_sizes=[1, 2, 3])
               %e = aten.zero.default(self=%c)
               %a1 = aten.slice_scatter.default(self=%a, src=%e, dim=0, start=1, end=3, step=1)
               _, _, %d = aten.split_with_sizes.default(self=%a1, split_sizes=[1, 2, 3])
               return (%a1, %d)",
        );
    }

    #[test]
    fn a_write_keeps_the_dtype_of_what_is_written_to() {
        check(
            PASSES,
            "graph(%x: f32[2], %y: f64[2]):
               %a: f32[2] = aten.neg.default(self=%x)
               %b: f32[2] = aten.mul_.Tensor(self=%a, other=%y)
               return (%a)",
            "graph(%x: f32[2], %y: f64[2]):
               %a = aten.neg.default(self=%x)
               %b = aten.mul.Tensor(self=%a, other=%y)
               %c = aten.to.dtype(self=%b, dtype=f32)
               return (%c)",
        );
    }

    #[test]
    fn python_operators_that_write_are_told_from_those_that_do_not() {
        assert!(writes("aten.__iadd__.Tensor") && writes("aten.relu_.default") && writes("aten.index_put_.default"));
        assert!(!writes("aten.__and__.Tensor") && !writes("aten.__invert__.default") && !writes("_operator.and_"));
        assert!(!writes("aten._softmax.default") && !writes("torch.sym_max"));
        assert_eq!(functional_name("aten.__iand__.Tensor"), "aten.__and__.Tensor");
        assert_eq!(functional_name("aten.index_put_.default"), "aten.index_put.default");
    }

    #[test]
    fn writes_that_would_outlive_the_run_are_refused() {
        let to_input = "graph(%x: f32[2]): %a = aten.relu_.default(self=%x) return (%a)";
        assert_eq!(error_of(functionalise, to_input), "a write to the input `x` (clone it first) is not supported");
        let to_buffer = "graph(%x: f32[2] = \"n\"):
            %v = aten.view.default(self=%x, size=[2])
            %a = aten.add_.Tensor(self=%v, other=1)  # m.py:7
            return (%a)";
        let error = error_of(functionalise, to_buffer);
        assert!(error.starts_with("a write to `n`, a weight, buffer or constant"), "{error}");
        assert!(error.ends_with("is not supported, at m.py:7"), "{error}");
    }

    #[test]
    fn a_read_that_depends_on_strides_is_refused() {
        let error = error_of(
            functionalise,
            "graph(%x: f32[2, 3]):
               %a: f32[2, 3] = aten.neg.default(self=%x)
               %b: f32[6] = aten.reshape.default(self=%a, shape=[6])
               %c: f32[6] = aten.relu_.default(self=%b)
               return (%a, %c)",
        );
        assert!(error.starts_with("reading `a` after a write to a tensor that may or may not share"), "{error}");
        // Nobody reads the other one: nothing depends on strides.
        check(
            PASSES,
            "graph(%x: f32[2, 3]):
               %a: f32[2, 3] = aten.neg.default(self=%x)
               %b: f32[6] = aten.reshape.default(self=%a, shape=[6])
               %c: f32[6] = aten.relu_.default(self=%b)
               return (%c)",
            "graph(%x: f32[2, 3]):
               %a = aten.neg.default(self=%x)
               %b = aten.reshape.default(self=%a, shape=[6])
               %c = aten.relu.default(self=%b)
               return (%c)",
        );
    }

    #[test]
    fn training_mode_is_refused() {
        let error = error_of(
            functionalise,
            "graph(%x: f32[2]): %y = aten.dropout.default(input=%x, p=0.1, train=True)  # m.py:2
             return (%y)",
        );
        let expected =
            "aten.dropout.default in training mode (call `model.eval()` before export) is not supported, at m.py:2";
        assert_eq!(error, expected);
    }
}
