use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use highroad_package::Digest;
use serde_json::json;

use crate::standard::effective::{Chain, Flat, Layer, Origin, flatten, nest};
use crate::standard::moves::{Move, moves};
use crate::standard::source::{self, Fetched, GitSource, Place};
use crate::standard::{FILE, Standard};

mod report;

/// Exit code where something moved.
const MOVED: u8 = 1;

/// `highroad standard COMMAND`
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Show the effective standard, and which file and line each value comes from.
    Show(Show),
    /// Show what moved in the extended standard since it was pinned, or between two files; exit code 1 where something did.
    Diff(Diff),
    /// Pin the newest version of the extended standard in highroad.toml, and show what moved.
    Update(Update),
    /// List every registered model with its owner, its champion, and the rules that it or its repo breaks.
    Report(report::Args),
    /// Print the JSON Schema of highroad.toml.
    Schema,
}

#[derive(clap::Args)]
struct Show {
    /// The file to show: a repo's, or an organisation's that need not be whole
    #[arg(default_value = FILE)]
    file: PathBuf,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Diff {
    /// Older file, or REVISION:PATH of this git repository [default: what highroad.toml pins]
    #[arg(requires = "to")]
    from: Option<String>,
    /// Newer file, or REVISION:PATH [default: what the followed revision has now]
    to: Option<String>,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Update {
    /// Print what moved as JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Show(show) => show.run(),
            Command::Diff(diff) => diff.run(),
            Command::Update(update) => update.run(),
            Command::Report(report) => report.run(),
            Command::Schema => print_json(&Standard::schema()).map(|()| ExitCode::SUCCESS),
        }
    }
}

impl Show {
    fn run(self) -> anyhow::Result<ExitCode> {
        let chain = Chain::read(&self.file)?;
        let is_repo = self.file.file_name().is_some_and(|name| name == FILE);
        let standard = if is_repo {
            toml::Table::try_from(chain.standard()?)?
        } else {
            chain.check()?;
            nest(&chain.merged())
        };
        let values = flatten(&standard);
        let breaches = chain.breaches();
        if self.json {
            let layers = chain.0.iter().map(|layer| {
                let (locked, required) = (&layer.head.locked, &layer.head.required);
                json!({ "from": layer.place.name(), "digest": layer.digest, "locked": locked, "required": required })
            });
            let values =
                values.iter().map(|(key, value)| (key.clone(), json!({ "value": value, "origin": chain.origin(key) })));
            let values: serde_json::Map<_, _> = values.collect();
            let files: Vec<_> = layers.collect();
            print_json(&json!({ "files": files, "standard": standard, "values": values, "breaches": breaches }))?;
        } else {
            print_values(&values, &chain)?;
            print_rules(&chain)?;
            for breach in &breaches {
                eprintln!("error: `{}` {}", breach.key, breach.problem);
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print_values(values: &Flat, chain: &Chain) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    for (key, value) in values.iter().filter(|(_, value)| value.as_table().is_none_or(|table| !table.is_empty())) {
        let origin = match chain.origin(key) {
            Some(Origin { from, line, locked }) => format!("{from}:{line}{}", if locked { ", locked" } else { "" }),
            None => "default".to_owned(),
        };
        writeln!(stdout, "{:<60}  # {origin}", format!("{key} = {value}"))?;
    }
    Ok(())
}

/// What each file lets nobody change, and what it demands.
fn print_rules(chain: &Chain) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    for layer in &chain.0 {
        for (list, keys) in [("locked", &layer.head.locked), ("required", &layer.head.required)] {
            if !keys.is_empty() {
                let rule = format!("{list} = {}", toml::Value::from(keys.clone()));
                writeln!(stdout, "{rule:<60}  # {}", layer.place.name())?;
            }
        }
    }
    Ok(())
}

impl Diff {
    fn run(self) -> anyhow::Result<ExitCode> {
        let moved = match (&self.from, &self.to) {
            (Some(from), Some(to)) => moves(&operand(from)?.declared(), &operand(to)?.declared(), &Flat::new()),
            _ => {
                let own = Declaration::read()?;
                ensure!(own.is_pinned, source::NO_DIGEST);
                own.moves(Some(own.source.pinned()?), &own.source.newest()?)?
            }
        };
        print_moves(&moved, self.json)?;
        Ok(if moved.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(MOVED) })
    }
}

/// A file of this machine, else a `REVISION:PATH` that git knows.
fn operand(name: &str) -> anyhow::Result<Layer> {
    let place = Place::File(name.into());
    if Path::new(name).exists() || !name.contains(':') {
        return Layer::parse(place, source::read(Path::new(name))?);
    }
    let bytes = source::git(Path::new("."), ["cat-file", "blob", name]);
    let bytes = bytes.with_context(|| format!("`{name}` is neither a file nor a file of a revision here"))?;
    ensure!(bytes.len() <= source::MAX_STANDARD_BYTES, "`{name}` is longer than a standard may be");
    Layer::parse(place, String::from_utf8(bytes).with_context(|| format!("`{name}` is not UTF-8"))?)
}

impl Update {
    fn run(self) -> anyhow::Result<ExitCode> {
        let own = Declaration::read()?;
        let newest = own.source.newest()?;
        // What was pinned may be out of reach, or may never have been pinned; then everything is new.
        let moved = own.moves(own.source.pinned().ok(), &newest)?;
        let digest = Digest::of(newest.text.as_bytes());
        own.pin(&newest.commit, digest).with_context(|| {
            format!("{} of {} at commit {} is not pinned", own.source.path, own.source.git, newest.commit)
        })?;
        print_moves(&moved, self.json)?;
        let what = if digest == own.source.digest { "is still" } else { "now pins" };
        eprintln!("{FILE} {what} {} of {} at commit {}", own.source.path, own.source.git, &newest.commit);
        Ok(ExitCode::SUCCESS)
    }
}

/// `highroad.toml` of this directory, which extends a file of a git repository.
struct Declaration {
    text: String,
    source: GitSource,
    /// Whether it says a digest; before the first `update` it says none.
    is_pinned: bool,
    own: Flat,
}

impl Declaration {
    fn read() -> anyhow::Result<Self> {
        let text = source::read(Path::new(FILE))?;
        let mut table: toml::Table = text.parse().map_err(|error| anyhow::anyhow!("`{FILE}`: {error}"))?;
        let (source, is_pinned) = match table.get("extends") {
            Some(toml::Value::Table(extends)) => (GitSource::parse(extends)?, extends.contains_key("digest")),
            Some(_) => bail!(
                "`{FILE}` extends a path, which pins nothing\nhint: `highroad standard diff A B` compares two files"
            ),
            None => bail!("`{FILE}` extends nothing\nhint: `highroad standard diff A B` compares two files"),
        };
        table.remove("extends");
        Ok(Self { text, source, is_pinned, own: flatten(&table) })
    }

    fn moves(&self, before: Option<String>, after: &Fetched) -> anyhow::Result<Vec<Move>> {
        let place = || Place::Git(self.source.clone());
        let before = before.map(|text| Layer::parse(place(), text)).transpose()?;
        let after = Layer::parse(place(), after.text.clone())?;
        Ok(moves(&before.map(|layer| layer.declared()).unwrap_or_default(), &after.declared(), &self.own))
    }

    /// Writes commit and digest, and leaves everything else of the file as it is. Errors, and writes nothing, if the repo's standard
    /// would not be a valid one with it.
    fn pin(&self, commit: &str, digest: Digest) -> anyhow::Result<()> {
        let mut document: toml_edit::DocumentMut = self.text.parse()?;
        let extends = document["extends"].as_table_like_mut().context("`extends` is no table")?;
        extends.insert("commit", toml_edit::value(commit));
        extends.insert("digest", toml_edit::value(digest.to_string()));
        let text = document.to_string();
        Chain::parse(Path::new(FILE), text.clone())?.standard()?;
        let mut file = tempfile::NamedTempFile::new_in(".")?;
        file.write_all(text.as_bytes())?;
        std::fs::set_permissions(file.path(), std::fs::metadata(FILE)?.permissions())?;
        file.persist(FILE).with_context(|| format!("cannot write {FILE}"))?;
        Ok(())
    }
}

fn print_moves(moved: &[Move], as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return print_json(&json!({ "moved": moved }));
    }
    moved.iter().try_for_each(|one| Ok(writeln!(std::io::stdout(), "{one}")?))
}

fn print_json(value: &serde_json::Value) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(value)?)?)
}
