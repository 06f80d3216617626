//! Nodes that compute what nobody reads, and nodes that compute the same.

use std::collections::HashMap;

use crate::graph::{Argument, Graph, Node};
use crate::passes::rewrite::Replacements;
use crate::passes::{Changed, PassError};

/// Drops nodes none of whose results is used, and results that are not used of the others.
///
/// A node without results (an assertion) is kept: it may refuse to run.
pub(super) fn remove_unused(graph: &mut Graph) -> Result<Changed, PassError> {
    let mut counts = graph.use_counts();
    let before = graph.nodes.len();
    let mut kept: Vec<Node> = Vec::with_capacity(before);
    let mut changed = Changed::No;
    for mut node in std::mem::take(&mut graph.nodes).into_iter().rev() {
        for output in &mut node.outputs {
            if output.is_some_and(|id| counts[id.0 as usize] == 0) {
                *output = None;
                changed = Changed::Yes;
            }
        }
        if !node.outputs.is_empty() && node.outputs.iter().all(Option::is_none) {
            node.args.iter().for_each(|(_, arg)| arg.for_each_value(&mut |id| counts[id.0 as usize] -= 1));
            changed = Changed::Yes;
        } else {
            kept.push(node);
        }
    }
    kept.reverse();
    graph.nodes = kept;
    Ok(changed)
}

/// Lets one node serve all that call the same operator with the same arguments. Random operators are left alone.
pub(super) fn share_equal_nodes(graph: &mut Graph) -> Result<Changed, PassError> {
    let mut first: HashMap<String, usize> = HashMap::new();
    let mut replacements = Replacements::default();
    let mut changed = Changed::No;
    let mut kept: Vec<Node> = Vec::with_capacity(graph.nodes.len());
    for mut node in std::mem::take(&mut graph.nodes) {
        replacements.apply_to(&mut node);
        let key = if is_pure(&node) { format!("{}{:?}", node.op, node.args) } else { String::new() };
        match first.get(&key).map(|&index: &usize| &mut kept[index]) {
            Some(earlier) if earlier.outputs.len() == node.outputs.len() => {
                changed = Changed::Yes;
                for (ours, theirs) in earlier.outputs.iter_mut().zip(&node.outputs) {
                    match (*ours, theirs) {
                        (Some(ours), Some(theirs)) => replacements.replace(*theirs, Argument::Value(ours)),
                        (None, Some(theirs)) => *ours = Some(*theirs),
                        (_, None) => {}
                    }
                }
            }
            _ => {
                if !key.is_empty() {
                    first.insert(key, kept.len());
                }
                kept.push(node);
            }
        }
    }
    graph.nodes = kept;
    graph.outputs.iter_mut().for_each(|output| replacements.apply(output));
    Ok(changed)
}

fn is_pure(node: &Node) -> bool {
    const RANDOM: &[&str] =
        &["rand", "dropout", "bernoulli", "multinomial", "normal", "uniform", "exponential", "empty"];
    !node.outputs.is_empty()
        && !RANDOM.iter().any(|random| node.op.contains(random))
        && !node.args.iter().any(|(_, arg)| matches!(arg, Argument::Graph(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::test::check;

    #[test]
    fn what_nobody_reads_is_not_computed() {
        check(
            &[remove_unused],
            "graph(%x: f32[2]):
               %a = aten.relu.default(self=%x)
               %b = aten.neg.default(self=%a)
               %c, %d = aten.split.Tensor(self=%x, split_size=1)
               return (%d)",
            "graph(%x: f32[2]):
               _, %d = aten.split.Tensor(self=%x, split_size=1)
               return (%d)",
        );
    }

    #[test]
    fn an_assertion_stays() {
        let text = "graph(%x: bool): aten._assert_scalar.default(self=%x, assert_msg=\"m\") return ()";
        check(&[remove_unused], text, text);
    }

    #[test]
    fn equal_nodes_are_computed_once() {
        check(
            &[share_equal_nodes],
            "graph(%x: f32[2]):
               %a, _ = aten.max.dim(self=%x, dim=0)
               _, %b = aten.max.dim(self=%x, dim=0)
               %c, %d = aten.max.dim(self=%x, dim=0)
               %e = aten.add.Tensor(self=%c, other=1)
               %f = aten.add.Tensor(self=%a, other=1)
               return (%e, %f, %b, %d)",
            "graph(%x: f32[2]):
               %a, %b = aten.max.dim(self=%x, dim=0)
               %e = aten.add.Tensor(self=%a, other=1)
               return (%e, %e, %b, %b)",
        );
    }

    #[test]
    fn one_and_true_and_one_point_zero_are_not_equal() {
        let text = "graph(%x: f32[2]):
               %a = aten.full.default(size=[2], fill_value=1)
               %b = aten.full.default(size=[2], fill_value=True)
               %c = aten.full.default(size=[2], fill_value=1.0)
               %d = aten.rand.default(size=[2])
               %e = aten.rand.default(size=[2])
               return (%a, %b, %c, %d, %e)";
        check(&[share_equal_nodes], text, text);
    }
}
