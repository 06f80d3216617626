//! Linear layers that do more in one go: an activation behind one, several that read the same input.

use std::collections::HashMap;

use highroad_tensor::DType;

use crate::graph::{Argument, Graph, Node, Source, ValueId};
use crate::passes::rewrite::{Producers, Rewrite, node, only_output, rewrite_each, value_arg};
use crate::passes::{Changed, PassError};

/// `activation(linear(x))` in one operator, where nobody else reads the linear layer.
pub(super) fn fuse_activations(graph: &mut Graph) -> Result<Changed, PassError> {
    let n_uses = graph.use_counts();
    let mut producers = Producers::new();
    let mut seen = 0;
    Ok(rewrite_each(graph, |graph, node| {
        producers.extend(graph, &mut seen);
        activated(graph, node, &producers, &n_uses).unwrap_or(Rewrite::Keep)
    }))
}

fn activated(graph: &Graph, activation: &Node, producers: &Producers, n_uses: &[usize]) -> Option<Rewrite> {
    let name = activation_name(activation)?;
    let input = value_arg(activation, "self")?;
    let linear = producers.get(graph, input).filter(|linear| is_f32_linear(graph, linear))?;
    if n_uses[input.0 as usize] != 1 {
        return None;
    }
    let arg = |name| linear.arg(name).cloned().unwrap_or(Argument::None);
    let args = vec![
        ("input", arg("input")),
        ("weight", arg("weight")),
        ("bias", arg("bias")),
        ("activation", Argument::Str(name.to_owned())),
    ];
    Some(Rewrite::To(node("highroad.linear", args, only_output(activation)?, &linear.location)))
}

/// What operators call the activation that `node` is; `None` if it is none.
pub(super) fn activation_name(node: &Node) -> Option<&'static str> {
    match node.op.as_str() {
        "aten.relu.default" => Some("relu"),
        "aten.relu6.default" => Some("relu6"),
        "aten.hardtanh.default" if has_bounds(node, "min_val", "max_val") => Some("relu6"),
        "aten.clamp.default" if has_bounds(node, "min", "max") => Some("relu6"),
        "aten.silu.default" => Some("silu"),
        "aten.sigmoid.default" => Some("sigmoid"),
        "aten.tanh.default" => Some("tanh"),
        "aten.gelu.default" => match node.arg("approximate") {
            None => Some("gelu"),
            Some(Argument::Str(kind)) if kind == "none" => Some("gelu"),
            Some(Argument::Str(kind)) if kind == "tanh" => Some("gelu_tanh"),
            _ => None,
        },
        _ => None,
    }
}

/// Whether an activation cuts at 0 and 6, as EfficientNet-lite and MobileNet write it.
fn has_bounds(node: &Node, min: &str, max: &str) -> bool {
    let is = |name, bound: f64| match node.arg(name) {
        Some(Argument::Int(value)) => *value as f64 == bound,
        Some(Argument::Float(value)) => *value == bound,
        _ => false,
    };
    is(min, 0.0) && is(max, 6.0)
}

fn is_f32_linear(graph: &Graph, linear: &Node) -> bool {
    let is_matrix = |id: ValueId| graph.tensor_type(id).is_some_and(|ty| ty.dtype == DType::F32 && ty.sizes.len() == 2);
    linear.op == "aten.linear.default" && value_arg(linear, "weight").is_some_and(is_matrix)
}

/// Linear layers of constant weights that read the same value as one product, whose columns they share.
pub(super) fn fuse_shared_inputs(graph: &mut Graph) -> Result<Changed, PassError> {
    let mut groups: HashMap<ValueId, Vec<usize>> = HashMap::new();
    for (index, linear) in graph.nodes.iter().enumerate() {
        if let Some(input) = shared_input(graph, linear) {
            groups.entry(input).or_default().push(index);
        }
    }
    groups.retain(|_, members| members.len() > 1);
    let first: HashMap<usize, &Vec<usize>> = groups.values().map(|members| (members[0], members)).collect();
    let fused: HashMap<usize, Node> = first.iter().map(|(&at, members)| (at, joined(graph, members))).collect();
    let absorbed: Vec<usize> = groups.values().flat_map(|members| members[1..].to_vec()).collect();
    if fused.is_empty() {
        return Ok(Changed::No);
    }
    let nodes = std::mem::take(&mut graph.nodes).into_iter().enumerate();
    graph.nodes = nodes
        .filter(|(index, _)| !absorbed.contains(index))
        .map(|(index, node)| fused.get(&index).cloned().unwrap_or(node))
        .collect();
    Ok(Changed::Yes)
}

/// The input of a linear layer that may be joined with others: its weight and bias exist before everything.
fn shared_input(graph: &Graph, linear: &Node) -> Option<ValueId> {
    let is_weight =
        |id: ValueId| graph.inputs.iter().any(|input| input.value == id && matches!(input.source, Source::Weight(_)));
    let bias_is_weight = match linear.arg("bias") {
        None | Some(Argument::None) => true,
        Some(bias) => bias.as_value().is_some_and(is_weight),
    };
    let fits = is_f32_linear(graph, linear) && bias_is_weight && value_arg(linear, "weight").is_some_and(is_weight);
    value_arg(linear, "input").filter(|_| fits && only_output(linear).is_some())
}

fn joined(graph: &Graph, members: &[usize]) -> Node {
    let all = |name| {
        let arg = |&member: &usize| graph.nodes[member].arg(name).cloned().unwrap_or(Argument::None);
        Argument::List(members.iter().map(arg).collect())
    };
    let first = &graph.nodes[members[0]];
    let input = first.arg("input").cloned().unwrap_or(Argument::None);
    let args = [("input", input), ("weights", all("weight")), ("biases", all("bias"))];
    Node {
        op: "highroad.linears".to_owned(),
        args: args.into_iter().map(|(name, arg)| (name.to_owned(), arg)).collect(),
        outputs: members.iter().map(|&member| only_output(&graph.nodes[member])).collect(),
        location: first.location.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::test::check;
    use crate::passes::unused::remove_unused;

    const HEAD: &str = r#"graph(%x: f32[s0, 8], %w: f32[4, 8] = "w", %b: f32[4] = "b", %v: f32[6, 8] = "v"):"#;

    #[test]
    fn an_activation_behind_a_linear_layer_becomes_part_of_it() {
        for (activation, name) in [
            ("aten.relu.default(self=%y)", "relu"),
            ("aten.gelu.default(self=%y)", "gelu"),
            (r#"aten.gelu.default(self=%y, approximate="tanh")"#, "gelu_tanh"),
            ("aten.tanh.default(self=%y)", "tanh"),
        ] {
            check(
                &[fuse_activations, remove_unused],
                &format!(
                    "{HEAD}
                       %y: f32[s0, 4] = aten.linear.default(input=%x, weight=%w, bias=%b)
                       %z = {activation}
                       return (%z)"
                ),
                &format!(
                    "{HEAD}
                       %z = highroad.linear(input=%x, weight=%w, bias=%b, activation=\"{name}\")
                       return (%z)"
                ),
            );
        }
    }

    #[test]
    fn a_linear_layer_that_others_read_keeps_its_result() {
        let text = format!(
            "{HEAD}
               %y: f32[s0, 4] = aten.linear.default(input=%x, weight=%w)
               %z = aten.relu.default(self=%y)
               return (%y, %z)"
        );
        check(&[fuse_activations], &text, &text);
    }

    #[test]
    fn linear_layers_of_one_input_are_one_product() {
        check(
            &[fuse_shared_inputs],
            &format!(
                "{HEAD}
                   %q = aten.linear.default(input=%x, weight=%w, bias=%b)
                   %r = aten.relu.default(self=%q)
                   %k = aten.linear.default(input=%x, weight=%v)
                   return (%r, %k)"
            ),
            &format!(
                "{HEAD}
                   %q, %k = highroad.linears(input=%x, weights=[%w, %v], biases=[%b, None])
                   %r = aten.relu.default(self=%q)
                   return (%r, %k)"
            ),
        );
    }

    #[test]
    fn a_weight_that_is_computed_is_left_alone() {
        let text = format!(
            "{HEAD}
               %q = aten.linear.default(input=%x, weight=%w)
               %s: f32[4, 8] = aten.neg.default(self=%w)
               %k = aten.linear.default(input=%x, weight=%s)
               return (%q, %k)"
        );
        check(&[fuse_shared_inputs], &text, &text);
    }
}
