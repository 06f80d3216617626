use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use highroad_eval::{Array, Case, Expected, Tolerance};
use highroad_package::Digest;
use highroad_task::Input;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::GoldenError;

mod coverage;
mod diff;
mod edit;
mod inputs;
mod leaks;
mod lint;
mod lock;
mod near;
mod pictures;
mod slices;

pub use coverage::{ASSUMED_DISCORDANCE, Coverage, can_be_right, coverage};
pub use diff::{Difference, Edited, diff};
pub use edit::{EditError, Editing, add, edit};
pub use leaks::{MeaningError, Training, alike_by_meaning, leaks};
pub use lint::{Finding, Kind, Level, LintOptions, in_words, lint};
pub use lock::{Blessing, Changes, Lock, LockError};
pub(crate) use pictures::thumbnail;
pub use slices::SliceError;

use inputs::{Inputs, MAX_HELD_BYTES};
use pictures::{Files, MAX_INLINE_BYTES};

/// Largest golden set that is read, in its own bytes and as JSONL.
const MAX_GOLDEN_BYTES: u64 = 64 << 30;

/// Most cases: what is held of each, but for its texts, is what bounds the memory.
const MAX_CASES: usize = 20_000_000;

/// Most documents of a query.
const MAX_DOCUMENTS: usize = 1000;

/// Most tensors that a case gives, and most that it expects.
const MAX_TENSORS: usize = 64;

/// Longest id, slice name, tag or source.
const MAX_NAME_CHARS: usize = 200;

/// Most slices, and most tags, of a case: slice expressions walk them.
const MAX_NAMES: usize = 32;

/// What a case may count beside the others: sums of their squares stay far from where f64 ends.
const WEIGHTS: RangeInclusive<f64> = 1e-6..=1e6;

/// Most facts in a case's provenance, and the longest text among them.
const MAX_FACTS: usize = 32;
const MAX_FACT_CHARS: usize = 2_000;

/// Named cases with right answers, known by the digest of the file's bytes.
#[derive(Clone, Debug)]
pub struct GoldenSet {
    /// The file's name without its ending.
    pub name: String,
    /// Digest of the file.
    pub digest: Digest,
    /// At least one, in file order, all of one [`GoldenKind`].
    pub cases: Vec<GoldenCase>,
    inputs: Inputs,
}

/// A golden case but for what it asks, which is [`GoldenSet::input`].
#[derive(Clone, Debug)]
pub struct GoldenCase {
    /// Id, right answer, slices.
    pub case: Case,
    /// What it asks for.
    pub kind: GoldenKind,
    /// The prompt of what is embedded, by its name in the package, where the case says it.
    pub prompt_name: Option<String>,
    /// Words about the case that slice expressions may use.
    pub tags: Vec<String>,
    /// The document, template or user the case came from; cases that share one are resampled together.
    pub source: Option<String>,
    /// Where the case comes from: who wrote it, when, its address, its licence.
    pub provenance: BTreeMap<String, Fact>,
    /// Digest of everything the case says, however its line is spaced and its keys are ordered.
    pub digest: Digest,
}

/// One fact of a case's provenance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a text, a number or a yes or no")]
#[allow(missing_docs)]
pub enum Fact {
    Flag(bool),
    Whole(i64),
    Number(f64),
    Text(String),
}

/// What a model is asked in a golden case.
#[derive(Clone, Debug, PartialEq)]
pub enum GoldenInput {
    /// One text or picture, to be labelled or to be given a number; or the tensors that a program takes.
    One(Input),
    /// Two texts, to be compared.
    Pair([String; 2]),
    /// An anchor, a text that belongs to it and one that does not.
    Triplet([String; 3]),
    /// Documents, to be ordered by how well they answer a query.
    Ranking {
        /// What is sought.
        query: String,
        /// At least one, in the order they came in, such as that of a first search.
        documents: Vec<String>,
    },
    /// Messages, to be answered with a text; a prompt is the one message of a user.
    Prompt(Vec<Message>),
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// What a golden set asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum GoldenKind {
    Labels,
    LabelSets,
    Similarities,
    Triplets,
    Rankings,
    Numbers,
    Texts,
    Tensors,
}

impl GoldenKind {
    fn of(input: &GoldenInput, expected: &Expected) -> Self {
        match (input, expected) {
            (GoldenInput::One(Input::Tensors(_)), _) => Self::Tensors,
            (GoldenInput::One(_), Expected::Number(_)) => Self::Numbers,
            (GoldenInput::One(_), Expected::Labels(_)) => Self::LabelSets,
            (GoldenInput::One(_), _) => Self::Labels,
            (GoldenInput::Pair(_), _) => Self::Similarities,
            (GoldenInput::Triplet(_), _) => Self::Triplets,
            (GoldenInput::Ranking { .. }, _) => Self::Rankings,
            (GoldenInput::Prompt(_), _) => Self::Texts,
        }
    }

    /// After "asks for".
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Labels => "labels",
            Self::LabelSets => "sets of labels",
            Self::Similarities => "similarities of pairs",
            Self::Triplets => "comparisons of triplets",
            Self::Rankings => "rankings of documents",
            Self::Numbers => "numbers",
            Self::Texts => "texts",
            Self::Tensors => "tensors",
        }
    }
}

/// A case as it is written. Its JSON without what is left out is what its digest is taken over, so a key that is added here
/// keeps the digests of the cases that do without it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    id: String,
    input: LineInput,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prompt_name: Option<String>,
    #[serde(default, skip_serializing_if = "LineExpected::is_implied")]
    expected: LineExpected,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    slices: Vec<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    must_pass: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    provenance: BTreeMap<String, Fact>,
    #[serde(default, skip_serializing_if = "counts_as_usual")]
    weight: Option<f64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected {\"text\": …}, {\"tokens\": […]}, {\"image\": …, \"sha256\": …}, {\"image_base64\": …}, {\"a\": …, \"b\": …}, {\"anchor\": …, \"positive\": …, \"negative\": …}, \
                 {\"query\": …, \"documents\": […]}, {\"prompt\": …}, {\"tensors\": {…}} or {\"messages\": [{\"role\": …, \"content\": …}]}"
)]
pub(crate) enum LineInput {
    Text(Text),
    Tokens(Tokens),
    Image(ImageFile),
    ImageBase64(ImageBase64),
    Pair(Pair),
    Triplet(Triplet),
    Ranking(Ranking),
    Prompt(Prompt),
    Messages(Messages),
    Tensors(NamedTensors),
}

/// A right answer as it is written.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum LineExpected {
    Tensors(RightTensors),
    Other(Expected),
}

impl<'de> Deserialize<'de> for LineExpected {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        const EXPECTED: &str = "expected a label or text, a list of them, a number, a list of relevances, or {\"tensors\": {…}} with \
                                \"tolerance\" or \"tolerances\" at most";
        let told = |problem: String| D::Error::custom(problem);
        // Of an object is told which of its keys is wrong.
        match Value::deserialize(reader)? {
            value @ Value::Object(_) => RightTensors::deserialize(value)
                .map(Self::Tensors)
                .map_err(|problem| told(format!("{EXPECTED}: {problem}"))),
            value => Expected::deserialize(value).map(Self::Other).map_err(|_| told(EXPECTED.to_owned())),
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Text {
    text: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tokens {
    tokens: Vec<u32>,
}

/// A picture in a file below the golden set's folder, whose digest binds its bytes to the set's.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImageFile {
    image: String,
    sha256: String,
}

/// A small picture in the golden set itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImageBase64 {
    image_base64: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pair {
    a: String,
    b: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Triplet {
    anchor: String,
    positive: String,
    negative: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Prompt {
    prompt: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Messages {
    messages: Vec<Message>,
}

fn counts_as_usual(weight: &Option<f64>) -> bool {
    weight.is_none_or(|weight| weight == 1.0)
}

/// Nested lists, not read further: so that what is wrong with one can be told with its name.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NamedTensors {
    tensors: BTreeMap<String, Value>,
}

/// The same with how far they may be off, not read further either.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RightTensors {
    tensors: BTreeMap<String, Value>,
    /// Of every output without one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tolerance: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tolerances: Option<BTreeMap<String, Value>>,
}

impl Default for LineExpected {
    fn default() -> Self {
        Self::Other(Expected::Implied)
    }
}

impl LineExpected {
    fn is_implied(&self) -> bool {
        matches!(self, Self::Other(Expected::Implied))
    }

    fn read(self) -> Result<Expected, String> {
        match self {
            Self::Tensors(right) => right.read(),
            Self::Other(expected) => Ok(expected),
        }
    }
}

impl RightTensors {
    fn read(self) -> Result<Expected, String> {
        let tensors = NamedTensors { tensors: self.tensors }.arrays("expected tensor")?;
        let of_one = self.tolerances.unwrap_or_default();
        if let Some(name) = of_one.keys().find(|name| !tensors.contains_key(*name)) {
            return Err(format!("`tolerances` names `{name}`, which is not expected"));
        }
        let tolerance = |name: &String| {
            let written = of_one.get(name).or(self.tolerance.as_ref())?;
            let read = Tolerance::deserialize(written).map_err(|problem| format!("tolerance of `{name}`: {problem}"));
            Some(read.map(|tolerance| (name.clone(), tolerance)))
        };
        let tolerances = tensors.keys().filter_map(tolerance).collect::<Result<_, String>>()?;
        Ok(Expected::Tensors { tensors, tolerances })
    }
}

impl NamedTensors {
    /// Errors say which of them is what.
    fn arrays(self, what: &str) -> Result<BTreeMap<String, Array>, String> {
        match self.tensors.len() {
            0 => return Err(format!("`tensors` names no {what}")),
            n if n > MAX_TENSORS => return Err(format!("{n} tensors are more than {MAX_TENSORS}")),
            _ => {}
        }
        let read = self.tensors.into_iter().map(|(name, json)| {
            check_name(what, &name)?;
            let array = Array::try_from(json).map_err(|problem| format!("{what} `{name}`: {problem}"))?;
            Ok((name, array))
        });
        read.collect()
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ranking {
    query: String,
    documents: Vec<String>,
}

impl GoldenSet {
    /// Reads a JSONL file, one case a line, or where it is called `.parquet` one case a row, and checks the pictures beside it.
    /// Unknown keys, a second case of one id, cases of two kinds, a picture that is missing or was changed, and an empty set are
    /// errors that name the line, or the row.
    ///
    /// The texts of a file over 64 MiB and pictures of their own files stay there: [`GoldenSet::input`] reads them when they are asked.
    pub fn read(path: &Path) -> Result<Self, GoldenError> {
        Self::read_holding(path, MAX_HELD_BYTES)
    }

    /// The cases without their inputs, as `highroad-eval` takes them.
    pub fn cases(&self) -> Vec<Case> {
        self.cases.iter().map(|case| case.case.clone()).collect()
    }

    /// What it asks for.
    pub fn kind(&self) -> GoldenKind {
        self.cases[0].kind
    }

    /// The ids of the cases, in file order.
    pub fn ids(&self) -> Vec<String> {
        self.cases.iter().map(|case| case.case.id.clone()).collect()
    }

    /// The labels that are expected somewhere, sorted; none where no labels are asked for.
    pub fn labels(&self) -> BTreeSet<&str> {
        let expected = self.cases.iter().map(|case| &case.case.expected);
        expected
            .filter_map(|expected| if let Expected::Label(label) = expected { Some(label.as_str()) } else { None })
            .collect()
    }
}

impl GoldenInput {
    /// The same, where a pair of texts is one input of a classifier: it expects a label, as no two vectors have.
    fn for_(self, expected: &Expected) -> Self {
        match (self, expected) {
            (Self::Pair([query, document]), Expected::Label(_) | Expected::References(_)) => {
                Self::One(Input::Pair { query, document })
            }
            (input, _) => input,
        }
    }
}

impl LineInput {
    /// What a model is asked, with the picture that lies in a file of `files`. Errors say what is wrong with a picture.
    fn asked(self, files: &Files) -> Result<GoldenInput, String> {
        Ok(match self {
            Self::Text(Text { text }) => GoldenInput::One(Input::Text(text)),
            Self::Tokens(Tokens { tokens }) => GoldenInput::One(Input::Tokens(tokens)),
            Self::Image(ImageFile { image, sha256 }) => GoldenInput::One(Input::Image(files.read(&image, &sha256)?)),
            Self::ImageBase64(ImageBase64 { image_base64 }) => GoldenInput::One(Input::Image(inline(&image_base64)?)),
            Self::Pair(Pair { a, b }) => GoldenInput::Pair([a, b]),
            Self::Triplet(Triplet { anchor, positive, negative }) => GoldenInput::Triplet([anchor, positive, negative]),
            Self::Ranking(Ranking { query, documents }) => GoldenInput::Ranking { query, documents },
            Self::Prompt(Prompt { prompt }) => {
                GoldenInput::Prompt(vec![Message { role: "user".to_owned(), content: prompt }])
            }
            Self::Messages(Messages { messages }) => GoldenInput::Prompt(messages),
            Self::Tensors(named) => GoldenInput::One(Input::Tensors(named.arrays("input tensor")?)),
        })
    }
}

/// Whether a golden set of this name is Parquet.
fn is_parquet(path: &Path) -> bool {
    path.extension().is_some_and(|suffix| suffix.eq_ignore_ascii_case("parquet"))
}

struct Reader {
    files: Files,
    /// Whether a case's picture is a file of its own.
    has_files: bool,
    cases: Vec<GoldenCase>,
    lines: HashMap<Known, u32>,
    drawn: HashMap<Known, usize>,
    n_drawn: usize,
}

/// A text as half of its SHA-256: a million of them are known in some 50 MB, however long they are.
#[derive(PartialEq, Eq, Hash)]
struct Known([u8; 16]);

impl Known {
    fn of(kind: &str, text: &str) -> Self {
        let digest = Sha256::new().chain_update(kind).chain_update("\n").chain_update(text).finalize();
        Self(std::array::from_fn(|idx| digest[idx]))
    }
}

/// What a bootstrap draws.
enum Drawn<'a> {
    Text(&'a str),
    Source(&'a str),
    /// A case of its own.
    Case,
}

impl Reader {
    fn new(files: Files) -> Self {
        Self { files, has_files: false, cases: Vec::new(), lines: HashMap::new(), drawn: HashMap::new(), n_drawn: 0 }
    }

    /// Takes in a case and gives what it asks.
    fn add(&mut self, line: usize, record: Line) -> Result<GoldenInput, String> {
        record.check()?;
        if self.cases.len() == MAX_CASES {
            return Err(format!("there are more than {MAX_CASES} cases"));
        }
        let digest = record.digest();
        let Line { id, input, prompt_name, expected, slices, must_pass, tags, source, provenance, weight } = record;
        if let Some(first) = self.lines.insert(Known::of("id", &id), u32::try_from(line).unwrap_or(u32::MAX)) {
            return Err(format!("id `{id}` is already taken by line {first}"));
        }
        self.has_files |= matches!(input, LineInput::Image(_));
        let expected = expected.read()?;
        let input = input.asked(&self.files)?.for_(&expected);
        let expected = match (&input, expected) {
            (GoldenInput::Prompt(_), Expected::Label(text)) => Expected::References(vec![text]),
            // Whether it is answered rightly is for a program or a judge to say.
            (GoldenInput::Prompt(_), Expected::Implied) => Expected::References(Vec::new()),
            // An empty list reads as one of numbers; here it is that no label holds.
            (GoldenInput::One(_), Expected::Relevances(none)) if none.is_empty() => Expected::Labels(Vec::new()),
            (GoldenInput::One(_), Expected::References(labels)) => Expected::Labels(labels),
            (_, expected) => expected,
        };
        check_expected(&input, &expected, must_pass)?;
        let kind = GoldenKind::of(&input, &expected);
        if let Some(first) = self.cases.first().map(|case| case.kind).filter(|&first| first != kind) {
            let [first, kind] = [first, kind].map(GoldenKind::in_words);
            return Err(format!("a golden set asks for one kind of answer: {first} before, {kind} here"));
        }
        if let Expected::Tensors { tensors, .. } = &expected {
            self.check_outputs(tensors)?;
        }
        let sources = match (&input, &source) {
            (GoldenInput::Pair(_), Some(_)) => {
                return Err("a pair takes no `source`: pairs are resampled by the texts they share".to_owned());
            }
            // Pairs that share a text are not independent, so texts are what a bootstrap draws.
            (GoldenInput::Pair(texts), None) => texts.each_ref().map(|text| self.drawn(Drawn::Text(text))),
            (_, Some(source)) => [self.drawn(Drawn::Source(source)); 2],
            (GoldenInput::Triplet([anchor, ..]), None) => [self.drawn(Drawn::Text(anchor)); 2],
            // A labelled case is a source of its own, and so are a query and a prompt.
            (_, None) => [self.drawn(Drawn::Case); 2],
        };
        let case = Case { id, expected, slices, must_pass, sources, weight: weight.unwrap_or(1.0) };
        self.cases.push(GoldenCase { case, kind, prompt_name, tags, source, provenance, digest });
        Ok(input)
    }

    /// All cases expect the same outputs, so that each is measured on all of them.
    fn check_outputs(&self, tensors: &BTreeMap<String, Array>) -> Result<(), String> {
        let first = self.cases.first().map(|first| &first.case.expected);
        let Some(Expected::Tensors { tensors: first, .. }) = first else { return Ok(()) };
        if first.keys().eq(tensors.keys()) {
            return Ok(());
        }
        let [first, here] = [first, tensors].map(|of| of.keys().map(|name| format!("`{name}`")).collect::<Vec<_>>());
        Err(format!("all cases expect the same tensors: {} before, {} here", first.join(", "), here.join(", ")))
    }

    /// The number of what a bootstrap draws, counted in the order they are met.
    fn drawn(&mut self, what: Drawn<'_>) -> usize {
        let next = self.n_drawn;
        let number = match what {
            Drawn::Text(text) => *self.drawn.entry(Known::of("text", text)).or_insert(next),
            Drawn::Source(source) => *self.drawn.entry(Known::of("source", source)).or_insert(next),
            Drawn::Case => next,
        };
        self.n_drawn += usize::from(number == next);
        number
    }
}

fn inline(base64: &str) -> Result<Arc<[u8]>, String> {
    let bytes = BASE64_STANDARD.decode(base64).map_err(|error| format!("`image_base64` is not base64: {error}"))?;
    match bytes.len() {
        n if n > MAX_INLINE_BYTES => Err(format!(
            "an image of {n} bytes is over the {MAX_INLINE_BYTES} that a golden set takes inline: put it into a file and give `image` \
             and `sha256`"
        )),
        _ => Ok(Arc::from(bytes)),
    }
}

impl Line {
    fn check(&self) -> Result<(), String> {
        check_name("id", &self.id)?;
        check_names("slice", &self.slices)?;
        check_names("tag", &self.tags)?;
        self.prompt_name.iter().try_for_each(|name| check_name("prompt name", name))?;
        let is_embedded = matches!(self.input, LineInput::Pair(_) | LineInput::Triplet(_) | LineInput::Ranking(_));
        if self.prompt_name.is_some() && !is_embedded {
            return Err("`prompt_name` is for what is embedded: pairs, triplets and rankings".to_owned());
        }
        self.source.iter().try_for_each(|source| check_name("source", source))?;
        check_provenance(&self.provenance)?;
        if let Some(weight) = self.weight.filter(|weight| !WEIGHTS.contains(weight)) {
            return Err(format!("weight {weight} must be {} to {}", WEIGHTS.start(), WEIGHTS.end()));
        }
        if self.slices.iter().any(|slice| slice == "*") {
            return Err("a slice cannot be called `*`, which means every slice in gates.toml".to_owned());
        }
        Ok(())
    }

    fn digest(&self) -> Digest {
        Digest::of(&serde_json::to_vec(self).expect("a case is plain data with text keys"))
    }
}

fn check_names(what: &str, names: &[String]) -> Result<(), String> {
    names.iter().try_for_each(|name| check_name(what, name))?;
    if names.len() > MAX_NAMES {
        return Err(format!("{} {what}s are more than {MAX_NAMES}", names.len()));
    }
    let distinct: BTreeSet<&String> = names.iter().collect();
    if distinct.len() < names.len() { Err(format!("a {what} is given twice")) } else { Ok(()) }
}

fn check_provenance(facts: &BTreeMap<String, Fact>) -> Result<(), String> {
    facts.keys().try_for_each(|key| check_name("provenance key", key))?;
    let is_long = |fact: &Fact| matches!(fact, Fact::Text(text) if text.chars().count() > MAX_FACT_CHARS);
    match facts.iter().find(|(_, fact)| is_long(fact)) {
        Some((key, _)) => Err(format!("provenance `{key}` is over {MAX_FACT_CHARS} characters")),
        None if facts.len() > MAX_FACTS => {
            Err(format!("{} facts of provenance are more than {MAX_FACTS}", facts.len()))
        }
        None => Ok(()),
    }
}

fn check_name(what: &str, name: &str) -> Result<(), String> {
    let fits = !name.trim().is_empty() && name.chars().count() <= MAX_NAME_CHARS && !name.contains(char::is_control);
    if fits { Ok(()) } else { Err(format!("{what} {name:?} must be 1 to {MAX_NAME_CHARS} printable characters")) }
}

fn check_expected(input: &GoldenInput, expected: &Expected, must_pass: bool) -> Result<(), String> {
    match (input, expected) {
        (GoldenInput::One(Input::Tensors(_)), Expected::Tensors { tolerances, .. })
            if must_pass && tolerances.is_empty() =>
        {
            Err("`must_pass` needs a case that can be right: give its tensors a `tolerance`".to_owned())
        }
        (GoldenInput::One(Input::Tensors(_)), Expected::Tensors { tensors, .. }) => {
            match tensors.iter().find(|(_, array)| array.values().is_empty()) {
                Some((name, _)) => Err(format!("expected tensor `{name}` has no number")),
                None => Ok(()),
            }
        }
        (GoldenInput::One(Input::Tensors(_)), _) => {
            Err("tensors expect {\"tensors\": {…}}: the right outputs, by name, as nested lists".to_owned())
        }
        (GoldenInput::One(_) | GoldenInput::Pair(_), Expected::Number(_)) if must_pass => {
            Err("`must_pass` needs a case that can be right: a number never just is".to_owned())
        }
        (GoldenInput::One(_), Expected::Label(_) | Expected::Number(_)) => Ok(()),
        (GoldenInput::One(_), Expected::Labels(labels)) => check_labels(labels),
        (GoldenInput::One(_), _) => Err("a text or an image expects a label, a list of labels or a number".to_owned()),
        (GoldenInput::Triplet(_), Expected::Implied) => Ok(()),
        (GoldenInput::Triplet(_), _) => {
            Err("a triplet needs no `expected`: its positive text is the closer one".to_owned())
        }
        (GoldenInput::Prompt(messages), Expected::References(_)) => check_messages(messages),
        (GoldenInput::Prompt(_), _) => Err("a prompt expects a text, a list of texts or nothing".to_owned()),
        (GoldenInput::Ranking { documents, .. }, Expected::Relevances(relevances)) => {
            check_ranking(documents.len(), relevances, must_pass)
        }
        (GoldenInput::Ranking { .. }, _) => Err("a query expects a list: the relevance of each document".to_owned()),
        (GoldenInput::Pair(_), Expected::Number(_)) => Ok(()),
        (GoldenInput::Pair(_), _) => Err("a pair expects a number, or a label".to_owned()),
    }
}

fn check_labels(labels: &[String]) -> Result<(), String> {
    let repeated = (1..labels.len()).find(|&idx| labels[..idx].contains(&labels[idx]));
    match repeated {
        Some(idx) => Err(format!("label `{}` is expected twice", labels[idx])),
        None => Ok(()),
    }
}

fn check_messages(messages: &[Message]) -> Result<(), String> {
    const ROLES: [&str; 3] = ["system", "user", "assistant"];
    match messages.iter().find(|message| !ROLES.contains(&message.role.as_str())) {
        Some(message) => Err(format!("role {:?} is not one of: {}", message.role, ROLES.join(", "))),
        None if messages.last().is_none_or(|last| last.role != "user") => {
            Err("`messages` must end with one of the user, which is answered".to_owned())
        }
        None => Ok(()),
    }
}

fn check_ranking(n_documents: usize, relevances: &[u32], must_pass: bool) -> Result<(), String> {
    let n_relevances = relevances.len();
    match n_documents {
        0 => Err("a query needs at least one document".to_owned()),
        n if n > MAX_DOCUMENTS => Err(format!("{n} documents are more than {MAX_DOCUMENTS}")),
        n if n != n_relevances => Err(format!("{n} documents need {n} relevances, and there are {n_relevances}")),
        _ if must_pass && relevances.iter().all(|&relevance| relevance == 0) => {
            Err("`must_pass` needs a relevant document, which then must come first".to_owned())
        }
        _ => Ok(()),
    }
}
