use highroad_eval::drift::Observation;
use unicode_segmentation::UnicodeSegmentation as _;

use crate::input::Row;
use crate::{Answer, Input, Prepared};

/// How much of a text is looked at for its language and its words.
const MOST_LANGUAGE_BYTES: usize = 1 << 10;
/// Numbers that words get: few enough for a set of them to be 32 KB, many enough for different words to have different ones.
const N_WORD_NUMBERS: u32 = 1 << 17;
/// Why a host ended a text that it did not want to write.
const FILTERED: &str = "content_filter";

/// What is taken of an input, while it is being answered, to be looked at later and elsewhere. Cheap to take: the head of a text, its
/// tokens, or how bright a picture is.
pub struct Glimpse {
    head: String,
    n_chars: Option<usize>,
    /// Of a query, or the first text of a pair, and of what goes with it.
    of_pair: Option<[usize; 2]>,
    n_messages: Option<usize>,
    n_bytes: Option<usize>,
    tokens: Vec<u32>,
    has_words: bool,
    /// Of a picture; its pixels are not held on to, since many may wait.
    light: Option<[(&'static str, f64); 2]>,
    truncated: bool,
}

/// What is counted of a text that a model wrote; not the text.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    n_chars: usize,
    n_tokens: Option<f64>,
    finish_reason: Option<String>,
    is_empty: bool,
    is_refused: bool,
}

impl Written {
    /// Of `text` in `n_tokens` tokens, where they were counted, which ended for `finish_reason`. `calls` is whether tools are called, so that
    /// a text may be missing; `refused` whether the host says that it is a refusal, which it also does by a filter's ending it.
    pub fn of(text: &str, n_tokens: Option<f64>, finish_reason: Option<&str>, calls: bool, refused: bool) -> Self {
        Self {
            n_chars: text.chars().count(),
            n_tokens,
            finish_reason: finish_reason.map(str::to_owned),
            is_empty: text.trim().is_empty() && !calls,
            is_refused: refused || finish_reason == Some(FILTERED),
        }
    }
}

impl Glimpse {
    /// Of an input, before it is prepared.
    pub fn of(input: &Input) -> Self {
        match input {
            Input::Text(text) | Input::Prompted { text, .. } => Self::of_text(text),
            Input::Pair { query, document } => Self::of_pair(query, document),
            Input::Tokens(_) | Input::Tensors(_) => Self::nothing(),
            Input::Image(bytes) => Self { n_bytes: Some(bytes.len()), ..Self::nothing() },
        }
    }

    fn of_text(text: &str) -> Self {
        Self { head: head(text), n_chars: Some(text.chars().count()), ..Self::nothing() }
    }

    /// Of two texts side by side.
    pub fn of_pair(query: &str, document: &str) -> Self {
        let of_pair = [query, document].map(|text| text.chars().count());
        let head = head(query) + "\n" + &head(document);
        Self { head, n_chars: Some(of_pair.iter().sum()), of_pair: Some(of_pair), ..Self::nothing() }
    }

    /// Of a conversation, each message by role and text. Language and words are those of the user's last one, else of the last.
    pub fn of_messages<'a>(messages: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let (mut n_messages, mut n_chars, mut last, mut asked) = (0, 0, "", None);
        for (role, text) in messages {
            n_messages += 1;
            n_chars += text.chars().count();
            last = text;
            asked = if role == "user" { Some(text) } else { asked };
        }
        let head = head(asked.unwrap_or(last));
        Self { head, n_chars: Some(n_chars), n_messages: Some(n_messages), ..Self::nothing() }
    }

    fn nothing() -> Self {
        Self {
            head: String::new(),
            n_chars: None,
            of_pair: None,
            n_messages: None,
            n_bytes: None,
            tokens: Vec::new(),
            has_words: false,
            light: None,
            truncated: false,
        }
    }

    /// The same with the words of the head, where what the tokens are is somebody else's business.
    #[must_use]
    pub fn by_words(self) -> Self {
        Self { has_words: true, ..self }
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
        let mut seen = self.asked(unknown_id);
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

    /// The same with a text that was written.
    pub fn observe_written(self, written: Written) -> Observation {
        let mut seen = self.asked(None);
        let Written { n_chars, n_tokens, finish_reason, is_empty, is_refused } = written;
        seen.numbers.push(("answer_chars", n_chars as f64));
        seen.numbers.extend(n_tokens.map(|n| ("answer_tokens", n)));
        seen.classes.extend(finish_reason.map(|reason| ("finish_reason", reason)));
        seen.classes.push(("empty", yes_or_no(is_empty)));
        seen.classes.push(("refused", yes_or_no(is_refused)));
        seen
    }

    fn asked(self, unknown_id: Option<u32>) -> Observation {
        let mut seen = Observation::default();
        seen.numbers.extend(self.n_chars.map(|n| ("n_chars", n as f64)));
        if let Some([query, document]) = self.of_pair {
            seen.numbers.extend([("query_chars", query as f64), ("document_chars", document as f64)]);
        }
        seen.numbers.extend(self.n_messages.map(|n| ("n_messages", n as f64)));
        seen.numbers.extend(self.n_bytes.map(|n| ("image_bytes", n as f64)));
        if !self.head.trim().is_empty() {
            seen.classes.push(("language", language(&self.head).to_owned()));
        }
        if self.has_words {
            seen.words = word_numbers(&self.head);
        }
        if !self.tokens.is_empty() {
            let n = self.tokens.len() as f64;
            seen.numbers.push(("n_tokens", n));
            if let Some(unknown) = unknown_id {
                let n_unknown = self.tokens.iter().filter(|&&id| id == unknown).count();
                seen.numbers.push(("unknown_tokens", n_unknown as f64 / n));
            }
            seen.classes.push(("truncated", yes_or_no(self.truncated)));
        }
        seen.tokens = self.tokens;
        seen.numbers.extend(self.light.into_iter().flatten());
        seen
    }
}

fn yes_or_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

/// A number for each word, the same for the same word in any case and on any machine, which does not give the word back.
fn word_numbers(text: &str) -> Vec<u32> {
    let number = |word: &str| crc32fast::hash(word.to_lowercase().as_bytes()) % N_WORD_NUMBERS;
    text.unicode_words().map(number).collect()
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
    fn a_conversation_is_about_what_the_user_said_last_and_its_answer_is_only_measured() {
        let turns = [("system", "Be brief."), ("user", "Wie spät ist es?"), ("assistant", "Fünf."), ("tool", "{}")];
        let glimpse = || Glimpse::of_messages(turns).by_words();
        let written = Written::of("It is five.", Some(4.0), Some("stop"), false, false);
        let seen = glimpse().observe_written(written);
        assert_eq!(
            seen.numbers,
            [("n_chars", 32.0), ("n_messages", 4.0), ("answer_chars", 11.0), ("answer_tokens", 4.0)]
        );
        assert_eq!(seen.words, word_numbers("wie SPÄT ist, es"));
        let told = ["finish_reason", "empty", "refused"].map(|signal| class(&seen, signal));
        assert_eq!(told, ["stop", "no", "no"]);
        for (text, reason, calls, refused, expected) in [
            (" ", "stop", false, false, ["yes", "no"]),
            ("", "tool_calls", true, false, ["no", "no"]),
            ("I can't.", "stop", false, true, ["no", "yes"]),
            ("", "content_filter", false, false, ["yes", "yes"]),
        ] {
            let seen = glimpse().observe_written(Written::of(text, None, Some(reason), calls, refused));
            assert_eq!(["empty", "refused"].map(|signal| class(&seen, signal)), expected, "{text} {reason}");
        }
    }

    #[test]
    fn a_pair_has_the_length_of_each_side() {
        let seen = Glimpse::of_pair("who", "somebody").observe(&Answer::Relevance { logit: 0.0 }, None);
        let expected = [("n_chars", 11.0), ("query_chars", 3.0), ("document_chars", 8.0), ("relevance", 0.5)];
        assert_eq!(seen.numbers, expected);
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
