use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use greenwave_lab::{Arms, BoxError, Experiment, Lab, cli};
use rustix::process::{Pid, Signal, kill_process};

#[derive(clap::Parser)]
struct Program {
    #[command(flatten)]
    run: cli::RunArgs,
}

/// Set in the process that the test starts, of this program again.
const HANG: &str = "GREENWAVE_TEST_HANG";

/// The command line over a set-up that cannot be stopped, in the process that the next test starts; nothing elsewhere.
#[tokio::test]
async fn a_run_that_hangs() {
    use clap::Parser;

    if std::env::var_os(HANG).is_none() {
        return;
    }

    let experiment = Experiment::new("hangs", "Hangs", "Does it hang?", |setup| async move {
        setup.note("set-up begun");
        setup.shield(std::future::pending::<Result<Arms, BoxError>>()).await
    });
    let args = Program::parse_from(["lab", "hangs"]);
    cli::run_in(&Lab::new().with(experiment), args.run).await.unwrap();
}

#[test]
fn a_second_ctrl_c_ends_a_run_whose_clean_up_hangs() {
    let mut run = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "signals::a_run_that_hangs", "--nocapture"])
        .env(HANG, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_child(&run);
    let mut said = BufReader::new(run.stderr.take().unwrap()).lines();
    let mut wait_for = |text| {
        assert!(said.any(|line| line.unwrap().starts_with(text)), "it did not say: {text}");
    };
    wait_for("set-up begun");
    kill_process(pid, Signal::INT).unwrap();
    wait_for("stopping, and removing what was created");
    kill_process(pid, Signal::INT).unwrap();
    // Without it, the clean-up would wait for half a minute, and the test fail.
    wait_for("stopped: ");
    assert_eq!(run.wait().unwrap().code(), Some(130));
}
