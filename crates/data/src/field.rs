//! What a loader reads of each record: which fields, of which type.

use std::borrow::Cow;

/// Longest text of a sample; its tokens beyond `max_length` are lost anyway, and tokenising them costs time.
pub const MAX_TEXT_BYTES: usize = 1 << 20;

/// The type of a field, and of the tensor that its values become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text to tokenise, at most [`MAX_TEXT_BYTES`].
    Text,
    /// `int64`.
    Int,
    /// `float32`; integers are converted.
    F32,
    /// `float64`; integers are converted.
    F64,
    /// `bool`.
    Bool,
    /// Text as it is.
    Str,
    /// One of these names, given as its index (`int64`).
    Class(Vec<String>),
}

/// A named field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name in the file: key, header or column.
    pub name: String,
    /// Its type.
    pub kind: Kind,
}

/// A value as a file holds it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Cow<'a, str>),
    /// A cell of CSV: text that may mean any type.
    Cell(Cow<'a, str>),
    /// Something no field can be, such as a list; its JSON or Arrow type.
    Other(&'static str),
}

/// A value as a batch takes it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cell<'a> {
    Int(i64),
    Float(f64),
    Bool(bool),
    Str(Cow<'a, str>),
}

impl Field {
    /// The value as this field's type, or why it is none.
    pub(crate) fn cell<'a>(&self, value: Option<Value<'a>>) -> Result<Cell<'a>, String> {
        let value = value.ok_or_else(|| format!("field `{}` is missing", self.name))?;
        let value = match value {
            Value::Cell(text) => self.parsed(text)?,
            other => other,
        };
        match (&self.kind, value) {
            (_, Value::Null) => Err(format!("field `{}` is null", self.name)),
            (Kind::Text, Value::Str(text)) if text.len() > MAX_TEXT_BYTES => Err(format!(
                "field `{}` has {} bytes, and at most {MAX_TEXT_BYTES} are accepted",
                self.name,
                text.len()
            )),
            (Kind::Text | Kind::Str, Value::Str(text)) => Ok(Cell::Str(text)),
            (Kind::Int, Value::Int(value)) => Ok(Cell::Int(value)),
            (Kind::F32 | Kind::F64, Value::Float(value)) => Ok(Cell::Float(value)),
            (Kind::F32 | Kind::F64, Value::Int(value)) => Ok(Cell::Float(value as f64)),
            (Kind::Bool, Value::Bool(value)) => Ok(Cell::Bool(value)),
            (Kind::Class(names), Value::Str(text)) => match names.iter().position(|name| *name == text) {
                Some(class) => Ok(Cell::Int(class as i64)),
                None => {
                    Err(format!("field `{}` is `{}`, not one of {}", self.name, shortened(&text), names.join(", ")))
                }
            },
            (kind, value) => Err(format!("field `{}` is {}, not {}", self.name, value.describe(), kind.describe())),
        }
    }

    /// What the text of a CSV cell means as this type; text that means nothing stays text and is refused as such.
    fn parsed<'a>(&self, text: Cow<'a, str>) -> Result<Value<'a>, String> {
        let word = text.trim();
        let value = match self.kind {
            Kind::Text | Kind::Str | Kind::Class(_) => None,
            _ if word.is_empty() => Some(Value::Null),
            Kind::Int => word.parse().ok().map(Value::Int),
            Kind::F32 | Kind::F64 => word.parse().ok().map(Value::Float),
            Kind::Bool => match word {
                "true" | "True" | "TRUE" | "1" => Some(Value::Bool(true)),
                "false" | "False" | "FALSE" | "0" => Some(Value::Bool(false)),
                _ => None,
            },
        };
        Ok(value.unwrap_or(Value::Str(text)))
    }
}

impl Kind {
    fn describe(&self) -> &'static str {
        match self {
            Self::Text | Self::Str | Self::Class(_) => "text",
            Self::Int => "a 64-bit integer",
            Self::F32 | Self::F64 => "a number",
            Self::Bool => "a boolean",
        }
    }
}

impl Value<'_> {
    fn describe(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(value) => format!("`{value}`"),
            Self::Int(value) => format!("`{value}`"),
            Self::Float(value) => format!("`{value}`"),
            Self::Str(text) | Self::Cell(text) => format!("the text `{}`", shortened(text)),
            Self::Other(what) => (*what).to_owned(),
        }
    }
}

/// At most 40 characters of a value, for a message.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn field(kind: Kind) -> Field {
        Field { name: "x".to_owned(), kind }
    }

    fn csv(kind: Kind, text: &str) -> Result<Cell<'_>, String> {
        field(kind).cell(Some(Value::Cell(text.into())))
    }

    #[test]
    fn a_csv_cell_is_read_as_its_type() {
        assert_eq!(csv(Kind::Int, " 7 ").unwrap(), Cell::Int(7));
        assert_eq!(csv(Kind::F32, "1e3").unwrap(), Cell::Float(1000.0));
        assert_eq!(csv(Kind::Bool, "True").unwrap(), Cell::Bool(true));
        assert_eq!(csv(Kind::Int, "seven").unwrap_err(), "field `x` is the text `seven`, not a 64-bit integer");
        assert_eq!(csv(Kind::Int, "").unwrap_err(), "field `x` is null");
        assert_eq!(csv(Kind::Str, "").unwrap(), Cell::Str("".into()));
    }

    #[test]
    fn types_are_not_guessed() {
        let json = |kind, value| field(kind).cell(Some(value)).unwrap_err();
        assert_eq!(json(Kind::Int, Value::Str("7".into())), "field `x` is the text `7`, not a 64-bit integer");
        assert_eq!(json(Kind::Int, Value::Float(7.5)), "field `x` is `7.5`, not a 64-bit integer");
        assert_eq!(json(Kind::Bool, Value::Int(1)), "field `x` is `1`, not a boolean");
        assert_eq!(json(Kind::Text, Value::Other("a list")), "field `x` is a list, not text");
        assert_eq!(field(Kind::Text).cell(None).unwrap_err(), "field `x` is missing");
    }

    #[test]
    fn a_class_is_the_index_of_its_name() {
        let kind = Kind::Class(vec!["ham".to_owned(), "spam".to_owned()]);
        assert_eq!(csv(kind.clone(), "spam").unwrap(), Cell::Int(1));
        assert_eq!(csv(kind, "eggs").unwrap_err(), "field `x` is `eggs`, not one of ham, spam");
    }
}
