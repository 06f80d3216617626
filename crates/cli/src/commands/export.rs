use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use anyhow::{Context as _, bail};
use highroad_package::{Manifest, Package};
use highroad_task::{Predictor, PredictorOptions, TaskError};

use crate::repo::Python;
use crate::resolve::Home;
use crate::standard::{FOR_SCRIPTS, Standard};
use crate::tracking::{self, TrackingArgs};
use crate::training::TrainedBy;

/// Exit code when the runtime computes something else than PyTorch did.
const MISMATCH: u8 = 1;

/// `highroad export [--from DIR]`
#[derive(clap::Args)]
pub struct Args {
    /// What `highroad train` wrote [default: `training.output` of highroad.toml]
    #[arg(long)]
    from: Option<PathBuf>,
    /// The run that trained the weights [default: the one that `highroad train` noted beside them]
    #[arg(long)]
    run_id: Option<String>,
    #[command(flatten)]
    tracking: TrackingArgs,
    /// Options of the script
    #[arg(last = true)]
    script_args: Vec<String>,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let root = Path::new(".");
        let standard = Standard::load_trained(root)?;
        let weights = self.from.clone().unwrap_or_else(|| standard.training.output.clone().into());
        if !weights.is_dir() {
            bail!("there is nothing trained in `{}`: run `highroad train` first", weights.display());
        }
        let trained = TrainedBy::read(&weights)?;
        let run_id = self.run_id.clone().or_else(|| trained.as_ref().map(|trained| trained.run_id.clone()));
        if run_id.is_none() {
            eprintln!("warning: no tracked run is known for these weights; the package will not name one");
        }

        let work = tempfile::tempdir()?;
        let (source, package) = (work.path().join("source"), work.path().join("package"));
        let weights = Weights { folder: &weights, trained: trained.as_ref(), run_id: run_id.as_deref() };
        export(&Python::find(root)?, &standard, &weights, &self.script_args, &source)?;
        let digest = highroad_package::pack(&source, &package)?;
        let verified = Package::open(&package)?.verify()?;
        expect_signature(&standard, verified.manifest())?;
        match Predictor::open(&verified, &PredictorOptions::default())?.check_parity() {
            Ok(report) => eprintln!(
                "{} parity cases answered as PyTorch did: relative rms {:.1e} at most, {:.0e} allowed",
                report.cases.len(),
                report.worst().relative_rms,
                report.limit
            ),
            Err(error @ TaskError::NoParity { .. }) => {
                eprintln!("error: {error}; no package was made");
                return Ok(ExitCode::from(MISMATCH));
            }
            Err(error) => return Err(error.into()),
        }
        Home::find().store()?.add(&package)?;
        if let Some(run_id) = run_id {
            self.note(&run_id, &digest.to_string());
        }
        writeln!(std::io::stdout(), "{digest}")?;
        Ok(ExitCode::SUCCESS)
    }

    /// Tells the run which package it became. The package stands without it, so a server that is away only warns.
    fn note(&self, run_id: &str, digest: &str) {
        let tags = [("highroad.package".to_owned(), digest.to_owned())].into();
        let noted = tracking::client(&self.tracking)
            .and_then(|tracking| Ok(tracking.block_on(tracking.client().tag_run(run_id, &tags))?));
        if let Err(error) = noted {
            eprintln!("warning: run {run_id} was not told about its package: {}", crate::describe(&error));
        }
    }
}

/// Trained weights and where they come from.
pub struct Weights<'a> {
    pub folder: &'a Path,
    pub trained: Option<&'a TrainedBy>,
    pub run_id: Option<&'a str>,
}

/// Runs the repo's export script with `python`, which writes a package source.
pub fn export(
    python: &Python,
    standard: &Standard,
    weights: &Weights<'_>,
    script_args: &[String],
    source: &Path,
) -> anyhow::Result<()> {
    let mut script = python.command();
    script.arg(&standard.packaging.script).arg("--weights").arg(weights.folder).arg("--path").arg(source);
    script.args(script_args).env("HF_HUB_OFFLINE", "1").stdin(Stdio::null());
    script.env(FOR_SCRIPTS, standard.for_scripts()?);
    script.env("MLFLOW_RUN_ID", weights.run_id.unwrap_or_default());
    let git_commit = weights.trained.and_then(|trained| trained.git_commit.clone());
    script.env("HIGHROAD_GIT_COMMIT", git_commit.unwrap_or_default());
    // The script's prints are for people; stdout of the command is data.
    let status = script.stdout(std::io::stderr()).status();
    let status = status.with_context(|| format!("cannot start {}", python.path().display()))?;
    if !status.success() {
        bail!("`{}` failed ({status}); no package was made", standard.packaging.script);
    }
    Ok(())
}

/// Errors if the standard wants another task than the one the package is for.
pub fn expect_signature(standard: &Standard, manifest: &Manifest) -> anyhow::Result<()> {
    let Some(wanted) = &standard.packaging.signature else { return Ok(()) };
    let task = serde_json::to_value(&manifest.task)?;
    let found = task["task"].as_str().unwrap_or_default();
    if found != wanted {
        bail!("the signature says `{found}`, and the standard wants `{wanted}`; no package was made");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_for_another_task_than_the_standards_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../../conformance/packages/embed");
        highroad_package::pack(Path::new(source), &dir.path().join("package")).expect("packed");
        let package = Package::open(&dir.path().join("package")).expect("opened");
        let mut standard: Standard = toml::from_str(
            "[model]\nname='m'\nkind='embedder'\nowner='o'\nlicence='MIT'\n[environment]\npython='>=3.11'\n\
             torch='>=2.9'\n[training]\n[evaluation]\ngolden='g'\n[packaging]\nsignature='embed'\n",
        )
        .expect("valid");
        expect_signature(&standard, package.manifest()).expect("it embeds");
        standard.packaging.signature = Some("classify".to_owned());
        let error = expect_signature(&standard, package.manifest()).expect_err("it embeds").to_string();
        assert!(error.contains("`embed`") && error.contains("`classify`"), "{error}");
    }
}
