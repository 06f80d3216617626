use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::thread::available_parallelism;

use anyhow::bail;
use highroad_assess::{GoldenSet, Results};
use highroad_eval::{Models, Observed, Outcome, RuleTest, SelfTest, Simulations, self_test};

use super::{exit_code, read_gates};
use crate::commands::eval::{AnswerArgs, EngineArgs, N_TIMED, print_json};
use crate::commands::golden::{self, Unblessed};
use crate::commands::load::Files;
use crate::outln;
use crate::progress;
use crate::resolve::{Home, Target};
use crate::side::{CostArgs, How, Side};

/// Test the gate itself on your own golden set: simulated equal models must not fail, a simulated drop of one margin must
/// not pass, and three deliberately broken gates must be caught. Exit code 0: it keeps its word, 1: it does not, 3: the
/// golden set is too small to tell it from a broken gate.
#[derive(clap::Args)]
pub struct Args {
    /// A package whose answers the simulated models are made of.
    package: Target,
    /// A package of the same recipe trained with another seed: how the two differ is then known, not supposed.
    #[arg(long, value_name = "PACKAGE")]
    retrained: Option<Target>,
    /// Share of the cases on which two models of this kind differ, where there is no retrained one.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, conflicts_with = "retrained")]
    discordant: f64,
    #[command(flatten)]
    files: Files,
    /// Golden sets to simulate for each rule.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = parse_simulations)]
    simulations: usize,
    /// Seed of the simulations.
    #[arg(long, value_name = "N", default_value_t = 20_260_101)]
    seed: u64,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    answers: AnswerArgs,
    #[command(flatten)]
    cost: CostArgs,
}

/// With fewer the simulation cannot show anything.
const FEWEST_SIMULATIONS: usize = 200;
const MOST_SIMULATIONS: usize = 100_000;

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        if !(self.discordant > 0.0 && self.discordant <= 1.0) {
            bail!("--discordant {} is out of range: expected a share above 0, at most 1", self.discordant);
        }
        let (_, gates) = read_gates(self.files.gates.as_deref())?;
        let golden = golden::read(self.files.golden.as_deref(), Unblessed::Warn)?.with_slices(&gates.slices)?;
        let (home, budget) = (Home::find(), self.cost.budget());
        let results = |target: &Target, what| -> anyhow::Result<Results> {
            let how = How { answers: &self.answers, engine: &EngineArgs::default(), shards: &[] };
            Side::find(target, &home)?.answer(&how, &golden, N_TIMED, what, &budget)
        };
        let first = results(&self.package, "answering")?;
        let second = self.retrained.as_ref().map(|target| results(target, "retrained")).transpose()?;
        let tested = self.simulate(&gates, &golden, &first, second.as_ref())?;
        if self.json {
            print_json(&tested)?;
        } else {
            print(&tested, &golden, second.is_none().then_some(self.discordant));
        }
        Ok(exit_code(tested.outcome))
    }

    fn simulate(
        &self,
        gates: &highroad_eval::Gates,
        golden: &GoldenSet,
        first: &Results,
        second: Option<&Results>,
    ) -> anyhow::Result<SelfTest> {
        let labels = second.map_or(&[][..], |second| &second.labels);
        let answers: Observed = first.observed(golden, labels)?;
        let others = second.map(|second| second.observed(golden, &first.labels)).transpose()?;
        let models = match &others {
            Some(others) => Models::Retrained([&answers, others]),
            None => Models::One { answers: &answers, discordant: self.discordant },
        };
        let threads = self.answers.threads.or_else(|| available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN);
        let simulations = Simulations { n: self.simulations, seed: self.seed, threads };
        let bar = progress::bar("simulating");
        let tested = self_test(gates, &golden.cases(), models, simulations, |n_done, n_all| {
            bar.set_length(n_all as u64);
            bar.set_position(n_done as u64);
        });
        bar.finish_and_clear();
        Ok(tested?)
    }
}

fn parse_simulations(text: &str) -> Result<usize, String> {
    let n: usize = text.parse().map_err(|_| "expected a number")?;
    let fits = (FEWEST_SIMULATIONS..=MOST_SIMULATIONS).contains(&n);
    fits.then_some(n).ok_or_else(|| format!("expected {FEWEST_SIMULATIONS} to {MOST_SIMULATIONS}"))
}

fn print(tested: &SelfTest, golden: &GoldenSet, supposed: Option<f64>) {
    outln!("{}\n", sentence(tested));
    let models = match supposed {
        Some(share) => format!("one model and a supposed one that differs on {:.1} % of the cases", 100.0 * share),
        None => "two models of one recipe".to_owned(),
    };
    outln!(
        "{} simulated golden sets a rule, drawn from the {} cases of {}, answered by {models}\n",
        tested.n_simulations,
        golden.cases.len(),
        golden.name,
    );
    tested.rules.iter().for_each(print_rule);
    for broken in &tested.broken {
        let what = format!("a gate that {}", broken.fault.in_words());
        match &broken.caught_by {
            Some(promise) => outln!("caught  {what}\n        {promise}"),
            None => outln!("MISSED  {what}"),
        }
    }
}

fn print_rule(rule: &RuleTest) {
    let differ = rule.discordant.map(|share| format!(", equal models differ on {:.1} %", 100.0 * share));
    outln!("{} ({} cases{})", rule.rule, rule.n_cases, differ.unwrap_or_default());
    for kept in &rule.promises {
        outln!("{}    {}", if kept.kept { "kept  " } else { "BROKEN" }, kept.in_words());
    }
    outln!();
}

fn sentence(tested: &SelfTest) -> String {
    let broken = tested.rules.iter().flat_map(|rule| rule.promises.iter().map(move |kept| (rule, kept)));
    match tested.outcome {
        Outcome::Pass => {
            "PASS: the gate keeps its word on this golden set, and would be noticed if it were broken".to_owned()
        }
        Outcome::Fail => {
            let mut broken = broken.filter(|(_, kept)| !kept.kept);
            let first = broken.next().map(|(rule, kept)| format!("{}: {}", rule.rule, kept.in_words()));
            format!("FAIL: {}", first.unwrap_or_default())
        }
        Outcome::Inconclusive => {
            "INCONCLUSIVE: the gate keeps its word, but so few cases do not tell it from a broken one\n\
                                  hint: add cases to the golden set, or state a wider margin"
                .to_owned()
        }
    }
}
