use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use highroad_eval::drift::{Alarm, Confusion, Ranks, Rate, worse_evidence};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::monitor::config::MonitorConfig;
use crate::monitor::report::Quality;
use crate::request_log::Record;

/// Right answers that one request may bring.
pub const MAX_LABELS_AT_ONCE: usize = 10_000;
/// Right answers that are remembered one by one, so that none counts twice; older ones are sums.
const MAX_ENTRIES: usize = if cfg!(test) { 4_000 } else { 100_000 };
/// How many become sums at a time.
const FOLDED_AT_ONCE: usize = MAX_ENTRIES / 4;
/// Longest label.
const MAX_LABEL_BYTES: usize = 200;
/// Versions and days that sums are kept of.
const MAX_SUMS: usize = 2_000;
/// Longest line of the journal.
const MAX_LINE_BYTES: u64 = 8 << 20;
const JOURNAL: &str = "labels.jsonl";
/// Accuracy that matters: what a quality alarm takes beside evidence.
const MIN_POINTS: f64 = 0.02;

/// A right answer that came later.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Given {
    /// The answer's `x-request-id`, or `x-highroad-request-id`.
    pub request_id: String,
    /// Which input of the request, from 0.
    #[serde(default)]
    pub input: usize,
    /// The right label.
    pub label: Option<String>,
    /// Of a reranker's request: the documents that were relevant, from 0, in the order they were sent.
    #[serde(default)]
    pub relevant: Vec<u32>,
    /// The member that answered, where several did under one id.
    pub member: Option<String>,
    /// Whether it replaces one that was given before.
    #[serde(default)]
    pub replace: bool,
}

/// What became of a right answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LabelOutcome {
    /// It counts.
    Counted,
    /// It was given before; nothing changed.
    Duplicate,
    /// Another one was given before, which stays; `replace` puts this one in its place.
    Contradicts,
    /// It took the place of another.
    Replaced,
    /// The request log has no such request, or not any more.
    Unknown,
    /// Several answers have this id, which their clients brought: `member` or their unique ids tell them apart.
    Ambiguous,
    /// The request has no such input, or documents.
    NoSuchInput,
    /// It is empty, too long, or of another kind than the answer.
    Invalid,
    /// The member is not watched.
    NotWatched,
}

impl LabelOutcome {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Counted => "counted",
            Self::Duplicate => "duplicate",
            Self::Contradicts => "contradicts",
            Self::Replaced => "replaced",
            Self::Unknown => "unknown",
            Self::Ambiguous => "ambiguous",
            Self::NoSuchInput => "no_such_input",
            Self::Invalid => "invalid",
            Self::NotWatched => "not_watched",
        }
    }
}

/// A right answer and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[allow(missing_docs)]
pub struct Labelled {
    pub request_id: String,
    pub input: usize,
    pub outcome: LabelOutcome,
    /// Where the request is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answered_at: Option<String>,
    /// Whether the answer was right; of documents, whether a relevant one came first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub right: Option<bool>,
}

impl Given {
    pub(crate) fn answered(&self, outcome: LabelOutcome, record: Option<&Record>) -> Labelled {
        Labelled {
            request_id: self.request_id.clone(),
            input: self.input,
            outcome,
            member: record.map(|record| record.member.clone()),
            version: record.map(|record| record.version.clone()),
            answered_at: record.map(|record| record.time.clone()),
            right: None,
        }
    }

    /// What there is to count.
    fn against(&self, record: &Record) -> Result<Compared, LabelOutcome> {
        if let Some(label) = &self.label {
            if record.labels.is_empty() || label.is_empty() || label.len() > MAX_LABEL_BYTES {
                return Err(LabelOutcome::Invalid);
            }
            let answered = record.labels.get(self.input).ok_or(LabelOutcome::NoSuchInput)?;
            return Ok(Compared::Label { right: label.clone(), answered: answered.clone() });
        }
        if self.relevant.is_empty() || record.order.is_empty() {
            return Err(LabelOutcome::Invalid);
        }
        if self.input != 0 || self.relevant.iter().any(|&at| at as usize >= record.order.len()) {
            return Err(LabelOutcome::NoSuchInput);
        }
        let first = record.order.iter().position(|document| self.relevant.contains(document));
        let rank = first.and_then(|at| u32::try_from(at + 1).ok()).ok_or(LabelOutcome::NoSuchInput)?;
        Ok(Compared::Rank { rank })
    }
}

/// A right answer beside the one that was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Compared {
    Label { right: String, answered: String },
    Rank { rank: u32 },
}

impl Compared {
    fn is_right(&self) -> bool {
        match self {
            Self::Label { right, answered } => right == answered,
            Self::Rank { rank } => *rank == 1,
        }
    }
}

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// What older lines come to; the first line.
    Sums(Sums),
    Label {
        id: String,
        input: usize,
        version: String,
        day: String,
        of: Compared,
    },
}

/// By version, then by day.
type Sums = BTreeMap<String, BTreeMap<String, Sum>>;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Sum {
    labels: Confusion,
    ranks: Ranks,
}

impl Sum {
    fn add(&mut self, of: &Compared) {
        match of {
            Compared::Label { right, answered } => self.labels.add(right, answered),
            Compared::Rank { rank } => self.ranks.add(*rank),
        }
    }

    fn remove(&mut self, of: &Compared) {
        match of {
            Compared::Label { right, answered } => self.labels.remove(right, answered),
            Compared::Rank { rank } => self.ranks.remove(*rank),
        }
    }

    fn merge(&mut self, other: &Self) {
        self.labels.merge(&other.labels);
        self.ranks.merge(&other.ranks);
    }

    fn rate(&self) -> Rate {
        if self.ranks.n() > 0 { self.ranks.reciprocal() } else { self.labels.accuracy() }
    }
}

/// The right answers to one member's requests.
pub(crate) struct Labels {
    dir: PathBuf,
    journal: Option<File>,
    entries: HashMap<(String, usize), Entry>,
    /// Keys of `entries`, oldest first.
    order: VecDeque<(String, usize)>,
    /// Of everything.
    sums: Sums,
    /// Of what is no entry any more.
    folded: Sums,
}

struct Entry {
    version: String,
    day: String,
    of: Compared,
}

impl Labels {
    /// As they were left in `dir`. Lines that cannot be read (a crash can cut the last one) are passed over.
    pub(crate) fn open(dir: &Path) -> Self {
        let mut labels = Self {
            dir: dir.to_owned(),
            journal: None,
            entries: HashMap::new(),
            order: VecDeque::new(),
            sums: Sums::new(),
            folded: Sums::new(),
        };
        if let Ok(file) = File::open(dir.join(JOURNAL)) {
            let mut reader = BufReader::new(file);
            let mut line = Vec::new();
            while reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                match serde_json::from_slice(&line) {
                    Ok(line) => labels.replay(line),
                    Err(error) => warn!("Passing over a line of `{}`: {error}", dir.join(JOURNAL).display()),
                }
                line.clear();
            }
        }
        labels
    }

    fn replay(&mut self, line: Line) {
        match line {
            Line::Sums(sums) => {
                for (version, days) in &sums {
                    for (day, sum) in days {
                        sum_of(&mut self.sums, version, day).merge(sum);
                    }
                }
                self.folded = sums;
            }
            Line::Label { id, input, version, day, of } => self.set((id, input), Entry { version, day, of }),
        }
    }

    fn set(&mut self, key: (String, usize), entry: Entry) {
        sum_of(&mut self.sums, &entry.version, &entry.day).add(&entry.of);
        match self.entries.insert(key.clone(), entry) {
            Some(old) => sum_of(&mut self.sums, &old.version, &old.day).remove(&old.of),
            None => self.order.push_back(key),
        }
    }

    /// Takes in a right answer to the request of `record`.
    pub(crate) fn take(&mut self, given: &Given, record: &Record) -> Labelled {
        let of = match given.against(record) {
            Ok(of) => of,
            Err(outcome) => return given.answered(outcome, Some(record)),
        };
        let right = Some(of.is_right());
        // Whichever id it was called by.
        let key = (record.own_id().to_owned(), given.input);
        let outcome = match self.entries.get(&key) {
            Some(known) if known.of == of => LabelOutcome::Duplicate,
            Some(_) if !given.replace => LabelOutcome::Contradicts,
            Some(_) => LabelOutcome::Replaced,
            None => LabelOutcome::Counted,
        };
        if matches!(outcome, LabelOutcome::Counted | LabelOutcome::Replaced) {
            let day = record.time.get(..10).unwrap_or("unknown").to_owned();
            let (id, input) = key.clone();
            self.append(&Line::Label { id, input, version: record.version.clone(), day: day.clone(), of: of.clone() });
            self.set(key, Entry { version: record.version.clone(), day, of });
            self.fold();
        }
        Labelled { right, ..given.answered(outcome, Some(record)) }
    }

    fn append(&mut self, line: &Line) {
        let result = (|| {
            if self.journal.is_none() {
                fs::create_dir_all(&self.dir)?;
                self.journal = Some(open_journal(&self.dir.join(JOURNAL))?);
            }
            let mut bytes = serde_json::to_vec(line)?;
            bytes.push(b'\n');
            self.journal.as_mut().map_or(Ok(()), |journal| journal.write_all(&bytes))
        })();
        if let Err(error) = result {
            self.journal = None;
            warn!(
                "A right answer will be forgotten by the next start: cannot write in `{}`: {error}",
                self.dir.display()
            );
        }
    }

    /// Makes sums of the oldest entries where there are too many, and writes the journal anew.
    fn fold(&mut self) {
        if self.order.len() <= MAX_ENTRIES {
            return;
        }
        for key in self.order.drain(..FOLDED_AT_ONCE) {
            if let Some(Entry { version, day, of }) = self.entries.remove(&key) {
                sum_of(&mut self.folded, &version, &day).add(&of);
            }
        }
        let result = (|| {
            let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
            let mut out = std::io::BufWriter::new(file.as_file_mut());
            let mut put = |line: &Line| {
                serde_json::to_writer(&mut out, line)?;
                out.write_all(b"\n")
            };
            put(&Line::Sums(self.folded.clone()))?;
            for key in &self.order {
                if let Some(Entry { version, day, of }) = self.entries.get(key) {
                    let (id, input) = key.clone();
                    put(&Line::Label { id, input, version: version.clone(), day: day.clone(), of: of.clone() })?;
                }
            }
            out.flush()?;
            drop(out);
            file.as_file().sync_all()?;
            file.persist(self.dir.join(JOURNAL))?;
            Ok::<(), std::io::Error>(())
        })();
        // What is open is the file that was replaced.
        self.journal = None;
        if let Err(error) = result {
            warn!("Cannot write `{}` anew: {error}", self.dir.join(JOURNAL).display());
        }
    }

    /// How often `version` is right; `None` before the first right answer.
    pub(crate) fn quality(&self, version: &str, baseline: Option<[u64; 2]>, config: &MonitorConfig) -> Option<Quality> {
        let by_version: BTreeMap<String, Rate> = self
            .sums
            .iter()
            .map(|(version, days)| (version.clone(), total(days).rate()))
            .filter(|(_, rate)| rate.n > 0)
            .collect();
        if by_version.is_empty() {
            return None;
        }
        let none = BTreeMap::new();
        let days = self.sums.get(version).unwrap_or(&none);
        let all = total(days);
        let n_labels = all.labels.accuracy().n;
        let threshold = config.policy.threshold(1.0, 1);
        let (evidence, alarm) =
            baseline.map_or((0.0, None), |baseline| worse(days, baseline, threshold, config.policy.min_rows));
        let share = |[wrong, right]: [u64; 2]| right as f64 / ((wrong + right) as f64).max(1.0);
        Some(Quality {
            n: n_labels + all.ranks.n(),
            accuracy: (n_labels > 0).then(|| all.labels.accuracy()),
            accuracy_always: (n_labels > 0).then(|| all.labels.accuracy_always()),
            labels: all.labels.by_label(),
            mrr: (all.ranks.n() > 0).then(|| all.ranks.reciprocal()),
            ndcg_10: (all.ranks.n() > 0).then(|| all.ranks.ndcg_10()),
            by_version,
            by_day: days.iter().map(|(day, sum)| (day.clone(), sum.rate())).collect(),
            baseline: baseline.map(share),
            evidence,
            threshold,
            alarm,
        })
    }
}

/// Opens a journal to be added to; a line that a crash cut off must not become the head of the next.
fn open_journal(path: &Path) -> std::io::Result<File> {
    let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
    if file.seek(SeekFrom::End(0))? > 0 {
        file.seek(SeekFrom::End(-1))?;
        let mut last = [0];
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
        }
    }
    Ok(file)
}

/// The strongest evidence of all days as beginnings, and the alarm if it suffices.
fn worse(days: &BTreeMap<String, Sum>, baseline: [u64; 2], threshold: f64, min_rows: u64) -> (f64, Option<Alarm>) {
    let (mut live, mut best) = ([0_u64; 2], (0.0, None));
    for (day, sum) in days.iter().rev() {
        let [wrong, right] = sum.labels.wrong_and_right();
        live = [live[0] + wrong, live[1] + right];
        let evidence = worse_evidence(baseline, live);
        let n = live[0] + live[1];
        if n < min_rows.min(50) || evidence <= best.0 {
            continue;
        }
        let share = |[wrong, right]: [u64; 2]| right as f64 / ((wrong + right) as f64).max(1.0);
        let effect = share(baseline) - share(live);
        let since_s = format!("{day}T00:00:00Z").parse::<jiff::Timestamp>().map_or(0, jiff::Timestamp::as_second);
        let alarms = evidence >= threshold && effect >= MIN_POINTS;
        best = (evidence, alarms.then_some(Alarm { since_s, n, effect }));
    }
    best
}

fn total(days: &BTreeMap<String, Sum>) -> Sum {
    days.values().fold(Sum::default(), |mut all, sum| {
        all.merge(sum);
        all
    })
}

/// The sum of a version and day; beyond a limit of both one that all share.
fn sum_of<'a>(sums: &'a mut Sums, version: &str, day: &str) -> &'a mut Sum {
    let n: usize = sums.values().map(BTreeMap::len).sum();
    let is_known = sums.get(version).is_some_and(|days| days.contains_key(day));
    let (version, day) = if is_known || n < MAX_SUMS { (version, day) } else { ("earlier", "earlier") };
    sums.entry(version.to_owned()).or_default().entry(day.to_owned()).or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use highroad_package::Digest;

    use super::*;

    fn record(id: &str, labels: &[&str], order: &[u32]) -> Record {
        let json = serde_json::json!({
            "request_id": id, "time": "2026-11-29T09:00:00.000Z", "member": "router", "route": "/v1/moderations", "version": "router:7",
            "package": Digest::of(b"p"), "evidence": "bit-exact", "numerics_id": "n", "outputs": [], "n_tokens": [], "n_truncated": 0,
            "queue_ms": 0.0, "compute_ms": 0.0, "total_ms": 0.0, "labels": labels, "order": order,
        });
        serde_json::from_value(json).unwrap()
    }

    fn given(id: &str, input: usize, label: &str) -> Given {
        Given { request_id: id.to_owned(), input, label: Some(label.to_owned()), ..Given::default() }
    }

    #[test]
    fn a_right_answer_counts_once_and_is_contradicted_only_on_purpose() {
        let dir = tempfile::tempdir().unwrap();
        let mut labels = Labels::open(dir.path());
        let record = record("r", &["a", "b"], &[]);
        let mut outcome = |given: Given| labels.take(&given, &record).outcome;
        assert_eq!(outcome(given("r", 0, "a")), LabelOutcome::Counted);
        assert_eq!(outcome(given("r", 1, "a")), LabelOutcome::Counted);
        assert_eq!(outcome(given("r", 0, "a")), LabelOutcome::Duplicate);
        assert_eq!(outcome(given("r", 0, "b")), LabelOutcome::Contradicts);
        assert_eq!(outcome(Given { replace: true, ..given("r", 1, "b") }), LabelOutcome::Replaced);
        assert_eq!(outcome(given("r", 2, "a")), LabelOutcome::NoSuchInput);
        assert_eq!(outcome(given("r", 0, "")), LabelOutcome::Invalid);
        assert_eq!(outcome(Given { label: None, relevant: vec![0], ..given("r", 0, "") }), LabelOutcome::Invalid);
        let quality = labels.quality("router:7", None, &MonitorConfig::default()).unwrap();
        assert_eq!(quality.accuracy.map(|rate| (rate.value, rate.n)), Some((1.0, 2)));

        let mut file = OpenOptions::new().append(true).open(dir.path().join(JOURNAL)).unwrap();
        file.write_all(b"{\"label\":{\"id\":\"cut").unwrap();
        let mut again = Labels::open(dir.path());
        assert_eq!(again.quality("router:7", None, &MonitorConfig::default()), Some(quality));
        assert_eq!(again.take(&given("r", 0, "a"), &record).outcome, LabelOutcome::Duplicate);
    }

    #[test]
    fn relevant_documents_give_ranks() {
        let dir = tempfile::tempdir().unwrap();
        let mut labels = Labels::open(dir.path());
        let record = record("r", &[], &[2, 0, 1]);
        let relevant =
            |documents: &[u32]| Given { request_id: "r".to_owned(), relevant: documents.to_vec(), ..Given::default() };
        assert_eq!(labels.take(&relevant(&[3]), &record).outcome, LabelOutcome::NoSuchInput);
        assert_eq!(labels.take(&relevant(&[1, 0]), &record).right, Some(false));
        let quality = labels.quality("router:7", None, &MonitorConfig::default()).unwrap();
        assert_eq!(quality.mrr.map(|rate| (rate.value, rate.n)), Some((0.5, 1)));
        assert_eq!(quality.accuracy, None);
    }

    #[test]
    fn old_entries_become_sums_and_nothing_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let mut labels = Labels::open(dir.path());
        for n in 0..=MAX_ENTRIES {
            let id = n.to_string();
            let label = if n % 4 == 0 { "b" } else { "a" };
            labels.take(&given(&id, 0, label), &record(&id, &["a"], &[]));
        }
        let quality =
            |labels: &Labels| labels.quality("router:7", Some([100, 900]), &MonitorConfig::default()).unwrap();
        assert_eq!(quality(&labels).n, MAX_ENTRIES as u64 + 1);
        assert!(labels.entries.len() <= MAX_ENTRIES);
        assert_eq!(quality(&Labels::open(dir.path())), quality(&labels));
        assert!(quality(&labels).alarm.is_some_and(|alarm| (alarm.effect - 0.15).abs() < 0.01));
    }
}
