use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::available_parallelism;

use anyhow::{Context as _, bail};
use highroad_assess::review::{Artifact, Attestation, Canary, Facts, Kept, ParityFact, Rerun, Review};
use highroad_assess::{GoldenSet, Rehearsal, WayBack, preprocessing_share, rehearse};
use highroad_eval::Override;
use highroad_package::registry::ResolvedVersion;
use highroad_package::signing::SigningKey;
use highroad_package::{Verdicts, VerifiedPackage};
use highroad_task::{Predictor, PredictorOptions};
use jiff::Timestamp;

use super::eval::{AnswerArgs, N_TIMED, print_json};
use super::gate::REQUIRED;
use super::golden::{self, Unblessed};
use crate::outln;
use crate::resolve::{Home, Resolved, Target};
use crate::standard::Standard;
use crate::tracking::{self, TrackingArgs};
use crate::verdicts::{Found, KeptVerdict};

mod canary;
mod leaks;
mod monitored;
mod origin;
mod signed;
mod verdicts;

use origin::Origin;

/// Write the model review, or check a signed one.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Command {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    review: Args,
}

#[derive(clap::Subcommand)]
enum Action {
    Verify(signed::Args),
}

impl Command {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.action {
            Some(Action::Verify(args)) => args.run(),
            None => self.review.run(),
        }
    }
}

/// Write the model review from evidence: what changed in the data, which metric improved, what regressed, latency and cost,
/// the way back (walked now), and the 28 tests of the ML Test Score. Run `highroad gate` first.
#[derive(clap::Args)]
pub struct Args {
    /// The package under review: a directory, a digest in the local store, or a reference such as `router:7`.
    // Required, but not beside a subcommand, which clap can say of an `Option` only.
    #[arg(required = true)]
    package: Option<Target>,
    /// What it would replace: a package like the candidate, or `trivial` for a first version.
    #[arg(long, value_name = "PACKAGE|trivial", required = true)]
    baseline: Option<Target>,
    /// The golden set (JSONL); the one of highroad.toml unless told.
    #[arg(long, value_name = "FILE")]
    golden: Option<PathBuf>,
    /// The verdict; the newest kept on this machine for the two unless told.
    #[arg(long, value_name = "FILE")]
    verdict: Option<PathBuf>,
    /// Attest what only a person can tell, such as D6; may be given again.
    #[arg(long, value_name = "TEST", requires_all = ["by", "why"])]
    attest: Vec<String>,
    /// Who attests.
    #[arg(long, value_name = "NAME", requires = "attest")]
    by: Option<String>,
    /// What is attested.
    #[arg(long, value_name = "TEXT", requires = "attest")]
    why: Option<String>,
    /// Lines that must hold, such as `regressions,rollback,M6`: exit code 1 where one does not.
    #[arg(long, value_name = "LINE,…", value_delimiter = ',')]
    require: Vec<String>,
    /// Write the review as a page to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the review as Markdown to this file, for a pull request.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Sign the review with this private key; the signature lies beside the kept review.
    #[arg(long, value_name = "KEY", env = "HIGHROAD_SIGNING_KEY")]
    sign: Option<PathBuf>,
    /// Print the review as JSON instead of Markdown.
    #[arg(long)]
    json: bool,
    /// A training file to look for golden cases in; those the package names, where they are here, unless told. May be given
    /// again.
    #[arg(long, value_name = "FILE")]
    training: Vec<PathBuf>,
    /// The column of the training files that holds the text.
    #[arg(long, value_name = "NAME", default_value = "text")]
    column: Vec<String>,
    #[command(flatten)]
    answers: AnswerArgs,
    #[command(flatten)]
    tracking: TrackingArgs,
}

/// A required line does not hold.
const MISSING: u8 = 1;
/// The baseline that needs no model.
const TRIVIAL: &str = "trivial";

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let key = self.sign.as_deref().map(SigningKey::read).transpose()?;
        let golden = golden::with_declared_slices(golden::read(self.golden.as_deref(), Unblessed::Warn)?, None)?;
        let home = Home::find();
        let (package, baseline) = (self.package.as_ref().expect(REQUIRED), self.baseline.as_ref().expect(REQUIRED));
        let Resolved { package, version, .. } = package.resolve(&home)?;
        let baseline = match baseline.to_string() == TRIVIAL {
            true => None,
            false => Some(baseline.resolve(&home).context("cannot find the baseline")?.package),
        };
        let overrides = match &version {
            Some(version) => self.bring(&home, version)?,
            None => Vec::new(),
        };
        let canary = canary::find(&self.tracking, &package, version.as_ref());
        let review = self.review(&home, &golden, &package, baseline.as_ref(), (&overrides, canary))?;
        self.check_required(&review)?;
        let path = signed::keep(&home, &package.digest(), &review, key.as_ref())?;
        self.write(&review)?;
        eprintln!("review {}", path.display());
        let open: Vec<&str> = self.require.iter().map(String::as_str).filter(|id| !is_settled(&review, id)).collect();
        if open.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        for line in open.iter().filter_map(|id| review.line(id)) {
            eprintln!("required: {} ({}) is {}: {}", line.id, line.title, line.status.in_words(), line.summary);
        }
        Ok(ExitCode::from(MISSING))
    }

    fn review(
        &self,
        home: &Home,
        golden: &GoldenSet,
        package: &VerifiedPackage,
        baseline: Option<&VerifiedPackage>,
        (overrides, canary): (&[Override], Option<Canary>),
    ) -> anyhow::Result<Review> {
        let now = Timestamp::now();
        let Found { verdicts: kept, damaged } = crate::verdicts::all(home)?;
        for damaged in damaged {
            eprintln!("warning: {damaged}");
        }
        let against = baseline.map(|baseline| baseline.digest());
        let verdict = match &self.verdict {
            Some(path) => Some(crate::verdicts::read(path, &package.digest())?),
            None => verdicts::newest(&kept, &package.digest(), against.as_ref(), golden).cloned(),
        };
        let trivial = verdicts::newest(&kept, &package.digest(), None, golden);
        let history = verdicts::of_others(&kept, &package.digest(), golden);
        let threads = self.answers.threads.or_else(|| available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN);
        let options = PredictorOptions { threads, ..PredictorOptions::default() };
        let (rerun, parity) = self.ask_again(package, golden, &options)?;
        let origin = Origin::find(&self.tracking, &package.manifest().provenance, now);
        let attested = self.attested()?;
        let facts = Facts {
            package: artifact(package),
            baseline: baseline.map(artifact),
            verdict: verdict.as_ref().map(KeptVerdict::kept),
            overrides,
            against_trivial: trivial.map(KeptVerdict::kept),
            history: &history,
            parity,
            rerun: Some(rerun),
            rehearsal: walk_back(package, baseline, golden, &kept, &options),
            leaks: leaks::find(golden, &package.manifest().provenance, &self.training, &self.column, threads),
            commit: origin.commit,
            run: origin.run,
            attached: &origin.attached,
            attested: &attested,
            monitored: monitored::find(home, &package.digest()),
            canary,
            max_age_days: Standard::find(Path::new("."))?.and_then(|standard| standard.evaluation.max_age_days),
            created_at: now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            created_by: self.by.clone().unwrap_or_else(tracking::whoami),
        };
        Ok(Review::of(&facts))
    }

    /// What the registry knows of a version: its verdict, kept here as if the gate had run on this machine, and the overrides
    /// that let an alias name it. What cannot be had is named on stderr.
    fn bring(&self, home: &Home, version: &ResolvedVersion) -> anyhow::Result<Vec<Override>> {
        let tracking = tracking::client(&self.tracking)?;
        let client = tracking.client();
        match tracking.block_on(client.fetch_verdict(version)) {
            Ok(Some(bytes)) => drop(Verdicts::open(home.verdicts())?.put(&version.package, &bytes)?),
            Ok(None) => {}
            Err(error) => eprintln!("warning: the verdict of {} cannot be had: {error}", version.label()),
        }
        let mut overrides = Vec::new();
        for alias in version.overrides.keys() {
            let bytes = tracking.block_on(client.fetch_override(version, alias)).map_err(anyhow::Error::from);
            match bytes.and_then(|bytes| Ok(serde_json::from_slice(&bytes.unwrap_or_default())?)) {
                Ok(given) => overrides.push(given),
                Err(error) => eprintln!("warning: the override of {} for `{alias}`: {error:#}", version.label()),
            }
        }
        Ok(overrides)
    }

    /// Answers the golden set and the parity cases once more.
    fn ask_again(
        &self,
        package: &VerifiedPackage,
        golden: &GoldenSet,
        options: &PredictorOptions,
    ) -> anyhow::Result<(Rerun, Result<ParityFact, String>)> {
        let results = self.answers.assess(package, golden, N_TIMED, "package")?;
        let predictor = Predictor::open(package, options)?;
        let parity = predictor.parity().map(|report| ParityFact {
            n_cases: package.manifest().parity.n_cases,
            worst_relative_rms: report.worst().relative_rms,
            limit: report.limit,
            passed: report.passed(),
        });
        let rerun = Rerun {
            golden_set: results.golden_set.clone(),
            answers: results.answers,
            numerics_id: results.numerics_id.clone(),
            batch_invariant: results.batch_invariant,
            preprocessing_share: preprocessing_share(&predictor, golden)?,
        };
        Ok((rerun, parity.map_err(|error| error.to_string())))
    }

    fn attested(&self) -> anyhow::Result<BTreeMap<String, Attestation>> {
        let (Some(by), Some(why)) = (&self.by, &self.why) else { return Ok(BTreeMap::new()) };
        if by.trim().is_empty() || why.trim().is_empty() {
            bail!("--by and --why must not be empty");
        }
        let attest = |id: &String| {
            let open = highroad_assess::review::can_be_attested(id);
            let attestation = Attestation { by: by.clone(), why: why.clone() };
            open.then(|| (id.clone(), attestation))
                .with_context(|| format!("`{id}` cannot be attested: artifacts decide it, or there is no such test"))
        };
        self.attest.iter().map(attest).collect()
    }

    fn check_required(&self, review: &Review) -> anyhow::Result<()> {
        match self.require.iter().find(|id| review.line(id).is_none()) {
            Some(unknown) => {
                let known = review.lines().map(|line| line.id.as_str()).collect::<Vec<_>>().join(", ");
                bail!("--require {unknown}: there is no such line; there are {known}")
            }
            None => Ok(()),
        }
    }

    fn write(&self, review: &Review) -> anyhow::Result<()> {
        let markdown = highroad_assess::report::review_markdown(review)?;
        if let Some(path) = &self.html {
            write(path, &highroad_assess::report::review_html(review)?)?;
        }
        if let Some(path) = &self.markdown {
            write(path, &markdown)?;
        }
        if self.json {
            return print_json(review);
        }
        outln!("{markdown}");
        Ok(())
    }
}

fn artifact(package: &VerifiedPackage) -> Artifact<'_> {
    Artifact { digest: package.digest(), manifest: package.manifest() }
}

fn is_settled(review: &Review, id: &str) -> bool {
    review.line(id).is_some_and(|line| line.status.is_settled())
}

/// Loads what would answer after a rollback and replays its goldens, where it has a verdict on this golden set.
fn walk_back(
    package: &VerifiedPackage,
    baseline: Option<&VerifiedPackage>,
    golden: &GoldenSet,
    kept: &[KeptVerdict],
    options: &PredictorOptions,
) -> Result<Rehearsal, String> {
    let (way, target) = baseline.map_or((WayBack::Undeploy, package), |baseline| (WayBack::Previous, baseline));
    let answers = |numerics_id: &str| verdicts::answers_of(kept, &target.digest(), golden, numerics_id);
    rehearse(target, way, golden, answers, options).map_err(|error| format!("{error:#}"))
}

fn write(path: &Path, content: impl AsRef<[u8]>) -> anyhow::Result<()> {
    std::fs::write(path, content).with_context(|| format!("cannot write `{}`", path.display()))
}

impl KeptVerdict {
    fn kept(&self) -> Kept<'_> {
        Kept { digest: self.digest, verdict: &self.verdict }
    }
}
