//! What the package met where it served on this machine.

use highroad_assess::review::{LiveQuality, Monitored};
use highroad_package::{Baselines, Digest};
use highroad_serve::monitor::{MemberReport, Monitor, MonitorConfig, State};

use crate::resolve::Home;

/// Of the member that served the package and has seen the most; `None` where none did.
pub fn find(home: &Home, package: &Digest) -> Option<Monitored> {
    let (dir, baselines) = (home.path().join("monitor"), Baselines::at(home.path().join("baselines")));
    let monitor = Monitor::left_in(dir, baselines, &MonitorConfig::default());
    let of_package = monitor.reports_of(package);
    of_package.into_iter().max_by_key(|report| report.n_requests).map(|report| monitored(&report))
}

fn monitored(report: &MemberReport) -> Monitored {
    let live = report.quality.as_ref().and_then(|quality| {
        let (accuracy, bounds) = quality.accuracy.zip(quality.accuracy_always)?;
        let (baseline, is_worse) = (quality.baseline, quality.alarm.is_some());
        Some(LiveQuality { n: quality.n, accuracy: accuracy.value, bounds, baseline, is_worse })
    });
    let is_input = |signal: &str| signal != "quality";
    let findings = report.findings.iter().filter(|finding| is_input(&finding.signal));
    Monitored {
        version: format!("{} ({})", report.member, report.version),
        baseline: report.baseline.as_ref().map(|baseline| baseline.digest.clone()),
        since: report.since.clone(),
        n_requests: report.n_requests,
        judged: matches!(report.state, State::Same | State::Drifted),
        findings: findings.map(|finding| finding.message.clone()).collect(),
        live,
    }
}
