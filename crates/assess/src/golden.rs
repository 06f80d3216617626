use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use highroad_data::Records;
use highroad_eval::{Case, Expected};
use highroad_package::Digest;
use highroad_task::Input;
use serde::Deserialize;

use crate::GoldenError;

/// Largest golden set that is read: it is held in memory and answered case by case.
const MAX_GOLDEN_BYTES: u64 = 1 << 30;

/// Most documents of a query.
const MAX_DOCUMENTS: usize = 1000;

/// Longest id or slice name.
const MAX_NAME_CHARS: usize = 200;

/// Named cases with right answers, known by the digest of the file's bytes.
#[derive(Clone, Debug)]
pub struct GoldenSet {
    /// The file's name without its ending.
    pub name: String,
    /// Digest of the file.
    pub digest: Digest,
    /// At least one, in file order, all of one [`GoldenKind`].
    pub cases: Vec<GoldenCase>,
}

/// A golden case with what is asked.
#[derive(Clone, Debug)]
pub struct GoldenCase {
    /// Id, right answer, slices.
    pub case: Case,
    /// What the model is asked.
    pub input: GoldenInput,
}

/// What a model is asked in a golden case.
#[derive(Clone, Debug, PartialEq)]
pub enum GoldenInput {
    /// One text, to be labelled or to be given a number.
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
#[derive(Clone, Debug, PartialEq, Deserialize)]
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
    Similarities,
    Triplets,
    Rankings,
    Numbers,
    Texts,
}

impl GoldenKind {
    fn of(input: &GoldenInput, expected: &Expected) -> Self {
        match (input, expected) {
            (GoldenInput::One(_), Expected::Number(_)) => Self::Numbers,
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
            Self::Similarities => "similarities of pairs",
            Self::Triplets => "comparisons of triplets",
            Self::Rankings => "rankings of documents",
            Self::Numbers => "numbers",
            Self::Texts => "texts",
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: String,
    input: LineInput,
    #[serde(default = "implied")]
    expected: Expected,
    #[serde(default)]
    slices: Vec<String>,
    #[serde(default)]
    must_pass: bool,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected {\"text\": …}, {\"tokens\": […]}, {\"a\": …, \"b\": …}, {\"anchor\": …, \"positive\": …, \"negative\": …}, \
                 {\"query\": …, \"documents\": […]}, {\"prompt\": …} or {\"messages\": [{\"role\": …, \"content\": …}]}"
)]
enum LineInput {
    Text(Text),
    Tokens(Tokens),
    Pair(Pair),
    Triplet(Triplet),
    Ranking(Ranking),
    Prompt(Prompt),
    Messages(Messages),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    text: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tokens {
    tokens: Vec<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    a: String,
    b: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Triplet {
    anchor: String,
    positive: String,
    negative: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Prompt {
    prompt: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Messages {
    messages: Vec<Message>,
}

fn implied() -> Expected {
    Expected::Implied
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ranking {
    query: String,
    documents: Vec<String>,
}

impl GoldenSet {
    /// Reads a JSONL file, one case a line. Unknown keys, a second case of one id, cases of two kinds and an
    /// empty set are errors that name the line.
    pub fn read(path: &Path) -> Result<Self, GoldenError> {
        let io = |source| GoldenError::Io { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        File::open(path).map_err(io)?.take(MAX_GOLDEN_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > MAX_GOLDEN_BYTES {
            return Err(GoldenError::TooLarge { path: path.to_owned(), limit: MAX_GOLDEN_BYTES });
        }
        Self::parse(&bytes, path)
    }

    /// The same from bytes; `path` is what errors call them.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self, GoldenError> {
        let mut reader = Reader::default();
        for record in Records::<Line, _>::new(bytes, path) {
            let (line, record) = record?;
            let case = |reason| GoldenError::Case { path: path.to_owned(), line, reason };
            reader.add(line, record).map_err(case)?;
        }
        if reader.cases.is_empty() {
            return Err(GoldenError::Empty(path.to_owned()));
        }
        let name = path.file_stem().map_or_else(|| "golden".to_owned(), |stem| stem.to_string_lossy().into_owned());
        Ok(Self { name, digest: Digest::of(bytes), cases: reader.cases })
    }

    /// The cases without their inputs, as `highroad-eval` takes them.
    pub fn cases(&self) -> Vec<Case> {
        self.cases.iter().map(|case| case.case.clone()).collect()
    }

    /// What it asks for.
    pub fn kind(&self) -> GoldenKind {
        self.cases[0].kind()
    }

    /// The labels that are expected somewhere, sorted; none where no labels are asked for.
    pub fn labels(&self) -> BTreeSet<&str> {
        let expected = self.cases.iter().map(|case| &case.case.expected);
        expected
            .filter_map(|expected| if let Expected::Label(label) = expected { Some(label.as_str()) } else { None })
            .collect()
    }
}

impl GoldenCase {
    fn kind(&self) -> GoldenKind {
        GoldenKind::of(&self.input, &self.case.expected)
    }
}

#[derive(Default)]
struct Reader {
    cases: Vec<GoldenCase>,
    lines: BTreeMap<String, usize>,
    sources: BTreeMap<String, usize>,
}

impl Reader {
    fn add(&mut self, line: usize, record: Line) -> Result<(), String> {
        let Line { id, input, expected, slices, must_pass } = record;
        check_name("id", &id)?;
        slices.iter().try_for_each(|slice| check_name("slice", slice))?;
        if slices.iter().any(|slice| slice == "*") {
            return Err("a slice cannot be called `*`, which means every slice in gates.toml".to_owned());
        }
        if let Some(first) = self.lines.insert(id.clone(), line) {
            return Err(format!("id `{id}` is already taken by line {first}"));
        }
        let input = match input {
            LineInput::Text(Text { text }) => GoldenInput::One(Input::Text(text)),
            LineInput::Tokens(Tokens { tokens }) => GoldenInput::One(Input::Tokens(tokens)),
            LineInput::Pair(Pair { a, b }) => GoldenInput::Pair([a, b]),
            LineInput::Triplet(Triplet { anchor, positive, negative }) => {
                GoldenInput::Triplet([anchor, positive, negative])
            }
            LineInput::Ranking(Ranking { query, documents }) => GoldenInput::Ranking { query, documents },
            LineInput::Prompt(Prompt { prompt }) => {
                GoldenInput::Prompt(vec![Message { role: "user".to_owned(), content: prompt }])
            }
            LineInput::Messages(Messages { messages }) => GoldenInput::Prompt(messages),
        };
        let expected = match (&input, expected) {
            (GoldenInput::Prompt(_), Expected::Label(text)) => Expected::References(vec![text]),
            (_, expected) => expected,
        };
        check_expected(&input, &expected, must_pass)?;
        let kind = GoldenKind::of(&input, &expected);
        if let Some(first) = self.cases.first().map(GoldenCase::kind).filter(|&first| first != kind) {
            let [first, kind] = [first, kind].map(GoldenKind::in_words);
            return Err(format!("a golden set asks for one kind of answer: {first} before, {kind} here"));
        }
        let sources = match &input {
            // A labelled case is a source of its own, and so are a query and a prompt.
            GoldenInput::One(_) | GoldenInput::Ranking { .. } | GoldenInput::Prompt(_) => [self.cases.len(); 2],
            GoldenInput::Pair(texts) => texts.each_ref().map(|text| self.source(text)),
            GoldenInput::Triplet([anchor, ..]) => [self.source(anchor); 2],
        };
        self.cases.push(GoldenCase { case: Case { id, expected, slices, must_pass, sources }, input });
        Ok(())
    }

    /// Pairs that share a text are not independent, so texts are what a bootstrap draws.
    fn source(&mut self, text: &str) -> usize {
        let next = self.sources.len();
        *self.sources.entry(text.to_owned()).or_insert(next)
    }
}

fn check_name(what: &str, name: &str) -> Result<(), String> {
    let fits = !name.trim().is_empty() && name.chars().count() <= MAX_NAME_CHARS && !name.contains(char::is_control);
    if fits { Ok(()) } else { Err(format!("{what} {name:?} must be 1 to {MAX_NAME_CHARS} printable characters")) }
}

fn check_expected(input: &GoldenInput, expected: &Expected, must_pass: bool) -> Result<(), String> {
    match (input, expected) {
        (GoldenInput::One(_) | GoldenInput::Pair(_), Expected::Number(_)) if must_pass => {
            Err("`must_pass` needs a case that can be right: a number never just is".to_owned())
        }
        (GoldenInput::One(_), Expected::Label(_) | Expected::Number(_)) => Ok(()),
        (GoldenInput::One(_), _) => Err("a text expects a label or a number".to_owned()),
        (GoldenInput::Triplet(_), Expected::Implied) => Ok(()),
        (GoldenInput::Triplet(_), _) => {
            Err("a triplet needs no `expected`: its positive text is the closer one".to_owned())
        }
        (GoldenInput::Prompt(messages), Expected::References(_)) => check_messages(messages),
        (GoldenInput::Prompt(_), _) => Err("a prompt expects a text or a list of texts".to_owned()),
        (GoldenInput::Ranking { documents, .. }, Expected::Relevances(relevances)) => {
            check_ranking(documents.len(), relevances, must_pass)
        }
        (GoldenInput::Ranking { .. }, _) => Err("a query expects a list: the relevance of each document".to_owned()),
        (GoldenInput::Pair(_), Expected::Number(_)) => Ok(()),
        (GoldenInput::Pair(_), _) => Err("a pair expects a number".to_owned()),
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
