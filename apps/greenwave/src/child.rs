//! Ties a supervised command's life to its supervisor's.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::PathBuf,
    process::{Command, id},
    sync::OnceLock,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use rustix::process::{Signal, getppid, set_parent_process_death_signal};

#[derive(Args)]
pub(crate) struct ChildArguments {
    /// The process whose end is the command's end.
    #[arg(long)]
    parent: u32,
    #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// This program's own file, where it was when it started: one that replaces it there is found by the same path.
pub(crate) fn this_program() -> Result<String> {
    static PATH: OnceLock<Option<PathBuf>> = OnceLock::new();
    let program = PATH.get_or_init(|| env::current_exe().ok()).clone();
    let program = program.context("cannot find this program's own file")?;
    program.into_os_string().into_string().ok().context("this program's path is not UTF-8")
}

/// Words before a command by which the kernel ends it when this process ends, however that ends.
pub(crate) fn wrapper() -> Result<Vec<String>> {
    Ok(vec![this_program()?, "child".into(), "--parent".into(), id().to_string(), "--".into()])
}

/// Fails when there is no such program; `child` itself would only find out once it has been started.
pub(crate) fn find(program: &str) -> Result<()> {
    let executable =
        |file: PathBuf| fs::metadata(file).is_ok_and(|file| file.is_file() && file.mode() & 0o111 != 0);
    let path = env::var_os("PATH").unwrap_or_default();
    let found = if program.contains('/') {
        executable(program.into())
    } else {
        env::split_paths(&path).any(|folder| executable(folder.join(program)))
    };
    if !found {
        bail!("command not found: {program}; check the spelling, or give its full path");
    }
    Ok(())
}

pub(crate) fn become_command(arguments: &ChildArguments) -> Result<()> {
    // The signal is kept over exec.
    set_parent_process_death_signal(Some(Signal::TERM))
        .context("cannot tie the command to its supervisor")?;
    let parent = getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
    if parent != Some(arguments.parent) {
        bail!("the supervisor has ended");
    }
    let [program, rest @ ..] = arguments.command.as_slice() else { bail!("no command is given") };
    let mut command = Command::new(program);
    if env::var_os("LISTEN_FDS").is_some() {
        // Inherited sockets are for the process that bears this number, which the command keeps.
        command.env("LISTEN_PID", id().to_string());
    }
    Err(command.args(rest).exec()).with_context(|| format!("cannot run {}", program.display()))
}
