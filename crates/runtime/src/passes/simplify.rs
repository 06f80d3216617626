//! Local rules that make a canonical graph smaller without changing a bit of its results.

use crate::graph::{Argument, Dim, Graph, Node, TensorType, Type, ValueId};
use crate::passes::rewrite::{
    Namer, Producers, Rewrite, Symbols, int_arg, node, only_output, rewrite_each, value_arg, wrap,
};
use crate::passes::{Changed, PassError};

pub(super) fn simplify(graph: &mut Graph) -> Result<Changed, PassError> {
    let mut namer = Namer::new(graph);
    let mut symbols = Symbols::default();
    let mut producers = Producers::new();
    let mut seen = 0;
    Ok(rewrite_each(graph, |graph, node| {
        producers.extend(graph, &mut seen);
        let rewrite = same_size(graph, node, &symbols)
            .or_else(|| is_input(graph, node, &symbols))
            .or_else(|| expand_of_expand(graph, node, &producers))
            .or_else(|| embedding_of_expand(graph, node, &producers, &mut namer))
            .or_else(|| broadcast_without_expand(graph, node, &producers));
        symbols.note(graph, node);
        rewrite.unwrap_or(Rewrite::Keep)
    }))
}

/// A size that is the same on every run, or that an earlier value holds.
fn same_size(graph: &Graph, node: &Node, symbols: &Symbols) -> Option<Rewrite> {
    if node.op != "aten.sym_size.int" {
        return None;
    }
    let sizes = &graph.tensor_type(value_arg(node, "self")?)?.sizes;
    let size = sizes.get(wrap(int_arg(node, "dim")?, sizes.len())?)?;
    symbols.argument(size).map(Rewrite::Is)
}

/// A node that gives back its argument: a slice of everything, a view or expand to the same type, `x + 0`, `x * 1`.
fn is_input(graph: &Graph, node: &Node, symbols: &Symbols) -> Option<Rewrite> {
    let input = value_arg(node, "self")?;
    let ty = graph.tensor_type(input)?;
    let same = match node.op.as_str() {
        "aten.slice.Tensor" => takes_everything(node, ty, symbols),
        "aten.view.default" | "aten.expand.default" | "aten.flatten.using_ints" | "aten.squeeze.dim" => {
            graph.tensor_type(only_output(node)?) == Some(ty)
        }
        // In floats, -0.0 + 0 is 0.0.
        "aten.add.Tensor" | "aten.sub.Tensor" => ty.dtype.is_int() && int_arg(node, "other") == Some(0),
        "aten.mul.Tensor" => ty.dtype.is_int() && int_arg(node, "other") == Some(1),
        _ => false,
    };
    same.then_some(Rewrite::Is(Argument::Value(input)))
}

fn takes_everything(node: &Node, ty: &TensorType, symbols: &Symbols) -> bool {
    let size = int_arg(node, "dim").and_then(|dim| ty.sizes.get(wrap(dim, ty.sizes.len())?));
    let Some(size) = size else { return false };
    let from_start = matches!(node.arg("start"), Some(Argument::None | Argument::Int(0)));
    let to_end = match (node.arg("end"), size) {
        (Some(Argument::None | Argument::Int(i64::MAX)), _) => true,
        (Some(Argument::Int(end)), Dim::Known(size)) => usize::try_from(*end).is_ok_and(|end| end >= *size),
        (Some(end), size) => symbols.is(end, size),
        (None, _) => false,
    };
    from_start && to_end && int_arg(node, "step") == Some(1)
}

/// `expand(expand(x, a), b)` is `expand(x, b)`, with what `b` leaves open taken from `a`.
fn expand_of_expand(graph: &Graph, node: &Node, producers: &Producers) -> Option<Rewrite> {
    let (_, outer) = expanded(node)?;
    let (input, inner) = expanded(producers.get(graph, value_arg(node, "self")?)?)?;
    let lead = outer.len().checked_sub(inner.len())?;
    let size = |(dim, size): (usize, &Argument)| match size {
        Argument::Int(-1) => inner.get(dim.checked_sub(lead)?).cloned(),
        size => Some(size.clone()),
    };
    let size: Vec<Argument> = outer.iter().enumerate().map(size).collect::<Option<_>>()?;
    Some(Rewrite::To(with_args(node, &[("self", Argument::Value(input)), ("size", Argument::List(size))])))
}

/// Looking up equal ids once is enough: `embedding(w, expand(ids))` is `expand(embedding(w, ids))`.
fn embedding_of_expand(graph: &mut Graph, lookup: &Node, producers: &Producers, namer: &mut Namer) -> Option<Rewrite> {
    if lookup.op != "aten.embedding.default" {
        return None;
    }
    let (ids, size) = expanded(producers.get(graph, value_arg(lookup, "indices")?)?)?;
    let mut size = size.to_vec();
    size.push(Argument::Int(-1));
    let table = graph.tensor_type(value_arg(lookup, "weight")?)?;
    let mut ty = TensorType { dtype: table.dtype, sizes: graph.tensor_type(ids)?.sizes.clone() };
    ty.sizes.push(table.sizes.get(1)?.clone());
    let output = only_output(lookup)?;
    let name = graph.value(output).name.clone();
    let rows = namer.add(graph, &name, Type::Tensor(ty));
    let mut once = with_args(lookup, &[("indices", Argument::Value(ids))]);
    once.outputs = vec![Some(rows)];
    graph.nodes.push(once);
    let args =
        vec![("self", Argument::Value(rows)), ("size", Argument::List(size)), ("implicit", Argument::Bool(false))];
    Some(Rewrite::To(node("aten.expand.default", args, output, &lookup.location)))
}

/// Operators that broadcast their two tensors by themselves.
const BROADCASTING: &[&str] = &[
    "aten.add.Tensor",
    "aten.sub.Tensor",
    "aten.mul.Tensor",
    "aten.div.Tensor",
    "aten.maximum.default",
    "aten.minimum.default",
    "aten.bitwise_and.Tensor",
    "aten.bitwise_or.Tensor",
    "aten.logical_and.default",
    "aten.logical_or.default",
];

/// `x + expand(y)` is `x + y` where the result has the same sizes.
fn broadcast_without_expand(graph: &Graph, node: &Node, producers: &Producers) -> Option<Rewrite> {
    if !BROADCASTING.contains(&node.op.as_str()) {
        return None;
    }
    let result = &graph.tensor_type(only_output(node)?)?.sizes;
    for (name, other) in [("self", "other"), ("other", "self")] {
        let expand = value_arg(node, name).and_then(|id| expanded(producers.get(graph, id)?));
        let (Some((inner, _)), Some(other)) = (expand, value_arg(node, other)) else { continue };
        let (Some(inner_type), Some(other_type)) = (graph.tensor_type(inner), graph.tensor_type(other)) else {
            continue;
        };
        // Without dimensions a tensor promotes dtypes like a number does.
        let promotes_alike = !inner_type.sizes.is_empty() || inner_type.dtype == other_type.dtype;
        if promotes_alike && broadcast(&inner_type.sizes, &other_type.sizes).as_ref() == Some(result) {
            return Some(Rewrite::To(with_args(node, &[(name, Argument::Value(inner))])));
        }
    }
    None
}

/// Sizes of two tensors together; `None` if that is not known before running.
pub(super) fn broadcast(a: &[Dim], b: &[Dim]) -> Option<Vec<Dim>> {
    let (long, short) = if a.len() >= b.len() { (a, b) } else { (b, a) };
    let lead = long.len() - short.len();
    let pair = |(dim, size): (usize, &Dim)| match (size, dim.checked_sub(lead).map(|dim| &short[dim])) {
        (size, None | Some(Dim::Known(1))) => Some(size.clone()),
        (Dim::Known(1), Some(other)) => Some(other.clone()),
        (size, Some(other)) => (size == other).then(|| size.clone()),
    };
    long.iter().enumerate().map(pair).collect()
}

/// What an expand node expands, and to which sizes.
fn expanded(node: &Node) -> Option<(ValueId, &[Argument])> {
    match node.arg("size") {
        Some(Argument::List(size)) if node.op == "aten.expand.default" => Some((value_arg(node, "self")?, size)),
        _ => None,
    }
}

fn with_args(node: &Node, changed: &[(&str, Argument)]) -> Node {
    let mut node = node.clone();
    for (name, arg) in &mut node.args {
        if let Some((_, new)) = changed.iter().find(|(changed, _)| changed == name) {
            *arg = new.clone();
        }
    }
    node
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::test::check;
    use crate::passes::unused::remove_unused;

    const PASSES: &[crate::passes::Pass] = &[simplify, remove_unused];

    #[test]
    fn a_slice_of_everything_is_its_input() {
        check(
            PASSES,
            "graph(%x: f32[s0, 4]):
               %n: int = aten.sym_size.int(self=%x, dim=0)
               %a: f32[s0, 4] = aten.slice.Tensor(self=%x, dim=0, start=0, end=9223372036854775807, step=1)
               %b: f32[s0, 4] = aten.slice.Tensor(self=%a, dim=-2, start=None, end=%n, step=1)
               %c: f32[s0, 4] = aten.slice.Tensor(self=%b, dim=1, start=0, end=4, step=1)
               %d: f32[s0, 3] = aten.slice.Tensor(self=%c, dim=1, start=0, end=3, step=1)
               %e: f32[s0, 2] = aten.slice.Tensor(self=%c, dim=1, start=0, end=4, step=2)
               return (%d, %e)",
            "graph(%x: f32[s0, 4]):
               %d = aten.slice.Tensor(self=%x, dim=1, start=0, end=3, step=1)
               %e = aten.slice.Tensor(self=%x, dim=1, start=0, end=4, step=2)
               return (%d, %e)",
        );
    }

    #[test]
    fn sizes_are_read_once_and_known_ones_not_at_all() {
        check(
            PASSES,
            "graph(%x: f32[s0, 4], %y: f32[s0]):
               %a: int = aten.sym_size.int(self=%x, dim=0)
               %b: int = aten.sym_size.int(self=%y, dim=-1)
               %c: int = aten.sym_size.int(self=%x, dim=1)
               return (%a, %b, %c)",
            "graph(%x: f32[s0, 4], %y: f32[s0]):
               %a = aten.sym_size.int(self=%x, dim=0)
               return (%a, %a, 4)",
        );
    }

    #[test]
    fn adding_zero_goes_only_where_it_keeps_every_bit() {
        check(
            PASSES,
            "graph(%x: i64[2], %y: f32[2]):
               %a: i64[2] = aten.add.Tensor(self=%x, other=0, alpha=1)
               %b: f32[2] = aten.add.Tensor(self=%y, other=0, alpha=1)
               return (%a, %b)",
            "graph(%x: i64[2], %y: f32[2]):
               %b = aten.add.Tensor(self=%y, other=0, alpha=1)
               return (%x, %b)",
        );
    }

    #[test]
    fn expands_merge_and_leave_what_broadcasts_anyway() {
        check(
            PASSES,
            "graph(%x: f32[1, 4], %y: f32[s0, 4], %z: f32[4], %n: int):
               %a: f32[1, 4] = aten.expand.default(self=%z, size=[1, 4], implicit=False)
               %b: f32[s0, 4] = aten.expand.default(self=%a, size=[%n, -1], implicit=False)
               %c: f32[s0, 4] = aten.add.Tensor(self=%y, other=%b, alpha=1)
               %d: f32[s0, 4] = aten.add.Tensor(self=%x, other=%b, alpha=1)
               return (%c, %d)",
            "graph(%x: f32[1, 4], %y: f32[s0, 4], %z: f32[4], %n: int):
               %b = aten.expand.default(self=%z, size=[%n, 4], implicit=False)
               %c = aten.add.Tensor(self=%y, other=%z, alpha=1)
               %d = aten.add.Tensor(self=%x, other=%b, alpha=1)
               return (%c, %d)",
        );
    }

    #[test]
    fn equal_ids_are_looked_up_once() {
        check(
            PASSES,
            "graph(%w: f32[2, 8], %ids: i64[1, s1], %n: int):
               %a: i64[s0, s1] = aten.expand.default(self=%ids, size=[%n, -1], implicit=False)
               %b: f32[s0, s1, 8] = aten.embedding.default(weight=%w, indices=%a, padding_idx=-1)
               return (%b)",
            "graph(%w: f32[2, 8], %ids: i64[1, s1], %n: int):
               %a = aten.embedding.default(weight=%w, indices=%ids, padding_idx=-1)
               %b = aten.expand.default(self=%a, size=[%n, -1, -1], implicit=False)
               return (%b)",
        );
    }
}
