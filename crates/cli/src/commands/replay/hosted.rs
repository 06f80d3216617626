//! Answers of hosted models: asked again where that is wanted, and compared, as nothing about them can be promised.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::{Context as _, bail};
use highroad_hosted::{Client, Hosted, Tokens, pause_before_retry};
use highroad_package::Digest;
use highroad_serve::hosted::{Heard, HostedRecord, Question, Said};
use highroad_serve::request_log::Record;
use serde_json::{Value, json};

use super::MISMATCH;
use super::sources::Sources;
use crate::commands::eval::print_json;
use crate::outln;

/// What is said of every comparison with a host.
pub const PROMISE: &str = "compared, not promised";

/// Whether hosts may be asked, and what that may cost and has cost.
pub struct Asking {
    pub allowed: bool,
    most: Option<f64>,
    spent: Mutex<Spent>,
}

/// What asking hosts has cost.
#[derive(Clone, Debug, Default)]
pub struct Spent {
    cost: f64,
    currency: Option<String>,
    n_requests: u64,
    tokens: Tokens,
}

/// What a replay is given beside the record.
pub struct Asked<'a> {
    pub case: &'a [u8],
    pub with: Option<&'a str>,
    pub served: Option<&'a [u8]>,
}

impl Asking {
    pub fn new(allowed: bool, most: Option<f64>) -> Self {
        Self { allowed, most, spent: Mutex::default() }
    }

    /// Asks until there is an answer or the description's tries are over; never where the dearest outcome of a try would pass the limit.
    pub async fn ask(&self, hosted: &Hosted, question: &Question) -> anyhow::Result<Heard> {
        let client = Client::new(hosted.clone())?;
        for n_tries in 1.. {
            self.reserve(hosted, question.most())?;
            let (body, json_bytes) = question.body();
            let came = match client.forward(question.path(), Default::default(), body, json_bytes).await {
                Ok(incoming) => {
                    let json_bytes = incoming.json_bytes();
                    incoming.whole().await.map(|body| (body, json_bytes))
                }
                Err(fault) => Err(fault),
            };
            let fault = match came {
                Ok((body, json_bytes)) => {
                    let heard = question.read(body, json_bytes).map_err(|reason| client.told(&reason));
                    let usage = heard.as_ref().ok().and_then(|heard| heard.usage).unwrap_or(question.most());
                    self.count(hosted, usage);
                    return heard
                        .map_err(|reason| anyhow::anyhow!("the host of `{}` gave no answer: {reason}", hosted.model));
                }
                Err(fault) => fault,
            };
            if fault.may_have_cost() {
                self.count(hosted, question.most());
            }
            if !fault.is_passing() || n_tries > hosted.limits.retries {
                bail!("the host of `{}` does not answer, after {n_tries} tries: {}", hosted.model, fault.message);
            }
            let wait = fault.retry_after.unwrap_or_else(|| pause_before_retry(n_tries));
            if wait > std::time::Duration::from_secs(hosted.limits.wait_s) {
                bail!("the host of `{}` asks to wait {} s: {}", hosted.model, wait.as_secs(), fault.message);
            }
            tokio::time::sleep(wait).await;
        }
        unreachable!("a loop without an end ends by returning")
    }

    fn reserve(&self, hosted: &Hosted, most: Tokens) -> anyhow::Result<()> {
        let Some(limit) = self.most else { return Ok(()) };
        let Some(price) = &hosted.price else {
            bail!("`{}` has no [price], so nobody knows what asking it costs: leave out `--max-cost`", hosted.model);
        };
        let spent = self.spent();
        if spent.currency.as_ref().is_some_and(|currency| *currency != price.currency) {
            bail!("`--max-cost` holds for one currency, and the hosted models have several");
        }
        if spent.cost + price.of(most) > limit {
            bail!(
                "asking `{}` may cost up to {:.6} {} more, {:.6} are spent and {limit} allowed",
                hosted.model,
                price.of(most),
                price.currency,
                spent.cost
            );
        }
        Ok(())
    }

    fn count(&self, hosted: &Hosted, tokens: Tokens) {
        let mut spent = self.spent.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        spent.n_requests += 1;
        spent.tokens = Tokens { input: spent.tokens.input + tokens.input, output: spent.tokens.output + tokens.output };
        if let Some(price) = &hosted.price {
            spent.cost += price.of(tokens);
            spent.currency = Some(price.currency.clone());
        }
    }

    fn spent(&self) -> Spent {
        self.spent.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// What it has cost, for reports; `None` where nobody was asked.
    pub fn cost(&self) -> Option<Value> {
        let Spent { cost, currency, n_requests, tokens } = self.spent();
        let cost = currency.as_ref().map(|_| cost);
        (n_requests > 0)
            .then(|| json!({ "requests": n_requests, "tokens": tokens, "cost": cost, "currency": currency }))
    }

    /// The same in words.
    pub fn cost_line(&self) -> Option<String> {
        let Spent { cost, currency, n_requests, tokens } = self.spent();
        let price = currency.map_or_else(|| "no price is known".to_owned(), |currency| format!("{cost:.6} {currency}"));
        (n_requests > 0).then(|| {
            format!("{price} for {} tokens in and {} out of {n_requests} request(s)", tokens.input, tokens.output)
        })
    }
}

/// Whether a host was asked what the record says; `None` where the record is older than that.
pub fn asked_the_same(record: &HostedRecord, question: &Question) -> Option<bool> {
    record.request.map(|digest| digest == question.digest())
}

/// Replays the answer of a hosted member.
pub async fn replay(
    sources: &Sources,
    record: &Record,
    asked: &Asked<'_>,
    asking: &Asking,
    is_json: bool,
) -> anyhow::Result<ExitCode> {
    let Some(hosted_record) = &record.hosted else { bail!("`{}` is no answer of a hosted model", record.request_id) };
    if !asking.allowed {
        // Says why, as for everybody else who wants the package.
        let refusal = sources.served(record).await.err();
        let refusal = refusal.context("a hosted answer has no package")?;
        bail!("{refusal}\nhint: `--ask-host` asks it again, which costs what it costs, and compares");
    }
    let hosted = sources.hosted(&record.package).await?;
    let question = Question::of_case(&hosted, asked.case)?;
    if asked_the_same(hosted_record, &question) == Some(false) {
        let why = "the host was asked something else: the case is not the request that was sent, so nobody was asked";
        match is_json {
            true => print_json(&json!({ "request": record, "promise": PROMISE, "asked_the_same": false, "why": why }))?,
            false => outln!("{why}"),
        }
        return Ok(ExitCode::from(MISMATCH));
    }
    let served = asked.served.map(|reply| served_answer(record, &question, reply)).transpose()?;
    let heard = asking.ask(&hosted, &question).await?;
    let other = match asked.with {
        Some(with) => Some((with, ask_other(with, asked.case, asking).await?)),
        None => None,
    };
    let found =
        Found { record, hosted: &hosted, hosted_record, served: served.as_ref(), heard: &heard, other: other.as_ref() };
    if is_json {
        print_json(&found.json(asking))?;
    } else {
        found.print(asking);
    }
    Ok(if found.is_same() { ExitCode::SUCCESS } else { ExitCode::from(MISMATCH) })
}

/// What the client got, if it is what the record says was served: a reply, or the text of one.
fn served_answer(record: &Record, question: &Question, reply: &[u8]) -> anyhow::Result<Heard> {
    let heard = question.read(reply.to_vec(), None).or_else(|reason| {
        let text = String::from_utf8(reply.to_vec()).map_err(|_| reason)?;
        let digests = vec![Digest::of(text.as_bytes())];
        Ok::<_, String>(Heard { digests, said: vec![Said::Text(text)], usage: None, served_by: None })
    });
    let heard = heard.map_err(|reason| anyhow::anyhow!("the file of `--answer` is no reply: {reason}"))?;
    if heard.digests != record.outputs {
        bail!("the file of `--answer` is not what request `{}` was answered", record.request_id);
    }
    Ok(heard)
}

async fn ask_other(with: &str, case: &[u8], asking: &Asking) -> anyhow::Result<Heard> {
    if !Path::new(with).is_file() {
        bail!("`--with {with}`: beside a hosted answer stands that of another description, a file");
    }
    let hosted = Hosted::read(Path::new(with))?;
    let question = Question::of_case(&hosted, case)?;
    asking.ask(&hosted, &question).await
}

/// What a replay of one hosted answer found.
struct Found<'a> {
    record: &'a Record,
    hosted: &'a Hosted,
    hosted_record: &'a HostedRecord,
    served: Option<&'a Heard>,
    heard: &'a Heard,
    other: Option<&'a (&'a str, Heard)>,
}

impl Found<'_> {
    fn is_same(&self) -> bool {
        self.heard.digests == self.record.outputs
    }

    fn why(&self) -> String {
        let same = match (self.is_same(), self.served.and_then(|served| similarity(served, self.heard))) {
            (true, _) => "the same answer".to_owned(),
            (false, None) => {
                "another answer (`--answer FILE`, the reply that the client got, says how far apart they are)"
                    .to_owned()
            }
            (false, Some(similarity)) => format!("another answer, {:.1} % alike", 100.0 * similarity),
        };
        format!("{same}; {PROMISE}")
    }

    fn json(&self, asking: &Asking) -> Value {
        json!({
            "request": self.record,
            "promise": PROMISE,
            "asked_the_same": self.hosted_record.request.map(|_| true),
            "same_answer": self.is_same(),
            "similarity": self.served.and_then(|served| similarity(served, self.heard)),
            "why": self.why(),
            "answers": answers(self.heard),
            "served_by": { "then": self.hosted_record.served_by, "now": self.heard.served_by },
            "with": self.other.map(|(with, heard)| json!({
                "reference": with, "answers": answers(heard), "similarity": similarity(self.heard, heard),
            })),
            "spent": asking.cost(),
            "description": { "digest": self.record.package, "model": self.hosted.model, "host": self.hosted.base_url },
        })
    }

    fn print(&self, asking: &Asking) {
        outln!("{}", self.why());
        for (digest, said) in self.heard.digests.iter().zip(&self.heard.said) {
            outln!("  {:<10} {}  {}", self.hosted.model, brief(said), digest.short());
        }
        if let Some((with, heard)) = self.other {
            for (digest, said) in heard.digests.iter().zip(&heard.said) {
                outln!("  {with:<10} {}  {}", brief(said), digest.short());
            }
            if let Some(similarity) = similarity(self.heard, heard) {
                outln!("  (these two are {:.1} % alike)", 100.0 * similarity);
            }
        }
        outln!("  answer  {} by `{}` at {}", self.record.request_id, self.record.member, self.record.time);
        outln!("    host  {} as `{}`, {}", self.hosted.base_url, self.hosted.model, self.record.package);
        let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "not said".to_owned());
        outln!("   model  then {}, now {}", name(&self.hosted_record.served_by), name(&self.heard.served_by));
        if let Some(line) = asking.cost_line() {
            outln!("    cost  {line}");
        }
    }
}

/// How alike the answers are, on average; `None` where they are of two kinds.
fn similarity(one: &Heard, other: &Heard) -> Option<f64> {
    let pairs = one.said.iter().zip(&other.said);
    let similarities = pairs.map(|(one, other)| one.similarity(other)).collect::<Option<Vec<f64>>>()?;
    let is_whole = one.said.len() == other.said.len() && !similarities.is_empty();
    is_whole.then(|| similarities.iter().sum::<f64>() / similarities.len() as f64)
}

fn answers(heard: &Heard) -> Vec<Value> {
    let both = heard.digests.iter().zip(&heard.said);
    both.map(|(digest, said)| json!({ "answer": said, "digest": digest })).collect()
}

/// Longest text that is printed whole, in characters.
const MAX_CHARS: usize = 200;

/// An answer on one line.
pub fn brief(said: &Said) -> String {
    match said {
        Said::Text(text) => format!("{:?}", highroad_assess::report::one_line(text, MAX_CHARS)),
        Said::Vector(vector) => format!("a vector of {} values", vector.len()),
        Said::Moderation { flagged, score } => {
            format!("{} {score:.6}", if *flagged { "flagged" } else { "not flagged" })
        }
        Said::Relevance(logit) => format!("{logit:.6}"),
        Said::Label { label, score } => format!("{label} {score:.6}"),
        Said::Tensors => "tensors".to_owned(),
    }
}
