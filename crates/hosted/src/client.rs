mod forward;
mod tei;
pub(crate) mod tensors;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
pub use forward::{Fault, FaultKind, Incoming, Refusal, pause_before_retry};
use highroad_package::Digest;
use highroad_task::Array;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::budget::Reserved;
use crate::key::ApiKey;
use crate::{
    Budget, DescriptionError, Hosted, HostedError, HostedTask, Protocol, Reply, Said, Tokens, Usage, finish_reason_of,
};

/// Largest reply that is read, and largest error body of which the message is told.
const MAX_REPLY_BYTES: usize = 32 << 20;
const MAX_ERROR_BYTES: usize = 64 << 10;
const MAX_MESSAGE_CHARS: usize = 300;
const MAX_SERVED_BY_CHARS: usize = 120;
/// First wait between two tries, doubled each time, and the longest.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Tokens that a host may count beside the text: a token is a byte or more, and a chat template adds some to each message.
const TOKENS_A_MESSAGE: u64 = 32;

/// Something a hosted model can be asked: a path, a body and what it may cost at most.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    path: Cow<'static, str>,
    body: Body,
    worst: Tokens,
    read: Read,
    nonce: u32,
}

/// What is sent.
#[derive(Clone, Debug, PartialEq)]
enum Body {
    Json(Value),
    /// JSON, then binary data.
    Tensors {
        bytes: Vec<u8>,
        json_bytes: usize,
    },
}

impl Body {
    fn n_bytes(&self) -> usize {
        match self {
            Self::Json(value) => value.to_string().len(),
            Self::Tensors { bytes, .. } => bytes.len(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Read {
    Chat,
    Embedding,
    Moderation,
    Rerank {
        n_documents: usize,
    },
    /// Tensors by name.
    Tensors,
    /// An answer to each of so many texts, or to so many documents, in the words of another protocol than OpenAI's.
    Other {
        n: usize,
    },
}

/// Asks one hosted model. Clones are cheap and share connections.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    hosted: Arc<Hosted>,
    key: Option<Arc<ApiKey>>,
}

/// One turn of a conversation, as the protocol has it.
#[derive(Serialize)]
struct Turn<'a> {
    role: &'a str,
    content: &'a str,
}

impl Question {
    /// A conversation to go on with. `sample` counts the answers to one conversation; `schema`, where the host holds answers
    /// to one, is a name and a JSON schema.
    pub fn chat(hosted: &Hosted, turns: &[(&str, &str)], sample: u32, schema: Option<(&str, Value)>) -> Self {
        let turns: Vec<Turn<'_>> = turns.iter().map(|&(role, content)| Turn { role, content }).collect();
        let mut body = json!({
            "model": hosted.model, "messages": turns, hosted.max_tokens_name.as_str(): hosted.max_tokens,
        });
        let mut set = |key: &str, value: Value| body[key] = value;
        if let Some(temperature) = hosted.temperature {
            set("temperature", temperature.into());
        }
        if let Some(seed) = hosted.seed {
            set("seed", (seed + u64::from(sample)).into());
        }
        if hosted.logprobs {
            set("logprobs", true.into());
        }
        if let Some((name, schema)) = schema.filter(|_| hosted.structured) {
            let schema = json!({ "name": name, "strict": true, "schema": schema });
            set("response_format", json!({ "type": "json_schema", "json_schema": schema }));
        }
        let n_bytes: usize = turns.iter().map(|turn| turn.content.len()).sum();
        let input = n_bytes as u64 + TOKENS_A_MESSAGE * (turns.len() as u64 + 1);
        let worst = Tokens { input, output: hosted.max_tokens.get().into() };
        Self { path: "chat/completions".into(), body: Body::Json(body), worst, read: Read::Chat, nonce: sample }
    }

    /// A text to be embedded.
    pub fn embedding(hosted: &Hosted, text: &str) -> Self {
        // Base64 keeps the bits, and is what OpenAI's own client asks for.
        let body = json!({ "model": hosted.model, "input": text, "encoding_format": "base64" });
        Self::of_json("embeddings", body, text.len(), Read::Embedding)
    }

    /// A text to be judged by a moderation.
    pub fn moderation(hosted: &Hosted, text: &str) -> Self {
        let body = json!({ "model": hosted.model, "input": text });
        Self::of_json("moderations", body, text.len(), Read::Moderation)
    }

    /// Documents to be ordered by how well they answer a query.
    pub fn rerank(hosted: &Hosted, query: &str, documents: &[String]) -> Self {
        let body = json!({ "model": hosted.model, "query": query, "documents": documents });
        let n_bytes = documents.iter().map(|document| document.len() + query.len()).sum();
        let read = Read::Rerank { n_documents: documents.len() };
        Self::of_json("rerank", body, n_bytes, read)
    }

    fn of_json(path: &'static str, body: Value, n_bytes: usize, read: Read) -> Self {
        Self { path: path.into(), body: Body::Json(body), worst: of_text(n_bytes), read, nonce: 0 }
    }

    /// Texts together, for a vector or a label each, of a host that does not speak OpenAI's protocol. Errors, in words, where it does, or
    /// where no tokens can be made of a text.
    pub fn texts(hosted: &Hosted, texts: &[String], dimensions: Option<u64>) -> Result<Self, String> {
        let n_bytes = texts.iter().map(String::len).sum::<usize>() + TOKENS_A_MESSAGE as usize * texts.len();
        let read = Read::Other { n: texts.len() };
        match (hosted.protocol, &hosted.oip) {
            (Protocol::Tei, _) => {
                let (path, body) = tei::of_texts(hosted, texts, dimensions);
                Ok(Self::of_json(path, body, n_bytes, read))
            }
            (Protocol::Oip, Some(_)) if dimensions.is_some() => Err("the host gives vectors of one width".to_owned()),
            (Protocol::Oip, Some(oip)) => {
                let body = tensors::of_texts(oip, texts)?;
                Ok(Self { path: tensors::path(hosted, oip).into(), body, worst: of_text(n_bytes), read, nonce: 0 })
            }
            _ => Err("the host takes no texts together".to_owned()),
        }
    }

    /// The inputs of a model that takes tensors. Errors, in words, where the description does not say which datatypes they have, or a
    /// number is none of its datatype.
    pub fn tensors(hosted: &Hosted, arrays: &BTreeMap<String, Array>) -> Result<Self, String> {
        let Some(oip) = hosted.oip.as_ref().filter(|oip| !oip.inputs.is_empty()) else {
            return Err("the description does not say what datatypes the inputs have: `inputs` of [oip]".to_owned());
        };
        let body = tensors::of_arrays(oip, arrays)?;
        // Nobody counts tokens of tensors: a byte is one at most.
        let worst = Tokens { input: body.n_bytes() as u64, output: 0 };
        Ok(Self { path: tensors::path(hosted, oip).into(), body, worst, read: Read::Tensors, nonce: 0 })
    }

    /// [`Question::rerank`], in the words of the host's protocol.
    pub fn documents(hosted: &Hosted, query: &str, documents: &[String]) -> Result<Self, String> {
        let n_bytes = documents.iter().map(|document| document.len() + query.len()).sum();
        let read = Read::Other { n: documents.len() };
        match (hosted.protocol, &hosted.oip) {
            (Protocol::Tei, _) => {
                let (path, body) = tei::of_documents(query, documents);
                Ok(Self::of_json(path, body, n_bytes, read))
            }
            (Protocol::Oip, Some(oip)) => {
                let body = tensors::of_documents(oip, query, documents)?;
                Ok(Self { path: tensors::path(hosted, oip).into(), body, worst: of_text(n_bytes), read, nonce: 0 })
            }
            _ => Ok(Self::rerank(hosted, query, documents)),
        }
    }

    /// Below the base URL.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What is sent, and how many bytes of it are JSON where binary data follows.
    pub fn body(&self) -> (Vec<u8>, Option<usize>) {
        match &self.body {
            Body::Json(value) => (value.to_string().into_bytes(), None),
            Body::Tensors { bytes, json_bytes } => (bytes.clone(), Some(*json_bytes)),
        }
    }

    /// What it may cost at most.
    pub fn worst(&self) -> Tokens {
        self.worst
    }

    /// The answers in a reply's body, of which the first `json_bytes` are JSON, all if `None`: one, or one for each text. Errors, in
    /// words, where they are none.
    pub fn read(&self, hosted: &Hosted, body: &[u8], json_bytes: Option<usize>) -> Result<Answers, String> {
        read(hosted, self.read, body, json_bytes)
    }

    /// Equal for equal questions only, of which two samples are not.
    pub fn digest(&self) -> Digest {
        let body = match &self.body {
            Body::Json(value) => serde_json_canonicalizer::to_vec(value).expect("a value is canonical JSON"),
            Body::Tensors { bytes, .. } => bytes.clone(),
        };
        Digest::of(&[format!("{} {}\n", self.path, self.nonce).as_bytes(), &body].concat())
    }
}

fn of_text(n_bytes: usize) -> Tokens {
    Tokens { input: n_bytes as u64 + TOKENS_A_MESSAGE, output: 0 }
}

/// How one try went wrong.
struct Failed {
    error: Wrong,
    /// What the host asked to wait.
    wait: Option<Duration>,
}

enum Wrong {
    Unreachable { reason: String, may_have_answered: bool },
    Status(StatusCode, String),
    Malformed(String),
    TooLarge(usize),
}

impl Client {
    /// A client, with the key from where the description says it is.
    pub fn new(hosted: Hosted) -> Result<Self, DescriptionError> {
        let key = ApiKey::find(&hosted)?.map(Arc::new);
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(hosted.limits.connect_timeout_s))
            // An answer from elsewhere is not the described model's, and a key is for one host.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("highroad/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(DescriptionError::Client)?;
        Ok(Self { http, hosted: Arc::new(hosted), key })
    }

    /// What is asked.
    pub fn hosted(&self) -> &Hosted {
        &self.hosted
    }

    /// The answer to one question: tried again as the description's limits say, and never beyond `budget`.
    pub async fn ask(&self, question: &Question, budget: &Budget) -> Result<Reply, HostedError> {
        if budget.most().is_some() && self.hosted.price.is_none() {
            return Err(HostedError::NoPrice { model: self.hosted.model.clone() });
        }
        let url = self.url(&question.path);
        let most = Duration::from_secs(self.hosted.limits.wait_s);
        let (mut n_tries, mut waited) = (0, Duration::ZERO);
        loop {
            n_tries += 1;
            let reserved = budget.reserve(self.hosted.price.as_ref(), question.worst)?;
            let start = Instant::now();
            let failed = match self.try_once(&url, question).await {
                Ok(Answers { said, usage, served_by }) => {
                    let said = said.into_iter().next().expect("a reply that is read has an answer");
                    self.settle(reserved, usage, question.worst);
                    let ms = start.elapsed().as_secs_f64() * 1e3;
                    return Ok(Reply { said, usage, ms, n_tries, served_by });
                }
                Err(failed) => failed,
            };
            if !failed.may_have_cost() {
                reserved.settle(0.0);
            }
            if !failed.is_passing() || n_tries > self.hosted.limits.retries {
                return Err(failed.into_error(url, n_tries));
            }
            let wait = failed.wait.unwrap_or_else(|| backoff(n_tries));
            if waited.saturating_add(wait) > most {
                return Err(match failed.wait {
                    Some(wait) => HostedError::Wait { url, wait_s: wait.as_secs_f64(), most_s: most.as_secs() },
                    None => failed.into_error(url, n_tries),
                });
            }
            waited += wait;
            tokio::time::sleep(wait).await;
        }
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.hosted.base_url.trim_end_matches('/'))
    }

    fn settle(&self, reserved: Reserved<'_>, usage: Option<Usage>, worst: Tokens) {
        // A host that does not count is taken at its dearest.
        let tokens = usage.map_or(worst, |usage| Tokens { input: usage.input, output: usage.output });
        reserved.settle(self.hosted.price.as_ref().map_or(0.0, |price| price.of(tokens)));
    }

    async fn try_once(&self, url: &str, question: &Question) -> Result<Answers, Failed> {
        let (body, json_bytes) = question.body();
        let mut request = self.http.post(url).body(body).timeout(self.hosted.limits.timeout());
        request = headed(request, json_bytes);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key.expose());
        }
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        if !response.status().is_success() {
            return Err(self.refused(response).await);
        }
        let json_bytes = json_bytes_of(response.headers());
        let body = self.body(response, MAX_REPLY_BYTES).await?;
        let answers = question.read(&self.hosted, &body, json_bytes);
        answers.map_err(|reason| Failed { error: Wrong::Malformed(self.safe(&reason)), wait: None })
    }

    async fn body(&self, mut response: Response, limit: usize) -> Result<Vec<u8>, Failed> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unreachable(&error))? {
            if body.len() + chunk.len() > limit {
                return Err(Failed { error: Wrong::TooLarge(limit), wait: None });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failed {
        let may_have_answered = !error.is_connect();
        let mut reason = if error.is_timeout() {
            let Self { hosted, .. } = self;
            format!("no whole answer within {} s", hosted.limits.timeout_s)
        } else {
            innermost(error)
        };
        if error.is_timeout() && error.is_connect() {
            reason = format!("no connection within {} s", self.hosted.limits.connect_timeout_s);
        }
        Failed { error: Wrong::Unreachable { reason: self.safe(&reason), may_have_answered }, wait: None }
    }

    async fn refused(&self, response: Response) -> Failed {
        let (status, wait) = (response.status(), retry_after(response.headers()));
        // Of an error page that is too long or cut off the status says enough.
        let body = self.body(response, MAX_ERROR_BYTES).await.unwrap_or_default();
        Failed { error: Wrong::Status(status, self.safe(&message(&body))), wait }
    }

    /// Foreign text as an error may hold it: short, on one line and without the key.
    fn safe(&self, text: &str) -> String {
        let text = self.key.as_ref().map_or_else(|| text.to_owned(), |key| key.redact(text));
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_MESSAGE_CHARS).collect()
    }
}

impl Failed {
    /// Whether another try may go better.
    fn is_passing(&self) -> bool {
        match &self.error {
            Wrong::Unreachable { .. } | Wrong::Malformed(_) => true,
            Wrong::Status(status, _) => matches!(status.as_u16(), 408 | 409 | 425 | 429) || status.is_server_error(),
            Wrong::TooLarge(_) => false,
        }
    }

    /// Whether the host may have worked, and charge for it.
    fn may_have_cost(&self) -> bool {
        match &self.error {
            Wrong::Unreachable { may_have_answered, .. } => *may_have_answered,
            Wrong::Status(..) => false,
            Wrong::Malformed(_) | Wrong::TooLarge(_) => true,
        }
    }

    fn into_error(self, url: String, n_tries: u32) -> HostedError {
        match self.error {
            Wrong::Unreachable { reason, .. } => HostedError::Unreachable { url, n_tries, reason },
            Wrong::Malformed(reason) => HostedError::Malformed { url, n_tries, reason },
            Wrong::TooLarge(limit) => HostedError::TooLarge { url, limit },
            Wrong::Status(status, message) => match status.as_u16() {
                status @ (401 | 403) => HostedError::Key { url, status, message },
                status @ (408 | 409 | 425 | 429 | 500..) => HostedError::Status { url, status, n_tries, message },
                status => HostedError::Refused { url, status, message },
            },
        }
    }
}

/// Half of it is certain and half is drawn, so that many who were refused together do not come back together.
fn backoff(n_tries: u32) -> Duration {
    let most = FIRST_WAIT.saturating_mul(1 << (n_tries - 1).min(16)).min(LONGEST_WAIT);
    most.mul_f64(0.5 + 0.5 * rand::random::<f64>())
}

/// What the host asks to wait, as `retry-after-ms`, in seconds or as a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let number =
        |text: &str, unit: f64| text.parse::<f64>().ok().and_then(|n| Duration::try_from_secs_f64(n * unit).ok());
    let seconds = text(RETRY_AFTER.as_str());
    let date = || {
        let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(seconds?).ok()?;
        // A date that has passed asks for no wait.
        Some(Duration::try_from(date.duration_since(jiff::Timestamp::now())).unwrap_or_default())
    };
    text("retry-after-ms").and_then(|ms| number(ms, 1e-3)).or_else(|| number(seconds?, 1.0)).or_else(date)
}

/// The clause that says what went wrong, without the address: the error that is told has it.
fn innermost(error: &reqwest::Error) -> String {
    let mut source: &dyn std::error::Error = error;
    while let Some(inner) = source.source() {
        source = inner;
    }
    source.to_string()
}

/// What an error body says: OpenAI's `error.message`, or one of the shapes that other servers use.
fn message(body: &[u8]) -> String {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let places = ["/error/message", "/message", "/detail", "/error"];
    let told = places.iter().find_map(|place| value.pointer(place).and_then(Value::as_str));
    told.map_or_else(|| "it does not say why".to_owned(), str::to_owned)
}

#[derive(Deserialize)]
struct Chat {
    choices: Vec<Choice>,
    usage: Option<WireUsage>,
    model: Option<String>,
    system_fingerprint: Option<String>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
    finish_reason: Option<String>,
    logprobs: Option<Logprobs>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<String>,
    refusal: Option<String>,
}

#[derive(Deserialize)]
struct Logprobs {
    content: Option<Vec<Token>>,
}

#[derive(Deserialize)]
struct Token {
    logprob: f64,
}

#[derive(Deserialize)]
struct WireUsage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
}

#[derive(Deserialize)]
struct Embeddings {
    data: Vec<EmbeddingItem>,
    usage: Option<WireUsage>,
    model: Option<String>,
}

#[derive(Deserialize)]
struct EmbeddingItem {
    embedding: Vector,
}

/// A vector as hosts write it: numbers, or little-endian f32 in base64.
#[derive(Deserialize)]
#[serde(untagged)]
#[allow(missing_docs)]
pub enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

impl Vector {
    /// Its numbers. Errors, in words, if there are none, if one is not finite, or if the text is not a whole number of f32 in base64.
    pub fn values(self) -> Result<Vec<f32>, String> {
        let values = match self {
            Self::Float(values) => values,
            Self::Base64(text) => {
                let bytes = BASE64_STANDARD.decode(text).map_err(|error| format!("a vector is no base64: {error}"))?;
                let (whole, rest) = bytes.as_chunks::<4>();
                if !rest.is_empty() {
                    return Err("a vector is no whole number of f32".to_owned());
                }
                whole.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
            }
        };
        if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
            return Err("a vector is empty or not finite".to_owned());
        }
        Ok(values)
    }
}

#[derive(Deserialize)]
struct Moderations {
    results: Vec<ModerationItem>,
    model: Option<String>,
}

#[derive(Deserialize)]
struct ModerationItem {
    flagged: bool,
    category_scores: serde_json::Map<String, Value>,
}

#[derive(Deserialize)]
struct Reranked {
    results: Vec<RankedItem>,
    model: Option<String>,
}

#[derive(Deserialize)]
struct RankedItem {
    index: usize,
    relevance_score: f64,
}

type Answered = (Said, Option<Usage>, Option<String>);

impl Answers {
    /// The answers of a host that does not speak OpenAI's protocol, to each of `n` texts or to `n` documents.
    pub fn of_others(hosted: &Hosted, body: &[u8], json_bytes: Option<usize>, n: usize) -> Result<Self, String> {
        read(hosted, Read::Other { n }, body, json_bytes)
    }

    /// The answer of a chat.
    pub fn of_chat(hosted: &Hosted, body: &[u8]) -> Result<Self, String> {
        read(hosted, Read::Chat, body, None)
    }
}

/// What a reply says.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Answers {
    /// At least one.
    pub said: Vec<Said>,
    pub usage: Option<Usage>,
    pub served_by: Option<String>,
}

/// The answer in a reply's body; what is wrong with it otherwise, without quoting it.
fn read(hosted: &Hosted, what: Read, body: &[u8], json_bytes: Option<usize>) -> Result<Answers, String> {
    let (said, usage, served_by) = match what {
        Read::Chat => chat(parse(body)?)?,
        Read::Embedding => embedding(parse(body)?)?,
        Read::Moderation => moderation(parse(body)?)?,
        Read::Rerank { n_documents } => reranked(parse(body)?, n_documents)?,
        Read::Tensors => {
            let (said, served_by) = tensors::read_all((body, json_bytes))?;
            return Ok(Answers { said: vec![said], usage: None, served_by });
        }
        Read::Other { n } => {
            let (said, served_by) = match (&hosted.oip, hosted.task) {
                (Some(oip), _) => tensors::read(hosted, oip, (body, json_bytes), n)?,
                (None, HostedTask::Embed) => (tei::vectors(body, n)?, None),
                (None, HostedTask::Rerank) => (tei::ranks(body, n)?, None),
                (None, _) => (tei::labels(body, &hosted.labels, n)?, None),
            };
            return Ok(Answers { said, usage: None, served_by });
        }
    };
    Ok(Answers { said: vec![said], usage, served_by })
}

fn vector(values: Vec<f32>) -> Result<Said, String> {
    let values = Vector::Float(values).values()?;
    Ok(Said::Vector { bits: values.into_iter().map(f32::to_bits).collect() })
}

fn scores(scores: Vec<f64>) -> Result<Said, String> {
    // Sums of rounded numbers are off by a little.
    match scores.iter().all(|score| (-1e-3..=1.001).contains(score)) {
        true => Ok(Said::Scores { scores }),
        false => Err("a score is not from 0 to 1".to_owned()),
    }
}

/// Where the JSON of a body ends and binary data begins.
const JSON_BYTES: &str = "inference-header-content-length";

fn headed(request: reqwest::RequestBuilder, json_bytes: Option<usize>) -> reqwest::RequestBuilder {
    match json_bytes {
        None => request.header(CONTENT_TYPE, HeaderValue::from_static("application/json")),
        Some(json_bytes) => request
            .header(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))
            .header(JSON_BYTES, json_bytes),
    }
}

fn json_bytes_of(headers: &HeaderMap) -> Option<usize> {
    headers.get(JSON_BYTES)?.to_str().ok()?.parse().ok()
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

fn chat(reply: Chat) -> Result<Answered, String> {
    let Choice { message, finish_reason, logprobs } = reply.choices.into_iter().next().ok_or("it has no choice")?;
    let refused = message.refusal.as_ref().is_some_and(|refusal| !refusal.is_empty());
    let text = message.content.or(message.refusal).unwrap_or_default();
    let tokens = logprobs.and_then(|logprobs| logprobs.content).filter(|tokens| !tokens.is_empty());
    let likelihood = tokens.map(|tokens| likelihood(&tokens)).transpose()?;
    let cut = finish_reason.as_deref() == Some("length");
    let served_by = served_by(reply.model, reply.system_fingerprint);
    let finish_reason = finish_reason.map(|reason| finish_reason_of(&reason));
    let said = Said::Text { text, cut, likelihood, finish_reason, refused };
    Ok((said, reply.usage.map(WireUsage::counted), served_by))
}

fn likelihood(tokens: &[Token]) -> Result<(f64, u32), String> {
    let sum: f64 = tokens.iter().map(|token| token.logprob).sum();
    // Rounding makes some hosts' certain tokens a little more than certain.
    let fits = sum.is_finite() && sum < 1e-3 * tokens.len() as f64;
    let n_tokens = u32::try_from(tokens.len()).ok().filter(|_| fits);
    n_tokens.map(|n| (sum.min(0.0), n)).ok_or_else(|| "its log-probabilities are none".to_owned())
}

fn embedding(reply: Embeddings) -> Result<Answered, String> {
    let [EmbeddingItem { embedding }] = <[_; 1]>::try_from(reply.data).map_err(|_| "it has not exactly one vector")?;
    let values = embedding.values()?;
    let bits = values.into_iter().map(f32::to_bits).collect();
    Ok((Said::Vector { bits }, reply.usage.map(WireUsage::counted), served_by(reply.model, None)))
}

fn moderation(reply: Moderations) -> Result<Answered, String> {
    let [ModerationItem { flagged, category_scores }] =
        <[_; 1]>::try_from(reply.results).map_err(|_| "it has not exactly one result")?;
    let score = category_scores.values().filter_map(Value::as_f64).fold(0.0, f64::max);
    if score > 1.0 {
        return Err("a category's score is over 1".to_owned());
    }
    Ok((Said::Moderation { flagged, score }, None, served_by(reply.model, None)))
}

fn reranked(reply: Reranked, n_documents: usize) -> Result<Answered, String> {
    let mut scores = vec![None; n_documents];
    for RankedItem { index, relevance_score } in reply.results {
        let place = scores.get_mut(index).filter(|place| place.is_none() && relevance_score.is_finite());
        *place.ok_or("a result has an index that it cannot have")? = Some(relevance_score);
    }
    let scores = scores.into_iter().collect::<Option<Vec<f64>>>().ok_or("a document has no score")?;
    Ok((Said::Relevances { scores }, None, served_by(reply.model, None)))
}

impl WireUsage {
    fn counted(self) -> Usage {
        Usage { input: self.prompt_tokens, output: self.completion_tokens }
    }
}

/// `model build`, as far as the host says; names of files are no names of models, so folders are left out.
fn served_by(model: Option<String>, build: Option<String>) -> Option<String> {
    let model = model.map(|model| model.rsplit('/').next().unwrap_or_default().to_owned());
    let said: Vec<String> = [model, build].into_iter().flatten().filter(|said| !said.is_empty()).collect();
    let said: String = said.join(" ").chars().filter(|c| !c.is_control()).take(MAX_SERVED_BY_CHARS).collect();
    (!said.is_empty()).then_some(said)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn hosts_ask_to_wait_in_three_ways() {
        let of = |name: &'static str, value: &str| {
            let headers = HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]);
            retry_after(&headers)
        };
        assert_eq!(of("retry-after", "2"), Some(Duration::from_secs(2)));
        assert_eq!(of("retry-after-ms", "1500"), Some(Duration::from_millis(1500)));
        assert_eq!(of("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        for nonsense in ["-1", "nan", "soon", "1e300"] {
            assert_eq!(of("retry-after", nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn waits_double_to_a_limit_and_vary() {
        for (n_tries, most_s) in [(1, 0.5), (2, 1.0), (4, 4.0), (20, 30.0), (u32::MAX, 30.0)] {
            let waits = [0; 50].map(|_| backoff(n_tries).as_secs_f64());
            assert!(waits.iter().all(|wait| (most_s / 2.0..=most_s).contains(wait)), "{n_tries}: {waits:?}");
            assert!(waits.iter().any(|wait| *wait != waits[0]));
        }
    }

    #[test]
    fn a_reply_that_breaks_its_protocol_is_an_error_in_words() {
        let described = "highroad_hosted = 1\ntask = 'generate'\nbase_url = 'https://models.example/v1'\nmodel = 'm'";
        let hosted = Hosted::parse(described).unwrap();
        for (what, body, reason) in [
            (Read::Chat, r#"{"choices": []}"#, "no choice"),
            (Read::Chat, r#"{"choices": "#, "EOF"),
            (Read::Embedding, r#"{"data": [{"embedding": "AAA="}]}"#, "whole number of f32"),
            (Read::Embedding, r#"{"data": [{"embedding": []}]}"#, "empty"),
            (Read::Embedding, r#"{"data": []}"#, "exactly one"),
            (Read::Moderation, r#"{"results": [{"flagged": true, "category_scores": {"a": 2}}]}"#, "over 1"),
            (Read::Rerank { n_documents: 2 }, r#"{"results": [{"index": 2, "relevance_score": 1}]}"#, "index"),
            (Read::Rerank { n_documents: 2 }, r#"{"results": [{"index": 0, "relevance_score": 1}]}"#, "no score"),
        ] {
            assert!(read(&hosted, what, body.as_bytes(), None).unwrap_err().contains(reason), "{body}");
        }
        let likely = r#"{"choices": [{"message": {"content": "a"}, "logprobs": {"content": [{"logprob": 5}]}}]}"#;
        assert!(read(&hosted, Read::Chat, likely.as_bytes(), None).is_err());
    }
}
