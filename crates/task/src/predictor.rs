use std::borrow::Cow;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;
use std::time::Instant;

use highroad_data::{Budget, Encoder, PairCut, PairCutWhich, Side, Tokenizer, batches, in_order};
use highroad_eval::Array;
use highroad_package::{Digest, Manifest, PROGRAM, PairTruncation, TOKENIZER, Task, TaskKind, VerifiedPackage};
use highroad_runtime::{Program, RunOptions};
use highroad_tensor::Tensor;

use crate::answer::{Ranked, decide, hold, ranked};
use crate::image::Pictures;
use crate::input::Row;
use crate::parity::first_inputs;
use crate::prompt::chosen;
use crate::signature::{Sharing, Signature, mismatch};
use crate::tensors;
use crate::{Answer, Cut, Input, OutputTensor, Piece, Prepared, Prompt, RunCost, Special, TaskError, Truncate};

/// How a predictor uses the machine; none of it changes an answer.
#[derive(Clone, Copy, Debug)]
pub struct PredictorOptions {
    /// Threads of one program run; all cores unless told.
    pub threads: NonZeroUsize,
    /// Most tokens, padding included, of one run in [`Predictor::predict`]; of a picture see [`Prepared::n_tokens`].
    pub max_batch_tokens: NonZeroUsize,
}

impl Default for PredictorOptions {
    fn default() -> Self {
        let threads = available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self { threads, max_batch_tokens: NonZeroUsize::new(4096).expect("4096 is not zero") }
    }
}

/// A vector that claims length 1 may be off by this much; f32 rounding is far below it, a forgotten normalisation above.
const UNIT_TOLERANCE: f64 = 1e-3;
/// Tokens of the longer row that probes whether padding shows.
const PROBE_TOKENS: usize = 24;

/// A package ready to answer. Shared by reference between threads; every method takes `&self`.
///
/// An answer depends on its input and on the numerics id alone, never on the batch it ran in, on padding or on
/// threads: inputs share a run only as far as [`Predictor::sharing`] allows.
pub struct Predictor {
    package: VerifiedPackage,
    reader: Reader,
    program: Program,
    signature: Signature,
    sharing: Sharing,
    options: PredictorOptions,
    /// Of [`Predictor::predict`]'s runs.
    cost: Mutex<RunCost>,
}

/// Makes rows of inputs.
enum Reader {
    Texts(Tokenizer),
    /// Items that somebody had, the newest last.
    Histories(Tokenizer),
    /// Two texts side by side: a query and a document, or what a classifier compares.
    Pairs(Tokenizer, Encoder),
    Pictures(Pictures),
    /// Of what takes tensors by name.
    Nothing,
}

impl Reader {
    fn open(package: &VerifiedPackage) -> Result<Self, TaskError> {
        let task = &package.manifest().task;
        if let Some(image) = &task.image {
            return Ok(Self::Pictures(Pictures::new(image)));
        }
        if matches!(task.kind, TaskKind::Tensors) {
            return Ok(Self::Nothing);
        }
        let (tokenizer_json, max_tokens) = (package.read(TOKENIZER)?, task.max_tokens as usize);
        let tokenizer = Tokenizer::from_bytes(&tokenizer_json, max_tokens)?;
        check_prompts(task, &tokenizer)?;
        Ok(match task.kind {
            TaskKind::Rerank | TaskKind::Classify { pairs: true, .. } => {
                Self::Pairs(tokenizer, Encoder::from_bytes(&tokenizer_json, 2, max_tokens, true)?)
            }
            TaskKind::Recommend { .. } => Self::Histories(tokenizer),
            _ => Self::Texts(tokenizer),
        })
    }

    fn tokenizer(&self) -> Result<&Tokenizer, TaskError> {
        match self {
            Self::Texts(tokenizer) | Self::Histories(tokenizer) | Self::Pairs(tokenizer, _) => Ok(tokenizer),
            Self::Pictures(_) | Self::Nothing => Err(TaskError::NoTokenizer),
        }
    }

    /// What fills the rows of texts.
    fn pad_id(&self) -> u32 {
        match self {
            Self::Texts(tokenizer) | Self::Histories(tokenizer) | Self::Pairs(tokenizer, _) => tokenizer.pad_id(),
            Self::Pictures(_) | Self::Nothing => 0,
        }
    }

    fn refusal(&self) -> TaskError {
        let (task, takes) = match self {
            Self::Texts(_) => ("read one text", "no query beside a document, and no image"),
            Self::Histories(_) => ("recommend", "a history of items, with spaces between them"),
            Self::Pairs(..) => ("rerank", "a query and a document"),
            Self::Pictures(_) => ("see images", "a PNG, JPEG or WebP"),
            Self::Nothing => ("compute tensors", "the inputs of its program, by name"),
        };
        TaskError::OtherInput { task, takes }
    }
}

/// What runs a package's program: this runtime, or another engine to compare with. Everything from text to tensors and from the
/// outputs to an answer stays with [`Predictor`].
pub trait Engine {
    /// The outputs for `inputs`, both in the program's order. `inputs` have the dtypes of the program: `[rows, tokens]`, or pixels
    /// `[rows, channels, height, width]`.
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, TaskError>;
}

impl Engine for Predictor {
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, TaskError> {
        Ok(self.program.run(inputs, &self.run_options())?)
    }
}

impl Predictor {
    /// Loads the package's tokenizer and program and checks, by signature and by running two short rows, that the
    /// program takes and gives what the task says. Errors say what does not fit.
    pub fn open(package: &VerifiedPackage, options: &PredictorOptions) -> Result<Self, TaskError> {
        let reader = Reader::open(package)?;
        let mut program = Program::open(Path::new(&package.path(PROGRAM)?))?;
        program.name_outputs(&package.manifest().task.outputs);
        let signature = Signature::of(program.inputs(), program.outputs(), &package.manifest().task)?;
        let sharing = signature.sharing(program.row_independence());
        let (package, options, cost) = (package.clone(), *options, Mutex::default());
        let mut predictor = Self { package, reader, program, signature, sharing, options, cost };
        predictor.probe()?;
        Ok(predictor)
    }

    /// What the package is.
    pub fn manifest(&self) -> &Manifest {
        self.package.manifest()
    }

    /// The package's name.
    pub fn digest(&self) -> Digest {
        self.package.digest()
    }

    /// The package itself.
    pub fn package(&self) -> &VerifiedPackage {
        &self.package
    }

    /// The program, for callers that speak tensors.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// What decides the bits of an answer besides package and input: kernel set, instruction path and precision.
    pub fn numerics_id(&self) -> String {
        self.program.numerics_id()
    }

    /// How the predictor was opened.
    pub fn options(&self) -> &PredictorOptions {
        &self.options
    }

    /// Which inputs share a run.
    pub fn sharing(&self) -> Sharing {
        self.sharing
    }

    /// Most tokens of one input; of a picture what every picture costs.
    pub fn max_tokens(&self) -> usize {
        match &self.reader {
            Reader::Texts(tokenizer) | Reader::Histories(tokenizer) | Reader::Pairs(tokenizer, _) => {
                tokenizer.max_tokens()
            }
            Reader::Pictures(pictures) => pictures.n_tokens(),
            Reader::Nothing => 0,
        }
    }

    /// Name and text of the prompt that goes before `input`, where one does. Errors if it asks for one that the package does not have.
    pub fn prompt_of(&self, input: &Input) -> Result<Option<(&str, &str)>, TaskError> {
        match input {
            Input::Text(_) => chosen(self.task(), None),
            Input::Prompted { prompt, .. } => chosen(self.task(), Some(prompt)),
            _ => Ok(None),
        }
    }

    /// Name and text of the prompt that the package has for this.
    pub fn prompt(&self, asked: &Prompt) -> Result<Option<(&str, &str)>, TaskError> {
        chosen(self.task(), Some(asked))
    }

    /// What happens to texts that are too long where a request says `asked` about them.
    pub fn cut(&self, asked: Truncate) -> Cut {
        asked.under(self.task().truncation)
    }

    fn task(&self) -> &Task {
        &self.manifest().task
    }

    /// Encodes an input and cuts a text that is too long as the package says, or decodes a picture and makes it the size the program
    /// takes. Errors on a text over 1 MiB, on a prompt that the package does not have, on a text that is too long where the package
    /// refuses it, on no tokens at all, on token lists that are too long or hold ids outside the vocabulary, on pictures that cannot be read (see [`highroad_data::Image::decode`]), and on another kind of input than the package takes.
    pub fn prepare(&self, input: &Input) -> Result<Prepared, TaskError> {
        self.prepare_cut(input, self.cut(Truncate::default()))
    }

    /// [`Predictor::prepare`] with a text that is too long cut as `cut` says. Token lists are never cut.
    pub fn prepare_cut(&self, input: &Input, cut: Cut) -> Result<Prepared, TaskError> {
        let prepared = match (input, &self.reader) {
            (Input::Pair { query, document }, Reader::Pairs(_, pairs)) => {
                let [query, document] =
                    [("query", query), ("document", document)].map(|(name, text)| self.beside(name, text));
                let encoded = pairs.pair(&query, &document, self.pair_cut(cut))?;
                Prepared::tokens(encoded.ids, encoded.types, encoded.truncated)
            }
            (Input::Text(text) | Input::Prompted { text, .. }, Reader::Texts(tokenizer)) => {
                let text = after(self.prompt_of(input)?, text);
                let encoded = if cut == Cut::Start { tokenizer.encode_end(&text)? } else { tokenizer.encode(&text)? };
                Prepared::tokens(encoded.ids, Vec::new(), encoded.truncated)
            }
            // What somebody did last says most.
            (Input::Text(history) | Input::Prompted { text: history, .. }, Reader::Histories(tokenizer)) => {
                self.prompt_of(input)?;
                let encoded = tokenizer.encode_end(history)?;
                Prepared::tokens(encoded.ids, Vec::new(), encoded.truncated)
            }
            (Input::Tokens(ids), Reader::Texts(tokenizer) | Reader::Histories(tokenizer)) => of_tokens(ids, tokenizer)?,
            (Input::Image(bytes), Reader::Pictures(pictures)) => pictures.prepare(bytes)?,
            (Input::Tensors(arrays), Reader::Nothing) => self.of_arrays(arrays)?,
            (_, Reader::Pairs(..)) if matches!(self.manifest().task.kind, TaskKind::Classify { .. }) => {
                return Err(TaskError::OtherInput { task: "compare texts", takes: "two texts side by side" });
            }
            (_, reader) => return Err(reader.refusal()),
        };
        match prepared.n_tokens() {
            0 => Err(TaskError::NoTokens),
            _ if prepared.truncated() && cut == Cut::Never => {
                Err(TaskError::MayNotCut { max_tokens: self.max_tokens() })
            }
            _ => Ok(prepared),
        }
    }

    /// The program's inputs, of its dtypes and shapes.
    fn of_arrays(&self, arrays: &BTreeMap<String, Array>) -> Result<Prepared, TaskError> {
        let inputs = tensors::of_arrays(self.program.inputs(), arrays)?;
        self.program.check(&inputs)?;
        Ok(Prepared { row: Row::Tensors(inputs), truncated: false })
    }

    /// A text of a pair after its prompt.
    fn beside<'t>(&'t self, name: &str, text: &'t str) -> Cow<'t, str> {
        after(self.task().prompts.get(name).map(|prompt| (name, prompt.as_str())), text)
    }

    fn pair_cut(&self, cut: Cut) -> PairCut {
        let which = match self.task().pair_truncation {
            PairTruncation::LongestFirst => PairCutWhich::Longest,
            PairTruncation::OnlySecond => PairCutWhich::Second,
        };
        PairCut { which, side: if cut == Cut::Start { Side::Left } else { Side::Right } }
    }

    /// What the tokenizer gives for what its vocabulary does not cover; `None` where there is none.
    pub fn unknown_id(&self) -> Option<u32> {
        self.reader.tokenizer().ok().and_then(Tokenizer::unknown_id)
    }

    /// The tokens of `text`, none of them cut off. Errors on a text over 1 MiB, and where the package has no tokenizer.
    pub fn pieces(&self, text: &str, special: Special) -> Result<Vec<Piece>, TaskError> {
        Ok(self.reader.tokenizer()?.pieces(text, special)?)
    }

    /// The part of `text` that its first `n` tokens stand for, no special ones among them: all of it where it has no more. Errors as
    /// [`Predictor::pieces`].
    pub fn first_tokens<'t>(&self, text: &'t str, n: NonZeroUsize) -> Result<&'t str, TaskError> {
        // A token stands for a byte or more, but for one that may go before all.
        if text.len() < n.get() {
            return Ok(text);
        }
        let pieces = self.pieces(text, Special::Dropped)?;
        let end = pieces.get(n.get()).and_then(|_| pieces[n.get() - 1].bytes).map(|(_, end)| end);
        Ok(end.and_then(|end| text.get(..end)).unwrap_or(text))
    }

    /// The text that tokens stand for. Errors on ids outside the vocabulary, and where the package has no tokenizer.
    pub fn decode(&self, ids: &[u32], special: Special) -> Result<String, TaskError> {
        Ok(self.reader.tokenizer()?.decode(ids, special)?)
    }

    /// The answers to `batch`, in order: one padded run of the program where [`Predictor::sharing`] allows it, several
    /// otherwise. Errors if an operator fails or an output is not finite.
    pub fn answer(&self, batch: &[Prepared]) -> Result<Vec<Answer>, TaskError> {
        self.answer_on(self, batch)
    }

    /// [`Predictor::answer`] with the program run by `engine`. Errors also if the engine gives other tensors than the program would.
    pub fn answer_on(&self, engine: &impl Engine, batch: &[Prepared]) -> Result<Vec<Answer>, TaskError> {
        if matches!(self.reader, Reader::Nothing) {
            return batch.iter().map(|row| self.answer_tensors(engine, row)).collect();
        }
        let groups = self.groups(batch);
        let mut answers = Vec::with_capacity(batch.len());
        for group in &groups {
            let rows: Vec<&Prepared> = group.iter().map(|&i| &batch[i]).collect();
            for (row, values) in self.run(engine, &rows)?.into_iter().enumerate() {
                answers.push(self.decide(values).ok_or(TaskError::NotFinite { row: group[row] })?);
            }
        }
        Ok(in_order(&groups.concat(), answers))
    }

    /// What the program gives for its inputs, whatever its rows are: each case is a run of its own, as each request of a server is.
    fn answer_tensors(&self, engine: &impl Engine, prepared: &Prepared) -> Result<Answer, TaskError> {
        let Row::Tensors(inputs) = &prepared.row else { return Err(self.reader.refusal()) };
        let (outputs, specs) = (engine.run(inputs)?, self.program.outputs());
        if outputs.len() != specs.len() {
            let (found, needed) = (outputs.len(), specs.len());
            return Err(TaskError::Tensors(format!("the engine gave {found} outputs, and the program has {needed}")));
        }
        let named = specs.iter().zip(&outputs);
        Ok(Answer::Tensors(named.map(|(spec, tensor)| OutputTensor::of(&spec.name, tensor)).collect()))
    }

    /// [`Predictor::prepare`] and [`Predictor::answer`] over batches of similar length; answers are in input order.
    pub fn predict(&self, inputs: &[Input]) -> Result<Vec<Answer>, TaskError> {
        let prepared = inputs.iter().map(|input| self.prepare(input)).collect::<Result<Vec<_>, _>>()?;
        self.predict_prepared(&prepared)
    }

    /// [`Predictor::answer`] over batches of similar length; answers are in the order of `prepared`.
    pub fn predict_prepared(&self, prepared: &[Prepared]) -> Result<Vec<Answer>, TaskError> {
        self.predict_prepared_on(self, prepared)
    }

    /// [`Predictor::predict_prepared`] with the program run by `engine`.
    pub fn predict_prepared_on(&self, engine: &impl Engine, prepared: &[Prepared]) -> Result<Vec<Answer>, TaskError> {
        let lengths: Vec<usize> = prepared.iter().map(Prepared::n_tokens).collect();
        let most = self.options.max_batch_tokens;
        let budget = Budget { max_tokens: most, max_rows: most, max_padding: self.cost().run_tokens() };
        let groups = batches(&lengths, budget);
        let mut answers = Vec::with_capacity(prepared.len());
        for group in &groups {
            let batch: Vec<Prepared> = group.iter().map(|&i| prepared[i].clone()).collect();
            let n_padded = batch.len() * batch.iter().map(Prepared::n_tokens).max().unwrap_or(0);
            let begun = Instant::now();
            answers.extend(self.answer_on(engine, &batch)?);
            self.cost().record(n_padded, begun.elapsed().as_secs_f64());
        }
        Ok(in_order(&groups.concat(), answers))
    }

    /// The documents in the order of their relevance to a query, best first; those of one logit in the order they came in.
    /// Errors unless the package is a reranker.
    pub fn rank(&self, query: &str, documents: &[String]) -> Result<Vec<Ranked>, TaskError> {
        let pair = |document: &String| Input::Pair { query: query.to_owned(), document: document.clone() };
        let answers = self.predict(&documents.iter().map(pair).collect::<Vec<_>>())?;
        Ok(ranked(&answers))
    }

    /// Answers a short input, so that no request pays for the first run's page faults.
    pub fn warm_up(&self) -> Result<(), TaskError> {
        self.warm_up_on(self)
    }

    /// [`Predictor::warm_up`] with the program run by `engine`.
    pub fn warm_up_on(&self, engine: &impl Engine) -> Result<(), TaskError> {
        if matches!(self.reader, Reader::Nothing) {
            // A bare program has no inputs that are known to be any.
            return match self.package.is_bare() {
                true => Ok(()),
                false => engine.run(&first_inputs(&self.package.read(&self.manifest().parity.file)?)?).map(drop),
            };
        }
        self.answer_on(engine, &[self.short()?]).map(drop)
    }

    /// Runs the program on tensors by name, past tokenizer and task, and gives its outputs by name.
    ///
    /// Errors if an input is unknown, missing, given twice or of another dtype or shape than the program takes.
    pub fn run_tensors(&self, inputs: Vec<(String, Tensor)>) -> Result<Vec<(String, Tensor)>, TaskError> {
        let inputs = tensors::in_order(self.program.inputs(), inputs)?;
        let inputs: Vec<Tensor> = inputs.into_iter().map(|(_, tensor)| tensor).collect();
        let outputs = self.program.run(&inputs, &self.run_options())?;
        Ok(self.program.outputs().iter().map(|spec| spec.name.clone()).zip(outputs).collect())
    }

    fn cost(&self) -> MutexGuard<'_, RunCost> {
        self.cost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn run_options(&self) -> RunOptions {
        RunOptions::with_threads(self.options.threads)
    }

    /// Indices of `batch`, grouped into runs.
    fn groups(&self, batch: &[Prepared]) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..batch.len()).collect();
        match self.sharing {
            Sharing::Padded if batch.is_empty() => Vec::new(),
            Sharing::Padded => vec![order],
            Sharing::Alone => order.into_iter().map(|i| vec![i]).collect(),
            Sharing::EqualLengths => {
                order.sort_by_key(|&i| batch[i].n_tokens());
                order.chunk_by(|&a, &b| batch[a].n_tokens() == batch[b].n_tokens()).map(<[_]>::to_vec).collect()
            }
        }
    }

    /// The output values of each row.
    fn run(&self, engine: &impl Engine, rows: &[&Prepared]) -> Result<Vec<Vec<f32>>, TaskError> {
        let inputs = self.signature.tensors(rows, self.reader.pad_id())?;
        let outputs = engine.run(&inputs)?;
        let width = self.signature.width();
        let output = outputs.first().filter(|output| output.shape() == [rows.len(), width]);
        let output = output
            .ok_or_else(|| mismatch(format!("it returned {outputs:?} for {} rows of {width} values", rows.len())))?;
        let output = output.contiguous();
        let values = output.as_slice::<f32>().ok_or_else(|| mismatch(format!("it returned {output:?}, not f32")))?;
        Ok(values.chunks_exact(width).map(<[f32]>::to_vec).collect())
    }

    /// The answer that a row of finite values means; `None` if one is not.
    fn decide(&self, values: Vec<f32>) -> Option<Answer> {
        values.iter().all(|value| value.is_finite()).then(|| match &self.manifest().task.kind {
            TaskKind::Classify { labels, thresholds, .. } if !thresholds.is_empty() => {
                hold(labels, thresholds, &values)
            }
            TaskKind::Classify { labels, .. } | TaskKind::Recommend { items: labels } => decide(labels, &values),
            TaskKind::Rerank => Answer::Relevance { logit: values[0] },
            _ => Answer::Embedding { vector: values },
        })
    }

    /// Runs a short row, alone and beside a longer one, and gives up sharing by padding if the bits differ.
    fn probe(&mut self) -> Result<(), TaskError> {
        if matches!(self.reader, Reader::Nothing) {
            return Ok(());
        }
        let short = self.short()?;
        let alone = self.run(self, &[&short])?;
        self.check_length(&alone[0])?;
        if self.sharing == Sharing::Padded {
            let other = self.longer(&short);
            let beside = self.run(self, &[&short, &other, &short])?;
            let bits = |row: &[f32]| row.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            if bits(&beside[0]) != bits(&alone[0]) || bits(&beside[2]) != bits(&alone[0]) {
                self.sharing = self.signature.unless_padded();
            }
        }
        Ok(())
    }

    /// A short input of the kind the package takes.
    fn short(&self) -> Result<Prepared, TaskError> {
        let (query, document) = ("highroad".to_owned(), "road".to_owned());
        match &self.reader {
            Reader::Texts(_) => self.prepare(&Input::Text(query)),
            Reader::Histories(_) => self.prepare(&Input::Text(self.first_items())),
            Reader::Pairs(..) => self.prepare(&Input::Pair { query, document }),
            Reader::Pictures(pictures) => Ok(pictures.made_up(0)),
            Reader::Nothing => Err(self.reader.refusal()),
        }
    }

    /// A short history.
    fn first_items(&self) -> String {
        match &self.manifest().task.kind {
            TaskKind::Recommend { items } => items[..items.len().min(2)].join(" "),
            _ => String::new(),
        }
    }

    /// A longer row than `short`, or another picture.
    fn longer(&self, short: &Prepared) -> Prepared {
        let n_long = self.max_tokens().min(PROBE_TOKENS);
        let repeated = |tokens: &[u32]| tokens.iter().copied().cycle().take(n_long).collect();
        match &self.reader {
            Reader::Pictures(pictures) => pictures.made_up(1),
            _ => Prepared::tokens(repeated(short.ids()), repeated(short.types()), false),
        }
    }

    fn check_length(&self, values: &[f32]) -> Result<(), TaskError> {
        let TaskKind::Embed { normalized: true, .. } = self.manifest().task.kind else { return Ok(()) };
        let length = values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
        // Not `> UNIT_TOLERANCE`, which a NaN would pass.
        match (length - 1.0).abs() <= UNIT_TOLERANCE {
            true => Ok(()),
            false => Err(mismatch(format!("the package says `normalized`, and a vector has length {length}"))),
        }
    }
}

/// A text with its prompt before it, as sentence-transformers joins them.
fn after<'t>(prompt: Option<(&str, &str)>, text: &'t str) -> Cow<'t, str> {
    match prompt {
        None | Some((_, "")) => Cow::Borrowed(text),
        Some((_, prompt)) => Cow::Owned(format!("{prompt}{text}")),
    }
}

/// A prompt that fills the model's input leaves nothing of any text.
fn check_prompts(task: &Task, tokenizer: &Tokenizer) -> Result<(), TaskError> {
    for (name, prompt) in &task.prompts {
        let n_tokens = tokenizer.pieces(prompt, Special::Kept)?.len();
        if n_tokens >= tokenizer.max_tokens() {
            let max_tokens = tokenizer.max_tokens();
            return Err(mismatch(format!(
                "prompt `{name}` has {n_tokens} tokens, which leaves no room for a text in the {max_tokens} that the package takes"
            )));
        }
    }
    Ok(())
}

fn of_tokens(ids: &[u32], tokenizer: &Tokenizer) -> Result<Prepared, TaskError> {
    let (n_tokens, max_tokens) = (ids.len(), tokenizer.max_tokens());
    if n_tokens > max_tokens {
        return Err(TaskError::TooManyTokens { n_tokens, max_tokens });
    }
    match ids.iter().find(|&&id| !tokenizer.has_id(id)) {
        Some(&id) => Err(TaskError::UnknownToken(id)),
        None => Ok(Prepared::tokens(ids.to_vec(), Vec::new(), false)),
    }
}
