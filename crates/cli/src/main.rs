//! The `highroad` command: parses arguments and hands over to one file per subcommand.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

mod access;
mod commands;
mod engine;
mod environment;
mod following;
mod out;
mod pages;
mod progress;
mod record;
mod repo;
mod reports;
mod resolve;
mod rules;
mod serving;
mod side;
mod standard;
mod template;
mod tensors;
mod tracking;
mod training;
mod trust;
mod verdicts;

// A server's memory stays near what it was over a million mixed requests (benches/load.py): under the system's allocator and under mimalloc, which
// keep pages for each thread, it goes on growing for longer. How soon free pages go back is set in .cargo/config.toml.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The paved road for PyTorch: from research to production on one artifact, one runtime and one verdict.
#[derive(Parser)]
#[command(name = "highroad", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

// One line a subcommand; each variant wraps the `Args` struct of its file, which has `fn run(self) -> anyhow::Result<ExitCode>`.
#[derive(Subcommand)]
enum Command {
    /// Measure how long a program takes to load and to answer, and which operators take the time.
    Bench(commands::bench::Args),
    /// Make a model repo from the blessed starter.
    New(commands::new::Args),
    /// Bring a newer starter into this repo: a three-way merge that keeps what was changed here.
    Update(commands::update::Args),
    /// Check this machine and this repo against highroad.toml.
    Doctor(commands::doctor::Args),
    /// Show the standard this repo follows, compare it, pin it anew, print its schema.
    Standard(commands::standard::Args),
    /// Train under torchrun, tracked and resumable; prints the run's id.
    Train(commands::train::Args),
    /// Show where the time of a training step goes, and whether torch.compile pays.
    ProfileTrain(commands::profile_train::Args),
    /// List, show, compare and export tracked runs.
    Runs(commands::runs::Args),
    /// Train again what a run trained: its code, environment and data; exit code 1 where the result differs.
    Reproduce(commands::reproduce::Args),
    /// Export, pack and prove the trained model; prints the package's digest.
    Export(commands::export::Args),
    /// Export again with another PyTorch, or another lock file, and tell what changes: pass 0, fail 1, too few cases to tell 3.
    Upgrade(commands::upgrade::Args),
    /// Run a program on tensors from a file.
    Run(commands::run::Args),
    /// Compare a program with what eager PyTorch computed; exit code 1 where they differ.
    Verify(commands::verify::Args),
    /// List the operators that programs may use.
    Ops(commands::ops::Args),
    /// Print the completion script of a shell.
    Completions(commands::completions::Args),
    /// Tell what a program or package is: inputs, outputs, weights, operators, graph.
    Inspect(commands::inspect::Args),
    /// Pack a package source into an immutable package and print its digest.
    Pack(commands::pack::Args),
    /// Make and show keys that sign packages, and check who signed one.
    Keys(commands::keys::Args),
    /// Sign a package; its digest stays what it is.
    Sign(commands::sign::Args),
    /// Answer a golden set: metrics with 95 % intervals, per slice, latency and throughput.
    Eval(commands::eval::Args),
    /// Judge a candidate against a baseline, case by case: pass 0, fail 1, too few cases to tell 3.
    Gate(commands::gate::Command),
    /// Keep golden sets: bless what a person answers for, find duplicates and leaks, add, edit and compare cases.
    Golden(commands::golden::Args),
    /// Load a package as the [traffic] of gates.toml declares: latency, throughput, memory and cost.
    Load(commands::load::Args),
    /// Whether what members meet is as in their baselines; exit code 1 with --fail-on-drift while it is not.
    Monitor(commands::monitor::Command),
    /// Write the model review from evidence; exit code 1 where a required line does not hold.
    Review(commands::review::Command),
    /// Move an alias of a registered model to a version that its gate admits, or that a named person overrides it for.
    Promote(commands::promote::Args),
    /// Try a version on live traffic, in the shadow or as a canary, and promote or abort it on what is seen.
    Deploy(commands::deploy::Command),
    /// Show which version each alias names, and which indexes and verdicts on pipelines are due because of it; exit code 1 if any is.
    Status(commands::status::Args),
    /// Show who moved which alias, when, why, and on what evidence.
    Audit(commands::audit::Args),
    /// Put a package and its verdicts into the registry as a model version, or send it to an OCI registry, a bucket or a folder.
    Push(commands::push::Args),
    /// Bring a package into the local store.
    Pull(commands::pull::Args),
    /// Take packages out of the local store that no version, alias, verdict or deployment names.
    Gc(commands::gc::Args),
    /// Move an alias back to the version it named before.
    Rollback(commands::rollback::Args),
    /// Run the tracking server and model registry that MLflow clients speak to.
    Track(commands::track::Args),
    /// Serve models: OpenAI embeddings and moderations, reranking, Open Inference Protocol v2, metrics.
    Serve(commands::serve::Args),
    /// Tracking, registry, pages and serving in one process on one port.
    Up(commands::up::Args),
    /// Check a portfolio before a server takes it up.
    Portfolio(commands::portfolio::Args),
    /// Make, list and revoke the API keys of a server.
    Access(commands::access::Args),
    /// Embed documents into an index that pipelines search.
    Index(commands::index::Command),
    /// Compute a served answer again, bit for bit, and show the chain behind it.
    Replay(commands::replay::Args),
}

/// Exit code for a usage or environment error; 1 is a gate that failed or a mismatch, 3 a gate that is inconclusive.
const USAGE_OR_ENVIRONMENT: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Bench(args) => args.run(),
        Command::New(args) => args.run(),
        Command::Update(args) => args.run(),
        Command::Doctor(args) => args.run(),
        Command::Standard(args) => args.run(),
        Command::Train(args) => args.run(),
        Command::ProfileTrain(args) => args.run(),
        Command::Runs(args) => args.run(),
        Command::Reproduce(args) => args.run(),
        Command::Export(args) => args.run(),
        Command::Upgrade(args) => args.run(),
        Command::Run(args) => args.run(),
        Command::Verify(args) => args.run(),
        Command::Ops(args) => args.run(),
        Command::Completions(args) => args.run(Cli::command()),
        Command::Inspect(args) => args.run(),
        Command::Pack(args) => args.run(),
        Command::Keys(args) => args.run(),
        Command::Sign(args) => args.run(),
        Command::Eval(args) => args.run(),
        Command::Gate(args) => args.run(),
        Command::Golden(args) => args.run(),
        Command::Load(args) => args.run(),
        Command::Monitor(args) => args.run(),
        Command::Review(args) => args.run(),
        Command::Promote(args) => args.run(),
        Command::Deploy(args) => args.run(),
        Command::Status(args) => args.run(),
        Command::Audit(args) => args.run(),
        Command::Push(args) => args.run(),
        Command::Pull(args) => args.run(),
        Command::Gc(args) => args.run(),
        Command::Rollback(args) => args.run(),
        Command::Track(args) => args.run(),
        Command::Serve(args) => args.run(),
        Command::Up(args) => args.run(),
        Command::Portfolio(args) => args.run(),
        Command::Access(args) => args.run(),
        Command::Index(args) => args.run(),
        Command::Replay(args) => args.run(),
    };
    result.unwrap_or_else(|error| {
        // Told by itself, not as the cause of something else, it is about stdout.
        if error.chain().len() == 1 && error.downcast_ref().is_some_and(out::is_left) {
            return ExitCode::from(out::NOBODY_READS);
        }
        out::tell(&format!("error: {}", describe(&error)));
        ExitCode::from(USAGE_OR_ENVIRONMENT)
    })
}

/// The error and its causes on one line. A cause that the text before it tells already (many errors hold what lies beneath in
/// their own sentence) is not told again.
pub(crate) fn describe(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |told, cause| {
        let cause = cause.to_string();
        match told.as_str() {
            "" => cause,
            _ if told.contains(cause.trim_end()) => told,
            _ => format!("{told}: {cause}"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_told_once() {
        let inner =
            anyhow::anyhow!("no such file").context("cannot read the file: no such file").context("cannot load `m`");
        assert_eq!(describe(&inner), "cannot load `m`: cannot read the file: no such file");
    }
}
