use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use highroad_assess::{Editing, GoldenKind, GoldenSet, edit};
use serde_json::Value;

use super::{bless_command, path_or_declared};

/// Change a case where it stands: every other line keeps its bytes.
#[derive(clap::Args)]
pub struct Args {
    /// The case's id.
    id: String,
    /// The golden set; the one of highroad.toml unless told.
    #[arg(long, value_name = "FILE")]
    golden: Option<PathBuf>,
    /// Another right answer: a label, a number, a list such as `[0, 2]`, or tensors, `{"tensors": {…}, "tolerance": {"atol": …}}`.
    #[arg(long, value_name = "ANSWER")]
    expected: Option<String>,
    /// A slice it joins; may be given again.
    #[arg(long, value_name = "NAME")]
    slice: Vec<String>,
    /// A slice it leaves; may be given again.
    #[arg(long, value_name = "NAME")]
    no_slice: Vec<String>,
    /// Whether one wrong answer here fails every gate.
    #[arg(long, value_name = "true|false")]
    must_pass: Option<bool>,
    /// What it comes from.
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// How much it counts beside the others.
    #[arg(long, value_name = "WEIGHT")]
    weight: Option<f64>,
    /// A fact of its provenance; may be given again.
    #[arg(long, value_name = "KEY=VALUE", value_parser = fact)]
    provenance: Vec<(String, Value)>,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let path = path_or_declared(self.golden.as_deref())?;
        let expected = self.expected.as_deref().map(|text| self.expected(&path, text)).transpose()?;
        let editing = Editing {
            expected,
            join: self.slice,
            leave: self.no_slice,
            must_pass: self.must_pass,
            source: self.source,
            weight: self.weight,
            provenance: self.provenance,
        };
        edit(&path, &self.id, &editing)?;
        eprintln!("changed `{}`; gates take the set once it is blessed again: {}", self.id, bless_command(&path));
        Ok(ExitCode::SUCCESS)
    }

    /// What the text means depends on what the case asks: `1` may be a label or a number.
    fn expected(&self, path: &Path, text: &str) -> anyhow::Result<Value> {
        let golden = GoldenSet::read(path)?;
        let case = golden.cases.iter().find(|case| case.case.id == self.id);
        let case = case.with_context(|| format!("golden set `{}` has no case `{}`", path.display(), self.id))?;
        expected(matches!(case.kind, GoldenKind::Labels | GoldenKind::Numbers), text)
    }
}

/// A right answer as a person types it.
pub fn expected(is_label: bool, text: &str) -> anyhow::Result<Value> {
    if is_label {
        return Ok(Value::String(text.to_owned()));
    }
    serde_json::from_str(text).with_context(|| {
        format!("`{text}` is neither a number nor a list such as `[0, 2]` nor tensors such as `{{\"tensors\": {{\"y\": [[1.5]]}}}}`")
    })
}

/// `KEY=VALUE`; a value that is a number, `true` or `false` is one.
pub fn fact(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    let scalar = serde_json::from_str(value).ok().filter(|value: &Value| value.is_number() || value.is_boolean());
    Ok((key.to_owned(), scalar.unwrap_or_else(|| Value::String(value.to_owned()))))
}

/// Ends with an error unless there is something to add.
pub fn needs<T>(found: Option<T>, what: &str) -> anyhow::Result<T> {
    match found {
        Some(found) => Ok(found),
        None => bail!("a case needs {what}"),
    }
}
