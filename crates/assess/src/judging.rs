//! A hosted model as the judge of texts.

use std::path::Path;

use highroad_data::Records;
use highroad_eval::{
    Agreement, AgreementMeasure, DifferentPairs, Expected, JudgeEvidence, JudgeMode, JudgeRule, Resamples, majority,
};
use highroad_hosted::{Budget, DescriptionError, HostedTask, Question, Reply, Said, fill};
use highroad_package::Digest;
use serde::Deserialize;
use serde_json::{Value as Json, json};

use crate::files::read_limited;
use highroad_hosted::one_of;

use crate::hosted::{Asked, Asking};
use crate::{
    AssessError, CaseAnswer, GoldenError, GoldenInput, GoldenSet, HostedModel, KeptReplies, Message, Results, Value,
};

const MAX_LABELS_BYTES: u64 = 64 << 20;
const RESAMPLES: Resamples = Resamples { n: 10_000, seed: 20_260_101 };

/// A judge that `gates.toml` declares, ready to be asked.
#[derive(Debug)]
pub struct HostedJudge<'a> {
    name: &'a str,
    rule: &'a JudgeRule,
    model: HostedModel,
    labelled: Vec<Labelled>,
    labels: Option<Digest>,
}

/// An answer that people scored; of two answers, 1 where `a` is the better one, 0 where `b` is, 0.5 for a tie.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Labelled {
    input: String,
    #[serde(default)]
    reference: String,
    answer: Option<String>,
    a: Option<String>,
    b: Option<String>,
    scores: Vec<f64>,
}

/// What is judged: one text or two.
struct Judgeable<'a> {
    case: &'a str,
    input: String,
    reference: String,
    texts: Texts<'a>,
}

#[derive(Clone, Copy)]
enum Texts<'a> {
    One(&'a str),
    Two { a: &'a str, b: &'a str },
}

/// What the repeats said about each thing that was judged.
struct Heard {
    /// Scores, those of a pair for its first text.
    scores: Vec<Vec<f64>>,
    n_unreadable: usize,
    n_turned: usize,
    n_compared: usize,
    /// The same of pairs whose two texts differ, how many those are, and how often both orders named one winner.
    of_different: OfDifferent,
    asked: Asked,
}

#[derive(Default)]
struct OfDifferent {
    n_pairs: usize,
    n_turned: usize,
    n_compared: usize,
    n_told_apart: usize,
}

impl<'a> HostedJudge<'a> {
    /// The judge called `name`; the files that `rule` names lie in `folder`.
    pub fn open(name: &'a str, rule: &'a JudgeRule, folder: &Path) -> Result<Self, AssessError> {
        let path = folder.join(&rule.model);
        let model = HostedModel::open(&path)?;
        let fits = model.hosted().task == HostedTask::Generate && model.hosted().prompt.is_none();
        if !fits {
            let reason = "a judge writes (task = \"generate\") and has its prompt in gates.toml, not here".to_owned();
            return Err(DescriptionError::Syntax { path, reason }.into());
        }
        let labels = rule.labels.as_ref().map(|file| read_labels(&folder.join(file), rule)).transpose()?;
        let (labels, labelled) = labels.map_or((None, Vec::new()), |(digest, labelled)| (Some(digest), labelled));
        Ok(Self { name, rule, model, labelled, labels })
    }

    /// The model that judges.
    pub fn model(&self) -> &HostedModel {
        &self.model
    }

    /// Judges what `candidate` and `baseline` wrote and adds the scores to their answers. First what people scored is judged;
    /// where it agrees less than is declared, nothing else is asked and this is an error.
    ///
    /// A score on a scale becomes 0 to 1; a pair's is 1 where the candidate is better, 0 where the baseline is, 0.5 for a tie
    /// or where the order decided, and the baseline's is 0.5.
    pub fn judge(
        &self,
        golden: &GoldenSet,
        candidate: &mut Results,
        baseline: Option<&mut Results>,
        kept: &mut KeptReplies,
        budget: &Budget,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<JudgeEvidence, AssessError> {
        let agreement = self.agreement(kept, budget, &mut progress)?;
        let heard = match (self.rule.mode, baseline) {
            (JudgeMode::Scale, baseline) => {
                let sides: Vec<&mut Results> = std::iter::once(candidate).chain(baseline).collect();
                self.score(golden, sides, kept, budget, &mut progress)?
            }
            (JudgeMode::Pairwise, Some(baseline)) => {
                self.compare(golden, candidate, baseline, kept, budget, &mut progress)?
            }
            (JudgeMode::Pairwise, None) => return Err(AssessError::NoPair { judge: self.name.to_owned() }),
        };
        Ok(self.evidence(heard, agreement))
    }

    fn score(
        &self,
        golden: &GoldenSet,
        sides: Vec<&mut Results>,
        kept: &mut KeptReplies,
        budget: &Budget,
        progress: &mut impl FnMut(usize, usize),
    ) -> Result<Heard, AssessError> {
        let mut judgeables = Vec::new();
        for results in &sides {
            for (idx, text) in texts_of(results)?.into_iter().enumerate() {
                judgeables.push(judgeable(golden, idx, Texts::One(text))?);
            }
        }
        let heard = self.hear(&judgeables, kept, budget, progress)?;
        drop(judgeables);
        let [least, most] = self.rule.scale.map(f64::from);
        let mut means = heard.scores.iter().map(|scores| (mean(scores) - least) / (most - least));
        for results in sides {
            self.write(results, &mut means);
        }
        Ok(heard)
    }

    fn compare(
        &self,
        golden: &GoldenSet,
        candidate: &mut Results,
        baseline: &mut Results,
        kept: &mut KeptReplies,
        budget: &Budget,
        progress: &mut impl FnMut(usize, usize),
    ) -> Result<Heard, AssessError> {
        let pairs = texts_of(candidate)?.into_iter().zip(texts_of(baseline)?).enumerate();
        let judgeables = pairs
            .map(|(idx, (a, b))| judgeable(golden, idx, Texts::Two { a, b }))
            .collect::<Result<Vec<Judgeable<'_>>, _>>()?;
        let heard = self.hear(&judgeables, kept, budget, progress)?;
        drop(judgeables);
        self.write(candidate, &mut heard.scores.iter().map(|scores| mean(scores)));
        self.write(baseline, &mut std::iter::repeat(0.5));
        Ok(heard)
    }

    fn write(&self, results: &mut Results, scores: &mut impl Iterator<Item = f64>) {
        for (case, score) in results.cases.iter_mut().zip(scores) {
            if let Value::Generated(generated) = &mut case.value {
                generated.judged.insert(self.name.to_owned(), score);
            }
        }
    }

    fn agreement(
        &self,
        kept: &mut KeptReplies,
        budget: &Budget,
        progress: &mut impl FnMut(usize, usize),
    ) -> Result<Option<Agreement>, AssessError> {
        let Some(labels) = self.labels else { return Ok(None) };
        let judgeables: Vec<Judgeable<'_>> = self.labelled.iter().map(Labelled::judgeable).collect();
        let heard = self.hear(&judgeables, kept, budget, progress)?;
        let judged = heard.scores.iter().map(|scores| majority(scores).expect("each was scored at least once"));
        let ratings: Vec<Vec<f64>> = self
            .labelled
            .iter()
            .zip(judged)
            .map(|(people, judge)| [people.scores.as_slice(), &[judge]].concat())
            .collect();
        let measure = self.measure();
        let undefined = || AssessError::Agreement {
            judge: self.name.to_owned(),
            problem: format!("{measure} is undefined, as nobody ever scored otherwise"),
        };
        let (value, interval) = measure.with_interval(&ratings, RESAMPLES).ok_or_else(undefined)?;
        let floor = self.rule.agreement.map(|rule| rule.floor);
        if let Some(floor) = floor.filter(|floor| value < *floor) {
            let [low, high] = interval;
            let problem = format!(
                "{measure} is {value:.3} ({low:.3} to {high:.3}) on {} answers that people scored, below the floor of {floor}",
                ratings.len()
            );
            return Err(AssessError::Agreement { judge: self.name.to_owned(), problem });
        }
        Ok(Some(Agreement { measure, value, interval, floor, n_labelled: ratings.len(), labels: labels.to_string() }))
    }

    fn measure(&self) -> AgreementMeasure {
        self.rule.agreement.map_or(AgreementMeasure::AlphaOrdinal, |rule| rule.measure)
    }

    /// Asks about everything as often as is declared, pairs in both orders.
    fn hear(
        &self,
        judgeables: &[Judgeable<'_>],
        kept: &mut KeptReplies,
        budget: &Budget,
        progress: &mut impl FnMut(usize, usize),
    ) -> Result<Heard, AssessError> {
        let ask = |judgeable: &Judgeable<'_>| -> Vec<Question> {
            let orders = judgeable.orders();
            (0..self.rule.repeats)
                .flat_map(|repeat| orders.iter().map(move |texts| (repeat, *texts)))
                .map(|(repeat, texts)| self.question(judgeable, texts, repeat))
                .collect()
        };
        let askings: Vec<Asking<'_>> = judgeables
            .iter()
            .flat_map(|judgeable| ask(judgeable).into_iter().map(|question| Asking { case: judgeable.case, question }))
            .collect();
        let asked = self.model.ask_all(&askings, kept, budget, progress)?;
        let of_different = OfDifferent::default();
        let mut heard = Heard { scores: Vec::new(), n_unreadable: 0, n_turned: 0, n_compared: 0, of_different, asked };
        let n_orders = judgeables.first().map_or(1, |judgeable| judgeable.orders().len());
        let replies = std::mem::take(&mut heard.asked.replies);
        for (judgeable, replies) in judgeables.iter().zip(replies.chunks(n_orders * self.rule.repeats as usize)) {
            let before = (heard.n_turned, heard.n_compared);
            let scores: Vec<f64> = replies.chunks(n_orders).filter_map(|once| self.read(once, &mut heard)).collect();
            if judgeable.texts.differ() {
                let of = &mut heard.of_different;
                of.n_pairs += 1;
                of.n_turned += heard.n_turned - before.0;
                of.n_compared += heard.n_compared - before.1;
                of.n_told_apart += scores.iter().filter(|&&score| score != 0.5).count();
            }
            if scores.is_empty() {
                return Err(AssessError::Unreadable { judge: self.name.to_owned(), case: judgeable.case.to_owned() });
            }
            heard.scores.push(scores);
        }
        Ok(heard)
    }

    fn question(&self, judgeable: &Judgeable<'_>, texts: Texts<'_>, repeat: u32) -> Question {
        let mut values = vec![("input", judgeable.input.as_str()), ("reference", &judgeable.reference)];
        let schema = match texts {
            Texts::One(answer) => {
                values.push(("answer", answer));
                let [least, most] = self.rule.scale;
                ("score", one_of("score", json!((least..=most).collect::<Vec<i32>>())))
            }
            Texts::Two { a, b } => {
                values.extend([("a", a), ("b", b)]);
                ("winner", one_of("winner", json!(["A", "B", "tie"])))
            }
        };
        let hosted = self.model.hosted();
        let prompt = fill(&self.rule.prompt, &values);
        let system = hosted.system.iter().map(|system| ("system", system.as_str()));
        let turns: Vec<(&str, &str)> = system.chain([("user", prompt.as_str())]).collect();
        Question::chat(hosted, &turns, repeat, Some(schema))
    }

    /// One repeat: the score of a text, or what both orders of two say about the first.
    fn read(&self, replies: &[Reply], heard: &mut Heard) -> Option<f64> {
        let said = |reply: &Reply| match &reply.said {
            Said::Text { text, .. } if self.rule.mode == JudgeMode::Scale => score_in(text, self.rule.scale),
            Said::Text { text, .. } => winner_in(text),
            _ => None,
        };
        let read: Vec<Option<f64>> = replies.iter().map(said).collect();
        heard.n_unreadable += read.iter().filter(|score| score.is_none()).count();
        match read.as_slice() {
            [score] => *score,
            [Some(of_a), Some(turned)] => {
                let of_a_again = 1.0 - turned;
                let is_same = *of_a == of_a_again;
                heard.n_compared += 1;
                heard.n_turned += usize::from(!is_same);
                Some(if is_same { *of_a } else { 0.5 })
            }
            _ => None,
        }
    }

    fn evidence(&self, heard: Heard, agreement: Option<Agreement>) -> JudgeEvidence {
        let n_judged = heard.scores.len();
        let disagree = heard.scores.iter().filter(|scores| scores.iter().any(|score| *score != scores[0])).count();
        let is_pairwise = self.rule.mode == JudgeMode::Pairwise;
        let OfDifferent { n_pairs, n_turned, n_compared, n_told_apart } = heard.of_different;
        let share = |n: usize| n as f64 / n_compared.max(1) as f64;
        let different = DifferentPairs { n: n_pairs, order_decided: share(n_turned), told_apart: share(n_told_apart) };
        let mut scores: Vec<f64> = heard.scores.iter().flatten().copied().collect();
        scores.sort_by(f64::total_cmp);
        scores.dedup();
        JudgeEvidence {
            name: self.name.to_owned(),
            model: self.model.digest().to_string(),
            prompt: Digest::of(self.rule.prompt.as_bytes()).to_string(),
            mode: self.rule.mode,
            scale: if is_pairwise { [0, 1] } else { self.rule.scale },
            repeats: self.rule.repeats,
            n_judged,
            n_unreadable: heard.n_unreadable,
            self_disagreement: disagree as f64 / n_judged.max(1) as f64,
            position_inconsistency: is_pairwise.then(|| heard.n_turned as f64 / heard.n_compared.max(1) as f64),
            different: is_pairwise.then_some(different),
            n_different_scores: (!is_pairwise).then_some(scores.len()),
            agreement,
            hosted: heard.asked.evidence,
        }
    }
}

impl Labelled {
    fn judgeable(&self) -> Judgeable<'_> {
        let texts = match (&self.answer, &self.a, &self.b) {
            (_, Some(a), Some(b)) => Texts::Two { a, b },
            (answer, ..) => Texts::One(answer.as_deref().unwrap_or_default()),
        };
        Judgeable { case: &self.input, input: self.input.clone(), reference: self.reference.clone(), texts }
    }

    fn check(&self, rule: &JudgeRule) -> Result<(), String> {
        let texts = (self.answer.is_some(), self.a.is_some(), self.b.is_some());
        let [least, most] = rule.scale.map(f64::from);
        let (fits, of_scale) = match rule.mode {
            JudgeMode::Scale => (texts == (true, false, false), least..=most),
            JudgeMode::Pairwise => (texts == (false, true, true), 0.0..=1.0),
        };
        if !fits {
            return Err("expected an `answer` for a scale, or `a` and `b` for a pair".to_owned());
        }
        if self.scores.is_empty() || self.scores.iter().any(|score| !of_scale.contains(score)) {
            return Err(format!("expected `scores` of {} to {}", of_scale.start(), of_scale.end()));
        }
        let of_two = rule.agreement.is_some_and(|rule| rule.measure.is_of_two());
        if of_two && self.scores.len() != 1 {
            return Err("a kappa is of two, the judge and one person: expected one score; alpha takes more".to_owned());
        }
        Ok(())
    }
}

impl Texts<'_> {
    /// Whether there are two, and not the same one twice.
    fn differ(self) -> bool {
        matches!(self, Self::Two { a, b } if a.trim() != b.trim())
    }
}

impl<'a> Judgeable<'a> {
    /// A pair is asked in both orders, as judges prefer places.
    fn orders(&self) -> Vec<Texts<'a>> {
        match self.texts {
            Texts::Two { a, b } => vec![self.texts, Texts::Two { a: b, b: a }],
            one @ Texts::One(_) => vec![one],
        }
    }
}

fn read_labels(path: &Path, rule: &JudgeRule) -> Result<(Digest, Vec<Labelled>), AssessError> {
    let bytes =
        read_limited(path, MAX_LABELS_BYTES).map_err(|source| AssessError::Io { path: path.to_owned(), source })?;
    let mut labelled = Vec::new();
    for record in Records::<Labelled, _>::new(bytes.as_slice(), path) {
        let (line, record) = record.map_err(GoldenError::from)?;
        let case = |reason| GoldenError::Case { path: path.to_owned(), line, reason };
        record.check(rule).map_err(case)?;
        labelled.push(record);
    }
    if labelled.is_empty() {
        return Err(GoldenError::Empty(path.to_owned()).into());
    }
    Ok((Digest::of(&bytes), labelled))
}

fn texts_of(results: &Results) -> Result<Vec<&str>, AssessError> {
    let wrong = |case: &CaseAnswer| AssessError::OtherAnswer { case: case.id.clone() };
    results.cases.iter().map(|case| first_text(case).ok_or_else(|| wrong(case))).collect()
}

fn first_text(case: &CaseAnswer) -> Option<&str> {
    let Value::Generated(generated) = &case.value else { return None };
    generated.texts.first().map(String::as_str)
}

fn judgeable<'a>(golden: &'a GoldenSet, idx: usize, texts: Texts<'a>) -> Result<Judgeable<'a>, AssessError> {
    let case = &golden.cases[idx];
    let input = match &*golden.input(idx)? {
        GoldenInput::Prompt(messages) => conversation(messages),
        _ => String::new(),
    };
    let reference = match &case.case.expected {
        Expected::References(references) => references.join("\n"),
        _ => String::new(),
    };
    Ok(Judgeable { case: &case.case.id, input, reference, texts })
}

/// One message as it is, several with who said them.
fn conversation(messages: &[Message]) -> String {
    match messages {
        [only] => only.content.clone(),
        several => {
            several.iter().map(|Message { role, content }| format!("{role}: {content}")).collect::<Vec<_>>().join("\n")
        }
    }
}

fn mean(scores: &[f64]) -> f64 {
    scores.iter().sum::<f64>() / scores.len() as f64
}

/// The score of a reply: `score` of an object, else the first number in the text, if it is a whole one of the scale.
fn score_in(text: &str, [least, most]: [i32; 2]) -> Option<f64> {
    let object: Option<Json> = serde_json::from_str(text).ok();
    let told = object.as_ref().and_then(|object| object.get("score")?.as_f64());
    let score = told.or_else(|| first_number(text))?;
    (score.fract() == 0.0 && (f64::from(least)..=f64::from(most)).contains(&score)).then_some(score)
}

fn first_number(text: &str) -> Option<f64> {
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let digits = &text[start..];
    let end = digits.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(digits.len());
    let number: f64 = digits[..end].trim_end_matches('.').parse().ok()?;
    Some(if text[..start].ends_with('-') { -number } else { number })
}

/// 1 for A, 0 for B, 0.5 for a tie: `winner` of an object, else the only one of these words in the text.
fn winner_in(text: &str) -> Option<f64> {
    const SAID: [(&str, f64); 3] = [("A", 1.0), ("B", 0.0), ("tie", 0.5)];
    let object: Option<Json> = serde_json::from_str(text).ok();
    let told = object.as_ref().and_then(|object| object.get("winner")?.as_str()).unwrap_or(text);
    let words: Vec<&str> = told.split(|c: char| !c.is_alphanumeric()).collect();
    let mut named = SAID.iter().filter(|(word, _)| words.contains(word));
    named.next().filter(|_| named.next().is_none()).map(|(_, score)| *score)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_is_a_whole_number_of_the_scale() {
        let scale = [1, 5];
        for (text, score) in [
            ("4", Some(4.0)),
            ("Score: 5/5", Some(5.0)),
            ("{\"score\": 2}", Some(2.0)),
            ("I give it a 3.", Some(3.0)),
            ("4.5", None),
            ("-3", None),
            ("10", None),
            ("{\"score\": 9}", None),
            ("none", None),
        ] {
            assert_eq!(score_in(text, scale), score, "{text}");
        }
    }

    #[test]
    fn a_winner_is_named_alone() {
        for (text, score) in [
            ("A", Some(1.0)),
            ("**B**", Some(0.0)),
            ("{\"winner\": \"tie\"}", Some(0.5)),
            ("It is a tie.", Some(0.5)),
            ("A or B", None),
            ("Answers", None),
        ] {
            assert_eq!(winner_in(text), score, "{text}");
        }
    }
}
