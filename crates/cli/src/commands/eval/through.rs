//! A golden set asked of a live `highroad serve`, whole answers over the Open Inference Protocol.

use std::error::Error;
use std::time::Duration;

use anyhow::{Context as _, bail};
use highroad_assess::{Model, Truncated};
use highroad_eval::Evidence;
use highroad_package::{Digest, TaskKind};
use highroad_task::raw::{DType, Storage, Tensor};
use highroad_task::{Answer, Engine, Input, Predictor, TaskError, apart};
use reqwest::{Client, RequestBuilder, Url};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;

/// The variable that holds a key, for a server behind something that asks for one; sent as a bearer token.
const KEY: &str = "HIGHROAD_API_KEY";
const TIMEOUT: Duration = Duration::from_secs(120);
/// Texts of one request.
const TEXTS_A_REQUEST: usize = 64;
/// Images of one request, and most bytes of them together, far below what a server takes by default.
const IMAGES_A_REQUEST: usize = 16;
const IMAGE_BYTES_A_REQUEST: usize = 8 << 20;
/// Largest body that is read.
const MAX_BODY_BYTES: usize = 256 << 20;
/// How much of an error's text is told.
const ERROR_CHARS: usize = 300;
/// Times that a server with a full queue is asked again.
const N_RETRIES: u32 = 5;

const PACKAGE: &str = "x-highroad-package";
const EVIDENCE: &str = "x-highroad-evidence";
const TRUNCATED: &str = "x-highroad-truncated";
const HEADER_LENGTH: &str = "inference-header-content-length";

/// A package that a server answers for. The predictor beside it tokenises pairs and token lists, which the protocol has no place
/// for as text, and knows which texts lose their end.
pub struct Through {
    predictor: Predictor,
    runtime: Runtime,
    client: Client,
    infer: Url,
    key: Option<String>,
    numerics_id: String,
    evidence: String,
}

#[derive(Deserialize)]
struct Status {
    members: Vec<Member>,
}

#[derive(Deserialize)]
struct Member {
    member: String,
    serving: Option<Serving>,
}

#[derive(Deserialize)]
struct Serving {
    package: Digest,
    numerics_id: String,
    evidence: String,
}

/// One output of a reply.
#[derive(Deserialize)]
struct Output {
    name: String,
    datatype: String,
    shape: Vec<usize>,
    #[serde(default)]
    data: Value,
    #[serde(default)]
    parameters: Map<String, Value>,
}

/// Outputs with their bytes, and how many texts lost their end.
struct Reply {
    outputs: Vec<(Output, Vec<u8>)>,
    n_truncated: usize,
}

#[derive(Deserialize)]
struct Header {
    outputs: Vec<Output>,
}

impl Through {
    /// Finds the member of the server at `url` that serves the package of `predictor`. Errors if none does.
    pub fn connect(predictor: Predictor, url: &str) -> anyhow::Result<Self> {
        let (url, client, key) = (address(url)?, client()?, key());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let request = authorised(client.get(at(&url, &["v1", "highroad", "status"])?), key.as_deref());
        let status: Status = runtime
            .block_on(async { request.send().await?.error_for_status()?.json().await })
            .with_context(|| format!("`{url}` does not answer as `highroad serve` does"))?;
        let asked = predictor.digest();
        let served: Vec<String> = status.members.iter().map(Member::in_words).collect();
        let serves = |member: Member| Some((member.member, member.serving.filter(|serving| serving.package == asked)?));
        let Some((member, serving)) = status.members.into_iter().find_map(serves) else {
            bail!("`{url}` does not serve package {asked}; it has {}", served.join(", "));
        };
        let infer = at(&url, &["v2", "models", &member, "infer"])?;
        let Serving { numerics_id, evidence, .. } = serving;
        Ok(Self { predictor, runtime, client, infer, key, numerics_id, evidence })
    }

    /// The reply's outputs with their bytes, from the package that was asked.
    fn ask(&self, header: &Value, binary: &[u8]) -> Result<Reply, TaskError> {
        let json = header.to_string();
        let body = [json.as_bytes(), binary].concat();
        self.runtime.block_on(self.send(&body, json.len())).map_err(TaskError::Engine)
    }

    async fn send(&self, body: &[u8], json_bytes: usize) -> Result<Reply, Box<dyn Error + Send + Sync>> {
        for attempt in 0.. {
            let request = self.client.post(self.infer.clone()).header(HEADER_LENGTH, json_bytes).body(body.to_vec());
            let mut response = authorised(request, self.key.as_deref()).send().await?;
            let (status, headers) = (response.status(), response.headers().clone());
            let said = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
            if status.as_u16() == 429 && attempt < N_RETRIES {
                let wait_ms = said("retry-after-ms").and_then(|text| text.parse().ok()).unwrap_or(200).min(10_000);
                tokio::time::sleep(Duration::from_millis(wait_ms)).await;
                continue;
            }
            let mut content = Vec::new();
            while let Some(chunk) = response.chunk().await? {
                if content.len() + chunk.len() > MAX_BODY_BYTES {
                    return Err(format!("the server's answer is over {MAX_BODY_BYTES} bytes").into());
                }
                content.extend_from_slice(&chunk);
            }
            if !status.is_success() {
                let text: String = String::from_utf8_lossy(&content).chars().take(ERROR_CHARS).collect();
                return Err(format!("the server answered {status}: {text}").into());
            }
            let (package, evidence) = (said(PACKAGE).unwrap_or_default(), said(EVIDENCE).unwrap_or_default());
            if package != self.predictor.digest().to_string() {
                return Err(format!("package `{package}` answered, not {}", self.predictor.digest()).into());
            }
            if evidence != self.evidence {
                return Err(format!("the server's evidence was `{}` and is `{evidence}`", self.evidence).into());
            }
            let split = said(HEADER_LENGTH).and_then(|text| text.parse().ok()).unwrap_or(content.len());
            let n_truncated = said(TRUNCATED).and_then(|text| text.parse().ok()).unwrap_or(0);
            return Ok(Reply { outputs: outputs(&content, split)?, n_truncated });
        }
        Err("the server's queue stays full".into())
    }

    /// Texts, which the server tokenises; and how many of them lost their end.
    fn ask_texts(&self, texts: &[&str]) -> Result<(Vec<Answer>, usize), TaskError> {
        let input = json!({ "name": "text", "datatype": "BYTES", "shape": [texts.len()], "data": texts });
        self.ask_rows(&input, &[], texts.len())
    }

    /// Images, which the server decodes.
    fn ask_images(&self, images: &[&[u8]]) -> Result<Vec<(Answer, Truncated)>, TaskError> {
        // An image has 32 MiB at most, so its length fits.
        let elements = images.iter().flat_map(|image| [&(image.len() as u32).to_le_bytes(), *image].concat());
        let binary: Vec<u8> = elements.collect();
        let size = json!({ "binary_data_size": binary.len() });
        let input = json!({ "name": "image", "datatype": "BYTES", "shape": [images.len()], "parameters": size });
        let (answers, _) = self.ask_rows(&input, &binary, images.len())?;
        Ok(answers.into_iter().map(|answer| (answer, Truncated(false))).collect())
    }

    /// The answers to the rows of `input`, and how many of them lost their end.
    fn ask_rows(&self, input: &Value, binary_input: &[u8], n_rows: usize) -> Result<(Vec<Answer>, usize), TaskError> {
        let is_class = matches!(self.task(), TaskKind::Classify { .. } | TaskKind::Recommend { .. });
        let binary = json!({ "binary_data": true });
        let wanted = match is_class {
            true => json!([{ "name": "label" }, { "name": "scores", "parameters": binary }]),
            false => json!([{ "name": "embedding", "parameters": binary }]),
        };
        let reply = self.ask(&json!({ "inputs": [input], "outputs": wanted }), binary_input)?;
        let answers = answers(is_class, n_rows, &reply.outputs).map_err(|reason| TaskError::Engine(reason.into()))?;
        let finds_several = matches!(self.task(), TaskKind::Classify { thresholds, .. } if !thresholds.is_empty());
        let several = |answer: Answer| match answer {
            Answer::Class { label, scores } if finds_several => Answer::Labels { labels: apart(&label), scores },
            answer => answer,
        };
        Ok((answers.into_iter().map(several).collect(), reply.n_truncated))
    }

    fn answer<'a>(&self, inputs: &'a [Input]) -> Result<Vec<(Answer, Truncated)>, TaskError> {
        let image_of = |input: &'a Input| if let Input::Image(bytes) = input { Some(&**bytes) } else { None };
        if let Some(images) = inputs.iter().map(image_of).collect::<Option<Vec<&[u8]>>>() {
            return self.answer_images(&images);
        }
        let text_of = |input: &'a Input| if let Input::Text(text) = input { Some(text.as_str()) } else { None };
        let Some(texts) = inputs.iter().map(text_of).collect::<Option<Vec<&str>>>() else {
            return self.answer_tokens(inputs);
        };
        let mut answered = Vec::with_capacity(inputs.len());
        for texts in texts.chunks(TEXTS_A_REQUEST) {
            let (answers, n_truncated) = self.ask_texts(texts)?;
            for (answer, text) in answers.into_iter().zip(texts) {
                // The server tells how many, which says which only where none is or the text is the only one.
                let truncated = match (n_truncated, texts.len()) {
                    (0, _) => false,
                    (_, 1) => true,
                    _ => self.predictor.prepare(&Input::Text((*text).to_owned()))?.truncated(),
                };
                answered.push((answer, Truncated(truncated)));
            }
        }
        Ok(answered)
    }

    fn answer_images(&self, mut images: &[&[u8]]) -> Result<Vec<(Answer, Truncated)>, TaskError> {
        let mut answered = Vec::with_capacity(images.len());
        while !images.is_empty() {
            let mut n_bytes = 0;
            let fits = images.iter().take(IMAGES_A_REQUEST).take_while(|image| {
                n_bytes += image.len();
                n_bytes <= IMAGE_BYTES_A_REQUEST
            });
            // One that is larger goes alone; whether it is too large the server says.
            let (next, rest) = images.split_at(fits.count().max(1));
            answered.extend(self.ask_images(next)?);
            images = rest;
        }
        Ok(answered)
    }

    /// What the protocol has no place for as text is tokenised here, and the server runs the program.
    fn answer_tokens(&self, inputs: &[Input]) -> Result<Vec<(Answer, Truncated)>, TaskError> {
        let prepared = inputs.iter().map(|input| self.predictor.prepare(input)).collect::<Result<Vec<_>, _>>()?;
        let truncated = prepared.iter().map(|prepared| Truncated(prepared.truncated()));
        Ok(self.predictor.predict_prepared_on(self, &prepared)?.into_iter().zip(truncated).collect())
    }
}

impl Engine for Through {
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, TaskError> {
        let mut binary = Vec::new();
        let mut described = Vec::new();
        for (spec, tensor) in self.predictor.program().inputs().iter().zip(inputs) {
            let tensor = tensor.contiguous();
            let start = tensor.offset() * tensor.dtype().size_bytes();
            let n_bytes = tensor.numel() * tensor.dtype().size_bytes();
            let (datatype, _) = DATATYPES
                .iter()
                .find(|(_, dtype)| *dtype == tensor.dtype())
                .ok_or_else(|| TaskError::Tensors(format!("input `{}` is {}", spec.name, tensor.dtype())))?;
            binary.extend_from_slice(&tensor.storage().bytes()[start..start + n_bytes]);
            described.push(json!({ "name": spec.name, "datatype": datatype, "shape": tensor.shape(), "parameters": { "binary_data_size": n_bytes } }));
        }
        let header = json!({ "inputs": described, "parameters": { "binary_data_output": true } });
        let reply = self.ask(&header, &binary)?;
        reply.outputs.iter().map(|(output, bytes)| tensor(output, bytes)).collect()
    }
}

impl Model for Through {
    fn has_prompts(&self) -> bool {
        !self.predictor.manifest().task.prompts.is_empty()
    }

    fn package(&self) -> Digest {
        self.predictor.digest()
    }

    fn task(&self) -> &TaskKind {
        &self.predictor.manifest().task.kind
    }

    fn numerics_id(&self) -> String {
        self.numerics_id.clone()
    }

    fn evidence(&self) -> Evidence {
        match self.evidence.as_str() {
            "bit-exact" => Evidence::BitExact,
            "same-engine" => Evidence::SameEngine,
            // It says itself that no verdict promises its bits.
            _ => Evidence::Observed,
        }
    }

    fn answer_one(&self, input: &Input) -> Result<(Answer, Truncated), TaskError> {
        let answer = self.answer(std::slice::from_ref(input))?.pop();
        answer.ok_or_else(|| TaskError::Engine("the server gave no answer".into()))
    }

    fn answer_all(&self, inputs: &[Input]) -> Result<Vec<(Answer, Truncated)>, TaskError> {
        self.answer(inputs)
    }
}

impl Member {
    fn in_words(&self) -> String {
        let package = self.serving.as_ref().map_or_else(|| "nothing".to_owned(), |s| s.package.short().to_string());
        format!("`{}` ({package})", self.member)
    }
}

/// The address of a server. Errors if it is none, or holds a login.
pub(super) fn address(url: &str) -> anyhow::Result<Url> {
    let url: Url = url.parse().with_context(|| format!("`{url}` is no URL"))?;
    if !matches!(url.scheme(), "http" | "https") {
        bail!("`{url}` is no address of a server: expected such as `http://127.0.0.1:8080`");
    }
    if !url.username().is_empty() || url.password().is_some() {
        bail!("an address with a login in it would be told in errors\nhint: put the key into ${KEY}");
    }
    Ok(url)
}

pub(super) fn key() -> Option<String> {
    std::env::var(KEY).ok().filter(|key| !key.is_empty())
}

/// A client that takes a key to the server that it was meant for and to no other.
pub(super) fn client() -> anyhow::Result<Client> {
    Ok(Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none()).build()?)
}

pub(super) fn authorised(request: RequestBuilder, key: Option<&str>) -> RequestBuilder {
    match key {
        Some(key) => request.bearer_auth(key),
        None => request,
    }
}

pub(super) fn at(url: &Url, path: &[&str]) -> anyhow::Result<Url> {
    let mut url = url.clone();
    url.path_segments_mut()
        .map_err(|()| anyhow::anyhow!("a server's address has no path of its own"))?
        .pop_if_empty()
        .extend(path);
    Ok(url)
}

/// The outputs of a reply whose first `split` bytes are JSON; binary data follows in their order, and nothing after it.
fn outputs(content: &[u8], split: usize) -> Result<Vec<(Output, Vec<u8>)>, String> {
    let (json, mut rest) = content.split_at_checked(split).ok_or("the server's answer is shorter than its header")?;
    let header: Header = serde_json::from_slice(json).map_err(|error| format!("the server's answer: {error}"))?;
    let mut outputs = Vec::new();
    for output in header.outputs {
        let size = output.parameters.get("binary_data_size").map_or(Some(0), Value::as_u64);
        let size = size.and_then(|size| usize::try_from(size).ok());
        let (bytes, more) = size
            .and_then(|size| rest.split_at_checked(size))
            .ok_or_else(|| format!("output `{}` is longer than the server's answer", output.name))?;
        rest = more;
        outputs.push((output, bytes.to_vec()));
    }
    if rest.is_empty() {
        Ok(outputs)
    } else {
        Err(format!("{} bytes of the server's answer belong to no output", rest.len()))
    }
}

/// The answers to `n_rows` texts or images.
fn answers(is_class: bool, n_rows: usize, reply: &[(Output, Vec<u8>)]) -> Result<Vec<Answer>, String> {
    let find = |name: &str| {
        reply
            .iter()
            .find(|(output, _)| output.name == name)
            .ok_or_else(|| format!("the server's answer has no `{name}`"))
    };
    let (output, bytes) = find(if is_class { "scores" } else { "embedding" })?;
    let n_bytes = output.shape.iter().try_fold(4usize, |n, &size| n.checked_mul(size));
    let fits = matches!(output.shape[..], [rows, width] if rows == n_rows && width > 0) && n_bytes == Some(bytes.len());
    if output.datatype != "FP32" || !fits {
        return Err(format!("`{}` is {}{:?} for {n_rows} rows", output.name, output.datatype, output.shape));
    }
    let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect::<Vec<_>>();
    let rows = values.chunks_exact(output.shape[1]).map(<[f32]>::to_vec);
    if !is_class {
        return Ok(rows.map(|vector| Answer::Embedding { vector }).collect());
    }
    let labels: Vec<String> =
        serde_json::from_value(find("label")?.0.data.clone()).map_err(|error| error.to_string())?;
    if labels.len() != n_rows {
        return Err(format!("{} labels for {n_rows} rows", labels.len()));
    }
    Ok(labels.into_iter().zip(rows).map(|(label, scores)| Answer::Class { label, scores }).collect())
}

fn tensor(output: &Output, bytes: &[u8]) -> Result<Tensor, TaskError> {
    let Output { name, datatype, shape, .. } = output;
    let (_, dtype) = DATATYPES
        .iter()
        .find(|(known, _)| known == datatype)
        .ok_or_else(|| TaskError::Tensors(format!("output `{name}` is {datatype}")))?;
    let strides: Vec<usize> = (1..=shape.len())
        .map(|dim| shape[dim..].iter().try_fold(1usize, |product, &size| product.checked_mul(size)))
        .collect::<Option<_>>()
        .ok_or_else(|| TaskError::Tensors(format!("output `{name}` is too large")))?;
    Ok(Tensor::from_storage(Storage::copy_of(bytes), *dtype, shape, &strides, 0)?)
}

/// What programs of token ids and of pixels take and give, as the protocol calls it.
const DATATYPES: [(&str, DType); 4] =
    [("BOOL", DType::Bool), ("INT32", DType::I32), ("INT64", DType::I64), ("FP32", DType::F32)];

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn reply(outputs: Value, binary: &[u8]) -> Result<Vec<(Output, Vec<u8>)>, String> {
        let json = json!({ "outputs": outputs }).to_string();
        super::outputs(&[json.as_bytes(), binary].concat(), json.len())
    }

    fn scores(size: usize) -> Value {
        json!({ "name": "scores", "datatype": "FP32", "shape": [1, 2], "parameters": { "binary_data_size": size } })
    }

    #[test]
    fn an_answer_is_its_label_and_its_bits() {
        let bytes: Vec<u8> = [0.25f32, 0.75].iter().flat_map(|value| value.to_le_bytes()).collect();
        let label = json!({ "name": "label", "datatype": "BYTES", "shape": [1], "data": ["b"] });
        let reply = reply(json!([label, scores(8)]), &bytes).unwrap();
        assert_eq!(
            answers(true, 1, &reply).unwrap(),
            [Answer::Class { label: "b".to_owned(), scores: vec![0.25, 0.75] }]
        );
        assert!(answers(true, 2, &reply).unwrap_err().contains("for 2 rows"));
        assert!(answers(false, 1, &reply).unwrap_err().contains("no `embedding`"));
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        for (size, n_bytes) in [(8, 4), (4, 8), (usize::MAX, 8)] {
            assert!(reply(json!([scores(size)]), &vec![0; n_bytes]).is_err(), "{size} {n_bytes}");
        }
        assert!(super::outputs(b"{}", 7).is_err());
        let huge = Output {
            name: "y".to_owned(),
            datatype: "FP32".to_owned(),
            shape: vec![2, usize::MAX, 3],
            data: Value::Null,
            parameters: Map::new(),
        };
        assert!(tensor(&huge, &[]).is_err());
    }
}
