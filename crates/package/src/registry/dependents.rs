//! What rests on an alias: indexes of the vectors that its package made, and pipelines that were judged with it.
//!
//! Both are tags of the registered model, so that any MLflow server holds them. An index is declared by who builds it
//! (`highroad index --for`), a pipeline by who judges it (`highroad gate --pipeline`). An index forbids: vectors of two models are not
//! comparable, so an alias goes only to a package that has embedded the documents too. A pipeline tells: its verdict is about
//! the members it was asked with, so a new one makes it due again.

use std::fmt;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{MAX_MODEL_TAG_BYTES, RegistryClient, RegistryError};
use crate::Digest;

/// Tag of an index, followed by the alias, a slash and the index's name.
const INDEX_TAG: &str = "highroad.index/";
/// Tag of a judged pipeline, followed by the alias, the pipeline's name and the member's, with slashes between them.
const PIPELINE_TAG: &str = "highroad.pipeline/";
/// Builds of an index that are remembered: the newest, so that a way back stays open.
const MAX_BUILDS: usize = 16;

/// An index whose queries are embedded by what an alias names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DependentIndex {
    /// Format version, 1.
    pub highroad_index: u32,
    /// Its name.
    pub index: String,
    /// The alias.
    pub alias: String,
    /// What is embedded, as it was told to the command that built it.
    pub documents: String,
    /// Where it lies, as it was told to that command.
    pub folder: String,
    /// The builds there are, the newest last.
    pub builds: Vec<Build>,
}

/// The same documents, embedded by one package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Build {
    /// Which package embedded them.
    pub package: Digest,
    /// The index's own digest.
    pub digest: Digest,
}

/// A pipeline that was judged with what an alias named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgedPipeline {
    /// Format version, 1.
    pub highroad_pipeline: u32,
    /// Its name.
    pub pipeline: String,
    /// The alias that a member of it follows.
    pub alias: String,
    /// That member.
    pub member: String,
    /// The member's package, as it was judged.
    pub package: Digest,
    /// Members that read what this one gives, whose own verdicts a new one makes doubtful.
    pub feeds: Vec<String>,
    /// Digest of all that was judged together: the verdict is about it.
    pub composition: Digest,
    /// The verdict.
    pub verdict: Digest,
    /// `pass`, `fail` or `inconclusive`.
    pub outcome: String,
}

/// Why an alias may not move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependence {
    tag: String,
    index: Option<DependentIndex>,
    model: String,
    alias: String,
    version: u64,
}

impl fmt::Display for Dependence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tag, index, model, alias, version } = self;
        match index {
            Some(DependentIndex { index, documents, folder, builds, .. }) => {
                let [documents, folder] = [documents, folder].map(|text| quoted(text));
                let by = builds.last().map_or_else(|| "none".to_owned(), |build| build.package.short().to_string());
                write!(
                    f,
                    "`{model}@{alias}` may not move to version {version}: the index `{index}` was embedded by another package ({by}), and \
                     vectors of two models cannot be compared; `highroad index {documents} --embedder {model}:{version} -o {folder} \
                     --name {index} --for {model}@{alias}` builds it beside the old one"
                )
            }
            None => write!(
                f,
                "`{model}@{alias}` may not move: its tag `{tag}` says that an index depends on it and cannot be read; \
                 `highroad index --for {model}@{alias}` writes it anew"
            ),
        }
    }
}

impl DependentIndex {
    /// An index without a build.
    pub fn new([index, alias]: [&str; 2], documents: &str, folder: &str) -> Self {
        Self {
            highroad_index: 1,
            index: index.to_owned(),
            alias: alias.to_owned(),
            documents: documents.to_owned(),
            folder: folder.to_owned(),
            builds: Vec::new(),
        }
    }

    /// The same with a build, in the place of an earlier one by its package.
    #[must_use]
    pub fn with(mut self, build: Build) -> Self {
        self.builds.retain(|earlier| earlier.package != build.package);
        self.builds.push(build);
        let n_old = self.builds.len().saturating_sub(MAX_BUILDS);
        self.builds.drain(..n_old);
        self
    }

    fn key(&self) -> String {
        index_tag(&self.alias, &self.index)
    }
}

impl JudgedPipeline {
    fn key(&self) -> String {
        format!("{PIPELINE_TAG}{}/{}/{}", self.alias, self.pipeline, self.member)
    }

    /// What is due once the member serves `package`; nothing where it is what was judged.
    pub fn due(&self, package: &Digest) -> Option<String> {
        let Self { pipeline, member, feeds, verdict, .. } = self;
        if self.package == *package {
            return None;
        }
        let after =
            |reader: &String| format!("; `{reader}` reads what `{member}` gives: gate it on cases of the new one");
        let after: String = feeds.iter().map(after).collect();
        Some(format!(
            "the verdict {} on pipeline `{pipeline}` was made with {} as `{member}`: `highroad gate --pipeline {pipeline}` is due{after}",
            verdict.short(),
            self.package.short()
        ))
    }
}

fn index_tag(alias: &str, index: &str) -> String {
    format!("{INDEX_TAG}{alias}/{index}")
}

/// Tags that begin with `prefix` and the alias: the key, and the value where it can be read.
fn under<'a, T: DeserializeOwned>(
    tags: impl IntoIterator<Item = (&'a str, &'a str)>,
    prefix: &'static str,
    alias: &'a str,
) -> impl Iterator<Item = (&'a str, Option<T>)> {
    tags.into_iter().filter_map(move |(key, value)| {
        let rest = key.strip_prefix(prefix)?.strip_prefix(alias)?;
        rest.starts_with('/').then(|| (key, serde_json::from_str(value).ok()))
    })
}

/// The indexes that depend on an alias, as far as their tags can be read.
pub fn indexes<'a>(tags: impl IntoIterator<Item = (&'a str, &'a str)>, alias: &'a str) -> Vec<DependentIndex> {
    under(tags, INDEX_TAG, alias).filter_map(|(_, index)| index).collect()
}

/// Why the alias of `[model, alias]` may not move to `version`, which holds `package` (none if it is no package of ours): the
/// first index of which there is no build by it. A declaration that cannot be read forbids too, as nobody knows what it says.
pub fn forbids<'a>(
    tags: impl IntoIterator<Item = (&'a str, &'a str)>,
    [model, alias]: [&'a str; 2],
    version: u64,
    package: Option<&Digest>,
) -> Option<Dependence> {
    let has_build = |index: &DependentIndex| index.builds.iter().any(|build| Some(&build.package) == package);
    let missing = |(key, index): (&str, Option<DependentIndex>)| match index {
        Some(index) if has_build(&index) => None,
        index => {
            Some(Dependence { tag: key.to_owned(), index, model: model.to_owned(), alias: alias.to_owned(), version })
        }
    };
    under(tags, INDEX_TAG, alias).find_map(missing)
}

/// The verdicts on pipelines that are due once the alias names `package`, in sentences.
pub fn due<'a>(tags: impl IntoIterator<Item = (&'a str, &'a str)>, alias: &'a str, package: &Digest) -> Vec<String> {
    let judged = under::<JudgedPipeline>(tags, PIPELINE_TAG, alias).filter_map(|(_, pipeline)| pipeline);
    judged.filter_map(|pipeline| pipeline.due(package)).collect()
}

impl RegistryClient {
    /// Declares a build of an index: from now on the alias moves to no package of which there is none.
    pub async fn declare_index(
        &self,
        model: &str,
        index: DependentIndex,
        build: Build,
    ) -> Result<DependentIndex, RegistryError> {
        let tags = self.model_tags(model).await?;
        let known = tags.get(&index.key()).and_then(|text| serde_json::from_str::<DependentIndex>(text).ok());
        let builds = known.map(|known| known.builds).unwrap_or_default();
        let mut index = DependentIndex { builds, ..index }.with(build);
        // Long paths leave room for fewer builds.
        while index.builds.len() > 1 && text(&index).len() > MAX_MODEL_TAG_BYTES {
            index.builds.remove(0);
        }
        self.set_model_tag(model, &index.key(), &text(&index)).await?;
        Ok(index)
    }

    /// Forgets an index: the alias moves without regard to it. One that is not there is fine.
    pub async fn forget_index(&self, [model, alias]: [&str; 2], index: &str) -> Result<(), RegistryError> {
        self.delete_model_tag(model, &index_tag(alias, index)).await
    }

    /// Records with what a pipeline was judged.
    pub async fn declare_pipeline(&self, model: &str, judged: &JudgedPipeline) -> Result<(), RegistryError> {
        self.set_model_tag(model, &judged.key(), &text(judged)).await
    }
}

/// As one word of a shell: a tag is somebody else's text, and people copy the command.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    if !text.is_empty() && !text.starts_with('-') && text.chars().all(is_plain) {
        return text.to_owned();
    }
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("texts and digests are JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(index: &DependentIndex) -> Vec<(String, String)> {
        vec![("owner".to_owned(), "ann".to_owned()), (index.key(), text(index))]
    }

    fn pairs(tags: &[(String, String)]) -> impl Iterator<Item = (&str, &str)> {
        tags.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    #[test]
    fn an_alias_moves_only_where_every_index_has_gone_before() {
        let [old, new] = [Digest::of(b"old"), Digest::of(b"new")];
        let build = |package: &Digest| Build { package: *package, digest: Digest::of(b"index") };
        let index = DependentIndex::new(["help", "champion"], "documents.jsonl", "help").with(build(&old));
        let tags_of_old = tags(&index);
        let ask = |tags: &[(String, String)], alias: &str, package: Option<&Digest>| {
            forbids(pairs(tags), ["embedder", alias], 8, package).map(|forbids| forbids.to_string())
        };
        assert_eq!(ask(&tags_of_old, "champion", Some(&old)), None);
        let refused = ask(&tags_of_old, "champion", Some(&new)).unwrap();
        assert!(refused.contains("the index `help`"), "{refused}");
        assert!(
            refused.contains(
                "highroad index documents.jsonl --embedder embedder:8 -o help --name help --for embedder@champion"
            ),
            "{refused}"
        );
        assert!(ask(&tags_of_old, "champion", None).is_some());
        assert_eq!(ask(&tags_of_old, "champ", Some(&new)), None);
        let with_new = index.clone().with(build(&new));
        assert_eq!(ask(&tags(&with_new), "champion", Some(&new)), None);
        let hostile = DependentIndex { documents: "a; b 'c'".to_owned(), ..index.clone() };
        let refused = ask(&tags(&hostile), "champion", Some(&new)).unwrap();
        assert!(refused.contains(r"highroad index 'a; b '\''c'\''' --embedder"), "{refused}");
        let unreadable = [("highroad.index/champion/help".to_owned(), "{}".to_owned())];
        assert!(ask(&unreadable, "champion", Some(&old)).unwrap().contains("highroad.index/champion/help"));
    }

    #[test]
    fn the_newest_builds_are_remembered_once_each() {
        let build = |i: usize| Build { package: Digest::of(&[i as u8]), digest: Digest::of(&[i as u8]) };
        let all = (0..40).fold(DependentIndex::new(["i", "a"], "d", "f"), |index, i| index.with(build(i)));
        let all = all.with(build(39));
        assert_eq!(all.builds, (24..40).map(build).collect::<Vec<_>>());
        assert!(text(&all).len() < MAX_MODEL_TAG_BYTES);
    }

    #[test]
    fn a_pipeline_is_due_where_its_member_is_another() {
        let [was, now] = [Digest::of(b"was"), Digest::of(b"now")];
        let judged = JudgedPipeline {
            highroad_pipeline: 1,
            pipeline: "support".to_owned(),
            alias: "champion".to_owned(),
            member: "embedder".to_owned(),
            package: was,
            feeds: vec!["reranker".to_owned()],
            composition: Digest::of(b"all"),
            verdict: Digest::of(b"verdict"),
            outcome: "pass".to_owned(),
        };
        let tags = [(judged.key(), text(&judged)), ("highroad.pipeline/champion/x/y".to_owned(), "no".to_owned())];
        assert!(due(pairs(&tags), "champion", &was).is_empty());
        let due = due(pairs(&tags), "champion", &now);
        assert!(due[0].contains("highroad gate --pipeline support") && due[0].contains("`reranker` reads"), "{due:?}");
    }
}
