use std::{
    io::{IsTerminal, stderr},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Says on standard error that it works, where that is a terminal.
pub(super) struct Progress(Option<ProgressBar>);

impl Progress {
    pub(super) fn start(verifies: bool) -> Progress {
        Progress(stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.set_message(if verifies {
                "asking the planner, and timing the statements; Ctrl-C stops it"
            } else {
                "asking the planner"
            });
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        }))
    }

    pub(super) fn end(self) {
        if let Some(bar) = self.0 {
            bar.finish_and_clear();
        }
    }
}
