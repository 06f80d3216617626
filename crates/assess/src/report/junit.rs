//! JUnit XML, which CI systems show as a list of tests.

use highroad_eval::Outcome;
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::{EvalReport, Fact, GateReport, MustPass, ReportError, in_one};

/// A test a rule and a test a must-pass case. A rule that is inconclusive is a failure of type `inconclusive`, as the gate does
/// not let the package pass; one whose flips are accepted is skipped.
pub fn gate_junit(report: &GateReport) -> Result<String, ReportError> {
    let mut rules = TestSuite::new("gate");
    describe(&mut rules, &report.facts);
    for check in &report.checks {
        let message = in_one(&check.reason, &check.note);
        let status = match check.outcome {
            Outcome::Pass => TestCaseStatus::success(),
            Outcome::Fail => failure("fail", &message),
            Outcome::Inconclusive if check.accepted => skipped(&message),
            Outcome::Inconclusive => failure("inconclusive", &message),
        };
        rules.add_test_case(test("highroad.gate", &check.rule, status));
    }
    document("highroad gate", vec![rules, pinned(&report.must_pass)])
}

/// A test a must-pass case; the metrics are properties.
pub fn eval_junit(report: &EvalReport) -> Result<String, ReportError> {
    let mut suite = pinned(&report.must_pass);
    describe(&mut suite, &report.facts);
    for row in &report.metrics {
        suite.add_property((format!("{} on {}", row.metric, row.cases), format!("{} ({})", row.value, row.interval)));
    }
    document("highroad eval", vec![suite])
}

fn document(name: &str, suites: Vec<TestSuite>) -> Result<String, ReportError> {
    let mut document = Report::new(name);
    document.add_test_suites(suites.into_iter().filter(|suite| suite.tests > 0 || !suite.properties.is_empty()));
    Ok(document.to_string()?)
}

fn describe(suite: &mut TestSuite, facts: &[Fact]) {
    suite.add_properties(facts.iter().map(|fact| (fact.name, fact.value.as_str())));
}

fn pinned(cases: &[MustPass]) -> TestSuite {
    let mut suite = TestSuite::new("must-pass cases");
    for case in cases {
        let wrong = || failure("wrong answer", &format!("expected {}, answered {}", case.expected, case.answered));
        let status = if case.right { TestCaseStatus::success() } else { wrong() };
        suite.add_test_case(test("highroad.must_pass", &case.case, status));
    }
    suite
}

fn test(class: &str, name: &str, status: TestCaseStatus) -> TestCase {
    let mut test = TestCase::new(name, status);
    test.set_classname(class);
    test
}

fn failure(kind: &str, message: &str) -> TestCaseStatus {
    let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
    status.set_type(kind).set_message(message);
    status
}

fn skipped(message: &str) -> TestCaseStatus {
    let mut status = TestCaseStatus::skipped();
    status.set_type("accepted").set_message(message);
    status
}
