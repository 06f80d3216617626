//! Progress for people: on stderr, and only on a terminal.

use std::sync::Arc;

use highroad_package::remote::{Progress, Step};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar that says what is under way. Draws nothing where stderr is no terminal.
pub fn bar(what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {bar:40} {pos}/{len} {eta}").expect("the template is well formed");
    // `stderr` draws only on a terminal.
    ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr()).with_style(style).with_message(what.to_owned())
}

/// A bar of bytes, and what moves it.
pub fn transfer(what: &str) -> (ProgressBar, Progress) {
    let style = ProgressStyle::with_template("{msg} {bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    let bar = bar(what).with_style(style.expect("the template is well formed"));
    let moved = bar.clone();
    let progress: Progress = Arc::new(move |step| match step {
        Step::Total(n_bytes) => moved.set_length(n_bytes),
        Step::Bytes(n_bytes) => moved.inc(n_bytes),
    });
    (bar, progress)
}

/// The same for inputs that are answered, with how many a second.
pub fn bar_of_inputs(who: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {bar:40} {pos}/{len} {per_sec} {eta}");
    bar(who).with_style(style.expect("the template is well formed"))
}

/// Shows how many of how many are done. Another message begins another count.
pub fn show(bar: &ProgressBar, message: String, [n_done, n_all]: [usize; 2]) {
    if bar.message() != message {
        bar.set_message(message);
        bar.reset();
    }
    bar.set_length(n_all as u64);
    bar.set_position(n_done as u64);
}
