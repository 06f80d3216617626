use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Where PyTorch computes, and how long it is waited for.
#[derive(Clone, Debug, PartialEq)]
pub struct TorchOptions {
    /// The interpreter.
    pub python: PathBuf,
    /// Where it computes.
    pub device: Device,
    /// Of PyTorch's own.
    pub n_threads: usize,
    /// Whether its compiler runs over the program first.
    pub compile: Compile,
    /// Most bytes of the process in memory; it is ended above. Nothing is looked at if `None`.
    pub memory_bytes: Option<u64>,
    /// Until it has imported itself and loaded the program.
    pub start_timeout: Duration,
    /// Until one batch is answered.
    pub run_timeout: Duration,
}

/// What PyTorch calls a device: `cpu`, `cuda` or `cuda:1`; `auto` is `cuda` where there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device(String);

/// What is done to the program before it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compile {
    /// Nothing: operator after operator, as PyTorch runs a program.
    #[default]
    Eager,
    /// `torch.compile`, with inductor.
    Inductor,
    /// AOTInductor: compiled whole before the first answer.
    Aot,
}

impl Device {
    /// `cpu`
    pub fn cpu() -> Self {
        Self("cpu".to_owned())
    }

    /// As PyTorch writes it, or `auto`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let index = text.strip_prefix("cuda").map(|rest| rest.strip_prefix(':').unwrap_or(rest));
        let is_cuda = index.is_some_and(|digits| digits.len() <= 2 && digits.bytes().all(|byte| byte.is_ascii_digit()));
        match text == "cpu" || text == "auto" || (is_cuda && text != "cuda:") {
            true => Ok(Self(text.to_owned())),
            false => Err("expected `cpu`, `cuda`, `cuda:1` or `auto`".to_owned()),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Compile {
    /// One word, as options have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Eager => "eager",
            Self::Inductor => "inductor",
            Self::Aot => "aot",
        }
    }
}

impl FromStr for Compile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = [Self::Eager, Self::Inductor, Self::Aot].into_iter().find(|known| known.as_str() == text);
        known.ok_or_else(|| "expected `eager`, `inductor` or `aot`".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_pytorch_names_them() {
        for text in ["cpu", "auto", "cuda", "cuda:0", "cuda:15"] {
            assert_eq!(text.parse::<Device>().map(|device| device.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "gpu", "cuda:", "cuda:x", "cuda:100", "CPU", "cuda:0; import os"] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
        assert_eq!("aot".parse(), Ok(Compile::Aot));
        assert!("fast".parse::<Compile>().is_err());
    }
}
