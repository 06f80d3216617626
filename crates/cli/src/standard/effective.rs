//! The effective standard: a repo's own file over the files it extends, each value with the line that says it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, bail};
use highroad_package::Digest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::source::{self, Extends, Place};
use super::{FILE, Standard, did_you_mean};

/// Most files of a chain of `extends`.
const MAX_LAYERS: usize = 8;
/// The shortest whole standard: an organisation's file, which leaves out what each repo says, is checked on top of it.
const SKELETON: &str = "model = { name = '', kind = '', owner = '', licence = '' }\n\
    environment = { python = '', torch = '' }\ntraining = {}\nevaluation = { golden = '' }\npackaging = {}\n";

/// One file of the chain.
#[derive(Debug)]
pub struct Layer {
    /// Where it was found.
    pub place: Place,
    /// Digest of its text.
    pub digest: Digest,
    /// What it says about other files.
    pub head: Head,
    /// The rest of its values by dotted key.
    pub values: Flat,
    lines: BTreeMap<String, usize>,
}

/// Values by dotted key.
pub type Flat = BTreeMap<String, Value>;

/// What a file says about the one it extends and to those that extend it.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Head {
    /// The file whose values hold where this one says nothing: a path, or a file of a git repository pinned by digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extends: Option<Extends>,
    /// Dotted keys and tables that no file that extends this one may change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locked: Vec<String>,
    /// Dotted keys that a repo must set, here or in its own file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub required: Vec<String>,
}

/// The chain, the repo's own file first.
#[derive(Debug)]
pub struct Chain(pub Vec<Layer>);

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// File that says it.
    pub from: String,
    /// Line of that file.
    pub line: usize,
    /// Whether a file it extends lets nobody change it.
    pub locked: bool,
}

/// A rule of an extended file that the repo breaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Breach {
    /// Dotted key.
    pub key: String,
    /// What is wrong with it, in one clause.
    pub problem: String,
}

impl Chain {
    /// Reads the file at `path` and everything it extends.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        Self::parse(path, source::read(path)?)
    }

    /// As [`Chain::read`], for a file at `path` that has `text`.
    pub fn parse(path: &Path, text: String) -> anyhow::Result<Self> {
        let mut layers = vec![Layer::parse(Place::File(path.to_owned()), text)?];
        while let Some(child) = layers.last()
            && let Some(extends) = &child.head.extends
        {
            if layers.len() == MAX_LAYERS {
                bail!("`{}` extends more than {MAX_LAYERS} files, or itself", path.display());
            }
            let (place, text) = extends.open(&child.place).with_context(|| format!("`{}`", child.place.name()))?;
            layers.push(Layer::parse(place, text)?);
        }
        Ok(Self(layers))
    }

    /// Every value by dotted key: the file nearest to the repo wins, table by table; arrays are replaced whole.
    pub fn merged(&self) -> Flat {
        self.merged_from(0)
    }

    fn merged_from(&self, first: usize) -> Flat {
        let mut merged = Flat::new();
        for layer in self.0[first..].iter().rev() {
            // A table in the place of a value, or the reverse, replaces it.
            merged.retain(|key, _| !layer.replaces(key));
            merged.extend(layer.values.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        merged
    }

    /// The whole standard.
    ///
    /// Errors if the files together miss a key, or one of them has a key that nothing reads or a value of another type.
    pub fn standard(&self) -> anyhow::Result<Standard> {
        self.checked(nest(&self.merged()))
    }

    /// Checks keys and types of files that need not be whole.
    pub fn check(&self) -> anyhow::Result<()> {
        let skeleton: Table = SKELETON.parse().context("the skeleton is TOML")?;
        let mut values = flatten(&skeleton);
        values.extend(self.merged());
        self.checked(nest(&values)).map(drop)
    }

    /// Errors if a file locks or requires a key that no standard has.
    fn check_rules(&self) -> anyhow::Result<()> {
        let schema = Standard::schema();
        for layer in &self.0 {
            for (list, keys) in [("locked", &layer.head.locked), ("required", &layer.head.required)] {
                let Some((key, meant)) = keys.iter().find_map(|key| Some((key, unknown_in(&schema, key)?))) else {
                    continue;
                };
                let line = layer.lines.get(list).map(|line| format!(" line {line}")).unwrap_or_default();
                let hint = meant.map(|meant| format!("\nhint: did you mean `{meant}`?")).unwrap_or_default();
                bail!("`{}`{line}: `{list}` names `{key}`, which is no key of {FILE}{hint}", layer.place.name());
            }
        }
        Ok(())
    }

    fn checked(&self, table: Table) -> anyhow::Result<Standard> {
        if self.0.iter().any(|layer| !layer.head.locked.is_empty() || !layer.head.required.is_empty()) {
            self.check_rules()?;
        }
        serde_path_to_error::deserialize(Value::Table(table)).map_err(|error| {
            let message = error.inner().message().trim_end().to_owned();
            let path = error.path().to_string();
            let path = path.trim_start_matches('.').trim_end_matches(".?");
            let hint = did_you_mean(&message).map(|key| format!("\nhint: did you mean `{key}`?")).unwrap_or_default();
            let unknown = message.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
            let key = match unknown {
                Some(unknown) if !path.ends_with(unknown) => format!("{path}.{unknown}"),
                _ => path.to_owned(),
            };
            let key = key.trim_start_matches('.');
            let what = if path.is_empty() || path == "." { String::new() } else { format!(" in `{path}`") };
            match self.origin(key) {
                Some(origin) => anyhow::anyhow!("`{}` line {}: {message}{what}{hint}", origin.from, origin.line),
                None => anyhow::anyhow!("`{}`: {message}{what}{hint}", self.0[0].place.name()),
            }
        })
    }

    /// Where the value of `key` comes from; for a table, where the file nearest to the repo names it.
    pub fn origin(&self, key: &str) -> Option<Origin> {
        self.0.iter().enumerate().find_map(|(idx, layer)| {
            let line = *layer.lines.get(key)?;
            let locked =
                self.0[idx..].iter().any(|parent| parent.head.locked.iter().any(|locked| is_within(key, locked)));
            Some(Origin { from: layer.place.name(), line, locked })
        })
    }

    /// Locked keys that a file changes, and required keys that nobody sets.
    pub fn breaches(&self) -> Vec<Breach> {
        let merged = self.merged();
        let mut breaches = Vec::new();
        for (idx, parent) in (1..).zip(self.0.get(1..).unwrap_or_default()) {
            let above = self.merged_from(idx);
            for locked in &parent.head.locked {
                let leaves = |flat: &Flat| {
                    let says = |(key, value): &(&String, &Value)| is_within(key, locked) && !is_empty(value);
                    flat.iter().filter(says).map(|(key, _)| key.clone()).collect::<BTreeSet<_>>()
                };
                for key in leaves(&above).union(&leaves(&merged)).filter(|key| above.get(*key) != merged.get(*key)) {
                    let expected = above.get(key).map_or("nothing".to_owned(), ToString::to_string);
                    let found = merged.get(key).map_or("nothing".to_owned(), ToString::to_string);
                    let problem = format!("is {found}, and {} locks it at {expected}", parent.place.name());
                    breaches.push(Breach { key: key.clone(), problem });
                }
            }
            for required in &parent.head.required {
                if !merged.keys().any(|key| is_within(key, required)) {
                    let problem = format!("is required by {}", parent.place.name());
                    breaches.push(Breach { key: required.clone(), problem });
                }
            }
        }
        breaches
    }
}

impl Layer {
    /// Reads one file.
    pub fn parse(place: Place, text: String) -> anyhow::Result<Self> {
        let name = place.name();
        let refused = |error: &dyn std::fmt::Display| anyhow::anyhow!("`{name}`: {}", error.to_string().trim_end());
        let mut table: Table = text.parse().map_err(|error: toml::de::Error| refused(&error))?;
        let spans = DeTable::parse(&text).map_err(|error| refused(&error))?;
        let mut lines = BTreeMap::new();
        note_lines(spans.get_ref(), "", &LineStarts::of(&text), &mut lines);
        let extends = table.remove("extends").map(|value| Extends::parse(&value)).transpose();
        let extends = extends.with_context(|| format!("`{name}`"))?;
        let rules: Table = ["locked", "required"].iter().filter_map(|key| table.remove_entry(*key)).collect();
        let rules: Head = rules.try_into().map_err(|error: toml::de::Error| {
            refused(&format!("`locked` and `required` list dotted keys: {}", error.message()))
        })?;
        let head = Head { extends, ..rules };
        Ok(Self { place, digest: Digest::of(text.as_bytes()), head, values: flatten(&table), lines })
    }

    /// All it declares, `locked` and `required` included.
    pub fn declared(&self) -> Flat {
        let lists = [("locked", &self.head.locked), ("required", &self.head.required)];
        let lists = lists.into_iter().filter(|(_, keys)| !keys.is_empty());
        let lists = lists.map(|(name, keys)| (name.to_owned(), Value::from(keys.clone())));
        self.values.iter().map(|(key, value)| (key.clone(), value.clone())).chain(lists).collect()
    }

    /// Whether it has a value where `key` lies in a table, or a table where `key` is a value. An empty table replaces nothing.
    fn replaces(&self, key: &str) -> bool {
        let clashes = |new: &str| new != key && (is_within(new, key) || is_within(key, new));
        self.values.iter().any(|(new, value)| !is_empty(value) && clashes(new))
    }
}

/// The effective `key` of the repo at `root`; `None` where there is no `highroad.toml` or nobody sets it.
pub fn value(root: &Path, key: &str) -> anyhow::Result<Option<Value>> {
    let path = root.join(FILE);
    if !path.exists() {
        return Ok(None);
    }
    Ok(Chain::read(&path)?.merged().remove(key))
}

/// Tag of a version: digest of the effective standard it was pushed under.
pub const STANDARD_TAG: &str = "highroad.standard";
/// Tag of a version: digest of the file that standard extends; absent if it extends nothing.
pub const EXTENDS_TAG: &str = "highroad.standard.extends";
/// Tag of a version: the keys by which its repo breaks the extended standard, separated by spaces; absent if it breaks none.
pub const BREACHES_TAG: &str = "highroad.standard.breaches";
/// Tag of a version: the p99 of the service time its product allows, in milliseconds; absent if it says none.
pub const P99_TAG: &str = "highroad.budget.p99_ms";

/// What a model version is told about the standard of the repo at `root`; nothing where that is no repo.
pub fn tags(root: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let path = root.join(FILE);
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    let chain = Chain::read(&path)?;
    let standard = chain.standard()?;
    let digest = Digest::of(&serde_json_canonicalizer::to_vec(&standard)?);
    let breaches = chain.breaches().into_iter().map(|breach| breach.key).collect::<Vec<_>>().join(" ");
    let all = [
        (STANDARD_TAG, Some(digest.to_string())),
        (EXTENDS_TAG, chain.0.get(1).map(|parent| parent.digest.to_string())),
        (BREACHES_TAG, Some(breaches).filter(|keys| !keys.is_empty())),
        (P99_TAG, standard.serving.budgets.p99_ms.map(|budget| budget.to_string())),
    ];
    Ok(all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect())
}

fn is_empty(value: &Value) -> bool {
    value.as_table().is_some_and(Table::is_empty)
}

/// Whether `key` is `table` or lies in it.
fn is_within(key: &str, table: &str) -> bool {
    key.strip_prefix(table).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Where the JSON Schema has no such dotted key: the closest it has, if one is close.
fn unknown_in(schema: &serde_json::Value, key: &str) -> Option<Option<String>> {
    let parts = split(key);
    let mut at = schema;
    for (idx, part) in parts.iter().enumerate() {
        at = referred(schema, at);
        let properties = at["properties"].as_object();
        if let Some(inner) = properties.and_then(|properties| properties.get(part)) {
            at = inner;
            continue;
        }
        // A table of names that each repo chooses.
        if at.get("additionalProperties").is_some_and(|more| *more != false) {
            return None;
        }
        let closeness = |known: &&String| strsim::jaro_winkler(part, known);
        let known = properties.into_iter().flat_map(serde_json::Map::keys);
        let best = known.max_by(|a, b| closeness(a).total_cmp(&closeness(b))).filter(|best| closeness(best) > 0.7);
        let meant = best.map(|best| [&parts[..idx], std::slice::from_ref(best), &parts[idx + 1..]].concat().join("."));
        return Some(meant);
    }
    None
}

/// What a schema stands for, where it refers to a definition.
fn referred<'a>(root: &'a serde_json::Value, schema: &'a serde_json::Value) -> &'a serde_json::Value {
    let parts = ["allOf", "anyOf"].iter().filter_map(|of| schema[*of].as_array()).flatten();
    let name = |schema: &'a serde_json::Value| schema["$ref"].as_str()?.strip_prefix("#/definitions/");
    let name = std::iter::once(schema).chain(parts).find_map(name);
    name.map_or(schema, |name| &root["definitions"][name])
}

/// A table as values by dotted key.
pub fn flatten(table: &Table) -> Flat {
    fn into(table: &Table, prefix: &str, flat: &mut Flat) {
        for (key, value) in table {
            let key = dotted(prefix, key);
            match value {
                Value::Table(inner) if !inner.is_empty() => into(inner, &key, flat),
                _ => _ = flat.insert(key, value.clone()),
            }
        }
    }
    let mut flat = Flat::new();
    into(table, "", &mut flat);
    flat
}

/// The table that [`flatten`] had.
pub fn nest(flat: &Flat) -> Table {
    let mut table = Table::new();
    for (key, value) in flat {
        let mut parts = split(key);
        let last = parts.pop().unwrap_or_default();
        let mut at = &mut table;
        for part in parts {
            let inner = at.entry(part).or_insert_with(|| Value::Table(Table::new()));
            if !inner.is_table() {
                *inner = Value::Table(Table::new());
            }
            at = inner.as_table_mut().expect("it was made one");
        }
        at.insert(last, value.clone());
    }
    table
}

fn dotted(prefix: &str, key: &str) -> String {
    let is_bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    let key = if is_bare { key.to_owned() } else { Value::String(key.to_owned()).to_string() };
    if prefix.is_empty() { key } else { format!("{prefix}.{key}") }
}

/// The parts of a dotted key, quoted ones without their quotes.
fn split(key: &str) -> Vec<String> {
    toml_edit::Key::parse(key)
        .map_or_else(|_| vec![key.to_owned()], |parts| parts.iter().map(|part| part.get().to_owned()).collect())
}

struct LineStarts(Vec<usize>);

impl LineStarts {
    fn of(text: &str) -> Self {
        Self(std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect())
    }

    /// Line of the byte at `offset`, counted from 1.
    fn line(&self, offset: usize) -> usize {
        self.0.partition_point(|&start| start <= offset)
    }
}

fn note_lines(table: &DeTable<'_>, prefix: &str, starts: &LineStarts, lines: &mut BTreeMap<String, usize>) {
    for (key, value) in table {
        let name = dotted(prefix, key.get_ref());
        lines.insert(name.clone(), starts.line(key.span().start));
        if let DeValue::Table(inner) = value.get_ref() {
            note_lines(inner, &name, starts, lines);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(files: &[(&str, &str)]) -> (tempfile::TempDir, anyhow::Result<Chain>) {
        let dir = tempfile::tempdir().expect("temporary directory");
        for (name, text) in files {
            std::fs::create_dir_all(dir.path().join(name).parent().expect("inside")).expect("made");
            std::fs::write(dir.path().join(name), text).expect("written");
        }
        let read = Chain::read(&dir.path().join(files[0].0));
        (dir, read)
    }

    const ORGANISATION: &str = "locked = ['environment.torch', 'packaging']\nrequired = ['tracking.uri', 'model.owner']\n\
        [environment]\ntorch = '>=2.9'\npython = '>=3.11'\n[packaging]\nlicences = ['MIT', 'Apache-2.0']\n";
    const REPO: &str = "extends = '../standard.toml'\n[packaging]\n[model]\nname = 'm'\nkind = 'classifier'\nowner = 'o'\n\
        licence = 'MIT'\n[training]\nseed = 1\n[evaluation]\ngolden = 'g'\n[environment]\npython = '>=3.12'\n";

    #[test]
    fn the_file_nearest_to_the_repo_wins_table_by_table() {
        let (_dir, chain) = chain(&[("repo/highroad.toml", REPO), ("standard.toml", ORGANISATION)]);
        let chain = chain.expect("readable");
        let standard = chain.standard().expect("whole");
        assert_eq!(
            (standard.environment.torch.as_deref(), standard.environment.python.as_str()),
            (Some(">=2.9"), ">=3.12")
        );
        assert_eq!(standard.packaging.licences, ["MIT", "Apache-2.0"]);
        let torch = chain.origin("environment.torch").expect("set");
        assert!(torch.from.ends_with("standard.toml") && torch.line == 4 && torch.locked, "{torch:?}");
        let python = chain.origin("environment.python").expect("set");
        assert!(python.from.ends_with("highroad.toml") && python.line == 13 && !python.locked, "{python:?}");
    }

    #[test]
    fn a_changed_locked_key_and_a_missing_required_one_are_breaches() {
        let own = format!("{REPO}torch = '>=2.5'\n").replace("[packaging]\n", "[packaging]\nmax_tokens = 9\n");
        let (_dir, chain) = chain(&[("repo/highroad.toml", &own), ("standard.toml", ORGANISATION)]);
        let breaches = chain.expect("readable").breaches();
        let keys: Vec<&str> = breaches.iter().map(|breach| breach.key.as_str()).collect();
        assert_eq!(keys, ["environment.torch", "packaging.max_tokens", "tracking.uri"]);
        assert!(breaches[0].problem.contains("is \">=2.5\"") && breaches[0].problem.contains("locks it at \">=2.9\""));
    }

    #[test]
    fn an_unknown_key_is_found_in_the_file_that_has_it() {
        let parent = ORGANISATION.replace("licences", "licenses");
        let (_dir, chain) = chain(&[("repo/highroad.toml", REPO), ("standard.toml", &parent)]);
        let error = chain.expect("readable").standard().expect_err("unknown key").to_string();
        assert!(error.contains("standard.toml` line 7: unknown field `licenses`"), "{error}");
        assert!(error.ends_with("hint: did you mean `licences`?"), "{error}");
    }

    #[test]
    fn an_organisations_file_is_checked_without_what_each_repo_says() {
        let (_dir, sound) = chain(&[("standard.toml", ORGANISATION)]);
        sound.expect("readable").check().expect("sound");
        let (_dir, wrong) = chain(&[("standard.toml", "[training]\nseed = 'x'\n")]);
        let error = wrong.expect("readable").check().expect_err("no number").to_string();
        assert!(error.contains("standard.toml` line"), "{error}");
    }

    #[test]
    fn a_rule_about_a_key_that_no_standard_has_is_refused() {
        for (wrong, meant) in [
            ("locked = ['packagin.licences']", "packaging.licences"),
            ("locked = ['environment.torhc']", "environment.torch"),
            ("required = ['tracking.ury']", "tracking.uri"),
            ("locked = ['serving.budgets.p99ms']", "serving.budgets.p99_ms"),
        ] {
            let (_dir, chain) = chain(&[("standard.toml", &format!("\n{wrong}\n"))]);
            let error = chain.expect("readable").check().expect_err("no such key").to_string();
            assert!(error.contains("standard.toml` line 2") && error.contains("is no key"), "{error}");
            assert!(error.ends_with(&format!("hint: did you mean `{meant}`?")), "{error}");
        }
        let sound =
            "locked = ['environment.packages.numpy', 'training.epochs', 'serving.budgets', 'owners', 'model']\n";
        chain(&[("standard.toml", sound)]).1.expect("readable").check().expect("keys of a standard");
    }

    #[test]
    fn a_file_that_extends_itself_is_refused() {
        let (_dir, chain) = chain(&[("a.toml", "extends = 'a.toml'\n")]);
        assert!(chain.expect_err("endless").to_string().contains("or itself"));
    }

    #[test]
    fn keys_with_dots_survive() {
        let table: Table = "[environment.packages]\n\"a.b\" = '>=1'\nc = '>=2'\n".parse().expect("TOML");
        let flat = flatten(&table);
        assert_eq!(flat.keys().collect::<Vec<_>>(), ["environment.packages.\"a.b\"", "environment.packages.c"]);
        assert_eq!(nest(&flat), table);
    }
}
