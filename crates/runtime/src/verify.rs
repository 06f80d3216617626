//! The structural check of a graph, run after each pass in debug builds.

use std::collections::HashSet;

use crate::graph::{Argument, Graph, Source, ValueId};

/// How a graph breaks the rules of [`Graph`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum Fault {
    #[error("value {0} does not exist")]
    NoSuchValue(u32),
    #[error("`%{0}` is used before it is defined")]
    UseBeforeDefinition(String),
    #[error("`%{0}` is defined twice")]
    DefinedTwice(String),
    #[error("two values are called `%{0}`")]
    NameTaken(String),
    #[error("there is no weight `{0}`")]
    NoSuchWeight(String),
    #[error("the inputs given by the caller are not numbered 0, 1, …")]
    Positions,
    #[error("argument `{name}` of {op} is given twice")]
    ArgumentTwice { op: String, name: String },
    #[error("{0} has an input that only the body of a higher-order operator can have")]
    Operand(&'static str),
}

/// Checks that ids exist, that every use comes after its one definition, that names are unique, and that inputs have a
/// source; the bodies of higher-order operators too.
pub fn verify(graph: &Graph) -> Result<(), Fault> {
    if graph.inputs.iter().any(|input| input.source == Source::Operand) {
        return Err(Fault::Operand("the graph"));
    }
    verify_sources(graph)?;
    verify_body(graph)
}

fn verify_sources(graph: &Graph) -> Result<(), Fault> {
    let mut positions = Vec::new();
    for input in &graph.inputs {
        match &input.source {
            Source::User { position } => positions.push(*position),
            Source::Weight(name) if !graph.weights.0.contains_key(name) => {
                return Err(Fault::NoSuchWeight(name.clone()));
            }
            Source::Weight(_) | Source::Operand => {}
        }
    }
    positions.sort_unstable();
    if positions.iter().copied().eq(0..positions.len()) { Ok(()) } else { Err(Fault::Positions) }
}

fn verify_body(graph: &Graph) -> Result<(), Fault> {
    let mut names = HashSet::with_capacity(graph.values.len());
    let mut defined = vec![false; graph.values.len()];
    for input in &graph.inputs {
        define(graph, input.value, &mut defined, &mut names)?;
    }
    for node in &graph.nodes {
        for (position, (name, arg)) in node.args.iter().enumerate() {
            verify_uses(graph, arg, &defined)?;
            if !name.is_empty() && node.args[..position].iter().any(|(other, _)| other == name) {
                return Err(Fault::ArgumentTwice { op: node.op.clone(), name: name.clone() });
            }
        }
        for output in node.outputs.iter().flatten() {
            define(graph, *output, &mut defined, &mut names)?;
        }
    }
    graph.outputs.iter().try_for_each(|output| verify_uses(graph, output, &defined))
}

fn define<'a>(graph: &'a Graph, id: ValueId, defined: &mut [bool], names: &mut HashSet<&'a str>) -> Result<(), Fault> {
    let value = graph.values.get(id.0 as usize).ok_or(Fault::NoSuchValue(id.0))?;
    if std::mem::replace(&mut defined[id.0 as usize], true) {
        return Err(Fault::DefinedTwice(value.name.clone()));
    }
    if !names.insert(&value.name) {
        return Err(Fault::NameTaken(value.name.clone()));
    }
    Ok(())
}

fn verify_uses(graph: &Graph, arg: &Argument, defined: &[bool]) -> Result<(), Fault> {
    match arg {
        Argument::Value(id) => match defined.get(id.0 as usize) {
            None => Err(Fault::NoSuchValue(id.0)),
            Some(false) => Err(Fault::UseBeforeDefinition(graph.value(*id).name.clone())),
            Some(true) => Ok(()),
        },
        Argument::List(items) => items.iter().try_for_each(|item| verify_uses(graph, item, defined)),
        Argument::Graph(body) => verify_body(body),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Option<String> {
        let graph: Graph = text.parse().unwrap();
        verify(&graph).err().map(|fault| fault.to_string())
    }

    #[test]
    fn a_graph_in_order_passes() {
        assert_eq!(faults("graph(%x: f32[2]): %y = aten.relu.default(self=%x) return (%y)"), None);
    }

    #[test]
    fn an_argument_given_twice_is_a_fault() {
        let fault = faults("graph(%x: f32[2]): %y = aten.add.Tensor(self=%x, self=%x) return (%y)");
        assert_eq!(fault.as_deref(), Some("argument `self` of aten.add.Tensor is given twice"));
    }

    #[test]
    fn ids_out_of_range_and_out_of_order_are_faults() {
        let mut graph: Graph = "graph(%x: f32[2]): %y = aten.relu.default(self=%x) return (%y)".parse().unwrap();
        graph.outputs[0] = Argument::Value(ValueId(9));
        assert_eq!(verify(&graph), Err(Fault::NoSuchValue(9)));
        graph.outputs.clear();
        graph.nodes[0].args[0].1 = Argument::Value(ValueId(1));
        assert_eq!(verify(&graph), Err(Fault::UseBeforeDefinition("y".into())));
        graph.nodes[0].outputs[0] = Some(ValueId(0));
        graph.nodes[0].args.clear();
        assert_eq!(verify(&graph), Err(Fault::DefinedTwice("x".into())));
    }
}
