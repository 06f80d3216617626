//! Answers compared word by word, as SQuAD's official script does.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::{Captures, Regex};

use super::{f1, is_space};

/// F1 of the words that two answers share, each as often as both have it. An answer without words only agrees with
/// another.
pub(crate) fn token_f1(text: &str, reference: &str) -> f64 {
    let (text, reference) = (normalised(text), normalised(reference));
    let (text, reference) = (words(&text), words(&reference));
    if text.is_empty() || reference.is_empty() {
        return f64::from(u8::from(text.is_empty() && reference.is_empty()));
    }
    let mut left: HashMap<&str, usize> = HashMap::new();
    reference.iter().for_each(|word| *left.entry(word).or_default() += 1);
    let mut take = |word: &&&str| left.get_mut(**word).filter(|count| **count > 0).map(|count| *count -= 1).is_some();
    let n_shared = text.iter().filter(|word| take(word)).count() as f64;
    f1(n_shared / text.len() as f64, n_shared / reference.len() as f64)
}

/// A run of what Python's `re` calls word characters.
static RUN: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"[\p{L}\p{N}_]+").expect("the pattern is a constant"));

/// Lower case, without ASCII punctuation and without the English articles.
fn normalised(text: &str) -> String {
    let lower = text.to_lowercase();
    let plain: String = lower.chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let without_article = |run: &Captures<'_>| match &run[0] {
        "a" | "an" | "the" => " ".to_owned(),
        other => other.to_owned(),
    };
    RUN.replace_all(&plain, without_article).into_owned()
}

fn words(text: &str) -> Vec<&str> {
    text.split(is_space).filter(|word| !word.is_empty()).collect()
}
