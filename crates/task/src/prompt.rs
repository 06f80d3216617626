//! Which of a package's prompts goes before a text.

use highroad_package::Task;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::TaskError;

/// Which of the package's prompts goes before a text. Where none is asked for it is the package's default, if it has one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Prompt {
    /// The one of this name. A package without it refuses the text.
    Named(String),
    /// The one that is for this, by the names that sentence-transformers and well-known models give it; else the default, as
    /// `encode_query` and `encode_document` of sentence-transformers choose.
    For(Purpose),
}

/// What a text is embedded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// To find documents by.
    Query,
    /// To be found.
    Document,
    /// To be classified by its vector.
    Classification,
    /// To be put into groups.
    Clustering,
    /// To be compared with texts of its own kind.
    Similarity,
}

impl Purpose {
    /// The names that such a prompt has, the first that a package has counts; letters' case aside. `encode_query` of
    /// sentence-transformers 5 looks for `query`, `encode_document` for `document`, `passage` and `corpus`; the others are those of
    /// Nomic's, Jina's, Google's and E5's models.
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Query => &["query", "search_query", "retrieval.query", "retrieval-query"],
            Self::Document => {
                &["document", "passage", "corpus", "search_document", "retrieval.passage", "retrieval-document"]
            }
            Self::Classification => &["classification"],
            Self::Clustering => &["clustering", "separation"],
            Self::Similarity => &["text-matching", "similarity", "sts"],
        }
    }
}

/// The name of the prompt that a package with this task has for documents that are to be found.
pub fn document_prompt(task: &Task) -> Option<&str> {
    purposed(task, Purpose::Document).or_else(|| default(task)).map(|(name, _)| name)
}

/// Name and text of the prompt that goes before a text for which `asked` is asked, or nothing.
///
/// Errors if a prompt is asked by a name that the package does not have.
pub(crate) fn chosen<'t>(task: &'t Task, asked: Option<&Prompt>) -> Result<Option<(&'t str, &'t str)>, TaskError> {
    let named = |name: &str| task.prompts.get_key_value(name).map(|(name, text)| (name.as_str(), text.as_str()));
    match asked {
        Some(Prompt::Named(name)) => named(name).map(Some).ok_or_else(|| TaskError::UnknownPrompt {
            asked: name.chars().filter(|c| !c.is_control()).take(MAX_TOLD_CHARS).collect(),
            known: task.prompts.keys().cloned().collect(),
        }),
        Some(Prompt::For(purpose)) => Ok(purposed(task, *purpose).or_else(|| default(task))),
        None => Ok(default(task)),
    }
}

/// How much of an unknown name an error says again.
const MAX_TOLD_CHARS: usize = 128;

fn purposed(task: &Task, purpose: Purpose) -> Option<(&str, &str)> {
    let named = |wanted: &&str| {
        let exactly = task.prompts.get_key_value(*wanted);
        exactly.or_else(|| task.prompts.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)))
    };
    purpose.names().iter().find_map(named).map(|(name, text)| (name.as_str(), text.as_str()))
}

fn default(task: &Task) -> Option<(&str, &str)> {
    let (name, text) = task.prompts.get_key_value(task.default_prompt_name.as_ref()?)?;
    Some((name, text))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use highroad_package::TaskKind;

    use super::*;

    fn task(prompts: &[(&str, &str)], default: Option<&str>) -> Task {
        let kind = TaskKind::Embed { dimensions: 2, normalized: true, matryoshka_dimensions: Vec::new() };
        let prompts = prompts.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect();
        Task { prompts, default_prompt_name: default.map(str::to_owned), ..Task::new(kind, 8) }
    }

    fn name(task: &Task, asked: Option<&Prompt>) -> Option<String> {
        chosen(task, asked).unwrap().map(|(name, _)| name.to_owned())
    }

    #[test]
    fn a_prompt_is_chosen_as_sentence_transformers_chooses() {
        let e5 = task(&[("query", "query: "), ("passage", "passage: ")], None);
        assert_eq!(name(&e5, None), None);
        assert_eq!(name(&e5, Some(&Prompt::For(Purpose::Query))).as_deref(), Some("query"));
        assert_eq!(name(&e5, Some(&Prompt::For(Purpose::Document))).as_deref(), Some("passage"));
        assert_eq!(name(&e5, Some(&Prompt::For(Purpose::Clustering))), None);
        // One that is there counts, also where it is empty.
        let bare = task(&[("document", ""), ("q", "ask: ")], Some("q"));
        assert_eq!(name(&bare, Some(&Prompt::For(Purpose::Document))).as_deref(), Some("document"));
        let nomic = task(&[("search_query", "search_query: "), ("Clustering", "clustering: ")], Some("search_query"));
        assert_eq!(name(&nomic, None).as_deref(), Some("search_query"));
        assert_eq!(name(&nomic, Some(&Prompt::For(Purpose::Document))).as_deref(), Some("search_query"));
        assert_eq!(name(&nomic, Some(&Prompt::For(Purpose::Clustering))).as_deref(), Some("Clustering"));
    }

    #[test]
    fn an_unknown_name_is_told_with_the_known_ones() {
        let e5 = task(&[("query", "query: "), ("passage", "passage: ")], None);
        let message = chosen(&e5, Some(&Prompt::Named("quary".to_owned()))).unwrap_err().to_string();
        assert_eq!(message, "the model has no prompt `quary`: it has `passage` and `query`");
        let none = task(&[], None);
        assert_eq!(name(&none, Some(&Prompt::For(Purpose::Query))), None);
        let message = chosen(&none, Some(&Prompt::Named("query".to_owned()))).unwrap_err().to_string();
        assert_eq!(message, "the model has no prompt `query`: it has none");
    }
}
