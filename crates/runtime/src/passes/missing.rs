//! Operators of a program without a kernel.

use std::cmp::Reverse;
use std::collections::HashMap;

use crate::graph::Graph;
use crate::op;

/// An operator that a program uses and this runtime does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingOp {
    /// Operator with overload.
    pub op: String,
    /// How many nodes use it.
    pub n_uses: usize,
    /// Where the user's Python used it first, when the archive tells.
    pub first_use: Option<String>,
}

/// Operators of `graph` without a kernel, most used first.
pub fn missing_ops(graph: &Graph) -> Vec<MissingOp> {
    let mut missing: HashMap<&str, MissingOp> = HashMap::new();
    for node in graph.nodes.iter().filter(|node| op::lookup(&node.op).is_none()) {
        let first = || MissingOp { op: node.op.clone(), n_uses: 0, first_use: node.location.clone() };
        missing.entry(&node.op).or_insert_with(first).n_uses += 1;
    }
    let mut missing: Vec<MissingOp> = missing.into_values().collect();
    missing.sort_by(|a, b| (Reverse(a.n_uses), &a.op).cmp(&(Reverse(b.n_uses), &b.op)));
    missing
}

/// All of `missing` in words, one a line.
pub(crate) fn describe(missing: &[MissingOp]) -> String {
    let operators = if missing.len() == 1 { "operator is" } else { "operators are" };
    let width = missing.iter().map(|op| op.op.len()).max().unwrap_or_default();
    let mut text = format!("{} {operators} not supported", missing.len());
    for MissingOp { op, n_uses, first_use } in missing {
        let (times, at) =
            if *n_uses == 1 { ("once".to_owned(), ", at ") } else { (format!("{n_uses} times"), ", first at ") };
        let place = first_use.as_ref().map(|place| format!("{at}{place}")).unwrap_or_default();
        text += &format!("\n  {op:width$} used {times}{place}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_missing_operator_is_listed_with_its_first_use() {
        let op = |op: &str, n_uses, place: Option<&str>| MissingOp {
            op: op.into(),
            n_uses,
            first_use: place.map(str::to_owned),
        };
        let missing = [
            op("aten.fft_rfft.default", 3, Some("model/spectrum.py:41")),
            op("aten.nms.default", 1, Some("m/warp.py:88")),
            op("a.b.c", 2, None),
        ];
        let expected = "3 operators are not supported\n  \
                        aten.fft_rfft.default used 3 times, first at model/spectrum.py:41\n  \
                        aten.nms.default      used once, at m/warp.py:88\n  \
                        a.b.c                 used 2 times";
        assert_eq!(describe(&missing), expected);
    }
}
