//! Foreign text as a report may show it: bounded, on one line where it must be, obeyed by nothing.

use std::collections::BTreeMap;

use highroad_eval::{Array, Observed, Rankings};
use highroad_task::Input;

use crate::golden::thumbnail;
use crate::{GoldenInput, Results, Value};

/// Most characters of a case's text in a report.
pub(super) const MOST_CHARS: usize = 600;
/// Most characters of a document that stands beside its rank.
const MOST_DOCUMENT_CHARS: usize = 160;

/// At most `n_chars` characters of `text`. Lines stay; other control characters, and those that turn the direction of the
/// text around them, are shown as what they are.
pub fn text(text: &str, n_chars: usize) -> String {
    cut(text, n_chars, |c| c == '\n' || c == '\t')
}

/// The same on one line.
pub fn one_line(text: &str, n_chars: usize) -> String {
    cut(text, n_chars, |_| false)
}

fn cut(text: &str, n_chars: usize, keep: impl Fn(char) -> bool) -> String {
    let mut chars = text.chars();
    let mut shown = String::new();
    for c in chars.by_ref().take(n_chars.saturating_sub(1)) {
        push(&mut shown, c, &keep);
    }
    match (chars.next(), chars.next()) {
        (Some(last), None) => push(&mut shown, last, &keep),
        (Some(_), Some(_)) => shown.push('…'),
        (None, _) => {}
    }
    shown
}

fn push(shown: &mut String, c: char, keep: &impl Fn(char) -> bool) {
    match c {
        c if keep(c) => shown.push(c),
        '\n' | '\r' | '\t' => shown.push(' '),
        // Embeddings, overrides and isolates (UAX #9): what makes text read as another text.
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => shown.push_str(&format!("[U+{:04X}]", u32::from(c))),
        c if c.is_control() => shown.push('\u{fffd}'),
        c => shown.push(c),
    }
}

/// What a case asks, in at most `n_chars` characters.
pub fn asked(input: &GoldenInput, n_chars: usize) -> String {
    let two = |left: &str, right: &str| {
        let each = n_chars.saturating_sub(3) / 2;
        format!("{} | {}", text(left, each), text(right, each))
    };
    match input {
        GoldenInput::One(Input::Text(asked) | Input::Prompted { text: asked, .. }) => text(asked, n_chars),
        GoldenInput::One(Input::Tokens(ids)) => format!("{} token ids", ids.len()),
        GoldenInput::One(Input::Image(bytes)) => format!("image of {} bytes", bytes.len()),
        GoldenInput::One(Input::Pair { query, document }) => two(query, document),
        GoldenInput::One(Input::Tensors(arrays)) => text(&tensors_in_words(arrays), n_chars),
        GoldenInput::Ranking { query, .. } => text(query, n_chars),
        GoldenInput::Pair([a, b]) => two(a, b),
        GoldenInput::Triplet(texts) => {
            let each = n_chars.saturating_sub(6) / 3;
            texts.each_ref().map(|one| text(one, each)).join(" | ")
        }
        GoldenInput::Prompt(messages) => text(messages.last().map_or("", |last| &last.content), n_chars),
    }
}

/// The first few numbers of each tensor, after its name.
pub fn tensors_in_words(arrays: &BTreeMap<String, Array>) -> String {
    const MOST_NUMBERS: usize = 4;
    let one = |(name, array): (&String, &Array)| {
        let first: Vec<String> = array.values().iter().take(MOST_NUMBERS).map(|value| format!("{value:.4}")).collect();
        let more = if array.values().len() > MOST_NUMBERS { ", …" } else { "" };
        format!("{name} {:?}: {}{more}", array.shape(), first.join(", "))
    };
    arrays.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// A small copy of what a case shows, as an address that a page may hold; `None` of a text.
pub fn picture(input: &GoldenInput) -> Option<String> {
    match input {
        GoldenInput::One(Input::Image(bytes)) => thumbnail(bytes),
        _ => None,
    }
}

/// What `results` answer to case `idx`, which asks `input`: a label and its score, a similarity, or the rank of a most relevant document and the
/// document that came first.
pub fn in_words(results: &Results, input: &GoldenInput, observed: &Observed, idx: usize) -> String {
    match (&results.cases[idx].value, input, observed) {
        (Value::Class { label, scores }, ..) => {
            let position = results.labels.iter().position(|name| name == label);
            let score = position.and_then(|position| scores.get(position));
            score.map_or_else(|| label.clone(), |score| format!("{label} ({score:.3})"))
        }
        (Value::Similarity(similarity), ..) => format!("{similarity:.3}"),
        (Value::Triplet([positive, negative]), ..) => format!("{positive:.3} against {negative:.3}"),
        (Value::Number(number), ..) => format!("{number:.3}"),
        (Value::Tensors(arrays), ..) => text(&tensors_in_words(arrays), MOST_CHARS),
        (Value::Generated(generated), ..) => text(generated.texts.first().map_or("", String::as_str), MOST_CHARS),
        (Value::Scores(scores), GoldenInput::Ranking { documents, .. }, Observed::Rankings(rankings)) => {
            ranked(rankings, idx, first(documents, scores))
        }
        (Value::Scores(_), ..) => String::new(),
    }
}

/// The document of the highest score; the first of those.
fn first<'a>(documents: &'a [String], scores: &[f64]) -> &'a str {
    let highest = (0..scores.len()).rev().max_by(|&left, &right| scores[left].total_cmp(&scores[right]));
    highest.and_then(|idx| documents.get(idx)).map_or("", String::as_str)
}

fn ranked(rankings: &Rankings, idx: usize, first: &str) -> String {
    let document = text(first, MOST_DOCUMENT_CHARS);
    match rankings.best_rank(idx) {
        Some(1) => "rank 1".to_owned(),
        Some(rank) => format!("rank {rank}; first came: {document}"),
        None => format!("none is relevant; first came: {document}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_and_says_so() {
        assert_eq!((one_line("abc", 3), one_line("abcd", 3)), ("abc".to_owned(), "ab…".to_owned()));
        assert_eq!(one_line(&"x".repeat(1 << 20), 10).chars().count(), 10);
    }

    #[test]
    fn what_a_terminal_or_a_reader_would_obey_is_shown_instead() {
        assert_eq!(one_line("a\u{1b}[31m\nb\u{202e}c", 40), "a\u{fffd}[31m b[U+202E]c");
        assert_eq!(text("a\r\nb", 40), "a \nb");
    }
}
