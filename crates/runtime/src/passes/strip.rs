//! Nodes that give back their input, and assertions that hold by construction.

use crate::graph::{Argument, Graph, Node, ValueId};
use crate::op;
use crate::passes::rewrite::{Replacements, only_output, value_arg};
use crate::passes::{Changed, PassError};

/// Removes what means nothing once values never change: dropout outside training, aliases, copies, conversions to the
/// dtype that a value has.
///
/// `_assert_tensor_metadata` repeats what the types say. `_assert_scalar` and `_assert_async` check sizes and data and
/// stay, if there is a kernel for them.
pub(super) fn strip(graph: &mut Graph) -> Result<Changed, PassError> {
    let mut replacements = Replacements::default();
    let before = graph.nodes.len();
    for mut node in std::mem::take(&mut graph.nodes) {
        replacements.apply_to(&mut node);
        match (same_as(graph, &node), only_output(&node)) {
            (Some(input), Some(output)) => replacements.replace(output, Argument::Value(input)),
            _ if is_idle_assertion(&node) => {}
            _ => graph.nodes.push(node),
        }
    }
    graph.outputs.iter_mut().for_each(|output| replacements.apply(output));
    Ok(if graph.nodes.len() < before { Changed::Yes } else { Changed::No })
}

fn is_idle_assertion(node: &Node) -> bool {
    node.op.starts_with("aten._assert_tensor_metadata.")
        || (node.op.starts_with("aten._assert_") || node.op.starts_with("aten.sym_constrain_range"))
            && op::lookup(&node.op).is_none()
}

/// The argument that the node's only result equals, element for element and in dtype and shape.
fn same_as(graph: &Graph, node: &Node) -> Option<ValueId> {
    let op = node.op.as_str();
    match op.rsplit_once('.').map_or(op, |(name, _)| name) {
        "aten.alias"
        | "aten.detach"
        | "aten.lift_fresh"
        | "aten.lift_fresh_copy"
        | "aten.contiguous"
        | "aten.clone" => value_arg(node, "self"),
        // Training was refused before.
        "aten.dropout" | "aten.feature_dropout" | "aten.alpha_dropout" => value_arg(node, "input"),
        "aten.to" | "aten._to_copy" | "aten.type_as" | "aten.float" | "aten.long" => {
            let input = value_arg(node, "self")?;
            let dtype = |id| graph.tensor_type(id).map(|ty| ty.dtype);
            (dtype(input)? == dtype(only_output(node)?)?).then_some(input)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::test::check;

    #[test]
    fn what_gives_back_its_input_goes() {
        check(
            &[strip],
            "graph(%x: f32[2]):
               %a: f32[2] = aten.dropout.default(input=%x, p=0.1, train=False)
               %b: f32[2] = aten.contiguous.default(self=%a)
               %c: f32[2] = aten.to.dtype(self=%b, dtype=f32)
               aten._assert_tensor_metadata.default(a=%c, dtype=f32)
               %d: f64[2] = aten.to.dtype(self=%c, dtype=f64)
               %e: f64[2] = aten.clone.default(self=%d)
               %f: f64[2] = aten.detach.default(self=%e)
               return (%f, %c)",
            "graph(%x: f32[2]):
               %d = aten.to.dtype(self=%x, dtype=f64)
               return (%d, %x)",
        );
    }

    #[test]
    fn a_conversion_whose_dtypes_are_not_known_stays() {
        let text = "graph(%x: f32[2]): %y = aten.to.dtype(self=%x, dtype=f32) return (%y)";
        check(&[strip], text, text);
    }
}
