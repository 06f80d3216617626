//! MLflow's search language: `metrics.loss < 0.3 AND tags.`a key` LIKE '%x%'`, and its order clauses.
//!
//! A filter is clauses joined by `AND`; there is no `OR` and no parenthesis in MLflow either. Keys may be quoted with
//! back-quotes or double quotes, text with single or double quotes. Words are read in any case.

use winnow::ascii::{Caseless, float, multispace0, multispace1};
use winnow::combinator::{alt, delimited, eof, opt, preceded, separated, terminated};
use winnow::prelude::*;
use winnow::token::{one_of, take_till, take_while};

use crate::TrackError;

/// Longest filter that is read.
const MAX_FILTER_BYTES: usize = 16 << 10;
/// Most clauses in one filter; each is a subquery.
const MAX_CLAUSES: usize = 64;

/// One test of one key.
#[derive(Debug, Clone, PartialEq)]
pub struct Clause {
    /// What is tested.
    pub key: Key,
    /// How.
    pub test: Test,
}

/// Something a run, experiment or model has: `metrics.loss`, `name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Which table it lives in.
    pub entity: Entity,
    /// Its name there.
    pub name: String,
}

/// The word before the first dot; a key without one is an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Entity {
    Attribute,
    Metric,
    Param,
    Tag,
    Dataset,
    /// What clients noted of a trace beside its tags.
    Metadata,
    Span,
    Feedback,
    Expectation,
}

/// What a clause asks of a value.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Test {
    Compare(Comparator, Value),
    In(Vec<String>),
    NotIn(Vec<String>),
    IsNull,
    IsNotNull,
}

/// A comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Comparator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// `%` and `_` are wildcards; case counts.
    Like,
    /// `LIKE` in any case.
    Ilike,
}

/// The right side of a comparison.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    Number(f64),
    Text(String),
}

/// One order clause: `metrics.loss DESC`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Order {
    pub key: Key,
    pub direction: Direction,
}

/// Which end comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Direction {
    Ascending,
    Descending,
}

/// The clauses of `text`; none if it is blank.
pub fn parse(text: &str) -> Result<Vec<Clause>, TrackError> {
    if text.len() > MAX_FILTER_BYTES {
        return Err(TrackError::Invalid(format!("the filter is longer than {MAX_FILTER_BYTES} bytes")));
    }
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let clauses = filter.parse(text).map_err(|error| {
        let (offset, shown) = (error.offset(), excerpt(text, error.offset()));
        TrackError::Invalid(format!("Invalid clause(s) in filter string: not understood at byte {offset}, `{shown}`"))
    })?;
    if clauses.len() > MAX_CLAUSES {
        return Err(TrackError::Invalid(format!("the filter has more than {MAX_CLAUSES} clauses")));
    }
    Ok(clauses)
}

/// One order clause.
pub fn parse_order(text: &str) -> Result<Order, TrackError> {
    order.parse(text).map_err(|_| TrackError::Invalid(format!("Invalid order_by clause '{}'", excerpt(text, 0))))
}

impl Entity {
    fn of(word: &str) -> Option<Self> {
        Some(match word {
            "metric" | "metrics" => Self::Metric,
            "parameter" | "parameters" | "param" | "params" => Self::Param,
            "tag" | "tags" => Self::Tag,
            "attribute" | "attributes" | "attr" | "run" | "trace" => Self::Attribute,
            "dataset" | "datasets" => Self::Dataset,
            "metadata" | "request_metadata" | "trace_metadata" => Self::Metadata,
            "span" | "spans" => Self::Span,
            "feedback" => Self::Feedback,
            "expectation" => Self::Expectation,
            _ => return None,
        })
    }
}

impl Comparator {
    /// Its SQL operator; `ILIKE` is `LIKE` over lowered sides.
    pub fn sql(self) -> &'static str {
        match self {
            Self::Equal => " = ",
            Self::NotEqual => " <> ",
            Self::Less => " < ",
            Self::LessOrEqual => " <= ",
            Self::Greater => " > ",
            Self::GreaterOrEqual => " >= ",
            Self::Like | Self::Ilike => " LIKE ",
        }
    }
}

fn excerpt(text: &str, offset: usize) -> String {
    text.get(offset..).unwrap_or_default().chars().take(40).collect()
}

fn filter(input: &mut &str) -> winnow::Result<Vec<Clause>> {
    delimited(multispace0, separated(1.., clause, and), (multispace0, eof)).parse_next(input)
}

fn and(input: &mut &str) -> winnow::Result<()> {
    delimited(multispace1, Caseless("AND"), multispace1).void().parse_next(input)
}

fn clause(input: &mut &str) -> winnow::Result<Clause> {
    (key, preceded(multispace0, test)).map(|(key, test)| Clause { key, test }).parse_next(input)
}

/// `metrics.a`, ``tags.`a b` ``, `"name"`, `params.a.b`: only the first dot separates.
fn key(input: &mut &str) -> winnow::Result<Key> {
    let entity = opt(terminated(word.verify_map(Entity::of), '.')).parse_next(input)?;
    let name = alt((quoted('`'), quoted('"'), quoted('\''), bare)).parse_next(input)?;
    Ok(Key { entity: entity.unwrap_or(Entity::Attribute), name })
}

fn word<'s>(input: &mut &'s str) -> winnow::Result<&'s str> {
    take_while(1.., |c: char| c.is_ascii_alphabetic()).parse_next(input)
}

fn bare(input: &mut &str) -> winnow::Result<String> {
    take_while(1.., |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | ':' | '@'))
        .map(str::to_owned)
        .parse_next(input)
}

/// Text between `quote`s; a doubled quote stands for one.
fn quoted<'s>(mut quote: char) -> impl Parser<&'s str, String, winnow::error::ContextError> {
    move |input: &mut &'s str| {
        let mut text = String::new();
        quote.parse_next(input)?;
        loop {
            text.push_str(take_till(0.., quote).parse_next(input)?);
            quote.parse_next(input)?;
            match opt(quote).parse_next(input)? {
                Some(literal) => text.push(literal),
                None => return Ok(text),
            }
        }
    }
}

fn test(input: &mut &str) -> winnow::Result<Test> {
    alt((
        (Caseless("IS"), multispace1, Caseless("NOT"), multispace1, Caseless("NULL")).value(Test::IsNotNull),
        (Caseless("IS"), multispace1, Caseless("NULL")).value(Test::IsNull),
        preceded((Caseless("NOT"), multispace1, Caseless("IN")), list).map(Test::NotIn),
        preceded(Caseless("IN"), list).map(Test::In),
        (like, preceded(multispace1, value)).map(|(comparator, value)| Test::Compare(comparator, value)),
        (comparator, preceded(multispace0, value)).map(|(comparator, value)| Test::Compare(comparator, value)),
    ))
    .parse_next(input)
}

fn like(input: &mut &str) -> winnow::Result<Comparator> {
    alt((Caseless("LIKE").value(Comparator::Like), Caseless("ILIKE").value(Comparator::Ilike))).parse_next(input)
}

fn comparator(input: &mut &str) -> winnow::Result<Comparator> {
    alt((
        "!=".value(Comparator::NotEqual),
        "<>".value(Comparator::NotEqual),
        "<=".value(Comparator::LessOrEqual),
        ">=".value(Comparator::GreaterOrEqual),
        "==".value(Comparator::Equal),
        "=".value(Comparator::Equal),
        "<".value(Comparator::Less),
        ">".value(Comparator::Greater),
    ))
    .parse_next(input)
}

fn value(input: &mut &str) -> winnow::Result<Value> {
    alt((text.map(Value::Text), float.map(Value::Number))).parse_next(input)
}

fn text(input: &mut &str) -> winnow::Result<String> {
    alt((quoted('\''), quoted('"'))).parse_next(input)
}

fn list(input: &mut &str) -> winnow::Result<Vec<String>> {
    let comma = (multispace0, one_of(','), multispace0);
    let items = terminated(separated(1.., text, comma), opt((multispace0, ',')));
    delimited((multispace0, '(', multispace0), items, (multispace0, ')')).parse_next(input)
}

fn order(input: &mut &str) -> winnow::Result<Order> {
    let direction = alt((
        preceded(multispace1, Caseless("DESC")).value(Direction::Descending),
        preceded(multispace1, Caseless("ASC")).value(Direction::Ascending),
    ));
    let (key, direction) = delimited(multispace0, (key, opt(direction)), (multispace0, eof)).parse_next(input)?;
    Ok(Order { key, direction: direction.unwrap_or(Direction::Ascending) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(text: &str) -> Clause {
        let mut clauses = parse(text).unwrap();
        assert_eq!(clauses.len(), 1, "{text}");
        clauses.remove(0)
    }

    fn compare(entity: Entity, name: &str, comparator: Comparator, value: Value) -> Clause {
        Clause { key: Key { entity, name: name.into() }, test: Test::Compare(comparator, value) }
    }

    #[test]
    fn the_filter_the_client_adds_itself_is_read() {
        let clauses = parse("name='x' AND tag.`mlflow.prompt.is_prompt` != 'true'").unwrap();
        assert_eq!(
            clauses,
            [
                compare(Entity::Attribute, "name", Comparator::Equal, Value::Text("x".into())),
                compare(Entity::Tag, "mlflow.prompt.is_prompt", Comparator::NotEqual, Value::Text("true".into())),
            ]
        );
    }

    #[test]
    fn only_the_first_dot_separates() {
        assert_eq!(
            only("metrics.val.loss <= 1e-3"),
            compare(Entity::Metric, "val.loss", Comparator::LessOrEqual, Value::Number(1e-3))
        );
        assert_eq!(only("params.\"a b\" ILIKE '%X%'").key.name, "a b");
    }

    #[test]
    fn words_are_read_in_any_case_and_lists_may_end_with_a_comma() {
        assert_eq!(only("attributes.run_id not in ('a', 'b',)").test, Test::NotIn(vec!["a".into(), "b".into()]));
        assert_eq!(only("run_id IN('a')").test, Test::In(vec!["a".into()]));
        assert_eq!(only("tags.x is not null").test, Test::IsNotNull);
        assert_eq!(parse("a = 'x' and b = 'y'").unwrap().len(), 2);
    }

    #[test]
    fn a_doubled_quote_is_a_quote_and_and_inside_text_is_text() {
        assert_eq!(
            only("tags.who = 'O''Hara AND sons'"),
            compare(Entity::Tag, "who", Comparator::Equal, Value::Text("O'Hara AND sons".into()))
        );
    }

    #[test]
    fn nonsense_is_refused_with_its_place() {
        for text in
            ["metrics.a >", "a = 'x' OR b = 'y'", "a = 'x", "= 3", "a = b", "run_id IN ()", "a = 'x'; DROP TABLE"]
        {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with("Invalid clause(s) in filter string"), "{text}: {error}");
        }
        assert!(parse(&format!("a = '{}'", "x".repeat(20_000))).is_err());
        assert!(parse(&vec!["a = 'x'"; 65].join(" AND ")).is_err());
        assert_eq!(parse("  ").unwrap(), []);
    }

    #[test]
    fn an_order_is_a_key_and_a_direction() {
        let order = parse_order("metrics.`val loss`  desc").unwrap();
        assert_eq!(order.key, Key { entity: Entity::Metric, name: "val loss".into() });
        assert_eq!(order.direction, Direction::Descending);
        assert_eq!(parse_order("start_time").unwrap().direction, Direction::Ascending);
        assert!(parse_order("start_time DESC; DROP").is_err());
    }
}
