use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use highroad_package::{Package, VerifiedPackage, is_archive};
use highroad_runtime::archive::Archive;
use highroad_runtime::graph::{Argument, Graph, Source, Type, ValueId};
use highroad_runtime::import::{self, Exported, Leaf};
use highroad_runtime::{LoadError, RowIndependence, numerics_id, passes};
use serde::Serialize;

use crate::resolve::{Home, from_archive};

/// `highroad inspect M.pt2|PACKAGE`
#[derive(clap::Args)]
pub struct Args {
    /// A program that `torch.export.save` wrote, or a package: its directory, or one file.
    path: PathBuf,
    /// Everything that is known, as JSON.
    #[arg(long)]
    json: bool,
    /// The graph as text, and nothing else.
    #[arg(long, conflicts_with = "json")]
    graph: bool,
    /// Show the program as PyTorch wrote it, before Highroad's passes.
    #[arg(long)]
    raw: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let (program, package) = locate(&self.path)?;
        let form = if self.raw { Form::Raw } else { Form::Canonical };
        let report = report(&program, package, form).with_context(|| format!("cannot read `{}`", program.display()))?;
        let mut out = std::io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut out, &report)?;
            writeln!(out)?;
        } else if self.graph {
            writeln!(out, "{}", report.graph)?;
        } else {
            write!(out, "{}", report.human())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Which graph is shown.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Form {
    Raw,
    Canonical,
}

/// The verified package at `path`, a directory or one file; `None` where it is a program, or nothing.
pub(super) fn package_at(path: &Path) -> anyhow::Result<Option<VerifiedPackage>> {
    match path.is_dir() {
        true => Ok(Some(Package::open(path).and_then(Package::verify)?)),
        false if is_archive(path) => from_archive(path, &Home::find().unguarded_store()?).map(Some),
        false => Ok(None),
    }
}

/// The program's file and, if `path` is a package, the package's facts. A package is verified before anything is said.
fn locate(path: &Path) -> anyhow::Result<(PathBuf, Option<PackageFacts>)> {
    let Some(package) = package_at(path)? else { return Ok((path.to_owned(), None)) };
    let manifest = package.manifest();
    let task = serde_json::to_value(&manifest.task)?;
    let facts = PackageFacts {
        name: manifest.name.clone(),
        digest: package.digest().to_string(),
        task: task.get("task").and_then(|task| task.as_str()).unwrap_or_default().to_owned(),
        licence: manifest.licence.clone(),
        owner: manifest.owner.clone(),
    };
    Ok((package.path("program.pt2")?, Some(facts)))
}

/// The canonical graph of a program as text; the raw one where no pass can bring it into canonical form.
pub fn graph_text(path: &Path) -> Result<String, LoadError> {
    Ok(report(path, None, Form::Canonical)?.graph)
}

fn report(path: &Path, package: Option<PackageFacts>, form: Form) -> Result<Report, LoadError> {
    let archive = Archive::open(path)?;
    let exported = import::exported(&archive)?;
    let mut canonical = exported.graph.clone();
    let refused = passes::canonical(&mut canonical).err().map(|error| error.to_string());
    let missing = if refused.is_none() { passes::missing::missing_ops(&canonical) } else { Vec::new() };
    let runs = refused.is_none() && missing.is_empty();
    let rows = match RowIndependence::of(&canonical) {
        RowIndependence::NotProved { reason } if runs => Rows { independent: false, reason: Some(reason) },
        independence => Rows { independent: runs && independence.is_proved(), reason: None },
    };
    let shown = if form == Form::Raw || refused.is_some() { &exported.graph } else { &canonical };
    Ok(Report {
        file: path.display().to_string(),
        size_bytes: archive.size_bytes(),
        package,
        torch: exported.torch_version.clone(),
        schema: format!("{}.{}", exported.schema_version.0, exported.schema_version.1),
        inputs: inputs(&exported),
        outputs: outputs(&exported),
        ranges: exported.ranges.iter().map(|(name, range)| (name.clone(), (range.min, range.max))).collect(),
        weights: Weights::of(&exported.graph),
        form,
        n_nodes: shown.nodes.len(),
        operators: operators(shown),
        missing: missing
            .into_iter()
            .map(|op| Missing { op: op.op, n_uses: op.n_uses, first_use: op.first_use })
            .collect(),
        refused,
        rows,
        numerics_id: numerics_id(),
        graph: shown.to_string(),
    })
}

/// What `--json` prints; the text for people is made from it.
#[derive(Serialize)]
struct Report {
    file: String,
    size_bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    package: Option<PackageFacts>,
    torch: String,
    schema: String,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    /// Lower and upper limits of symbols.
    ranges: BTreeMap<String, (Option<i64>, Option<i64>)>,
    weights: Weights,
    form: Form,
    n_nodes: usize,
    operators: BTreeMap<String, usize>,
    missing: Vec<Missing>,
    /// Why no pass could bring the program into canonical form.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
    rows: Rows,
    numerics_id: String,
    graph: String,
}

#[derive(Serialize)]
struct PackageFacts {
    name: String,
    digest: String,
    task: String,
    licence: String,
    owner: String,
}

/// One leaf of the arguments or results.
#[derive(Serialize)]
struct Port {
    name: String,
    #[serde(rename = "type")]
    ty: String,
    /// Position in `highroad run --inputs`; constants have none.
    position: Option<usize>,
}

#[derive(Serialize)]
struct Weights {
    n_tensors: usize,
    n_elements: usize,
    size_bytes: usize,
    /// Elements by dtype.
    dtypes: BTreeMap<&'static str, usize>,
}

impl Weights {
    /// Tied weights count once.
    fn of(graph: &Graph) -> Self {
        let mut seen = std::collections::HashSet::new();
        let mut weights = Self { n_tensors: 0, n_elements: 0, size_bytes: 0, dtypes: BTreeMap::new() };
        for tensor in graph.weights.0.values() {
            let place = (tensor.storage().bytes().as_ptr() as usize, tensor.offset(), tensor.shape().to_vec());
            if seen.insert(place) {
                weights.n_tensors += 1;
                weights.n_elements += tensor.numel();
                weights.size_bytes += tensor.numel() * tensor.dtype().size_bytes();
                *weights.dtypes.entry(tensor.dtype().name()).or_default() += tensor.numel();
            }
        }
        weights
    }
}

#[derive(Serialize)]
struct Missing {
    op: String,
    n_uses: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_use: Option<String>,
}

#[derive(Serialize)]
struct Rows {
    independent: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

fn inputs(exported: &Exported) -> Vec<Port> {
    let given: BTreeMap<usize, ValueId> = exported
        .graph
        .inputs
        .iter()
        .filter_map(|input| match input.source {
            Source::User { position } => Some((position, input.value)),
            _ => None,
        })
        .collect();
    let names = argument_names(exported);
    names
        .into_iter()
        .zip(&exported.interface.leaves)
        .map(|(name, leaf)| match leaf {
            Leaf::Given { position } => Port {
                name,
                ty: given.get(position).map(|id| type_text(&exported.graph, *id)).unwrap_or_default(),
                position: Some(*position),
            },
            Leaf::Constant(value) => Port { name, ty: format!("always {}", constant_text(value)), position: None },
        })
        .collect()
}

/// Leaves under the names of `forward`'s parameters: `0.1.mask` of the tree is `past.mask`.
fn argument_names(exported: &Exported) -> Vec<String> {
    let names = &exported.interface.arg_names;
    let name = |leaf: String| {
        let (kind, path) = leaf.split_once('.').unwrap_or(("", &leaf));
        let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
        let first = match first.parse::<usize>() {
            Ok(position) if kind == "0" => names.get(position).map_or(first, String::as_str),
            _ => first,
        };
        rest.map_or_else(|| first.to_owned(), |rest| format!("{first}.{rest}"))
    };
    exported.interface.in_spec.leaf_names().into_iter().map(name).collect()
}

fn outputs(exported: &Exported) -> Vec<Port> {
    let names = exported.interface.out_spec.leaf_names();
    let port = |(name, leaf): (String, &Leaf)| {
        let (ty, position) = match leaf {
            Leaf::Given { position } => (output_type(&exported.graph, *position), Some(*position)),
            Leaf::Constant(value) => (format!("always {}", constant_text(value)), None),
        };
        Port { name: if name.is_empty() { "result".to_owned() } else { name }, ty, position }
    };
    names.into_iter().zip(&exported.interface.results).map(port).collect()
}

fn output_type(graph: &Graph, position: usize) -> String {
    let output = graph.outputs.get(position).and_then(Argument::as_value);
    output.map(|id| type_text(graph, id)).unwrap_or_default()
}

fn type_text(graph: &Graph, id: ValueId) -> String {
    match &graph.value(id).ty {
        Type::Tensor(ty) => ty.to_string(),
        ty => ty.to_string(),
    }
}

fn constant_text(value: &Argument) -> String {
    match value {
        Argument::None => "None".to_owned(),
        Argument::Int(value) => value.to_string(),
        Argument::Float(value) => value.to_string(),
        Argument::Bool(true) => "True".to_owned(),
        Argument::Bool(false) => "False".to_owned(),
        Argument::Str(text) => format!("{text:?}"),
        _ => "a constant".to_owned(),
    }
}

fn operators(graph: &Graph) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for node in &graph.nodes {
        *counts.entry(node.op.clone()).or_default() += 1;
    }
    counts
}

impl Report {
    fn human(&self) -> String {
        let mut text = String::new();
        let name = Path::new(&self.file).file_name().map_or(self.file.clone(), |name| name.to_string_lossy().into());
        let size = bytes_text(self.size_bytes);
        _ = writeln!(text, "{name}  {size} · torch {} · schema {}", self.torch, self.schema);
        if let Some(package) = &self.package {
            _ = writeln!(text, "package {}  {} · {} · {}", package.name, package.task, package.licence, package.owner);
            _ = writeln!(text, "        {}", package.digest);
        }
        self.ports(&mut text, "inputs", &self.inputs);
        self.ports(&mut text, "outputs", &self.outputs);
        _ = writeln!(text, "\nweights    {}", self.weights_text());
        _ = writeln!(text, "operators  {}", self.operators_text());
        if self.refused.is_none() && self.missing.is_empty() {
            _ = writeln!(text, "rows       {}", self.rows_text());
        }
        text
    }

    fn ports(&self, text: &mut String, title: &str, ports: &[Port]) {
        _ = writeln!(text, "\n{title}");
        let width = ports.iter().map(|port| port.name.chars().count()).max().unwrap_or_default();
        for port in ports {
            let limits = self.limits_text(&port.ty);
            _ = writeln!(text, "  {:width$}  {}{limits}", port.name, port.ty);
        }
    }

    /// Limits of the symbols that a type names.
    fn limits_text(&self, ty: &str) -> String {
        let mut limits = Vec::new();
        for (symbol, (min, max)) in &self.ranges {
            let used = ty.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|word| word == symbol);
            match (used, min, max) {
                (true, Some(min), Some(max)) => limits.push(format!("{symbol} is {min} to {max}")),
                (true, Some(min), None) => limits.push(format!("{symbol} is at least {min}")),
                (true, None, Some(max)) => limits.push(format!("{symbol} is at most {max}")),
                _ => {}
            }
        }
        if limits.is_empty() { String::new() } else { format!("  ({})", limits.join(", ")) }
    }

    fn weights_text(&self) -> String {
        let Weights { n_tensors, n_elements, size_bytes, dtypes } = &self.weights;
        let dtypes: Vec<&str> = dtypes.keys().copied().collect();
        format!(
            "{} values in {n_tensors} tensors, {} ({})",
            count_text(*n_elements),
            bytes_text(*size_bytes),
            if dtypes.is_empty() { "none".to_owned() } else { dtypes.join(", ") }
        )
    }

    fn operators_text(&self) -> String {
        let mut by_count: Vec<(&String, &usize)> = self.operators.iter().collect();
        by_count.sort_by(|(a, n), (b, m)| m.cmp(n).then(a.cmp(b)));
        let support = match (&self.refused, self.missing.len()) {
            (Some(why), _) => format!("cannot run: {why}"),
            (None, 0) => "all supported".to_owned(),
            (None, n) => format!("{n} not supported"),
        };
        let mut text = format!("{} kinds in {} nodes, {support}", by_count.len(), self.n_nodes);
        for line in by_count.chunks(4) {
            let ops: Vec<String> = line.iter().map(|(op, n)| format!("{} {n}", short(op))).collect();
            _ = write!(text, "\n             {}", ops.join(" · "));
        }
        for Missing { op, n_uses, first_use } in &self.missing {
            let place = first_use.as_ref().map(|place| format!(", first at {place}")).unwrap_or_default();
            _ = write!(text, "\n  missing    {op}, {n_uses}x{place}");
        }
        text
    }

    fn rows_text(&self) -> String {
        match &self.rows.reason {
            None => format!("independent: a row gives the same bits alone and in any batch ({})", self.numerics_id),
            Some(reason) => format!("may depend on each other: {reason}"),
        }
    }
}

/// `linear` of `aten.linear.default`.
fn short(op: &str) -> &str {
    let op = op.strip_prefix("aten.").unwrap_or(op);
    op.strip_suffix(".default").unwrap_or(op)
}

fn bytes_text(bytes: usize) -> String {
    scaled(bytes as f64, 1024.0, &["B", "KiB", "MiB", "GiB"])
}

fn count_text(count: usize) -> String {
    scaled(count as f64, 1000.0, &["", "thousand", "million", "billion"]).trim_end().to_owned()
}

fn scaled(mut value: f64, step: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= step && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    let decimals = usize::from(unit > 0);
    format!("{value:.decimals$} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../conformance/programs").join(format!("{name}.pt2"))
    }

    #[test]
    fn arguments_go_by_the_names_of_forward() {
        let report = report(&program("structured"), None, Form::Raw).unwrap();
        let names: Vec<&str> = report.inputs.iter().map(|port| port.name.as_str()).collect();
        assert_eq!(names, ["pair.left", "pair.right", "table.a.0", "table.b", "scale", "extra.bias"]);
        let scale = &report.inputs[4];
        assert_eq!((scale.ty.as_str(), scale.position), ("always 3", None));
        assert_eq!(report.inputs[5].position, Some(4));
    }

    #[test]
    fn tied_weights_count_once() {
        let report = report(&program("tied_weights"), None, Form::Raw).unwrap();
        assert_eq!((report.weights.n_tensors, report.weights.n_elements), (1, 44));
    }

    #[test]
    fn the_human_form_tells_sizes_and_limits() {
        let text = report(&program("attention"), None, Form::Raw).unwrap().human();
        assert!(text.contains("  input_ids       i64["), "{text}");
        assert!(text.contains("is at most 16)"), "{text}");
        assert_eq!((bytes_text(1023), bytes_text(1536)), ("1023 B".into(), "1.5 KiB".into()));
        assert_eq!((count_text(7), count_text(22_713_216)), ("7".into(), "22.7 million".into()));
    }

    #[test]
    fn json_tells_everything_at_once() {
        let report = report(&program("mlp"), None, Form::Canonical).unwrap();
        let json = serde_json::to_value(&report).unwrap();
        for key in ["file", "torch", "schema", "inputs", "outputs", "weights", "operators", "missing", "rows", "graph"]
        {
            assert!(json.get(key).is_some(), "{key}");
        }
        assert!(json["graph"].as_str().unwrap().parse::<Graph>().is_ok());
    }

    #[test]
    fn operators_of_aten_are_shown_short() {
        assert_eq!((short("aten.linear.default"), short("_operator.mul")), ("linear", "_operator.mul"));
    }
}
