//! What happens to a text before it is tokens, and where it is cut.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Task, TaskKind, ensure, is_line};
use crate::PackageError;

/// Most prompts of a package; the models that have the most are trained on some 20 kinds of task.
const MAX_PROMPTS: usize = 64;
/// Longest prompt; it is tokenised with every text.
const MAX_PROMPT_BYTES: usize = 4096;
/// What a reranker may have a prompt for.
const SIDES: [&str; 2] = ["query", "document"];

/// What happens to an input that has more tokens than the model takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Truncation {
    /// It loses its end; a history its start.
    #[default]
    Right,
    /// It loses its start.
    Left,
    /// It is refused.
    Error,
}

/// Which text of a pair that is too long loses tokens, in the words of Hugging Face's tokenizers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PairTruncation {
    /// The longer one, until both are equally long.
    #[default]
    LongestFirst,
    /// The second one: the document. A query that leaves no room for any of it is an error.
    OnlySecond,
}

impl Task {
    pub(super) fn validate_reading(&self) -> Result<(), PackageError> {
        self.validate_prompts()?;
        let is_pairs = matches!(self.kind, TaskKind::Rerank | TaskKind::Classify { pairs: true, .. });
        let has_history = matches!(self.kind, TaskKind::Recommend { .. });
        ensure(is_pairs || self.pair_truncation == PairTruncation::default(), || {
            "`pair_truncation` is for rerankers and classifiers of pairs".to_owned()
        })?;
        ensure(self.image.is_none() || self.truncation == Truncation::default(), || {
            "`truncation` is for texts, and `image` says that the model is shown pictures".to_owned()
        })?;
        ensure(!has_history || self.truncation != Truncation::Left, || {
            "`truncation` of a history is `right`, which is the default and cuts its oldest items, or `error`"
                .to_owned()
        })
    }

    fn validate_prompts(&self) -> Result<(), PackageError> {
        let n = self.prompts.len();
        ensure(n <= MAX_PROMPTS, || format!("`prompts` has {n} entries, more than {MAX_PROMPTS}"))?;
        for (name, text) in &self.prompts {
            ensure(is_line(name), || format!("the name of prompt `{}` must be one short line", name.escape_debug()))?;
            let n_bytes = text.len();
            ensure(n_bytes <= MAX_PROMPT_BYTES, || {
                format!("prompt `{name}` has {n_bytes} bytes, more than {MAX_PROMPT_BYTES}")
            })?;
            let is_text = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
            ensure(text.chars().all(is_text), || format!("prompt `{name}` has a control character in it"))?;
        }
        match (&self.kind, &self.default_prompt_name) {
            (TaskKind::Embed { .. }, Some(name)) => ensure(self.prompts.contains_key(name), || {
                let known: Vec<&str> = self.prompts.keys().map(String::as_str).collect();
                format!(
                    "`default_prompt_name` is `{}`, none of the prompts ({})",
                    name.escape_debug(),
                    known.join(", ")
                )
            }),
            (TaskKind::Embed { .. }, None) => Ok(()),
            (_, Some(_)) => ensure(false, || "`default_prompt_name` is for the task `embed`".to_owned()),
            (TaskKind::Rerank, None) => {
                let odd = self.prompts.keys().find(|name| !SIDES.contains(&name.as_str()));
                ensure(odd.is_none(), || {
                    format!(
                        "prompt `{}`: a reranker has one for `query` and one for `document`",
                        odd.map_or("", |odd| odd)
                    )
                })
            }
            (_, None) => ensure(n == 0, || "`prompts` are for the tasks `embed` and `rerank`".to_owned()),
        }
    }
}

pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embed(prompts: &[(&str, &str)], default: Option<&str>) -> Task {
        let kind = TaskKind::Embed { dimensions: 2, normalized: true, matryoshka_dimensions: Vec::new() };
        let prompts = prompts.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect();
        Task { prompts, default_prompt_name: default.map(str::to_owned), ..Task::new(kind, 8) }
    }

    fn refusal(task: &Task) -> String {
        task.validate_reading().expect_err("it does not fit").to_string()
    }

    #[test]
    fn prompts_are_few_short_texts_by_names_and_the_default_is_one_of_them() {
        let two = [("query", "Instruct: find\nQuery:"), ("passage", "")];
        assert!(embed(&two, Some("query")).validate_reading().is_ok());
        let long = "x".repeat(MAX_PROMPT_BYTES + 1);
        for (task, complaint) in [
            (embed(&two, Some("quary")), "`default_prompt_name` is `quary`, none of the prompts (passage, query)"),
            (embed(&[("a", &long)], None), "prompt `a` has 4097 bytes, more than 4096"),
            (embed(&[("a\nb", "x")], None), "the name of prompt `a\\nb` must be one short line"),
            (embed(&[("", "x")], None), "the name of prompt `` must be one short line"),
            (embed(&[("a", "x\0")], None), "prompt `a` has a control character in it"),
        ] {
            assert!(refusal(&task).ends_with(complaint), "{}", refusal(&task));
        }
        let names: Vec<String> = (0..=MAX_PROMPTS).map(|n| n.to_string()).collect();
        let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "x")).collect();
        assert!(refusal(&embed(&many, None)).ends_with("`prompts` has 65 entries, more than 64"));
    }

    #[test]
    fn what_a_task_has_no_use_for_is_refused() {
        let rerank = |name: &str| Task { kind: TaskKind::Rerank, ..embed(&[(name, "x")], None) };
        assert!(rerank("query").validate_reading().is_ok());
        assert!(
            refusal(&rerank("passage"))
                .ends_with("prompt `passage`: a reranker has one for `query` and one for `document`")
        );
        let items = TaskKind::Recommend { items: vec!["a".to_owned(), "b".to_owned()] };
        let recommend = Task { truncation: Truncation::Left, ..Task::new(items, 8) };
        assert!(refusal(&recommend).contains("of a history"));
        let labels = TaskKind::Classify {
            labels: vec!["a".to_owned(), "b".to_owned()],
            flagged: None,
            pairs: false,
            thresholds: Vec::new(),
        };
        let prompted = Task { kind: labels, ..embed(&[("query", "x")], None) };
        assert!(refusal(&prompted).ends_with("`prompts` are for the tasks `embed` and `rerank`"));
        let single = Task { pair_truncation: PairTruncation::OnlySecond, ..embed(&[], None) };
        assert!(refusal(&single).contains("`pair_truncation` is for"));
    }
}
