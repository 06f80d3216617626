use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Most dimensions of an [`Array`].
const MAX_DIMS: usize = 8;

/// Whole numbers up to here are all different in f64.
const MAX_WHOLE: u64 = 1 << 53;

/// Numbers in nested lists, as JSON has tensors: `[[0.5, 1], [2, 3]]` has shape `[2, 2]` and `7` has none. `true` and `false` are 1
/// and 0. All are finite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Value", into = "Value")]
#[schemars(rename = "NestedNumbers")]
pub struct Array {
    shape: Vec<usize>,
    values: Vec<f64>,
}

// No value is NaN.
impl Eq for Array {}

impl Array {
    /// `values` in row-major order. `None` unless there are as many as the shape says, all finite.
    pub fn new(shape: Vec<usize>, values: Vec<f64>) -> Option<Self> {
        let n = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        let fits = shape.len() <= MAX_DIMS && n == Some(values.len()) && values.iter().all(|value| value.is_finite());
        fits.then_some(Self { shape, values })
    }

    /// The sizes of its dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Row-major.
    pub fn values(&self) -> &[f64] {
        &self.values
    }
}

impl TryFrom<Value> for Array {
    type Error = String;

    /// Errors on lists of different lengths side by side, on what is no number, on more than 8 dimensions, and on whole numbers that
    /// f64 does not tell apart.
    fn try_from(json: Value) -> Result<Self, String> {
        let mut shape = Vec::new();
        let mut first = &json;
        while let Value::Array(items) = first {
            if shape.len() == MAX_DIMS {
                return Err(format!("it has more than {MAX_DIMS} dimensions"));
            }
            shape.push(items.len());
            let Some(item) = items.first() else { break };
            first = item;
        }
        let mut values = Vec::new();
        collect(&json, &shape, &mut values)?;
        Ok(Self { shape, values })
    }
}

fn collect(json: &Value, shape: &[usize], values: &mut Vec<f64>) -> Result<(), String> {
    match (json, shape) {
        (Value::Array(items), [size, rest @ ..]) if items.len() == *size => {
            items.iter().try_for_each(|item| collect(item, rest, values))
        }
        (Value::Array(items), [size, ..]) => {
            Err(format!("lists side by side have one length, and these have {size} and {}", items.len()))
        }
        (Value::Array(_), []) => Err("a list stands where a number is needed".to_owned()),
        (_, [_, ..]) => Err("a number stands where a list is needed".to_owned()),
        (Value::Bool(flag), []) => {
            values.push(f64::from(u8::from(*flag)));
            Ok(())
        }
        (Value::Number(number), []) => {
            let whole = number.as_u64().or_else(|| number.as_i64().map(i64::unsigned_abs));
            let value = number.as_f64().filter(|value| value.is_finite());
            values.push(value.filter(|_| whole.is_none_or(|whole| whole <= MAX_WHOLE)).ok_or_else(|| {
                format!("{number} is out of range: whole numbers go up to 2^53, others as far as f64")
            })?);
            Ok(())
        }
        (other, []) => Err(format!("`{other}` is no number")),
    }
}

impl From<Array> for Value {
    fn from(array: Array) -> Self {
        nested(&array.shape, &array.values)
    }
}

fn nested(shape: &[usize], values: &[f64]) -> Value {
    match shape {
        [] => values.first().copied().map_or(Value::Null, Value::from),
        [0, ..] => Value::Array(Vec::new()),
        [size, rest @ ..] => {
            let width = values.len() / size;
            Value::Array((0..*size).map(|row| nested(rest, &values[row * width..(row + 1) * width])).collect())
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lists_in_lists_are_a_tensor_and_back() {
        for (text, shape, values) in [
            ("7", vec![], vec![7.0]),
            ("[]", vec![0], vec![]),
            ("[true, false]", vec![2], vec![1.0, 0.0]),
            ("[[1, 2.5], [-3, 1e-9]]", vec![2, 2], vec![1.0, 2.5, -3.0, 1e-9]),
            ("[[[9007199254740992]]]", vec![1, 1, 1], vec![9007199254740992.0]),
        ] {
            let array: Array = serde_json::from_str(text).unwrap();
            assert_eq!((array.shape(), array.values()), (&shape[..], &values[..]), "{text}");
            let again: Array = serde_json::from_str(&serde_json::to_string(&array).unwrap()).unwrap();
            assert_eq!(array, again);
        }
    }

    #[test]
    fn what_is_no_tensor_is_told() {
        for (text, problem) in [
            ("[[1, 2], [3]]", "lists side by side have one length, and these have 2 and 1"),
            ("[1, [2]]", "a list stands where a number is needed"),
            ("[[1], 2]", "a number stands where a list is needed"),
            ("[[], [[]]]", "lists side by side have one length, and these have 0 and 1"),
            ("[null]", "`null` is no number"),
            ("[\"1\"]", "`\"1\"` is no number"),
            ("[9007199254740993]", "9007199254740993 is out of range"),
            ("[[[[[[[[[1]]]]]]]]]", "it has more than 8 dimensions"),
        ] {
            let error = serde_json::from_str::<Array>(text).unwrap_err().to_string();
            assert!(error.contains(problem), "{text}: {error}");
        }
        assert_eq!(Array::new(vec![2], vec![1.0]), None);
        assert_eq!(Array::new(vec![1], vec![f64::NAN]), None);
    }
}
