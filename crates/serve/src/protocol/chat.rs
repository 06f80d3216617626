//! `/v1/chat/completions` and `/v1/completions`: what is read of requests and answers that are passed through as they are.
//!
//! A body keeps its fields, their order and their text; only the model's name is another, and what the client leaves open is as the
//! description of the hosted model has it.

use std::collections::BTreeMap;
use std::fmt;

use highroad_hosted::{Hosted, Tokens, fill, finish_reason_of};
use highroad_package::Digest;
use highroad_service::Problem;
use highroad_task::{Glimpse, Written};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use super::openai::Refused;

/// Most tokens that a request may ask for, answers that it may ask for, and prompts that it may hold.
pub(crate) const MAX_TOKENS: u64 = 1 << 20;
const MAX_CHOICES: u64 = 128;
const MAX_PROMPTS: usize = 2048;
/// What is counted for a part of a message that is no text: its bytes may be elsewhere.
const TOKENS_A_PICTURE: u64 = 4096;
/// Tokens that a chat template adds to a message.
const TOKENS_A_MESSAGE: u64 = 32;
/// Largest event of a stream, and most choices that are followed in one.
const MAX_EVENT_BYTES: usize = 8 << 20;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completion,
}

/// A body, field by field, as it was written.
#[derive(Clone, Debug, Default)]
struct Fields(Vec<(String, Box<RawValue>)>);

/// A request to go on with a conversation or a text.
#[derive(Clone, Debug)]
pub struct ChatRequest {
    kind: Kind,
    fields: Fields,
    /// Member name.
    pub model: String,
    /// Whether the answer comes in events.
    pub stream: bool,
    /// Whether the client wants the last event, which counts the tokens.
    pub wants_usage: bool,
    /// What it holds to be read.
    pub(crate) texts: Texts,
    n_choices: u64,
    most_tokens: Option<u64>,
}

/// The messages or prompts of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Texts {
    pub(crate) n: usize,
    /// Bytes of the longest as text, without pictures; four for a token that is sent as its number.
    pub(crate) longest_bytes: usize,
}

impl Texts {
    fn of(values: &[Value]) -> Self {
        Self { n: values.len(), longest_bytes: values.iter().map(text_bytes).max().unwrap_or(0) }
    }
}

fn text_bytes(content: &Value) -> usize {
    match content {
        Value::String(text) => text.len(),
        Value::Number(_) => size_of::<u32>(),
        Value::Array(parts) => parts.iter().map(text_bytes).sum(),
        Value::Object(part) => part.get("text").map_or(0, text_bytes),
        Value::Null | Value::Bool(_) => 0,
    }
}

#[derive(Deserialize)]
struct Message<'a> {
    role: Option<String>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

impl Kind {
    /// Below `/v1`.
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "chat/completions",
            Self::Completion => "completions",
        }
    }

    /// Ours.
    pub fn route(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completion => "/v1/completions",
        }
    }

    fn input(self) -> &'static str {
        match self {
            Self::Chat => "messages",
            Self::Completion => "prompt",
        }
    }
}

impl ChatRequest {
    /// Reads a body. Checked is what is counted and mapped; all else is the host's to judge.
    pub fn parse(kind: Kind, body: &[u8]) -> Result<Self, Refused> {
        let fields: Fields = serde_json::from_slice(body)
            .map_err(|error| Problem::invalid(format!("the body is not a JSON object: {error}")))?;
        let model: Option<String> = fields.read("model", "a string")?;
        let model = model.ok_or_else(|| invalid("model", "`model` is missing"))?;
        let stream = fields.read("stream", "true or false")?.unwrap_or(false);
        let options: Option<StreamOptions> = fields.read("stream_options", "an object")?;
        let n: u64 = fields.read("n", "a whole number")?.unwrap_or(1);
        let best_of: u64 = fields.read("best_of", "a whole number")?.unwrap_or(1);
        let n_choices = n.max(best_of);
        if n.min(best_of) == 0 || n_choices > MAX_CHOICES {
            return Err(invalid("n", format!("`n` is 1 to {MAX_CHOICES}")));
        }
        let most_tokens = ["max_tokens", "max_completion_tokens"]
            .into_iter()
            .filter(|key| kind == Kind::Chat || *key == "max_tokens");
        let most_tokens =
            most_tokens.map(|key| fields.read::<u64>(key, "a whole number")).collect::<Result<Vec<_>, _>>()?;
        let most_tokens = most_tokens.into_iter().flatten().min();
        if most_tokens.is_some_and(|most| most > MAX_TOKENS) {
            return Err(invalid("max_tokens", format!("`max_tokens` is {MAX_TOKENS} at most")));
        }
        let wants_usage = options.is_some_and(|options| options.include_usage);
        let texts = Texts::default();
        let request = Self { kind, fields, model, stream, wants_usage, texts, n_choices, most_tokens };
        Ok(Self { texts: request.count_texts()?, ..request })
    }

    /// Below `/v1`.
    pub(crate) fn path(&self) -> &'static str {
        self.kind.path()
    }

    /// Bytes of its fields.
    pub(crate) fn n_bytes(&self) -> usize {
        self.fields.0.iter().map(|(key, value)| key.len() + value.get().len()).sum()
    }

    /// The same request for an answer that comes whole.
    pub(crate) fn whole(&self) -> Self {
        let mut whole = self.clone();
        whole.fields.remove(&["stream", "stream_options"]);
        Self { stream: false, wants_usage: false, ..whole }
    }

    /// What was said so far, as a judge or a person reads it: a line for each message, or the text to go on with.
    pub(crate) fn conversation(&self) -> String {
        let input = self.fields.get(self.kind.input()).map_or("", RawValue::get);
        let text = |content: &Value| match content {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        match serde_json::from_str::<Value>(input) {
            Ok(Value::Array(messages)) if self.kind == Kind::Chat => {
                let line = |message: &Value| {
                    format!("{}: {}", message["role"].as_str().unwrap_or("?"), text(&message["content"]))
                };
                messages.iter().map(line).collect::<Vec<_>>().join("\n")
            }
            Ok(prompt) => text(&prompt),
            Err(_) => String::new(),
        }
    }

    /// What monitoring looks at of it; pictures and token ids are passed over.
    pub(crate) fn glimpse(&self) -> Glimpse {
        let input = self.fields.get(self.kind.input()).map_or("null", RawValue::get);
        let input = serde_json::from_str(input).unwrap_or(Value::Null);
        let messages: Vec<(String, String)> = match &input {
            Value::Array(messages) if self.kind == Kind::Chat => messages
                .iter()
                .map(|message| (message["role"].as_str().unwrap_or_default().to_owned(), text_of(&message["content"])))
                .collect(),
            prompt => vec![("user".to_owned(), text_of(prompt))],
        };
        Glimpse::of_messages(messages.iter().map(|(role, text)| (role.as_str(), text.as_str()))).by_words()
    }

    fn count_texts(&self) -> Result<Texts, Refused> {
        let input = self.fields.get(self.kind.input());
        let input = input.ok_or_else(|| invalid(self.kind.input(), format!("`{}` is missing", self.kind.input())))?;
        match self.kind {
            Kind::Chat => match serde_json::from_str::<Vec<Message<'_>>>(input.get()) {
                Ok(messages) if messages.is_empty() => Err(invalid("messages", "`messages` is empty")),
                Ok(messages) => {
                    let content = |message: &Message<'_>| serde_json::from_str(message.content?.get()).ok();
                    let contents: Vec<Value> =
                        messages.iter().map(|message| content(message).unwrap_or_default()).collect();
                    Ok(Texts::of(&contents))
                }
                Err(_) => Err(invalid("messages", "`messages` is a list of objects with a `role`")),
            },
            Kind::Completion => match serde_json::from_str::<Value>(input.get()) {
                Ok(text @ Value::String(_)) => Ok(Texts::of(&[text])),
                Ok(Value::Array(items)) if items.is_empty() => Err(invalid("prompt", "`prompt` is empty")),
                Ok(Value::Array(ids)) if ids[0].is_number() => Ok(Texts::of(&[Value::Array(ids)])),
                Ok(Value::Array(items)) if items.len() <= MAX_PROMPTS => Ok(Texts::of(&items)),
                _ => Err(invalid(
                    "prompt",
                    format!("`prompt` is a string, token ids, or a list of up to {MAX_PROMPTS} of them"),
                )),
            },
        }
    }

    /// The body for the host, and what it may take at most.
    pub fn upstream(&self, hosted: &Hosted) -> Result<(Vec<u8>, Tokens), Refused> {
        let limit = if self.kind == Kind::Chat { hosted.max_tokens_name.as_str() } else { "max_tokens" };
        let most_tokens = self.most_tokens.unwrap_or_else(|| u64::from(hosted.max_tokens.get()));
        let mut fields = self.fields.clone();
        fields.remove(&["max_tokens", "max_completion_tokens"][..if self.kind == Kind::Chat { 2 } else { 1 }]);
        fields.set("model", &hosted.model);
        fields.set(limit, &most_tokens);
        if self.stream {
            fields.set_raw("stream_options", self.with_usage());
        }
        if let Some(temperature) = hosted.temperature {
            fields.set_default("temperature", &temperature);
        }
        if let Some(seed) = hosted.seed {
            fields.set_default("seed", &seed);
        }
        let mut others = 0;
        if self.kind == Kind::Chat {
            others = self.put_messages(hosted, &mut fields)?;
        }
        let body = serde_json::to_vec(&fields).expect("it was JSON");
        // A token is a byte or more, also one that is sent as its number.
        let input = body.len() as u64 + others;
        let n_prompts = if self.kind == Kind::Chat { 1 } else { self.texts.n as u64 };
        Ok((body, Tokens { input, output: most_tokens.saturating_mul(self.n_choices).saturating_mul(n_prompts) }))
    }

    /// The conversation with the description's `system` and `prompt`; tokens that its bytes do not account for.
    fn put_messages(&self, hosted: &Hosted, fields: &mut Fields) -> Result<u64, Refused> {
        let raw = self.fields.get("messages").map_or("[]", RawValue::get);
        let unreadable = |_| invalid("messages", "`messages` is a list of objects with a `role`");
        let mut messages: Vec<Box<RawValue>> = serde_json::from_str(raw).map_err(unreadable)?;
        let views = messages.iter().map(|raw| serde_json::from_str(raw.get()).map_err(unreadable));
        let views: Vec<Message<'_>> = views.collect::<Result<_, _>>()?;
        let n_pictures: u64 = views.iter().map(|message| pictures(message.content)).sum();
        let has_system = views.iter().any(|view| matches!(view.role.as_deref(), Some("system" | "developer")));
        let asked = hosted.prompt.as_ref().and_then(|prompt| with_prompt(prompt, views.last()?, messages.last()?));
        drop(views);
        let others = TOKENS_A_MESSAGE * (messages.len() as u64 + 2) + TOKENS_A_PICTURE * n_pictures;
        let changes = asked.is_some() || (hosted.system.is_some() && !has_system);
        if let (Some(asked), Some(last)) = (asked, messages.last_mut()) {
            *last = asked;
        }
        if let Some(system) = hosted.system.as_ref().filter(|_| !has_system) {
            messages.insert(0, raw_value(&json!({ "role": "system", "content": system })));
        }
        if changes {
            fields.set("messages", &messages);
        }
        Ok(others)
    }

    /// The client's `stream_options`, with which the host counts tokens: nobody else can.
    fn with_usage(&self) -> Box<RawValue> {
        let options = self.fields.get("stream_options").and_then(|raw| serde_json::from_str::<Value>(raw.get()).ok());
        let mut options = options.filter(Value::is_object).unwrap_or_else(|| json!({}));
        options["include_usage"] = true.into();
        raw_value(&options)
    }
}

/// The text of a message, or of its parts that are text; of several prompts the first.
fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) if parts.first().is_some_and(Value::is_string) => text_of(&parts[0]),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n"),
        _ => String::new(),
    }
}

/// The last message as `prompt` has it, where it is a user's and a text.
fn with_prompt(prompt: &str, view: &Message<'_>, raw: &RawValue) -> Option<Box<RawValue>> {
    let text: String = serde_json::from_str(view.content?.get()).ok()?;
    if view.role.as_deref() != Some("user") {
        return None;
    }
    let mut message: Fields = serde_json::from_str(raw.get()).ok()?;
    message.set("content", &fill(prompt, &[("input", &text)]));
    Some(raw_value(&message))
}

fn pictures(content: Option<&RawValue>) -> u64 {
    let parts = content.and_then(|content| serde_json::from_str::<Value>(content.get()).ok());
    let parts = parts.as_ref().and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    parts.iter().filter(|part| part.get("type").and_then(Value::as_str) != Some("text")).count() as u64
}

fn invalid(param: &'static str, message: impl Into<String>) -> Refused {
    Refused { problem: Problem::invalid(message), param: Some(param), code: None }
}

fn raw_value(value: &impl Serialize) -> Box<RawValue> {
    to_raw_value(value).expect("it is plain data")
}

impl Fields {
    fn get(&self, key: &str) -> Option<&RawValue> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_ref())
    }

    /// The value of `key`; `null` is as good as none.
    fn read<'a, T: Deserialize<'a>>(&'a self, key: &'static str, expected: &str) -> Result<Option<T>, Refused> {
        let value = self.get(key).map_or(Ok(None), |raw| serde_json::from_str(raw.get()));
        value.map_err(|_| invalid(key, format!("`{key}` is {expected}")))
    }

    fn set(&mut self, key: &str, value: &impl Serialize) {
        self.set_raw(key, raw_value(value));
    }

    fn set_raw(&mut self, key: &str, value: Box<RawValue>) {
        match self.0.iter_mut().find(|(name, _)| name == key) {
            Some((_, place)) => *place = value,
            None => self.0.push((key.to_owned(), value)),
        }
    }

    fn set_default(&mut self, key: &str, value: &impl Serialize) {
        if self.get(key).is_none_or(|raw| raw.get() == "null") {
            self.set(key, value);
        }
    }

    fn remove(&mut self, keys: &[&str]) {
        self.0.retain(|(name, _)| !keys.contains(&name.as_str()));
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Fields, M::Error> {
                let mut fields = Fields::default();
                while let Some((key, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    // What is counted here must be what the host reads.
                    if fields.get(&key).is_some() {
                        return Err(serde::de::Error::custom(format_args!("`{key}` is there twice")));
                    }
                    fields.0.push((key, value));
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

/// Reasons that are kept: they come from a host.
const MAX_FINISH_REASONS: usize = 16;

/// What is kept of an answer: how many tokens it took, and what it says, for its digests.
#[derive(Debug, Default)]
pub struct Tally {
    /// As the host counts them.
    pub usage: Option<Tokens>,
    /// What the host says it is.
    pub served_by: Option<String>,
    choices: BTreeMap<u64, Choice>,
    finish_reasons: Vec<String>,
}

#[derive(Debug, Default)]
struct Choice {
    text: String,
    calls: BTreeMap<u64, String>,
    is_refusal: bool,
}

/// The part of an answer that counts, whole or one event's.
#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    choices: Vec<PartChoice>,
    usage: Option<Usage>,
    model: Option<String>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct PartChoice {
    #[serde(default)]
    index: u64,
    #[serde(alias = "message")]
    delta: Option<Said>,
    text: Option<String>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Said {
    content: Option<String>,
    refusal: Option<String>,
    tool_calls: Option<Vec<Call>>,
}

#[derive(Deserialize)]
struct Call {
    index: Option<u64>,
    function: Option<Function>,
}

#[derive(Deserialize)]
struct Function {
    name: Option<String>,
    arguments: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
}

/// What an event of a stream is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Part of the answer, a comment, or something else to pass on.
    Part,
    /// The tokens alone, which come last where they were asked for.
    Usage,
    /// `[DONE]`
    Done,
    /// The host gave up, in its words.
    Error(String),
}

impl Tally {
    /// Of an answer that is no text.
    pub fn of(usage: Option<Tokens>, served_by: Option<String>) -> Self {
        Self { usage, served_by, ..Self::default() }
    }

    /// Takes in a whole answer. Errors, in words, where it is none.
    pub fn whole(&mut self, body: &[u8]) -> Result<(), String> {
        let part: Part =
            serde_json::from_slice(body).map_err(|error| format!("it answered with no completion: {error}"))?;
        if part.choices.is_empty() {
            return Err("it answered without a choice".to_owned());
        }
        self.take(part);
        Ok(())
    }

    /// Takes in one event of a stream, as [`Events`] gives them.
    pub fn event(&mut self, event: &[u8]) -> Event {
        let data = data(event);
        if data.trim() == "[DONE]" {
            return Event::Done;
        }
        // What is not understood is the client's to read.
        let Ok(part) = serde_json::from_str::<Part>(&data) else { return Event::Part };
        if let Some(error) = &part.error {
            let message = error.get("message").or(Some(error)).and_then(Value::as_str);
            return Event::Error(message.unwrap_or("it does not say why").to_owned());
        }
        let is_usage = part.choices.is_empty() && part.usage.is_some();
        self.take(part);
        if is_usage { Event::Usage } else { Event::Part }
    }

    /// What the first answer says.
    pub fn text(&self) -> &str {
        self.choices.values().next().map_or("", |choice| &choice.text)
    }

    /// What each answer says.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.choices.values().map(|choice| choice.text.as_str())
    }

    /// Whether every answer came to its end.
    pub fn is_finished(&self) -> bool {
        !self.finish_reasons.is_empty()
    }

    /// What monitoring counts of the first answer. Tokens are counted for all of them together, so that it has its part of these.
    pub(crate) fn written(&self) -> Written {
        let first = self.choices.values().next();
        let n_tokens = self.usage.map(|usage| usage.output as f64 / self.choices.len().max(1) as f64);
        let calls = first.is_some_and(|choice| !choice.calls.is_empty());
        let refused = first.is_some_and(|choice| choice.is_refusal);
        Written::of(self.text(), n_tokens, self.finish_reasons.first().map(String::as_str), calls, refused)
    }

    /// Why answers ended, as the host says, short and few.
    pub fn finish_reasons(&self) -> &[String] {
        &self.finish_reasons
    }

    /// One digest for each answer: SHA-256 of its text, followed by the names and arguments of the tools it calls. It is the same
    /// whether the answer came whole or in events.
    pub fn digests(&self) -> Vec<Digest> {
        self.choices.values().map(Choice::digest).collect()
    }

    fn take(&mut self, part: Part) {
        if let Some(usage) = part.usage {
            self.usage = Some(Tokens { input: usage.prompt_tokens, output: usage.completion_tokens });
        }
        self.served_by = part.model.or(self.served_by.take());
        for PartChoice { index, delta, text, finish_reason } in part.choices {
            if index >= MAX_CHOICES * MAX_PROMPTS as u64 {
                continue;
            }
            if let Some(reason) = finish_reason.filter(|_| self.finish_reasons.len() < MAX_FINISH_REASONS) {
                self.finish_reasons.push(finish_reason_of(&reason));
            }
            let choice = self.choices.entry(index).or_default();
            choice.text.extend(text);
            let Some(Said { content, refusal, tool_calls }) = delta else { continue };
            choice.is_refusal |= refusal.as_ref().is_some_and(|refusal| !refusal.is_empty());
            choice.text.extend(content.or(refusal));
            for (place, call) in tool_calls.into_iter().flatten().enumerate() {
                let arguments = choice.calls.entry(call.index.unwrap_or(place as u64)).or_default();
                let Some(Function { name, arguments: more }) = call.function else { continue };
                arguments.extend(name.map(|name| format!("{name}\n")));
                arguments.extend(more);
            }
        }
    }
}

impl Choice {
    fn digest(&self) -> Digest {
        let calls = self.calls.values().flat_map(|call| ["\n", call.as_str()]);
        Digest::of([self.text.as_str()].into_iter().chain(calls).collect::<String>().as_bytes())
    }
}

/// The `data` of an event.
fn data(event: &[u8]) -> String {
    let text = String::from_utf8_lossy(event);
    let lines = text.lines().filter_map(|line| line.strip_prefix("data:"));
    lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect::<Vec<_>>().join("\n")
}

/// Cuts a stream of server-sent events into them.
#[derive(Debug, Default)]
pub struct Events {
    waiting: Vec<u8>,
    /// Up to where no end of an event is.
    looked: usize,
}

impl Events {
    /// Takes in bytes. Errors where an event is too large to be one.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.waiting.extend_from_slice(bytes);
        if self.waiting.len() > MAX_EVENT_BYTES {
            return Err(format!("an event of its stream has more than {MAX_EVENT_BYTES} bytes"));
        }
        Ok(())
    }

    /// The next whole event with the empty line that ends it.
    pub fn next_event(&mut self) -> Option<Vec<u8>> {
        let end = self.end();
        self.looked = if end.is_some() { 0 } else { self.waiting.len().saturating_sub(3) };
        end.map(|end| self.waiting.drain(..end).collect())
    }

    /// What is left at the end of the stream.
    pub fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.waiting)
    }

    fn end(&self) -> Option<usize> {
        let from = self.looked;
        let bytes = &self.waiting[from..];
        let ends = |at: usize| {
            let rest = &bytes[at..];
            [&b"\n\n"[..], b"\r\n\r\n", b"\r\r"]
                .iter()
                .find(|end| rest.starts_with(end))
                .map(|end| from + at + end.len())
        };
        (0..bytes.len()).find_map(ends)
    }
}

/// An event that ends a stream which broke, as OpenAI's clients raise it.
pub fn error_event(message: &str) -> Vec<u8> {
    let error =
        json!({ "error": { "message": message, "type": "server_error", "param": null, "code": "upstream_failed" } });
    format!("data: {error}\n\n").into_bytes()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn hosted(more: &str) -> Hosted {
        let text = format!(
            "highroad_hosted = 1\ntask = 'generate'\nbase_url = 'https://models.example/v1'\nmodel = 'theirs'\nmax_tokens = 64\n{more}"
        );
        Hosted::parse(&text).unwrap()
    }

    fn sent(body: &str, more: &str) -> String {
        let request = ChatRequest::parse(Kind::Chat, body.as_bytes()).unwrap();
        String::from_utf8(request.upstream(&hosted(more)).unwrap().0).unwrap()
    }

    #[test]
    fn fields_keep_their_text_and_order_but_for_the_name() {
        let body = r#"{"tools":[{"z":1.50,"a":{"é":"\u00e9"}}],"model":"ours","messages":[{"role":"user","content":"hi","name":"b"}],"max_tokens":5,"response_format":{"json_schema":{"b":1,"a":2}},"ignore_eos":true}"#;
        let expected = body
            .replace("ours", "theirs")
            .replace(r#""max_tokens":5,"#, "")
            .replace("true}", r#"true,"max_tokens":5}"#);
        assert_eq!(sent(body, ""), expected);
    }

    #[test]
    fn what_is_left_open_is_as_the_description_has_it() {
        let body = r#"{"model":"m","messages":[{"role":"user","content":"Peru"}],"temperature":null}"#;
        let more = "max_tokens_name = 'max_completion_tokens'\ntemperature = 0.5\nseed = 7\nsystem = 'Be brief.'\nprompt = 'Where is {input}?'\n";
        let expected = r#"{"model":"theirs","messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"Where is Peru?"}],"temperature":0.5,"max_completion_tokens":64,"seed":7}"#;
        let in_any_order = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(in_any_order(&sent(body, more)), in_any_order(expected));
        let own = r#"{"model":"m","messages":[{"role":"system","content":"s"},{"role":"assistant","content":"a"}],"temperature":1,"seed":1,"max_tokens":2}"#;
        assert!(sent(own, more).contains(r#""messages":[{"role":"system","content":"s"},{"role":"assistant","content":"a"}],"temperature":1,"seed":1"#));
        assert!(sent(own, more).contains(r#""max_completion_tokens":2"#));
    }

    #[test]
    fn a_stream_is_asked_to_count() {
        let with = |options: &str| {
            sent(&format!(r#"{{"model":"m","messages":[{{"role":"user","content":"a"}}],"stream":true{options}}}"#), "")
        };
        assert!(with("").contains(r#""stream_options":{"include_usage":true}"#));
        let more = with(r#","stream_options":{"continuous_usage_stats":true}"#);
        assert!(
            more.contains(r#""continuous_usage_stats":true"#) && more.contains(r#""include_usage":true"#),
            "{more}"
        );
    }

    #[test]
    fn the_dearest_outcome_counts_bytes_pictures_and_every_answer() {
        let most = |kind, body: &str| ChatRequest::parse(kind, body.as_bytes()).unwrap().upstream(&hosted("")).unwrap();
        let (body, tokens) = most(Kind::Chat, r#"{"model":"m","messages":[{"role":"user","content":"a"}],"n":3}"#);
        assert_eq!(tokens, Tokens { input: body.len() as u64 + 96, output: 3 * 64 });
        let picture = r#"{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"u"}},{"type":"text","text":"t"}]}]}"#;
        let (body, tokens) = most(Kind::Chat, picture);
        assert_eq!(tokens.input, body.len() as u64 + 96 + 4096);
        let prompts = r#"{"model":"m","prompt":[[1,2],[3]],"max_tokens":1,"best_of":2,"echo":true}"#;
        assert_eq!(most(Kind::Completion, prompts).1.output, 4);
    }

    #[test]
    fn what_is_wrong_names_its_parameter() {
        for (body, param) in [
            ("[]", None),
            (r#"{"model":"m","model":"n","messages":[{}]}"#, None),
            (r#"{"messages":[{}]}"#, Some("model")),
            (r#"{"model":1,"messages":[{}]}"#, Some("model")),
            (r#"{"model":"m"}"#, Some("messages")),
            (r#"{"model":"m","messages":[]}"#, Some("messages")),
            (r#"{"model":"m","messages":"hi"}"#, Some("messages")),
            (r#"{"model":"m","messages":[{}],"stream":"yes"}"#, Some("stream")),
            (r#"{"model":"m","messages":[{}],"n":0}"#, Some("n")),
            (r#"{"model":"m","messages":[{}],"n":129}"#, Some("n")),
            (r#"{"model":"m","messages":[{}],"max_tokens":-1}"#, Some("max_tokens")),
            (r#"{"model":"m","messages":[{}],"max_completion_tokens":9999999}"#, Some("max_tokens")),
        ] {
            assert_eq!(ChatRequest::parse(Kind::Chat, body.as_bytes()).map(drop).unwrap_err().param, param, "{body}");
        }
        assert!(ChatRequest::parse(Kind::Completion, br#"{"model":"m","prompt":{}}"#).is_err());
    }

    fn tally(stream: &[&str]) -> (Tally, Vec<Event>) {
        let (mut tally, mut events) = (Tally::default(), Events::default());
        let mut seen = Vec::new();
        for bytes in stream {
            events.push(bytes.as_bytes()).unwrap();
            while let Some(event) = events.next_event() {
                seen.push(tally.event(&event));
            }
        }
        assert!(events.rest().is_empty());
        (tally, seen)
    }

    #[test]
    fn an_answer_has_one_digest_whole_or_in_events() {
        let mut whole = Tally::default();
        let call = r#"{"id":"c","type":"function","function":{"name":"look","arguments":"{\"a\":1}"}}"#;
        let body = format!(
            r#"{{"choices":[{{"index":0,"message":{{"role":"assistant","content":"Paris","tool_calls":[{call}]}},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":3,"completion_tokens":2}},"model":"b"}}"#
        );
        whole.whole(body.as_bytes()).unwrap();
        let (streamed, seen) = tally(&[
            ": hello\n\ndata: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"Pa\"}}]}\r\n\r",
            "\ndata:{\"choices\":[{\"index\":0,\"delta\":{\"content\":\"ris\",\"tool_calls\":[{\"index\":0,\"function\":{\"name\":\"look\",\"arguments\":\"{\\\"a\"}}]}}]}\n\n",
            "data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"\\\":1}\"}}]},\"finish_reason\":\"stop\"}]}\n\n",
            "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n",
        ]);
        assert_eq!(seen, [Event::Part, Event::Part, Event::Part, Event::Part, Event::Usage, Event::Done]);
        assert_eq!((streamed.digests(), streamed.usage), (whole.digests(), whole.usage));
        assert_eq!(whole.digests(), [Digest::of(b"Paris\nlook\n{\"a\":1}")]);
        assert!(streamed.is_finished() && whole.is_finished());
    }

    #[test]
    fn a_legacy_completion_has_a_digest_for_each_answer() {
        let mut whole = Tally::default();
        whole.whole(br#"{"choices":[{"index":1,"text":"b"},{"index":0,"text":"a"}]}"#).unwrap();
        assert_eq!(whole.digests(), [Digest::of(b"a"), Digest::of(b"b")]);
        assert!(Tally::default().whole(b"<html>").is_err() && Tally::default().whole(br#"{"choices":[]}"#).is_err());
    }

    #[test]
    fn a_host_that_gives_up_within_a_stream_is_heard() {
        let (_, seen) = tally(&[
            "data: {\"error\":{\"message\":\"out of memory\",\"code\":500}}\n\ndata: {\"error\":\"gone\"}\n\n",
        ]);
        assert_eq!(seen, [Event::Error("out of memory".to_owned()), Event::Error("gone".to_owned())]);
        let event = String::from_utf8(error_event("it \"broke\"")).unwrap();
        assert!(event.starts_with("data: {\"error\":") && event.ends_with("}\n\n"));
    }

    proptest::proptest! {
        #[test]
        fn events_are_the_same_however_their_bytes_come(stream in "(data: [a-zé]{0,5}(\n|\r\n|\r)|[\r\n]){0,20}", size in 1usize..9) {
            let all = |sizes: usize| {
                let (mut events, mut seen) = (Events::default(), Vec::new());
                for bytes in stream.as_bytes().chunks(sizes) {
                    events.push(bytes).unwrap();
                    seen.extend(std::iter::from_fn(|| events.next_event()));
                }
                (seen, events.rest())
            };
            let (whole, rest) = all(stream.len().max(1));
            proptest::prop_assert_eq!(&all(size), &(whole.clone(), rest.clone()));
            proptest::prop_assert_eq!([whole.concat(), rest].concat(), stream.as_bytes());
        }

        #[test]
        fn no_body_and_no_event_makes_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), text in "\\PC{0,80}") {
            for body in [bytes.as_slice(), text.as_bytes(), format!("{{\"model\":\"m\",\"messages\":[{text}]}}").as_bytes()] {
                let request = ChatRequest::parse(Kind::Chat, body);
                let _sent = request.map(|request| request.upstream(&hosted("system = 's'\nprompt = '{input}'\n")).map(drop));
                let _ = Tally::default().event(body);
                let _ = Tally::default().whole(body);
            }
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut events = Events::default();
        let megabyte = vec![b'a'; 1 << 20];
        assert!((0..9).any(|_| events.push(&megabyte).is_err() | events.next_event().is_some()));
    }
}
