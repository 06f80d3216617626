use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Digest, MANIFEST, PARITY, PROGRAM, PackageError, TOKENIZER};

mod image;
mod reading;

pub use image::{Channels, ImageInput, Interpolation, Orientation, Resize};
pub use reading::{PairTruncation, Truncation};

/// Longest `manifest.json`.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 1 << 20;
/// Most files of a package.
const MAX_FILES: usize = 64;
/// Longest name of a file, label, model or owner.
const MAX_NAME_BYTES: usize = 256;
/// Largest package.
const MAX_PACKAGE_BYTES: u64 = 1 << 40;
/// Most tokens of an input.
const MAX_TOKENS: u32 = 1 << 20;
/// Most widths that an embedding can be cut to.
const MAX_WIDTHS: usize = 64;
/// Widest embedding.
const MAX_DIMENSIONS: u32 = 1 << 16;

/// What a package is, file by file. Its canonical JSON (RFC 8785) is `manifest.json`, and the SHA-256 of those bytes
/// is the package's digest: two packages with one digest hold the same bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Format version, 1.
    pub highroad_package: u32,
    /// The model's name, a suggestion for the registry.
    pub name: String,
    /// What the model is for.
    pub task: Task,
    /// Every other file of the package, sorted by path.
    pub files: Vec<FileEntry>,
    /// Parity cases recorded from eager PyTorch.
    pub parity: Parity,
    /// Where the package comes from.
    pub provenance: Provenance,
    /// SPDX licence expression of the weights.
    pub licence: String,
    /// Who answers for the model.
    pub owner: String,
}

impl Manifest {
    /// Reads a manifest. Errors if `bytes` is not the canonical JSON of a valid one: unknown, repeated or disordered
    /// keys are refused too, so one manifest has one digest.
    pub fn parse(bytes: &[u8]) -> Result<Self, PackageError> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(|e| invalid(e.to_string()))?;
        manifest.validate()?;
        if manifest.canonical()? != bytes {
            return Err(invalid("it is not canonical JSON (RFC 8785) of the fields that version 1 knows"));
        }
        Ok(manifest)
    }

    /// The canonical JSON (RFC 8785), whose SHA-256 is the package's digest.
    pub fn canonical(&self) -> Result<Vec<u8>, PackageError> {
        serde_json_canonicalizer::to_vec(self).map_err(|e| invalid(e.to_string()))
    }

    /// The entry of the file called `name`.
    pub fn file(&self, name: &str) -> Option<&FileEntry> {
        self.files.iter().find(|entry| entry.path == name)
    }

    /// Checks what the types do not say. Errors tell the first field that does not fit.
    pub(crate) fn validate(&self) -> Result<(), PackageError> {
        ensure(self.highroad_package == 1, || format!("format version {} is not 1", self.highroad_package))?;
        ensure(is_model_name(&self.name), || format!("`{}` cannot name a model", self.name.escape_debug()))?;
        for (field, text) in [("licence", &self.licence), ("owner", &self.owner)] {
            ensure(is_line(text), || format!("`{field}` must be one short line that is not empty"))?;
        }
        self.task.validate()?;
        self.provenance.validate()?;
        self.validate_files()?;
        ensure(self.file(&self.parity.file).is_some(), || format!("parity file `{}` is not listed", self.parity.file))?;
        ensure(self.parity.n_cases > 0, || "there must be at least one parity case".to_owned())?;
        let relative_rms = self.parity.check.relative_rms;
        ensure(relative_rms > 0.0 && relative_rms < 1.0, || format!("`relative_rms` is {relative_rms}, not in (0, 1)"))
    }

    fn validate_files(&self) -> Result<(), PackageError> {
        ensure(self.files.len() <= MAX_FILES, || format!("{} files are more than {MAX_FILES}", self.files.len()))?;
        for entry in &self.files {
            ensure(is_file_name(&entry.path), || format!("`{}` is not a plain file name", entry.path.escape_debug()))?;
        }
        for pair in self.files.windows(2) {
            ensure(pair[0].path < pair[1].path, || format!("`{}` is repeated or not sorted", pair[1].path))?;
        }
        for &required in self.task.required_files() {
            ensure(self.file(required).is_some(), || format!("`{required}` is not listed"))?;
        }
        let total = self.files.iter().try_fold(0u64, |sum, entry| sum.checked_add(entry.size_bytes));
        let fits = total.is_some_and(|total| total <= MAX_PACKAGE_BYTES);
        ensure(fits, || format!("its files have more than {MAX_PACKAGE_BYTES} bytes"))
    }
}

/// One file of a package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// A plain file name (version 1 has no folders): `program.pt2`, `tokenizer.json`, `parity.safetensors`.
    pub path: String,
    /// Length of the content.
    pub size_bytes: u64,
    /// Digest of the content.
    pub digest: Digest,
}

/// The task signature: what goes in, what comes out, and the parameters between text or picture and tensor.
// serde cannot deny unknown fields beside a flattened one; `Manifest::parse` finds them, as they do not come back out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// What the model is for, with what only that task needs.
    #[serde(flatten)]
    pub kind: TaskKind,
    /// Of a model that is shown pictures: how they become its input. Text models have none, and picture models no tokenizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageInput>,
    /// Longest input in tokens, special tokens included; what happens to longer ones `truncation` says. 0, and left out, for pictures.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_tokens: u32,
    /// What the outputs of a program of tensors are called, in its order; as the program calls them where this is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<String>,
    /// Texts that go before an input, by name, as the `prompts` of sentence-transformers: any of an embedder, `query` and `document`
    /// of a reranker.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub prompts: BTreeMap<String, String>,
    /// The prompt of an embedder's input for which none is asked; none unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_prompt_name: Option<String>,
    /// What happens to inputs that are longer than `max_tokens`.
    #[serde(default, skip_serializing_if = "reading::is_default")]
    pub truncation: Truncation,
    /// Which text of a pair loses tokens.
    #[serde(default, skip_serializing_if = "reading::is_default")]
    pub pair_truncation: PairTruncation,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl Task {
    /// One that reads texts of up to `max_tokens` tokens as they are, and cuts the end of longer ones.
    pub fn new(kind: TaskKind, max_tokens: u32) -> Self {
        let (prompts, default_prompt_name) = (BTreeMap::new(), None);
        let (truncation, pair_truncation) = (Truncation::default(), PairTruncation::default());
        let outputs = Vec::new();
        Self { kind, image: None, max_tokens, outputs, prompts, default_prompt_name, truncation, pair_truncation }
    }

    /// The files without which the task cannot be done.
    pub(crate) fn required_files(&self) -> &'static [&'static str] {
        if self.has_tokenizer() { &[PROGRAM, TOKENIZER, PARITY] } else { &[PROGRAM, PARITY] }
    }

    fn has_tokenizer(&self) -> bool {
        self.image.is_none() && !matches!(self.kind, TaskKind::Tensors)
    }

    fn validate_outputs(&self) -> Result<(), PackageError> {
        let is_of_tensors = matches!(self.kind, TaskKind::Tensors);
        ensure(self.outputs.is_empty() || is_of_tensors, || "`outputs` are for the task `tensors`".to_owned())?;
        let mut seen = BTreeSet::new();
        for name in &self.outputs {
            ensure(is_line(name), || format!("output `{}` must be one short line", name.escape_debug()))?;
            ensure(seen.insert(name), || format!("output `{name}` is repeated"))?;
        }
        Ok(())
    }

    fn validate(&self) -> Result<(), PackageError> {
        self.validate_input()?;
        self.validate_outputs()?;
        self.validate_reading()?;
        match &self.kind {
            TaskKind::Classify { flagged: Some(_), pairs: true, .. } => {
                Err(invalid("`flagged` is for single texts, and `pairs` says that the model compares two"))
            }
            TaskKind::Classify { labels, flagged, thresholds, .. } => {
                validate_thresholds(thresholds, labels)?;
                match flagged.as_deref() {
                    Some(ANY_LABEL) if !thresholds.is_empty() => validate_labels(labels, None),
                    flagged => validate_labels(labels, flagged),
                }
            }
            TaskKind::Recommend { items } => validate_items(items),
            TaskKind::Embed { dimensions, matryoshka_dimensions, .. } => {
                ensure((1..=MAX_DIMENSIONS).contains(dimensions), || {
                    format!("`dimensions` is {dimensions}, not in 1..={MAX_DIMENSIONS}")
                })?;
                validate_matryoshka(matryoshka_dimensions, *dimensions)
            }
            TaskKind::Rerank | TaskKind::Tensors => Ok(()),
        }
    }

    fn validate_input(&self) -> Result<(), PackageError> {
        let max_tokens = self.max_tokens;
        match (&self.image, &self.kind) {
            (None, TaskKind::Tensors) => {
                ensure(max_tokens == 0, || "`max_tokens` is for texts, and the task `tensors` reads none".to_owned())
            }
            (None, _) => ensure((1..=MAX_TOKENS).contains(&max_tokens), || {
                format!("`max_tokens` is {max_tokens}, not in 1..={MAX_TOKENS}")
            }),
            (Some(image), TaskKind::Classify { flagged: None, .. }) if max_tokens == 0 => image.validate(),
            (Some(_), TaskKind::Classify { flagged: Some(_), .. }) => {
                Err(invalid("`flagged` is for texts, and `image` says that the model is shown pictures"))
            }
            (Some(_), TaskKind::Classify { .. }) => Err(invalid("a model has either `max_tokens` or `image`")),
            (Some(_), _) => Err(invalid("`image` is for the task `classify`")),
        }
    }
}

/// A task and its own parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "task", rename_all = "snake_case")]
#[non_exhaustive]
pub enum TaskKind {
    /// One label of several; the program returns logits `[B, labels]` and the scores are their softmax. With `thresholds` any number of
    /// the labels at once, none too, and each score is the logistic function of its own logit.
    Classify {
        /// Label of each logit.
        labels: Vec<String>,
        /// The label that `/v1/moderations` flags, where the model moderates; [`ANY_LABEL`] where every label of several is flagged.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        flagged: Option<String>,
        /// Whether an input is two texts side by side, such as a premise and a hypothesis.
        #[serde(default, skip_serializing_if = "is_false")]
        pairs: bool,
        /// Of a multi-label classifier, the score from which on each label holds, in the order of `labels`; else empty.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        thresholds: Vec<f64>,
    },
    /// A vector; the program returns it pooled, `[B, dimensions]`.
    Embed {
        /// Width of the vector.
        dimensions: u32,
        /// Whether the program already returns vectors of length 1.
        normalized: bool,
        /// Widths that the model was trained to be cut to (Matryoshka), ascending, all below `dimensions`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        matryoshka_dimensions: Vec<u32>,
    },
    /// How relevant a document is to a query; the program returns one logit, `[B, 1]`, and orders documents by it.
    Rerank,
    /// What somebody wants next, after a history of items; the program returns a logit for every item, `[B, items]`. The history is
    /// a text of items with spaces between them, the newest last; where it is too long, its start is cut.
    Recommend {
        /// The item of each logit: one word each.
        items: Vec<String>,
    },
    /// Whatever the program computes: its inputs and outputs are tensors by their own names, and nothing stands between.
    Tensors,
}

/// `flagged` of a multi-label classifier all of whose labels are flagged.
pub const ANY_LABEL: &str = "*";

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// Cases whose outputs eager PyTorch computed at export.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parity {
    /// The safetensors file: case `i` has `i.input.0`, … and `i.output.0`, ….
    pub file: String,
    /// Number of cases.
    pub n_cases: u32,
    /// What agreement means.
    pub check: Check,
}

/// Agreement between two tensors: root mean square of the difference over that of the reference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Largest accepted relative root mean square; 1e-5 for f32.
    pub relative_rms: f64,
}

/// The chain behind a package, from run to data.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Run in the tracking server that trained it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    /// Commit of the training code; `-dirty` appended if the tree had changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git_commit: Option<String>,
    /// Digest of the environment's lock file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<Digest>,
    /// Digest of every data file that trained it, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, Digest>,
    /// What each of these files was for, where it is known. A file without a role may hold all of it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data_roles: BTreeMap<String, DataRole>,
    /// Version of torch that exported it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub torch: Option<String>,
}

/// What a data file was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataRole {
    /// It trained the model.
    Train,
    /// It chose the checkpoint or the settings.
    Validation,
    /// It was held out, to measure by.
    Test,
}

impl fmt::Display for DataRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        })
    }
}

impl Provenance {
    /// Whether a data file may have shaped the model: every file but those that were held out.
    pub fn may_have_trained(&self, name: &str) -> bool {
        self.data_roles.get(name) != Some(&DataRole::Test)
    }

    fn validate(&self) -> Result<(), PackageError> {
        let stray = self.data_roles.keys().find(|name| !self.data.contains_key(*name));
        ensure(stray.is_none(), || {
            format!("`data_roles` names `{}`, which `data` does not", stray.map_or("", String::as_str).escape_debug())
        })
    }
}

fn validate_labels(labels: &[String], flagged: Option<&str>) -> Result<(), PackageError> {
    ensure(labels.len() >= 2, || "`labels` must have at least two".to_owned())?;
    let mut seen = BTreeSet::new();
    for label in labels {
        ensure(is_line(label), || {
            format!("label `{}` must be one short line that is not empty", label.escape_debug())
        })?;
        ensure(seen.insert(label), || format!("label `{label}` is repeated"))?;
    }
    match flagged {
        Some(flagged) => ensure(labels.iter().any(|l| l == flagged), || format!("`flagged` is `{flagged}`, no label")),
        None => Ok(()),
    }
}

fn validate_thresholds(thresholds: &[f64], labels: &[String]) -> Result<(), PackageError> {
    let fits = thresholds.is_empty() || thresholds.len() == labels.len();
    ensure(fits, || format!("`thresholds` has {} numbers for {} labels", thresholds.len(), labels.len()))?;
    let comma = labels.iter().find(|label| !thresholds.is_empty() && label.contains(','));
    ensure(comma.is_none(), || {
        format!(
            "label `{}` has a comma, which is what stands between labels that hold at once",
            comma.map_or("", String::as_str)
        )
    })?;
    match thresholds.iter().find(|threshold| !(**threshold > 0.0 && **threshold < 1.0)) {
        Some(odd) => Err(invalid(format!("a threshold is {odd}, not in (0, 1)"))),
        None => Ok(()),
    }
}

fn validate_items(items: &[String]) -> Result<(), PackageError> {
    validate_labels(items, None)?;
    match items.iter().find(|item| item.contains(char::is_whitespace)) {
        Some(item) => Err(invalid(format!("item `{item}` has a space in it, which is what stands between two items"))),
        None => Ok(()),
    }
}

fn validate_matryoshka(widths: &[u32], dimensions: u32) -> Result<(), PackageError> {
    ensure(widths.len() <= MAX_WIDTHS, || format!("`matryoshka_dimensions` has more than {MAX_WIDTHS} numbers"))?;
    let ascends = widths.is_sorted_by(|left, right| left < right);
    let fits = widths.iter().all(|&width| width > 0 && width < dimensions);
    ensure(ascends && fits, || {
        format!(
            "`matryoshka_dimensions` is {widths:?}: numbers above 0 and below `dimensions` ({dimensions}), ascending"
        )
    })
}

/// Letters, digits, `.`, `_` and `-`, not starting with a dot: no folders, no parent, no hidden file, nothing that
/// differs between file systems except case.
fn is_file_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !name.is_empty()
        && name.len() <= MAX_NAME_BYTES
        && !name.starts_with('.')
        && name.chars().all(plain)
        && name != MANIFEST
}

/// What a [`Reference`](crate::Reference) can name.
fn is_model_name(name: &str) -> bool {
    is_line(name) && !name.contains(['/', '\\', ' ', '@', ':'])
}

fn is_line(text: &str) -> bool {
    !text.trim().is_empty() && text.len() <= MAX_NAME_BYTES && !text.contains(char::is_control)
}

fn ensure(fact: bool, otherwise: impl FnOnce() -> String) -> Result<(), PackageError> {
    if fact { Ok(()) } else { Err(invalid(otherwise())) }
}

fn invalid(reason: impl Into<String>) -> PackageError {
    PackageError::Manifest { reason: reason.into() }
}
