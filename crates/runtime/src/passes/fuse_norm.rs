//! A sum that is normalised at once, as at the end of every block of an encoder.

use highroad_tensor::DType;

use crate::graph::{Argument, Graph, Node, ValueId};
use crate::passes::rewrite::{Producers, Rewrite, node, only_output, rewrite_each, value_arg};
use crate::passes::{Changed, PassError};

/// `layer_norm(x + y)` in one operator, where nobody else reads the sum and nothing is broadcast.
pub(super) fn fuse_add_layer_norm(graph: &mut Graph) -> Result<Changed, PassError> {
    let n_uses = graph.use_counts();
    let mut producers = Producers::new();
    let mut seen = 0;
    Ok(rewrite_each(graph, |graph, norm| {
        producers.extend(graph, &mut seen);
        let is_single = |id: ValueId| n_uses[id.0 as usize] == 1;
        fused(graph, norm, &producers, is_single).unwrap_or(Rewrite::Keep)
    }))
}

fn fused(graph: &Graph, norm: &Node, producers: &Producers, is_single: impl Fn(ValueId) -> bool) -> Option<Rewrite> {
    if norm.op != "aten.layer_norm.default" {
        return None;
    }
    let sum = value_arg(norm, "input").filter(|&sum| is_single(sum))?;
    let add = producers.get(graph, sum).filter(|add| add.op == "aten.add.Tensor" && is_plain(add))?;
    let (left, right) = (value_arg(add, "self")?, value_arg(add, "other")?);
    let ty = graph.tensor_type(sum).filter(|ty| ty.dtype == DType::F32)?;
    if graph.tensor_type(left) != Some(ty) || graph.tensor_type(right) != Some(ty) {
        return None;
    }
    let arg = |name| norm.arg(name).cloned().unwrap_or(Argument::None);
    let args = vec![
        ("input", Argument::Value(left)),
        ("residual", Argument::Value(right)),
        ("normalized_shape", arg("normalized_shape")),
        ("weight", arg("weight")),
        ("bias", arg("bias")),
        ("eps", norm.arg("eps").cloned().unwrap_or(Argument::Float(1e-5))),
    ];
    Some(Rewrite::To(node("highroad.add_layer_norm", args, only_output(norm)?, &norm.location)))
}

/// `x + y` without a factor.
fn is_plain(add: &Node) -> bool {
    match add.arg("alpha") {
        None | Some(Argument::Int(1)) => true,
        Some(Argument::Float(alpha)) => *alpha == 1.0,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::test::check;
    use crate::passes::unused::remove_unused;

    #[test]
    fn a_residual_sum_is_normalised_in_one_operator() {
        check(
            &[fuse_add_layer_norm, remove_unused],
            "graph(%x: f32[s0, 8], %y: f32[s0, 8], %w: f32[8]):
               %s: f32[s0, 8] = aten.add.Tensor(self=%x, other=%y)
               %z = aten.layer_norm.default(input=%s, normalized_shape=[8], weight=%w, eps=1e-12)
               return (%z)",
            "graph(%x: f32[s0, 8], %y: f32[s0, 8], %w: f32[8]):
               %z = highroad.add_layer_norm(input=%x, residual=%y, normalized_shape=[8], weight=%w, bias=None, eps=1e-12)
               return (%z)",
        );
    }

    #[test]
    fn sums_that_broadcast_scale_or_are_read_again_are_left_alone() {
        for (sum, outputs) in [
            ("aten.add.Tensor(self=%x, other=%r)", "%z"),
            ("aten.add.Tensor(self=%x, other=%y, alpha=2)", "%z"),
            ("aten.add.Tensor(self=%x, other=%y)", "%z, %s"),
        ] {
            let text = format!(
                "graph(%x: f32[s0, 8], %y: f32[s0, 8], %r: f32[8]):
                   %s: f32[s0, 8] = {sum}
                   %z = aten.layer_norm.default(input=%s, normalized_shape=[8])
                   return ({outputs})"
            );
            check(&[fuse_add_layer_norm], &text, &text);
        }
    }
}
