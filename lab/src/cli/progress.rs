use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::Step;

/// Shows a run on standard error: a bar where it is a terminal, else a line for each note.
pub(super) fn observer(title: &str, rounds: u32) -> impl Fn(Step<'_>) + Send + Sync + 'static {
    let bar = std::io::stderr().is_terminal().then(|| bar(title, rounds));
    move |step| match &bar {
        Some(bar) => draw(bar, step),
        None => match step {
            Step::Note(text) => eprintln!("{text}"),
            Step::Warning(text) => eprintln!("warning: {text}"),
            _ => {}
        },
    }
}

fn bar(title: &str, rounds: u32) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{spinner} {prefix} [{bar:24}] {pos}/{len} rounds {elapsed} {msg}");
    let bar = ProgressBar::with_draw_target(Some(u64::from(rounds) * 2), ProgressDrawTarget::stderr());
    // A template that does not parse is a fault of this line alone; the plain bar is good enough then.
    let bar = bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(title.to_owned());
    bar.set_message("setting up");
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn draw(bar: &ProgressBar, step: Step<'_>) {
    match step {
        Step::Note(text) => bar.suspend(|| eprintln!("{text}")),
        Step::Warning(text) => bar.suspend(|| eprintln!("warning: {text}")),
        Step::SettingUp { done, total } => {
            bar.set_message(format!("setting up, {} %", done.saturating_mul(100) / total.max(1)));
        }
        Step::RoundStarted { side, label, .. } => bar.set_message(format!("{side}: {label}")),
        Step::RoundEnded { .. } => bar.inc(1),
        Step::CleaningUp => bar.finish_and_clear(),
    }
}
