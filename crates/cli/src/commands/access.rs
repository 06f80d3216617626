use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use comfy_table::{Table, presets};
use highroad_service::access::{AccessFile, KeyEntry, Priority, Scope, new_key};
use serde_json::json;
use toml_edit::DocumentMut;

use crate::outln;

/// `highroad access add|list|revoke`
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Make a key: it is printed once, the file keeps its digest. Servers see the change within seconds.
    Add(Add),
    /// Show the keys: names, tenants, scopes, members, rates, ends. The keys themselves are nowhere.
    List(List),
    /// Take a key out of the file: requests that bring it are refused within seconds.
    Revoke(Revoke),
}

#[derive(clap::Args)]
struct Place {
    /// The access file.
    #[arg(long, visible_alias = "access", value_name = "FILE", env = "HIGHROAD_ACCESS", default_value = "access.toml")]
    file: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Add {
    /// The key's name in logs, metrics and budgets.
    name: String,
    /// What it may do; may be given more than once [default: infer].
    #[arg(long, value_name = "SCOPE", value_parser = scope)]
    scope: Vec<Scope>,
    /// Whose it is [default: its name].
    #[arg(long)]
    tenant: Option<String>,
    /// A member it may ask; may be given more than once [default: all].
    #[arg(long, value_name = "NAME")]
    member: Vec<String>,
    /// Most requests a minute.
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<NonZeroU32>,
    /// The highest priority its requests may ask: high, normal or low [default: high].
    #[arg(long, value_name = "CLASS", value_parser = priority)]
    priority: Option<Priority>,
    /// Days until it ends [default: it does not].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    days: Option<u16>,
    #[command(flatten)]
    place: Place,
}

#[derive(clap::Args)]
struct List {
    #[command(flatten)]
    place: Place,
}

#[derive(clap::Args)]
struct Revoke {
    /// The key's name.
    name: String,
    #[command(flatten)]
    place: Place,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.what {
            What::Add(args) => args.run(),
            What::List(args) => args.run(),
            What::Revoke(args) => args.run(),
        }
    }
}

fn scope(text: &str) -> Result<Scope, String> {
    let all = [Scope::Infer, Scope::Observe, Scope::Track, Scope::Deploy];
    all.into_iter().find(|scope| scope.name() == text).ok_or_else(|| "one of infer, observe, track, deploy".to_owned())
}

fn priority(text: &str) -> Result<Priority, String> {
    Priority::parse(text).ok_or_else(|| "one of high, normal, low".to_owned())
}

impl Add {
    fn run(self) -> anyhow::Result<ExitCode> {
        if !highroad_serve::config::is_member_name(&self.name) {
            bail!("`{}` cannot be a key's name: only letters, digits, `.`, `_` and `-`, at most 64", self.name);
        }
        let (key, sha256) = new_key()?;
        let mut scopes: BTreeSet<Scope> = self.scope.into_iter().collect();
        if scopes.is_empty() {
            scopes.insert(Scope::Infer);
        }
        let expires =
            self.days.map(|days| jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * i64::from(days)));
        let expires = expires.map(|end| end.round(jiff::Unit::Second)).transpose()?;
        let members = (!self.member.is_empty()).then(|| self.member.into_iter().collect());
        let requests_per_minute = self.requests_per_minute;
        let entry = KeyEntry {
            sha256,
            tenant: self.tenant,
            scopes,
            members,
            requests_per_minute,
            priority: self.priority,
            expires,
        };
        let path = &self.place.file;
        let mut document = read(path)?;
        let keys = document.entry("keys").or_insert_with(toml_edit::table);
        let keys = keys.as_table_mut().with_context(|| format!("`keys` of `{}` is not a table", path.display()))?;
        keys.set_implicit(true);
        if keys.contains_key(&self.name) {
            bail!(
                "`{}` has a key `{}` already: revoke it first, or name this one otherwise",
                path.display(),
                self.name
            );
        }
        keys.insert(&self.name, toml_edit::Item::Table(toml_edit::ser::to_document(&entry)?.as_table().clone()));
        write(path, &document)?;
        if self.place.json {
            outln!("{}", json!({ "name": self.name, "key": key, "file": path, "entry": entry }));
        } else {
            outln!("{key}");
            eprintln!("this is the only time the key is shown; `{}` keeps its digest", path.display());
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl List {
    fn run(self) -> anyhow::Result<ExitCode> {
        let file = AccessFile::read(&self.place.file)?;
        if self.place.json {
            outln!("{}", serde_json::to_string(&file)?);
            return Ok(ExitCode::SUCCESS);
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["key", "tenant", "scopes", "members", "requests/min", "priority", "ends"]);
        for (name, key) in &file.keys {
            let scopes: Vec<&str> = key.scopes.iter().map(|scope| scope.name()).collect();
            let members = key.members.iter().flatten().map(String::as_str).collect::<Vec<_>>();
            table.add_row([
                name.clone(),
                key.tenant.clone().unwrap_or_else(|| name.clone()),
                scopes.join(", "),
                if key.members.is_none() { "all".to_owned() } else { members.join(", ") },
                key.requests_per_minute.map_or("-".to_owned(), |rate| rate.to_string()),
                key.priority.map_or("-".to_owned(), |class| class.name().to_owned()),
                key.expires.map_or("-".to_owned(), |end| end.to_string()),
            ]);
        }
        outln!("{table}");
        Ok(ExitCode::SUCCESS)
    }
}

impl Revoke {
    fn run(self) -> anyhow::Result<ExitCode> {
        let path = &self.place.file;
        let mut document = read(path)?;
        let keys = document.get_mut("keys").and_then(toml_edit::Item::as_table_mut);
        if keys.and_then(|keys| keys.remove(&self.name)).is_none() {
            bail!("`{}` has no key `{}`", path.display(), self.name);
        }
        write(path, &document)?;
        match self.place.json {
            true => outln!("{}", json!({ "revoked": self.name, "file": path })),
            false => eprintln!("`{}` is revoked", self.name),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The file as it is written, comments too; an empty one where there is none.
fn read(path: &Path) -> anyhow::Result<DocumentMut> {
    if !path.exists() {
        return Ok(DocumentMut::new());
    }
    AccessFile::read(path)?;
    Ok(std::fs::read_to_string(path)?.parse()?)
}

/// Replaces the file whole, so that a server never reads half of it; only its owner may read it.
fn write(path: &Path, document: &DocumentMut) -> anyhow::Result<()> {
    let text = document.to_string();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let fail = || format!("cannot write `{}`", path.display());
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(fail)?;
    std::io::Write::write_all(&mut file, text.as_bytes()).with_context(fail)?;
    file.as_file().sync_all().with_context(fail)?;
    AccessFile::read(file.path()).context("the change would make the file unusable")?;
    file.persist(path).with_context(fail)?;
    Ok(())
}
