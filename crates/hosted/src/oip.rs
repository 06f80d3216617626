//! A host that speaks the Open Inference Protocol v2 over REST: which of its model's tensors are texts, tokens and answers.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use highroad_data::{Encoder, PairCut, Tokenizer};
use highroad_package::Digest;
use highroad_task::raw::DType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::HostedTask;

const MAX_TOKENIZER_BYTES: u64 = 128 << 20;
const MAX_NAME_CHARS: usize = 200;
const MAX_TOKENS: u32 = 1 << 20;

/// The tensors of a model behind the Open Inference Protocol.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "HostedTensors")]
pub struct Oip {
    /// Version of the model; the host's choice if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The input of texts (BYTES), where the host makes tokens of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The `tokenizer.json` by which tokens are made here, else.
    #[serde(default, skip_serializing)]
    pub tokenizer: Option<PathBuf>,
    /// Of that file: what it holds is part of what the model is, where it lies is not.
    #[serde(default, skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub tokenizer_digest: Option<Digest>,
    /// Longer inputs lose their end.
    #[serde(default = "default_max_tokens")]
    pub max_tokens: NonZeroU32,
    /// The input of token ids.
    #[serde(default = "default_input_ids")]
    pub input_ids: String,
    /// The input that is 1 for tokens and 0 for what fills rows; none where it is empty.
    #[serde(default = "default_attention_mask")]
    pub attention_mask: String,
    /// The input of token types, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_type_ids: Option<String>,
    /// Of these three.
    #[serde(default)]
    pub ids: Ids,
    /// The output that is the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// What it holds, of a model that classifies or ranks.
    #[serde(default)]
    pub scores: Scores,
    /// Of a model that takes tensors: each input's datatype, which an evaluation asks with.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<String, Datatype>,
    /// Whether tensors go as binary data, which keeps bits and is smaller, rather than as JSON.
    #[serde(default = "default_binary")]
    pub binary: bool,
    #[serde(skip)]
    reader: Option<Reader>,
}

/// Datatype of token ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum Ids {
    #[default]
    #[serde(rename = "INT64")]
    Int64,
    #[serde(rename = "INT32")]
    Int32,
}

/// Datatype of a tensor, as the protocol calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)]
#[schemars(rename = "HostedDatatype")]
pub enum Datatype {
    Bool,
    Uint8,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
}

impl Datatype {
    /// The same as programs have it.
    pub fn dtype(self) -> DType {
        match self {
            Self::Bool => DType::Bool,
            Self::Uint8 => DType::U8,
            Self::Int8 => DType::I8,
            Self::Int16 => DType::I16,
            Self::Int32 => DType::I32,
            Self::Int64 => DType::I64,
            Self::Fp16 => DType::F16,
            Self::Bf16 => DType::BF16,
            Self::Fp32 => DType::F32,
            Self::Fp64 => DType::F64,
        }
    }
}

/// What an output holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scores {
    /// Softmax makes scores of them, and the logistic function relevances.
    #[default]
    Logits,
    /// They are scores already.
    Probabilities,
}

/// Makes tokens.
#[derive(Clone)]
pub(crate) struct Reader(Arc<Kind>);

enum Kind {
    Texts(Box<Tokenizer>),
    Pairs(Encoder),
}

/// One row of tokens.
pub(crate) struct Row {
    pub(crate) ids: Vec<u32>,
    pub(crate) types: Vec<u32>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reader(…)")
    }
}

/// What it makes is decided by the digest of its file.
impl PartialEq for Reader {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Reader {
    fn open(path: &Path, task: HostedTask, max_tokens: usize) -> Result<(Self, Digest), String> {
        let told = |error: &dyn fmt::Display| format!("oip.tokenizer `{}`: {error}", path.display());
        let mut json = Vec::new();
        let file = File::open(path).map_err(|error| told(&error))?;
        file.take(MAX_TOKENIZER_BYTES + 1).read_to_end(&mut json).map_err(|error| told(&error))?;
        let kind = match task {
            HostedTask::Rerank => Encoder::from_bytes(&json, 2, max_tokens, true).map(Kind::Pairs),
            _ => Tokenizer::from_bytes(&json, max_tokens).map(|tokenizer| Kind::Texts(Box::new(tokenizer))),
        };
        Ok((Self(Arc::new(kind.map_err(|error| told(&error))?)), Digest::of(&json)))
    }

    fn pad_id(&self) -> u32 {
        match &*self.0 {
            Kind::Texts(tokenizer) => tokenizer.pad_id(),
            Kind::Pairs(encoder) => encoder.pad_id(),
        }
    }
}

impl Oip {
    /// Reads what it names; relative paths are beside `folder`.
    pub(crate) fn open(&mut self, folder: &Path, task: HostedTask) -> Result<(), String> {
        let Some(path) = self.tokenizer.as_ref().map(|path| folder.join(path)) else { return Ok(()) };
        let (reader, digest) = Reader::open(&path, task, self.max_tokens.get() as usize)?;
        (self.reader, self.tokenizer_digest, self.tokenizer) = (Some(reader), Some(digest), Some(path));
        Ok(())
    }

    pub(crate) fn check(&self, task: HostedTask) -> Result<(), String> {
        let names =
            [self.version.as_deref(), self.text.as_deref(), self.token_type_ids.as_deref(), self.output.as_deref()];
        let given = names.into_iter().flatten().chain([self.input_ids.as_str()]);
        let given = given.chain(self.inputs.keys().map(String::as_str));
        if let Some(odd) = given.filter(|name| !is_name(name)).map(str::to_owned).next() {
            return Err(format!("oip: `{odd}` is no name of a tensor or version"));
        }
        if self.version.as_ref().is_some_and(|version| version.contains(['/', '?', '#', '%'])) {
            return Err("oip.version is one part of a path".to_owned());
        }
        if self.max_tokens.get() > MAX_TOKENS {
            return Err(format!("oip.max_tokens is at most {MAX_TOKENS}"));
        }
        if task != HostedTask::Infer && !self.inputs.is_empty() {
            return Err("oip.inputs is of `task = \"infer\"`".to_owned());
        }
        match (task, &self.text, &self.tokenizer) {
            (HostedTask::Infer, None, None) if self.output.is_none() => Ok(()),
            (HostedTask::Infer, ..) => {
                Err("task = \"infer\" passes tensors on as they are: it takes no text, tokenizer or output".to_owned())
            }
            _ if self.output.is_none() => Err("oip.output names the tensor that is the answer".to_owned()),
            (_, Some(_), Some(_)) => Err("oip.text and oip.tokenizer are two ways to read one text".to_owned()),
            (_, None, None) => Err("oip needs `text`, where the host makes tokens, or `tokenizer`".to_owned()),
            (HostedTask::Rerank, Some(_), None) => {
                Err("one input of texts has no place for a query beside a document: name a `tokenizer`".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// The tokens of each text. Errors, in words, where there is no tokenizer or one cannot be read.
    pub(crate) fn rows(&self, texts: &[String]) -> Result<Vec<Row>, String> {
        let Some(Kind::Texts(tokenizer)) = self.reader.as_ref().map(|reader| &*reader.0) else {
            return Err("it has no tokenizer".to_owned());
        };
        let row = |text: &String| {
            let encoded = tokenizer.encode(text).map_err(|error| error.to_string())?;
            Ok(Row { ids: encoded.ids, types: Vec::new() })
        };
        texts.iter().map(row).collect()
    }

    /// The tokens of a query beside each document.
    pub(crate) fn pairs(&self, query: &str, documents: &[String]) -> Result<Vec<Row>, String> {
        let Some(Kind::Pairs(encoder)) = self.reader.as_ref().map(|reader| &*reader.0) else {
            return Err("it has no tokenizer".to_owned());
        };
        let row = |document: &String| {
            let pair = encoder.pair(query, document, PairCut::default()).map_err(|error| error.to_string())?;
            Ok(Row { ids: pair.ids, types: pair.types })
        };
        documents.iter().map(row).collect()
    }

    pub(crate) fn pad_id(&self) -> u32 {
        self.reader.as_ref().map_or(0, Reader::pad_id)
    }
}

fn is_name(name: &str) -> bool {
    !name.trim().is_empty() && name.chars().count() <= MAX_NAME_CHARS && !name.contains(char::is_control)
}

fn default_max_tokens() -> NonZeroU32 {
    NonZeroU32::new(512).expect("512 is not 0")
}

fn default_input_ids() -> String {
    "input_ids".to_owned()
}

fn default_attention_mask() -> String {
    "attention_mask".to_owned()
}

fn default_binary() -> bool {
    true
}
