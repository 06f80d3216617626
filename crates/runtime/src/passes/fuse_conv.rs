//! Convolutions with the batch norm and the activation behind them.

use highroad_tensor::DType;

use crate::graph::{Argument, Graph, Node, ValueId};
use crate::passes::fuse_linear::activation_name;
use crate::passes::rewrite::{Producers, Rewrite, node, only_output, rewrite_each, value_arg};
use crate::passes::{Changed, PassError};

/// `activation(batch_norm(conv2d(x)))` in one operator, as far as nobody else reads what lies between.
pub(super) fn fuse_conv_norm(graph: &mut Graph) -> Result<Changed, PassError> {
    let n_uses = graph.use_counts();
    let mut producers = Producers::new();
    let mut seen = 0;
    Ok(rewrite_each(graph, |graph, node| {
        producers.extend(graph, &mut seen);
        let single = |id: ValueId| producers.get(graph, id).filter(|_| n_uses[id.0 as usize] == 1);
        normalised(graph, node, single).or_else(|| activated(node, single)).unwrap_or(Rewrite::Keep)
    }))
}

fn normalised<'a>(graph: &Graph, norm: &Node, single: impl Fn(ValueId) -> Option<&'a Node>) -> Option<Rewrite> {
    let is_evaluation = matches!(norm.arg("training"), Some(Argument::Bool(false)));
    if norm.op != "aten.batch_norm.default" || !is_evaluation {
        return None;
    }
    let conv = single(value_arg(norm, "input")?).filter(|conv| conv.op == "aten.conv2d.default")?;
    let is_image = |id: ValueId| graph.tensor_type(id).is_some_and(|ty| ty.dtype == DType::F32 && ty.sizes.len() == 4);
    let of = |node: &Node, name| node.arg(name).cloned().unwrap_or(Argument::None);
    let (mean, var) = (value_arg(norm, "running_mean")?, value_arg(norm, "running_var")?);
    value_arg(conv, "input").filter(|&input| is_image(input))?;
    let args = vec![
        ("input", of(conv, "input")),
        ("weight", of(conv, "weight")),
        ("bias", of(conv, "bias")),
        ("stride", conv.arg("stride").cloned().unwrap_or(Argument::Int(1))),
        ("padding", conv.arg("padding").cloned().unwrap_or(Argument::Int(0))),
        ("dilation", conv.arg("dilation").cloned().unwrap_or(Argument::Int(1))),
        ("groups", conv.arg("groups").cloned().unwrap_or(Argument::Int(1))),
        ("norm_weight", of(norm, "weight")),
        ("norm_bias", of(norm, "bias")),
        ("running_mean", Argument::Value(mean)),
        ("running_var", Argument::Value(var)),
        ("eps", of(norm, "eps")),
        ("activation", Argument::Str("none".to_owned())),
    ];
    Some(Rewrite::To(node("highroad.conv2d_norm", args, only_output(norm)?, &conv.location)))
}

fn activated<'a>(activation: &Node, single: impl Fn(ValueId) -> Option<&'a Node>) -> Option<Rewrite> {
    let name = activation_name(activation)?;
    let conv = single(value_arg(activation, "self")?).filter(|conv| conv.op == "highroad.conv2d_norm")?;
    let mut fused = conv.clone();
    let end = fused.args.iter_mut().find(|(name, _)| name == "activation")?;
    if end.1 != Argument::Str("none".to_owned()) {
        return None;
    }
    end.1 = Argument::Str(name.to_owned());
    fused.outputs = vec![Some(only_output(activation)?)];
    Some(Rewrite::To(fused))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::test::check;
    use crate::passes::unused::remove_unused;

    const HEAD: &str = "graph(%x: f32[s0, 3, 8, 8], %w: f32[4, 3, 3, 3], %m: f32[4], %v: f32[4]):";
    const NORM: &str = "aten.batch_norm.default(input=%c, weight=None, bias=None, running_mean=%m, running_var=%v, \
                        training=False, momentum=0.1, eps=0.001, cudnn_enabled=True)";

    #[test]
    fn batch_norm_and_activation_become_part_of_the_convolution() {
        for (activation, name) in [
            ("aten.relu.default(self=%n)", "relu"),
            ("aten.hardtanh.default(self=%n, min_val=0.0, max_val=6.0)", "relu6"),
        ] {
            check(
                &[fuse_conv_norm, remove_unused],
                &format!(
                    "{HEAD}
                       %c = aten.conv2d.default(input=%x, weight=%w, padding=[1, 1])
                       %n = {NORM}
                       %y = {activation}
                       return (%y)"
                ),
                &format!(
                    "{HEAD}
                       %y = highroad.conv2d_norm(input=%x, weight=%w, bias=None, stride=1, padding=[1, 1], dilation=1, groups=1, norm_weight=None, norm_bias=None, running_mean=%m, running_var=%v, eps=0.001, activation=\"{name}\")
                       return (%y)"
                ),
            );
        }
    }

    #[test]
    fn what_others_read_and_training_are_left_alone() {
        for (norm, outputs) in [(NORM.to_owned(), "%n, %c"), (NORM.replace("training=False", "training=True"), "%n")] {
            let text = format!(
                "{HEAD}
                   %c = aten.conv2d.default(input=%x, weight=%w)
                   %n = {norm}
                   return ({outputs})"
            );
            check(&[fuse_conv_norm], &text, &text);
        }
    }
}
