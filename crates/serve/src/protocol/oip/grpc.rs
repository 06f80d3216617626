//! The Open Inference Protocol v2 over gRPC: its messages to and from the requests and outputs of [`super`].

use std::collections::HashMap;

use highroad_package::{Manifest, TaskKind};
use highroad_service::{Kind, Problem};
use highroad_task::raw::{DType, Program};
use serde_json::{Map, Value, json};

use super::{
    Contents, HeaderInput, HeaderOutput, InferRequest, ModelMetadata, Output, OutputData, ServerMetadata, Wanted,
    dtype, invalid, micros, model_metadata, priority, select, version,
};
use crate::protocol::prompts;
use crate::revision::Facts;

/// The messages and the service, made of `proto/open_inference.proto`.
#[allow(missing_docs, clippy::all, reason = "generated; the file it is made of says what everything is")]
pub mod proto {
    tonic::include_proto!("inference");
}

use proto::infer_parameter::ParameterChoice;
use proto::model_infer_request::InferInputTensor;
use proto::model_infer_response::InferOutputTensor;
use proto::model_metadata_response::TensorMetadata;
use proto::{
    InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse, ModelMetadataResponse,
    ServerMetadataResponse,
};

/// How a request brought its tensors, and wants those of the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `raw_input_contents`, what `tritonclient` sends.
    Raw,
    /// Lists of numbers.
    Typed,
}

/// Reads a request. Errors name the input that does not hold together.
pub fn infer_request(message: ModelInferRequest) -> Result<(InferRequest, Form), Problem> {
    let ModelInferRequest { id, parameters, inputs, outputs, raw_input_contents: raw, .. } = message;
    let form = if raw.is_empty() { Form::Typed } else { Form::Raw };
    if form == Form::Raw && raw.len() != inputs.len() {
        return Err(invalid(format!("{} inputs and {} entries of `raw_input_contents`", inputs.len(), raw.len())));
    }
    let mut raw = raw.into_iter();
    let inputs = inputs.into_iter().map(|input| read_input(input, raw.next())).collect::<Result<Vec<_>, Problem>>()?;
    let outputs = outputs
        .into_iter()
        .map(|output| HeaderOutput { name: output.name, parameters: json_parameters(output.parameters) }.read())
        .collect::<Result<Vec<_>, Problem>>()?;
    let parameters = json_parameters(parameters);
    let priority = priority(parameters.get("priority"))?;
    let prompt = prompts::named(&parameters)?;
    let timeout = match parameters.get("timeout") {
        None => None,
        Some(value) => Some(micros(value)?),
    };
    let id = Some(id).filter(|id| !id.is_empty());
    Ok((InferRequest { id, timeout, priority, prompt, inputs, outputs, binary_outputs: true }, form))
}

fn read_input(input: InferInputTensor, raw: Option<Vec<u8>>) -> Result<(String, Contents), Problem> {
    let InferInputTensor { name, datatype, shape, contents, .. } = input;
    let error = |reason: String| invalid(format!("input `{name}`: {reason}"));
    let shape: Option<Vec<u64>> = shape.into_iter().map(|size| u64::try_from(size).ok()).collect();
    let shape = shape.ok_or_else(|| error("a size of its shape is negative".to_owned()))?;
    let header = HeaderInput { name: name.clone(), datatype, shape, data: None, parameters: Map::new() };
    let (shape, n) = header.checked_shape().map_err(error)?;
    let read = match (raw, contents) {
        (Some(_), Some(_)) => return Err(error("both `contents` and `raw_input_contents`".to_owned())),
        (Some(raw), None) => header.read_binary(&raw, &shape, n),
        (None, contents) => read_typed(&header, contents.unwrap_or_default(), &shape, n),
    };
    Ok((name.clone(), read.map_err(error)?))
}

fn read_typed(
    header: &HeaderInput,
    contents: InferTensorContents,
    shape: &[usize],
    n: usize,
) -> Result<Contents, String> {
    let counted = |found: usize| match found == n {
        true => Ok(()),
        false => Err(format!("shape {shape:?} takes {n} elements of {}, its `contents` have {found}", header.datatype)),
    };
    if header.datatype == "BYTES" {
        counted(contents.bytes_contents.len())?;
        return Ok(Contents::Bytes(contents.bytes_contents));
    }
    let dtype = dtype(&header.datatype)?;
    let (found, bytes) = little_endian(dtype, &contents).ok_or_else(|| match dtype {
        DType::F16 | DType::BF16 => format!("{} is taken as `raw_input_contents` only", header.datatype),
        _ => format!("an element is outside the range of {}", header.datatype),
    })?;
    counted(found)?;
    header.read_binary(&bytes, shape, n)
}

/// The number of elements in the list that fits `dtype`, and their bytes. `None` where there is no such list, or an element does
/// not fit.
fn little_endian(dtype: DType, contents: &InferTensorContents) -> Option<(usize, Vec<u8>)> {
    fn all<T: Copy, const N: usize>(items: &[T], bytes: impl Fn(T) -> Option<[u8; N]>) -> Option<(usize, Vec<u8>)> {
        let mut out = Vec::with_capacity(items.len() * N);
        for &item in items {
            out.extend(bytes(item)?);
        }
        Some((items.len(), out))
    }
    match dtype {
        DType::Bool => all(&contents.bool_contents, |x| Some([u8::from(x)])),
        DType::U8 => all(&contents.uint_contents, |x| u8::try_from(x).ok().map(u8::to_le_bytes)),
        DType::I8 => all(&contents.int_contents, |x| i8::try_from(x).ok().map(i8::to_le_bytes)),
        DType::I16 => all(&contents.int_contents, |x| i16::try_from(x).ok().map(i16::to_le_bytes)),
        DType::I32 => all(&contents.int_contents, |x| Some(x.to_le_bytes())),
        DType::I64 => all(&contents.int64_contents, |x| Some(x.to_le_bytes())),
        DType::F32 => all(&contents.fp32_contents, |x| Some(x.to_le_bytes())),
        DType::F64 => all(&contents.fp64_contents, |x| Some(x.to_le_bytes())),
        _ => None,
    }
}

impl Wanted {
    /// The reply with the outputs that were asked for, or with all of them. Errors if one does not exist or cannot be written as
    /// asked.
    pub fn message(
        self,
        form: Form,
        model: &str,
        facts: &Facts,
        task: &TaskKind,
        mut outputs: Vec<Output>,
    ) -> Result<ModelInferResponse, Problem> {
        if !self.outputs.is_empty() {
            outputs = select(&self.outputs, outputs, task)?;
        }
        let typed: Option<Vec<_>> = match form {
            Form::Raw => None,
            Form::Typed => outputs.iter().map(Output::contents).collect(),
        };
        let mut raw = Vec::new();
        if typed.is_none() {
            for output in &outputs {
                let mut bytes = Vec::new();
                output.write_binary(&mut bytes);
                raw.push(bytes);
            }
        }
        let mut typed = typed.unwrap_or_default().into_iter();
        let tensor = |output: Output| InferOutputTensor {
            datatype: output.datatype().to_owned(),
            name: output.name,
            shape: output.shape.iter().map(|&size| i64::try_from(size).unwrap_or(i64::MAX)).collect(),
            parameters: HashMap::new(),
            contents: typed.next(),
        };
        Ok(ModelInferResponse {
            model_name: model.to_owned(),
            model_version: version(facts),
            id: self.id.unwrap_or_default(),
            parameters: HashMap::new(),
            outputs: outputs.into_iter().map(tensor).collect(),
            raw_output_contents: raw,
        })
    }
}

impl Output {
    /// The elements as a list; `None` for datatypes that have none.
    fn contents(&self) -> Option<InferTensorContents> {
        fn all<T, const N: usize>(bytes: &[u8], element: impl Fn([u8; N]) -> T) -> Vec<T> {
            bytes.chunks_exact(N).map(|chunk| element(chunk.try_into().unwrap_or([0; N]))).collect()
        }
        let mut contents = InferTensorContents::default();
        let (dtype, bytes) = match &self.data {
            OutputData::Bytes(rows) => {
                contents.bytes_contents.clone_from(rows);
                return Some(contents);
            }
            OutputData::Texts(texts) => {
                contents.bytes_contents = texts.iter().map(|text| text.clone().into_bytes()).collect();
                return Some(contents);
            }
            OutputData::Elements(dtype, bytes) => (*dtype, bytes),
        };
        match dtype {
            DType::Bool => contents.bool_contents = all(bytes, |[x]| x != 0),
            DType::U8 => contents.uint_contents = all(bytes, |[x]| x.into()),
            DType::I8 => contents.int_contents = all(bytes, |x| i8::from_le_bytes(x).into()),
            DType::I16 => contents.int_contents = all(bytes, |x| i16::from_le_bytes(x).into()),
            DType::I32 => contents.int_contents = all(bytes, i32::from_le_bytes),
            DType::I64 => contents.int64_contents = all(bytes, i64::from_le_bytes),
            DType::F32 => contents.fp32_contents = all(bytes, f32::from_le_bytes),
            DType::F64 => contents.fp64_contents = all(bytes, f64::from_le_bytes),
            _ => return None,
        }
        Some(contents)
    }
}

/// A request as REST has it, all tensors as binary data; how many bytes of it are JSON. The values are those of `request`, which was read
/// of the same `message`.
pub fn rest_body(message: &ModelInferRequest, request: InferRequest) -> (Vec<u8>, usize) {
    let (mut inputs, mut binary) = (Vec::new(), Vec::new());
    for (input, (name, contents)) in message.inputs.iter().zip(request.inputs) {
        let before = binary.len();
        contents.write_binary(&mut binary);
        let mut parameters = json_parameters(input.parameters.clone());
        parameters.insert("binary_data_size".to_owned(), (binary.len() - before).into());
        inputs.push(json!({
            "name": name, "datatype": input.datatype, "shape": input.shape, "parameters": parameters,
        }));
    }
    let output = |output: &proto::model_infer_request::InferRequestedOutputTensor| {
        let mut parameters = json_parameters(output.parameters.clone());
        // A classification is text.
        parameters.insert("binary_data".to_owned(), true.into());
        json!({ "name": output.name, "parameters": parameters })
    };
    let outputs: Vec<Value> = message.outputs.iter().map(output).collect();
    let mut parameters = json_parameters(message.parameters.clone());
    if outputs.is_empty() {
        parameters.insert("binary_data_output".to_owned(), true.into());
    }
    let mut json = json!({ "inputs": inputs, "parameters": parameters });
    if !outputs.is_empty() {
        json["outputs"] = outputs.into();
    }
    if !message.id.is_empty() {
        json["id"] = message.id.clone().into();
    }
    let mut body = json.to_string().into_bytes();
    let json_bytes = body.len();
    body.extend_from_slice(&binary);
    (body, json_bytes)
}

/// A reply as REST has it, of which `json_bytes` are JSON, as an answer to `message`. Errors if it is none.
pub fn reply_message(
    (body, json_bytes): (&[u8], Option<usize>),
    form: Form,
    message: &ModelInferRequest,
    facts: &Facts,
) -> Result<ModelInferResponse, Problem> {
    let error = |reason: String| Problem::new(Kind::BadGateway, format!("the host answered with no tensors: {reason}"));
    let split = body.split_at_checked(json_bytes.unwrap_or(body.len()));
    let (json, mut binary) = split.ok_or_else(|| error("its header says more JSON than there is".to_owned()))?;
    let reply: RestReply = serde_json::from_slice(json).map_err(|problem| error(problem.to_string()))?;
    let mut outputs = Vec::new();
    for output in &reply.outputs {
        let (name, contents) = output.read(&mut binary).map_err(|problem| error(problem.message))?;
        let shape = output.shape.iter().map(|&size| usize::try_from(size).unwrap_or(usize::MAX)).collect();
        outputs.push(Output { name, shape, data: contents.output() });
    }
    let wanted = Wanted { id: Some(message.id.clone()), outputs: Vec::new(), binary_outputs: true };
    // No task: what the host calls its outputs stands.
    let task = TaskKind::Classify { labels: Vec::new(), flagged: None, pairs: false, thresholds: Vec::new() };
    wanted.message(form, &message.model_name, facts, &task, outputs)
}

#[derive(serde::Deserialize)]
struct RestReply {
    outputs: Vec<HeaderInput>,
}

/// The reply to `ServerMetadata`, which says what `GET /v2` says.
pub fn server_metadata_message() -> ServerMetadataResponse {
    let ServerMetadata { name, version, extensions } = ServerMetadata::OWN;
    let extensions = extensions.map(str::to_owned).to_vec();
    ServerMetadataResponse { name: name.to_owned(), version: version.to_owned(), extensions }
}

/// The reply to `ModelMetadata`, which says what `GET /v2/models/{m}` says.
pub fn model_metadata_message(
    name: &str,
    facts: &Facts,
    manifest: &Manifest,
    program: &Program,
) -> ModelMetadataResponse {
    metadata_message(model_metadata(name, facts, manifest, program))
}

/// The same of metadata as REST has it.
pub fn metadata_message(metadata: ModelMetadata) -> ModelMetadataResponse {
    let tensors = |tensors: Vec<super::TensorMetadata>| {
        let message = |super::TensorMetadata { name, datatype, shape }| TensorMetadata { name, datatype, shape };
        tensors.into_iter().map(message).collect()
    };
    ModelMetadataResponse {
        name: metadata.name,
        versions: metadata.versions,
        platform: metadata.platform.to_owned(),
        inputs: tensors(metadata.inputs),
        outputs: tensors(metadata.outputs),
    }
}

/// Parameters as JSON has them; those without a value are left out.
fn json_parameters(parameters: HashMap<String, InferParameter>) -> Map<String, Value> {
    let value = |choice: ParameterChoice| match choice {
        ParameterChoice::BoolParam(x) => x.into(),
        ParameterChoice::Int64Param(x) => x.into(),
        ParameterChoice::Uint64Param(x) => x.into(),
        ParameterChoice::DoubleParam(x) => x.into(),
        ParameterChoice::StringParam(x) => x.into(),
    };
    parameters.into_iter().filter_map(|(name, parameter)| Some((name, value(parameter.parameter_choice?)))).collect()
}

#[cfg(test)]
mod tests {
    use highroad_package::Digest;
    use highroad_task::{Answer, Input};

    use super::*;
    use crate::protocol::oip::{Query, task_outputs};

    fn input(name: &str, datatype: &str, shape: &[i64]) -> InferInputTensor {
        InferInputTensor {
            name: name.to_owned(),
            datatype: datatype.to_owned(),
            shape: shape.to_vec(),
            ..Default::default()
        }
    }

    fn request(input: InferInputTensor, raw: &[&[u8]]) -> ModelInferRequest {
        let raw_input_contents = raw.iter().map(|bytes| bytes.to_vec()).collect();
        ModelInferRequest { inputs: vec![input], raw_input_contents, ..Default::default() }
    }

    fn refused(message: ModelInferRequest) -> String {
        infer_request(message).unwrap_err().message
    }

    #[test]
    fn texts_come_raw_or_typed() {
        let raw = request(input("text", "BYTES", &[2]), &[b"\x01\0\0\0a\x02\0\0\0\xc3\xa9"]);
        let contents = InferTensorContents { bytes_contents: vec![b"a".to_vec(), "é".into()], ..Default::default() };
        let typed = request(InferInputTensor { contents: Some(contents), ..input("text", "BYTES", &[2, 1]) }, &[]);
        for (message, expected) in [(raw, Form::Raw), (typed, Form::Typed)] {
            let (request, form) = infer_request(message).unwrap();
            assert_eq!(form, expected);
            let Query::Rows(rows) = request.query(&[]).unwrap().0 else { panic!("not rows") };
            assert_eq!(rows, ["a", "é"].map(|text| Input::Text(text.to_owned())));
        }
    }

    #[test]
    fn what_does_not_hold_together_is_refused() {
        let both = InferInputTensor { contents: Some(InferTensorContents::default()), ..input("x", "INT64", &[1]) };
        let ints = |int_contents: Vec<i32>, datatype| InferInputTensor {
            contents: Some(InferTensorContents { int_contents, ..Default::default() }),
            ..input("x", datatype, &[1])
        };
        let nan = f32::NAN.to_le_bytes();
        for (message, reason) in [
            (request(both, &[&[0; 8]]), "both `contents` and `raw_input_contents`"),
            (request(input("x", "INT64", &[1]), &[&[0; 8], &[0; 8]]), "1 inputs and 2 entries"),
            (request(input("x", "INT64", &[-1]), &[&[0; 8]]), "is negative"),
            (request(input("x", "INT64", &[2]), &[&[0; 8]]), "does not take 8 bytes"),
            (request(input("x", "INT64", &[i64::MAX, 3]), &[&[0; 8]]), "too large"),
            (request(input("x", "INT64", &[1; 17]), &[&[0; 8]]), "17 dimensions"),
            (request(input("x", "INT128", &[1]), &[&[0; 8]]), "`INT128` is not taken"),
            (request(input("x", "FP32", &[1]), &[&nan]), "not a number"),
            (request(input("x", "INT64", &[1]), &[]), "takes 1 elements of INT64, its `contents` have 0"),
            (request(ints(vec![1], "INT64"), &[]), "takes 1 elements of INT64, its `contents` have 0"),
            (request(ints(vec![128], "INT8"), &[]), "outside the range of INT8"),
            (request(ints(vec![1], "FP16"), &[]), "`raw_input_contents` only"),
            (request(input("x", "BYTES", &[1]), &[b"\xff\xff\xff\xffa"]), "longer than the data"),
        ] {
            let found = refused(message);
            assert!(found.contains(reason), "{found} is not about {reason}");
        }
    }

    #[test]
    fn outputs_go_as_the_inputs_came() {
        let task = TaskKind::Classify {
            labels: vec!["no".to_owned(), "yes".to_owned()],
            flagged: None,
            pairs: false,
            thresholds: Vec::new(),
        };
        let answers = [Answer::Class { label: "yes".to_owned(), scores: vec![0.25, 0.75] }];
        let facts = Facts {
            member: "m".to_owned(),
            version: "m:7".to_owned(),
            package: Digest::of(b"p"),
            verdict: None,
            evidence: "development",
            overridden: None,
            development: None,
            numerics_id: "n".to_owned(),
            loaded_at: "2026-11-23T09:00:00Z".to_owned(),
        };
        let reply = |form: Form| {
            let wanted = Wanted { id: Some("mine".to_owned()), outputs: Vec::new(), binary_outputs: true };
            wanted.message(form, "m", &facts, &task, task_outputs(&task, &answers)).unwrap()
        };
        let raw = reply(Form::Raw);
        assert_eq!((raw.id.as_str(), raw.model_version.as_str()), ("mine", "7"));
        assert_eq!(raw.raw_output_contents, [&b"\x03\0\0\0yes"[..], &[0, 0, 128, 62, 0, 0, 64, 63]]);
        assert!(raw.outputs.iter().all(|output| output.contents.is_none()));
        let typed = reply(Form::Typed);
        let contents = |i: usize| typed.outputs[i].contents.clone().unwrap();
        assert_eq!((contents(0).bytes_contents, contents(1).fp32_contents), (vec![b"yes".to_vec()], vec![0.25, 0.75]));
        assert!(typed.raw_output_contents.is_empty());
    }
}
