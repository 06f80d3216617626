use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jsonschema::{PatternOptions, Validator};
use regex::Regex;
use serde::{Deserialize, Serialize};

/// What a metric is about, beside the answers.
#[derive(Clone, Copy, Debug, Default)]
pub struct About<'a> {
    /// One label of a classifier.
    pub label: Option<&'a str>,
    /// What wrong answers cost.
    pub costs: Option<&'a Costs>,
    /// What a text must hold.
    pub regex: Option<&'a Pattern>,
    /// What a text must be.
    pub schema: Option<&'a Schema>,
    /// Who judged.
    pub judge: Option<&'a str>,
    /// Which program of the user's own gave the values.
    pub custom: Option<&'a str>,
    /// One output of a program of tensors; all of them if absent.
    pub output: Option<&'a str>,
}

/// Something a metric must be told, by the key that names it in `gates.toml`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Parameter {
    Label,
    Costs,
    Regex,
    Schema,
    Judge,
    Custom,
    Output,
}

impl<'a> From<Option<&'a str>> for About<'a> {
    fn from(label: Option<&'a str>) -> Self {
        Self { label, ..Self::default() }
    }
}

impl About<'_> {
    /// A parameter that is needed and missing, or given and not needed.
    pub fn misfit(&self, needed: Option<Parameter>) -> Option<Parameter> {
        let given = [
            (Parameter::Label, self.label.is_some()),
            (Parameter::Costs, self.costs.is_some()),
            (Parameter::Regex, self.regex.is_some()),
            (Parameter::Schema, self.schema.is_some()),
            (Parameter::Judge, self.judge.is_some()),
            (Parameter::Custom, self.custom.is_some()),
        ];
        given
            .into_iter()
            .find(|&(parameter, given)| given != (needed == Some(parameter)))
            .map(|(parameter, _)| parameter)
    }
}

impl Parameter {
    /// The key, as it stands after "needs".
    pub fn with_article(self) -> String {
        let article = match self {
            Self::Costs => "",
            Self::Output => "an ",
            _ => "a ",
        };
        format!("{article}`{self}`")
    }
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Label => "label",
            Self::Costs => "costs",
            Self::Regex => "regex",
            Self::Schema => "schema",
            Self::Judge => "judge",
            Self::Custom => "custom",
            Self::Output => "output",
        })
    }
}

/// A number, a pattern or a schema of a rule that means nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum ParameterError {
    #[error("answering `{expected}` with `{answered}` costs {cost}: expected 0 or more")]
    Cost { expected: String, answered: String, cost: f64 },
    #[error("{0}")]
    Regex(#[from] regex::Error),
    #[error("the schema is not JSON: {0}")]
    SchemaSyntax(#[from] serde_json::Error),
    #[error("the schema is not a JSON schema: {0}")]
    Schema(String),
}

/// What each answer costs, by the expected and then the answered label. A wrong answer that is not listed costs 1 and a
/// right one 0, so that no table at all makes the share of wrong answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "CostTable", into = "CostTable")]
pub struct Costs(CostTable);

type CostTable = BTreeMap<String, BTreeMap<String, f64>>;

impl Costs {
    /// What it costs to answer `answered` where `expected` is right.
    pub fn of(&self, expected: &str, answered: &str) -> f64 {
        let listed = self.0.get(expected).and_then(|row| row.get(answered)).copied();
        listed.unwrap_or(if expected == answered { 0.0 } else { 1.0 })
    }

    /// The labels that are listed, some of them more than once.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flat_map(|(expected, row)| std::iter::once(expected).chain(row.keys())).map(String::as_str)
    }
}

impl TryFrom<CostTable> for Costs {
    type Error = ParameterError;

    /// Errors if a cost is negative or not finite.
    fn try_from(table: CostTable) -> Result<Self, ParameterError> {
        let cells = || table.iter().flat_map(|(expected, row)| row.iter().map(move |cell| (expected, cell)));
        match cells().find(|(_, (_, cost))| !(0.0..=f64::MAX).contains(*cost)) {
            None => Ok(Self(table)),
            Some((expected, (answered, &cost))) => {
                Err(ParameterError::Cost { expected: expected.clone(), answered: answered.clone(), cost })
            }
        }
    }
}

impl From<Costs> for CostTable {
    fn from(costs: Costs) -> Self {
        costs.0
    }
}

/// A regular expression in the syntax of the `regex` crate. It takes time linear in the text, whatever the text.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(Regex);

impl Pattern {
    /// Whether it finds something in `text`; `^` and `$` make it be about the whole.
    pub fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text)
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl TryFrom<String> for Pattern {
    type Error = ParameterError;

    fn try_from(text: String) -> Result<Self, ParameterError> {
        Ok(Self(Regex::new(&text)?))
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.as_str().to_owned()
    }
}

/// A JSON schema, of the draft its `$schema` names, else 2020-12. References to other documents are errors: nothing is
/// fetched.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Schema {
    text: String,
    validator: Arc<Validator>,
}

impl Schema {
    /// Whether `text` is JSON that the schema accepts.
    pub fn accepts(&self, text: &str) -> bool {
        serde_json::from_str(text).is_ok_and(|value| self.validator.is_valid(&value))
    }
}

impl PartialEq for Schema {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl TryFrom<String> for Schema {
    type Error = ParameterError;

    fn try_from(text: String) -> Result<Self, ParameterError> {
        let schema = serde_json::from_str(&text)?;
        // The linear engine: a text is a stranger's, and no pattern may take exponential time on it.
        let options = jsonschema::options().with_pattern_options(PatternOptions::regex());
        let validator = options.build(&schema).map_err(|error| ParameterError::Schema(error.to_string()))?;
        Ok(Self { text, validator: Arc::new(validator) })
    }
}

impl From<Schema> for String {
    fn from(schema: Schema) -> Self {
        schema.text
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn schema(text: &str) -> Result<Schema, String> {
        Schema::try_from(text.to_owned()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_schema_accepts_json_of_its_shape_only() {
        let object =
            schema(r#"{"type": "object", "required": ["city"], "properties": {"city": {"pattern": "^[A-Z]"}}}"#);
        let object = object.unwrap();
        assert!(object.accepts(r#" {"city": "Lyon"} "#));
        for refused in ["", "Lyon", "{}", r#"{"city": "lyon"}"#, r#"{"city": "Lyon"} {}"#, "[]"] {
            assert!(!object.accepts(refused), "{refused}");
        }
    }

    #[test]
    fn a_schema_never_fetches_another_document() {
        for reference in ["https://example.com/other.json", "file:///etc/hosts"] {
            let error = schema(&format!(r#"{{"$ref": "{reference}"}}"#)).unwrap_err();
            assert!(error.starts_with("the schema is not a JSON schema: "), "{error}");
        }
        assert!(schema("{").unwrap_err().starts_with("the schema is not JSON: "));
        assert!(schema(r#"{"type": 3}"#).is_err());
    }

    #[test]
    fn a_wrong_answer_costs_1_where_the_table_says_nothing() {
        let row = BTreeMap::from([("benign".to_owned(), 10.0)]);
        let costs = Costs::try_from(BTreeMap::from([("injection".to_owned(), row)])).unwrap();
        assert_eq!(costs.of("injection", "benign"), 10.0);
        assert_eq!((costs.of("benign", "injection"), costs.of("benign", "benign")), (1.0, 0.0));
        let negative = BTreeMap::from([("b".to_owned(), -1.0)]);
        let error = Costs::try_from(BTreeMap::from([("a".to_owned(), negative)])).unwrap_err();
        assert_eq!(error.to_string(), "answering `a` with `b` costs -1: expected 0 or more");
    }
}
