//! ATen schemas: `aten::add.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor`.

use std::str::FromStr;

use highroad_tensor::DType;

use crate::graph::Argument;

/// What an operator is called, takes and returns.
#[derive(Clone, Debug, PartialEq)]
pub struct Schema {
    /// The overload as nodes name it: `aten.add.Tensor`; `.default` where ATen names none. Python's own operators on
    /// sizes keep their names: `_operator.mul`, `torch.sym_max`, and so do Highroad's (`highroad.linear`).
    pub name: String,
    /// Arguments in order.
    pub args: Vec<Arg>,
    /// Types of the results in order.
    pub returns: Vec<ArgType>,
}

/// One argument of a schema.
#[derive(Clone, Debug, PartialEq)]
pub struct Arg {
    /// Its name.
    pub name: String,
    /// Its type.
    pub ty: ArgType,
    /// The value when a call leaves it out, coerced to the type (`stride=1` of `int[2]` is `[1, 1]`); `None` when it
    /// must be given.
    pub default: Option<Argument>,
    /// Whether the operator writes to it or returns a view of it.
    pub access: Access,
}

/// What an operator does with the memory of a tensor argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads it: `Tensor`.
    Read,
    /// May return a view of it: `Tensor(a)`.
    Alias,
    /// Writes to it: `Tensor(a!)`.
    Write,
}

/// The type of an argument or result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArgType {
    /// What one element is.
    pub base: Base,
    /// Whether it is a list, and of which length where the schema says (`int[2]`).
    pub list: Option<Option<usize>>,
    /// Whether the elements may be `None` (`Tensor?[]`), or the argument itself where it is no list.
    pub optional: bool,
    /// Whether the whole list may be `None` (`int[1]?`).
    pub optional_list: bool,
}

/// The element of an [`ArgType`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Base {
    /// `Tensor`; a number where the graph holds one (`add.Tensor(x, 2)`).
    Tensor,
    /// `Scalar`: an integer, float or boolean, decided by the value.
    Scalar,
    /// `int` and `SymInt`.
    Int,
    /// `float`.
    Float,
    /// `bool`.
    Bool,
    /// `str`.
    Str,
    /// `ScalarType`.
    DType,
    /// `Device`, `Layout`, `MemoryFormat`, `Generator`: mean nothing here.
    Ignored,
}

/// Why a schema did not parse.
#[derive(Debug, thiserror::Error)]
#[error("schema `{schema}`: {what}")]
pub struct SchemaError {
    schema: String,
    what: String,
}

impl Schema {
    /// The argument called `name`.
    pub fn arg(&self, name: &str) -> Option<&Arg> {
        self.args.iter().find(|arg| arg.name == name)
    }

    /// Position of the argument called `name`.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.args.iter().position(|arg| arg.name == name)
    }

    /// The in-place form: `aten.relu_.default(Tensor(a!) self) -> Tensor(a!)` of `aten.relu.default`.
    pub fn in_place(&self) -> Self {
        let mut schema = self.clone();
        let (stem, overload) = self.name.rsplit_once('.').unwrap_or((&self.name, "default"));
        schema.name = format!("{stem}_.{overload}");
        if let Some(first) = schema.args.first_mut() {
            first.access = Access::Write;
        }
        schema
    }
}

impl FromStr for Schema {
    type Err = SchemaError;

    fn from_str(text: &str) -> Result<Self, SchemaError> {
        let error = |what: &str| SchemaError { schema: text.to_owned(), what: what.to_owned() };
        let (name, rest) = text.split_once('(').ok_or_else(|| error("no `(`"))?;
        let (args, returns) = rest.rsplit_once(" -> ").ok_or_else(|| error("no ` -> `"))?;
        let args = args.strip_suffix(')').ok_or_else(|| error("no `)` before `->`"))?;
        let args = split_top_level(args)
            .filter(|arg| *arg != "*")
            .map(|arg| parse_arg(arg).map_err(|what| error(&what)))
            .collect::<Result<_, _>>()?;
        let returns = returns.strip_prefix('(').and_then(|r| r.strip_suffix(')')).unwrap_or(returns);
        let returns = split_top_level(returns)
            .map(|ty| parse_type(ty.split(' ').next().unwrap_or(ty)).map(|(ty, _)| ty).map_err(|what| error(&what)))
            .collect::<Result<_, _>>()?;
        Ok(Self { name: node_name(name), args, returns })
    }
}

/// `aten::add` is `aten.add.default` in a node; `aten::add.Tensor` is `aten.add.Tensor`.
fn node_name(name: &str) -> String {
    let (namespace, op) = name.split_once("::").unwrap_or(("", name));
    match namespace {
        "_operator" | "torch" | "math" | "highroad" => format!("{namespace}.{op}"),
        _ if op.contains('.') => format!("{namespace}.{op}"),
        _ => format!("{namespace}.{op}.default"),
    }
}

/// Splits at `, ` outside of brackets; nothing for empty text.
fn split_top_level(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0i32;
    text.split(move |c: char| {
        depth += i32::from(c == '(' || c == '[') - i32::from(c == ')' || c == ']');
        c == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|part| !part.is_empty())
}

fn parse_arg(text: &str) -> Result<Arg, String> {
    // The last space before a default: an alias annotation may hold spaces (`Tensor(a -> *) self`).
    let end = text.find('=').unwrap_or(text.len());
    let space = text[..end].rfind(' ').ok_or_else(|| format!("argument `{text}` has no name"))?;
    let (ty, rest) = (&text[..space], &text[space + 1..]);
    let (ty, access) = parse_type(ty)?;
    let (name, default) = match rest.split_once('=') {
        Some((name, default)) => (name, Some(parse_default(ty, default)?)),
        None => (rest, None),
    };
    Ok(Arg { name: name.to_owned(), ty, default, access })
}

fn parse_type(text: &str) -> Result<(ArgType, Access), String> {
    let (text, access) = split_access(text);
    let outer_optional = text.ends_with('?');
    let text = text.strip_suffix('?').unwrap_or(&text);
    let (element, list) = match text.strip_suffix(']').and_then(|t| t.split_once('[')) {
        Some((element, "")) => (element, Some(None)),
        Some((element, n)) => (element, Some(Some(n.parse().map_err(|_| format!("length `{n}` is no number"))?))),
        None => (text, None),
    };
    let optional_list = outer_optional && list.is_some();
    let optional = element.ends_with('?') || (outer_optional && list.is_none());
    let base = parse_base(element.strip_suffix('?').unwrap_or(element))?;
    Ok((ArgType { base, list, optional, optional_list }, access))
}

/// `Tensor(a!)?` is `Tensor?` and a write.
fn split_access(text: &str) -> (String, Access) {
    let Some((head, rest)) = text.split_once('(') else { return (text.to_owned(), Access::Read) };
    let (alias, tail) = rest.split_once(')').unwrap_or((rest, ""));
    let access = if alias.contains('!') { Access::Write } else { Access::Alias };
    (format!("{head}{tail}"), access)
}

fn parse_base(text: &str) -> Result<Base, String> {
    Ok(match text {
        "Tensor" => Base::Tensor,
        "Scalar" => Base::Scalar,
        "int" | "SymInt" => Base::Int,
        "float" => Base::Float,
        "bool" => Base::Bool,
        "str" => Base::Str,
        "ScalarType" => Base::DType,
        "Device" | "Layout" | "MemoryFormat" | "Generator" => Base::Ignored,
        other => return Err(format!("unknown type `{other}`")),
    })
}

fn parse_default(ty: ArgType, text: &str) -> Result<Argument, String> {
    if text == "None" {
        return Ok(Argument::None);
    }
    if let Some(items) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        return Ok(Argument::List(
            split_top_level(items).map(|item| parse_constant(ty.base, item)).collect::<Result<_, _>>()?,
        ));
    }
    let one = parse_constant(ty.base, text)?;
    Ok(match ty.list {
        Some(n) => Argument::List(vec![one; n.unwrap_or(1)]),
        None => one,
    })
}

fn parse_constant(base: Base, text: &str) -> Result<Argument, String> {
    let bad = || format!("default `{text}` is no {base:?}");
    Ok(match (base, text) {
        (_, "None") => Argument::None,
        (_, "True") => Argument::Bool(true),
        (_, "False") => Argument::Bool(false),
        (Base::Ignored, _) => Argument::Ignored(text.to_owned()),
        // Reductions such as `l1_loss` default to the enumerator `Mean`.
        (Base::Int, "Mean") => Argument::Int(1),
        (Base::Int, _) => Argument::Int(text.parse().map_err(|_| bad())?),
        (Base::Float, _) => Argument::Float(text.parse().map_err(|_| bad())?),
        (Base::Scalar, _) => match text.parse() {
            Ok(int) => Argument::Int(int),
            Err(_) => Argument::Float(text.parse().map_err(|_| bad())?),
        },
        (Base::Str, _) => Argument::Str(text.trim_matches(['"', '\'']).to_owned()),
        (Base::DType, "long") => Argument::DType(DType::I64),
        _ => return Err(bad()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Schema {
        text.parse().unwrap()
    }

    #[test]
    fn an_overload_keeps_its_name_and_the_unnamed_one_is_the_default() {
        assert_eq!(parse("aten::add.Tensor(Tensor self) -> Tensor").name, "aten.add.Tensor");
        assert_eq!(parse("aten::relu(Tensor self) -> Tensor").name, "aten.relu.default");
        assert_eq!(parse("_operator::mul(Scalar a, Scalar b) -> Scalar").name, "_operator.mul");
    }

    #[test]
    fn a_default_is_coerced_to_the_type_of_its_argument() {
        let schema =
            parse("aten::conv2d(Tensor input, SymInt[2] stride=1, Tensor? bias=None, Scalar alpha=0.5) -> Tensor");
        let default = |name: &str| schema.arg(name).unwrap().default.clone();
        assert_eq!(default("input"), None);
        assert_eq!(default("stride"), Some(Argument::List(vec![Argument::Int(1), Argument::Int(1)])));
        assert_eq!(default("bias"), Some(Argument::None));
        assert_eq!(default("alpha"), Some(Argument::Float(0.5)));
    }

    #[test]
    fn annotations_say_what_is_written_and_what_is_aliased() {
        let access = |text: &str| parse(text).args[0].access;
        assert_eq!(access("aten::t(Tensor(a) self) -> Tensor(a)"), Access::Alias);
        assert_eq!(access("aten::relu_(Tensor(a!) self) -> Tensor(a!)"), Access::Write);
        assert_eq!(access("aten::relu(Tensor self) -> Tensor"), Access::Read);
        let split = parse("aten::split.Tensor(Tensor(a -> *) self, SymInt split_size, int dim=0) -> Tensor(a)[]");
        assert_eq!(split.args[0].access, Access::Alias);
        assert_eq!(split.returns[0].list, Some(None));
    }

    #[test]
    fn optional_elements_differ_from_an_optional_list() {
        let schema = parse("aten::f(Tensor self, Tensor?[] indices, int[1]? dim, int? n) -> (Tensor values, Tensor b)");
        let flags = |name: &str| schema.arg(name).map(|a| (a.ty.list, a.ty.optional, a.ty.optional_list)).unwrap();
        assert_eq!(flags("indices"), (Some(None), true, false));
        assert_eq!(flags("dim"), (Some(Some(1)), false, true));
        assert_eq!(flags("n"), (None, true, false));
        assert_eq!(schema.returns.len(), 2);
    }

    #[test]
    fn the_in_place_form_writes_to_its_first_argument() {
        let schema = parse("aten::add.Tensor(Tensor self, Tensor other) -> Tensor").in_place();
        assert_eq!(schema.name, "aten.add_.Tensor");
        assert_eq!((schema.args[0].access, schema.args[1].access), (Access::Write, Access::Read));
    }

    #[test]
    fn a_schema_that_is_no_schema_is_an_error() {
        for text in ["", "aten::f", "aten::f(Tensor)", "aten::f(Quux x) -> Tensor", "aten::f(int x=a) -> Tensor"] {
            assert!(text.parse::<Schema>().is_err(), "{text}");
        }
    }
}
