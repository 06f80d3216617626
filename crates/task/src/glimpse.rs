use highroad_eval::drift::Observation;

use crate::input::Row;
use crate::{Answer, Input, Prepared};

/// How much of a text is looked at for its language.
const MOST_LANGUAGE_BYTES: usize = 1 << 10;

/// What is taken of an input, while it is being answered, to be looked at later and elsewhere. Cheap to take: the head of a text, its
/// tokens, or how bright a picture is.
pub struct Glimpse {
    head: String,
    n_chars: Option<usize>,
    n_bytes: Option<usize>,
    tokens: Vec<u32>,
    /// Of a picture; its pixels are not held on to, since many may wait.
    light: Option<[(&'static str, f64); 2]>,
    truncated: bool,
}

impl Glimpse {
    /// Of an input, before it is prepared.
    pub fn of(input: &Input) -> Self {
        let (head, n_chars, n_bytes) = match input {
            Input::Text(text) | Input::Prompted { text, .. } => (head(text), Some(text.chars().count()), None),
            Input::Pair { query, document } => {
                (head(query) + "\n" + &head(document), Some(query.chars().count() + document.chars().count()), None)
            }
            Input::Tokens(_) | Input::Tensors(_) => (String::new(), None, None),
            Input::Image(bytes) => (String::new(), None, Some(bytes.len())),
        };
        Self { head, n_chars, n_bytes, tokens: Vec::new(), light: None, truncated: false }
    }

    /// The same with what the program takes.
    #[must_use]
    pub fn prepared(self, prepared: &Prepared) -> Self {
        match &prepared.row {
            Row::Tokens { ids, .. } => Self { tokens: ids.clone(), truncated: prepared.truncated, ..self },
            Row::Pixels { values, .. } => Self { light: Some(light(values)), ..self },
            Row::Tensors(_) => self,
        }
    }

    /// What is to be counted, with the answer; `unknown_id` is the tokenizer's. Detects the language, which takes some 20 µs.
    pub fn observe(self, answer: &Answer, unknown_id: Option<u32>) -> Observation {
        let mut seen = Observation::default();
        seen.numbers.extend(self.n_chars.map(|n| ("n_chars", n as f64)));
        seen.numbers.extend(self.n_bytes.map(|n| ("image_bytes", n as f64)));
        if !self.head.trim().is_empty() {
            seen.classes.push(("language", language(&self.head).to_owned()));
        }
        if !self.tokens.is_empty() {
            let n = self.tokens.len() as f64;
            seen.numbers.push(("n_tokens", n));
            if let Some(unknown) = unknown_id {
                let n_unknown = self.tokens.iter().filter(|&&id| id == unknown).count();
                seen.numbers.push(("unknown_tokens", n_unknown as f64 / n));
            }
            seen.classes.push(("truncated", if self.truncated { "yes" } else { "no" }.to_owned()));
        }
        seen.tokens = self.tokens;
        seen.numbers.extend(self.light.into_iter().flatten());
        match answer {
            Answer::Class { scores, .. } | Answer::Labels { scores, .. } => {
                seen.classes.push(("label", answer.label().unwrap_or_default().into_owned()));
                let most = scores.iter().copied().fold(f32::MIN, f32::max);
                seen.numbers.push(("confidence", f64::from(most)));
            }
            Answer::Embedding { vector } => seen.vector.clone_from(vector),
            Answer::Tensors(_) => {}
            Answer::Relevance { .. } => {
                seen.numbers.extend(answer.score().map(|score| ("relevance", f64::from(score))));
            }
        }
        seen
    }
}

/// Mean and standard deviation of pixels as the program takes them.
fn light(values: &[f32]) -> [(&'static str, f64); 2] {
    let n = values.len().max(1) as f64;
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let variance = values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
    [("brightness", mean), ("contrast", variance.sqrt())]
}

fn head(text: &str) -> String {
    let mut end = text.len().min(MOST_LANGUAGE_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// ISO 639-3; `und` where the text is too short to tell.
fn language(text: &str) -> &'static str {
    match whatlang::detect(text) {
        Some(info) if info.is_reliable() => info.lang().code(),
        _ => "und",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(seen: &Observation, signal: &str) -> String {
        seen.classes.iter().find(|(name, _)| *name == signal).map(|(_, class)| class.clone()).unwrap_or_default()
    }

    #[test]
    fn a_text_gives_length_language_tokens_and_the_answer() {
        let text = "Die Straße führt über den Berg und endet am Fluss, an dem wir gestern lange gesessen haben.";
        let prepared = Prepared::tokens(vec![101, 7, 100, 102], Vec::new(), true);
        let answer = Answer::Class { label: "benign".to_owned(), scores: vec![0.25, 0.75] };
        let seen = Glimpse::of(&Input::Text(text.to_owned())).prepared(&prepared).observe(&answer, Some(100));
        assert_eq!((class(&seen, "language"), class(&seen, "truncated")), ("deu".to_owned(), "yes".to_owned()));
        assert_eq!(class(&seen, "label"), "benign");
        let expected = [
            ("n_chars", text.chars().count() as f64),
            ("n_tokens", 4.0),
            ("unknown_tokens", 0.25),
            ("confidence", 0.75),
        ];
        assert_eq!(seen.numbers, expected);
        assert_eq!(seen.tokens, [101, 7, 100, 102]);
    }

    #[test]
    fn a_text_is_cut_between_characters_and_a_short_one_has_no_language() {
        let text = "ß".repeat(MOST_LANGUAGE_BYTES);
        let glimpse = Glimpse::of(&Input::Text(format!("a{text}")));
        assert!(glimpse.head.len() < MOST_LANGUAGE_BYTES && glimpse.n_chars == Some(MOST_LANGUAGE_BYTES + 1));
        assert_eq!(language("ok"), "und");
    }

    #[test]
    fn a_picture_gives_its_light() {
        let prepared = Prepared::pixels(vec![0.0, 2.0, 0.0, 2.0].into(), 1);
        let answer = Answer::Relevance { logit: 0.0 };
        let seen = Glimpse::of(&Input::Image(vec![0; 9].into())).prepared(&prepared).observe(&answer, None);
        assert_eq!(seen.numbers, [("image_bytes", 9.0), ("brightness", 1.0), ("contrast", 1.0), ("relevance", 0.5)]);
        assert!(seen.classes.is_empty() && seen.tokens.is_empty());
    }
}
