//! Bodies of `wrap_with_set_grad_enabled` and `wrap_with_autocast(enabled=False)` in place of the wrappers.
//!
//! Gradients mean nothing here, and autocast that is off changes nothing; only autocast that is on would need casts
//! that the raw body does not show.

use std::collections::HashMap;

use crate::graph::{Argument, Graph, Node, ValueId};
use crate::passes::rewrite::{Namer, Replacements};
use crate::passes::{Changed, PassError};

pub(super) fn inline(graph: &mut Graph) -> Result<Changed, PassError> {
    if !graph.nodes.iter().any(|node| is_wrapper(&node.op)) {
        return Ok(Changed::No);
    }
    let mut namer = Namer::new(graph);
    let mut replacements = Replacements::default();
    for mut node in std::mem::take(&mut graph.nodes) {
        replacements.apply_to(&mut node);
        if is_wrapper(&node.op) {
            inline_node(graph, node, &mut namer, &mut replacements)?;
        } else {
            graph.nodes.push(node);
        }
    }
    graph.outputs.iter_mut().for_each(|output| replacements.apply(output));
    Ok(Changed::Yes)
}

fn is_wrapper(op: &str) -> bool {
    matches!(op, "higher_order.wrap_with_set_grad_enabled" | "higher_order.wrap_with_autocast")
}

fn inline_node(
    graph: &mut Graph,
    node: Node,
    namer: &mut Namer,
    replacements: &mut Replacements,
) -> Result<(), PassError> {
    let odd = || PassError::unsupported(format!("this form of {}", node.op), &node.location);
    let position = node.args.iter().position(|(_, arg)| matches!(arg, Argument::Graph(_))).ok_or_else(odd)?;
    if node.op.ends_with("autocast") && !is_disabled_autocast(&node, position) {
        return Err(PassError::unsupported("autocast inside the exported program (export it without)", &node.location));
    }
    let Argument::Graph(body) = &node.args[position].1 else { return Err(odd()) };
    let mut body = (**body).clone();
    // A body may hold wrappers of its own.
    inline(&mut body)?;
    let operands: Vec<Argument> = node.args[position + 1..].iter().map(|(_, arg)| arg.clone()).collect();
    if operands.len() != body.inputs.len() || body.outputs.len() != node.outputs.len() {
        return Err(odd());
    }
    let results = splice(graph, body, operands, namer);
    for (output, result) in node.outputs.iter().zip(results) {
        if let Some(output) = output {
            replacements.replace(*output, result);
        }
    }
    Ok(())
}

/// Arguments before the body are device, dtype, whether it is on, and whether casts are cached.
fn is_disabled_autocast(node: &Node, position: usize) -> bool {
    node.args[..position].iter().map(|(_, arg)| arg).find(|arg| matches!(arg, Argument::Bool(_)))
        == Some(&Argument::Bool(false))
}

/// Adds the nodes of `body` with its inputs replaced by `operands`; gives what its outputs are in `graph`.
fn splice(graph: &mut Graph, body: Graph, operands: Vec<Argument>, namer: &mut Namer) -> Vec<Argument> {
    let mut renamed: HashMap<ValueId, Argument> = body.inputs.iter().map(|input| input.value).zip(operands).collect();
    let rename = |renamed: &HashMap<ValueId, Argument>, arg: &mut Argument| {
        arg.map_values(&mut |id| renamed.get(&id).cloned().unwrap_or(Argument::None));
    };
    for mut node in body.nodes {
        node.args.iter_mut().for_each(|(_, arg)| rename(&renamed, arg));
        for output in node.outputs.iter_mut().flatten() {
            let value = &body.values[output.0 as usize];
            let id = namer.add(graph, &value.name, value.ty.clone());
            renamed.insert(*output, Argument::Value(id));
            *output = id;
        }
        graph.nodes.push(node);
    }
    let mut outputs = body.outputs;
    outputs.iter_mut().for_each(|output| rename(&renamed, output));
    outputs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::test::{check, error_of};

    #[test]
    fn a_gradient_wrapper_is_replaced_by_its_body() {
        check(
            &[inline],
            "graph(%x: f32[2]):
               %a, %b = higher_order.wrap_with_set_grad_enabled(False, graph(%x: f32[2], %n: int):
                 %a = aten.relu.default(self=%x)
                 %inner = higher_order.wrap_with_autocast(\"cpu\", None, False, None, graph(%a: f32[2]):
                   %y = aten.mul.Tensor(self=%a, other=%a)
                   return (%y), %a)
                 return (%inner, %x), %x, 3)
               return (%a, %b)",
            "graph(%x: f32[2]):
               %r = aten.relu.default(self=%x)
               %y = aten.mul.Tensor(self=%r, other=%r)
               return (%y, %x)",
        );
    }

    #[test]
    fn autocast_that_is_on_is_refused() {
        let error = error_of(
            inline,
            "graph(%x: f32[2]):
               %a = higher_order.wrap_with_autocast(\"cpu\", bf16, True, None, graph(%x: f32[2]): return (%x), %x)  # m.py:3
               return (%a)",
        );
        assert_eq!(error, "autocast inside the exported program (export it without) is not supported, at m.py:3");
    }
}
