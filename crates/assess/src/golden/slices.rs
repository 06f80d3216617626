//! Slices by expression: `[slice]` of `gates.toml` names conditions on cases, in the Common Expression Language (CEL).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use cel::{Context, Env, Program, Value};
use highroad_eval::Expected;
use highroad_task::Input;

use super::{Fact, GoldenCase, GoldenInput, GoldenSet, check_name};
use crate::GoldenError;

/// Longest expression.
const MAX_EXPRESSION_CHARS: usize = 1_000;

/// Stack for parsing one: the parser descends a dozen functions for each parenthesis before its own limit on nesting is met, which in a
/// build without optimisation is more than the 2 MiB that threads have.
const PARSER_STACK_BYTES: usize = 32 << 20;

/// A slice's expression cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum SliceError {
    #[error("slice {name:?}: {reason}")]
    Name { name: String, reason: String },
    #[error("slice `{name}`: `{expression}` is no expression: {reason}")]
    Syntax { name: String, expression: String, reason: String },
    #[error("slice `{name}`: `{expression}` fails on case `{case}`: {reason}")]
    Case { name: String, expression: String, case: String, reason: String },
    #[error(transparent)]
    Golden(#[from] GoldenError),
    #[error("case `{case}` names the slice `{name}` itself, which the rules define by an expression")]
    Named { name: String, case: String },
}

impl GoldenSet {
    /// This set with each of `expressions` as one more slice, holding the cases on which it is true.
    ///
    /// An expression sees `id`, `text` (of pairs and rankings all texts, one a line; empty for token ids), `length` (characters
    /// of the text, or number of token ids), `words`, `label` (empty where none is expected), `slices`, `tags`, `must_pass`,
    /// `source` (empty if there is none), `weight` and `provenance`. It has no loops, so its work is bounded by its length and the case's.
    pub fn with_slices(mut self, expressions: &BTreeMap<String, String>) -> Result<Self, SliceError> {
        // Without the macros of the standard environment there is no comprehension, so nothing is walked more than once.
        let env = Arc::new(Env::default().with_stdlib());
        let conditions = expressions
            .iter()
            .map(|(name, expression)| Condition::compile(name, expression, &env))
            .collect::<Result<Vec<_>, _>>()?;
        if conditions.is_empty() {
            return Ok(self);
        }
        for idx in 0..self.cases.len() {
            let context = context(&self.cases[idx], &*self.input(idx)?, &env);
            let case = &mut self.cases[idx];
            // Names are added after all conditions have seen the case as it was written.
            let mut found = Vec::new();
            for condition in &conditions {
                if condition.holds(case, &context)? {
                    found.push(condition.name.to_owned());
                }
            }
            drop(context);
            case.case.slices.extend(found);
        }
        Ok(self)
    }
}

struct Condition<'a> {
    name: &'a str,
    expression: &'a str,
    program: Program,
}

impl<'a> Condition<'a> {
    fn compile(name: &'a str, expression: &'a str, env: &Env) -> Result<Self, SliceError> {
        let named = |reason: String| SliceError::Name { name: name.to_owned(), reason };
        check_name("the name", name).map_err(named)?;
        let syntax = |reason| SliceError::Syntax { name: name.to_owned(), expression: expression.to_owned(), reason };
        if name == "*" {
            return Err(named("`*` means every slice".to_owned()));
        }
        if expression.chars().count() > MAX_EXPRESSION_CHARS {
            return Err(named(format!("its expression is over {MAX_EXPRESSION_CHARS} characters")));
        }
        let program = std::thread::scope(|scope| {
            let parser = std::thread::Builder::new().stack_size(PARSER_STACK_BYTES);
            let parsed = parser.spawn_scoped(scope, || env.compile(expression).map_err(|errors| errors.to_string()));
            let parsed = parsed.map_err(|error| format!("there is no thread to parse it on: {error}"))?;
            parsed.join().unwrap_or_else(|_| Err("the parser failed".to_owned()))
        });
        Ok(Self { name, expression, program: program.map_err(syntax)? })
    }

    fn holds(&self, case: &GoldenCase, context: &Context<'_, '_>) -> Result<bool, SliceError> {
        let id = || case.case.id.clone();
        if case.case.slices.iter().any(|slice| slice == self.name) {
            return Err(SliceError::Named { name: self.name.to_owned(), case: id() });
        }
        let reason = match self.program.execute(context) {
            Ok(Value::Bool(holds)) => return Ok(holds),
            Ok(other) => format!("it is {}, not a yes or no", other.type_of()),
            Err(error) => error.to_string(),
        };
        let (name, expression) = (self.name.to_owned(), self.expression.to_owned());
        Err(SliceError::Case { name, expression, case: id(), reason })
    }
}

fn context(case: &GoldenCase, input: &GoldenInput, env: &Arc<Env>) -> Context<'static, 'static> {
    let mut context = Context::with_env(env.clone());
    let text = input.text();
    let length = match input {
        GoldenInput::One(Input::Tokens(ids)) => ids.len(),
        _ => text.chars().count(),
    };
    let label = if let Expected::Label(label) = &case.case.expected { label.as_str() } else { "" };
    context.add_variable_from_value("id", case.case.id.as_str());
    context.add_variable_from_value("length", length as i64);
    context.add_variable_from_value("words", text.split_whitespace().count() as i64);
    context.add_variable_from_value("text", text);
    context.add_variable_from_value("label", label);
    context.add_variable_from_value("slices", case.case.slices.clone());
    context.add_variable_from_value("tags", case.tags.clone());
    context.add_variable_from_value("must_pass", case.case.must_pass);
    context.add_variable_from_value("weight", case.case.weight);
    context.add_variable_from_value("source", case.source.as_deref().unwrap_or_default());
    let facts = case.provenance.iter().map(|(key, fact)| (key.clone(), value(fact)));
    context.add_variable_from_value("provenance", facts.collect::<HashMap<String, Value>>());
    context
}

fn value(fact: &Fact) -> Value {
    match fact {
        Fact::Flag(flag) => (*flag).into(),
        Fact::Whole(whole) => (*whole).into(),
        Fact::Number(number) => (*number).into(),
        Fact::Text(text) => text.as_str().into(),
    }
}
