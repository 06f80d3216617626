//! BLEU as sacrebleu computes it by default: 13a tokens, n-grams up to 4, exponential smoothing.

use std::sync::LazyLock;

use regex::Regex;

use super::{is_space, n_grams};

/// Longest n-gram.
const MAX_N: usize = 4;

/// What a case adds to the corpus: its length, that of its references, then for each n the matching n-grams, then all.
pub(crate) type Sums = [f64; 2 + 2 * MAX_N];

/// Compares `text` with every reference at once: an n-gram counts as often as the reference has it that has it most, and
/// the length is that of the reference of the closest length.
pub(crate) fn sums(text: &str, references: &[String]) -> Sums {
    let text = tokens(text);
    let text: Vec<&str> = words(&text).collect();
    let references: Vec<String> = references.iter().map(|reference| tokens(reference)).collect();
    let references: Vec<Vec<&str>> = references.iter().map(|reference| words(reference).collect()).collect();
    let lengths = references.iter().map(Vec::len);
    let closest = lengths.min_by_key(|&length| (length.abs_diff(text.len()), length)).unwrap_or(0);
    let mut sums = [0.0; 2 + 2 * MAX_N];
    (sums[0], sums[1]) = (text.len() as f64, closest as f64);
    for n in 1..=MAX_N {
        let of_references: Vec<_> = references.iter().map(|reference| n_grams(reference, n)).collect();
        for (n_gram, count) in n_grams(&text, n) {
            let most = of_references.iter().filter_map(|counts| counts.get(n_gram)).max().copied().unwrap_or(0);
            sums[1 + n] += count.min(most) as f64;
            sums[1 + MAX_N + n] += count as f64;
        }
    }
    sums
}

/// BLEU of the sums over all cases, from 0 to 1.
pub(crate) fn score(sums: &Sums) -> f64 {
    let ([n_words, n_reference_words], n_grams) = ([sums[0], sums[1]], &sums[2..]);
    let (matching, all) = n_grams.split_at(MAX_N);
    if matching.iter().all(|&count| count == 0.0) || all.contains(&0.0) {
        return 0.0;
    }
    let mut smoothing = 1.0;
    let precision = |(&matching, &all): (&f64, &f64)| {
        if matching > 0.0 {
            return matching / all;
        }
        smoothing *= 2.0;
        1.0 / (smoothing * all)
    };
    let logarithms: f64 = matching.iter().zip(all).map(precision).map(f64::ln).sum();
    let brevity = (1.0 - n_reference_words / n_words).min(0.0);
    (brevity + logarithms / MAX_N as f64).exp().min(1.0)
}

/// Applied in this order by `mteval-v13a.pl`, which sacrebleu follows.
static RULES: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
    let rule = |pattern: &str| Regex::new(pattern).expect("the pattern is a constant");
    [
        // Punctuation but for the apostrophe, the comma, the hyphen and the full stop.
        (rule(r"([\x7B-\x7E\x5B-\x60\x20-\x26\x28-\x2B\x3A-\x40/])"), " $1 "),
        // Full stop and comma unless a digit comes before, then unless one comes after.
        (rule(r"([^0-9])([.,])"), "$1 $2 "),
        (rule(r"([.,])([^0-9])"), " $1 $2"),
        // A hyphen after a digit.
        (rule(r"([0-9])(-)"), "$1 $2 "),
    ]
});

/// The text with spaces between its tokens.
fn tokens(text: &str) -> String {
    let mut line = text.trim_end_matches(is_space).replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    if line.contains('&') {
        line = line.replace("&quot;", "\"").replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">");
    }
    let line = format!(" {line} ");
    RULES.iter().fold(line, |line, (pattern, spaced)| pattern.replace_all(&line, *spaced).into_owned())
}

fn words(tokens: &str) -> impl Iterator<Item = &str> {
    tokens.split(is_space).filter(|word| !word.is_empty())
}
