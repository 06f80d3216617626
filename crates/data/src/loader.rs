//! The training data loader: a plan of batches, threads that make them ahead, and the exact place in them.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write as _};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, OnceLock};

use highroad_tensor::Storage;
use serde::{Deserialize, Serialize};

use crate::encoder::{Encoder, Token, Words};
use crate::field::{Cell, Kind};
use crate::files::Place;
use crate::plan::{Layout, Plan, Remainder, Segment};
use crate::table::{DataError, Table};
use crate::threads::in_parallel;

mod batch;
mod pipeline;

pub use batch::{Array, Batch};
use pipeline::Pipeline;

/// Version of the form of [`State`].
const STATE_VERSION: u32 = 1;
/// Samples that one thread tokenises at a time when lengths are needed.
const CHUNK_SAMPLES: usize = 512;
/// Most different values of a column that a balance lists.
const MAX_BALANCE: usize = 100;

/// Which fields are tokenised and how. The table's first `n_texts` fields are the texts.
pub struct Text {
    /// Number of texts a sample: 1 or 2.
    pub n_texts: usize,
    /// The tokenizer.
    pub encoder: Encoder,
    /// Digest of the tokenizer's file and settings, for [`State`].
    pub digest: String,
}

/// How a loader makes batches, and for whom.
#[derive(Clone, Debug)]
pub struct LoaderOptions {
    /// How samples become batches.
    pub layout: Layout,
    /// This process among the ranks, from 0.
    pub rank: u32,
    /// Number of ranks.
    pub world: u32,
    /// What happens at the end of an epoch.
    pub remainder: Remainder,
    /// Threads that make batches.
    pub threads: NonZeroUsize,
    /// Batches that are made ahead.
    pub prefetch: NonZeroUsize,
    /// Row lengths are rounded up to a multiple of this.
    pub pad_to_multiple_of: NonZeroUsize,
    /// Whether packed batches carry a mask that is true within documents.
    pub block_mask: bool,
}

/// Where a loader stands, for a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    version: u32,
    /// Epoch, from 0.
    pub epoch: u64,
    /// Samples of the epoch that have been given, over all ranks.
    pub position: u32,
    segments: Vec<(u32, u32)>,
    /// What decides the batches; a loader of other facts refuses the state.
    facts: BTreeMap<String, String>,
}

/// Everything the threads share.
struct Shared {
    table: Table,
    text: Option<Text>,
    options: LoaderOptions,
    /// Tokens of every sample, where lengths are needed.
    tokens: Option<Tokens>,
    words: Mutex<Vec<Words>>,
}

/// Tokens of every sample in a mapped file.
struct Tokens {
    map: Storage,
    ends: Vec<u64>,
    lengths: Vec<u32>,
}

/// A source of batches that can stop and go on at any one.
pub struct Loader {
    shared: Arc<Shared>,
    facts: BTreeMap<String, String>,
    epoch: u64,
    position: u32,
    segments: Vec<Segment>,
    plan: OnceLock<Arc<Plan>>,
    pipeline: Option<Pipeline>,
}

impl Loader {
    /// A loader over `table`. Tokenises everything now if the layout needs lengths.
    pub fn new(table: Table, text: Option<Text>, options: LoaderOptions, place: &Place) -> Result<Self, DataError> {
        let facts = facts(&table, text.as_ref(), &options);
        let mut shared = Shared { table, text, options, tokens: None, words: Mutex::default() };
        if shared.options.layout.needs_lengths() {
            shared.tokens = Some(shared.tokenise_all(place)?);
        }
        let segments = vec![Segment { start: 0, world: shared.options.world }];
        let plan = OnceLock::new();
        Ok(Self { shared: Arc::new(shared), facts, epoch: 0, position: 0, segments, plan, pipeline: None })
    }

    /// The next batch; `None` once at the end of each epoch.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Batch>, DataError> {
        let plan = self.plan()?;
        let (rank, world) = (self.shared.options.rank as usize, self.shared.options.world as usize);
        let done = plan.batch_ends.partition_point(|&end| end <= self.position);
        if done + rank >= plan.batch_ends.len() {
            self.start_epoch(self.epoch + 1);
            return Ok(None);
        }
        let pipeline = self.pipeline.get_or_insert_with(|| {
            let own = (done + rank..plan.batch_ends.len()).step_by(world).collect();
            Pipeline::start(self.shared.clone(), plan.clone(), own)
        });
        let batch = pipeline.next().inspect_err(|_| self.pipeline = None)?;
        self.position = plan.batch_ends[(done + world).min(plan.batch_ends.len()) - 1];
        Ok(Some(batch))
    }

    fn start_epoch(&mut self, epoch: u64) {
        self.epoch = epoch;
        self.position = 0;
        self.segments = vec![Segment { start: 0, world: self.shared.options.world }];
        self.plan = OnceLock::new();
        self.pipeline = None;
    }

    /// The current epoch's plan.
    fn plan(&self) -> Result<Arc<Plan>, DataError> {
        if let Some(plan) = self.plan.get() {
            return Ok(plan.clone());
        }
        let Shared { table, options, tokens, .. } = &*self.shared;
        let lengths = tokens.as_ref().map_or(&[][..], |tokens| &tokens.lengths);
        let plan = Plan::of_epoch(table.len() as u32, lengths, &options.layout, self.epoch);
        let plan = plan.dealt(&self.segments, options.remainder)?;
        Ok(self.plan.get_or_init(|| Arc::new(plan)).clone())
    }

    /// Number of batches that this rank gets in the current epoch, before and after a resume.
    pub fn n_batches(&self) -> Result<usize, DataError> {
        let plan = self.plan()?;
        let batches_until = |position: u32| plan.batch_ends.partition_point(|&end| end <= position);
        let n = |i: usize| {
            let segment = self.segments[i];
            let end = self.segments.get(i + 1).map_or(plan.batch_ends.len(), |next| batches_until(next.start));
            let n_batches = end - batches_until(segment.start);
            let rank = if i + 1 == self.segments.len() { self.shared.options.rank } else { 0 };
            (n_batches + segment.world as usize - 1).saturating_sub(rank as usize) / segment.world as usize
        };
        Ok((0..self.segments.len()).map(n).sum())
    }

    /// Samples of the current epoch that no rank gets.
    pub fn n_dropped(&self) -> Result<u64, DataError> {
        let given = self.plan()?.batch_ends.last().copied().unwrap_or(0);
        Ok(self.shared.table.len() - u64::from(given))
    }

    /// The epoch that the next batch belongs to.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The samples.
    pub fn table(&self) -> &Table {
        &self.shared.table
    }

    /// Where the loader stands: behind the last batch that [`Loader::next`] gave.
    pub fn state(&self) -> State {
        State {
            version: STATE_VERSION,
            epoch: self.epoch,
            position: self.position,
            segments: self.segments.iter().map(|segment| (segment.start, segment.world)).collect(),
            facts: self.facts.clone(),
        }
    }

    /// Goes on from `state`, also with another world size. Errors, and changes nothing, if the state is of other data or of
    /// other batches.
    pub fn restore(&mut self, state: &State) -> Result<(), DataError> {
        if state.version != STATE_VERSION {
            let text = format!("the state has version {}, and this loader reads {STATE_VERSION}", state.version);
            return Err(DataError::State(text));
        }
        self.same_facts(&state.facts)?;
        let world = self.shared.options.world;
        let mut segments: Vec<Segment> =
            state.segments.iter().map(|&(start, world)| Segment { start, world }).collect();
        let sound = segments.first().is_some_and(|first| first.start == 0)
            && segments.iter().all(|segment| segment.world > 0)
            && segments.is_sorted_by(|a, b| a.start < b.start)
            && segments.last().is_some_and(|last| last.start <= state.position)
            && u64::from(state.position) <= self.shared.table.len();
        if !sound {
            return Err(DataError::State("the state is damaged".to_owned()));
        }
        let last = segments.last_mut().expect("there is a first one");
        if last.start == state.position {
            last.world = world;
        } else if last.world != world {
            segments.push(Segment { start: state.position, world });
        }
        self.start_epoch(state.epoch);
        (self.position, self.segments) = (state.position, segments);
        Ok(())
    }

    fn same_facts(&self, others: &BTreeMap<String, String>) -> Result<(), DataError> {
        let differs = |(name, mine): (&String, &String)| {
            let other = others.get(name).map_or("nothing", String::as_str);
            (mine != other).then(|| format!("{name} was {other} and is {mine}"))
        };
        let differences: Vec<String> = self.facts.iter().filter_map(differs).collect();
        if differences.is_empty() {
            return Ok(());
        }
        Err(DataError::State(format!("the state is of another loader: {}", differences.join("; "))))
    }

    /// How often each value of the class, boolean, integer and text columns occurs; columns of over 100
    /// values are left out.
    pub fn balance(&self) -> Result<BTreeMap<String, BTreeMap<String, u64>>, DataError> {
        self.shared.balance()
    }
}

/// What decides the batches.
fn facts(table: &Table, text: Option<&Text>, options: &LoaderOptions) -> BTreeMap<String, String> {
    let Layout { size, bucket, pack, seed } = &options.layout;
    let sizes: Vec<String> = table.outline().map(|(bytes, rows)| format!("{rows} rows in {bytes} bytes")).collect();
    let columns: Vec<String> = table
        .fields()
        .iter()
        .map(|field| format!("{}: {}", field.name, crate::table::kind_names(&field.kind)))
        .collect();
    let seed = seed.map_or("none".to_owned(), |seed| seed.to_string());
    let tokenizer = text.map_or("none".to_owned(), |text| text.digest.clone());
    let all = [
        ("data", sizes.join(", ")),
        ("fields", columns.join(", ")),
        ("tokenizer", tokenizer),
        ("size", format!("{size:?}")),
        ("bucket", bucket.to_string()),
        ("pack", pack.is_some().to_string()),
        ("shuffle seed", seed),
        ("remainder", format!("{:?}", options.remainder)),
    ];
    all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

impl Shared {
    /// The tokens of a sample, appended.
    fn encode(
        &self,
        text: &Text,
        cells: &[Cell<'_>],
        words: &mut Words,
        out: &mut Vec<Token>,
    ) -> Result<(), DataError> {
        let texts: Vec<&str> = cells[..text.n_texts]
            .iter()
            .map(|cell| if let Cell::Str(text) = cell { text.as_ref() } else { unreachable!("texts come first") })
            .collect();
        Ok(text.encoder.encode(&texts, words, out)?)
    }

    fn tokenise_all(&self, place: &Place) -> Result<Tokens, DataError> {
        let text = self.text.as_ref().expect("lengths are asked for only where there is text");
        let n_samples = self.table.len() as usize;
        let mut file = BufWriter::new(place.temporary().map_err(DataError::Cache)?);
        let (mut ends, mut lengths) = (Vec::with_capacity(n_samples), Vec::with_capacity(n_samples));
        let threads = self.options.threads.get();
        // A wave is what is held in memory before it is written.
        let wave = CHUNK_SAMPLES * threads * 8;
        for start in (0..n_samples).step_by(wave) {
            let n_chunks = (n_samples - start).min(wave).div_ceil(CHUNK_SAMPLES);
            let chunks = in_parallel(n_chunks, threads, |i| {
                let first = start + i * CHUNK_SAMPLES;
                self.with_words(|words| {
                    let (mut tokens, mut ends) = (Vec::<Token>::new(), Vec::new());
                    for sample in first..(first + CHUNK_SAMPLES).min(n_samples) {
                        self.encode(text, &self.table.read(sample as u32)?, words, &mut tokens)?;
                        ends.push(tokens.len());
                    }
                    Ok::<_, DataError>((tokens, ends))
                })
            });
            for chunk in chunks {
                let (tokens, chunk_ends) = chunk?;
                let before = ends.last().copied().unwrap_or(0);
                let mut previous = 0;
                for end in chunk_ends {
                    lengths.push((end - previous) as u32);
                    ends.push(before + end as u64);
                    previous = end;
                }
                let bytes: Vec<u8> = tokens.into_iter().flat_map(Token::to_bytes).collect();
                file.write_all(&bytes).map_err(DataError::Cache)?;
            }
        }
        let file = file.into_inner().map_err(|error| DataError::Cache(error.into_error()))?;
        Ok(Tokens { map: Storage::map(&file).map_err(DataError::Cache)?, ends, lengths })
    }

    /// Lends the words that some thread has met.
    fn with_words<T>(&self, work: impl FnOnce(&mut Words) -> T) -> T {
        let lock = || self.words.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut words = lock().pop().unwrap_or_default();
        let result = work(&mut words);
        lock().push(words);
        result
    }

    fn balance(&self) -> Result<BTreeMap<String, BTreeMap<String, u64>>, DataError> {
        let n_texts = self.text.as_ref().map_or(0, |text| text.n_texts);
        let fields = self.table.fields();
        let counted = |kind: &Kind| matches!(kind, Kind::Class(_) | Kind::Bool | Kind::Int | Kind::Str);
        let mut counts: Vec<Option<BTreeMap<String, u64>>> =
            fields.iter().enumerate().map(|(i, f)| (i >= n_texts && counted(&f.kind)).then(BTreeMap::new)).collect();
        for sample in 0..self.table.len() as u32 {
            if counts.iter().all(Option::is_none) {
                break;
            }
            for ((field, cell), count) in fields.iter().zip(self.table.read(sample)?).zip(&mut counts) {
                let Some(values) = count else { continue };
                *values.entry(named(&field.kind, &cell)).or_default() += 1;
                if values.len() > MAX_BALANCE {
                    *count = None;
                }
            }
        }
        let names = fields.iter().map(|field| field.name.clone());
        Ok(names.zip(counts).filter_map(|(name, count)| Some((name, count?))).collect())
    }
}

impl Tokens {
    fn of(&self, sample: u32, out: &mut Vec<Token>) {
        let end = self.ends[sample as usize] as usize;
        let start = end - self.lengths[sample as usize] as usize;
        let (bytes, _) = self.map.bytes()[start * 4..end * 4].as_chunks::<4>();
        out.extend(bytes.iter().map(|bytes| Token::from_bytes(*bytes)));
    }
}

fn named(kind: &Kind, cell: &Cell<'_>) -> String {
    match (kind, cell) {
        (Kind::Class(names), Cell::Int(class)) => names[*class as usize].clone(),
        (_, Cell::Int(value)) => value.to_string(),
        (_, Cell::Float(value)) => value.to_string(),
        (_, Cell::Bool(value)) => value.to_string(),
        (_, Cell::Str(text)) => text.to_string(),
    }
}
