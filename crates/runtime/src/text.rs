//! The text form of a graph: what `highroad inspect --graph` prints, what pass tests are written in.
//!
//! ```text
//! graph(%x: f32[s0, 5], %w: f32[4, 5] = "linear.weight"):
//!   %t: f32[5, 4] = aten.t.default(self=%w)
//!   %y: f32[s0, 4] = aten.mm.default(self=%x, mat2=%t)  # ranker/model.py:41
//!   return (%y)
//! ```
//!
//! An input with a name in quotes is a weight, any other is given by the caller, in order. Types of results may be left
//! out. Printing and parsing are inverse, except that weights themselves are not text.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::str::FromStr;

use highroad_tensor::DType;
use winnow::ascii::{multispace0, space0, till_line_ending};
use winnow::combinator::{alt, cut_err, delimited, fail, not, opt, preceded, repeat, separated, terminated};
use winnow::error::{ContextError, ErrMode, StrContext, StrContextValue};
use winnow::prelude::*;
use winnow::token::{any, none_of, take_till, take_while};

use crate::graph::{Argument, Dim, Graph, Input, Node, Source, TensorType, Type, ValueId};

/// Deepest nesting of lists and graphs in text.
const MAX_DEPTH: usize = 32;

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_graph(f, self, 0)
    }
}

fn write_graph(f: &mut fmt::Formatter<'_>, graph: &Graph, depth: usize) -> fmt::Result {
    let indent = "  ".repeat(depth);
    f.write_str("graph(")?;
    separated_by_commas(f, &graph.inputs, |f, input| {
        write_definition(f, graph, Some(input.value))?;
        match &input.source {
            Source::Weight(name) => write!(f, " = {}", quoted(name)),
            Source::User { .. } | Source::Operand => Ok(()),
        }
    })?;
    f.write_str("):\n")?;
    for node in &graph.nodes {
        write!(f, "{indent}  ")?;
        write_node(f, graph, node, depth)?;
        f.write_char('\n')?;
    }
    write!(f, "{indent}  return (")?;
    separated_by_commas(f, &graph.outputs, |f, output| write_argument(f, graph, output, depth))?;
    f.write_char(')')
}

fn write_node(f: &mut fmt::Formatter<'_>, graph: &Graph, node: &Node, depth: usize) -> fmt::Result {
    separated_by_commas(f, &node.outputs, |f, output| write_definition(f, graph, *output))?;
    if !node.outputs.is_empty() {
        f.write_str(" = ")?;
    }
    write!(f, "{}(", node.op)?;
    separated_by_commas(f, &node.args, |f, (name, arg)| {
        if !name.is_empty() {
            write!(f, "{name}=")?;
        }
        write_argument(f, graph, arg, depth)
    })?;
    f.write_char(')')?;
    match &node.location {
        Some(location) => write!(f, "  # {location}"),
        None => Ok(()),
    }
}

fn write_definition(f: &mut fmt::Formatter<'_>, graph: &Graph, id: Option<ValueId>) -> fmt::Result {
    let Some(id) = id else { return f.write_char('_') };
    let value = graph.value(id);
    write!(f, "%{}", value.name)?;
    match &value.ty {
        Type::Unknown => Ok(()),
        ty => write!(f, ": {ty}"),
    }
}

fn write_argument(f: &mut fmt::Formatter<'_>, graph: &Graph, arg: &Argument, depth: usize) -> fmt::Result {
    match arg {
        Argument::None => f.write_str("None"),
        Argument::Value(id) => write!(f, "%{}", graph.value(*id).name),
        Argument::Int(value) => write!(f, "{value}"),
        Argument::Float(value) if value.is_nan() => f.write_str("nan"),
        Argument::Float(value) => write!(f, "{value:?}"),
        Argument::Bool(true) => f.write_str("True"),
        Argument::Bool(false) => f.write_str("False"),
        Argument::Str(text) => f.write_str(&quoted(text)),
        Argument::DType(dtype) => write!(f, "{dtype}"),
        Argument::Ignored(name) => write!(f, "<{name}>"),
        Argument::List(items) => {
            f.write_char('[')?;
            separated_by_commas(f, items, |f, item| write_argument(f, graph, item, depth))?;
            f.write_char(']')
        }
        Argument::Graph(body) => write_graph(f, body, depth + 1),
    }
}

fn separated_by_commas<T>(
    f: &mut fmt::Formatter<'_>,
    items: &[T],
    mut write_item: impl FnMut(&mut fmt::Formatter<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    for (position, item) in items.iter().enumerate() {
        if position > 0 {
            f.write_str(", ")?;
        }
        write_item(f, item)?;
    }
    Ok(())
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("text is always JSON")
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tensor(ty) => write!(f, "{ty}"),
            Self::Unknown => f.write_char('?'),
            Self::Int => f.write_str("int"),
            Self::Float => f.write_str("float"),
            Self::Bool => f.write_str("bool"),
        }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        separated_by_commas(f, &self.sizes, |f, size| write!(f, "{size}"))?;
        f.write_char(']')
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(size) => write!(f, "{size}"),
            Self::Symbol(symbol) => f.write_str(symbol),
        }
    }
}

/// Why text is no graph: where, and what was expected there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TextError(String);

impl FromStr for Graph {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let parsed = whole_graph.parse(text).map_err(|error| TextError(error.to_string()))?;
        Builder::default().build(&parsed, 0)
    }
}

// What text says, before names are resolved.

struct GraphText<'a> {
    inputs: Vec<InputText<'a>>,
    nodes: Vec<NodeText<'a>>,
    outputs: Vec<ArgumentText<'a>>,
}

struct InputText<'a> {
    definition: Definition<'a>,
    weight: Option<String>,
}

struct Definition<'a> {
    name: &'a str,
    ty: Type,
}

struct NodeText<'a> {
    results: Vec<Option<Definition<'a>>>,
    op: &'a str,
    args: Vec<(&'a str, ArgumentText<'a>)>,
    location: Option<&'a str>,
}

enum ArgumentText<'a> {
    Value(&'a str),
    List(Vec<ArgumentText<'a>>),
    Graph(GraphText<'a>),
    Constant(Argument),
}

/// Turns names into ids; one for each graph.
#[derive(Default)]
struct Builder<'a> {
    ids: HashMap<&'a str, ValueId>,
    graph: Graph,
}

impl<'a> Builder<'a> {
    fn build(mut self, text: &GraphText<'a>, depth: usize) -> Result<Graph, TextError> {
        let mut position = 0;
        for input in &text.inputs {
            let value = self.define(&input.definition)?;
            let source = match &input.weight {
                Some(name) => Source::Weight(name.clone()),
                None if depth > 0 => Source::Operand,
                None => Source::User { position },
            };
            position += usize::from(input.weight.is_none());
            self.graph.inputs.push(Input { value, source });
        }
        for node in &text.nodes {
            let mut args = Vec::with_capacity(node.args.len());
            for (name, arg) in &node.args {
                args.push(((*name).to_owned(), self.argument(arg, depth)?));
            }
            let mut outputs = Vec::with_capacity(node.results.len());
            for result in &node.results {
                outputs.push(result.as_ref().map(|definition| self.define(definition)).transpose()?);
            }
            let location = node.location.map(str::to_owned);
            self.graph.nodes.push(Node { op: node.op.to_owned(), args, outputs, location });
        }
        let outputs = text.outputs.iter().map(|output| self.argument(output, depth));
        self.graph.outputs = outputs.collect::<Result<_, _>>()?;
        Ok(self.graph)
    }

    fn define(&mut self, definition: &Definition<'a>) -> Result<ValueId, TextError> {
        let id = self.graph.add_value(definition.name, definition.ty.clone());
        match self.ids.insert(definition.name, id) {
            None => Ok(id),
            Some(_) => Err(TextError(format!("`%{}` is defined twice", definition.name))),
        }
    }

    fn argument(&self, text: &ArgumentText<'a>, depth: usize) -> Result<Argument, TextError> {
        Ok(match text {
            ArgumentText::Constant(constant) => constant.clone(),
            ArgumentText::Value(name) => {
                let undefined = || TextError(format!("`%{name}` is used before it is defined"));
                Argument::Value(*self.ids.get(name).ok_or_else(undefined)?)
            }
            ArgumentText::List(items) => {
                let items = items.iter().map(|item| self.argument(item, depth));
                Argument::List(items.collect::<Result<_, _>>()?)
            }
            ArgumentText::Graph(body) => Argument::Graph(Box::new(Builder::default().build(body, depth + 1)?)),
        })
    }
}

// The grammar.

fn whole_graph<'a>(input: &mut &'a str) -> ModalResult<GraphText<'a>> {
    let graph = graph_text(input, 0)?;
    multispace0.parse_next(input)?;
    Ok(graph)
}

fn graph_text<'a>(input: &mut &'a str, depth: usize) -> ModalResult<GraphText<'a>> {
    if depth > MAX_DEPTH {
        return fail.context(label("less nesting")).parse_next(input);
    }
    let inputs = preceded(token("graph"), list('(', graph_input, ')')).parse_next(input)?;
    token(":").parse_next(input)?;
    let is_node = not((multispace0, "return", multispace0, '('));
    let nodes = repeat(0.., preceded(is_node, |input: &mut &'a str| node(input, depth))).parse_next(input)?;
    let output = |input: &mut &'a str| argument(input, depth);
    let outputs = preceded(token("return"), cut_err(list('(', output, ')'))).parse_next(input)?;
    Ok(GraphText { inputs, nodes, outputs })
}

fn graph_input<'a>(input: &mut &'a str) -> ModalResult<InputText<'a>> {
    let definition = definition.parse_next(input)?;
    let weight = opt(preceded(token("="), cut_err(string))).parse_next(input)?;
    Ok(InputText { definition, weight })
}

fn definition<'a>(input: &mut &'a str) -> ModalResult<Definition<'a>> {
    let name = value_name.parse_next(input)?;
    let ty = opt(preceded(token(":"), cut_err(value_type))).parse_next(input)?;
    Ok(Definition { name, ty: ty.unwrap_or(Type::Unknown) })
}

fn node<'a>(input: &mut &'a str, depth: usize) -> ModalResult<NodeText<'a>> {
    let result = alt((definition.map(Some), token("_").map(|()| None)));
    let results = terminated(separated(1.., result, token(",")), token("="));
    let results = opt(results).parse_next(input)?.unwrap_or_default();
    let op = preceded(multispace0, word).context(label("the name of an operator")).parse_next(input)?;
    let named = |input: &mut &'a str| named_argument(input, depth);
    let args = cut_err(list('(', named, ')')).parse_next(input)?;
    let location = opt(preceded((space0, '#', space0), till_line_ending.map(str::trim_end))).parse_next(input)?;
    Ok(NodeText { results, op, args, location })
}

fn named_argument<'a>(input: &mut &'a str, depth: usize) -> ModalResult<(&'a str, ArgumentText<'a>)> {
    let mut value = |input: &mut &'a str| argument(input, depth);
    match opt(terminated(preceded(multispace0, identifier), token("="))).parse_next(input)? {
        Some(name) => Ok((name, cut_err(value).parse_next(input)?)),
        None => Ok(("", value.parse_next(input)?)),
    }
}

fn argument<'a>(input: &mut &'a str, depth: usize) -> ModalResult<ArgumentText<'a>> {
    if depth > MAX_DEPTH {
        return fail.context(label("less nesting")).parse_next(input);
    }
    multispace0.parse_next(input)?;
    match input.chars().next() {
        Some('%') => value_name.map(ArgumentText::Value).parse_next(input),
        Some('[') => {
            let item = |input: &mut &'a str| argument(input, depth + 1);
            list('[', item, ']').map(ArgumentText::List).parse_next(input)
        }
        Some('"') => string.map(|text| ArgumentText::Constant(Argument::Str(text))).parse_next(input),
        Some('<') => {
            let name = delimited('<', take_while(0.., |c: char| !matches!(c, '<' | '>' | '\n')), '>');
            name.map(|name: &str| ArgumentText::Constant(Argument::Ignored(name.to_owned()))).parse_next(input)
        }
        Some(_) if input.starts_with("graph(") => graph_text(input, depth + 1).map(ArgumentText::Graph),
        _ => constant.map(ArgumentText::Constant).parse_next(input),
    }
}

fn constant(input: &mut &str) -> ModalResult<Argument> {
    let text = take_while(1.., |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '+'));
    text.verify_map(constant_named).context(label("an argument")).parse_next(input)
}

fn constant_named(text: &str) -> Option<Argument> {
    Some(match text {
        "None" => Argument::None,
        "True" => Argument::Bool(true),
        "False" => Argument::Bool(false),
        "nan" => Argument::Float(f64::NAN),
        "inf" => Argument::Float(f64::INFINITY),
        "-inf" => Argument::Float(f64::NEG_INFINITY),
        text => match DType::from_name(text) {
            Some(dtype) => Argument::DType(dtype),
            None if text.contains(['.', 'e']) => Argument::Float(text.parse().ok()?),
            None => Argument::Int(text.parse().ok()?),
        },
    })
}

fn value_type(input: &mut &str) -> ModalResult<Type> {
    let name = preceded(multispace0, alt((identifier, "?"))).context(label("a type")).parse_next(input)?;
    if input.starts_with('[') {
        let dtype = DType::from_name(name);
        let sizes = delimited('[', take_till(0.., ']'), ']').map(dims).parse_next(input)?;
        return match dtype {
            Some(dtype) => Ok(Type::Tensor(TensorType { dtype, sizes })),
            None => fail.context(label("a dtype")).parse_next(input),
        };
    }
    match name {
        "int" => Ok(Type::Int),
        "float" => Ok(Type::Float),
        "bool" => Ok(Type::Bool),
        "?" => Ok(Type::Unknown),
        _ => fail.context(label("a type")).parse_next(input),
    }
}

/// Sizes between brackets; a comma inside parentheses belongs to an expression.
fn dims(text: &str) -> Vec<Dim> {
    let mut depth = 0usize;
    let at_comma = |c: char| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    };
    let sizes = text.split(at_comma).map(str::trim).filter(|size| !size.is_empty());
    sizes.map(|size| size.parse().map(Dim::Known).unwrap_or_else(|_| Dim::Symbol(size.to_owned()))).collect()
}

fn value_name<'a>(input: &mut &'a str) -> ModalResult<&'a str> {
    let name = take_while(1.., |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'));
    preceded((multispace0, '%'), name).context(label("a value")).parse_next(input)
}

fn identifier<'a>(input: &mut &'a str) -> ModalResult<&'a str> {
    take_while(1.., |c: char| c.is_ascii_alphanumeric() || c == '_').parse_next(input)
}

fn word<'a>(input: &mut &'a str) -> ModalResult<&'a str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | ':' | '#' | '<' | '>');
    take_while(1.., plain).parse_next(input)
}

fn string(input: &mut &str) -> ModalResult<String> {
    let body = repeat::<_, _, (), _, _>(0.., alt((('\\', any).void(), none_of(['"', '\\']).void())));
    let quoted = preceded(multispace0, ('"', body, '"').take());
    quoted.verify_map(|text: &str| serde_json::from_str(text).ok()).context(label("text in quotes")).parse_next(input)
}

/// Items between brackets, separated by commas.
fn list<'a, T>(
    open: char,
    item: impl Parser<&'a str, T, ErrMode<ContextError>>,
    close: char,
) -> impl Parser<&'a str, Vec<T>, ErrMode<ContextError>> {
    delimited((multispace0, open), separated(0.., item, token(",")), (multispace0, close))
}

fn token<'a>(text: &'static str) -> impl Parser<&'a str, (), ErrMode<ContextError>> {
    (multispace0, text).void()
}

fn label(expected: &'static str) -> StrContext {
    StrContext::Expected(StrContextValue::Description(expected))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERYTHING: &str = r#"graph(%x: f32[s0, 2*(s1 + 1), Max(1, s0)], %n: int, %w: bool[] = "a.\"b\""):
  %a: f32[], _, %b = aten.split.Tensor(self=%x, size=[1, -2, %n], dim=-1)  # model.py:41
  aten._assert_scalar.default(self=%n, assert_msg="n \\ % # \n")
  %c: float, %d: bool = aten.odd.default(a=None, b=True, c=1.0, d=1e-12, e=-inf, f=nan, g=[[], [%a, None]], h=f32, i=<cpu>)
  %e: i64[3] = higher_order.cond(%d, graph(%p: f32[]):
    %q = aten.relu.default(self=%p)
    return (%q), [%a])
  return (%e, 3, None)"#;

    #[test]
    fn text_that_is_printed_parses_back_to_itself() {
        let graph: Graph = EVERYTHING.parse().unwrap();
        assert_eq!(graph.to_string(), EVERYTHING);
        assert_eq!(graph.nodes[0].location.as_deref(), Some("model.py:41"));
    }

    #[test]
    fn line_breaks_and_spaces_mean_nothing() {
        let tight: Graph = "graph(%x:f32[2]):%y=aten.relu.default(self=%x)return(%y)".parse().unwrap();
        let wide: Graph =
            " graph ( %x : f32[ 2 ] ) :\n %y = aten.relu.default ( self = %x )\n\n return ( %y ) ".parse().unwrap();
        assert_eq!(tight, wide);
    }

    #[test]
    fn an_error_points_at_the_place() {
        let error = "graph(%x: f32[2]): %y = aten.relu.default(self=) return (%y)".parse::<Graph>().unwrap_err();
        assert!(error.to_string().contains("expected an argument"), "{error}");
        let error = "graph(): return (%y)".parse::<Graph>().unwrap_err();
        assert_eq!(error.to_string(), "`%y` is used before it is defined");
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_overflow() {
        let deep = format!("graph(): return ({})", "[".repeat(100_000));
        assert!(deep.parse::<Graph>().is_err());
        let deep = format!("graph(): %x = a.b({}", "graph(): %x = a.b(".repeat(100_000));
        assert!(deep.parse::<Graph>().is_err());
    }
}
