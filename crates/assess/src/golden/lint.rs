//! What is wrong with a golden set before any model has answered it.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use highroad_data::Image;
use highroad_eval::Expected;
use highroad_package::Digest;
use highroad_task::Input;
use serde::Serialize;

use super::near::{Texts, normalised};
use super::pictures::Fingerprint;
use super::{GoldenCase, GoldenInput, GoldenSet};
use crate::GoldenError;

/// What counts as too much alike, too small and too uneven.
#[derive(Clone, Copy, Debug)]
pub struct LintOptions {
    /// Least share of common shingles (0 to 1) of near copies.
    pub near: f64,
    /// Least share of equal bits (0 to 1) in the fingerprints of pictures that are near copies.
    pub near_image: f64,
    /// Fewest cases of a slice that a gate rule could say anything about.
    pub fewest_in_slice: usize,
    /// Least share of cases that a label should have, as a part of an even share.
    pub least_of_even_share: f64,
}

impl Default for LintOptions {
    fn default() -> Self {
        Self { near: 0.8, near_image: 0.95, fewest_in_slice: 30, least_of_even_share: 0.1 }
    }
}

/// Something that a person should look at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What kind of thing it is.
    pub kind: Kind,
    /// The cases it is about; of a slice or a label none.
    pub cases: Vec<String>,
    /// Where the same text lies in training data: file and record, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// Share of common shingles, cosine of the embeddings, or share of equal bits in the fingerprints of images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub similarity: Option<f64>,
    /// In words.
    pub message: String,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// A gate on this set would say what is not so.
    Error,
    /// Worth a look.
    Warning,
}

/// The kinds of findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Kind {
    Contradiction,
    Duplicate,
    NearDuplicate,
    Leak,
    NearLeak,
    EmbeddingDuplicate,
    EmbeddingLeak,
    UnknownLabel,
    UnusedLabel,
    RareLabel,
    SmallSlice,
    Unreadable,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Contradiction => "contradiction",
            Self::Duplicate => "duplicate",
            Self::NearDuplicate => "near duplicate",
            Self::Leak => "leak",
            Self::NearLeak => "near leak",
            Self::EmbeddingDuplicate => "same meaning",
            Self::EmbeddingLeak => "leak by meaning",
            Self::UnknownLabel => "unknown label",
            Self::UnusedLabel => "unused label",
            Self::RareLabel => "rare label",
            Self::SmallSlice => "small slice",
            Self::Unreadable => "unreadable image",
        })
    }
}

/// What the golden set says about itself: copies and near copies, contradictions, labels and slices.
///
/// `known` are the labels of a model, where one is at hand. Holds all texts in memory, and one picture at a time; errors if they
/// can no longer be read.
pub fn lint(golden: &GoldenSet, known: Option<&[String]>, options: &LintOptions) -> Result<Vec<Finding>, GoldenError> {
    let Asked { questions, fingerprints, mut findings } = Asked::of(golden)?;
    findings.extend(duplicates(golden, questions, &fingerprints, options));
    findings.extend(known.into_iter().flat_map(|known| labels(golden, known)));
    findings.extend(rare_labels(golden, options.least_of_even_share));
    findings.extend(small_slices(golden, options.fewest_in_slice));
    Ok(findings)
}

impl GoldenInput {
    /// What a person reads of the input: all its texts, one a line; nothing of token ids and images.
    pub fn text(&self) -> String {
        match self {
            Self::One(Input::Text(text) | Input::Prompted { text, .. }) => text.clone(),
            Self::One(Input::Tokens(_) | Input::Image(_) | Input::Tensors(_)) => String::new(),
            Self::One(Input::Pair { query, document }) => format!("{query}\n{document}"),
            Self::Pair([a, b]) => format!("{a}\n{b}"),
            Self::Triplet(texts) => texts.join("\n"),
            Self::Prompt(messages) => {
                messages.iter().map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n")
            }
            Self::Ranking { query, documents } => {
                [query].into_iter().chain(documents).map(String::as_str).collect::<Vec<_>>().join("\n")
            }
        }
    }

    /// What makes two cases the same question: the text, both texts in either order, or the query.
    fn question(&self) -> Question {
        match self {
            Self::One(Input::Text(text) | Input::Prompted { text, .. }) => Question::Text(normalised(text)),
            Self::One(Input::Tokens(ids)) => {
                Question::Tokens(ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" "))
            }
            Self::One(Input::Image(bytes)) => Question::Image(Digest::of(bytes)),
            Self::One(Input::Tensors(arrays)) => {
                Question::Tensors(Digest::of(&serde_json::to_vec(arrays).expect("arrays are JSON")))
            }
            Self::One(Input::Pair { query, document }) => {
                Question::Text(format!("{}\n{}", normalised(query), normalised(document)))
            }
            Self::Pair([a, b]) => {
                let mut both = [normalised(a), normalised(b)];
                both.sort();
                Question::Text(both.join("\n"))
            }
            Self::Ranking { query, .. } => Question::Text(normalised(query)),
            Self::Triplet(texts) => Question::Text(texts.each_ref().map(|text| normalised(text)).join("\n")),
            Self::Prompt(_) => Question::Text(normalised(&self.text())),
        }
    }

    /// The texts that must not be trained on: not the documents of a query, which are what is searched.
    pub fn held_out(&self) -> Vec<&str> {
        match self {
            Self::One(Input::Text(text) | Input::Prompted { text, .. }) => vec![text],
            Self::One(Input::Tokens(_) | Input::Image(_) | Input::Tensors(_)) => Vec::new(),
            Self::One(Input::Pair { query, .. }) | Self::Ranking { query, .. } => vec![query],
            Self::Pair([a, b]) => vec![a, b],
            Self::Triplet(texts) => texts.iter().map(String::as_str).collect(),
            Self::Prompt(messages) => messages.iter().map(|message| message.content.as_str()).collect(),
        }
    }
}

/// Token ids and tensors are compared as they are: numbers that share digits are not near.
#[derive(PartialEq, Eq, Hash)]
enum Question {
    Text(String),
    Tokens(String),
    Image(Digest),
    Tensors(Digest),
}

/// What the cases ask, as far as it is compared.
struct Asked {
    /// Of each case.
    questions: Vec<Question>,
    /// Of the pictures that can be read, by case.
    fingerprints: HashMap<usize, Fingerprint>,
    /// Pictures that no model could be shown.
    findings: Vec<Finding>,
}

impl Asked {
    fn of(golden: &GoldenSet) -> Result<Self, GoldenError> {
        let mut this = Self { questions: Vec::new(), fingerprints: HashMap::new(), findings: Vec::new() };
        for (idx, case) in golden.cases.iter().enumerate() {
            let input = golden.input(idx)?;
            this.questions.push(input.question());
            let GoldenInput::One(Input::Image(bytes)) = &*input else { continue };
            match Image::decode(bytes) {
                Ok(image) => _ = this.fingerprints.insert(idx, Fingerprint::of(image)),
                Err(error) => this.findings.push(unreadable(case, error.to_string())),
            }
        }
        Ok(this)
    }
}

fn unreadable(case: &GoldenCase, message: String) -> Finding {
    let cases = vec![case.case.id.clone()];
    Finding { level: Level::Error, kind: Kind::Unreadable, cases, place: None, similarity: None, message }
}

/// Each case that repeats an earlier one, told once, with the earliest it repeats. Cases of one source may repeat each other:
/// the statistics know that they are not independent.
fn duplicates(
    golden: &GoldenSet,
    questions: Vec<Question>,
    fingerprints: &HashMap<usize, Fingerprint>,
    options: &LintOptions,
) -> Vec<Finding> {
    let mut first: HashMap<Question, usize> = HashMap::new();
    let mut findings = Vec::new();
    let mut distinct = Vec::new();
    let mut pictures = Vec::new();
    for (idx, question) in questions.into_iter().enumerate() {
        match first.entry(question) {
            Entry::Vacant(entry) => {
                match entry.key() {
                    Question::Text(text) => distinct.push((idx, text.clone())),
                    Question::Image(_) => {
                        pictures.extend(fingerprints.get(&idx).map(|fingerprint| (idx, *fingerprint)))
                    }
                    Question::Tokens(_) | Question::Tensors(_) => {}
                }
                entry.insert(idx);
            }
            Entry::Occupied(entry) => {
                findings.extend(same_question(&golden.cases[*entry.get()], &golden.cases[idx]));
            }
        }
    }
    let (idxs, texts): (Vec<usize>, Vec<String>) = distinct.into_iter().unzip();
    let texts = Texts::new(texts);
    for (number, &idx) in idxs.iter().enumerate() {
        let case = &golden.cases[idx];
        let mut near = texts
            .earlier(number, options.near)
            .into_iter()
            .map(|found| (&golden.cases[idxs[found.idx]], found.overlap));
        findings.extend(near.find_map(|(earlier, overlap)| near_copy(earlier, case, overlap)));
    }
    findings.extend(alike_pictures(golden, &pictures, options.near_image));
    findings
}

/// Each picture that looks like an earlier one. Every pair is compared: 256 bits each, so 10,000 pictures take a fraction of a second.
fn alike_pictures(golden: &GoldenSet, pictures: &[(usize, Fingerprint)], near: f64) -> Vec<Finding> {
    let finding = |number: usize| {
        let (idx, fingerprint) = &pictures[number];
        pictures[..number].iter().find_map(|(earlier, other)| {
            let likeness = fingerprint.likeness(other);
            let near = (likeness >= near).then(|| near_copy(&golden.cases[*earlier], &golden.cases[*idx], likeness));
            near.flatten()
        })
    };
    (0..pictures.len()).filter_map(finding).collect()
}

fn same_question(first: &GoldenCase, second: &GoldenCase) -> Option<Finding> {
    let cases = vec![first.case.id.clone(), second.case.id.clone()];
    if first.case.expected != second.case.expected {
        return Some(Finding {
            level: Level::Error,
            kind: Kind::Contradiction,
            cases,
            place: None,
            similarity: Some(1.0),
            message: format!("one question, two answers: {}", answers(first, second)),
        });
    }
    (!share_a_source(first, second)).then(|| Finding {
        level: Level::Error,
        kind: Kind::Duplicate,
        cases,
        place: None,
        similarity: Some(1.0),
        message: "one question counted twice: remove one, or give both the same `source`".to_owned(),
    })
}

fn near_copy(first: &GoldenCase, second: &GoldenCase, overlap: f64) -> Option<Finding> {
    let agree = first.case.expected == second.case.expected;
    if agree && share_a_source(first, second) {
        return None;
    }
    let (kind, message) = if agree {
        let message = "nearly one question: keep one, or give both the same `source`".to_owned();
        (Kind::NearDuplicate, message)
    } else {
        (Kind::Contradiction, format!("nearly one question, two answers: {}", answers(first, second)))
    };
    let cases = vec![first.case.id.clone(), second.case.id.clone()];
    Some(Finding { level: Level::Warning, kind, cases, place: None, similarity: Some(overlap), message })
}

fn share_a_source(first: &GoldenCase, second: &GoldenCase) -> bool {
    first.source.is_some() && first.source == second.source
}

fn answers(first: &GoldenCase, second: &GoldenCase) -> String {
    [first, second].map(|case| in_words(&case.case.expected)).join(" and ")
}

/// A right answer in a few words.
pub fn in_words(expected: &Expected) -> String {
    match expected {
        Expected::Label(label) => format!("\"{label}\""),
        Expected::Number(number) => number.to_string(),
        Expected::Tensors { tensors, tolerances } => {
            let within = tolerances.iter().map(|(name, tolerance)| format!("; {name} within {tolerance}"));
            crate::report::tensors_in_words(tensors) + &within.collect::<String>()
        }
        Expected::References(references) => match references.as_slice() {
            [] => "what a program or a judge decides".to_owned(),
            [one] => format!("\"{one}\""),
            several => format!("{} references", several.len()),
        },
        Expected::Labels(labels) if labels.is_empty() => "no label".to_owned(),
        Expected::Labels(labels) => labels.join(", "),
        Expected::Implied => "the positive text".to_owned(),
        Expected::Relevances(relevances) => {
            let relevant = relevances.iter().filter(|&&relevance| relevance > 0).count();
            format!("{relevant} of {} documents relevant", relevances.len())
        }
    }
}

fn labels(golden: &GoldenSet, known: &[String]) -> Vec<Finding> {
    let known: BTreeSet<&str> = known.iter().map(String::as_str).collect();
    let expected = golden.labels();
    let finding = |level, kind, cases, message| Finding { level, kind, cases, place: None, similarity: None, message };
    let unknown = expected.iter().filter(|label| !known.contains(*label)).map(|label| {
        let message = format!("the model has no label \"{label}\"");
        finding(Level::Error, Kind::UnknownLabel, cases_with(golden, label), message)
    });
    let unused = known.iter().filter(|label| !expected.contains(*label)).map(|label| {
        let message = format!("no case expects \"{label}\", which the model may answer");
        finding(Level::Warning, Kind::UnusedLabel, Vec::new(), message)
    });
    if expected.is_empty() { Vec::new() } else { unknown.chain(unused).collect() }
}

fn cases_with(golden: &GoldenSet, label: &str) -> Vec<String> {
    let has = |case: &&GoldenCase| matches!(&case.case.expected, Expected::Label(found) if found == label);
    golden.cases.iter().filter(has).map(|case| case.case.id.clone()).collect()
}

fn rare_labels(golden: &GoldenSet, least_of_even_share: f64) -> Vec<Finding> {
    let labels = golden.labels();
    let even = golden.cases.len() as f64 / labels.len().max(1) as f64;
    let rare = |label: &&str| {
        let cases = cases_with(golden, label);
        let message = format!(
            "{} of {} cases expect \"{label}\": an even share would be {even:.0}, so what is lost here hardly shows in accuracy",
            cases.len(),
            golden.cases.len()
        );
        let is_rare = (cases.len() as f64) < least_of_even_share * even;
        let (level, kind) = (Level::Warning, Kind::RareLabel);
        is_rare.then_some(Finding { level, kind, cases, place: None, similarity: None, message })
    };
    labels.iter().filter_map(rare).collect()
}

fn small_slices(golden: &GoldenSet, fewest: usize) -> Vec<Finding> {
    let mut slices: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for case in &golden.cases {
        for slice in &case.case.slices {
            slices.entry(slice).or_default().push(case.case.id.clone());
        }
    }
    let small = slices.into_iter().filter(|(_, cases)| cases.len() < fewest);
    small
        .map(|(slice, cases)| Finding {
            level: Level::Warning,
            kind: Kind::SmallSlice,
            message: format!("slice \"{slice}\" has {} cases, and a rule on it can tell next to nothing", cases.len()),
            cases,
            place: None,
            similarity: None,
        })
        .collect()
}
