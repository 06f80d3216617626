//! Every declared operator, held to PyTorch's results and to the promises that all operators make.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;

use highroad_runtime::graph::{Argument, Dim, Graph, Input, Node, Source, TensorType, Type};
use highroad_runtime::op::{self, Call, Limits, Meta, OpDef, OpError, Operand, Value};
use highroad_runtime::{Program, RowIndependence, RunOptions};
use highroad_tensor::{DType, Tensor, concat};
use highroad_testkit::{Golden, GoldenValue, check_close, goldens, same_bits};

#[test]
fn every_operator_has_a_golden() {
    let covered: BTreeSet<String> = goldens().into_iter().map(|golden| golden.op).collect();
    let functional = op::all().filter(|op| op.functional().is_none());
    let bare: Vec<&str> = functional.map(OpDef::name).filter(|name| !covered.contains(*name)).collect();
    assert!(bare.is_empty(), "run conformance/make_goldens.py; without golden: {bare:?}");
}

#[test]
fn an_in_place_form_takes_what_its_functional_form_takes() {
    let mut n_forms = 0;
    for op in op::all() {
        let Some(functional) = op.functional() else { continue };
        let names = |op: &OpDef| op.schema().args.iter().map(|arg| arg.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(op), names(functional), "{}", op.name());
        n_forms += 1;
    }
    assert!(n_forms > 50);
}

#[test]
fn every_operator_agrees_with_pytorch() {
    let mut failures = Vec::new();
    for (index, golden) in goldens().iter().enumerate() {
        if let Err(why) = agrees(golden) {
            failures.push(format!("{} (case {index}): {why}\n    {}", golden.op, describe(golden)));
        }
    }
    assert!(failures.is_empty(), "{} disagree:\n  {}", failures.len(), failures.join("\n  "));
}

#[test]
fn inference_agrees_with_evaluation() {
    for golden in goldens() {
        let (op, operands) = call_of(&golden);
        let call = Call::new(op, &operands, &[], Limits::default());
        let metas = (op.declaration().infer)(&call).unwrap();
        assert_eq!(metas.to_vec(), metas_of(&run(op, &operands).unwrap()), "{}", describe(&golden));
    }
}

#[test]
fn the_layout_of_an_argument_does_not_matter() {
    for golden in goldens() {
        let (op, operands) = call_of(&golden);
        let expected = run(op, &operands).unwrap();
        for (layout, of) in LAYOUTS {
            let moved: Vec<Operand> = operands.iter().map(|operand| map_tensors(operand, of)).collect();
            let found = run(op, &moved).unwrap_or_else(|why| panic!("{layout} {}: {why}", describe(&golden)));
            assert!(all_same_bits(&found, &expected), "{layout} changes {}", describe(&golden));
        }
    }
}

#[test]
fn a_repeated_argument_of_stride_zero_is_like_its_copy() {
    for golden in goldens() {
        let (op, operands) = call_of(&golden);
        let repeat = |tensor: &Tensor| match tensor.shape() {
            [size, ..] if *size > 1 => tensor.narrow(0, 0, 1).unwrap().expand(tensor.shape()).unwrap(),
            _ => tensor.clone(),
        };
        let repeated: Vec<Operand> = operands.iter().map(|operand| map_tensors(operand, repeat)).collect();
        let copied: Vec<Operand> = repeated.iter().map(|operand| map_tensors(operand, Tensor::contiguous)).collect();
        match (run(op, &repeated), run(op, &copied)) {
            (Ok(found), Ok(expected)) => assert!(all_same_bits(&found, &expected), "{}", describe(&golden)),
            (Err(_), Err(_)) => {}
            _ => panic!("only one of view and copy fails: {}", describe(&golden)),
        }
    }
}

#[test]
fn empty_arguments_give_what_inference_says_or_an_error() {
    for golden in goldens() {
        let (op, operands) = call_of(&golden);
        let empty = |tensor: &Tensor| match tensor.shape() {
            [_, ..] => tensor.narrow(0, 0, 0).unwrap(),
            _ => tensor.clone(),
        };
        check_consistent(op, &operands.iter().map(|operand| map_tensors(operand, empty)).collect::<Vec<_>>());
    }
}

#[test]
fn bad_arguments_are_errors_and_never_panics() {
    for golden in goldens() {
        let (op, operands) = call_of(&golden);
        for at in 0..operands.len() {
            for bad in bad_operands() {
                let mut changed = operands.clone();
                changed[at] = bad;
                check_consistent(op, &changed);
            }
            // A number outside of every range, in the place of each number of a list.
            if let Operand::List(items) = &operands[at] {
                for item in 0..items.len() {
                    for number in [i64::MIN, -1, 0, i64::MAX] {
                        let mut changed = operands.clone();
                        let Operand::List(list) = &mut changed[at] else { unreachable!("it is a list") };
                        list[item] = Operand::Const(Value::Int(number));
                        check_consistent(op, &changed);
                    }
                }
            }
        }
    }
}

/// Rows stacked many times over, so that kernels split the work: each row must have the bits it has alone, with any
/// number of threads.
#[test]
fn neither_batch_nor_threads_change_the_bits_of_independent_rows() {
    const N_REPEATS: usize = 300;
    let mut checked = BTreeSet::new();
    for golden in goldens() {
        let (op, operands) = call_of(&golden);
        let Some((batched, n_rows)) = row_wise(op, &golden) else { continue };
        let rows = |start, len| -> Vec<Operand> {
            let narrow = |tensor: &Tensor| tensor.narrow(0, start, len).unwrap();
            operands.iter().zip(&batched).map(|(o, b)| if *b { map_tensors(o, narrow) } else { o.clone() }).collect()
        };
        let Ok(alone) = (0..n_rows).map(|row| run(op, &rows(row, 1))).collect::<Result<Vec<_>, _>>() else { continue };
        let many = |tensor: &Tensor| concat(&vec![tensor.clone(); N_REPEATS], 0).unwrap();
        let many: Vec<Operand> =
            operands.iter().zip(&batched).map(|(o, b)| if *b { map_tensors(o, many) } else { o.clone() }).collect();
        let Ok(expected) = run(op, &many) else { continue };
        for threads in [2, 3] {
            let found = highroad_tensor::parallel::with_threads(threads, || run(op, &many).unwrap());
            assert!(all_same_bits(&found, &expected), "{threads} threads change {}", describe(&golden));
        }
        for (index, tensor) in expected.iter().enumerate() {
            for row in [0, n_rows - 1, n_rows * (N_REPEATS - 1), n_rows * N_REPEATS - 1] {
                let found = tensor.narrow(0, row, 1).unwrap_or_else(|why| panic!("{why}: {}", describe(&golden)));
                assert!(same_bits(&found, &alone[row % n_rows][index]), "row {row} of a batch: {}", describe(&golden));
            }
        }
        checked.insert(golden.op.clone());
    }
    assert!(checked.len() > 80, "only {} operators were found to be row-wise: {checked:?}", checked.len());
}

type Relaid = fn(&Tensor) -> Tensor;

const LAYOUTS: [(&str, Relaid); 3] = [
    ("reversed strides", |tensor| {
        let order: Vec<usize> = (0..tensor.ndim()).rev().collect();
        tensor.permute(&order).unwrap().contiguous().permute(&order).unwrap()
    }),
    ("every second element", |tensor| {
        let last = tensor.ndim();
        let pair = [tensor.unsqueeze(last).unwrap(), tensor.unsqueeze(last).unwrap()];
        concat(&pair, last).unwrap().select(last, 1).unwrap()
    }),
    ("an offset", |tensor| match tensor.shape() {
        [size, ..] => concat(&[tensor.clone(), tensor.clone()], 0).unwrap().narrow(0, *size, *size).unwrap(),
        [] => tensor.clone(),
    }),
];

fn bad_operands() -> Vec<Operand> {
    let numbers = [i64::MIN, -1, 0, 1, 1 << 40, i64::MAX].map(Value::Int);
    let floats = [f64::NAN, f64::INFINITY, -1e300].map(Value::Float);
    let tensors = [
        Tensor::zeros(DType::F32, &[]).unwrap(),
        Tensor::zeros(DType::F32, &[0]).unwrap(),
        Tensor::zeros(DType::F32, &[1, 2, 1, 2, 1]).unwrap(),
        Tensor::from_slice(&[i64::MIN, -1, i64::MAX], &[3]).unwrap(),
        Tensor::from_bools(&[true, false], &[2]).unwrap(),
    ];
    let others = [Value::None, Value::Bool(true), Value::Str("?".into()), Value::DType(DType::Bool)];
    let values = numbers.into_iter().chain(floats).chain(tensors.map(Value::Tensor)).chain(others);
    let lists = [vec![], vec![Operand::Const(Value::Int(-1)); 3], vec![Operand::Const(Value::None); 2]];
    values.map(Operand::Const).chain(lists.map(Operand::List)).collect()
}

/// The call fails or gives what inference says.
fn check_consistent(op: &'static OpDef, operands: &[Operand]) {
    let limits = Limits { tensor_bytes: 1 << 24 };
    let call = Call::new(op, operands, &[], limits);
    let Ok(outputs) = op.declaration().run(&call) else { return };
    let metas = (op.declaration().infer)(&call).expect("inference runs before evaluation");
    assert_eq!(metas.to_vec(), metas_of(&tensors(&outputs)), "{} {operands:?}", op.name());
}

fn agrees(golden: &Golden) -> Result<(), String> {
    let (op, operands) = call_of(golden);
    let limits = Limits::default();
    let outputs = op.declaration().run(&Call::new(op, &operands, &[], limits)).map_err(|error| error.to_string())?;
    if outputs.len() != golden.outputs.len() {
        return Err(format!("{} results, expected {}", outputs.len(), golden.outputs.len()));
    }
    let tolerance = op.declaration().tolerance;
    for (found, expected) in outputs.iter().zip(&golden.outputs) {
        match (found, expected) {
            (Value::Tensor(found), GoldenValue::Tensor(expected)) => {
                check_close(found, expected, tolerance.absolute, tolerance.relative)?;
            }
            (Value::Int(a), GoldenValue::Int(b)) if a == b => {}
            (Value::Float(a), GoldenValue::Float(b)) if a == b => {}
            (Value::Bool(a), GoldenValue::Bool(b)) if a == b => {}
            _ => return Err(format!("{found:?}, expected {expected:?}")),
        }
    }
    Ok(())
}

/// The operator and its operands in schema order, defaults filled.
fn call_of(golden: &Golden) -> (&'static OpDef, Vec<Operand>) {
    let op = op::lookup(&golden.op).unwrap_or_else(|| panic!("{} is not declared", golden.op));
    let args: BTreeMap<&str, &GoldenValue> = golden.args.iter().map(|(name, value)| (name.as_str(), value)).collect();
    let operand = |arg: &op::Arg| match args.get(arg.name.as_str()) {
        Some(value) => operand(value),
        None => arg.default.as_ref().map_or(Operand::Const(Value::None), constant),
    };
    (op, op.schema().args.iter().map(operand).collect())
}

fn operand(value: &GoldenValue) -> Operand {
    Operand::Const(match value {
        GoldenValue::None => Value::None,
        GoldenValue::Tensor(tensor) => Value::Tensor(tensor.clone()),
        GoldenValue::Int(int) => Value::Int(*int),
        GoldenValue::Float(float) => Value::Float(*float),
        GoldenValue::Bool(bool) => Value::Bool(*bool),
        GoldenValue::Str(text) => Value::Str(text.as_str().into()),
        GoldenValue::DType(dtype) => Value::DType(*dtype),
        GoldenValue::List(items) => return Operand::List(items.iter().map(operand).collect()),
    })
}

fn constant(default: &Argument) -> Operand {
    Operand::Const(match default {
        Argument::Int(int) => Value::Int(*int),
        Argument::Float(float) => Value::Float(*float),
        Argument::Bool(bool) => Value::Bool(*bool),
        Argument::Str(text) => Value::Str(text.as_str().into()),
        Argument::DType(dtype) => Value::DType(*dtype),
        Argument::List(items) => return Operand::List(items.iter().map(constant).collect()),
        _ => Value::None,
    })
}

fn run(op: &'static OpDef, operands: &[Operand]) -> Result<Vec<Tensor>, OpError> {
    op.declaration().run(&Call::new(op, operands, &[], Limits::default())).map(|outputs| tensors(&outputs))
}

fn tensors(outputs: &[Value]) -> Vec<Tensor> {
    outputs
        .iter()
        .filter_map(|value| if let Value::Tensor(tensor) = value { Some(tensor.clone()) } else { None })
        .collect()
}

fn metas_of(tensors: &[Tensor]) -> Vec<Meta> {
    tensors.iter().map(|tensor| Meta::new(tensor.dtype(), tensor.shape())).collect()
}

fn map_tensors(operand: &Operand, map: impl Fn(&Tensor) -> Tensor + Copy) -> Operand {
    match operand {
        Operand::Const(Value::Tensor(tensor)) => Operand::Const(Value::Tensor(map(tensor))),
        Operand::List(items) => Operand::List(items.iter().map(|item| map_tensors(item, map)).collect()),
        other => other.clone(),
    }
}

fn all_same_bits(found: &[Tensor], expected: &[Tensor]) -> bool {
    found.len() == expected.len() && found.iter().zip(expected).all(|(found, expected)| same_bits(found, expected))
}

/// Which operands hold the batch in dimension 0, where the row proof finds the operator row-wise in them, and the
/// number of rows. The first tensor has the batch, and so does every other one with as many dimensions and rows.
fn row_wise(op: &'static OpDef, golden: &Golden) -> Option<(Vec<bool>, usize)> {
    let args: BTreeMap<&str, &GoldenValue> = golden.args.iter().map(|(name, value)| (name.as_str(), value)).collect();
    let leading = op.schema().args.iter().find_map(|arg| match args.get(arg.name.as_str()) {
        Some(GoldenValue::Tensor(tensor)) if tensor.ndim() > 0 => Some(tensor),
        _ => None,
    })?;
    let (ndim, n_rows) = (leading.ndim(), leading.shape()[0]);
    let is_batched = |value: &GoldenValue| match value {
        GoldenValue::Tensor(tensor) => tensor.ndim() == ndim && tensor.shape()[0] == n_rows,
        _ => false,
    };
    let batched: Vec<bool> =
        op.schema().args.iter().map(|arg| args.get(arg.name.as_str()).is_some_and(|value| is_batched(value))).collect();
    let graph = graph_of(golden, &batched, n_rows)?;
    (n_rows > 0 && RowIndependence::of(&graph) == RowIndependence::Proved).then_some((batched, n_rows))
}

/// A graph of the one call, whose batched tensors have a symbol in dimension 0.
fn graph_of(golden: &Golden, batched: &[bool], n_rows: usize) -> Option<Graph> {
    let (op, operands) = call_of(golden);
    let mut graph = Graph::default();
    let mut args = Vec::new();
    for ((arg, operand), is_batched) in op.schema().args.iter().zip(&operands).zip(batched) {
        args.push((arg.name.clone(), argument(&mut graph, operand, *is_batched)?));
    }
    let outputs = run(op, &operands).ok()?;
    let mut ids = Vec::new();
    for (index, tensor) in outputs.iter().enumerate() {
        let is_row = tensor.shape().first() == Some(&n_rows);
        ids.push(Some(graph.add_value(format!("out{index}"), Type::Tensor(type_of(tensor, is_row)))));
    }
    graph.outputs = ids.iter().flatten().map(|id| Argument::Value(*id)).collect();
    graph.nodes.push(Node { op: golden.op.clone(), args, outputs: ids, location: None });
    Some(graph)
}

fn type_of(tensor: &Tensor, is_row: bool) -> TensorType {
    let mut sizes: Vec<Dim> = tensor.shape().iter().map(|&size| Dim::Known(size)).collect();
    if is_row {
        sizes[0] = Dim::Symbol("b".to_owned());
    }
    TensorType { dtype: tensor.dtype(), sizes }
}

fn argument(graph: &mut Graph, operand: &Operand, is_batched: bool) -> Option<Argument> {
    Some(match operand {
        Operand::Const(Value::Tensor(tensor)) => {
            let position = graph.inputs.len();
            let id = graph.add_value(format!("in{position}"), Type::Tensor(type_of(tensor, is_batched)));
            let source = if is_batched { Source::User { position } } else { Source::Weight(position.to_string()) };
            graph.inputs.push(Input { value: id, source });
            Argument::Value(id)
        }
        Operand::Const(Value::None) => Argument::None,
        Operand::Const(Value::Int(int)) => Argument::Int(*int),
        Operand::Const(Value::Float(float)) => Argument::Float(*float),
        Operand::Const(Value::Bool(bool)) => Argument::Bool(*bool),
        Operand::Const(Value::Str(text)) => Argument::Str(text.to_string()),
        Operand::Const(Value::DType(dtype)) => Argument::DType(*dtype),
        Operand::List(items) => {
            Argument::List(items.iter().map(|item| argument(graph, item, is_batched)).collect::<Option<_>>()?)
        }
        Operand::Slot(_) => return None,
    })
}

fn describe(golden: &Golden) -> String {
    format!("{} {:?} -> {:?}", golden.op, golden.args, golden.outputs)
}

#[test]
fn a_program_of_text_runs() {
    let graph: Graph = "graph(%x: f32[s0, 2]):
       %y: f32[s0, 2] = aten.add.Tensor(self=%x, other=2)
       %z: f32[s0] = aten.sum.dim_IntList(self=%y, dim=[1])
       return (%z)"
        .parse()
        .unwrap();
    let program = Program::from_graph(graph, |_| None).unwrap();
    let x = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0], &[2, 2]).unwrap();
    let options = RunOptions::with_threads(NonZeroUsize::MIN);
    assert_eq!(program.run(&[x], &options).unwrap()[0].to_vec::<f32>().unwrap(), [7.0, 11.0]);
    assert!(program.row_independence().is_proved());
}
