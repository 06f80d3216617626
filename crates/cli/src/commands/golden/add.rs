use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use highroad_assess::{Line, add};
use highroad_package::Digest;
use highroad_serve::request_log::Record;
use highroad_task::Input;
use serde_json::{Value, json};

use super::edit::{expected, fact, needs};
use super::{bless_command, path_or_declared};
use crate::commands::eval::read;
use crate::commands::replay::served;

/// Append cases: one from flags, one that production was asked, or any number from JSON lines.
#[derive(clap::Args)]
pub struct Args {
    /// The golden set, which is made if need be; the one of highroad.toml unless told.
    #[arg(long, value_name = "FILE")]
    golden: Option<PathBuf>,
    /// Cases as JSON, one a line, from this file; `-` is stdin.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["id", "text", "image", "a", "b", "query", "document", "expected"])]
    json: Option<PathBuf>,
    /// The case's id.
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// A text, to be labelled.
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["a", "query"])]
    text: Option<String>,
    /// An image below the golden set's folder, to be labelled: PNG, JPEG or WebP.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "a", "query"])]
    image: Option<PathBuf>,
    /// A text, to be compared with --b.
    #[arg(long, value_name = "TEXT", requires = "b", conflicts_with = "query")]
    a: Option<String>,
    /// The other text.
    #[arg(long, value_name = "TEXT", requires = "a")]
    b: Option<String>,
    /// A query, to order documents by.
    #[arg(long, value_name = "TEXT", requires = "document")]
    query: Option<String>,
    /// A document; may be given again.
    #[arg(long, value_name = "TEXT", requires = "query")]
    document: Vec<String>,
    /// The prompt of what is embedded, by its name in the package.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["text", "image", "from_request", "json"])]
    prompt_name: Option<String>,
    /// A served request that becomes a case; its input is checked against the bits of the answer.
    #[arg(long, value_name = "REQUEST_ID", requires = "input", conflicts_with_all = ["text", "image", "a", "query", "json"])]
    from_request: Option<String>,
    /// What the request asked, as `highroad replay` takes it: servers keep no inputs.
    #[arg(long, value_name = "FILE", requires = "from_request")]
    input: Option<PathBuf>,
    /// The server that answered, for its request log; without it, the log of this machine.
    #[arg(long, value_name = "URL", requires = "from_request")]
    server: Option<String>,
    /// The right answer: a label, a number, a list such as `[0, 2]`, or tensors, `{"tensors": {…}, "tolerance": {"atol": …}}`.
    #[arg(long, value_name = "ANSWER")]
    expected: Option<String>,
    /// A slice it is in; may be given again.
    #[arg(long, value_name = "NAME")]
    slice: Vec<String>,
    /// A tag; may be given again.
    #[arg(long, value_name = "NAME")]
    tag: Vec<String>,
    /// One wrong answer here fails every gate.
    #[arg(long)]
    must_pass: bool,
    /// The document, template or user it comes from.
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// How much it counts beside the others; 1 unless told.
    #[arg(long, value_name = "WEIGHT")]
    weight: Option<f64>,
    /// A fact of its provenance; may be given again.
    #[arg(long, value_name = "KEY=VALUE", value_parser = fact)]
    provenance: Vec<(String, Value)>,
}

/// Most bytes of cases that are read at once.
const MAX_JSON_BYTES: u64 = 1 << 30;

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let path = path_or_declared(self.golden.as_deref())?;
        let cases = match &self.json {
            Some(file) => from_lines(file)?,
            None => vec![self.one(&path)?],
        };
        let golden = add(&path, &cases)?;
        eprintln!(
            "added {} case(s), {} in all; gates take the set once it is blessed again: {}",
            cases.len(),
            golden.cases.len(),
            bless_command(&path)
        );
        Ok(ExitCode::SUCCESS)
    }

    fn one(&self, golden: &Path) -> anyhow::Result<Line> {
        let mut facts: BTreeMap<String, Value> = BTreeMap::new();
        let input = match (&self.from_request, &self.input) {
            (Some(id), Some(file)) => {
                let served = served(id, file, self.server.as_deref())?;
                let request = served.record.own_id().to_owned();
                let Record { time, version, package, .. } = served.record;
                let known =
                    [("request", request), ("at", time), ("version", version), ("package", package.to_string())];
                facts.extend(known.map(|(key, value)| (key.to_owned(), json!(value))));
                from_served(&served.input)?
            }
            _ => self.flags_input(golden)?,
        };
        facts.extend(self.provenance.iter().cloned());
        let is_label = ["text", "tokens", "image", "image_base64"].iter().any(|key| input.get(key).is_some());
        let expected = expected(is_label, needs(self.expected.as_deref(), "an --expected")?)?;
        let id = needs(self.id.as_ref().or(self.from_request.as_ref()), "an --id")?;
        let mut case = json!({"id": id, "input": input, "expected": expected, "must_pass": self.must_pass});
        case["slices"] = json!(self.slice);
        case["tags"] = json!(self.tag);
        case["provenance"] = json!(facts);
        if let Some(name) = &self.prompt_name {
            case["prompt_name"] = json!(name);
        }
        if let Some(source) = &self.source {
            case["source"] = json!(source);
        }
        if let Some(weight) = self.weight {
            case["weight"] = json!(weight);
        }
        Ok(serde_json::from_value(case)?)
    }

    fn flags_input(&self, golden: &Path) -> anyhow::Result<Value> {
        if let Some(image) = &self.image {
            return of_image(image, golden);
        }
        match (&self.text, &self.a, &self.query) {
            (Some(text), _, _) => Ok(json!({"text": text})),
            (_, Some(a), _) => Ok(json!({"a": a, "b": self.b})),
            (_, _, Some(query)) => Ok(json!({"query": query, "documents": self.document})),
            _ => bail!(
                "a case needs --text, --image, --a and --b, --query and --document, --from-request, or --json FILE"
            ),
        }
    }
}

/// A picture by its path below the golden set's folder and its digest, so that the set binds its bytes.
fn of_image(image: &Path, golden: &Path) -> anyhow::Result<Value> {
    let folder = golden.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let real = |path: &Path| path.canonicalize().with_context(|| format!("cannot find `{}`", path.display()));
    let (file, folder) = (real(image)?, real(folder)?);
    let below = file.strip_prefix(&folder).ok().and_then(Path::to_str).with_context(|| {
        format!(
            "`{}` is not below `{}`\nhint: copy it there, as it travels with the golden set",
            image.display(),
            folder.display()
        )
    })?;
    Ok(json!({"image": below, "sha256": Digest::of(&read(&file)?).hex()}))
}

fn from_served(input: &Input) -> anyhow::Result<Value> {
    match input {
        Input::Text(text) | Input::Prompted { text, .. } => Ok(json!({"text": text})),
        Input::Tokens(ids) => Ok(json!({"tokens": ids})),
        Input::Image(_) | Input::Tensors(_) => Ok(serde_json::to_value(input)?),
        Input::Pair { .. } => {
            bail!("a query and one document are no case: add the whole ranking with --query and --document")
        }
    }
}

fn from_lines(file: &Path) -> anyhow::Result<Vec<Line>> {
    let bytes = if file == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin().take(MAX_JSON_BYTES).read_to_end(&mut bytes).context("cannot read stdin")?;
        bytes
    } else {
        read(file)?
    };
    // A case may be spread over lines here: only the golden set wants one a line.
    let cases = serde_json::Deserializer::from_slice(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes)).into_iter();
    let cases = cases
        .collect::<Result<Vec<Line>, _>>()
        .with_context(|| format!("cannot use the cases of `{}`", file.display()))?;
    ensure!(!cases.is_empty(), "`{}` holds no cases", file.display());
    Ok(cases)
}
