//! How passes are tested: text in, text out.

use crate::graph::{Argument, Graph, Type};
use crate::passes::Pass;
use crate::verify::verify;

/// Runs `passes` in order on the graph `before` and compares with `after`. Names of values and types of results do not
/// matter, everything else does.
pub(super) fn check(passes: &[Pass], before: &str, after: &str) {
    let mut graph: Graph = before.parse().unwrap_or_else(|error| panic!("before: {error}"));
    let expected: Graph = after.parse().unwrap_or_else(|error| panic!("after: {error}"));
    for pass in passes {
        pass(&mut graph).unwrap_or_else(|error| panic!("{error}\n{graph}"));
        verify_without_weights(&graph);
    }
    assert_eq!(anonymous(&graph), anonymous(&expected), "\nthe pass made\n{graph}\n");
}

/// Runs `pass` and gives the text of its error.
pub(super) fn error_of(pass: Pass, before: &str) -> String {
    let mut graph: Graph = before.parse().unwrap_or_else(|error| panic!("before: {error}"));
    match pass(&mut graph) {
        Ok(_) => panic!("no error\n{graph}"),
        Err(error) => error.to_string(),
    }
}

fn verify_without_weights(graph: &Graph) {
    let mut graph = graph.clone();
    graph.inputs.iter_mut().enumerate().for_each(|(position, input)| {
        input.source = crate::graph::Source::User { position };
    });
    verify(&graph).unwrap_or_else(|fault| panic!("{fault}\n{graph}"));
}

/// The text with values numbered in the order of their definition and without types of results.
fn anonymous(graph: &Graph) -> String {
    let mut graph = graph.clone();
    let inputs: Vec<_> = graph.inputs.iter().map(|input| input.value).collect();
    let results = graph.nodes.iter().flat_map(|node| node.outputs.iter().flatten().copied());
    for (next, id) in inputs.iter().copied().chain(results).collect::<Vec<_>>().into_iter().enumerate() {
        let value = &mut graph.values[id.0 as usize];
        value.name = format!("v{next}");
        if !inputs.contains(&id) {
            value.ty = Type::Unknown;
        }
    }
    for node in &mut graph.nodes {
        node.location = None;
        for (_, arg) in &mut node.args {
            if let Argument::Graph(body) = arg {
                **body = anonymous(body).parse().unwrap();
            }
        }
    }
    graph.to_string()
}
