//! Progress for people: on stderr, and only on a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar that says what is under way. Draws nothing where stderr is no terminal.
pub fn bar(what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {bar:40} {pos}/{len} {eta}").expect("the template is well formed");
    // `stderr` draws only on a terminal.
    ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr()).with_style(style).with_message(what.to_owned())
}
