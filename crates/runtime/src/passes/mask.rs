//! Attention masks as transformers builds them, reduced to what they are: a view of the caller's mask.
//!
//! The library computes `mask[b, k] and q >= 0` over index tensors (`arange`), because masks in general depend on
//! positions. For encoders the comparison always holds and the indexing picks everything in order.

use crate::graph::{Argument, Dim, Graph, Node, Source, TensorType, Type, ValueId};
use crate::passes::rewrite::{
    Namer, Producers, Rewrite, Symbols, int_arg, node, only_output, rewrite_each, value_arg, wrap,
};
use crate::passes::{Changed, PassError};

/// Deepest chain of nodes that is looked through.
const MAX_CHAIN: usize = 32;

pub(super) fn simplify_masks(graph: &mut Graph) -> Result<Changed, PassError> {
    let mut namer = Namer::new(graph);
    let mut symbols = Symbols::default();
    let mut producers = Producers::new();
    let mut seen = 0;
    Ok(rewrite_each(graph, |graph, node| {
        producers.extend(graph, &mut seen);
        let rewrite = and_with_true(graph, node, &producers, &symbols)
            .or_else(|| index_in_order(graph, node, &producers, &symbols, &mut namer));
        symbols.note(graph, node);
        rewrite.unwrap_or(Rewrite::Keep)
    }))
}

/// `true & y` is `y`, spread over the sizes of both.
fn and_with_true(graph: &Graph, and: &Node, producers: &Producers, symbols: &Symbols) -> Option<Rewrite> {
    if !matches!(and.op.as_str(), "aten.bitwise_and.Tensor" | "aten.logical_and.default") {
        return None;
    }
    let (left, right) = (value_arg(and, "self")?, value_arg(and, "other")?);
    let kept = if is_true(graph, left, producers, MAX_CHAIN) {
        right
    } else if is_true(graph, right, producers, MAX_CHAIN) {
        left
    } else {
        return None;
    };
    let output = only_output(and)?;
    let (result, kept_type) = (graph.tensor_type(output)?, graph.tensor_type(kept)?);
    if kept_type.dtype != result.dtype {
        return None;
    }
    if kept_type == result {
        return Some(Rewrite::Is(Argument::Value(kept)));
    }
    let lead = result.sizes.len().checked_sub(kept_type.sizes.len())?;
    let size = |(dim, size): (usize, &Dim)| match dim.checked_sub(lead).map(|dim| &kept_type.sizes[dim]) {
        Some(kept) if kept == size => Some(Argument::Int(-1)),
        _ => symbols.argument(size),
    };
    let size = result.sizes.iter().enumerate().map(size).collect::<Option<_>>()?;
    let args =
        vec![("self", Argument::Value(kept)), ("size", Argument::List(size)), ("implicit", Argument::Bool(false))];
    Some(Rewrite::To(node("aten.expand.default", args, output, &and.location)))
}

/// Whether every element of a boolean tensor is true on every run.
fn is_true(graph: &Graph, id: ValueId, producers: &Producers, depth: usize) -> bool {
    let (Some(ty), Some(node)) = (graph.tensor_type(id), producers.get(graph, id)) else { return false };
    if depth == 0 || ty.dtype != highroad_tensor::DType::Bool {
        return false;
    }
    let of = |name| value_arg(node, name).is_some_and(|id| is_true(graph, id, producers, depth - 1));
    match node.op.as_str() {
        "aten.new_ones.default" | "aten.ones.default" | "aten.ones_like.default" => true,
        "aten.full.default" | "aten.new_full.default" | "aten.full_like.default" => {
            matches!(node.arg("fill_value"), Some(Argument::Bool(true) | Argument::Int(1)))
        }
        "aten.ge.Scalar" => {
            int_arg(node, "other").is_some_and(|bound| bound <= 0)
                && value_arg(node, "self").is_some_and(|id| is_not_negative(graph, id, producers, depth - 1))
        }
        "aten.bitwise_and.Tensor" | "aten.logical_and.default" => of("self") && of("other"),
        "aten.to.dtype" => of("self"),
        op if is_plain_view(op) => of("self"),
        _ => false,
    }
}

/// Whether every element of an integer tensor is 0 or more on every run.
fn is_not_negative(graph: &Graph, id: ValueId, producers: &Producers, depth: usize) -> bool {
    let Some(node) = producers.get(graph, id) else { return false };
    match node.op.as_str() {
        // Counting starts at 0.
        "aten.arange.default" => true,
        op if depth > 0 && is_plain_view(op) => {
            value_arg(node, "self").is_some_and(|id| is_not_negative(graph, id, producers, depth - 1))
        }
        _ => false,
    }
}

fn is_plain_view(op: &str) -> bool {
    matches!(op, "aten.unsqueeze.default" | "aten.view.default" | "aten.expand.default" | "aten.slice.Tensor")
}

/// 0, 1, … along one dimension, with size 1 along all others.
struct Iota {
    /// How many.
    end: Argument,
    ndim: usize,
    dim: usize,
}

fn iota(graph: &Graph, id: ValueId, producers: &Producers, depth: usize) -> Option<Iota> {
    let node = producers.get(graph, id)?;
    match node.op.as_str() {
        "aten.arange.default" if graph.tensor_type(id)?.dtype.is_int() => {
            Some(Iota { end: node.arg("end")?.clone(), ndim: 1, dim: 0 })
        }
        "aten.unsqueeze.default" if depth > 0 => {
            let inner = iota(graph, value_arg(node, "self")?, producers, depth - 1)?;
            let ndim = inner.ndim + 1;
            let at = wrap(int_arg(node, "dim")?, ndim)?;
            Some(Iota { ndim, dim: inner.dim + usize::from(at <= inner.dim), ..inner })
        }
        _ => None,
    }
}

/// `x[arange(n)[:, None], arange(m)[None, :]]` is `x[:n, :m]`, with dimensions of size 1 between.
fn index_in_order(
    graph: &mut Graph,
    index: &Node,
    producers: &Producers,
    symbols: &Symbols,
    namer: &mut Namer,
) -> Option<Rewrite> {
    let Some(Argument::List(indices)) = index.arg("indices").filter(|_| index.op == "aten.index.Tensor") else {
        return None;
    };
    let input = value_arg(index, "self")?;
    let ty = graph.tensor_type(input)?.clone();
    let iotas: Vec<Iota> =
        indices.iter().map(|index| iota(graph, index.as_value()?, producers, MAX_CHAIN)).collect::<Option<_>>()?;
    let ndim = iotas.iter().map(|iota| iota.ndim).max()?;
    let dims: Vec<usize> = iotas.iter().map(|iota| iota.dim + ndim - iota.ndim).collect();
    if dims.len() != ty.sizes.len() || !dims.is_sorted_by(|a, b| a < b) {
        return None;
    }
    let narrowed = narrow_to(graph, index, input, ty, &iotas, symbols, namer)?;
    Some(Rewrite::Is(Argument::Value(spread(graph, index, narrowed, &dims, ndim, namer)?)))
}

/// Whether a size is a symbol that a caller's argument has as it is, so that each run checks it.
fn is_input_size(graph: &Graph, size: &Dim) -> bool {
    let user = graph.inputs.iter().filter(|input| matches!(input.source, Source::User { .. }));
    let mut sizes = user.filter_map(|input| graph.tensor_type(input.value)).flat_map(|ty| &ty.sizes);
    matches!(size, Dim::Symbol(_)) && sizes.any(|other| other == size)
}

/// From now on `other` is `same`. torch leaves the batch of a mask free to be larger than that of the ids, whose
/// rows alone are then read; here the two must be equal.
fn unify(graph: &mut Graph, other: &Dim, same: &Dim) {
    for value in &mut graph.values {
        if let Type::Tensor(ty) = &mut value.ty {
            ty.sizes.iter_mut().filter(|size| *size == other).for_each(|size| size.clone_from(same));
        }
    }
}

/// The first `end` elements of each dimension; refuses to run, as indexing does, where there are fewer.
fn narrow_to(
    graph: &mut Graph,
    index: &Node,
    input: ValueId,
    mut ty: TensorType,
    iotas: &[Iota],
    symbols: &Symbols,
    namer: &mut Namer,
) -> Option<ValueId> {
    let result = graph.tensor_type(only_output(index)?)?.clone();
    // A file may say that the result has fewer dimensions than its indices; nothing is changed before this is known.
    let offsets: Vec<usize> =
        iotas.iter().map(|iota| result.sizes.len().checked_sub(iota.ndim)).collect::<Option<_>>()?;
    let mut value = input;
    for (dim, (iota, offset)) in iotas.iter().zip(offsets).enumerate() {
        if symbols.is(&iota.end, &ty.sizes[dim]) {
            continue;
        }
        if let Some(same) = symbols.symbol(&iota.end).filter(|_| is_input_size(graph, &ty.sizes[dim])) {
            let other = std::mem::replace(&mut ty.sizes[dim], same.clone());
            unify(graph, &other, &same);
            continue;
        }
        ty.sizes[dim] = result.sizes.get(iota.dim + offset)?.clone();
        let narrowed = namer.add(graph, "narrow", Type::Tensor(ty.clone()));
        let args = vec![
            ("self", Argument::Value(value)),
            ("dim", Argument::Int(i64::try_from(dim).ok()?)),
            ("start", Argument::Int(0)),
            ("length", iota.end.clone()),
        ];
        graph.nodes.push(node("aten.narrow.default", args, narrowed, &index.location));
        value = narrowed;
    }
    Some(value)
}

/// The dimensions of `value` at `dims` of `ndim`, with size 1 elsewhere.
fn spread(
    graph: &mut Graph,
    index: &Node,
    value: ValueId,
    dims: &[usize],
    ndim: usize,
    namer: &mut Namer,
) -> Option<ValueId> {
    let mut ty = graph.tensor_type(value)?.clone();
    let mut value = value;
    for dim in (0..ndim).filter(|dim| !dims.contains(dim)) {
        ty.sizes.insert(dim, Dim::Known(1));
        let output = namer.add(graph, "unsqueeze", Type::Tensor(ty.clone()));
        let args = vec![("self", Argument::Value(value)), ("dim", Argument::Int(i64::try_from(dim).ok()?))];
        graph.nodes.push(node("aten.unsqueeze.default", args, output, &index.location));
        value = output;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::simplify::simplify;
    use crate::passes::test::check;
    use crate::passes::unused::remove_unused;

    #[test]
    fn the_mask_of_an_encoder_is_a_view_of_the_caller_s() {
        check(
            &[simplify_masks, simplify, remove_unused],
            "graph(%ids: i64[s0, s1], %mask: bool[s2, s1]):
               %b: int = aten.sym_size.int(self=%ids, dim=0)
               %s: int = aten.sym_size.int(self=%mask, dim=1)
               %rows: i64[s0] = aten.arange.default(end=%b)
               %u1: i64[s0, 1] = aten.unsqueeze.default(self=%rows, dim=1)
               %u2: i64[s0, 1, 1] = aten.unsqueeze.default(self=%u1, dim=2)
               %u3: i64[s0, 1, 1, 1] = aten.unsqueeze.default(self=%u2, dim=3)
               %keys: i64[s1] = aten.arange.default(end=%s)
               %q: i64[s1, 1] = aten.unsqueeze.default(self=%keys, dim=1)
               %ge: bool[s1, 1] = aten.ge.Scalar(self=%q, other=0)
               %one: bool[] = aten.new_ones.default(self=%q, size=[], dtype=bool)
               %and_1: bool[s1, 1] = aten.bitwise_and.Tensor(self=%one, other=%ge)
               %k: i64[1, s1] = aten.unsqueeze.default(self=%keys, dim=0)
               %i: bool[s0, 1, 1, s1] = aten.index.Tensor(self=%mask, indices=[%u3, %k])
               %and_2: bool[s0, 1, s1, s1] = aten.bitwise_and.Tensor(self=%and_1, other=%i)
               %m: bool[s0, 1, s1, s1] = aten.expand.default(self=%and_2, size=[%b, -1, %s, %s], implicit=False)
               return (%m)",
            "graph(%ids: i64[s0, s1], %mask: bool[s0, s1]):
               %s = aten.sym_size.int(self=%mask, dim=1)
               %u = aten.unsqueeze.default(self=%mask, dim=1)
               %v = aten.unsqueeze.default(self=%u, dim=2)
               %m = aten.expand.default(self=%v, size=[-1, -1, %s, -1], implicit=False)
               return (%m)",
        );
    }

    #[test]
    fn indexing_in_another_order_stays() {
        let text = "graph(%x: f32[3, 4]):
               %a: i64[3] = aten.arange.default(end=3)
               %b: i64[4] = aten.arange.default(end=4)
               %u: i64[4, 1] = aten.unsqueeze.default(self=%b, dim=1)
               %y: f32[4, 3] = aten.index.Tensor(self=%x, indices=[%a, %u])
               return (%y)";
        check(&[simplify_masks], text, text);
    }

    #[test]
    fn a_comparison_that_can_fail_stays() {
        let text = "graph(%x: bool[4], %y: i64[4]):
               %a: i64[4] = aten.arange.default(end=4)
               %b: bool[4] = aten.ge.Scalar(self=%a, other=1)
               %c: bool[4] = aten.ge.Scalar(self=%y, other=0)
               %d: bool[4] = aten.bitwise_and.Tensor(self=%b, other=%c)
               %e: bool[4] = aten.bitwise_and.Tensor(self=%d, other=%x)
               return (%e)";
        check(&[simplify_masks], text, text);
    }
}
