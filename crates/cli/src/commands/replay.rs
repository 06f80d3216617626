use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use highroad_eval::Verdict;
use highroad_package::registry::{RegistryClient, ResolvedVersion};
use highroad_package::{Digest, Manifest, PackageError, Reference, Selector, Verdicts, VerifiedPackage};
use highroad_serve::case;
use highroad_serve::protocol::oip::Query;
use highroad_serve::replay::{self, Answers, Comparison};
use highroad_serve::request_log::{self, Record};
use highroad_task::{Input, Predictor, PredictorOptions};
use serde_json::{Value, json};

use crate::outln;
use crate::resolve::{Home, Target};
use crate::serving;
use crate::tracking::{self, TrackingArgs};

/// The replay gave other bits.
const MISMATCH: u8 = 1;

/// `highroad replay REQUEST_ID --input case.json [--with REF]`
#[derive(clap::Args)]
pub struct Args {
    /// The answer's `x-request-id`.
    request_id: String,
    /// What was asked: `{"input": {"text": "…"}}`, `{"text": "…"}`, or the body that was sent. The server keeps no inputs.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Another version, to put its answer beside the served one: `name:3`, `name@champion`, a digest or a directory.
    #[arg(long, value_name = "REF")]
    with: Option<String>,
    /// The server that answered, for its request log; without it, the log of this machine.
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    #[command(flatten)]
    tracking: TrackingArgs,
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let tracking = tracking::client(&self.tracking)?;
        let mut registries = vec![tracking.client().clone()];
        // A server of `highroad up` is its own registry.
        registries.extend(self.server.as_deref().and_then(|server| RegistryClient::new(server).ok()));
        tracking.block_on(self.replay(&Sources { home: Home::find(), registries }))
    }

    async fn replay(&self, sources: &Sources) -> anyhow::Result<ExitCode> {
        let case = std::fs::read(&self.input).with_context(|| format!("cannot read `{}`", self.input.display()))?;
        let record = find_record(&self.request_id, self.server.as_deref(), &sources.home).await?;
        let package = sources.served(&record).await?;
        let answers = Answered::of(&package, &case)?;
        let comparison = Comparison::of(&record, &answers.answers);
        let other = match &self.with {
            Some(with) => Some((with.clone(), Answered::of(&sources.package(with).await?, &case)?)),
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

/// What a server's request log, or else this machine's, says about a request.
async fn find_record(id: &str, server: Option<&str>, home: &Home) -> anyhow::Result<Record> {
    if let Some(server) = server {
        let mut url = reqwest::Url::parse(server).with_context(|| format!("`{server}` is no URL"))?;
        let mut path = url.path_segments_mut().map_err(|()| anyhow::anyhow!("`{server}` is no URL of a server"))?;
        path.pop_if_empty().extend(["v1", "highroad", "requests", id]);
        drop(path);
        let response = reqwest::get(url).await.with_context(|| format!("`{server}` does not answer"))?;
        if response.status() == 404 {
            bail!("the request log of {server} has no `{id}`");
        }
        return Ok(response.error_for_status()?.json().await?);
    }
    let dir = serving::requests_dir(home);
    let found = request_log::find(&dir, id).with_context(|| format!("cannot read `{}`", dir.display()))?;
    found.with_context(|| {
        format!("no request `{id}` in `{}`\nhint: `--server URL` asks the server that answered", dir.display())
    })
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
    let case = std::fs::read(input).with_context(|| format!("cannot read `{}`", input.display()))?;
    let tracking = tracking::client(&TrackingArgs::default())?;
    let mut registries = vec![tracking.client().clone()];
    registries.extend(server.and_then(|server| RegistryClient::new(server).ok()));
    let sources = Sources { home: Home::find(), registries };
    let (record, package) = tracking.block_on(async {
        let record = find_record(id, server, &sources.home).await?;
        let package = sources.served(&record).await?;
        anyhow::Ok((record, package))
    })?;
    let comparison = Comparison::of(&record, &Answered::of(&package, &case)?.answers);
    if !comparison.same_bits {
        bail!("`{}` is not what request `{id}` asked: {}", input.display(), comparison.why);
    }
    match case::query(&case, &[])? {
        Query::Rows(inputs) if inputs.len() == 1 => Ok(Served { record, input: inputs[0].clone() }),
        _ => bail!("`{}` holds more than one input: keep the one that is to become a case", input.display()),
    }
}

/// Where packages, verdicts and runs are looked for.
struct Sources {
    home: Home,
    registries: Vec<RegistryClient>,
}

impl Sources {
    /// The package that answered, by its digest.
    async fn served(&self, record: &Record) -> anyhow::Result<VerifiedPackage> {
        if let Some(hosted) = &record.hosted {
            bail!(
                "`{}` of {} is hosted elsewhere (as `{}`): its answers are observed, and nobody but its host can give them again",
                record.request_id,
                record.member,
                hosted.model
            );
        }
        let store = self.home.store()?;
        match store.get(&record.package) {
            Ok(package) => return Ok(package),
            Err(PackageError::NotInStore(_)) => {}
            Err(damage) => {
                return Err(damage).context("the package that answered cannot be taken from the local store");
            }
        }
        let name = model_name(&record.version).to_owned();
        let reference = Reference { name, selector: Selector::Digest(record.package) };
        self.fetch(&reference)
            .await
            .with_context(|| format!("cannot bring the package that answered, {}", record.package))
    }

    /// A package as a person names it.
    async fn package(&self, named: &str) -> anyhow::Result<VerifiedPackage> {
        let is_dir = std::path::Path::new(named).is_dir();
        match named.parse::<Reference>() {
            Ok(reference) if !is_dir => self.fetch(&reference).await,
            _ => Ok(named.parse::<Target>()?.resolve(&self.home)?.package),
        }
    }

    async fn fetch(&self, reference: &Reference) -> anyhow::Result<VerifiedPackage> {
        let store = self.home.store()?;
        let mut reason = None;
        for registry in &self.registries {
            let found = match registry.resolve(reference).await {
                Ok(version) => registry.fetch(&version, &store, &|_bytes| {}).await,
                Err(error) => Err(error),
            };
            match found {
                Ok(package) => return Ok(package),
                Err(error) => reason = Some(error),
            }
        }
        Err(reason.context("no registry is configured")?.into())
    }

    async fn verdict(&self, record: &Record) -> Option<Verdict> {
        let digest = record.verdict?;
        let kept = Verdicts::open(self.home.verdicts()).and_then(|verdicts| verdicts.get(&record.package, &digest));
        let bytes = match kept {
            Ok(bytes) => bytes,
            Err(_) => self.fetch_verdict(record, digest).await?,
        };
        serde_json::from_slice(&bytes).ok()
    }

    async fn fetch_verdict(&self, record: &Record, verdict: Digest) -> Option<Vec<u8>> {
        let name = model_name(&record.version).to_owned();
        let version = ResolvedVersion {
            name,
            version: 0,
            package: record.package,
            verdict: Some(verdict),
            outcome: None,
            run_id: None,
            overrides: BTreeMap::new(),
        };
        for registry in &self.registries {
            if let Ok(Some(bytes)) = registry.fetch_verdict(&version).await {
                return Some(bytes);
            }
        }
        None
    }

    async fn run(&self, run_id: &str) -> Option<Value> {
        for registry in &self.registries {
            if let Ok(run) = registry.run(run_id).await {
                return Some(run);
            }
        }
        None
    }
}

/// `moderation` of `moderation:7` and of `moderation@sha256:…`.
fn model_name(version: &str) -> &str {
    version.split(['@', ':']).next().unwrap_or(version)
}

/// What one package answers to the case.
struct Answered {
    label: String,
    package: Digest,
    answers: Answers,
}

impl Answered {
    fn of(package: &VerifiedPackage, case: &[u8]) -> anyhow::Result<Self> {
        let predictor = Predictor::open(package, &PredictorOptions::default())
            .with_context(|| format!("package {} does not load", package.digest()))?;
        let answers = Answers::of(&predictor, case)?;
        Ok(Self { label: package.manifest().name.clone(), package: package.digest(), answers })
    }
}

/// From the answer back to the data.
struct Chain {
    verdict: Option<Verdict>,
    run: Option<Value>,
    manifest: Manifest,
}

impl Chain {
    async fn find(sources: &Sources, record: &Record, manifest: &Manifest) -> Self {
        let run = match &manifest.provenance.run_id {
            Some(run_id) => sources.run(run_id).await,
            None => None,
        };
        Self { verdict: sources.verdict(record).await, run, manifest: manifest.clone() }
    }

    fn json(&self, record: &Record) -> Value {
        replay::chain(record, Some(&self.manifest), self.verdict.as_ref(), self.run.as_ref())
    }

    fn lines(&self, record: &Record) -> Vec<(&'static str, String)> {
        let provenance = &self.manifest.provenance;
        let unknown = || "not recorded".to_owned();
        let mut lines = vec![("answer", format!("{} by `{}` at {}", record.request_id, record.member, record.time))];
        lines.push((
            "verdict",
            match (&record.verdict, &self.verdict, &record.development) {
                (_, _, Some(reason)) => format!("none, served for development: {reason}"),
                (Some(digest), Some(verdict), _) => format!(
                    "{} {} on {} cases of `{}`, by {} at {}",
                    digest.short(),
                    outcome(verdict),
                    verdict.golden_set.n_cases,
                    verdict.golden_set.name,
                    verdict.created_by,
                    verdict.created_at
                ),
                (Some(digest), None, _) => format!("{} (its file is not on this machine)", digest.short()),
                (None, ..) if record.overridden.is_some() => {
                    let digest = record.overridden.map(|digest| digest.short()).unwrap_or_default();
                    format!("none, let through by override {digest}: the audit trail says by whom and why")
                }
                (None, ..) => unknown(),
            },
        ));
        lines.push(("package", format!("{} as {}, owner {}", record.package, record.version, self.manifest.owner)));
        lines.push(("run", provenance.run_id.clone().map_or_else(unknown, |id| run_line(&id, self.run.as_ref()))));
        lines.push(("commit", provenance.git_commit.clone().unwrap_or_else(unknown)));
        if provenance.data.is_empty() {
            lines.push(("data", unknown()));
        }
        for (name, digest) in &provenance.data {
            lines.push(("data", format!("{name} {digest}")));
        }
        lines
    }
}

fn outcome(verdict: &Verdict) -> String {
    serde_json::to_value(verdict.outcome).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// The run's id, state and last metrics, as far as the tracking server knows them.
fn run_line(id: &str, run: Option<&Value>) -> String {
    let Some(run) = run else { return format!("{id} (the tracking server does not know it)") };
    // How busy the machine was says nothing about the answer.
    let metric = |metric: &Value| {
        let key = metric["key"].as_str().filter(|key| !key.starts_with("system/"))?;
        Some(format!("{key} {}", metric["value"]))
    };
    let metrics =
        run["data"]["metrics"].as_array().map(|metrics| metrics.iter().filter_map(metric).collect::<Vec<_>>());
    let metrics = metrics.unwrap_or_default().join(", ");
    let status = run["info"]["status"].as_str().unwrap_or("?");
    if metrics.is_empty() { format!("{id} {status}") } else { format!("{id} {status}: {metrics}") }
}

type Other = Option<(String, Answered)>;

fn report(record: &Record, answers: &Answered, comparison: &Comparison, other: &Other, chain: &Chain) -> Value {
    json!({
        "request": record,
        "same_bits": comparison.same_bits,
        "why": comparison.why,
        "numerics_id": answers.answers.numerics_id,
        "answers": answers.answers.json(),
        "with": other.as_ref().map(|(reference, answers)| json!({
            "reference": reference, "package": answers.package, "answers": answers.answers.json(),
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
