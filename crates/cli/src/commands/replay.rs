//! `highroad replay`: a served answer once more, and the chain behind it.

mod chain;
mod hosted;
mod pipeline;
mod sources;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use highroad_package::{Digest, Truncation, VerifiedPackage};
use highroad_serve::case;
use highroad_serve::protocol::oip::Query;
use highroad_serve::replay::{Answers, Comparison};
use highroad_serve::request_log::Record;
use highroad_task::raw::arrays_of;
use highroad_task::{Cut, Input, Predictor, PredictorOptions};
use serde_json::{Value, json};

use crate::outln;
use crate::tracking::{self, TrackingArgs};
use chain::Chain;
use sources::{Places, Sources};

/// The replay gave other bits, or a host another answer.
const MISMATCH: u8 = 1;

/// `highroad replay REQUEST_ID --input case.json [--with REF]`
#[derive(clap::Args)]
pub struct Args {
    /// The answer's `x-request-id` or `x-highroad-request-id`; of a pipeline also `ID.STEP`, one of its steps.
    request_id: String,
    /// What was asked: `{"input": {"text": "…"}}`, `{"text": "…"}`, a picture, or the body that was sent. The server keeps no inputs.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Another version, to put its answer beside the served one: `name:3`, `name@champion`, `name@previous`, a digest or a directory; of a
    /// hosted model another description; of a pipeline also `MEMBER=REF` or `STEP=REF`, in whose place it answers.
    #[arg(long, value_name = "REF")]
    with: Option<String>,
    /// The server that answered, for its request log; without it, the log of this machine. A key in `$HIGHROAD_API_KEY` is sent along.
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Ask hosted models again, which costs what they cost: their answers are compared, not promised.
    #[arg(long)]
    ask_host: bool,
    /// Most that asking hosted models may cost, in the currency of their price.
    #[arg(long, value_name = "AMOUNT", requires = "ask_host")]
    max_cost: Option<f64>,
    /// The reply that the client got, for what the log does not keep: the texts of hosted models.
    #[arg(long, value_name = "FILE")]
    answer: Option<PathBuf>,
    /// Where pipelines, indexes and hosted models are described, if no server kept that here; `portfolio.toml` unless told.
    #[arg(long, value_name = "FILE")]
    portfolio: Option<PathBuf>,
    /// Where an index is that a pipeline searched, if it has moved.
    #[arg(long, value_name = "FOLDER")]
    index: Vec<PathBuf>,
    #[command(flatten)]
    tracking: TrackingArgs,
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let tracking = tracking::client(&self.tracking)?;
        let (server, portfolio) = (self.server.clone(), self.portfolio.clone());
        let sources = Sources::new(tracking.client(), Places { server, portfolio, indexes: self.index.clone() });
        tracking.block_on(self.replay(&sources))
    }

    async fn replay(&self, sources: &Sources) -> anyhow::Result<ExitCode> {
        let case = read_case(&self.input)?;
        let record = sources.record(&self.request_id).await?;
        let asking = hosted::Asking::new(self.ask_host, self.max_cost);
        let served =
            self.answer.as_deref().map(std::fs::read).transpose().context("cannot read the file of `--answer`")?;
        if record.pipeline.is_some() {
            let asked = pipeline::Asked { case: &case, with: self.with.as_deref(), served: served.as_deref() };
            return pipeline::replay(sources, &record, &asked, &asking, self.json).await;
        }
        if record.hosted.is_some() {
            let asked = hosted::Asked { case: &case, with: self.with.as_deref(), served: served.as_deref() };
            return hosted::replay(sources, &record, &asked, &asking, self.json).await;
        }
        let package = sources.served(&record).await?;
        let answers = Answered::of(&package, &case, &record)?;
        let comparison = Comparison::of(&record, &answers.answers);
        let other = match &self.with {
            Some(with) => Some((with.clone(), Answered::of(&sources.package(with).await?, &case, &record)?)),
            None => None,
        };
        let chain = Chain::find(sources, &record, package.manifest()).await;
        if self.json {
            let report = report(&record, &answers, &comparison, &other, &chain);
            writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&report)?)?;
        } else {
            print_report(&record, &answers, &comparison, &other, &chain);
        }
        Ok(if comparison.same_bits { ExitCode::SUCCESS } else { ExitCode::from(MISMATCH) })
    }
}

/// Largest case that is read, in bytes.
const MAX_CASE_BYTES: u64 = 256 << 20;

/// The case at `path`, and in place of one that names a picture's file that file, which lies beside it.
fn read_case(path: &Path) -> anyhow::Result<Vec<u8>> {
    let cannot = || format!("cannot read `{}`", path.display());
    if std::fs::metadata(path).with_context(cannot)?.len() > MAX_CASE_BYTES {
        bail!("`{}` has more than {MAX_CASE_BYTES} bytes", path.display());
    }
    let case = std::fs::read(path).with_context(cannot)?;
    let json: Option<Value> = serde_json::from_slice(&case).ok();
    let golden = json.as_ref().map(|json| json.get("input").filter(|input| input.is_object()).unwrap_or(json));
    let Some(image) = golden.and_then(|golden| golden.get("image")?.as_str()) else { return Ok(case) };
    let image = path.parent().unwrap_or(Path::new("")).join(image);
    std::fs::read(&image).with_context(|| format!("cannot read the picture `{}` of the case", image.display()))
}

/// A served request with its input, which the log does not keep.
pub struct Served {
    pub record: Record,
    pub input: Input,
}

/// The request called `id`, whose one input is in the case file at `input`.
///
/// Errors unless the package that answered gives the served bits for it: another input must not pass for the one that was served.
pub fn served(id: &str, input: &Path, server: Option<&str>) -> anyhow::Result<Served> {
    let case = read_case(input)?;
    let tracking = tracking::client(&TrackingArgs::default())?;
    let sources = Sources::new(tracking.client(), Places { server: server.map(str::to_owned), ..Places::default() });
    let (record, package) = tracking.block_on(async {
        let record = sources.record(id).await?;
        let package = sources.served(&record).await?;
        anyhow::Ok((record, package))
    })?;
    let cuts_start = package.manifest().task.truncation == Truncation::Left;
    if record.n_truncated > 0 && (record.cut == Cut::Start) != cuts_start {
        bail!("request `{id}` cut texts elsewhere than the package says, which is where a golden case is cut");
    }
    if let Some(most) = record.document_tokens {
        bail!("request `{id}` cut documents to {most} tokens, which a golden case does not");
    }
    let predictor = open(&package)?;
    let comparison = Comparison::of(&record, &Answers::of(&predictor, &case, &record)?);
    if !comparison.same_bits {
        bail!("`{}` is not what request `{id}` asked: {}", input.display(), comparison.why);
    }
    let specs = predictor.program().inputs();
    match case::query_on(&case, specs, &record.route)? {
        Query::Program(tensors) => Ok(Served { record, input: Input::Tensors(arrays_of(specs, &tensors)) }),
        Query::Rows(inputs) if inputs.len() == 1 => Ok(Served { record, input: inputs[0].clone() }),
        _ => bail!("`{}` holds more than one input: keep the one that is to become a case", input.display()),
    }
}

fn open(package: &VerifiedPackage) -> anyhow::Result<Predictor> {
    Predictor::open(package, &PredictorOptions::default())
        .with_context(|| format!("package {} does not load", package.digest()))
}

/// What one package answers to the case.
struct Answered {
    label: String,
    package: Digest,
    answers: Answers,
}

impl Answered {
    fn of(package: &VerifiedPackage, case: &[u8], record: &Record) -> anyhow::Result<Self> {
        let answers = Answers::of(&open(package)?, case, record)?;
        Ok(Self { label: package.manifest().name.clone(), package: package.digest(), answers })
    }
}

type Other = Option<(String, Answered)>;

fn report(record: &Record, answers: &Answered, comparison: &Comparison, other: &Other, chain: &Chain) -> Value {
    json!({
        "request": record,
        "same_bits": comparison.same_bits,
        "why": comparison.why,
        "numerics_id": answers.answers.numerics_id,
        "answers": answers.answers.told(),
        "with": other.as_ref().map(|(reference, answers)| json!({
            "reference": reference, "package": answers.package, "answers": answers.answers.told(),
        })),
        "chain": chain.json(record),
    })
}

fn print_report(record: &Record, answers: &Answered, comparison: &Comparison, other: &Other, chain: &Chain) {
    outln!("{}", comparison.why);
    for (digest, answer) in &answers.answers.rows {
        outln!("  {:<10} {}  {}", record.version, brief(answer), digest.short());
    }
    if let Some((reference, answers)) = other {
        for (digest, answer) in &answers.answers.rows {
            outln!("  {reference:<10} {}  {}", brief(answer), digest.short());
        }
        outln!("  ({} is package {} of `{}`)", reference, answers.package.short(), answers.label);
    }
    for (name, line) in chain.lines(record) {
        outln!("{name:>8}  {line}");
    }
}

/// An answer on one line: a label with its scores, or a vector's first values.
fn brief(answer: &Value) -> String {
    let numbers = |values: &Value| -> String {
        let all = values.as_array().map(Vec::as_slice).unwrap_or_default();
        let shown: Vec<String> =
            all.iter().take(6).map(|value| format!("{:.6}", value.as_f64().unwrap_or(f64::NAN))).collect();
        let rest = if all.len() > shown.len() { format!(", … {} values", all.len()) } else { String::new() };
        format!("[{}{rest}]", shown.join(", "))
    };
    if let Some(class) = answer.get("class") {
        return format!("{} {}", class["label"].as_str().unwrap_or("?"), numbers(&class["scores"]));
    }
    answer.get("embedding").map_or_else(|| answer.to_string(), |embedding| numbers(&embedding["vector"]))
}
