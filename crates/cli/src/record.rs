//! What a run records by itself before it starts and after it ended, so that it can be understood and done again.

use std::collections::BTreeMap;
use std::path::Path;

use highroad_package::Digest;
use highroad_package::registry::Run;
use serde::Serialize;

use crate::out::tell;
use crate::repo::{GitState, Installed, Python, file_digest};
use crate::standard::{self, Standard};

/// Tag: digest of the lock file.
pub const ENVIRONMENT_TAG: &str = "highroad.environment";
/// Tag: what was started, in one line.
pub const COMMAND_TAG: &str = "highroad.command";
/// Tag: the arguments of `highroad train` as a JSON list.
pub const ARGUMENTS_TAG: &str = "highroad.arguments";
/// Tag: the options of the script at the last start as JSON; parameters hold those of the first.
pub const OPTIONS_TAG: &str = "highroad.options";
/// Tag: what each start before the last was, as a JSON list; absent where there was one.
pub const EARLIER_TAG: &str = "highroad.earlier_starts";
/// Tag: seconds that the run's processes lived, over all its starts.
pub const DURATION_TAG: &str = "highroad.duration_seconds";
/// Tag: what those seconds cost at the declared price of an hour.
pub const COST_TAG: &str = "highroad.cost_estimate";
/// Tag: joules that the machine took meanwhile, where it tells.
pub const ENERGY_TAG: &str = "highroad.energy_joules";
/// Tag: why the run failed.
pub const ERROR_TAG: &str = "highroad.error";
/// Tag: commit of the code.
pub const COMMIT_TAG: &str = "mlflow.source.git.commit";
/// Tag: digest of the changes that were not committed.
pub const DIFF_TAG: &str = "highroad.git.diff";
/// Tag: files that git neither tracks nor ignores, so that no record holds them.
pub const UNTRACKED_TAG: &str = "highroad.git.untracked";
/// Tag: where the repo lies below the top of its work tree; absent at the top.
pub const PREFIX_TAG: &str = "highroad.git.prefix";
/// Tag: threads of each process.
pub const THREADS_TAG: &str = "highroad.threads";
/// Tag: the GPUs, absent where there is none.
pub const GPU_TAG: &str = "highroad.hardware.gpu";
/// Tag: the processor.
pub const CPU_TAG: &str = "highroad.hardware.cpu";
/// Tag: the run that this one does again.
pub const REPRODUCES_TAG: &str = "highroad.reproduces";
/// How alike the run is to the one that it reproduces: `the same bits`, `within tolerance`, or `no` and what differs.
pub const REPRODUCED_TAG: &str = "highroad.reproduced";
/// Prefix of tags: digest of each data file, by name.
pub const DATA_TAGS: &str = "highroad.data.";
/// Prefix of tags: digest of each weight file, by name.
pub const WEIGHTS_TAGS: &str = "highroad.weights.";
/// Artifact: changes that were not committed.
pub const DIFF_FILE: &str = "highroad/code.diff";
/// Artifact: every installed package, Python, and the build of torch.
pub const ENVIRONMENT_FILE: &str = "highroad/environment.json";

/// Tags that a later start of the same run may change, besides those of the machine.
const OF_A_START: [&str; 6] = [ARGUMENTS_TAG, COMMIT_TAG, DIFF_TAG, UNTRACKED_TAG, ENVIRONMENT_TAG, THREADS_TAG];
/// Longest tag value that MLflow keeps.
const MAX_TAG_CHARS: usize = 8000;
/// Largest change that is kept beside a run.
const MAX_DIFF_BYTES: usize = 16 << 20;

/// Tags of a run and small files beside it.
#[derive(Debug, Default)]
pub struct Record {
    pub tags: BTreeMap<String, String>,
    /// Path among the run's artifacts, and content.
    pub files: Vec<(String, Vec<u8>)>,
}

/// What is started and how.
pub struct Started<'a> {
    pub command: &'a str,
    pub arguments: &'a [String],
    pub n_threads: usize,
}

#[derive(Serialize)]
struct Environment<'a> {
    #[serde(flatten)]
    installed: &'a Installed,
    lock: Option<Digest>,
}

impl Record {
    /// What there is to say about a run of the repo at `root` before it starts.
    pub fn of(root: &Path, standard: &Standard, python: &Python, started: &Started<'_>) -> anyhow::Result<Self> {
        let mut record = Self::default();
        record.describe(standard, started);
        record.code(root);
        record.environment(root, standard, python)?;
        record.hardware();
        let declared = root.join(standard::FILE);
        record.files.push((format!("highroad/{}", standard::FILE), std::fs::read(declared)?));
        Ok(record)
    }

    fn tag(&mut self, name: &str, value: impl Into<String>) {
        let value: String = value.into().chars().take(MAX_TAG_CHARS).collect();
        self.tags.insert(name.to_owned(), value);
    }

    fn describe(&mut self, standard: &Standard, started: &Started<'_>) {
        self.tag("mlflow.source.type", "LOCAL");
        self.tag("mlflow.source.name", &*standard.training.script);
        if let Ok(user) = std::env::var("USER") {
            self.tag("mlflow.user", user);
        }
        self.tag(COMMAND_TAG, started.command);
        self.tag(ARGUMENTS_TAG, serde_json::json!(started.arguments).to_string());
        self.tag(THREADS_TAG, started.n_threads.to_string());
        self.tag("highroad.version", env!("CARGO_PKG_VERSION"));
        self.tag("highroad.owner", &*standard.model.owner);
        if let Some(seed) = standard.training.seed {
            self.tag("highroad.seed", seed.to_string());
        }
    }

    fn code(&mut self, root: &Path) {
        let Some(git) = GitState::of(root) else { return };
        self.tag("highroad.git.dirty", git.is_dirty.to_string());
        for (name, value) in [(COMMIT_TAG, &git.commit), ("mlflow.source.git.branch", &git.branch)] {
            if let Some(value) = value {
                self.tag(name, value);
            }
        }
        if !git.prefix.is_empty() {
            self.tag(PREFIX_TAG, &*git.prefix);
        }
        if !git.untracked.is_empty() {
            let (n_files, first) = (git.untracked.len(), &git.untracked[0]);
            tell(&format!("warning: {n_files} untracked files are not recorded, first `{first}`"));
            self.tag(UNTRACKED_TAG, git.untracked.join("\n"));
        }
        if let Some(diff) = git.is_dirty.then(|| GitState::diff(root)).flatten() {
            if diff.len() > MAX_DIFF_BYTES {
                tell("warning: the changes that are not committed are larger than 16 MiB and are not recorded");
                return;
            }
            self.tag(DIFF_TAG, Digest::of(&diff).to_string());
            self.files.push((DIFF_FILE.to_owned(), diff));
        }
    }

    fn environment(&mut self, root: &Path, standard: &Standard, python: &Python) -> anyhow::Result<()> {
        let lock_file = root.join(&standard.environment.lock);
        let lock = file_digest(&lock_file)?;
        if let Some(lock) = &lock {
            self.tag(ENVIRONMENT_TAG, lock.to_string());
            self.files.push((format!("highroad/{}", standard.environment.lock), std::fs::read(&lock_file)?));
        }
        let installed = python.installed()?;
        if let Some(build) = &installed.torch {
            self.tag("highroad.torch", build.described());
        }
        let environment = serde_json::to_vec_pretty(&Environment { installed: &installed, lock })?;
        self.files.push((ENVIRONMENT_FILE.to_owned(), environment));
        Ok(())
    }

    fn hardware(&mut self) {
        let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
        self.tag("highroad.hardware.cores", n_cores.to_string());
        self.tag("highroad.hardware.features", crate::commands::doctor::cpu_features().join(" "));
        for (name, value) in [(CPU_TAG, cpu_model()), ("highroad.hardware.memory", memory()), (GPU_TAG, gpus())] {
            if let Some(value) = value {
                self.tag(name, value);
            }
        }
    }
}

/// Tags with the digest of each weight file directly in `output`.
pub fn weights(output: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let mut tags = BTreeMap::new();
    for entry in std::fs::read_dir(output)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let digest = Digest::of_reader(std::fs::File::open(&path)?)?;
            tags.insert(format!("{WEIGHTS_TAGS}{name}"), digest.to_string());
        }
    }
    Ok(tags)
}

/// The tags that make `run` one that `record` is the last start of: what it was before is kept in a list.
pub fn resumed(run: &Run, record: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let tag = |name: &str| run.tags.get(name).filter(|value| !value.is_empty());
    let then: BTreeMap<&str, &String> = OF_A_START.iter().filter_map(|name| Some((*name, tag(name)?))).collect();
    let mut earlier: Vec<serde_json::Value> =
        tag(EARLIER_TAG).and_then(|list| serde_json::from_str(list).ok()).unwrap_or_default();
    earlier.push(serde_json::json!(then));
    let told = |earlier: &[serde_json::Value]| serde_json::json!(earlier).to_string();
    while told(&earlier).chars().count() > MAX_TAG_CHARS && !earlier.is_empty() {
        earlier.remove(0);
    }
    let mut tags = record.clone();
    tags.insert(EARLIER_TAG.to_owned(), told(&earlier));
    // Tags cannot be taken back in one call with others; an empty one says as much.
    for name in OF_A_START.iter().filter(|name| tag(name).is_some()) {
        tags.entry((*name).to_owned()).or_default();
    }
    tags
}

/// The script's options by name: parameters as they are at the last start.
pub fn params(run: &Run) -> BTreeMap<String, String> {
    let told = run.tags.get(OPTIONS_TAG).and_then(|options| serde_json::from_str(options).ok());
    let last: BTreeMap<String, String> = told.unwrap_or_default();
    let now = |(name, first): (&String, &String)| (name.clone(), last.get(name).unwrap_or(first).clone());
    run.params.iter().map(now).collect()
}

/// The tags of `run` that begin with `prefix`, by the rest of their names.
pub fn tagged(run: &Run, prefix: &str) -> BTreeMap<String, String> {
    let named = run.tags.iter().filter_map(|(key, value)| Some((key.strip_prefix(prefix)?.to_owned(), value.clone())));
    named.collect()
}

fn cpu_model() -> Option<String> {
    field(&std::fs::read_to_string("/proc/cpuinfo").ok()?, "model name")
}

fn memory() -> Option<String> {
    field(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemTotal")
}

/// NVIDIA's driver lists its devices here; no library of its own is needed to name them.
fn gpus() -> Option<String> {
    let folders = std::fs::read_dir("/proc/driver/nvidia/gpus").ok()?;
    let model =
        |folder: std::fs::DirEntry| field(&std::fs::read_to_string(folder.path().join("information")).ok()?, "Model");
    let models: Vec<String> = folders.filter_map(|folder| model(folder.ok()?)).collect();
    (!models.is_empty()).then(|| models.join(", "))
}

/// What stands after `name:` in a text of such lines.
fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_once(':').map(|(_, value)| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_weight_files_are_digested() {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::write(dir.path().join("model.safetensors"), b"weights").expect("written");
        std::fs::write(dir.path().join("checkpoint.pt"), b"other").expect("written");
        let expected = [("highroad.weights.model.safetensors".to_owned(), Digest::of(b"weights").to_string())];
        assert_eq!(weights(dir.path()).expect("readable"), BTreeMap::from(expected));
    }

    #[test]
    fn a_resumed_run_is_what_it_was_at_last_and_keeps_what_it_was_before() {
        let run = |tags: &BTreeMap<String, String>| {
            let tags: Vec<_> =
                tags.iter().map(|(key, value)| serde_json::json!({"key": key, "value": value})).collect();
            let info = serde_json::json!({"run_id": "7f", "status": "FINISHED"});
            Run::parse(serde_json::json!({"info": info, "data": {"tags": tags}})).expect("a run")
        };
        let start = |arguments: &str, diff: Option<&str>| {
            let mut tags = BTreeMap::from([(ARGUMENTS_TAG.to_owned(), arguments.to_owned())]);
            tags.extend(diff.map(|diff| (DIFF_TAG.to_owned(), diff.to_owned())));
            tags
        };
        let second = resumed(&run(&start("[20]", Some("sha256:1"))), &start("[40]", None));
        assert_eq!((second[ARGUMENTS_TAG].as_str(), second[DIFF_TAG].as_str()), ("[40]", ""));
        let third = resumed(&run(&second), &start("[60]", None));
        let earlier: Vec<BTreeMap<String, String>> = serde_json::from_str(&third[EARLIER_TAG]).expect("a list");
        assert_eq!(earlier, [start("[20]", Some("sha256:1")), start("[40]", None)]);
    }

    #[test]
    fn a_field_is_what_stands_after_its_colon() {
        assert_eq!(field("a: 1\nmodel name\t: AMD EPYC\n", "model name").as_deref(), Some("AMD EPYC"));
        assert_eq!(field("a: 1\n", "b"), None);
    }
}
