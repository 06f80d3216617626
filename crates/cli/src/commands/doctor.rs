use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use highroad_assess::{GoldenSet, LockError};
use pep440_rs::{Version, VersionSpecifiers};
use serde::Serialize;

use crate::repo::{GitState, Installed, Python};
use crate::resolve::Home;
use crate::rules::{self, Broken, Level};
use crate::standard::effective::Chain;
use crate::standard::{FILE, Standard};
use crate::template::Record;
use crate::tracking::{self, TrackingArgs};
use crate::training::check_options;

mod fix;
mod gpu;
mod portfolio;

use fix::Fix;

/// Weights, checkpoints and a package of a small encoder, twice.
const ENOUGH_DISK_BYTES: u64 = 2 << 30;

/// `highroad doctor`
#[derive(clap::Args)]
pub struct Args {
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
    /// Do what is safe about the findings that say `fix`, then look again
    #[arg(long)]
    fix: bool,
}

/// One thing that was looked at.
#[derive(Debug, PartialEq, Serialize)]
struct Finding {
    check: &'static str,
    level: Level,
    /// What is the case.
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
    /// What `--fix` would do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<Fix>,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let root = Path::new(".");
        let mut findings = examine(root);
        if self.fix && fix::apply(root, findings.iter().filter_map(|finding| finding.fix)) {
            findings = examine(root);
        }
        if self.json {
            writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&findings)?)?;
        } else {
            print(&findings)?;
        }
        let count = |level| findings.iter().filter(|finding| finding.level == level).count();
        let found = [(findings.len(), "check"), (count(Level::Error), "error"), (count(Level::Warning), "warning")];
        let [checks, errors, warnings] = found.map(|(n, what)| format!("{n} {what}{}", if n == 1 { "" } else { "s" }));
        eprintln!("{checks}: {errors}, {warnings}");
        let is_healthy = count(Level::Error) == 0;
        Ok(if is_healthy { ExitCode::SUCCESS } else { ExitCode::from(crate::USAGE_OR_ENVIRONMENT) })
    }
}

fn print(findings: &[Finding]) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    for Finding { check, level, found, help, fix } in findings {
        let mark = match level {
            Level::Ok => "ok     ",
            Level::Warning => "warning",
            Level::Error => "error  ",
        };
        writeln!(stdout, "{mark}  {check:<11}  {found}")?;
        if let Some(help) = help {
            writeln!(stdout, "{:23}{help}", "")?;
        }
        if let Some(fix) = fix {
            writeln!(stdout, "{:23}`highroad doctor --fix` {}", "", fix.promise())?;
        }
    }
    Ok(())
}

fn examine(root: &Path) -> Vec<Finding> {
    let standard = match Standard::load(root) {
        Ok(standard) => standard,
        Err(error) => return vec![Finding::error("standard", crate::describe(&error), "fix it, then look again")],
    };
    let mut findings = vec![the_standard(&standard), owner(&standard), licence(&standard)];
    findings.extend(breaches(root));
    match Python::find(root).and_then(|python| Ok((python.installed()?, python))) {
        Ok((installed, python)) => {
            findings.push(python_version(&standard, &installed, python.path()));
            findings.extend(torch_version(&standard, &installed));
            findings.push(highroad_version(&standard, &installed));
            findings.extend(other_packages(&standard, &installed));
            findings.push(lock(root, &standard, &installed));
            if standard.model.hosted.is_none() {
                findings.extend([gpu::examine(&standard, &installed), training(root, &standard, &python)]);
            }
        }
        Err(error) => {
            let finding = Finding::error("python", crate::describe(&error), "see `[environment]` in README.md");
            findings.push(finding.with_fix(fix::environment(root)));
        }
    }
    findings.extend([git(root), disk(root), cpu(), tracking(), golden(root, &standard)]);
    findings.extend(ignored(root, &standard));
    findings.extend(template(root));
    findings.extend(portfolio::examine(root));
    findings.push(gates(root, &standard));
    findings.push(match &standard.model.hosted {
        Some(file) => hosted(root, file),
        None => scripts(root, &standard),
    });
    findings
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, found: found.into(), help: None, fix: None }
    }

    fn warning(check: &'static str, found: impl Into<String>, help: impl Into<String>) -> Self {
        Self { check, level: Level::Warning, found: found.into(), help: Some(help.into()), fix: None }
    }

    fn error(check: &'static str, found: impl Into<String>, help: impl Into<String>) -> Self {
        Self { check, level: Level::Error, found: found.into(), help: Some(help.into()), fix: None }
    }

    /// What is broken, else `otherwise`.
    fn of(check: &'static str, broken: Option<Broken>, otherwise: &str) -> Self {
        match broken {
            Some(Broken { level, found, help }) => Self { check, level, found, help: Some(help), fix: None },
            None => Self::ok(check, otherwise),
        }
    }

    fn with_fix(self, fix: Option<Fix>) -> Self {
        Self { fix, ..self }
    }
}

fn the_standard(standard: &Standard) -> Finding {
    let model = &standard.model;
    let kinds = super::new::Kind::names();
    if !kinds.contains(&model.kind.as_str()) {
        let found = format!("{FILE}: `{}` is no kind of starter", model.kind);
        return Finding::error("standard", found, format!("set `model.kind` to one of {}", kinds.join(", ")));
    }
    Finding::ok("standard", format!("{FILE}: {} `{}`", model.kind, model.name))
}

fn owner(standard: &Standard) -> Finding {
    let owner = &standard.model.owner;
    Finding::of("owner", rules::owner(owner, &standard.owners.known), owner)
}

fn licence(standard: &Standard) -> Finding {
    let licence = &standard.model.licence;
    Finding::of("licence", rules::licence(licence, &standard.packaging.licences), licence)
}

/// Locked keys that the repo changes and required ones that it lacks; nothing where it extends nothing.
fn breaches(root: &Path) -> Vec<Finding> {
    let Ok(chain) = Chain::read(&root.join(FILE)) else { return Vec::new() };
    let Some(parent) = chain.0.get(1) else { return Vec::new() };
    let breaches = chain.breaches();
    if breaches.is_empty() {
        return vec![Finding::ok("extends", parent.place.name())];
    }
    let finding = |breach: crate::standard::effective::Breach| {
        let help = format!("set it as the extended standard does, or ask who keeps that: {FILE}");
        Finding::error("extends", format!("`{}` {}", breach.key, breach.problem), help)
    };
    breaches.into_iter().map(finding).collect()
}

fn python_version(standard: &Standard, installed: &Installed, path: &Path) -> Finding {
    let found = format!("{} at {}", installed.python, path.display());
    match is_within(&installed.python, &standard.environment.python) {
        Ok(true) => Finding::ok("python", found),
        Ok(false) => {
            let wanted = &standard.environment.python;
            Finding::error("python", found, format!("the standard wants {wanted}: make .venv with such a Python"))
        }
        Err(error) => Finding::error("python", error, format!("fix `environment.python` in {FILE}")),
    }
}

fn torch_version(standard: &Standard, installed: &Installed) -> Option<Finding> {
    let wanted = standard.environment.torch.as_ref()?;
    let install = format!("install the lock file: {}", install_command(standard));
    let Some(torch) = installed.packages.get("torch") else {
        return Some(Finding::error("torch", "not installed", install));
    };
    Some(match is_within(torch, wanted) {
        Ok(true) => Finding::ok("torch", torch),
        Ok(false) => Finding::error("torch", format!("{torch}, and the standard wants {wanted}"), install),
        Err(error) => Finding::error("torch", error, format!("fix `environment.torch` in {FILE}")),
    })
}

fn highroad_version(standard: &Standard, installed: &Installed) -> Finding {
    let own = env!("CARGO_PKG_VERSION");
    match standard.environment.highroad.as_ref().map(|wanted| (wanted, is_within(own, wanted))) {
        Some((wanted, Ok(false))) => {
            let found = format!("this command is {own}, and the standard wants {wanted}");
            return Finding::error("highroad", found, "install such a version");
        }
        Some((_, Err(error))) => {
            return Finding::error("highroad", error, format!("fix `environment.highroad` in {FILE}"));
        }
        _ => {}
    }
    match installed.packages.get("highroad") {
        Some(version) if version == own => Finding::ok("highroad", version),
        Some(version) => {
            let found = format!("the Python package is {version}, this command {own}");
            Finding::warning("highroad", found, "install both from one release")
        }
        None => {
            let help = "the repo's scripts need it: install it as README.md says";
            Finding::error("highroad", "the Python package is not installed", help)
        }
    }
}

/// Whether the script would take what `[training]` declares.
fn training(root: &Path, standard: &Standard, python: &Python) -> Finding {
    let script = &standard.training.script;
    match check_options(python, root, std::slice::from_ref(script)) {
        Ok(_) => Finding::ok("training", format!("{script} takes what [training] declares")),
        Err(error) => Finding::error("training", crate::describe(&error), format!("fix [training] in {FILE}")),
    }
}

/// Packages that are installed in a version the standard does not accept.
fn other_packages(standard: &Standard, installed: &Installed) -> Vec<Finding> {
    let judge = |(name, wanted): (&String, &String)| {
        let found = installed.packages.get(&normalised(name))?;
        match is_within(found, wanted) {
            Ok(true) => None,
            Ok(false) => {
                let help = "lock such a version and install the lock file";
                Some(Finding::error("packages", format!("{name} is {found}, and the standard wants {wanted}"), help))
            }
            Err(error) => {
                Some(Finding::error("packages", error, format!("fix `environment.packages.{name}` in {FILE}")))
            }
        }
    };
    standard.environment.packages.iter().filter_map(judge).collect()
}

/// A package's name as indexes compare it.
pub fn normalised(name: &str) -> String {
    name.trim().to_lowercase().replace(['_', '.'], "-")
}

/// Whether every package of the lock file is hashed, and installed in the version it pins.
fn lock(root: &Path, standard: &Standard, installed: &Installed) -> Finding {
    let file = &standard.environment.lock;
    let text = match std::fs::read_to_string(root.join(file)) {
        Ok(text) => text,
        Err(error) => {
            let help = format!("lock the environment: uv pip compile --generate-hashes requirements.in -o {file}");
            return Finding::error("lock", format!("cannot read {file}: {error}"), help);
        }
    };
    let pins = pins(&text);
    if let Some(pin) = pins.iter().find(|pin| !pin.is_hashed) {
        let found = format!("{file}: {}=={} has no hash", pin.name, pin.version);
        return Finding::error("lock", found, "lock again with --generate-hashes");
    }
    let others = differing_from_lock(&text, installed);
    match others.as_slice() {
        [] => Finding::ok("lock", format!("{} packages of {file} are pinned, hashed and installed", pins.len())),
        [first, ..] => {
            let found = format!("{} of {} packages differ from {file}, first {first}", others.len(), pins.len());
            Finding::error("lock", found, install_command(standard)).with_fix(fix::environment(root))
        }
    }
}

/// Each package that is not installed in the version that a lock file pins.
pub fn differing_from_lock(text: &str, installed: &Installed) -> Vec<String> {
    let differs = |pin: &Pin| installed.packages.get(&pin.name).is_none_or(|found| !is_same(found, &pin.version));
    pins(text).iter().filter(|pin| differs(pin)).map(|pin| difference(pin, installed)).collect()
}

fn difference(pin: &Pin, installed: &Installed) -> String {
    let found = installed.packages.get(&pin.name).map_or("is not installed".to_owned(), |v| format!("is {v}"));
    format!("{} (pinned {}, {found})", pin.name, pin.version)
}

fn install_command(standard: &Standard) -> String {
    format!("pip install --no-deps --require-hashes -r {}", standard.environment.lock)
}

/// A line `name==version` of a lock file.
#[derive(Debug, PartialEq)]
pub struct Pin {
    pub name: String,
    pub version: String,
    pub is_hashed: bool,
}

/// What a lock file pins, in its order.
pub fn pins(text: &str) -> Vec<Pin> {
    let mut pins: Vec<Pin> = Vec::new();
    for line in text.lines() {
        let line = line.trim_end_matches('\\').trim();
        if let (true, Some(pin)) = (line.starts_with("--hash="), pins.last_mut()) {
            pin.is_hashed = true;
        } else if let Some((name, rest)) = line.split_once("==").filter(|_| !line.starts_with('#')) {
            let version = rest.split([' ', ';']).next().unwrap_or_default().to_owned();
            let name = normalised(name.split('[').next().unwrap_or_default());
            pins.push(Pin { name, version, is_hashed: rest.contains("--hash=") });
        }
    }
    pins
}

fn is_within(version: &str, range: &str) -> Result<bool, String> {
    let version: Version = version.parse().map_err(|error| format!("`{version}` is no version: {error}"))?;
    let range: VersionSpecifiers = range.parse().map_err(|error| format!("`{range}` is no version range: {error}"))?;
    Ok(range.contains(&version.without_local()))
}

/// Local parts (`+cu132`) name a build of the same version.
fn is_same(found: &str, pinned: &str) -> bool {
    let public = |text: &str| text.split('+').next().unwrap_or_default().to_owned();
    match (public(found).parse::<Version>(), public(pinned).parse::<Version>()) {
        (Ok(found), Ok(pinned)) => found == pinned,
        _ => found == pinned,
    }
}

fn git(root: &Path) -> Finding {
    let help = "git init && git add -A && git commit -m \"Start from highroad new\"";
    match GitState::of(root) {
        None => Finding::error("git", "not a git repository: packages could not name their code", help)
            .with_fix(Some(Fix::Git)),
        Some(GitState { commit: None, .. }) => Finding::error("git", "no commit yet", help),
        Some(GitState { commit: Some(commit), is_dirty, .. }) if is_dirty => {
            let found = format!("{} with changes that are not committed", short(&commit));
            Finding::warning("git", found, "commit them before a run that shall become a package")
        }
        Some(GitState { commit: Some(commit), .. }) => Finding::ok("git", format!("{}, clean", short(&commit))),
    }
}

fn short(commit: &str) -> &str {
    commit.get(..12).unwrap_or(commit)
}

fn disk(root: &Path) -> Finding {
    match rustix::fs::statvfs(root) {
        Ok(stat) => {
            let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
            let found = format!("{:.1} GiB free", free_bytes as f64 / (1u64 << 30) as f64);
            if free_bytes >= ENOUGH_DISK_BYTES {
                return Finding::ok("disk", found);
            }
            Finding::error("disk", found, "checkpoints and packages need about 2 GiB: free some")
        }
        Err(error) => Finding::warning("disk", format!("free space is unknown: {error}"), "look at `df .`"),
    }
}

fn cpu() -> Finding {
    let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
    let features = cpu_features();
    let numerics = highroad_runtime::numerics_id();
    let found = format!("{n_cores} cores, {}, numerics {numerics}", features.join(" "));
    if numerics.contains("generic") {
        return Finding::warning("cpu", found, "no vector instructions that the runtime knows: it works, slowly");
    }
    Finding::ok("cpu", found)
}

/// The instructions that decide speed: f32 vectors and bf16 products.
#[cfg(target_arch = "x86_64")]
pub fn cpu_features() -> Vec<&'static str> {
    let known = [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        ("avx512bf16", std::arch::is_x86_feature_detected!("avx512bf16")),
    ];
    known.into_iter().filter(|(_, is_there)| *is_there).map(|(name, _)| name).collect()
}

/// The instructions that decide speed.
#[cfg(not(target_arch = "x86_64"))]
pub fn cpu_features() -> Vec<&'static str> {
    vec![std::env::consts::ARCH]
}

fn tracking() -> Finding {
    let uri = match tracking::configured_uri(&TrackingArgs::default()) {
        Ok(Some(uri)) => uri,
        Ok(None) => return Finding::ok("tracking", format!("embedded, in {}/", Home::find().path().display())),
        Err(error) => return Finding::error("tracking", crate::describe(&error), format!("fix `extends` in {FILE}")),
    };
    let base = uri.trim_end_matches('/');
    match get(&format!("{base}/health")) {
        // MLflow tells its version there, other servers nothing.
        Ok(_) => match get(&format!("{base}/version")) {
            Ok(version) if version.trim().parse::<Version>().is_ok() => {
                Finding::ok("tracking", format!("{uri}, version {}", version.trim()))
            }
            _ => Finding::ok("tracking", uri),
        },
        Err(error) => {
            let help = "start it, or remove the address to use the embedded server";
            Finding::error("tracking", format!("{uri} does not answer: {error}"), help)
        }
    }
}

fn get(url: &str) -> anyhow::Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).build()?;
        Ok(client.get(url).send().await?.error_for_status()?.text().await?)
    })
}

fn golden(root: &Path, standard: &Standard) -> Finding {
    let evaluation = &standard.evaluation;
    let (file, path) = (&evaluation.golden, root.join(&evaluation.golden));
    if !path.exists() {
        let finding = Finding::warning("golden", format!("{file} is not there yet"), "python golden/build.py makes it");
        return finding.with_fix(root.join(fix::GOLDEN_SCRIPT).is_file().then_some(Fix::Golden));
    }
    let golden = match GoldenSet::read(&path) {
        Ok(golden) => golden,
        Err(error) => {
            return Finding::error("golden", error.to_string(), "docs/reference/golden-sets.md says what it takes");
        }
    };
    let found = format!("{file}: {} cases, {}", golden.cases.len(), golden.digest);
    match &evaluation.golden_digest {
        Some(wanted) if *wanted != golden.digest => {
            let help = format!("make it again, or set `evaluation.golden_digest` in {FILE}");
            Finding::error("golden", format!("{found}, and {FILE} wants {wanted}"), help)
        }
        _ if golden.cases.len() < evaluation.min_cases => {
            let help = format!("the standard wants {} cases or more", evaluation.min_cases);
            Finding::error("golden", found, help)
        }
        _ => blessing(&golden, &path, found),
    }
}

/// Whether gates take the golden set: a person has blessed its cases as they are.
fn blessing(golden: &GoldenSet, path: &Path, found: String) -> Finding {
    let bless = "look at the cases and answer for them: highroad golden bless --by NAME --why TEXT";
    match golden.check_blessed(path) {
        Ok(blessing) => Finding::ok("golden", format!("{found}, blessed by {}", blessing.by)),
        Err(LockError::Never { .. }) => Finding::warning("golden", format!("{found}, blessed by nobody"), bless),
        Err(error) => Finding::error("golden", error.to_string(), bless),
    }
}

/// Whether git would leave out what is made here, so that nobody commits weights or an environment.
fn ignored(root: &Path, standard: &Standard) -> Option<Finding> {
    GitState::of(root)?;
    let missing = fix::not_ignored(root, standard);
    if missing.is_empty() {
        return Some(Finding::ok("gitignore", "state, environment and training output stay out of git"));
    }
    let found = format!("git would take {}", missing.join(", "));
    Some(Finding::warning("gitignore", found, "add them to .gitignore").with_fix(Some(Fix::Gitignore)))
}

/// Whether the starter has moved on; nothing where the repo does not say what it was made from.
fn template(root: &Path) -> Option<Finding> {
    let (record, _) = match Record::read(root).transpose()? {
        Ok(recorded) => recorded,
        Err(error) => {
            return Some(Finding::error("template", crate::describe(&error), "git checkout .highroad-template"));
        }
    };
    let now = match record.values.render() {
        Ok(files) => Record::of(&files, record.values.clone()),
        Err(error) => {
            return Some(Finding::warning(
                "template",
                crate::describe(&error),
                "look at the changelog of this version",
            ));
        }
    };
    let n_changed = now.files.iter().filter(|(path, digest)| record.files.get(*path) != Some(digest)).count();
    let n_gone = record.files.keys().filter(|path| !now.files.contains_key(*path)).count();
    if now.digest == record.digest {
        return Some(Finding::ok("template", format!("the starter of {}", record.highroad)));
    }
    let found = format!("{} file(s) of the starter have changed since {}", n_changed + n_gone, record.highroad);
    Some(Finding::warning("template", found, "highroad update --dry-run shows them"))
}

fn gates(root: &Path, standard: &Standard) -> Finding {
    let file = &standard.evaluation.gates;
    let text = match std::fs::read_to_string(root.join(file)) {
        Ok(text) => text,
        Err(error) => {
            let help = "without gates nothing can be promoted: docs/reference/gates.md";
            return Finding::error("gates", format!("cannot read {file}: {error}"), help);
        }
    };
    match highroad_eval::Gates::parse(&text) {
        Ok(gates) => match standard.serving.budgets.p99_ms.filter(|budget| !holds(&gates, *budget)) {
            Some(budget) => {
                let help = format!("add [[latency]] with percentile = 99 and max_ms = {budget}");
                Finding::warning("gates", format!("no rule of {file} holds the budget of {budget} ms at p99"), help)
            }
            None => Finding::ok("gates", format!("{file}: {} rules", gates.rules.len())),
        },
        Err(error) => {
            Finding::error("gates", format!("{file}: {error}"), "docs/reference/gates.md lists what it takes")
        }
    }
}

/// Whether a latency rule is at least as strict as the budget.
fn holds(gates: &highroad_eval::Gates, p99_ms: f64) -> bool {
    gates.latency.iter().any(|rule| rule.percentile >= 99 && rule.max_ms.is_some_and(|max_ms| max_ms <= p99_ms))
}

fn scripts(root: &Path, standard: &Standard) -> Finding {
    let scripts = [&standard.training.script, &standard.packaging.script];
    match scripts.iter().find(|script| !root.join(script).is_file()) {
        Some(script) => Finding::error("scripts", format!("{script} is missing"), format!("see {FILE}")),
        None => Finding::ok("scripts", format!("{} trains, {} exports", scripts[0], scripts[1])),
    }
}

/// The description of the model that somebody else hosts; whether the host answers costs money to know.
fn hosted(root: &Path, file: &str) -> Finding {
    let hosted = match highroad_hosted::Hosted::read(&root.join(file)) {
        Ok(hosted) => hosted,
        Err(error) => {
            let help = "docs/reference/hosted.md lists what it takes";
            return Finding::error("hosted", format!("{file}: {}", crate::describe(&error.into())), help);
        }
    };
    let found = format!("{file}: `{}` at {}", hosted.model, hosted.base_url);
    match hosted.api_key_env.as_ref().filter(|name| std::env::var_os(name).is_none_or(|key| key.is_empty())) {
        Some(name) => {
            Finding::warning("hosted", format!("{found}, whose key is not in {name}"), "set it before you ask")
        }
        None => Finding::ok("hosted", found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standard() -> Standard {
        toml::from_str(
            "[model]\nname='m'\nkind='classifier'\nowner='o'\nlicence='MIT'\n[environment]\npython='>=3.11'\n\
             torch='>=2.9'\n[training]\n[evaluation]\ngolden='g'\n[packaging]\nmax_tokens=9\n",
        )
        .expect("valid")
    }

    fn installed(torch: &str) -> Installed {
        let packages = [("torch".to_owned(), torch.to_owned())].into();
        Installed { python: "3.11.7".into(), packages, torch: None }
    }

    #[test]
    fn a_kind_that_no_starter_has_is_an_error() {
        let standard = |kind: &str| -> Standard {
            let text = format!(
                "[model]\nname='m'\nkind='{kind}'\nowner='o'\nlicence='MIT'\n[environment]\npython='>=3.11'\n[evaluation]\ngolden='g'\n"
            );
            toml::from_str(&text).expect("a standard")
        };
        assert_eq!(the_standard(&standard("custom")).level, Level::Ok);
        let wrong = the_standard(&standard("x"));
        assert!(wrong.level == Level::Error && wrong.help.is_some_and(|help| help.contains("reranker")));
    }

    #[test]
    fn other_packages_are_judged_where_they_are_installed() {
        let mut declared = standard();
        declared.environment.packages =
            [("Torch".to_owned(), "<2".to_owned()), ("absent".to_owned(), ">=1".to_owned())].into();
        let found = other_packages(&declared, &installed("2.15.0"));
        assert_eq!(found.len(), 1);
        assert!(found[0].found.contains("Torch is 2.15.0"), "{found:?}");
    }

    #[test]
    fn a_budget_needs_a_gate_that_holds_it() {
        let gates = |max_ms: u32| {
            let text = format!("[[rule]]\nmetric='accuracy'\nfloor=0.5\n[[latency]]\npercentile=99\nmax_ms={max_ms}\n");
            highroad_eval::Gates::parse(&text).expect("valid")
        };
        assert!(holds(&gates(40), 50.0) && !holds(&gates(60), 50.0));
    }

    #[test]
    fn a_lock_file_is_read_as_pip_reads_it() {
        let text = "# header==1\nTorch==2.15.0 \\\n    --hash=sha256:aa\n    # via x\nfoo_bar[http]==1.0 ; python_version<'3'\n";
        let pin = |name: &str, version: &str, is_hashed| Pin { name: name.into(), version: version.into(), is_hashed };
        assert_eq!(pins(text), [pin("torch", "2.15.0", true), pin("foo-bar", "1.0", false)]);
    }

    #[test]
    fn version_ranges_are_pep_440() {
        assert_eq!(is_within("2.15.0+cu132", ">=2.9,<2.16"), Ok(true));
        assert_eq!(is_within("2.16.0", ">=2.9,<2.16"), Ok(false));
        assert!(is_within("2.16.0", "new").is_err());
        assert!(is_same("2.15.0+cu132", "2.15"));
        assert!(!is_same("2.15.1", "2.15.0"));
    }

    #[test]
    fn a_package_of_another_version_is_named_with_both() {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::write(dir.path().join("requirements.txt"), "torch==2.15.0 --hash=sha256:aa\n").expect("written");
        let standard = standard();
        assert_eq!(lock(dir.path(), &standard, &installed("2.15.0+cpu")).level, Level::Ok);
        let finding = lock(dir.path(), &standard, &installed("2.14.0"));
        assert_eq!(finding.level, Level::Error);
        assert!(finding.found.contains("torch (pinned 2.15.0, is 2.14.0)"), "{finding:?}");
    }

    #[test]
    fn outside_a_repo_the_one_finding_says_how_to_get_one() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let findings = examine(dir.path());
        assert_eq!(findings.len(), 1);
        assert!(findings[0].found.contains("highroad new"), "{findings:?}");
    }
}
