//! Arguments that were left to their defaults, filled in from the operator's schema.

use crate::graph::{Argument, Graph, Node};
use crate::op;
use crate::passes::{Changed, PassError};

/// Gives every node of a known operator all its arguments in schema order. What has no default and is not given stays
/// absent, for the planner to refuse; so do arguments that the schema does not know.
pub(super) fn fill_defaults(graph: &mut Graph) -> Result<Changed, PassError> {
    let mut changed = Changed::No;
    for node in &mut graph.nodes {
        if complete(node) {
            changed = Changed::Yes;
        }
    }
    Ok(changed)
}

fn complete(node: &mut Node) -> bool {
    let Some(op) = op::lookup(&node.op) else { return false };
    let expected = &op.schema().args;
    if expected.iter().map(|arg| &arg.name).eq(node.args.iter().map(|(name, _)| name)) {
        return false;
    }
    let mut given = std::mem::take(&mut node.args);
    // Python's operators on sizes have no argument names in the archive.
    let unnamed = given.iter().all(|(name, _)| name.is_empty());
    let names: Vec<String> = given.iter().map(|(name, _)| name.clone()).collect();
    for (position, arg) in expected.iter().enumerate() {
        let found = if unnamed {
            (position < given.len()).then_some(position)
        } else {
            names.iter().position(|name| *name == arg.name)
        };
        let value = found.map(|index| std::mem::replace(&mut given[index].1, Argument::None));
        if let Some(value) = value.or_else(|| arg.default.clone()) {
            node.args.push((arg.name.clone(), value));
        }
    }
    let known = |name: &str| expected.iter().any(|arg| arg.name == name);
    if unnamed {
        node.args.extend(given.into_iter().skip(expected.len()));
    } else {
        node.args.extend(given.into_iter().filter(|(name, _)| !known(name)));
    }
    node.args.iter().map(|(name, _)| name).ne(names.iter())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::test::check;

    #[test]
    fn arguments_come_in_schema_order_with_their_defaults() {
        check(
            &[fill_defaults],
            "graph(%x: f32[2], %n: int):
               %a = aten.add.Tensor(alpha=2, other=3, self=%x)
               %b = aten.slice.Tensor(self=%a, end=1)
               %c = aten.unheard_of.default(z=1, a=2)
               %d = aten.relu.default(self=%b, odd=1)
               %m = _operator.mul(%n, 2)
               return (%c, %d, %m)",
            "graph(%x: f32[2], %n: int):
               %a = aten.add.Tensor(self=%x, other=3, alpha=2)
               %b = aten.slice.Tensor(self=%a, dim=0, start=None, end=1, step=1)
               %c = aten.unheard_of.default(z=1, a=2)
               %d = aten.relu.default(self=%b, odd=1)
               %m = _operator.mul(a=%n, b=2)
               return (%c, %d, %m)",
        );
    }
}
