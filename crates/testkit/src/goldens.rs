//! What PyTorch computed for single operators: `conformance/goldens/*.jsonl`, made by `conformance/make_goldens.py`.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use highroad_tensor::{DType, Storage, Tensor};
use serde_json::Value;

/// One call of an operator and what PyTorch returned.
#[derive(Clone, Debug)]
pub struct Golden {
    /// Overload, `aten.add.Tensor`.
    pub op: String,
    /// Arguments under their schema names; those left out have their default.
    pub args: Vec<(String, GoldenValue)>,
    /// Results in order, lists flattened.
    pub outputs: Vec<GoldenValue>,
}

/// An argument or a result.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum GoldenValue {
    None,
    Tensor(Tensor),
    Int(i64),
    Float(f64),
    Bool(bool),
    Str(String),
    DType(DType),
    List(Vec<GoldenValue>),
}

/// Every golden sample, in the order of the files. Panics if the files are missing or damaged.
pub fn goldens() -> Vec<Golden> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../conformance/goldens"));
    let entries = std::fs::read_dir(&folder).expect("the goldens are committed");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    files.sort();
    let read = |file: &PathBuf| std::fs::read_to_string(file).expect("a readable file");
    files.iter().flat_map(|file| read(file).lines().map(golden).collect::<Vec<_>>()).collect()
}

fn golden(line: &str) -> Golden {
    let case: Value = serde_json::from_str(line).expect("a golden is JSON");
    let args = case["args"].as_object().expect("arguments by name");
    Golden {
        op: case["op"].as_str().expect("an operator").to_owned(),
        args: args.iter().map(|(name, arg)| (name.clone(), value(arg))).collect(),
        outputs: case["outputs"].as_array().expect("a list of results").iter().map(value).collect(),
    }
}

fn value(json: &Value) -> GoldenValue {
    match json {
        Value::Null => GoldenValue::None,
        Value::Bool(bool) => GoldenValue::Bool(*bool),
        Value::Number(number) => match number.as_i64() {
            Some(int) => GoldenValue::Int(int),
            None => GoldenValue::Float(number.as_f64().expect("an integer or a float")),
        },
        Value::Array(items) => GoldenValue::List(items.iter().map(value).collect()),
        Value::Object(object) if object.contains_key("data") => GoldenValue::Tensor(tensor(json)),
        Value::Object(_) => named(json),
        Value::String(text) => panic!("a bare string `{text}`"),
    }
}

/// `{"str": …}`, `{"dtype": …}` or `{"float": "inf"}`.
fn named(json: &Value) -> GoldenValue {
    let text = |key: &str| json[key].as_str();
    match (text("str"), text("dtype"), text("float")) {
        (Some(text), _, _) => GoldenValue::Str(text.to_owned()),
        (_, Some(name), _) => GoldenValue::DType(DType::from_name(name).expect("a known dtype")),
        (_, _, Some(float)) => GoldenValue::Float(float.parse().expect("inf, -inf or nan")),
        _ => panic!("neither tensor nor constant: {json}"),
    }
}

fn tensor(json: &Value) -> Tensor {
    let dtype = json["dtype"].as_str().and_then(DType::from_name).expect("a known dtype");
    let sizes = json["shape"].as_array().expect("a shape");
    let shape: Vec<usize> = sizes.iter().map(|size| size.as_u64().expect("a size") as usize).collect();
    let bytes = STANDARD.decode(json["data"].as_str().expect("data")).expect("base64");
    let mut strides = vec![1; shape.len()];
    for dim in (1..shape.len()).rev() {
        strides[dim - 1] = strides[dim] * shape[dim].max(1);
    }
    Tensor::from_storage(Storage::copy_of(&bytes), dtype, &shape, &strides, 0).expect("the data fills the shape")
}
