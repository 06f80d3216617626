//! The Open Inference Protocol: what is sent, and what comes back.

use std::collections::BTreeMap;

use highroad_task::raw::{Dim, TensorSpec, of_arrays as tensors_of, row_major_bytes};
use highroad_task::{Array, OutputTensor};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Body, Said};
use crate::oip::{Datatype, Ids, Oip, Row, Scores};
use crate::{Hosted, HostedTask};

/// Most numbers of one answer.
const MAX_ELEMENTS: usize = 8 << 20;

/// Below the base URL.
pub(super) fn path(hosted: &Hosted, oip: &Oip) -> String {
    let version = oip.version.as_ref().map(|version| format!("/versions/{version}")).unwrap_or_default();
    format!("v2/models/{}{version}/infer", hosted.model)
}

/// Texts as the host reads them, or their tokens.
pub(super) fn of_texts(oip: &Oip, texts: &[String]) -> Result<Body, String> {
    let Some(name) = &oip.text else { return of_rows(oip, &oip.rows(texts)?) };
    let tensor = |data: Value| json!({ "name": name, "datatype": "BYTES", "shape": [texts.len()], "data": data });
    if !oip.binary {
        return Ok(body(oip, vec![tensor(json!(texts))], Vec::new()));
    }
    let mut bytes = Vec::new();
    for text in texts {
        bytes.extend(u32::try_from(text.len()).map_err(|_| "a text is too long")?.to_le_bytes());
        bytes.extend(text.as_bytes());
    }
    let tensor = json!({
        "name": name, "datatype": "BYTES", "shape": [texts.len()], "parameters": { "binary_data_size": bytes.len() },
    });
    Ok(body(oip, vec![tensor], bytes))
}

pub(super) fn of_documents(oip: &Oip, query: &str, documents: &[String]) -> Result<Body, String> {
    of_rows(oip, &oip.pairs(query, documents)?)
}

/// Rows filled to the longest.
fn of_rows(oip: &Oip, rows: &[Row]) -> Result<Body, String> {
    let width = rows.iter().map(|row| row.ids.len()).max().unwrap_or(0);
    if width == 0 || rows.iter().any(|row| row.ids.is_empty()) {
        return Err("an input needs at least one token".to_owned());
    }
    let filled = |values: &dyn Fn(&Row) -> Vec<u32>, fill: u32| -> Vec<i64> {
        let row = |row: &Row| values(row).into_iter().chain(std::iter::repeat(fill)).take(width).collect::<Vec<_>>();
        rows.iter().flat_map(row).map(i64::from).collect()
    };
    let mut named = vec![(oip.input_ids.as_str(), filled(&|row| row.ids.clone(), oip.pad_id()))];
    if !oip.attention_mask.is_empty() {
        named.push((&oip.attention_mask, filled(&|row| vec![1; row.ids.len()], 0)));
    }
    if let Some(name) = &oip.token_type_ids {
        named.push((name, filled(&|row| row.types.clone(), 0)));
    }
    let (mut tensors, mut binary) = (Vec::new(), Vec::new());
    for (name, values) in named {
        let (datatype, width_bytes) = match oip.ids {
            Ids::Int64 => ("INT64", 8),
            Ids::Int32 => ("INT32", 4),
        };
        let mut tensor = json!({ "name": name, "datatype": datatype, "shape": [rows.len(), width] });
        if oip.binary {
            tensor["parameters"] = json!({ "binary_data_size": values.len() * width_bytes });
            // Ids are below 2^31, so the lower half of a number is all of it.
            binary.extend(values.iter().flat_map(|value| value.to_le_bytes().into_iter().take(width_bytes)));
        } else {
            tensor["data"] = json!(values);
        }
        tensors.push(tensor);
    }
    Ok(body(oip, tensors, binary))
}

/// Tensors by name, as the description says what they are.
pub(super) fn of_arrays(oip: &Oip, arrays: &BTreeMap<String, Array>) -> Result<Body, String> {
    let spec = |(name, datatype): (&String, &Datatype)| {
        let shape = arrays.get(name).map(Array::shape).unwrap_or_default();
        let sizes = shape.iter().map(|&size| Dim::Known(size)).collect();
        TensorSpec { name: name.clone(), dtype: datatype.dtype(), sizes }
    };
    let specs: Vec<TensorSpec> = oip.inputs.iter().map(spec).collect();
    let tensors = tensors_of(&specs, arrays).map_err(|error| error.to_string())?;
    let (mut inputs, mut binary) = (Vec::new(), Vec::new());
    for ((name, datatype), tensor) in oip.inputs.iter().zip(&tensors) {
        let mut input = json!({ "name": name, "datatype": datatype, "shape": tensor.shape() });
        if oip.binary {
            let bytes = row_major_bytes(tensor);
            input["parameters"] = json!({ "binary_data_size": bytes.len() });
            binary.extend(bytes);
        } else {
            input["data"] = elements(*datatype, &arrays[name]);
        }
        inputs.push(input);
    }
    Ok(sent(oip, json!({ "inputs": inputs, "parameters": { "binary_data_output": oip.binary } }), binary))
}

/// Flat, as JSON has elements of the datatype.
fn elements(datatype: Datatype, array: &Array) -> Value {
    let values = array.values().iter();
    match datatype {
        Datatype::Bool => values.map(|&value| Value::from(value != 0.0)).collect(),
        Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 | Datatype::Fp64 => {
            values.map(|&value| json!(value)).collect()
        }
        // Whole and within 2^53, which was checked.
        _ => values.map(|&value| Value::from(value as i64)).collect(),
    }
}

fn body(oip: &Oip, inputs: Vec<Value>, binary: Vec<u8>) -> Body {
    let output = json!({ "name": oip.output, "parameters": { "binary_data": oip.binary } });
    sent(oip, json!({ "inputs": inputs, "outputs": [output] }), binary)
}

fn sent(oip: &Oip, json: Value, binary: Vec<u8>) -> Body {
    match oip.binary {
        false => Body::Json(json),
        true => {
            let mut bytes = json.to_string().into_bytes();
            let json_bytes = bytes.len();
            bytes.extend(binary);
            Body::Tensors { bytes, json_bytes }
        }
    }
}

#[derive(Deserialize)]
struct Reply {
    outputs: Vec<Output>,
    model_name: Option<String>,
    model_version: Option<String>,
}

#[derive(Deserialize)]
struct Request {
    inputs: Vec<Output>,
}

#[derive(Deserialize)]
struct Output {
    name: String,
    datatype: String,
    shape: Vec<usize>,
    data: Option<Value>,
    #[serde(default)]
    parameters: Parameters,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Parameters {
    binary_data_size: Option<usize>,
}

/// The answer to each of `n_rows` texts, or the one to all documents; and what the host says answered.
pub(super) fn read(
    hosted: &Hosted,
    oip: &Oip,
    (body, json_bytes): (&[u8], Option<usize>),
    n_rows: usize,
) -> Result<(Vec<Said>, Option<String>), String> {
    let (json, mut binary) =
        body.split_at_checked(json_bytes.unwrap_or(body.len())).ok_or("its header says more JSON than there is")?;
    let Reply { outputs, model_name, model_version } =
        serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let wanted = oip.output.as_deref().unwrap_or_default();
    let mut found = None;
    for output in outputs {
        let values = output.take(&mut binary, output.name == wanted)?;
        found = values.map(|values| (output.shape, values)).or(found);
    }
    let (shape, values) = found.ok_or_else(|| format!("it has no output `{wanted}`"))?;
    if shape.first() != Some(&n_rows) || values.is_empty() || values.iter().any(|value| !value.is_finite()) {
        return Err(format!("`{wanted}` of shape {shape:?} is no finite answer to {n_rows} inputs"));
    }
    let width = values.len() / n_rows;
    let rows = values.chunks_exact(width).map(<[f32]>::to_vec);
    let said = match (hosted.task, oip.scores) {
        (HostedTask::Embed, _) => rows.map(super::vector).collect::<Result<_, _>>()?,
        (HostedTask::Rerank, scores) if width == 1 => {
            let score = |logit: &f32| match scores {
                Scores::Logits => 1.0 / (1.0 + (-f64::from(*logit)).exp()),
                Scores::Probabilities => f64::from(*logit),
            };
            vec![Said::Relevances { scores: values.iter().map(score).collect() }]
        }
        (HostedTask::Classify, _) if width != hosted.labels.len() => {
            return Err(format!("`{wanted}` has {width} scores, and the description {} labels", hosted.labels.len()));
        }
        (HostedTask::Classify, Scores::Logits) => {
            rows.map(|row| Said::Logits { bits: row.into_iter().map(f32::to_bits).collect() }).collect()
        }
        (HostedTask::Classify, Scores::Probabilities) => {
            rows.map(|row| super::scores(row.into_iter().map(f64::from).collect())).collect::<Result<_, _>>()?
        }
        _ => return Err(format!("`{wanted}` of shape {shape:?} is no answer")),
    };
    let served_by = model_name.map(|name| format!("{name} {}", model_version.unwrap_or_default()));
    Ok((said, served_by))
}

/// Every output that holds numbers, with its bits; and what the host says answered.
pub(super) fn read_all((body, json_bytes): (&[u8], Option<usize>)) -> Result<(Said, Option<String>), String> {
    let (Reply { outputs, model_name, model_version }, binary) = parsed(body, json_bytes)?;
    let read = bits_of_all(outputs, binary)?;
    if read.is_empty() {
        return Err("it has no tensor of numbers".to_owned());
    }
    let served_by = model_name.map(|name| format!("{name} {}", model_version.unwrap_or_default()));
    Ok((Said::Tensors { outputs: read }, served_by))
}

/// The tensors of a request in this protocol that hold numbers, with their bits. `json_bytes` of the body are JSON where binary data
/// follows. Errors, in words, where it is none.
pub fn inputs_of(body: &[u8], json_bytes: Option<usize>) -> Result<Vec<OutputTensor>, String> {
    let (Request { inputs }, binary) = parsed(body, json_bytes)?;
    bits_of_all(inputs, binary)
}

/// The same of an answer.
pub fn outputs_of(body: &[u8], json_bytes: Option<usize>) -> Result<Vec<OutputTensor>, String> {
    let (Reply { outputs, .. }, binary) = parsed(body, json_bytes)?;
    bits_of_all(outputs, binary)
}

fn parsed<T: DeserializeOwned>(body: &[u8], json_bytes: Option<usize>) -> Result<(T, &[u8]), String> {
    let (json, binary) =
        body.split_at_checked(json_bytes.unwrap_or(body.len())).ok_or("its header says more JSON than there is")?;
    Ok((serde_json::from_slice(json).map_err(|error| error.to_string())?, binary))
}

fn bits_of_all(tensors: Vec<Output>, mut binary: &[u8]) -> Result<Vec<OutputTensor>, String> {
    let mut read = Vec::new();
    for tensor in tensors {
        read.extend(tensor.bits(&mut binary)?);
    }
    Ok(read)
}

impl Output {
    /// Its elements with their bits; `None` of texts and of datatypes that no program has.
    fn bits(self, binary: &mut &[u8]) -> Result<Option<OutputTensor>, String> {
        let Self { name, datatype, shape, data, parameters } = self;
        let bytes = match parameters.binary_data_size {
            None => None,
            Some(size) => {
                let (bytes, rest) = binary.split_at_checked(size).ok_or("its binary data is cut off")?;
                *binary = rest;
                Some(bytes)
            }
        };
        let Ok(datatype) = serde_json::from_value::<Datatype>(json!(datatype)) else { return Ok(None) };
        let dtype = datatype.dtype();
        let n = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size)).filter(|&n| n <= MAX_ELEMENTS);
        let n = n.ok_or("an output is too large")?;
        let bytes = match (bytes, data) {
            (Some(bytes), _) => bytes.to_vec(),
            (None, Some(data)) => {
                let array = flat(data).and_then(|values| Array::new(vec![n], values));
                let array = array.ok_or_else(|| format!("output `{name}` has no {n} finite numbers"))?;
                let spec = TensorSpec { name: name.clone(), dtype, sizes: vec![Dim::Known(n)] };
                let tensors = tensors_of(&[spec], &BTreeMap::from([(name.clone(), array)]));
                tensors.map_err(|error| error.to_string())?.iter().flat_map(row_major_bytes).collect()
            }
            (None, None) => return Err(format!("output `{name}` has no data")),
        };
        if bytes.len() != n * dtype.size_bytes() {
            return Err(format!("output `{name}` has {} bytes, and its shape is {shape:?} of {dtype}", bytes.len()));
        }
        Ok(Some(OutputTensor { name, dtype: dtype.name().to_owned(), shape, bytes: bytes.into() }))
    }

    /// Its numbers, where they are `wanted`; of others the binary data is passed over.
    fn take(&self, binary: &mut &[u8], wanted: bool) -> Result<Option<Vec<f32>>, String> {
        let n = self.shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size)).filter(|&n| n <= MAX_ELEMENTS);
        let n = n.ok_or("an output is too large")?;
        let bytes = match self.parameters.binary_data_size {
            None => None,
            Some(size) => {
                let (bytes, rest) = binary.split_at_checked(size).ok_or("its binary data is cut off")?;
                *binary = rest;
                Some(bytes)
            }
        };
        if !wanted {
            return Ok(None);
        }
        let values = match (bytes, &self.data) {
            (Some(bytes), _) => numbers(&self.datatype, bytes)?,
            (None, Some(data)) => {
                let mut values = Vec::new();
                flatten(data, 8, &mut values)?;
                values
            }
            (None, None) => return Err(format!("output `{}` has no data", self.name)),
        };
        if values.len() != n {
            return Err(format!(
                "output `{}` has {} elements, and its shape {:?}",
                self.name,
                values.len(),
                self.shape
            ));
        }
        Ok(Some(values))
    }
}

fn numbers(datatype: &str, bytes: &[u8]) -> Result<Vec<f32>, String> {
    fn all<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f32) -> Option<Vec<f32>> {
        let (whole, rest) = bytes.as_chunks::<N>();
        rest.is_empty().then(|| whole.iter().map(|bytes| number(*bytes)).collect())
    }
    let numbers = match datatype {
        "FP32" => all(bytes, f32::from_le_bytes),
        "FP64" => all(bytes, |bytes| f64::from_le_bytes(bytes) as f32),
        "FP16" => all(bytes, |bytes| half::f16::from_le_bytes(bytes).to_f32()),
        "BF16" => all(bytes, |bytes| half::bf16::from_le_bytes(bytes).to_f32()),
        other => return Err(format!("an answer of datatype {other} is no score and no vector")),
    };
    numbers.ok_or_else(|| "its binary data is no whole number of elements".to_owned())
}

/// The elements of nested or flat lists, in order.
fn flat(data: Value) -> Option<Vec<f64>> {
    Array::try_from(data).ok().map(|array| array.values().to_vec())
}

fn flatten(data: &Value, depth: usize, values: &mut Vec<f32>) -> Result<(), String> {
    match data {
        Value::Array(_) if depth == 0 => Err("its data is nested too deeply".to_owned()),
        Value::Array(items) => items.iter().try_for_each(|item| flatten(item, depth - 1, values)),
        leaf => {
            let value = leaf.as_f64().ok_or("an element is no number")?;
            values.push(value as f32);
            Ok(())
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn hosted(task: &str, more: &str) -> Hosted {
        let labels = if task == "classify" { "labels = ['ham', 'spam']\n" } else { "" };
        Hosted::parse(&format!(
            "highroad_hosted = 1\ntask = '{task}'\nprotocol = 'oip'\nbase_url = 'http://h'\nmodel = 'm'\n{labels}[oip]\ntext = 'text'\n\
             output = 'out'\n{more}"
        ))
        .unwrap()
    }

    fn answers(hosted: &Hosted, shape: &str, values: &[f32], n_rows: usize) -> Result<Vec<Said>, String> {
        let binary: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let other = r#"{"name":"other","datatype":"INT8","shape":[3],"parameters":{"binary_data_size":3}}"#;
        let json = format!(
            r#"{{"outputs":[{other},{{"name":"out","datatype":"FP32","shape":{shape},"parameters":{{"binary_data_size":{}}}}}]}}"#,
            binary.len()
        );
        let body = [json.as_bytes(), &[1, 2, 3], &binary].concat();
        read(hosted, hosted.oip.as_ref().unwrap(), (&body, Some(json.len())), n_rows).map(|(said, _)| said)
    }

    #[test]
    fn an_answer_is_found_among_others_and_keeps_its_bits() {
        let logits = answers(&hosted("classify", ""), "[2,2]", &[0.1, 0.2, 0.3, -0.4], 2).unwrap();
        assert_eq!(logits[1], Said::Logits { bits: vec![0.3f32.to_bits(), (-0.4f32).to_bits()] });
        let vector = answers(&hosted("embed", ""), "[1,3]", &[1.0, 2.0, 3.0], 1).unwrap();
        assert_eq!(vector, [Said::Vector { bits: [1.0f32, 2.0, 3.0].map(f32::to_bits).to_vec() }]);
    }

    #[test]
    fn what_is_no_answer_is_told() {
        let classify = hosted("classify", "");
        for (shape, values, n_rows, reason) in [
            ("[1,3]", &[0.1, 0.2, 0.3][..], 1, "3 scores, and the description 2 labels"),
            ("[1,2]", &[0.1, f32::NAN], 1, "no finite answer"),
            ("[2,2]", &[0.1, 0.2, 0.3, 0.4], 1, "is no finite answer to 1 inputs"),
            ("[1,2]", &[0.1], 1, "has 1 elements"),
            ("[99999999,99999999]", &[], 1, "too large"),
            ("[0,2]", &[], 0, "no finite answer"),
        ] {
            let told = answers(&classify, shape, values, n_rows).unwrap_err();
            assert!(told.contains(reason), "{told}");
        }
        let oip = classify.oip.as_ref().unwrap();
        assert!(read(&classify, oip, (b"{}", Some(7)), 1).unwrap_err().contains("more JSON"));
        assert!(read(&classify, oip, (br#"{"outputs":[]}"#, None), 1).unwrap_err().contains("no output `out`"));
    }
}
