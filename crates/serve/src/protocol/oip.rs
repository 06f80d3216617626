//! The Open Inference Protocol v2 over REST, with the binary tensor and classification extensions.
//!
//! A request holds either the one input `text` (BYTES, one string a row) or `image` (BYTES, one encoded picture a row), or two texts side
//! by side (`text` and `text_pair`, or one `query` and `documents`), answered through the task, or every input of the program by its name, answered by the program itself. Binary data follows the JSON in the order of the tensors; lengths
//! are checked before anything is read.

pub mod grpc;

use std::collections::BTreeMap;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use highroad_package::{Manifest, Task, TaskKind};
use highroad_service::access::Priority;
use highroad_service::{Kind, Problem};
use highroad_task::raw::{DType, Dim, Program, Storage, Tensor, TensorSpec, row_major_bytes};
use highroad_task::{Answer, Input, Prompt};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use crate::protocol::similarity::Pairs;
use crate::protocol::{prompts, rerank};
use crate::revision::{Facts, Stats};

/// The header that says where the JSON ends and binary data begins.
pub const HEADER_LENGTH: &str = "inference-header-content-length";
/// The input that goes through the task of a model that reads.
pub const TEXT: &str = "text";
/// The second text of a pair.
const TEXT_PAIR: &str = "text_pair";
const QUERY: &str = "query";
const DOCUMENTS: &str = "documents";
/// Most bytes of a query, counted with every document.
const MAX_PAIRS_BYTES: usize = 16 << 20;
/// The input that goes through the task of a model that sees: PNG, JPEG or WebP; base64 where the data is JSON.
pub const IMAGE: &str = "image";

const MAX_DIMS: usize = 16;

/// `POST /v2/models/{m}/infer`
#[derive(Debug)]
pub struct InferRequest {
    /// The client's own name for the request, given back.
    pub id: Option<String>,
    /// How long the client is willing to wait.
    pub timeout: Option<Duration>,
    /// How urgent the client says it is.
    pub priority: Option<Priority>,
    /// The package's prompt that goes before texts.
    prompt: Option<Prompt>,
    inputs: Vec<(String, Contents)>,
    outputs: Vec<Requested>,
    binary_outputs: bool,
}

#[derive(Debug)]
enum Contents {
    /// BYTES as JSON, which has only texts.
    Texts(Vec<String>),
    /// BYTES as binary data.
    Bytes(Vec<Vec<u8>>),
    Tensor(Tensor),
}

/// What a request asks of a model.
#[derive(Debug)]
pub enum Query {
    /// Texts or images for the task.
    Rows(Vec<Input>),
    /// Pairs of texts, for a classifier of them or to be compared by an embedder.
    Pairs(Pairs),
    /// Inputs of the program, in its order.
    Program(Vec<Tensor>),
}

/// How one output is wanted.
#[derive(Debug)]
struct Requested {
    name: String,
    binary: Option<bool>,
    classes: Option<usize>,
}

/// How a request wants its outputs.
#[derive(Debug)]
pub struct Wanted {
    id: Option<String>,
    outputs: Vec<Requested>,
    binary_outputs: bool,
}

/// A finished tensor on its way out.
#[derive(Debug)]
pub struct Output {
    name: String,
    shape: Vec<usize>,
    data: OutputData,
}

#[derive(Debug)]
enum OutputData {
    Texts(Vec<String>),
    /// Of another server, which may be no texts.
    Bytes(Vec<Vec<u8>>),
    Elements(DType, Vec<u8>),
}

/// A reply's body and, where it has binary data, the length of its JSON.
#[derive(Debug)]
pub struct Reply {
    /// JSON, followed by binary data if any.
    pub body: Vec<u8>,
    /// For [`HEADER_LENGTH`].
    pub json_bytes: Option<usize>,
}

#[derive(Deserialize)]
struct Header {
    #[serde(default)]
    id: Option<String>,
    inputs: Vec<HeaderInput>,
    #[serde(default)]
    outputs: Vec<HeaderOutput>,
    #[serde(default)]
    parameters: Map<String, Value>,
}

#[derive(Deserialize)]
struct HeaderInput {
    name: String,
    datatype: String,
    shape: Vec<u64>,
    #[serde(default)]
    data: Option<Value>,
    #[serde(default)]
    parameters: Map<String, Value>,
}

#[derive(Deserialize)]
struct HeaderOutput {
    name: String,
    #[serde(default)]
    parameters: Map<String, Value>,
}

impl InferRequest {
    /// Reads a body whose first `json_bytes` bytes are JSON (all of it if `None`; with 0 the body is one raw text, or else
    /// one encoded image).
    pub fn parse(body: &[u8], json_bytes: Option<usize>) -> Result<Self, Problem> {
        if json_bytes == Some(0) {
            return Ok(Self::raw(body));
        }
        let split = json_bytes.unwrap_or(body.len());
        let (json, mut binary) = body
            .split_at_checked(split)
            .ok_or_else(|| invalid(format!("`{HEADER_LENGTH}` is {split}, but the body has {} bytes", body.len())))?;
        let header: Header = serde_json::from_slice(json)
            .map_err(|error| invalid(format!("the request's JSON is not valid: {error}")))?;
        let inputs = header.inputs.iter().map(|input| input.read(&mut binary)).collect::<Result<Vec<_>, Problem>>()?;
        if !binary.is_empty() {
            return Err(invalid(format!("{} bytes of binary data belong to no input", binary.len())));
        }
        let outputs = header.outputs.iter().map(HeaderOutput::read).collect::<Result<Vec<_>, Problem>>()?;
        let timeout = match header.parameters.get("timeout") {
            None | Some(Value::Null) => None,
            Some(value) => Some(micros(value)?),
        };
        let priority = priority(header.parameters.get("priority"))?;
        let prompt = prompts::named(&header.parameters)?;
        let binary_outputs = flag(&header.parameters, "binary_data_output")?.unwrap_or(false);
        Ok(Self { id: header.id, timeout, priority, prompt, inputs, outputs, binary_outputs })
    }

    /// Whether it is about texts, and not about tensors.
    pub fn is_texts(&self) -> bool {
        matches!(self.inputs.as_slice(), [(name, Contents::Texts(_) | Contents::Bytes(_))] if name == TEXT)
    }

    fn raw(body: &[u8]) -> Self {
        // No PNG and no JPEG is UTF-8: both begin with a byte that is not.
        let name = if std::str::from_utf8(body).is_ok() { TEXT } else { IMAGE };
        let inputs = vec![(name.to_owned(), Contents::Bytes(vec![body.to_vec()]))];
        Self {
            id: None,
            timeout: None,
            priority: None,
            prompt: None,
            inputs,
            outputs: Vec::new(),
            binary_outputs: true,
        }
    }

    /// Splits the request into what it asks of a model with these inputs and how it wants the answer.
    pub fn query(self, specs: &[TensorSpec]) -> Result<(Query, Wanted), Problem> {
        self.query_of(specs, "`text` or `image` alone, or ")
    }

    /// The same of a model that takes `task_inputs`, as errors name them; see [`task_inputs`].
    pub fn query_of(self, specs: &[TensorSpec], task_inputs: &str) -> Result<(Query, Wanted), Problem> {
        let Self { id, inputs, outputs, binary_outputs, prompt, .. } = self;
        let query = query(inputs, specs, task_inputs)?.prompted(prompt)?;
        Ok((query, Wanted { id, outputs, binary_outputs }))
    }
}

impl Query {
    fn prompted(self, prompt: Option<Prompt>) -> Result<Self, Problem> {
        let is_text = |rows: &[Input]| rows.iter().all(|row| matches!(row, Input::Text(_)));
        match (self, prompt) {
            (query, None) => Ok(query),
            (Self::Pairs(pairs), prompt) => Ok(Self::Pairs(Pairs { prompt, ..pairs })),
            (Self::Rows(rows), prompt) if is_text(&rows) => {
                Ok(Self::Rows(rows.into_iter().map(|row| row.prompted(prompt.as_ref())).collect()))
            }
            _ => Err(invalid(format!("parameter `prompt_name` goes with the input `{TEXT}` of a model that embeds"))),
        }
    }
}

/// The route of its requests in the request log, with or without a version and over gRPC too.
pub const ROUTE: &str = "/v2/models/infer";

/// What a request to a model may hold in place of its program's tensors, in words before these.
pub fn task_inputs(task: &Task) -> &'static str {
    match &task.kind {
        TaskKind::Tensors => "",
        TaskKind::Rerank => "`query` and `documents`, or ",
        TaskKind::Classify { pairs: true, .. } => "`text` and `text_pair`, or ",
        _ if task.image.is_some() => "`image` alone, or ",
        TaskKind::Embed { .. } => "`text` alone, `text` and `text_pair`, or ",
        _ => "`text` alone, or ",
    }
}

fn query(mut inputs: Vec<(String, Contents)>, specs: &[TensorSpec], task_inputs: &str) -> Result<Query, Problem> {
    if let Some(query) = pairs(&mut inputs)? {
        return Ok(query);
    }
    if let [(name, contents @ (Contents::Texts(_) | Contents::Bytes(_)))] = inputs.as_mut_slice()
        && (name == TEXT || name == IMAGE)
    {
        let rows = if name == TEXT { texts(contents)? } else { images(contents)? };
        return if rows.is_empty() { Err(invalid(format!("`{name}` has no rows"))) } else { Ok(Query::Rows(rows)) };
    }
    let known = || specs.iter().map(|spec| format!("`{}`", spec.name)).collect::<Vec<_>>().join(", ");
    let mut tensors: Vec<Option<Tensor>> = vec![None; specs.len()];
    for (name, contents) in inputs {
        let Contents::Tensor(tensor) = contents else {
            return Err(invalid(format!("input `{name}`: BYTES is the datatype of `{TEXT}` or `{IMAGE}` alone")));
        };
        let spec_idx = specs
            .iter()
            .position(|spec| spec.name == name)
            .ok_or_else(|| invalid(format!("input `{name}` does not exist; give {task_inputs}{}", known())))?;
        if tensors[spec_idx].replace(tensor).is_some() {
            return Err(invalid(format!("input `{name}` is given twice")));
        }
    }
    let missing =
        |idx: usize| invalid(format!("input `{}` is missing; give {task_inputs}{}", specs[idx].name, known()));
    let tensors = tensors
        .into_iter()
        .enumerate()
        .map(|(idx, tensor)| tensor.ok_or_else(|| missing(idx)))
        .collect::<Result<_, _>>()?;
    Ok(Query::Program(tensors))
}

/// Two texts side by side: `text` and `text_pair`, row by row, or one `query` beside each of `documents`.
fn pairs(inputs: &mut [(String, Contents)]) -> Result<Option<Query>, Problem> {
    inputs.sort_by(|(left, _), (right, _)| left.cmp(right));
    let (first, second, is_query) = match inputs {
        [(documents, seconds), (query, firsts)] if documents == DOCUMENTS && query == QUERY => (firsts, seconds, true),
        [(text, firsts), (pair, seconds)] if text == TEXT && pair == TEXT_PAIR => (firsts, seconds, false),
        _ => return Ok(None),
    };
    let strings = |contents: &mut Contents| -> Result<Vec<String>, Problem> {
        let text = |input| if let Input::Text(text) = input { Some(text) } else { None };
        Ok(texts(contents)?.into_iter().filter_map(text).collect())
    };
    let (mut firsts, seconds) = (strings(first)?, strings(second)?);
    let is_shared = is_query && firsts.len() == 1;
    if seconds.is_empty() || !is_shared && firsts.len() != seconds.len() {
        let [one, other] = if is_query { [QUERY, DOCUMENTS] } else { [TEXT, TEXT_PAIR] };
        let (n_firsts, n_seconds) = (firsts.len(), seconds.len());
        return Err(invalid(format!("{n_firsts} rows of `{one}` do not go with {n_seconds} of `{other}`")));
    }
    if is_shared {
        // The query counts with every document: a small body must not ask for a large work.
        let n_bytes = firsts[0].len().saturating_mul(seconds.len());
        if seconds.len() > rerank::MAX_DOCUMENTS || n_bytes > MAX_PAIRS_BYTES {
            return Err(invalid(format!(
                "{} pairs with {n_bytes} bytes of a query are more than are taken",
                seconds.len()
            )));
        }
        firsts = vec![firsts.remove(0); seconds.len()];
    }
    let pairs = firsts.into_iter().zip(seconds);
    let pair = |(query, document)| Input::Pair { query, document };
    Ok(Some(match is_query {
        true => Query::Rows(pairs.map(pair).collect()),
        false => Query::Pairs(Pairs { pairs: pairs.map(|(first, second)| [first, second]).collect(), prompt: None }),
    }))
}

fn texts(contents: &mut Contents) -> Result<Vec<Input>, Problem> {
    let utf8 =
        |bytes| String::from_utf8(bytes).map_err(|_| invalid(format!("input `{TEXT}`: an element is not UTF-8 text")));
    match contents {
        Contents::Texts(texts) => Ok(std::mem::take(texts).into_iter().map(Input::Text).collect()),
        Contents::Bytes(rows) => std::mem::take(rows).into_iter().map(|row| utf8(row).map(Input::Text)).collect(),
        Contents::Tensor(_) => Ok(Vec::new()),
    }
}

fn images(contents: &mut Contents) -> Result<Vec<Input>, Problem> {
    let decoded = |text: &String| {
        let bytes = BASE64_STANDARD.decode(text);
        let bytes = bytes.map_err(|error| invalid(format!("input `{IMAGE}`: an element is not base64: {error}")));
        bytes.map(|bytes| Input::Image(bytes.into()))
    };
    match contents {
        Contents::Texts(texts) => texts.iter().map(decoded).collect(),
        Contents::Bytes(rows) => Ok(std::mem::take(rows).into_iter().map(|row| Input::Image(row.into())).collect()),
        Contents::Tensor(_) => Ok(Vec::new()),
    }
}

impl HeaderInput {
    fn read(&self, binary: &mut &[u8]) -> Result<(String, Contents), Problem> {
        let error = |reason: String| invalid(format!("input `{}`: {reason}", self.name));
        let (shape, n) = self.checked_shape().map_err(error)?;
        let contents = match (self.binary_bytes().map_err(error)?, &self.data) {
            (Some(_), Some(_)) => return Err(error("both `data` and `binary_data_size`".to_owned())),
            (None, None) => return Err(error("neither `data` nor `binary_data_size`".to_owned())),
            (Some(size), None) => {
                let (data, rest) = binary
                    .split_at_checked(size)
                    .ok_or_else(|| error(format!("{size} bytes announced, {} left in the body", binary.len())))?;
                *binary = rest;
                self.read_binary(data, &shape, n)
            }
            (None, Some(data)) => self.read_json(data, &shape, n),
        };
        Ok((self.name.clone(), contents.map_err(error)?))
    }

    /// The sizes and their product.
    fn checked_shape(&self) -> Result<(Vec<usize>, usize), String> {
        if self.shape.len() > MAX_DIMS {
            return Err(format!("{} dimensions; at most {MAX_DIMS} are taken", self.shape.len()));
        }
        let shape: Option<Vec<usize>> = self.shape.iter().map(|&size| usize::try_from(size).ok()).collect();
        let shape = shape.ok_or("its shape is too large")?;
        let n = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size)).ok_or("its shape is too large")?;
        Ok((shape, n))
    }

    fn binary_bytes(&self) -> Result<Option<usize>, String> {
        match self.parameters.get("binary_data_size") {
            None => Ok(None),
            Some(size) => {
                let size = size.as_u64().and_then(|size| usize::try_from(size).ok());
                size.map(Some).ok_or_else(|| "`binary_data_size` is not a number of bytes".to_owned())
            }
        }
    }

    fn read_binary(&self, data: &[u8], shape: &[usize], n: usize) -> Result<Contents, String> {
        if self.datatype == "BYTES" {
            return Ok(Contents::Bytes(binary_elements(data, n)?));
        }
        let dtype = dtype(&self.datatype)?;
        let expected = n.checked_mul(dtype.size_bytes());
        if expected != Some(data.len()) {
            return Err(format!("shape {shape:?} of {} does not take {} bytes", self.datatype, data.len()));
        }
        if dtype == DType::Bool && data.iter().any(|&byte| byte > 1) {
            return Err("a BOOL is 0 or 1".to_owned());
        }
        if has_nan(data, dtype) {
            return Err("an element is not a number".to_owned());
        }
        tensor(data, dtype, shape)
    }

    fn read_json(&self, data: &Value, shape: &[usize], n: usize) -> Result<Contents, String> {
        let mut leaves = Vec::new();
        flatten(data, MAX_DIMS, &mut leaves)?;
        if leaves.len() != n {
            return Err(format!("shape {shape:?} takes {n} elements, {} were given", leaves.len()));
        }
        if self.datatype == "BYTES" {
            let texts = leaves.iter().map(|leaf| leaf.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
            return texts.map(Contents::Texts).ok_or_else(|| "an element of BYTES is not a string".to_owned());
        }
        let dtype = dtype(&self.datatype)?;
        if matches!(dtype, DType::F16 | DType::BF16) {
            return Err(format!("{} is taken as binary data only", self.datatype));
        }
        let mut bytes = Vec::with_capacity(n.saturating_mul(dtype.size_bytes()).min(data_size_hint(&leaves)));
        for leaf in leaves {
            push_element(&mut bytes, leaf, dtype).ok_or_else(|| format!("{leaf} is not a {}", self.datatype))?;
        }
        tensor(&bytes, dtype, shape)
    }
}

/// JSON cannot say it either: what comes of it is no answer, and hides the fault that made it.
fn has_nan(data: &[u8], dtype: DType) -> bool {
    fn any<const N: usize>(data: &[u8], is_nan: impl Fn([u8; N]) -> bool) -> bool {
        data.chunks_exact(N).any(|element| is_nan(element.try_into().unwrap_or([0; N])))
    }
    match dtype {
        DType::F16 => any(data, |x| half::f16::from_le_bytes(x).is_nan()),
        DType::BF16 => any(data, |x| half::bf16::from_le_bytes(x).is_nan()),
        DType::F32 => any(data, |x| f32::from_le_bytes(x).is_nan()),
        DType::F64 => any(data, |x| f64::from_le_bytes(x).is_nan()),
        _ => false,
    }
}

fn data_size_hint(leaves: &[&Value]) -> usize {
    leaves.len().saturating_mul(8)
}

fn tensor(bytes: &[u8], dtype: DType, shape: &[usize]) -> Result<Contents, String> {
    let mut strides = vec![1; shape.len()];
    for dim in (1..shape.len()).rev() {
        strides[dim - 1] = strides[dim] * shape[dim].max(1);
    }
    let tensor = Tensor::from_storage(Storage::copy_of(bytes), dtype, shape, &strides, 0);
    tensor.map(Contents::Tensor).map_err(|error| error.to_string())
}

fn flatten<'a>(value: &'a Value, depth: usize, leaves: &mut Vec<&'a Value>) -> Result<(), String> {
    match value {
        Value::Array(_) if depth == 0 => Err("`data` is nested too deeply".to_owned()),
        Value::Array(items) => items.iter().try_for_each(|item| flatten(item, depth - 1, leaves)),
        leaf => {
            leaves.push(leaf);
            Ok(())
        }
    }
}

fn binary_elements(mut data: &[u8], n: usize) -> Result<Vec<Vec<u8>>, String> {
    let mut elements = Vec::new();
    while !data.is_empty() {
        let (length, rest) = data.split_first_chunk::<4>().ok_or("a BYTES element is cut off in its length")?;
        let length = u32::from_le_bytes(*length) as usize;
        let (element, rest) = rest.split_at_checked(length).ok_or("a BYTES element is longer than the data")?;
        elements.push(element.to_vec());
        data = rest;
    }
    if elements.len() != n {
        return Err(format!("its shape takes {n} elements, {} were given", elements.len()));
    }
    Ok(elements)
}

fn push_element(bytes: &mut Vec<u8>, leaf: &Value, dtype: DType) -> Option<()> {
    match dtype {
        DType::Bool => bytes.push(u8::from(leaf.as_bool()?)),
        DType::U8 => bytes.push(u8::try_from(leaf.as_u64()?).ok()?),
        DType::I8 => bytes.extend(i8::try_from(leaf.as_i64()?).ok()?.to_le_bytes()),
        DType::I16 => bytes.extend(i16::try_from(leaf.as_i64()?).ok()?.to_le_bytes()),
        DType::I32 => bytes.extend(i32::try_from(leaf.as_i64()?).ok()?.to_le_bytes()),
        DType::I64 => bytes.extend(leaf.as_i64()?.to_le_bytes()),
        DType::F32 => bytes.extend(finite_f32(leaf.as_f64()?)?.to_le_bytes()),
        DType::F64 => bytes.extend(leaf.as_f64()?.to_le_bytes()),
        _ => return None,
    }
    Some(())
}

fn finite_f32(value: f64) -> Option<f32> {
    Some(value as f32).filter(|value| value.is_finite())
}

impl HeaderOutput {
    fn read(&self) -> Result<Requested, Problem> {
        let classes = match self.parameters.get("classification") {
            None => None,
            Some(k) => Some(
                k.as_u64()
                    .and_then(|k| usize::try_from(k).ok())
                    .filter(|&k| k > 0)
                    .ok_or_else(|| invalid(format!("output `{}`: `classification` is not a count", self.name)))?,
            ),
        };
        Ok(Requested { name: self.name.clone(), binary: flag(&self.parameters, "binary_data")?, classes })
    }
}

fn flag(parameters: &Map<String, Value>, key: &str) -> Result<Option<bool>, Problem> {
    match parameters.get(key) {
        None => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(_) => Err(invalid(format!("parameter `{key}` is true or false"))),
    }
}

/// Triton's numbers, of which 1 is the most urgent and 0 says nothing, or the names of the classes.
fn priority(value: Option<&Value>) -> Result<Option<Priority>, Problem> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(None) };
    let number = value.as_u64().or_else(|| value.as_str().and_then(|text| text.parse().ok()));
    match (number, value.as_str()) {
        (Some(0), _) => Ok(None),
        (Some(1), _) => Ok(Some(Priority::High)),
        (Some(2), _) => Ok(Some(Priority::Normal)),
        (Some(_), _) => Ok(Some(Priority::Low)),
        (None, name) => {
            let named = name.and_then(Priority::parse);
            let wrong = || invalid("parameter `priority` is a number, 1 the most urgent, or `high`, `normal` or `low`");
            named.map(Some).ok_or_else(wrong)
        }
    }
}

fn micros(value: &Value) -> Result<Duration, Problem> {
    let micros = value.as_u64().or_else(|| value.as_str().and_then(|text| text.parse().ok()));
    let micros = micros.ok_or_else(|| invalid("parameter `timeout` is a number of microseconds"))?;
    Ok(Duration::from_micros(micros))
}

/// A reply of another server with the name and the version that a member has here. Errors if it is none.
pub fn rename(
    body: &[u8],
    json_bytes: Option<usize>,
    member: &str,
    facts: &Facts,
) -> Result<(Vec<u8>, Option<usize>), Problem> {
    let error = || Problem::new(Kind::BadGateway, format!("the host of `{member}` answered with no tensors"));
    let (json, binary) = body.split_at_checked(json_bytes.unwrap_or(body.len())).ok_or_else(error)?;
    let mut reply: Map<String, Value> = serde_json::from_slice(json).map_err(|_| error())?;
    if !reply.get("outputs").is_some_and(Value::is_array) {
        return Err(error());
    }
    reply.insert("model_name".to_owned(), member.into());
    reply.insert("model_version".to_owned(), version(facts).into());
    let mut renamed = serde_json::to_vec(&reply).map_err(|_| error())?;
    let json_bytes = json_bytes.map(|_| renamed.len());
    renamed.extend_from_slice(binary);
    Ok((renamed, json_bytes))
}

/// A request whose tensors are binary data, of which the first `json_bytes` are JSON, as a host takes it that reads JSON alone. Errors as
/// [`InferRequest::parse`], and for datatypes that JSON has no place for.
pub fn as_json(body: &[u8], json_bytes: usize) -> Result<Vec<u8>, Problem> {
    let split = body.split_at_checked(json_bytes).filter(|_| json_bytes > 0);
    let (json, mut binary) =
        split.ok_or_else(|| invalid("the host of this model takes JSON, and the body has none"))?;
    let not_valid = |error: serde_json::Error| invalid(format!("the request's JSON is not valid: {error}"));
    let header: Header = serde_json::from_slice(json).map_err(not_valid)?;
    let mut request: Map<String, Value> = serde_json::from_slice(json).map_err(not_valid)?;
    let mut tensors = Vec::with_capacity(header.inputs.len());
    for input in &header.inputs {
        let (name, contents) = input.read(&mut binary)?;
        let shape = input.shape.iter().map(|&size| usize::try_from(size).unwrap_or(usize::MAX)).collect();
        tensors.push(Output { name, shape, data: contents.output() }.json_data()?);
    }
    let entries = request.get_mut("inputs").and_then(Value::as_array_mut);
    for (entry, data) in entries.into_iter().flatten().zip(tensors) {
        entry["data"] = data;
        without(entry, "binary_data_size");
    }
    for entry in request.get_mut("outputs").and_then(Value::as_array_mut).into_iter().flatten() {
        without(entry, "binary_data");
    }
    let mut request = Value::Object(request);
    without(&mut request, "binary_data_output");
    Ok(request.to_string().into_bytes())
}

fn without(entry: &mut Value, parameter: &str) {
    if let Some(parameters) = entry.get_mut("parameters").and_then(Value::as_object_mut) {
        parameters.remove(parameter);
    }
}

impl Contents {
    fn write_binary(&self, to: &mut Vec<u8>) {
        let mut element = |bytes: &[u8]| {
            to.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
            to.extend(bytes);
        };
        match self {
            Self::Texts(texts) => texts.iter().for_each(|text| element(text.as_bytes())),
            Self::Bytes(rows) => rows.iter().for_each(|row| element(row)),
            Self::Tensor(tensor) => to.extend(row_major_bytes(tensor)),
        }
    }

    fn output(self) -> OutputData {
        match self {
            Self::Texts(texts) => OutputData::Bytes(texts.into_iter().map(String::into_bytes).collect()),
            Self::Bytes(rows) => OutputData::Bytes(rows),
            Self::Tensor(tensor) => OutputData::Elements(tensor.dtype(), row_major_bytes(&tensor)),
        }
    }
}

/// The output of an embedder that compared pairs: `similarity`, the cosine of each.
pub fn similarity_output(cosines: &[f32]) -> Output {
    let bytes = cosines.iter().flat_map(|cosine| cosine.to_le_bytes()).collect();
    let data = OutputData::Elements(DType::F32, bytes);
    Output { name: "similarity".to_owned(), shape: vec![cosines.len()], data }
}

/// The outputs of a task's answers: `label` and `scores`, `embedding`, or `relevance` and `logit`.
pub fn task_outputs(task: &TaskKind, answers: &[Answer]) -> Vec<Output> {
    let n_rows = answers.len();
    let bytes = answers.iter().flat_map(|answer| answer.values()).flat_map(|value| value.to_le_bytes()).collect();
    let elements = |name: &str, width: usize| Output {
        name: name.to_owned(),
        shape: vec![n_rows, width],
        data: OutputData::Elements(DType::F32, bytes),
    };
    match task {
        TaskKind::Classify { labels, .. } | TaskKind::Recommend { items: labels } => {
            let label = |answer: &Answer| answer.label().unwrap_or_default().into_owned();
            let data = OutputData::Texts(answers.iter().map(label).collect());
            vec![Output { name: "label".to_owned(), shape: vec![n_rows], data }, elements("scores", labels.len())]
        }
        TaskKind::Rerank => {
            let scores = answers.iter().filter_map(Answer::score).flat_map(f32::to_le_bytes).collect();
            let relevance = OutputData::Elements(DType::F32, scores);
            let relevance = Output { name: "relevance".to_owned(), shape: vec![n_rows], data: relevance };
            vec![relevance, Output { shape: vec![n_rows], ..elements("logit", 1) }]
        }
        TaskKind::Embed { dimensions, .. } => vec![elements("embedding", *dimensions as usize)],
        _ => Vec::new(),
    }
}

/// The outputs of the program itself, by its own names.
pub fn program_outputs(specs: &[TensorSpec], outputs: &[Tensor]) -> Vec<Output> {
    let output = |(spec, tensor): (&TensorSpec, &Tensor)| Output {
        name: spec.name.clone(),
        shape: tensor.shape().to_vec(),
        data: OutputData::Elements(tensor.dtype(), row_major_bytes(tensor)),
    };
    specs.iter().zip(outputs).map(output).collect()
}

impl Wanted {
    /// The reply with the outputs that were asked for, or with all of them. Errors if one does not exist or cannot be
    /// written as asked.
    pub fn reply(
        self,
        model: &str,
        facts: &Facts,
        task: &TaskKind,
        mut outputs: Vec<Output>,
    ) -> Result<Reply, Problem> {
        if !self.outputs.is_empty() {
            outputs = select(&self.outputs, outputs, task)?;
        }
        let (mut entries, mut binary) = (Vec::with_capacity(outputs.len()), Vec::new());
        for output in &outputs {
            let asked = self.outputs.iter().find(|requested| requested.name == output.name);
            let as_binary = asked.and_then(|requested| requested.binary).unwrap_or(self.binary_outputs);
            let (data, parameters) = if as_binary {
                let before = binary.len();
                output.write_binary(&mut binary);
                (None, Some(BinaryData { binary_data_size: binary.len() - before }))
            } else {
                (Some(output.json_data()?), None)
            };
            let (name, datatype, shape) = (&*output.name, output.datatype(), &*output.shape);
            entries.push(InferOutput { data, datatype, name, parameters, shape });
        }
        let reply = InferReply { id: self.id, model_name: model, model_version: version(facts), outputs: entries };
        let mut body = serde_json::to_vec(&reply).expect("plain data with text keys is JSON");
        let has_binary = outputs.iter().any(|output| {
            let asked = self.outputs.iter().find(|requested| requested.name == output.name);
            asked.and_then(|requested| requested.binary).unwrap_or(self.binary_outputs)
        });
        let json_bytes = has_binary.then_some(body.len());
        body.extend_from_slice(&binary);
        Ok(Reply { body, json_bytes })
    }
}

/// The reply to [`InferRequest`]; binary data may follow it.
#[derive(Serialize, JsonSchema)]
pub(crate) struct InferReply<'a> {
    /// The request's, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    model_name: &'a str,
    model_version: String,
    outputs: Vec<InferOutput<'a>>,
}

#[derive(Serialize, JsonSchema)]
struct InferOutput<'a> {
    /// All elements in row-major order: numbers, booleans or texts. Absent where they are binary data.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<Value>>")]
    data: Option<Value>,
    datatype: &'static str,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<BinaryData>,
    shape: &'a [usize],
}

#[derive(Serialize, JsonSchema)]
struct BinaryData {
    /// Bytes of this output behind the JSON.
    binary_data_size: usize,
}

fn select(requested: &[Requested], outputs: Vec<Output>, task: &TaskKind) -> Result<Vec<Output>, Problem> {
    let names = || outputs.iter().map(|output| format!("`{}`", output.name)).collect::<Vec<_>>().join(", ");
    let known = names();
    let mut outputs: Vec<Option<Output>> = outputs.into_iter().map(Some).collect();
    let mut take = |name: &str| {
        let place = outputs.iter_mut().find(|output| output.as_ref().is_some_and(|output| output.name == name));
        place.and_then(Option::take)
    };
    let mut selected = Vec::with_capacity(requested.len());
    for requested in requested {
        let output = take(&requested.name).ok_or_else(|| {
            invalid(format!("output `{}` does not exist or is asked for twice; there is {known}", requested.name))
        })?;
        selected.push(match requested.classes {
            None => output,
            Some(k) => output.classes(k, task)?,
        });
    }
    Ok(selected)
}

impl Output {
    fn datatype(&self) -> &'static str {
        match &self.data {
            OutputData::Texts(_) | OutputData::Bytes(_) => "BYTES",
            OutputData::Elements(dtype, _) => datatype(*dtype),
        }
    }

    fn write_binary(&self, to: &mut Vec<u8>) {
        match &self.data {
            OutputData::Texts(texts) => {
                for text in texts {
                    to.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
                    to.extend(text.as_bytes());
                }
            }
            OutputData::Bytes(rows) => {
                for row in rows {
                    to.extend(u32::try_from(row.len()).unwrap_or(u32::MAX).to_le_bytes());
                    to.extend(row);
                }
            }
            OutputData::Elements(_, bytes) => to.extend_from_slice(bytes),
        }
    }

    fn json_data(&self) -> Result<Value, Problem> {
        let not_json = || {
            let (name, datatype) = (&self.name, self.datatype());
            let why = match &self.data {
                OutputData::Elements(DType::F32 | DType::F64, _) => "has an infinity or a NaN, which JSON cannot say",
                _ => "cannot be written as JSON",
            };
            invalid(format!("output `{name}` ({datatype}) {why}; `binary_data` has it as it is"))
        };
        match &self.data {
            OutputData::Texts(texts) => Ok(json!(texts)),
            OutputData::Bytes(rows) => {
                let texts: Result<Vec<&str>, _> = rows.iter().map(|row| std::str::from_utf8(row)).collect();
                texts.map(|texts| json!(texts)).map_err(|_| not_json())
            }
            OutputData::Elements(dtype, bytes) => bytes
                .chunks_exact(dtype.size_bytes())
                .map(|element| json_element(*dtype, element))
                .collect::<Option<Vec<Value>>>()
                .map(Value::Array)
                .ok_or_else(not_json),
        }
    }

    // The classification extension: the `k` highest along the last dimension as `value:index` or `value:index:label`.
    fn classes(self, k: usize, task: &TaskKind) -> Result<Self, Problem> {
        let OutputData::Elements(DType::F32, bytes) = &self.data else {
            return Err(invalid(format!("output `{}` has no FP32 scores to classify", self.name)));
        };
        let width = *self.shape.last().unwrap_or(&0);
        if width == 0 {
            return Err(invalid(format!("output `{}` has no classes", self.name)));
        }
        let labels = match task {
            TaskKind::Classify { labels, .. } | TaskKind::Recommend { items: labels } if labels.len() == width => {
                labels.as_slice()
            }
            _ => &[],
        };
        let k = k.min(width);
        let texts = bytes.chunks_exact(4 * width).flat_map(|row| top_classes(row, k, labels)).collect();
        let mut shape = self.shape;
        shape.pop();
        shape.push(k);
        Ok(Self { name: self.name, shape, data: OutputData::Texts(texts) })
    }
}

fn top_classes(row: &[u8], k: usize, labels: &[String]) -> Vec<String> {
    let mut scores: Vec<(usize, f32)> =
        row.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).enumerate().collect();
    scores.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let text = |&(idx, score): &(usize, f32)| match labels.get(idx) {
        Some(label) => format!("{score}:{idx}:{label}"),
        None => format!("{score}:{idx}"),
    };
    scores[..k].iter().map(text).collect()
}

// `None` for what JSON cannot say: not-a-number, infinities and the half-width floats, which the protocol keeps binary.
fn json_element(dtype: DType, bytes: &[u8]) -> Option<Value> {
    fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
        bytes.try_into().unwrap_or([0; N])
    }
    let float = |value: f64, text: String| if value.is_finite() { serde_json::from_str(&text).ok() } else { None };
    Some(match dtype {
        DType::Bool => Value::Bool(bytes[0] != 0),
        DType::U8 => bytes[0].into(),
        DType::I8 => i8::from_le_bytes(array(bytes)).into(),
        DType::I16 => i16::from_le_bytes(array(bytes)).into(),
        DType::I32 => i32::from_le_bytes(array(bytes)).into(),
        DType::I64 => i64::from_le_bytes(array(bytes)).into(),
        DType::F32 => {
            let value = f32::from_le_bytes(array(bytes));
            // The shortest text of the f32, so that a reader gets the same bits.
            float(f64::from(value), serde_json::to_string(&value).ok()?)?
        }
        DType::F64 => f64::from_le_bytes(array(bytes)).is_finite().then(|| f64::from_le_bytes(array(bytes)).into())?,
        _ => return None,
    })
}

/// The version as the protocol's paths know it: the registry's number, else the start of the package's digest.
pub fn version(facts: &Facts) -> String {
    match facts.version.rsplit_once(':') {
        Some((_, number)) if number.parse::<u64>().is_ok() && !facts.version.contains('@') => number.to_owned(),
        _ => facts.package.hex()[..12].to_owned(),
    }
}

/// `GET /v2`
#[derive(Serialize, JsonSchema)]
pub struct ServerMetadata {
    name: &'static str,
    version: &'static str,
    /// What beyond the core of the protocol is there.
    extensions: [&'static str; 5],
}

impl ServerMetadata {
    /// Of this program.
    pub const OWN: Self = Self {
        name: "highroad",
        version: env!("CARGO_PKG_VERSION"),
        extensions: ["binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics"],
    };
}

/// `GET /v2/models/{m}`. `text` or `image` and the program's own inputs are alternatives.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[allow(missing_docs)]
pub struct ModelMetadata {
    pub name: String,
    /// The one that serves.
    pub versions: Vec<String>,
    /// `highroad_pt2`, or `hosted` where somebody else hosts it.
    pub platform: &'static str,
    pub inputs: Vec<TensorMetadata>,
    pub outputs: Vec<TensorMetadata>,
}

/// A tensor that a model takes or gives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct TensorMetadata {
    pub name: String,
    pub datatype: String,
    /// -1 where any size will do.
    #[serde(deserialize_with = "sizes")]
    pub shape: Vec<i64>,
}

// Hosts whose REST is made of gRPC write sizes as texts, as Protobuf's JSON has numbers of 64 bits.
fn sizes<'de, D: Deserializer<'de>>(shape: D) -> Result<Vec<i64>, D::Error> {
    let size = |size: &Value| size.as_i64().or_else(|| size.as_str()?.parse().ok()).unwrap_or(-1);
    Ok(Vec::<Value>::deserialize(shape)?.iter().map(size).collect())
}

/// Name, datatype and shape of a tensor that a task has.
type TaskSpec = (&'static str, &'static str, &'static [i64]);

impl TensorMetadata {
    pub(crate) fn of(&(name, datatype, shape): &TaskSpec) -> Self {
        Self { name: name.to_owned(), datatype: datatype.to_owned(), shape: shape.to_vec() }
    }
}

/// The metadata of a model of our own.
pub fn model_metadata(name: &str, facts: &Facts, manifest: &Manifest, program: &Program) -> ModelMetadata {
    ModelMetadata {
        name: name.to_owned(),
        versions: vec![version(facts)],
        platform: "highroad_pt2",
        inputs: tensors(task_input_specs(&manifest.task), program.inputs()),
        outputs: tensors(&task_output_specs(&manifest.task.kind), program.outputs()),
    }
}

fn task_input_specs(task: &Task) -> &'static [TaskSpec] {
    match task.kind {
        TaskKind::Rerank => &[(QUERY, "BYTES", &[1]), (DOCUMENTS, "BYTES", &[-1])],
        TaskKind::Classify { pairs: true, .. } | TaskKind::Embed { .. } => {
            &[(TEXT, "BYTES", &[-1]), (TEXT_PAIR, "BYTES", &[-1])]
        }
        TaskKind::Tensors => &[],
        _ if task.image.is_some() => &[(IMAGE, "BYTES", &[-1])],
        _ => &[(TEXT, "BYTES", &[-1])],
    }
}

pub(crate) fn task_output_specs(task: &TaskKind) -> Vec<TaskSpec> {
    match task {
        TaskKind::Rerank => vec![("relevance", "FP32", &[-1]), ("logit", "FP32", &[-1])],
        TaskKind::Classify { .. } | TaskKind::Recommend { .. } => {
            vec![("label", "BYTES", &[-1]), ("scores", "FP32", &[-1, -1])]
        }
        TaskKind::Embed { .. } => vec![("embedding", "FP32", &[-1, -1]), ("similarity", "FP32", &[-1])],
        _ => Vec::new(),
    }
}

fn tensors(task: &[TaskSpec], specs: &[TensorSpec]) -> Vec<TensorMetadata> {
    let of_program = |spec: &TensorSpec| TensorMetadata {
        name: spec.name.clone(),
        datatype: datatype(spec.dtype).to_owned(),
        shape: dims(spec),
    };
    task.iter().map(TensorMetadata::of).chain(specs.iter().map(of_program)).collect()
}

fn dims(spec: &TensorSpec) -> Vec<i64> {
    let dim = |dim: &Dim| match dim {
        Dim::Known(size) => i64::try_from(*size).unwrap_or(-1),
        _ => -1,
    };
    spec.sizes.iter().map(dim).collect()
}

/// `GET /v2/models/{m}/config`, as far as it has a meaning here.
pub fn model_config(name: &str, facts: &Facts, manifest: &Manifest, program: &Program) -> ModelConfig {
    let ModelMetadata { platform, inputs, outputs, .. } = model_metadata(name, facts, manifest, program);
    let config = |tensors: Vec<TensorMetadata>, optional: Option<bool>| {
        let entry = |TensorMetadata { name, datatype, shape }| {
            let data_type = if datatype == "BYTES" { "TYPE_STRING".to_owned() } else { format!("TYPE_{datatype}") };
            TensorConfig { name, data_type, dims: shape, optional }
        };
        tensors.into_iter().map(entry).collect()
    };
    let parameter = |name: &str, value: String| (name.to_owned(), ConfigParameter { string_value: value });
    let max_tokens = manifest.task.image.is_none().then(|| manifest.task.max_tokens.to_string());
    let parameters = [parameter("package", facts.package.to_string())].into_iter();
    ModelConfig {
        name: name.to_owned(),
        platform,
        backend: "highroad",
        max_batch_size: 0,
        version_policy: VersionPolicy { latest: LatestVersions { num_versions: 1 } },
        input: config(inputs, Some(true)),
        output: config(outputs, None),
        parameters: parameters.chain(max_tokens.map(|most| parameter("max_tokens", most))).collect(),
    }
}

/// The answer to `GET /v2/models/{m}/config`, with Triton's names.
#[derive(Serialize, JsonSchema)]
pub struct ModelConfig {
    name: String,
    platform: &'static str,
    backend: &'static str,
    max_batch_size: u32,
    version_policy: VersionPolicy,
    input: Vec<TensorConfig>,
    output: Vec<TensorConfig>,
    parameters: BTreeMap<String, ConfigParameter>,
}

#[derive(Serialize, JsonSchema)]
struct VersionPolicy {
    latest: LatestVersions,
}

#[derive(Serialize, JsonSchema)]
struct LatestVersions {
    num_versions: u32,
}

#[derive(Serialize, JsonSchema)]
struct TensorConfig {
    name: String,
    /// As `TYPE_FP32`.
    data_type: String,
    /// -1 where any size will do.
    dims: Vec<i64>,
    /// Of inputs, of which there are alternatives.
    #[serde(skip_serializing_if = "Option::is_none")]
    optional: Option<bool>,
}

#[derive(Serialize, JsonSchema)]
struct ConfigParameter {
    string_value: String,
}

/// The answer to `GET /v2/models/{m}/stats`.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Statistics {
    pub(crate) model_stats: Vec<ModelStatistics>,
}

#[derive(Serialize, JsonSchema)]
pub(crate) struct ModelStatistics {
    name: String,
    version: String,
    /// Milliseconds since 1970, UTC; 0 without any.
    last_inference: u64,
    /// Rows.
    inference_count: u64,
    /// Requests.
    execution_count: u64,
    inference_stats: InferStatistics,
    /// Nothing is counted by batch.
    batch_stats: [u32; 0],
}

#[derive(Serialize, JsonSchema)]
struct InferStatistics {
    success: StatisticDuration,
    fail: StatisticDuration,
    queue: StatisticDuration,
    compute_input: StatisticDuration,
    compute_infer: StatisticDuration,
    compute_output: StatisticDuration,
    cache_hit: StatisticDuration,
    cache_miss: StatisticDuration,
}

#[derive(Clone, Copy, Default, Serialize, JsonSchema)]
struct StatisticDuration {
    count: u64,
    /// All together, in nanoseconds.
    ns: u64,
}

impl ModelStatistics {
    pub(crate) fn of(name: &str, facts: &Facts, stats: &Stats) -> Self {
        use std::sync::atomic::Ordering::Relaxed;
        let n_success = stats.n_success.load(Relaxed);
        let duration = |ns: u64| StatisticDuration { count: n_success, ns };
        let nothing = StatisticDuration::default();
        Self {
            name: name.to_owned(),
            version: version(facts),
            last_inference: stats.last_ms.load(Relaxed),
            inference_count: stats.n_rows.load(Relaxed),
            execution_count: n_success,
            inference_stats: InferStatistics {
                success: duration(stats.success_ns.load(Relaxed)),
                fail: StatisticDuration { count: stats.n_failed.load(Relaxed), ns: 0 },
                queue: duration(stats.queue_ns.load(Relaxed)),
                compute_input: nothing,
                compute_infer: duration(stats.compute_ns.load(Relaxed)),
                compute_output: nothing,
                cache_hit: nothing,
                cache_miss: nothing,
            },
            batch_stats: [],
        }
    }
}

/// An entry of the answer to `POST /v2/repository/index`.
#[derive(Serialize, JsonSchema)]
pub(crate) struct RepositoryEntry {
    pub(crate) name: String,
    /// What serves; empty where nothing does.
    pub(crate) version: String,
    /// `READY`, `LOADING` or `UNAVAILABLE`.
    pub(crate) state: &'static str,
    /// Why another version does not serve; empty where none should.
    pub(crate) reason: String,
}

fn dtype(datatype: &str) -> Result<DType, String> {
    let known = ALL_DTYPES.iter().find(|(name, _)| *name == datatype);
    known.map(|(_, dtype)| *dtype).ok_or_else(|| format!("datatype `{datatype}` is not taken"))
}

fn datatype(dtype: DType) -> &'static str {
    ALL_DTYPES.iter().find(|(_, known)| *known == dtype).map_or("UNKNOWN", |(name, _)| name)
}

const ALL_DTYPES: [(&str, DType); 10] = [
    ("BOOL", DType::Bool),
    ("UINT8", DType::U8),
    ("INT8", DType::I8),
    ("INT16", DType::I16),
    ("INT32", DType::I32),
    ("INT64", DType::I64),
    ("FP16", DType::F16),
    ("BF16", DType::BF16),
    ("FP32", DType::F32),
    ("FP64", DType::F64),
];

fn invalid(message: impl Into<String>) -> Problem {
    Problem::invalid(message)
}

#[cfg(test)]
mod tests {
    use highroad_package::Digest;

    use super::*;

    fn specs() -> Vec<TensorSpec> {
        let spec = |name: &str| TensorSpec {
            name: name.to_owned(),
            dtype: DType::I64,
            sizes: vec![Dim::Symbol("s0".to_owned()), Dim::Symbol("s1".to_owned())],
        };
        vec![spec("input_ids"), spec("attention_mask")]
    }

    fn parse(json: &Value, binary: &[u8]) -> Result<(Query, Wanted), String> {
        let mut body = serde_json::to_vec(json).unwrap();
        let json_bytes = body.len();
        body.extend_from_slice(binary);
        let request = InferRequest::parse(&body, Some(json_bytes)).map_err(|problem| problem.message)?;
        request.query(&specs()).map_err(|problem| problem.message)
    }

    fn refused(json: &Value, binary: &[u8]) -> String {
        parse(json, binary).unwrap_err()
    }

    fn rows(query: Query) -> Vec<Input> {
        match query {
            Query::Rows(rows) => rows,
            Query::Pairs(_) | Query::Program(_) => panic!("not rows"),
        }
    }

    fn texts(texts: &[&str]) -> Vec<Input> {
        texts.iter().map(|&text| Input::Text(text.to_owned())).collect()
    }

    fn ids(name: &str, data: Value, shape: Value) -> Value {
        json!({ "name": name, "datatype": "INT64", "shape": shape, "data": data })
    }

    #[test]
    fn texts_come_as_json_or_as_binary() {
        let as_json = json!({ "inputs": [{ "name": "text", "datatype": "BYTES", "shape": [2], "data": ["a", "é"] }] });
        assert_eq!(rows(parse(&as_json, b"").unwrap().0), texts(&["a", "é"]));
        let as_binary = json!({ "inputs": [
            { "name": "text", "datatype": "BYTES", "shape": [2, 1], "parameters": { "binary_data_size": 11 } },
        ] });
        assert_eq!(rows(parse(&as_binary, b"\x01\0\0\0a\x02\0\0\0\xc3\xa9").unwrap().0), texts(&["a", "é"]));
    }

    #[test]
    fn program_inputs_are_found_by_name_in_any_order() {
        let mask = json!({
            "name": "attention_mask", "datatype": "INT64", "shape": [1, 2], "parameters": { "binary_data_size": 16 },
        });
        let json = json!({ "inputs": [mask, ids("input_ids", json!([[5, 6]]), json!([1, 2]))] });
        let binary: Vec<u8> = [1i64, 0].iter().flat_map(|value| value.to_le_bytes()).collect();
        let Query::Program(tensors) = parse(&json, &binary).unwrap().0 else { panic!("not a program query") };
        assert_eq!(tensors[0].as_slice::<i64>(), Some(&[5i64, 6][..]));
        assert_eq!(tensors[1].as_slice::<i64>(), Some(&[1i64, 0][..]));
    }

    #[test]
    fn a_header_length_of_zero_means_one_raw_text() {
        let (query, _) = InferRequest::parse(b"hello", Some(0)).unwrap().query(&specs()).unwrap();
        assert_eq!(rows(query), texts(&["hello"]));
    }

    fn image(bytes: &[u8]) -> Input {
        Input::Image(bytes.into())
    }

    #[test]
    fn images_come_as_binary_as_base64_or_as_the_whole_body() {
        let as_binary = json!({ "inputs": [
            { "name": "image", "datatype": "BYTES", "shape": [1], "parameters": { "binary_data_size": 6 } },
        ] });
        assert_eq!(rows(parse(&as_binary, b"\x02\0\0\0\x89P").unwrap().0), [image(b"\x89P")]);
        let json =
            |data: &str| json!({ "inputs": [{ "name": "image", "datatype": "BYTES", "shape": [1], "data": [data] }] });
        assert_eq!(rows(parse(&json("iVA="), b"").unwrap().0), [image(b"\x89P")]);
        assert!(refused(&json("not base64!"), b"").contains("`image`: an element is not base64"));
        let (query, _) = InferRequest::parse(b"\x89P", Some(0)).unwrap().query(&specs()).unwrap();
        assert_eq!(rows(query), [image(b"\x89P")]);
    }

    #[test]
    fn lies_about_lengths_are_refused() {
        assert!(InferRequest::parse(b"{}", Some(3)).unwrap_err().message.contains("the body has 2 bytes"));
        let input = |size: Value, shape: Value| {
            json!({ "inputs": [
            { "name": "input_ids", "datatype": "INT64", "shape": shape, "parameters": { "binary_data_size": size } },
        ] })
        };
        for (json, binary, reason) in [
            (input(json!(16), json!([2])), &[0; 8][..], "16 bytes announced, 8 left"),
            (input(json!(8), json!([2])), &[0; 8][..], "does not take 8 bytes"),
            (input(json!(8), json!([1])), &[0; 9][..], "belong to no input"),
            (input(json!(-1), json!([1])), &[][..], "not a number of bytes"),
            (input(json!("8"), json!([1])), &[][..], "not a number of bytes"),
            (input(json!(8), json!([u64::MAX, 2])), &[0; 8][..], "too large"),
            (input(json!(8), json!([1u64 << 62, 8])), &[0; 8][..], "too large"),
            (input(json!(8), json!([1u64 << 61])), &[0; 8][..], "does not take 8 bytes"),
        ] {
            let found = refused(&json, binary);
            assert!(found.contains(reason), "{found} is not about {reason}");
        }
    }

    #[test]
    fn cut_or_overlong_bytes_elements_are_refused() {
        let json = |n: usize| {
            json!({ "inputs": [
            { "name": "text", "datatype": "BYTES", "shape": [1], "parameters": { "binary_data_size": n } },
        ] })
        };
        for (binary, reason) in [
            (&b"\x01\0"[..], "cut off"),
            (&b"\x05\0\0\0abc"[..], "longer than the data"),
            (&b"\xff\xff\xff\xffabc"[..], "longer than the data"),
            (&b"\x01\0\0\0\xff"[..], "not UTF-8"),
            (&b"\x01\0\0\0a\x01\0\0\0b"[..], "takes 1 elements"),
        ] {
            let found = refused(&json(binary.len()), binary);
            assert!(found.contains(reason), "{found} is not about {reason}");
        }
    }

    #[test]
    fn data_that_does_not_fit_is_refused() {
        let both = |input: Value| json!({ "inputs": [input, ids("attention_mask", json!([1]), json!([1, 1]))] });
        for (input, reason) in [
            (ids("input_ids", json!([1, 2]), json!([1, 1])), "takes 1 elements, 2 were given"),
            (ids("input_ids", json!([1.5]), json!([1, 1])), "not a INT64"),
            (ids("input_ids", json!(["a"]), json!([1, 1])), "not a INT64"),
            (ids("input_ids", json!([null]), json!([1, 1])), "not a INT64"),
            (ids("other", json!([1]), json!([1, 1])), "`other` does not exist"),
            (ids("attention_mask", json!([1]), json!([1, 1])), "given twice"),
            (json!({ "name": "input_ids", "datatype": "INT64", "shape": [1, 1] }), "neither `data` nor"),
            (json!({ "name": "input_ids", "datatype": "INT128", "shape": [1], "data": [1] }), "`INT128` is not taken"),
            (json!({ "name": "input_ids", "datatype": "FP16", "shape": [1], "data": [1] }), "binary data only"),
            (json!({ "name": "input_ids", "datatype": "FP32", "shape": [1], "data": [1e300] }), "not a FP32"),
        ] {
            let found = refused(&both(input.clone()), b"");
            assert!(found.contains(reason), "{found} is not about {reason}");
        }
        assert!(refused(&json!({ "inputs": [] }), b"").contains("`input_ids` is missing"));
        let bytes = json!({ "name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"] });
        assert!(
            refused(&json!({ "inputs": [bytes, ids("input_ids", json!([1]), json!([1, 1]))] }), b"")
                .contains("the datatype of `text` or `image` alone")
        );
        assert!(
            refused(&json!({ "inputs": [{ "name": "text", "datatype": "BYTES", "shape": [0], "data": [] }] }), b"")
                .contains("no rows")
        );
    }

    #[test]
    fn deeply_nested_data_is_refused() {
        let mut data = json!(1);
        for _ in 0..40 {
            data = json!([data]);
        }
        assert!(refused(&json!({ "inputs": [ids("input_ids", data, json!([1, 1]))] }), b"").contains("too deeply"));
    }

    fn facts(version: &str) -> Facts {
        Facts {
            member: "m".to_owned(),
            version: version.to_owned(),
            package: Digest::of(b"p"),
            verdict: None,
            evidence: "development",
            overridden: None,
            development: None,
            numerics_id: "n".to_owned(),
            loaded_at: "2026-11-23T09:00:00Z".to_owned(),
        }
    }

    fn classify() -> TaskKind {
        TaskKind::Classify {
            labels: vec!["benign".to_owned(), "injection".to_owned()],
            flagged: None,
            pairs: false,
            thresholds: Vec::new(),
        }
    }

    fn answers() -> Vec<Answer> {
        vec![Answer::Class { label: "injection".to_owned(), scores: vec![0.25, 0.75] }]
    }

    fn reply(request: Value) -> Result<Reply, String> {
        let mut request = request;
        request["inputs"] = json!([{ "name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"] }]);
        let (_, wanted) = parse(&request, b"").unwrap();
        let outputs = task_outputs(&classify(), &answers());
        wanted.reply("m", &facts("m:7"), &classify(), outputs).map_err(|problem| problem.message)
    }

    #[test]
    fn outputs_are_json_unless_asked_for_as_binary() {
        let reply = reply(json!({ "id": "mine" })).unwrap();
        assert_eq!(reply.json_bytes, None);
        let expected = json!({
            "model_name": "m", "model_version": "7", "id": "mine",
            "outputs": [
                { "name": "label", "datatype": "BYTES", "shape": [1], "data": ["injection"] },
                { "name": "scores", "datatype": "FP32", "shape": [1, 2], "data": [0.25, 0.75] },
            ],
        });
        assert_eq!(serde_json::from_slice::<Value>(&reply.body).unwrap(), expected);
    }

    #[test]
    fn binary_outputs_follow_the_json_in_order() {
        let reply = reply(json!({ "parameters": { "binary_data_output": true } })).unwrap();
        let (json, binary) = reply.body.split_at(reply.json_bytes.unwrap());
        let json: Value = serde_json::from_slice(json).unwrap();
        assert_eq!(json["outputs"][0]["parameters"]["binary_data_size"], 13);
        assert_eq!(json["outputs"][1]["parameters"]["binary_data_size"], 8);
        assert_eq!(binary, [&b"\x09\0\0\0injection"[..], &0.25f32.to_le_bytes(), &0.75f32.to_le_bytes()].concat());
    }

    #[test]
    fn only_the_outputs_asked_for_come_back() {
        let one = json!({ "outputs": [{ "name": "scores", "parameters": { "binary_data": true } }] });
        let one = reply(one).unwrap();
        assert_eq!(one.body.len() - one.json_bytes.unwrap(), 8);
        assert!(reply(json!({ "outputs": [{ "name": "logits" }] })).unwrap_err().contains("`label`, `scores`"));
        assert!(reply(json!({ "outputs": [{ "name": "label" }, { "name": "label" }] })).is_err());
    }

    #[test]
    fn classification_gives_the_highest_with_labels() {
        let request = json!({ "outputs": [{ "name": "scores", "parameters": { "classification": 1 } }] });
        let reply: Value = serde_json::from_slice(&reply(request).unwrap().body).unwrap();
        assert_eq!(reply["outputs"][0]["data"], json!(["0.75:1:injection"]));
        assert_eq!(reply["outputs"][0]["shape"], json!([1, 1]));
    }

    #[test]
    fn numbers_that_json_cannot_say_are_kept_binary() {
        let nan = Tensor::from_slice(&[f32::NAN], &[1]).unwrap();
        let spec = TensorSpec { name: "y".to_owned(), dtype: DType::F32, sizes: vec![Dim::Known(1)] };
        let outputs = || program_outputs(std::slice::from_ref(&spec), std::slice::from_ref(&nan));
        let wanted = |binary_outputs| Wanted { id: None, outputs: Vec::new(), binary_outputs };
        assert!(wanted(false).reply("m", &facts("m:1"), &classify(), outputs()).is_err());
        assert!(wanted(true).reply("m", &facts("m:1"), &classify(), outputs()).is_ok());
    }

    #[test]
    fn a_version_is_the_registrys_number_or_the_digest() {
        assert_eq!(version(&facts("m:7")), "7");
        let digest = Digest::of(b"p");
        assert_eq!(version(&facts(&format!("m@{digest}"))), digest.hex()[..12]);
    }
}
