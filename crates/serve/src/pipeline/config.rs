//! `[pipelines.NAME]` and `[indexes.NAME]` of `portfolio.toml`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use highroad_hosted::HostedTask;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Action, IndexConfig, Kind, OnError, Piece, Query, Step, Template};
use crate::config::{MemberConfig, RequestLimits, is_member_name};
use crate::hosted::config::HostedConfig;
use crate::index::lance::LanceKeys;
use crate::protocol::chat::MAX_TOKENS;

/// Most steps of one pipeline.
const MAX_STEPS: usize = 32;
/// Most documents that one step gives.
const MAX_TOP: usize = 1000;
const DEFAULT_TOP: usize = 10;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// One pipeline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PipelineConfig {
    /// The steps; each reads only those above it.
    pub steps: Vec<Step>,
    /// The step whose value is the answer, by position.
    pub output: usize,
    /// Longest time a request may take; no part of what it is.
    #[serde(skip)]
    pub timeout: Duration,
}

#[derive(Deserialize)]
struct IndexTable {
    path: PathBuf,
    embedder: String,
    #[serde(flatten)]
    lance: LanceKeys,
    /// Keys that there are not.
    #[serde(flatten)]
    unknown: BTreeMap<String, toml::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PipelineTable {
    steps: Vec<StepTable>,
    output: Option<String>,
    timeout_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StepTable {
    name: String,
    classify: Option<String>,
    embed: Option<String>,
    search: Option<String>,
    rerank: Option<String>,
    generate: Option<String>,
    system: Option<String>,
    prompt: Option<String>,
    max_tokens: Option<u64>,
    input: Option<String>,
    query: Option<String>,
    documents: Option<String>,
    top: Option<usize>,
    #[serde(default)]
    stop_when: Vec<String>,
    #[serde(default)]
    after: Vec<String>,
    timeout_ms: Option<u64>,
    fallback: Option<String>,
    #[serde(default)]
    on_error: OnErrorWord,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum OnErrorWord {
    #[default]
    Fail,
    Skip,
}

/// Reads `[indexes]`; paths are relative to `base`.
pub(crate) fn index_configs(
    table: &toml::Table,
    base: &Path,
    members: &BTreeMap<String, MemberConfig>,
    problems: &mut Vec<String>,
) -> BTreeMap<String, IndexConfig> {
    let mut indexes = BTreeMap::new();
    for (name, value) in section(table, "indexes", problems) {
        match value.clone().try_into::<IndexTable>() {
            Err(error) => problems.push(format!("[indexes.{name}] {}", error.message())),
            Ok(index) if !members.contains_key(&index.embedder) => {
                problems.push(format!("[indexes.{name}] embedder: there is no member `{}`", index.embedder));
            }
            Ok(index) if !index.unknown.is_empty() => {
                let keys: Vec<String> = index.unknown.keys().map(|key| format!("`{key}`")).collect();
                problems.push(format!("[indexes.{name}] there is no {}", keys.join(", ")));
            }
            Ok(index) => match index.lance.config(base) {
                Err(reason) => problems.push(format!("[indexes.{name}] {reason}")),
                Ok(lance) => {
                    let (path, embedder) = (base.join(index.path), index.embedder);
                    indexes.insert(name, IndexConfig { path, embedder, lance });
                }
            },
        }
    }
    indexes
}

/// Reads `[pipelines]`.
pub(crate) fn pipeline_configs(
    table: &toml::Table,
    limits: &RequestLimits,
    members: &BTreeMap<String, MemberConfig>,
    hosted: &BTreeMap<String, HostedConfig>,
    indexes: &BTreeMap<String, IndexConfig>,
    problems: &mut Vec<String>,
) -> BTreeMap<String, PipelineConfig> {
    let mut pipelines = BTreeMap::new();
    for (name, value) in section(table, "pipelines", problems) {
        let read = match value.clone().try_into::<PipelineTable>() {
            Err(error) => Err(vec![error.message().to_owned()]),
            Ok(_) if members.contains_key(&name) || hosted.contains_key(&name) => {
                Err(vec!["a member has this name".to_owned()])
            }
            Ok(pipeline) => Reader { limits, members, hosted, indexes, steps: Vec::new() }.read(pipeline),
        };
        match read {
            Ok(pipeline) => drop(pipelines.insert(name, pipeline)),
            Err(reasons) => problems.extend(reasons.into_iter().map(|reason| format!("[pipelines.{name}] {reason}"))),
        }
    }
    pipelines
}

fn section(table: &toml::Table, key: &str, problems: &mut Vec<String>) -> Vec<(String, toml::Value)> {
    let tables = match table.get(key) {
        None => return Vec::new(),
        Some(toml::Value::Table(tables)) => tables,
        Some(_) => {
            problems.push(format!("`{key}` must be a table: [{key}.NAME]"));
            return Vec::new();
        }
    };
    for name in tables.keys().filter(|name| !is_member_name(name)) {
        problems.push(format!("[{key}] `{name}`: only letters, digits, `.`, `_` and `-`, at most 64"));
    }
    tables.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
}

struct Reader<'a> {
    /// Of all members.
    limits: &'a RequestLimits,
    members: &'a BTreeMap<String, MemberConfig>,
    hosted: &'a BTreeMap<String, HostedConfig>,
    indexes: &'a BTreeMap<String, IndexConfig>,
    steps: Vec<Step>,
}

impl Reader<'_> {
    fn read(mut self, table: PipelineTable) -> Result<PipelineConfig, Vec<String>> {
        let mut problems = Vec::new();
        if !(1..=MAX_STEPS).contains(&table.steps.len()) {
            return Err(vec![format!("{} steps; a pipeline has 1 to {MAX_STEPS}", table.steps.len())]);
        }
        let mut names = BTreeSet::new();
        for step in table.steps {
            let name = step.name.clone();
            if !is_step_name(&name) || name == INPUT || !names.insert(name.clone()) {
                problems.push(format!("step `{name}`: a name of its own, letters, digits and `_`, not `{INPUT}`"));
                continue;
            }
            match self.step(step) {
                Ok(step) => self.steps.push(step),
                Err(reason) => problems.push(format!("step `{name}`: {reason}")),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let output = match &table.output {
            None => Ok(self.steps.len() - 1),
            Some(name) => self.position(name.trim_start_matches('$')),
        };
        let timeout = table.timeout_ms.map_or(DEFAULT_TIMEOUT, Duration::from_millis);
        Ok(PipelineConfig {
            output: output.map_err(|reason| vec![format!("output: {reason}")])?,
            steps: self.steps,
            timeout,
        })
    }

    fn step(&self, table: StepTable) -> Result<Step, String> {
        let mut after: Vec<usize> = table.after.iter().map(|name| self.position(name)).collect::<Result<_, _>>()?;
        if table.generate.is_some() {
            // What costs, and what clients see as it comes, begins when nothing can end the request any more.
            let stops = self.steps.iter().enumerate().filter(|(_, step)| step.may_stop());
            after.extend(stops.map(|(step_idx, _)| step_idx));
            if table.fallback.is_some() {
                return Err("`fallback` of a `generate` is the hosted member's own".to_owned());
            }
        }
        let on_error = match table.on_error {
            OnErrorWord::Fail => OnError::Fail,
            OnErrorWord::Skip if table.rerank.is_some() => OnError::Skip,
            OnErrorWord::Skip => return Err("only a `rerank` can be skipped".to_owned()),
        };
        if let Some(fallback) = &table.fallback {
            if table.search.is_some() {
                return Err("a `search` has no fallback: another embedder's vectors do not fit the index".to_owned());
            }
            self.member(fallback)?;
        }
        let timeout = table.timeout_ms.map(Duration::from_millis);
        let (name, fallback) = (table.name.clone(), table.fallback.clone());
        let action = self.action(table)?;
        let asked = match &action {
            Action::Search { index, .. } => self.indexes.get(index).map(|index| index.embedder.as_str()),
            Action::Generate { member, .. } => Some(member.as_str()),
            action => action.member(),
        };
        asked.into_iter().chain(fallback.as_deref()).try_for_each(|member| self.takes(member, &action))?;
        Ok(Step { name, action, after, timeout, fallback, on_error })
    }

    /// Whether the limits of `member` let through what `action` asks whatever the request is. A reranking is taken at its most: one that an
    /// index must stay small for is refused before it has grown.
    fn takes(&self, member: &str, action: &Action) -> Result<(), String> {
        let own = self.members.get(member).map(|member| &member.limits);
        let own = own.or_else(|| self.hosted.get(member).map(|member| &member.limits));
        let Some(own) = own else { return Ok(()) };
        let limits = own.over(self.limits);
        let (n_inputs, least_bytes) = match action {
            Action::Classify { input, .. } | Action::Embed { input, .. } => (1, input.least_bytes()),
            Action::Search { query: Query::Text(query), .. } => (1, query.least_bytes()),
            Action::Search { query: Query::Vector(_), .. } => return Ok(()),
            Action::Rerank { query, documents, .. } => (self.steps[*documents].action.most(), query.least_bytes()),
            Action::Generate { system, prompt, .. } => {
                let system_bytes = system.as_ref().map_or(0, String::len);
                (1 + usize::from(system.is_some()), prompt.least_bytes().max(system_bytes))
            }
        };
        let over = |what: &str, asked: usize, limit: usize, key: &str| {
            Err(format!("it asks `{member}` {what} {asked}, and its limits let through {limit} (`{key}`)"))
        };
        match (action, own.documents) {
            (Action::Rerank { .. }, Some(most)) if n_inputs > most => {
                over("for as many documents as", n_inputs, most, "documents")
            }
            _ if n_inputs > limits.inputs => over("for as many inputs as", n_inputs, limits.inputs, "inputs"),
            _ if least_bytes > limits.input_bytes => {
                over("a text whose bytes are at least", least_bytes, limits.input_bytes, "input_bytes")
            }
            _ => Ok(()),
        }
    }

    fn action(&self, table: StepTable) -> Result<Action, String> {
        let StepTable { classify, embed, search, rerank, input, query, documents, top, stop_when, .. } = table;
        let StepTable { generate, system, prompt, max_tokens, .. } = table;
        let top = top.unwrap_or(DEFAULT_TOP);
        if !(1..=MAX_TOP).contains(&top) {
            return Err(format!("`top` is 1 to {MAX_TOP}"));
        }
        let unused = |given: &[(&str, bool)]| match given.iter().find(|(_, given)| *given) {
            Some((key, _)) => Err(format!("`{key}` means nothing here")),
            None => Ok(()),
        };
        if let Some(member) = generate {
            if classify.or(embed).or(search).or(rerank).is_some() {
                return Err(ONE_OF.to_owned());
            }
            unused(&[
                ("input", input.is_some()),
                ("query", query.is_some()),
                ("documents", documents.is_some()),
                ("stop_when", !stop_when.is_empty()),
            ])?;
            return self.generate(member, system, prompt.as_deref(), max_tokens);
        }
        unused(&[("system", system.is_some()), ("prompt", prompt.is_some()), ("max_tokens", max_tokens.is_some())])?;
        match (classify, embed, search, rerank) {
            (Some(member), None, None, None) => {
                unused(&[("query", query.is_some()), ("documents", documents.is_some())])?;
                let input = self.template("input", input.as_deref())?;
                Ok(Action::Classify { member: self.member(&member)?, input, stop_when })
            }
            (None, Some(member), None, None) => {
                unused(&[
                    ("query", query.is_some()),
                    ("documents", documents.is_some()),
                    ("stop_when", !stop_when.is_empty()),
                ])?;
                Ok(Action::Embed { member: self.member(&member)?, input: self.template("input", input.as_deref())? })
            }
            (None, None, Some(index), None) => {
                unused(&[
                    ("input", input.is_some()),
                    ("documents", documents.is_some()),
                    ("stop_when", !stop_when.is_empty()),
                ])?;
                if !self.indexes.contains_key(&index) {
                    return Err(format!("there is no index `{index}`"));
                }
                Ok(Action::Search { index, query: self.query(query.as_deref())?, top })
            }
            (None, None, None, Some(member)) => {
                unused(&[("input", input.is_some()), ("stop_when", !stop_when.is_empty())])?;
                let documents = documents.ok_or("`documents` is missing: the step that found them")?;
                let documents = self.of_kind(&documents, Kind::Documents)?;
                let query = self.template("query", query.as_deref())?;
                Ok(Action::Rerank { member: self.member(&member)?, query, documents, top })
            }
            _ => Err(ONE_OF.to_owned()),
        }
    }

    fn generate(
        &self,
        member: String,
        system: Option<String>,
        prompt: Option<&str>,
        max_tokens: Option<u64>,
    ) -> Result<Action, String> {
        match self.hosted.get(&member) {
            None => return Err(format!("there is no hosted member `{member}`")),
            Some(config) if config.hosted.task != HostedTask::Generate => {
                return Err(format!("`{member}` does not generate"));
            }
            Some(_) => {}
        }
        if max_tokens.is_some_and(|most| !(1..=MAX_TOKENS).contains(&most)) {
            return Err(format!("`max_tokens` is 1 to {MAX_TOKENS}"));
        }
        Ok(Action::Generate { member, system, prompt: self.template("prompt", prompt)?, max_tokens })
    }

    fn member(&self, name: &str) -> Result<String, String> {
        if self.members.contains_key(name) { Ok(name.to_owned()) } else { Err(format!("there is no member `{name}`")) }
    }

    fn query(&self, text: Option<&str>) -> Result<Query, String> {
        let vector = text.and_then(|text| text.strip_prefix('$')).and_then(|name| self.position(name).ok());
        match vector.filter(|&step| self.steps[step].action.gives() == Kind::Vector) {
            Some(step) => Ok(Query::Vector(step)),
            None => self.template("query", text).map(Query::Text),
        }
    }

    fn of_kind(&self, reference: &str, kind: Kind) -> Result<usize, String> {
        let name =
            reference.strip_prefix('$').ok_or_else(|| format!("`{reference}` is no reference: write `$NAME`"))?;
        let step = self.position(name)?;
        let gives = self.steps[step].action.gives();
        if gives == kind { Ok(step) } else { Err(format!("`${name}` is {}, not {}", gives.name(), kind.name())) }
    }

    fn position(&self, name: &str) -> Result<usize, String> {
        let position = self.steps.iter().position(|step| step.name == name);
        position.ok_or_else(|| format!("there is no step `{name}` above it"))
    }

    /// `$NAME` is a reference, `$$` a dollar; without a text the request's input is meant.
    fn template(&self, key: &str, text: Option<&str>) -> Result<Template, String> {
        let mut rest = text.unwrap_or("$input");
        let (mut pieces, mut literal) = (Vec::new(), String::new());
        while let Some(at) = rest.find('$') {
            literal.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                literal.push('$');
                rest = after;
                continue;
            }
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
            let name = &rest[..end];
            rest = &rest[end..];
            if !literal.is_empty() {
                pieces.push(Piece::Literal(std::mem::take(&mut literal)));
            }
            pieces.push(self.piece(key, name)?);
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        if pieces.iter().all(|piece| matches!(piece, Piece::Literal(_))) {
            return Err(format!("`{key}` reads nothing: name `$input` or a step"));
        }
        Ok(Template(pieces))
    }

    fn piece(&self, key: &str, name: &str) -> Result<Piece, String> {
        if name == INPUT {
            return Ok(Piece::Input);
        }
        let step = self.position(name).map_err(|reason| format!("`{key}`: {reason}; `$$` is a dollar"))?;
        match self.steps[step].action.gives() {
            Kind::Vector => Err(format!("`{key}`: `${name}` is a vector, which is no text")),
            _ => Ok(Piece::Step(step)),
        }
    }
}

const ONE_OF: &str = "it does one of `classify`, `embed`, `search`, `rerank`, `generate`";
const INPUT: &str = "input";

fn is_step_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PortfolioConfig;

    const MEMBERS: &str = r#"
        [members.moderation]
        model = "moderation:1"
        [members.embedder]
        model = "embedder:1"
        [members.reranker]
        model = "reranker:1"
        [indexes.help]
        path = "help"
        embedder = "embedder"
    "#;

    fn parse(rest: &str) -> Result<PortfolioConfig, String> {
        PortfolioConfig::parse(&format!("{MEMBERS}\n{rest}"), Path::new("/base")).map_err(|errors| errors.to_string())
    }

    #[test]
    fn steps_read_what_is_above_them() {
        let config = parse(
            r#"
            [pipelines.support]
            steps = [
              { name = "safe", classify = "moderation", stop_when = ["injection"] },
              { name = "found", search = "help", query = "$input", top = 20 },
              { name = "best", rerank = "reranker", query = "$input costs $$5", documents = "$found", after = ["safe"], on_error = "skip" },
            ]
            "#,
        )
        .unwrap();
        assert_eq!(config.indexes["help"].path, Path::new("/base/help"));
        let support = &config.pipelines["support"];
        assert_eq!((support.output, support.timeout), (2, DEFAULT_TIMEOUT));
        let Action::Rerank { query, documents, top, .. } = &support.steps[2].action else { panic!("no rerank") };
        assert_eq!(query.0, [Piece::Input, Piece::Literal(" costs $5".to_owned())]);
        assert_eq!((*documents, *top, &support.steps[2].after[..]), (1, DEFAULT_TOP, &[0][..]));
    }

    #[test]
    fn what_does_not_fit_is_told_before_anything_is_asked() {
        for (steps, reason) in [
            ("", "0 steps"),
            ("{ name = \"a\", classify = \"nobody\" }", "there is no member `nobody`"),
            ("{ name = \"a\", search = \"nothing\" }", "there is no index `nothing`"),
            ("{ name = \"a\" }", "it does one of"),
            ("{ name = \"a\", embed = \"embedder\", classify = \"moderation\" }", "it does one of"),
            ("{ name = \"input\", embed = \"embedder\" }", "a name of its own"),
            ("{ name = \"a b\", embed = \"embedder\" }", "a name of its own"),
            ("{ name = \"a\", embed = \"embedder\" }, { name = \"a\", embed = \"embedder\" }", "a name of its own"),
            (
                "{ name = \"a\", embed = \"embedder\", input = \"$b\" }, { name = \"b\", embed = \"embedder\" }",
                "no step `b` above it",
            ),
            ("{ name = \"a\", embed = \"embedder\", input = \"hello\" }", "reads nothing"),
            (
                "{ name = \"a\", embed = \"embedder\" }, { name = \"b\", embed = \"embedder\", input = \"$a\" }",
                "is no text",
            ),
            (
                "{ name = \"a\", embed = \"embedder\" }, { name = \"b\", rerank = \"reranker\", documents = \"$a\" }",
                "is a vector, not documents",
            ),
            ("{ name = \"b\", rerank = \"reranker\" }", "`documents` is missing"),
            ("{ name = \"a\", embed = \"embedder\", on_error = \"skip\" }", "only a `rerank`"),
            ("{ name = \"a\", search = \"help\", fallback = \"embedder\" }", "has no fallback"),
            ("{ name = \"a\", search = \"help\", top = 0 }", "`top` is 1 to"),
            ("{ name = \"a\", generate = \"embedder\" }", "no hosted member `embedder`"),
            ("{ name = \"a\", embed = \"embedder\", prompt = \"$input\" }", "`prompt` means nothing here"),
            ("{ name = \"a\", search = \"help\", input = \"$input\" }", "`input` means nothing here"),
            ("{ name = \"a\", embed = \"embedder\", colour = 1 }", "unknown field `colour`"),
        ] {
            let error = parse(&format!("[pipelines.p]\nsteps = [{steps}]")).unwrap_err();
            assert!(error.contains("[pipelines.p] ") && error.contains(reason), "{reason} not in: {error}");
        }
        assert!(parse("[pipelines.embedder]\nsteps = []").unwrap_err().contains("a member has this name"));
        assert!(parse("[indexes.x]\npath = \"a\"\nembedder = \"b\"").unwrap_err().contains("no member `b`"));
    }

    #[test]
    fn a_step_that_the_limits_of_its_member_never_let_through_is_refused() {
        let found = "{ name = \"f\", search = \"help\", top = 6 }";
        let rerank = "{ name = \"r\", rerank = \"reranker\", documents = \"$f\", on_error = \"skip\" }";
        let long = "{ name = \"c\", classify = \"moderation\", input = \"Is this rude? $input\" }";
        for (limits, steps, reason) in [
            (
                "[members.reranker.limits]\ndocuments = 5",
                [found, rerank],
                Some(
                    "step `r`: it asks `reranker` for as many documents as 6, and its limits let through 5 (`documents`)",
                ),
            ),
            ("[members.reranker.limits]\ninputs = 5", [found, rerank], Some("(`inputs`)")),
            ("[limits]\ninputs = 5", [found, rerank], Some("(`inputs`)")),
            ("[members.reranker.limits]\ndocuments = 6\ninputs = 6", [found, rerank], None),
            ("[members.moderation.limits]\ninput_bytes = 13", [long, found], Some("bytes are at least 14")),
            ("[members.moderation.limits]\ninput_bytes = 14", [long, found], None),
            ("[members.embedder.limits]\ninput_bytes = 1", [found, rerank], None),
        ] {
            let parsed = parse(&format!("{limits}\n[pipelines.p]\nsteps = [{}]", steps.join(", ")));
            match reason {
                Some(reason) => assert!(parsed.unwrap_err().contains(reason), "{limits}"),
                None => assert!(parsed.is_ok(), "{limits}"),
            }
        }
    }

    #[test]
    fn a_vector_may_be_sought_as_it_is() {
        let config = parse(
            "[pipelines.p]\nsteps = [{ name = \"v\", embed = \"embedder\" }, { name = \"f\", search = \"help\", query = \"$v\" }]",
        )
        .unwrap();
        let Action::Search { query, .. } = &config.pipelines["p"].steps[1].action else { panic!("no search") };
        assert_eq!(*query, Query::Vector(0));
    }
}
