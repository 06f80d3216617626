//! One name for operators that mean the same, so that later passes look for one form.

use crate::graph::{Argument, Graph, Node};
use crate::passes::rewrite::{Rewrite, only_output, rewrite_each};
use crate::passes::{Changed, PassError};

/// Argument names and what they are called in the other form.
type Renamed = &'static [(&'static str, &'static str)];

/// Names that mean the same, with the arguments that are called otherwise.
const SAME: &[(&str, &str, Renamed)] = &[
    ("aten.__and__.Tensor", "aten.bitwise_and.Tensor", &[]),
    ("aten.__and__.Scalar", "aten.bitwise_and.Scalar", &[]),
    ("aten.__or__.Tensor", "aten.bitwise_or.Tensor", &[]),
    ("aten.__or__.Scalar", "aten.bitwise_or.Scalar", &[]),
    ("aten.__xor__.Tensor", "aten.bitwise_xor.Tensor", &[]),
    ("aten.__xor__.Scalar", "aten.bitwise_xor.Scalar", &[]),
    // A view is legal wherever PyTorch made one and a copy is as good where it did not.
    ("aten.reshape.default", "aten.view.default", &[("shape", "size")]),
    ("aten._unsafe_view.default", "aten.view.default", &[]),
    ("aten.concat.default", "aten.cat.default", &[]),
    ("aten.concatenate.default", "aten.cat.default", &[]),
    ("aten.swapaxes.default", "aten.transpose.int", &[("axis0", "dim0"), ("axis1", "dim1")]),
    ("aten.swapdims.default", "aten.transpose.int", &[]),
    ("aten.absolute.default", "aten.abs.default", &[]),
    ("aten.negative.default", "aten.neg.default", &[]),
    ("aten.multiply.Tensor", "aten.mul.Tensor", &[]),
    ("aten.multiply.Scalar", "aten.mul.Scalar", &[]),
    ("aten.subtract.Tensor", "aten.sub.Tensor", &[]),
    ("aten.subtract.Scalar", "aten.sub.Scalar", &[]),
    ("aten.divide.Tensor", "aten.div.Tensor", &[]),
    ("aten.divide.Scalar", "aten.div.Scalar", &[]),
    ("aten.true_divide.Tensor", "aten.div.Tensor", &[]),
    ("aten.true_divide.Scalar", "aten.div.Scalar", &[]),
    ("aten.clip.default", "aten.clamp.default", &[]),
    ("aten.clip.Tensor", "aten.clamp.Tensor", &[]),
    ("aten.special_expit.default", "aten.sigmoid.default", &[]),
    ("aten.special_erf.default", "aten.erf.default", &[]),
    ("aten.greater.Tensor", "aten.gt.Tensor", &[]),
    ("aten.greater.Scalar", "aten.gt.Scalar", &[]),
    ("aten.greater_equal.Tensor", "aten.ge.Tensor", &[]),
    ("aten.greater_equal.Scalar", "aten.ge.Scalar", &[]),
    ("aten.less.Tensor", "aten.lt.Tensor", &[]),
    ("aten.less.Scalar", "aten.lt.Scalar", &[]),
    ("aten.less_equal.Tensor", "aten.le.Tensor", &[]),
    ("aten.less_equal.Scalar", "aten.le.Scalar", &[]),
    ("aten.not_equal.Tensor", "aten.ne.Tensor", &[]),
    ("aten.not_equal.Scalar", "aten.ne.Scalar", &[]),
];

pub(super) fn canonicalise(graph: &mut Graph) -> Result<Changed, PassError> {
    Ok(rewrite_each(graph, |graph, node| match renamed(node).or_else(|| plain_conversion(graph, node)) {
        Some(node) => Rewrite::To(node),
        None => Rewrite::Keep,
    }))
}

fn renamed(node: &Node) -> Option<Node> {
    let (_, op, args) = SAME.iter().find(|(from, ..)| *from == node.op)?;
    let mut node = Node { op: (*op).to_owned(), ..node.clone() };
    for (name, _) in &mut node.args {
        if let Some((_, to)) = args.iter().find(|(from, _)| from == name) {
            (*to).clone_into(name);
        }
    }
    Some(node)
}

/// Every way to convert a tensor as `aten.to.dtype`; only the dtype means something here.
fn plain_conversion(graph: &Graph, node: &Node) -> Option<Node> {
    const CONVERSIONS: &[&str] = &[
        "aten.to.dtype",
        "aten.to.dtype_layout",
        "aten.to.device",
        "aten.to.other",
        "aten.to.prim_dtype",
        "aten._to_copy.default",
        "aten.type_as.default",
    ];
    if !CONVERSIONS.contains(&node.op.as_str()) || (node.op == "aten.to.dtype" && node.args.len() == 2) {
        return None;
    }
    let input = node.args.first().filter(|(name, _)| name == "self")?.clone();
    let dtype = graph.tensor_type(only_output(node)?)?.dtype;
    let args = vec![input, ("dtype".to_owned(), Argument::DType(dtype))];
    Some(Node { op: "aten.to.dtype".to_owned(), args, ..node.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::test::check;

    #[test]
    fn operators_that_mean_the_same_get_one_name() {
        check(
            &[canonicalise],
            "graph(%x: i64[2, 3], %y: f32[2]):
               %a = aten.reshape.default(self=%x, shape=[6])
               %b = aten.__and__.Tensor(self=%a, other=%a)
               %c: f32[6] = aten.type_as.default(self=%b, other=%y)
               %d: bool[6] = aten.to.device(self=%c, device=<cpu>, dtype=bool)
               return (%d)",
            "graph(%x: i64[2, 3], %y: f32[2]):
               %a = aten.view.default(self=%x, size=[6])
               %b = aten.bitwise_and.Tensor(self=%a, other=%a)
               %c = aten.to.dtype(self=%b, dtype=f32)
               %d = aten.to.dtype(self=%c, dtype=bool)
               return (%d)",
        );
    }
}
