//! The serialized program (`models/model.json`) as a raw [`Graph`].
//!
//! torch's schema is read as torch reads it: unknown keys are ignored, missing keys take their defaults, and only the
//! major version must match. Half of a program is metadata about how it was traced; it is skipped without a copy,
//! except for the place in the user's code.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

use highroad_tensor::Tensor;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, de};

use crate::LoadError;
use crate::archive::{Archive, MAX_RANK, STRIDED, dtype_of_code, parse_json};
use crate::graph::{Argument, Dim, Graph, Input, Node, Source, TensorType, Type, ValueId, Weights};
use crate::symbol;
use crate::treespec::TreeSpec;

/// Major version of torch's export schema that is read; torch 2.9 to 2.15 write it.
pub const SCHEMA_MAJOR: u64 = 8;
/// Most operators of a program, bodies of higher-order operators included; the largest of 557 real models has 7446.
pub const MAX_NODES: usize = 1 << 20;
/// Deepest nesting of higher-order operators.
pub const MAX_DEPTH: usize = 16;

/// What an archive says: the raw graph and how callers see it.
#[derive(Clone, Debug)]
pub struct Exported {
    /// The program as torch wrote it.
    pub graph: Graph,
    /// What goes in and comes out in Python's terms.
    pub interface: Interface,
    /// Version of torch that wrote the program.
    pub torch_version: String,
    /// Major and minor version of the schema.
    pub schema_version: (u64, u64),
    /// Limits of symbols and expressions over them, as far as they mean something: torch traces every dynamic size
    /// with at least 2 but lets 0 and 1 pass, so a lower limit of 2 or less is dropped.
    pub ranges: BTreeMap<String, Range>,
}

/// Limits of a size, both included; `None` where there is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Range {
    pub min: Option<i64>,
    pub max: Option<i64>,
}

/// Arguments and results as the exported module's `forward` had them.
#[derive(Clone, Debug, PartialEq)]
pub struct Interface {
    /// Always a tuple of the positional arguments (a tuple) and the keyword arguments (a dictionary).
    pub in_spec: TreeSpec,
    /// What `forward` returns.
    pub out_spec: TreeSpec,
    /// One for each leaf of `in_spec`.
    pub leaves: Vec<Leaf>,
    /// One for each leaf of `out_spec`; those that are given are the outputs of the graph.
    pub results: Vec<Leaf>,
    /// Names of the positional parameters of `forward`, if the archive tells.
    pub arg_names: Vec<String>,
}

/// One leaf of a program's arguments or results.
#[derive(Clone, Debug, PartialEq)]
pub enum Leaf {
    /// Given on each run: the input whose source is `User { position }`, or the output at that place.
    Given {
        /// Position among the leaves that are given.
        position: usize,
    },
    /// Fixed when the program was exported; a call must pass the same argument or leave it out.
    Constant(Argument),
}

/// Reads the program of an archive, weights included (as views).
///
/// Errors if the schema is another, if anything is used that this reader does not know, and if the graph names weights
/// that the archive lacks; the error is about the first such thing found.
pub fn exported(archive: &Archive) -> Result<Exported, LoadError> {
    let record = archive.program_record();
    let json = archive.program_json()?;
    let header: Header<'_> = parse_json(&record, json)?;
    check_schema(&header)?;
    let program: Program<'_> = parse_json(&record, json)?;
    let module = program.graph_module;
    let mut budget = MAX_NODES;
    let mut graph = Scope::default().build(&module.graph, &mut budget, 0)?;
    let leaves = bind_inputs(&mut graph, &module.graph.inputs, &module.signature.input_specs)?;
    check_outputs(&module.signature.output_specs)?;
    let results = bind_outputs(&mut graph);
    graph.weights = read_weights(&graph, archive)?;
    let interface = interface(leaves, results, module.module_call_graph, module.treespec_namedtuple_fields)?;
    crate::verify::verify(&graph).map_err(|fault| LoadError::Malformed(fault.to_string()))?;
    Ok(Exported {
        graph,
        interface,
        torch_version: header.torch_version.into_owned(),
        schema_version: (header.schema_version.major, header.schema_version.minor),
        ranges: ranges(program.range_constraints),
    })
}

fn check_schema(header: &Header<'_>) -> Result<(), LoadError> {
    let Version { major, minor } = header.schema_version;
    if major == SCHEMA_MAJOR {
        return Ok(());
    }
    Err(LoadError::Schema { major, minor, torch: header.torch_version.chars().take(40).collect() })
}

/// Gives each graph input its source: the signature and the graph list them in the same order.
fn bind_inputs(graph: &mut Graph, inputs: &[RawArgument<'_>], specs: &[InputSpec<'_>]) -> Result<Vec<Leaf>, LoadError> {
    if inputs.len() != specs.len() {
        let (found, listed) = (inputs.len(), specs.len());
        return Err(LoadError::Malformed(format!("it has {found} inputs and its signature lists {listed}")));
    }
    let mut leaves = Vec::new();
    let mut position = 0;
    let mut values = std::mem::take(&mut graph.inputs).into_iter();
    for (input, spec) in inputs.iter().zip(specs) {
        // A constant input is no value in the graph, so only its place says which it is.
        let value = if input.is_value() { values.next() } else { None };
        match (spec.source()?, value) {
            (Some(source), Some(input)) => graph.inputs.push(Input { source, ..input }),
            (Some(_), None) => return Err(LoadError::Malformed("a weight is bound to a constant".into())),
            (None, Some(input)) => {
                graph.inputs.push(Input { source: Source::User { position }, ..input });
                leaves.push(Leaf::Given { position });
                position += 1;
            }
            (None, None) => leaves.push(Leaf::Constant(spec.constant(input)?)),
        }
    }
    Ok(leaves)
}

/// Leaves only values among the outputs of the graph; what is always the same is no output.
fn bind_outputs(graph: &mut Graph) -> Vec<Leaf> {
    let mut position = 0;
    let outputs = std::mem::take(&mut graph.outputs);
    let leaf = |output: Argument| match output {
        Argument::Value(_) => {
            graph.outputs.push(output);
            position += 1;
            Leaf::Given { position: position - 1 }
        }
        constant => Leaf::Constant(constant),
    };
    outputs.into_iter().map(leaf).collect()
}

fn check_outputs(specs: &[OutputSpec]) -> Result<(), LoadError> {
    let what = match specs.iter().find(|spec| !matches!(spec, OutputSpec::user_output(_))) {
        None => return Ok(()),
        Some(OutputSpec::buffer_mutation(_) | OutputSpec::parameter_mutation(_)) => {
            "a program that changes its own buffers (export the model after `model.eval()`)"
        }
        Some(OutputSpec::user_input_mutation(_)) => "a program that changes its inputs in place",
        Some(OutputSpec::token(_)) => "a program with effect tokens",
        Some(_) => "a training graph, with a loss or gradients among its outputs,",
    };
    Err(LoadError::Unsupported { what: what.into(), location: None })
}

fn read_weights(graph: &Graph, archive: &Archive) -> Result<Weights, LoadError> {
    let mut weights = BTreeMap::new();
    for input in &graph.inputs {
        if let Source::Weight(name) = &input.source {
            let tensor = archive.weight(name)?;
            check_weight(graph, input.value, name, &tensor)?;
            weights.insert(name.clone(), tensor);
        }
    }
    Ok(Weights(weights))
}

fn check_weight(graph: &Graph, value: ValueId, name: &str, tensor: &Tensor) -> Result<(), LoadError> {
    let stored = tensor.shape().iter().map(|&size| Dim::Known(size)).collect();
    let stored = TensorType { dtype: tensor.dtype(), sizes: stored };
    match graph.tensor_type(value) {
        Some(expected) if *expected == stored => Ok(()),
        _ => Err(LoadError::weight(name, format!("is stored as {stored} and the graph takes another type"))),
    }
}

fn interface(
    leaves: Vec<Leaf>,
    results: Vec<Leaf>,
    calls: Vec<ModuleCall<'_>>,
    named_tuples: HashMap<String, NamedTuple>,
) -> Result<Interface, LoadError> {
    let signature = calls.into_iter().find(|call| call.fqn.is_empty()).and_then(|call| call.signature);
    let signature = signature.ok_or_else(|| LoadError::Malformed("it has no signature of its root module".into()))?;
    let fields = named_tuples.into_iter().map(|(name, tuple)| (name, tuple.field_names)).collect();
    let interface = Interface {
        in_spec: TreeSpec::parse(&signature.in_spec, &fields)?,
        out_spec: TreeSpec::parse(&signature.out_spec, &fields)?,
        leaves,
        results,
        arg_names: signature.forward_arg_names.unwrap_or_default(),
    };
    let expected = [
        ("inputs", interface.in_spec.n_leaves(), interface.leaves.len()),
        ("outputs", interface.out_spec.n_leaves(), interface.results.len()),
    ];
    match expected.into_iter().find(|(_, in_tree, in_graph)| in_tree != in_graph) {
        None => Ok(interface),
        Some((what, in_tree, in_graph)) => {
            Err(LoadError::Malformed(format!("its tree of {what} has {in_tree} leaves and the graph has {in_graph}")))
        }
    }
}

fn ranges(raw: BTreeMap<String, RawRange>) -> BTreeMap<String, Range> {
    let range = |raw: RawRange| Range { min: raw.min_val.filter(|&min| min > 2), max: raw.max_val };
    raw.into_iter().map(|(symbol, raw)| (symbol, range(raw))).collect()
}

/// Names in scope while one graph is built.
#[derive(Default)]
struct Scope {
    ids: HashMap<String, ValueId>,
    /// Names as graph text can hold them, so that two odd names do not become one.
    taken: HashMap<String, usize>,
    graph: Graph,
}

impl Scope {
    fn build(mut self, raw: &RawGraph<'_>, budget: &mut usize, depth: usize) -> Result<Graph, LoadError> {
        if depth > MAX_DEPTH {
            let (found, limit) = (depth as u64, MAX_DEPTH as u64);
            return Err(LoadError::Limit { what: "levels of nested graphs", found, limit });
        }
        for input in &raw.inputs {
            if let Some(name) = input.name() {
                let value = self.define(name, raw)?;
                self.graph.inputs.push(Input { value, source: Source::Operand });
            }
        }
        for node in &raw.nodes {
            *budget = budget.checked_sub(1).ok_or(LoadError::Limit {
                what: "operators",
                found: MAX_NODES as u64 + 1,
                limit: MAX_NODES as u64,
            })?;
            let node = self.node(node, raw, budget, depth)?;
            self.graph.nodes.push(node);
        }
        let outputs = raw.outputs.iter().map(|output| self.argument(output, budget, depth));
        self.graph.outputs = outputs.collect::<Result<_, _>>()?;
        Ok(self.graph)
    }

    fn node(
        &mut self,
        raw: &RawNode<'_>,
        graph: &RawGraph<'_>,
        budget: &mut usize,
        depth: usize,
    ) -> Result<Node, LoadError> {
        let located = |error| locate(error, &raw.metadata.location);
        let op = operator_name(&raw.target)?;
        let mut args = Vec::with_capacity(raw.inputs.len());
        for input in &raw.inputs {
            let arg = self.argument(&input.arg, budget, depth).map_err(located)?;
            args.push((argument_name(&input.name)?, arg));
        }
        let mut outputs = Vec::with_capacity(raw.outputs.len());
        for output in &raw.outputs {
            self.results(output, graph, &mut outputs).map_err(located)?;
        }
        Ok(Node { op, args, outputs, location: raw.metadata.location.clone() })
    }

    /// Adds the values that one serialized result defines, lists flattened.
    fn results(
        &mut self,
        raw: &RawArgument<'_>,
        graph: &RawGraph<'_>,
        outputs: &mut Vec<Option<ValueId>>,
    ) -> Result<(), LoadError> {
        match raw {
            RawArgument::as_none(_) => outputs.push(None),
            RawArgument::as_tensors(tensors) => {
                for tensor in tensors {
                    outputs.push(self.result(&tensor.name, graph)?);
                }
            }
            raw => match raw.name() {
                Some(name) => outputs.push(self.result(name, graph)?),
                None => return Err(unsupported("a result of this kind")),
            },
        }
        Ok(())
    }

    /// torch names results that nobody uses after the node with this suffix.
    fn result(&mut self, name: &str, graph: &RawGraph<'_>) -> Result<Option<ValueId>, LoadError> {
        if name.contains("_unused_") {
            return Ok(None);
        }
        self.define(name, graph).map(Some)
    }

    fn define(&mut self, name: &str, graph: &RawGraph<'_>) -> Result<ValueId, LoadError> {
        let ty = value_type(name, graph)?;
        let printable = self.printable(name);
        let id = self.graph.add_value(printable, ty);
        match self.ids.insert(name.to_owned(), id) {
            None => Ok(id),
            Some(_) => Err(LoadError::Malformed(format!("`{name}` is defined twice"))),
        }
    }

    /// The name, with characters that graph text gives a meaning replaced.
    fn printable(&mut self, name: &str) -> String {
        let mut text: String =
            name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect();
        let taken = self.taken.entry(text.clone()).or_insert(0);
        *taken += 1;
        if *taken > 1 || text.is_empty() {
            // A dot appears in no other name, so this one is new.
            text = format!("{text}.{taken}");
        }
        text
    }

    fn lookup(&self, name: &str) -> Result<Argument, LoadError> {
        let id = self.ids.get(name);
        id.map(|&id| Argument::Value(id))
            .ok_or_else(|| LoadError::Malformed(format!("`{name}` is used before it is defined")))
    }

    fn argument(&self, raw: &RawArgument<'_>, budget: &mut usize, depth: usize) -> Result<Argument, LoadError> {
        use RawArgument as Raw;
        let tensors = |names: &[Name<'_>]| -> Result<Vec<_>, LoadError> {
            names.iter().map(|name| self.lookup(&name.name)).collect()
        };
        Ok(match raw {
            Raw::as_none(_) => Argument::None,
            Raw::as_tensor(name) => self.lookup(&name.name)?,
            Raw::as_tensors(names) => Argument::List(tensors(names)?),
            Raw::as_nested_tensors(lists) => {
                let list = |names: &Vec<Name<'_>>| Ok(Argument::List(tensors(names)?));
                Argument::List(lists.iter().map(list).collect::<Result<_, LoadError>>()?)
            }
            Raw::as_int(value) => Argument::Int(*value),
            Raw::as_ints(values) => list_of(values, |value| Argument::Int(*value)),
            Raw::as_int_lists(lists) => list_of(lists, |values| list_of(values, |value| Argument::Int(*value))),
            Raw::as_float(value) => Argument::Float(value.0),
            Raw::as_floats(values) => list_of(values, |value| Argument::Float(value.0)),
            Raw::as_float_lists(lists) => list_of(lists, |values| list_of(values, |value| Argument::Float(value.0))),
            Raw::as_bool(value) => Argument::Bool(*value),
            Raw::as_bools(values) => list_of(values, |value| Argument::Bool(*value)),
            Raw::as_string(value) => Argument::Str(value.to_string()),
            Raw::as_strings(values) => list_of(values, |value| Argument::Str(value.clone())),
            Raw::as_sym_int(value) | Raw::as_sym_bool(value) | Raw::as_sym_float(value) => self.symbolic(value)?,
            Raw::as_sym_ints(values) | Raw::as_sym_bools(values) | Raw::as_sym_floats(values) => {
                Argument::List(values.iter().map(|value| self.symbolic(value)).collect::<Result<_, _>>()?)
            }
            Raw::as_optional_tensor(value) => self.optional(value)?,
            Raw::as_optional_tensors(values) => {
                Argument::List(values.iter().map(|value| self.optional(value)).collect::<Result<_, _>>()?)
            }
            Raw::as_scalar_type(code) => {
                Argument::DType(dtype_of_code(*code).map_err(|what| unsupported(format!("a dtype that is {what}")))?)
            }
            Raw::as_memory_format(code) => Argument::Ignored(memory_format(*code)?.into()),
            Raw::as_layout(STRIDED) => Argument::Ignored("strided".into()),
            Raw::as_layout(_) => return Err(unsupported("a tensor layout other than strided")),
            // The program runs on the CPU, whatever machine it was exported on.
            Raw::as_device(_) => Argument::Ignored("cpu".into()),
            Raw::as_graph(body) => Argument::Graph(Box::new(Scope::default().build(&body.graph, budget, depth + 1)?)),
            Raw::as_custom_obj(_) => return Err(unsupported("a custom object as an argument")),
            Raw::as_operator(_) => return Err(unsupported("an operator as an argument")),
            Raw::as_complex(_) => return Err(unsupported("a complex number")),
            Raw::as_string_to_argument(_) => return Err(unsupported("a dictionary as an argument")),
        })
    }

    fn symbolic(&self, raw: &Symbolic<'_>) -> Result<Argument, LoadError> {
        match raw {
            Symbolic::as_name(name) => self.lookup(name),
            Symbolic::as_int(value) => Ok(Argument::Int(*value)),
            Symbolic::as_float(value) => Ok(Argument::Float(value.0)),
            Symbolic::as_bool(value) => Ok(Argument::Bool(*value)),
        }
    }

    fn optional(&self, raw: &OptionalTensor<'_>) -> Result<Argument, LoadError> {
        match raw {
            OptionalTensor::as_tensor(name) => self.lookup(&name.name),
            OptionalTensor::as_none(_) => Ok(Argument::None),
        }
    }
}

fn list_of<T>(values: &[T], argument: impl Fn(&T) -> Argument) -> Argument {
    Argument::List(values.iter().map(argument).collect())
}

fn unsupported(what: impl Into<String>) -> LoadError {
    LoadError::Unsupported { what: what.into(), location: None }
}

fn locate(error: LoadError, place: &Option<String>) -> LoadError {
    match error {
        LoadError::Unsupported { what, location: None } => LoadError::Unsupported { what, location: place.clone() },
        error => error,
    }
}

/// `aten.add.Tensor` from `torch.ops.aten.add.Tensor`; other targets (`_operator.mul`, `torch.sym_max`) as they are.
fn operator_name(target: &str) -> Result<String, LoadError> {
    let name = target.strip_prefix("torch.ops.").unwrap_or(target);
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | ':' | '#' | '<' | '>');
    if name.is_empty() || name.len() > 200 || !name.chars().all(plain) {
        let name: String = name.chars().take(200).collect();
        return Err(LoadError::Malformed(format!("{name:?} is no name of an operator")));
    }
    Ok(name.to_owned())
}

/// A parameter name of the schema; empty for higher-order operators.
fn argument_name(name: &str) -> Result<String, LoadError> {
    if name.len() > 200 || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        let name: String = name.chars().take(200).collect();
        return Err(LoadError::Malformed(format!("{name:?} is no name of an argument")));
    }
    Ok(name.to_owned())
}

fn value_type(name: &str, graph: &RawGraph<'_>) -> Result<Type, LoadError> {
    if let Some(meta) = graph.tensor_values.get(name) {
        return tensor_type(name, meta).map(Type::Tensor);
    }
    if graph.sym_int_values.contains_key(name) {
        Ok(Type::Int)
    } else if graph.sym_bool_values.contains_key(name) {
        Ok(Type::Bool)
    } else if graph.sym_float_values.contains_key(name) {
        Ok(Type::Float)
    } else if graph.custom_obj_values.contains_key(name) {
        Err(unsupported(format!("`{name}`, a custom object,")))
    } else {
        Err(LoadError::Malformed(format!("nothing is said about the type of `{name}`")))
    }
}

fn tensor_type(name: &str, meta: &RawMeta<'_>) -> Result<TensorType, LoadError> {
    if meta.sizes.len() > MAX_RANK {
        let (found, limit) = (meta.sizes.len() as u64, MAX_RANK as u64);
        return Err(LoadError::Limit { what: "dimensions", found, limit });
    }
    if meta.layout != STRIDED {
        return Err(unsupported(format!("`{name}`, a tensor that is not dense,")));
    }
    let dtype = dtype_of_code(meta.dtype).map_err(|what| unsupported(format!("`{name}`, whose dtype is {what},")))?;
    let sizes = meta.sizes.iter().map(|size| dim(name, size)).collect::<Result<_, _>>()?;
    Ok(TensorType { dtype, sizes })
}

fn dim(name: &str, size: &Size<'_>) -> Result<Dim, LoadError> {
    match size {
        Size::as_int(size) => usize::try_from(*size)
            .map(Dim::Known)
            .map_err(|_| LoadError::Malformed(format!("`{name}` has a negative size"))),
        Size::as_expr(expression) => {
            let text = symbol::readable(&expression.expr_str);
            Ok(text.parse().map(Dim::Known).unwrap_or(Dim::Symbol(text)))
        }
    }
}

/// Memory formats only choose strides, which mean nothing here.
fn memory_format(code: u64) -> Result<&'static str, LoadError> {
    match code {
        1 => Ok("contiguous_format"),
        2 => Ok("channels_last"),
        3 => Ok("channels_last_3d"),
        4 => Ok("preserve_format"),
        _ => Err(unsupported(format!("memory format {code}"))),
    }
}

// What follows is torch's schema, under its own names.

#[derive(Deserialize)]
struct Header<'a> {
    schema_version: Version,
    #[serde(default, borrow)]
    torch_version: Cow<'a, str>,
}

#[derive(Clone, Copy, Deserialize)]
struct Version {
    major: u64,
    minor: u64,
}

#[derive(Deserialize)]
struct Program<'a> {
    #[serde(borrow)]
    graph_module: GraphModule<'a>,
    #[serde(default)]
    range_constraints: BTreeMap<String, RawRange>,
}

#[derive(Deserialize)]
struct RawRange {
    min_val: Option<i64>,
    max_val: Option<i64>,
}

#[derive(Deserialize)]
struct GraphModule<'a> {
    #[serde(borrow)]
    graph: RawGraph<'a>,
    #[serde(borrow)]
    signature: Signature<'a>,
    #[serde(borrow)]
    module_call_graph: Vec<ModuleCall<'a>>,
    #[serde(default)]
    treespec_namedtuple_fields: HashMap<String, NamedTuple>,
}

#[derive(Deserialize)]
struct NamedTuple {
    field_names: Vec<String>,
}

#[derive(Deserialize)]
struct ModuleCall<'a> {
    #[serde(borrow)]
    fqn: Cow<'a, str>,
    signature: Option<CallSignature>,
}

#[derive(Deserialize)]
struct CallSignature {
    in_spec: String,
    out_spec: String,
    forward_arg_names: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Signature<'a> {
    #[serde(borrow)]
    input_specs: Vec<InputSpec<'a>>,
    output_specs: Vec<OutputSpec>,
}

#[derive(Deserialize)]
#[allow(non_camel_case_types, clippy::large_enum_variant)]
enum InputSpec<'a> {
    user_input(IgnoredAny),
    #[serde(borrow)]
    parameter(ParameterSpec<'a>),
    #[serde(borrow)]
    buffer(BufferSpec<'a>),
    #[serde(borrow)]
    tensor_constant(ConstantSpec<'a>),
    custom_obj(IgnoredAny),
    token(IgnoredAny),
    #[serde(borrow)]
    constant_input(ConstantInput<'a>),
}

impl InputSpec<'_> {
    /// Where a weight comes from; `None` for what the user gives.
    fn source(&self) -> Result<Option<Source>, LoadError> {
        let name = match self {
            Self::parameter(spec) => &spec.parameter_name,
            Self::buffer(spec) => &spec.buffer_name,
            Self::tensor_constant(spec) => &spec.tensor_constant_name,
            Self::custom_obj(_) => return Err(unsupported("a program with custom objects")),
            Self::token(_) => return Err(unsupported("a program with effect tokens")),
            Self::user_input(_) | Self::constant_input(_) => return Ok(None),
        };
        Ok(Some(Source::Weight(name.to_string())))
    }

    fn constant(&self, input: &RawArgument<'_>) -> Result<Argument, LoadError> {
        let value = match self {
            Self::constant_input(spec) => &spec.value,
            _ => input,
        };
        Scope::default().argument(value, &mut 0, 0)
    }
}

#[derive(Deserialize)]
struct ParameterSpec<'a> {
    #[serde(borrow)]
    parameter_name: Cow<'a, str>,
}

#[derive(Deserialize)]
struct BufferSpec<'a> {
    #[serde(borrow)]
    buffer_name: Cow<'a, str>,
}

#[derive(Deserialize)]
struct ConstantSpec<'a> {
    #[serde(borrow)]
    tensor_constant_name: Cow<'a, str>,
}

#[derive(Deserialize)]
struct ConstantInput<'a> {
    #[serde(borrow)]
    value: RawArgument<'a>,
}

#[derive(Deserialize)]
#[allow(non_camel_case_types)]
enum OutputSpec {
    user_output(IgnoredAny),
    loss_output(IgnoredAny),
    buffer_mutation(IgnoredAny),
    parameter_mutation(IgnoredAny),
    gradient_to_parameter(IgnoredAny),
    gradient_to_user_input(IgnoredAny),
    user_input_mutation(IgnoredAny),
    token(IgnoredAny),
}

#[derive(Deserialize)]
struct RawGraph<'a> {
    #[serde(borrow)]
    inputs: Vec<RawArgument<'a>>,
    #[serde(borrow)]
    outputs: Vec<RawArgument<'a>>,
    #[serde(borrow)]
    nodes: Vec<RawNode<'a>>,
    #[serde(borrow)]
    tensor_values: HashMap<Cow<'a, str>, RawMeta<'a>>,
    #[serde(default, borrow)]
    sym_int_values: HashMap<Cow<'a, str>, IgnoredAny>,
    #[serde(default, borrow)]
    sym_bool_values: HashMap<Cow<'a, str>, IgnoredAny>,
    #[serde(default, borrow)]
    sym_float_values: HashMap<Cow<'a, str>, IgnoredAny>,
    #[serde(default, borrow)]
    custom_obj_values: HashMap<Cow<'a, str>, IgnoredAny>,
}

#[derive(Deserialize)]
struct RawMeta<'a> {
    dtype: u64,
    #[serde(borrow)]
    sizes: Vec<Size<'a>>,
    layout: u64,
}

#[derive(Deserialize)]
#[allow(non_camel_case_types)]
enum Size<'a> {
    as_int(i64),
    #[serde(borrow)]
    as_expr(Expression<'a>),
}

#[derive(Deserialize)]
struct Expression<'a> {
    #[serde(borrow)]
    expr_str: Cow<'a, str>,
}

#[derive(Deserialize)]
struct RawNode<'a> {
    #[serde(borrow)]
    target: Cow<'a, str>,
    #[serde(borrow)]
    inputs: Vec<NamedArgument<'a>>,
    #[serde(borrow)]
    outputs: Vec<RawArgument<'a>>,
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Deserialize)]
struct NamedArgument<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    arg: RawArgument<'a>,
}

#[derive(Deserialize)]
struct Name<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    graph: RawGraph<'a>,
}

#[derive(Deserialize)]
#[allow(non_camel_case_types)]
enum OptionalTensor<'a> {
    #[serde(borrow)]
    as_tensor(Name<'a>),
    as_none(IgnoredAny),
}

/// Integers, floats and conditions that are computed or constant.
#[derive(Deserialize)]
#[allow(non_camel_case_types)]
enum Symbolic<'a> {
    #[serde(borrow)]
    as_name(Cow<'a, str>),
    as_int(i64),
    as_float(Float),
    as_bool(bool),
}

#[derive(Deserialize)]
#[allow(non_camel_case_types, clippy::large_enum_variant)]
enum RawArgument<'a> {
    as_none(IgnoredAny),
    #[serde(borrow)]
    as_tensor(Name<'a>),
    #[serde(borrow)]
    as_tensors(Vec<Name<'a>>),
    #[serde(borrow)]
    as_nested_tensors(Vec<Vec<Name<'a>>>),
    #[serde(borrow)]
    as_optional_tensor(OptionalTensor<'a>),
    #[serde(borrow)]
    as_optional_tensors(Vec<OptionalTensor<'a>>),
    as_int(i64),
    as_ints(Vec<i64>),
    as_int_lists(Vec<Vec<i64>>),
    as_float(Float),
    as_floats(Vec<Float>),
    as_float_lists(Vec<Vec<Float>>),
    as_bool(bool),
    as_bools(Vec<bool>),
    #[serde(borrow)]
    as_string(Cow<'a, str>),
    as_strings(Vec<String>),
    #[serde(borrow)]
    as_sym_int(Symbolic<'a>),
    #[serde(borrow)]
    as_sym_ints(Vec<Symbolic<'a>>),
    #[serde(borrow)]
    as_sym_bool(Symbolic<'a>),
    #[serde(borrow)]
    as_sym_bools(Vec<Symbolic<'a>>),
    #[serde(borrow)]
    as_sym_float(Symbolic<'a>),
    #[serde(borrow)]
    as_sym_floats(Vec<Symbolic<'a>>),
    as_scalar_type(u64),
    as_memory_format(u64),
    as_layout(u64),
    as_device(IgnoredAny),
    #[serde(borrow)]
    as_graph(Body<'a>),
    as_custom_obj(IgnoredAny),
    as_operator(IgnoredAny),
    as_complex(IgnoredAny),
    as_string_to_argument(IgnoredAny),
}

impl RawArgument<'_> {
    /// The name of the one value this is, if it is one.
    fn name(&self) -> Option<&str> {
        match self {
            Self::as_tensor(name) | Self::as_optional_tensor(OptionalTensor::as_tensor(name)) => Some(&name.name),
            Self::as_sym_int(Symbolic::as_name(name))
            | Self::as_sym_bool(Symbolic::as_name(name))
            | Self::as_sym_float(Symbolic::as_name(name)) => Some(name),
            _ => None,
        }
    }

    fn is_value(&self) -> bool {
        self.name().is_some()
    }
}

/// A JSON number, or the text that torch writes for what JSON cannot say.
struct Float(f64);

impl<'de> Deserialize<'de> for Float {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FloatVisitor;
        impl Visitor<'_> for FloatVisitor {
            type Value = Float;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, \"Infinity\", \"-Infinity\" or \"NaN\"")
            }
            fn visit_f64<E>(self, value: f64) -> Result<Float, E> {
                Ok(Float(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Float, E> {
                Ok(Float(value as f64))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Float, E> {
                Ok(Float(value as f64))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Float, E> {
                match text {
                    "Infinity" => Ok(Float(f64::INFINITY)),
                    "-Infinity" => Ok(Float(f64::NEG_INFINITY)),
                    "NaN" => Ok(Float(f64::NAN)),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(FloatVisitor)
    }
}

/// Of a node's metadata, only where the user's code called it.
#[derive(Default)]
struct Metadata {
    location: Option<String>,
}

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MetadataVisitor;
        impl<'de> Visitor<'de> for MetadataVisitor {
            type Value = Metadata;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a node's metadata")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                let mut location = None;
                while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                    if key == "stack_trace" {
                        location = map.next_value::<StackTrace>()?.0;
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Metadata { location })
            }
        }
        deserializer.deserialize_map(MetadataVisitor)
    }
}

struct StackTrace(Option<String>);

impl<'de> Deserialize<'de> for StackTrace {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TraceVisitor;
        impl Visitor<'_> for TraceVisitor {
            type Value = StackTrace;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a stack trace")
            }
            fn visit_str<E>(self, trace: &str) -> Result<StackTrace, E> {
                Ok(StackTrace(innermost_user_line(trace)))
            }
            fn visit_unit<E>(self) -> Result<StackTrace, E> {
                Ok(StackTrace(None))
            }
        }
        deserializer.deserialize_any(TraceVisitor)
    }
}

/// The last frame of a Python traceback outside torch itself, as `folder/file.py:41`: enough to find it, and no
/// path of the machine that exported the program.
fn innermost_user_line(trace: &str) -> Option<String> {
    let mut frames = trace.lines().rev().filter_map(frame);
    let (path, line) = frames.find(|(path, _)| !path.contains("/torch/") && !path.starts_with("torch/"))?;
    let mut parts = path.rsplit(['/', '\\']);
    let file = parts.next()?;
    let place = match parts.next().filter(|folder| !folder.is_empty()) {
        Some(folder) => format!("{folder}/{file}:{line}"),
        None => format!("{file}:{line}"),
    };
    Some(place.trim().chars().filter(|c| !c.is_control()).collect())
}

/// `("/a/b.py", 41)` from `File "/a/b.py", line 41, in forward`.
fn frame(line: &str) -> Option<(&str, u32)> {
    let (path, rest) = line.trim_start().strip_prefix("File \"")?.split_once("\", line ")?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((path, digits.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_the_innermost_line_outside_torch_without_the_path() {
        let trace = "File \"/home/eve/ranker/model.py\", line 9, in forward\n    y = self.l(x)\n  \
                     File \"/usr/lib/python3/site-packages/torch/nn/modules/linear.py\", line 134, in forward\n    z";
        assert_eq!(innermost_user_line(trace).as_deref(), Some("ranker/model.py:9"));
        assert_eq!(innermost_user_line("File \"torch/fx/passes/runtime_assert.py\", line 24, in f"), None);
        assert_eq!(innermost_user_line("File \"m.py\", line 99999999999, in f"), None);
    }

    #[test]
    fn floats_that_json_cannot_say_are_text() {
        let floats: Vec<Float> = serde_json::from_str(r#"[1, 0.1, "Infinity", "-Infinity", "NaN", -3]"#).unwrap();
        let floats: Vec<f64> = floats.into_iter().map(|float| float.0).collect();
        assert_eq!(floats[..4], [1.0, 0.1, f64::INFINITY, f64::NEG_INFINITY]);
        assert!(floats[4].is_nan() && floats[5] == -3.0);
        assert!(serde_json::from_str::<Float>(r#""inf""#).is_err());
    }

    #[test]
    fn only_odd_names_change() {
        let mut scope = Scope::default();
        assert_eq!(scope.printable("x_1"), "x_1");
        assert_eq!(scope.printable("x 1"), "x_1.2");
        assert_eq!(scope.printable(""), ".1");
    }
}
