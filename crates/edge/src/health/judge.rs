//! What a run of checks means.

use super::CheckConfig;
use super::check::CheckFailure;
use crate::local::is_local;

/// Turns single results into a verdict.
#[derive(Debug)]
pub(crate) struct Judge {
    healthy_after: u32,
    unhealthy_after: u32,
    healthy: bool,
    // Results in a row that speak against the present verdict.
    against: u32,
}

impl Judge {
    pub(crate) fn new(config: &CheckConfig) -> Self {
        Self {
            healthy_after: config.healthy_after.max(1),
            unhealthy_after: config.unhealthy_after.max(1),
            healthy: false,
            against: 0,
        }
    }

    /// Takes in one result and says whether the server now counts as healthy.
    pub(crate) fn record(&mut self, result: &Result<(), CheckFailure>) -> bool {
        let passed = result.is_ok();
        if matches!(result, Err(CheckFailure::Connect(error)) if is_local(error)) {
            // The server was not asked.
        } else if passed == self.healthy {
            self.against = 0;
        } else {
            self.against += 1;
            let needed = if self.healthy { self.unhealthy_after } else { self.healthy_after };
            if self.against >= needed {
                self.healthy = passed;
                self.against = 0;
            }
        }
        self.healthy
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_failure_does_not_make_a_healthy_server_sick() {
        let mut judge = Judge::new(&CheckConfig::default());
        let results = [true, false, false, true, false, false, false, true];
        let verdicts = results.map(|passed| judge.record(&if passed { Ok(()) } else { failed() }));
        assert_eq!(verdicts, [true, true, true, true, true, true, false, true]);
    }

    fn failed() -> Result<(), CheckFailure> {
        Err(CheckFailure::Timeout(Duration::ZERO))
    }

    #[test]
    fn a_check_that_this_side_could_not_make_changes_no_verdict() {
        let no_descriptor = std::io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error());
        let not_made = Err(CheckFailure::Connect(no_descriptor));
        let mut judge = Judge::new(&CheckConfig { unhealthy_after: 1, ..CheckConfig::default() });
        let verdicts = [&not_made, &Ok(()), &not_made, &failed()].map(|result| judge.record(result));
        assert_eq!(verdicts, [false, true, true, false]);
    }
}
