//! `engine = "torch"` of a member, and what belongs to it.

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use highroad_torch::{Compile, Device};
use serde::Deserialize;

/// What runs a member's program.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum EngineConfig {
    /// This process.
    #[default]
    Native,
    /// PyTorch, in processes of its own.
    Torch(TorchConfig),
}

/// PyTorch processes.
#[derive(Clone, Debug, PartialEq)]
pub struct TorchConfig {
    /// Where they compute.
    pub device: Device,
    /// Whether PyTorch's compiler runs over the program first.
    pub compile: Compile,
    /// The interpreter; that of the folder or the active environment if `None`.
    pub python: Option<PathBuf>,
    /// Most memory of one process, MiB.
    pub memory_mb: Option<NonZeroU64>,
    /// Until one has imported PyTorch, loaded the program and compiled it.
    pub start_timeout: Duration,
    /// Until one batch is answered; the process is ended after it.
    pub batch_timeout: Duration,
}

/// Keys of an engine.
pub(crate) const KEYS: &[&str] =
    &["engine", "device", "compile", "python", "workers", "memory_mb", "start_timeout_ms", "batch_timeout_ms"];

/// An engine as a table has it.
#[derive(Default, Deserialize)]
pub(crate) struct EngineTable {
    engine: Option<String>,
    device: Option<String>,
    compile: Option<Compiled>,
    python: Option<PathBuf>,
    pub(crate) workers: Option<NonZeroUsize>,
    memory_mb: Option<NonZeroU64>,
    start_timeout_ms: Option<NonZeroU64>,
    batch_timeout_ms: Option<NonZeroU64>,
}

/// `true` or the name of a way.
#[derive(Deserialize)]
#[serde(untagged)]
enum Compiled {
    Whether(bool),
    How(String),
}

impl EngineTable {
    /// The engine. Errors, in words, where a key is about another engine or out of its range; paths with a `/` are relative to `base`.
    pub(crate) fn config(&self, base: &Path) -> Result<EngineConfig, String> {
        match self.engine.as_deref() {
            None | Some("native") => match self.first_of_torch() {
                Some(key) => Err(format!("`{key}` is PyTorch's: add `engine = \"torch\"`")),
                None => Ok(EngineConfig::Native),
            },
            Some("torch") => self.torch(base).map(EngineConfig::Torch),
            Some(other) => Err(format!("`engine` is `native` or `torch`, not `{other}`")),
        }
    }

    fn first_of_torch(&self) -> Option<&'static str> {
        let given = [
            ("device", self.device.is_some()),
            ("compile", self.compile.is_some()),
            ("python", self.python.is_some()),
            ("workers", self.workers.is_some()),
            ("memory_mb", self.memory_mb.is_some()),
            ("start_timeout_ms", self.start_timeout_ms.is_some()),
            ("batch_timeout_ms", self.batch_timeout_ms.is_some()),
        ];
        given.iter().find(|(_, is_given)| *is_given).map(|(key, _)| *key)
    }

    fn torch(&self, base: &Path) -> Result<TorchConfig, String> {
        let device = self.device.as_deref().unwrap_or("auto").parse().map_err(|error| format!("`device`: {error}"))?;
        let compile = match &self.compile {
            None | Some(Compiled::Whether(false)) => Compile::Eager,
            Some(Compiled::Whether(true)) => Compile::Inductor,
            Some(Compiled::How(how)) => how.parse().map_err(|error| format!("`compile`: {error}, or true or false"))?,
        };
        let beside =
            |python: &PathBuf| if python.components().count() > 1 { base.join(python) } else { python.clone() };
        Ok(TorchConfig {
            device,
            compile,
            python: self.python.as_ref().map(beside),
            memory_mb: self.memory_mb,
            start_timeout: within("start_timeout_ms", self.start_timeout_ms, DEFAULT_START_MS)?,
            batch_timeout: within("batch_timeout_ms", self.batch_timeout_ms, DEFAULT_BATCH_MS)?,
        })
    }
}

const DEFAULT_START_MS: u64 = 300_000;
const DEFAULT_BATCH_MS: u64 = 30_000;
const MAX_MS: u64 = 3_600_000;

fn within(key: &str, value: Option<NonZeroU64>, usual: u64) -> Result<Duration, String> {
    match value.map_or(usual, NonZeroU64::get) {
        ms @ ..=MAX_MS => Ok(Duration::from_millis(ms)),
        _ => Err(format!("`{key}` is from 1 to {MAX_MS}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<EngineConfig, String> {
        toml::from_str::<EngineTable>(text).map_err(|error| error.to_string())?.config(Path::new("/base"))
    }

    #[test]
    fn pytorch_has_keys_of_its_own() {
        assert_eq!(read(""), Ok(EngineConfig::Native));
        let Ok(EngineConfig::Torch(torch)) = read("engine = 'torch'\ncompile = true\npython = 'env/bin/python'") else {
            panic!("no torch");
        };
        assert_eq!((torch.device.as_str(), torch.compile), ("auto", Compile::Inductor));
        assert_eq!(torch.python, Some("/base/env/bin/python".into()));
        let Ok(EngineConfig::Torch(torch)) = read("engine = 'torch'\ncompile = 'aot'\npython = 'python3.12'") else {
            panic!("no torch");
        };
        assert_eq!((torch.compile, torch.python), (Compile::Aot, Some("python3.12".into())));
        for (text, reason) in [
            ("device = 'cuda'", "`device` is PyTorch's: add `engine = \"torch\"`"),
            ("engine = 'onnx'", "`engine` is `native` or `torch`"),
            ("engine = 'torch'\ndevice = 'tpu'", "`device`: expected `cpu`"),
            ("engine = 'torch'\ncompile = 'fast'", "`compile`: expected `eager`"),
            ("engine = 'torch'\nbatch_timeout_ms = 3600001", "from 1 to 3600000"),
            ("engine = 'torch'\nmemory_mb = 0", "memory_mb"),
        ] {
            let told = read(text).expect_err(text);
            assert!(told.contains(reason), "{told}");
        }
    }
}
