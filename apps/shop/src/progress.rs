use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::seed::Progress;

/// A bar on stderr, where that is a terminal; nothing elsewhere.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    pub(crate) fn new() -> Bar {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{bar:40.green} {human_pos} of {human_len} rows, {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message("writing");
        bar.enable_steady_tick(Duration::from_millis(250));
        Bar(bar)
    }

    pub(crate) fn listener(&self) -> impl Fn(Progress) + Send + Sync + use<> {
        let bar = self.0.clone();
        move |Progress { done, total }| {
            bar.set_length(total);
            bar.set_position(done);
            if done >= total {
                bar.set_message("adding keys and the index");
            }
        }
    }

    pub(crate) fn finish(&self) {
        self.0.finish_and_clear();
    }
}
