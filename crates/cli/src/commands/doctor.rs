use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use pep440_rs::{Version, VersionSpecifiers};
use serde::Serialize;

use crate::repo::{GitState, Installed, Python};
use crate::standard::{FILE, Standard};

/// The owner of a repo that was made where nobody was known.
pub const UNASSIGNED: &str = "unassigned";
/// Weights, checkpoints and a package of a small encoder, twice.
const ENOUGH_DISK_BYTES: u64 = 2 << 30;

/// `highroad doctor`
#[derive(clap::Args)]
pub struct Args {
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Level {
    Ok,
    Warning,
    Error,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let findings = examine(Path::new("."));
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
    for Finding { check, level, found, help } in findings {
        let mark = match level {
            Level::Ok => "ok     ",
            Level::Warning => "warning",
            Level::Error => "error  ",
        };
        writeln!(stdout, "{mark}  {check:<11}  {found}")?;
        if let Some(help) = help {
            writeln!(stdout, "{:23}{help}", "")?;
        }
    }
    Ok(())
}

fn examine(root: &Path) -> Vec<Finding> {
    let standard = match Standard::load(root) {
        Ok(standard) => standard,
        Err(error) => return vec![Finding::error("standard", crate::describe(&error), "fix it, then look again")],
    };
    let mut findings = vec![the_standard(&standard)];
    match Python::find(root).and_then(|python| Ok((python.installed()?, python))) {
        Ok((installed, python)) => {
            findings.push(python_version(&standard, &installed, python.path()));
            findings.push(torch_version(&standard, &installed));
            findings.push(highroad_package(&installed));
            findings.push(lock(root, &standard, &installed));
        }
        Err(error) => {
            findings.push(Finding::error("python", crate::describe(&error), "see `[environment]` in README.md"))
        }
    }
    findings.extend([git(root), disk(root), cpu(), tracking(&standard), golden(root, &standard)]);
    findings.extend([gates(root, &standard), scripts(root, &standard)]);
    findings
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, found: found.into(), help: None }
    }

    fn warning(check: &'static str, found: impl Into<String>, help: impl Into<String>) -> Self {
        Self { check, level: Level::Warning, found: found.into(), help: Some(help.into()) }
    }

    fn error(check: &'static str, found: impl Into<String>, help: impl Into<String>) -> Self {
        Self { check, level: Level::Error, found: found.into(), help: Some(help.into()) }
    }
}

fn the_standard(standard: &Standard) -> Finding {
    let model = &standard.model;
    if model.owner == UNASSIGNED {
        let help = format!("name a team or an address as `owner` in {FILE}");
        return Finding::warning("standard", format!("nobody answers for `{}`", model.name), help);
    }
    Finding::ok("standard", format!("{FILE}: {} `{}`, owner {}", model.kind, model.name, model.owner))
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

fn torch_version(standard: &Standard, installed: &Installed) -> Finding {
    let wanted = &standard.environment.torch;
    let install = format!("install the lock file: {}", install_command(standard));
    let Some(torch) = installed.packages.get("torch") else {
        return Finding::error("torch", "not installed", install);
    };
    match is_within(torch, wanted) {
        Ok(true) => Finding::ok("torch", torch),
        Ok(false) => Finding::error("torch", format!("{torch}, and the standard wants {wanted}"), install),
        Err(error) => Finding::error("torch", error, format!("fix `environment.torch` in {FILE}")),
    }
}

fn highroad_package(installed: &Installed) -> Finding {
    match installed.packages.get("highroad") {
        Some(version) if version == env!("CARGO_PKG_VERSION") => Finding::ok("highroad", version),
        Some(version) => {
            let found = format!("the Python package is {version}, this command {}", env!("CARGO_PKG_VERSION"));
            Finding::warning("highroad", found, "install both from one release")
        }
        None => {
            let help = "export.py needs it: install it as README.md says";
            Finding::error("highroad", "the Python package is not installed", help)
        }
    }
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
            Finding::error("lock", found, install_command(standard))
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
struct Pin {
    name: String,
    version: String,
    is_hashed: bool,
}

fn pins(text: &str) -> Vec<Pin> {
    let mut pins: Vec<Pin> = Vec::new();
    for line in text.lines() {
        let line = line.trim_end_matches('\\').trim();
        if let (true, Some(pin)) = (line.starts_with("--hash="), pins.last_mut()) {
            pin.is_hashed = true;
        } else if let Some((name, rest)) = line.split_once("==").filter(|_| !line.starts_with('#')) {
            let version = rest.split([' ', ';']).next().unwrap_or_default().to_owned();
            let name = name.split('[').next().unwrap_or_default().trim().to_lowercase().replace(['_', '.'], "-");
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
        None => Finding::error("git", "not a git repository: packages could not name their code", help),
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

fn tracking(standard: &Standard) -> Finding {
    let Some(uri) = configured_uri(standard) else {
        return Finding::ok("tracking", "embedded, in .highroad/");
    };
    let health = format!("{}/health", uri.trim_end_matches('/'));
    match get(&health) {
        Ok(()) => Finding::ok("tracking", uri),
        Err(error) => {
            let help = "start it, or remove the address to use the embedded server";
            Finding::error("tracking", format!("{uri} does not answer: {error}"), help)
        }
    }
}

fn configured_uri(standard: &Standard) -> Option<String> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    variable("HIGHROAD_TRACKING_URI")
        .or_else(|| variable("MLFLOW_TRACKING_URI"))
        .or_else(|| standard.tracking.uri.clone())
}

fn get(url: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).build()?;
        client.get(url).send().await?.error_for_status()?;
        Ok(())
    })
}

fn golden(root: &Path, standard: &Standard) -> Finding {
    let file = &standard.evaluation.golden;
    match std::fs::read_to_string(root.join(file)) {
        Ok(text) => {
            let n_cases = text.lines().filter(|line| !line.trim().is_empty()).count();
            Finding::ok("golden", format!("{file}: {n_cases} cases"))
        }
        Err(_) => Finding::warning("golden", format!("{file} is not there yet"), "python golden/build.py makes it"),
    }
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
        Ok(gates) => Finding::ok("gates", format!("{file}: {} rules", gates.rules.len())),
        Err(error) => {
            Finding::error("gates", format!("{file}: {error}"), "docs/reference/gates.md lists what it takes")
        }
    }
}

fn scripts(root: &Path, standard: &Standard) -> Finding {
    let scripts = [&standard.training.script, &standard.packaging.script];
    match scripts.iter().find(|script| !root.join(script).is_file()) {
        Some(script) => Finding::error("scripts", format!("{script} is missing"), format!("see {FILE}")),
        None => Finding::ok("scripts", format!("{} trains, {} exports", scripts[0], scripts[1])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let standard: Standard = toml::from_str(
            "[model]\nname='m'\nkind='classifier'\nowner='o'\nlicence='MIT'\n[environment]\npython='>=3.11'\n\
             torch='>=2.9'\n[training]\n[evaluation]\ngolden='g'\n[packaging]\nmax_tokens=9\n",
        )
        .expect("valid");
        let installed = |version: &str| Installed {
            python: "3.11.7".into(),
            packages: [("torch".to_owned(), version.to_owned())].into(),
            torch: None,
        };
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
