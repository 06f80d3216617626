use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use highroad_assess::{GoldenSet, Lock};
use jiff::Timestamp;
use serde::Serialize;

use super::path_or_declared;
use crate::commands::eval::print_json;
use crate::outln;

/// Answer for the cases as they are: gates take a golden set only as a person blessed it.
#[derive(clap::Args)]
pub struct Args {
    /// The golden set; the one of highroad.toml unless told.
    golden: Option<PathBuf>,
    /// Who answers for the cases.
    #[arg(long, value_name = "NAME")]
    by: String,
    /// Why they are right: what was looked at, or what changed.
    #[arg(long, value_name = "TEXT")]
    why: String,
    /// Print the blessing as JSON.
    #[arg(long)]
    json: bool,
}

/// Longest name and reason: both stand on one line of a review.
const MAX_CHARS: usize = 500;

#[derive(Serialize)]
struct Report<'a> {
    lock: String,
    n_cases: usize,
    #[serde(flatten)]
    changes: &'a highroad_assess::Changes,
    blessing: &'a highroad_assess::Blessing,
}

impl Args {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        check_text("--by", &self.by)?;
        check_text("--why", &self.why)?;
        let path = path_or_declared(self.golden.as_deref())?;
        let golden = GoldenSet::read(&path)?;
        let previous = Lock::read(&path).map_err(|error| super::with_way_out(error, &path))?;
        let at = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let lock = Lock::bless(&golden, &self.by, &at, &self.why, previous.as_ref());
        let changes = match &previous {
            Some(previous) => previous.changes(&golden),
            None => highroad_assess::Changes { added: golden.ids(), ..Default::default() },
        };
        let kept = previous.filter(|_| changes.is_empty());
        let lock = match kept {
            Some(kept) => {
                eprintln!("nothing changed since {} blessed it at {}", kept.blessing.by, kept.blessing.at);
                kept
            }
            None => {
                lock.write(&path)?;
                eprintln!("{} blessed {} case(s): {changes}", self.by, golden.cases.len());
                lock
            }
        };
        self.report(&lock, &changes, &Lock::path_of(&path).display().to_string())?;
        Ok(ExitCode::SUCCESS)
    }

    fn report(&self, lock: &Lock, changes: &highroad_assess::Changes, path: &str) -> anyhow::Result<()> {
        if self.json {
            let report = Report { lock: path.to_owned(), n_cases: lock.cases.len(), changes, blessing: &lock.blessing };
            return print_json(&report);
        }
        outln!("{path}");
        Ok(())
    }
}

fn check_text(flag: &str, text: &str) -> anyhow::Result<()> {
    let fits = !text.trim().is_empty() && text.chars().count() <= MAX_CHARS && !text.contains(char::is_control);
    if !fits {
        bail!("{flag} must be 1 to {MAX_CHARS} printable characters");
    }
    Ok(())
}
