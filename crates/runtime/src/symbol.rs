//! Sizes as torch writes them (`Add(Symbol('s0', integer=True), Integer(1))`) in a form people read (`s0 + 1`).

use sha2::{Digest as _, Sha256};
use winnow::Result;
use winnow::ascii::multispace0;
use winnow::combinator::{alt, delimited, opt, preceded, separated};
use winnow::prelude::*;
use winnow::token::take_while;

/// Deepest nesting that is rewritten; what is deeper stays as torch wrote it.
const MAX_DEPTH: usize = 32;
/// Longest expression that is rewritten.
const MAX_CHARS: usize = 2000;

/// The expression in infix form. Equal text means equal expressions: one that is not understood, or too long to
/// read, gets a name made from its digest.
pub(crate) fn readable(srepr: &str) -> String {
    let mut input = srepr;
    match expression(&mut input, MAX_DEPTH) {
        Ok(expression) if input.is_empty() && srepr.len() <= MAX_CHARS => expression.infix(Level::Sum),
        _ => format!("expr_{}", digest(srepr)),
    }
}

fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

enum Expression<'a> {
    Atom(&'a str),
    Call(&'a str, Vec<Expression<'a>>),
}

#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Level {
    Sum,
    Product,
    Atom,
}

impl Expression<'_> {
    fn infix(&self, outer: Level) -> String {
        let (name, args) = match self {
            Self::Atom(text) => return (*text).to_owned(),
            Self::Call(name, args) => (*name, args.as_slice()),
        };
        let (separator, level) = match name {
            "Add" => (" + ", Level::Sum),
            "Mul" => ("*", Level::Product),
            "FloorDiv" | "CleanDiv" => ("//", Level::Product),
            "Mod" | "PythonMod" => (" mod ", Level::Product),
            _ => (", ", Level::Sum),
        };
        let call = separator == ", ";
        let parts: Vec<String> =
            args.iter().map(|arg| arg.infix(if call { Level::Sum } else { above(level) })).collect();
        let mut text = parts.join(separator);
        if call {
            text = format!("{name}({text})");
        } else if outer > level {
            text = format!("({text})");
        }
        text
    }
}

fn above(level: Level) -> Level {
    if level == Level::Sum { Level::Product } else { Level::Atom }
}

fn expression<'a>(input: &mut &'a str, depth: usize) -> Result<Expression<'a>> {
    if depth == 0 {
        return winnow::combinator::fail.parse_next(input);
    }
    let name =
        take_while(1.., |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')).parse_next(input)?;
    if !input.starts_with('(') {
        return Ok(Expression::Atom(name));
    }
    if matches!(name, "Symbol" | "Integer" | "Float") {
        return delimited('(', leaf, ')').map(Expression::Atom).parse_next(input);
    }
    let argument = |input: &mut &'a str| expression(input, depth - 1);
    delimited('(', separated(0.., argument, comma), ')').map(|args| Expression::Call(name, args)).parse_next(input)
}

/// `'s77', positive=True, integer=True` or `2`: the name or number.
fn leaf<'a>(input: &mut &'a str) -> Result<&'a str> {
    let word = || take_while(1.., |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
    let leaf = alt((delimited('\'', word(), '\''), word())).parse_next(input)?;
    opt(preceded(comma, take_while(1.., |c: char| c != ')' && c != '('))).parse_next(input)?;
    Ok(leaf)
}

fn comma(input: &mut &str) -> Result<()> {
    (',', multispace0).void().parse_next(input)
}

#[cfg(test)]
mod tests {
    use super::readable;

    #[test]
    fn a_sympy_expression_reads_as_arithmetic() {
        let s = "Symbol('s77', positive=True, integer=True)";
        assert_eq!(readable(s), "s77");
        assert_eq!(readable(&format!("Add({s}, Integer(-1))")), "s77 + -1");
        assert_eq!(readable(&format!("Mul(Integer(2), Add({s}, Integer(1)))")), "2*(s77 + 1)");
        assert_eq!(readable(&format!("FloorDiv(Max(Integer(1), {s}), Integer(4))")), "Max(1, s77)//4");
    }

    #[test]
    fn what_is_not_understood_is_named_by_its_digest() {
        assert_eq!(readable("Odd(]\n%x").len(), "expr_".len() + 16);
        assert_eq!(readable("Odd(]"), readable("Odd(]"));
        assert_ne!(readable("Odd(]"), readable("Odd("));
        assert!(readable(&"Add(".repeat(100_000)).starts_with("expr_"));
    }
}
