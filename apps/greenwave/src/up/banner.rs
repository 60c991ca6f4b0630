use std::{
    io::{IsTerminal, Write, stdout},
    net::SocketAddr,
    path::Path,
};

use super::plan::Plan;
use crate::config::Config;

/// Says on standard output where everything is, and what to try.
pub(crate) fn print(
    plan: &Plan,
    config: &Config,
    (edge, dashboard): (SocketAddr, SocketAddr),
    control: &Path,
) {
    let (bold, plain) = if stdout().is_terminal() { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    let scheme = if config.edge.proxy.tls.certificate.as_os_str().is_empty() { "http" } else { "https" };
    let edge = format!("{scheme}://{edge}");
    let mut text = format!(
        "\n{bold}Greenwave is up{plain}: {}\n\n  service    {bold}{edge}{plain}\n  dashboard  {bold}http://{dashboard}{plain}\n  control    {}\n\nTry it:\n\n",
        plan.description,
        control.display(),
    );
    for arguments in plan.tries {
        text.push_str(&format!("  curl {}\n", arguments.replace("{edge}", &edge)));
    }
    text.push_str(
        "\n`greenwave ps`, `logs`, `reload` and `scale` talk to it. Ctrl-C stops it in good order.\n\n",
    );
    // A closed standard output is no reason to stop.
    let _ = stdout().write_all(text.as_bytes());
    let _ = stdout().flush();
}
