use std::{
    io::{IsTerminal, Write, stdout},
    net::SocketAddr,
};

use super::service::Service;

/// Says on standard output where everything is, and what to try.
pub(crate) fn print(service: &Service, (edge, dashboard): (SocketAddr, SocketAddr)) {
    let (bold, plain) = if stdout().is_terminal() { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    let edge = format!("http://{edge}");
    let mut text = format!(
        "\n{bold}Greenwave is up{plain}: {}\n\n  service    {bold}{edge}{plain}\n  dashboard  {bold}http://{dashboard}{plain}\n\nTry it:\n\n",
        service.description(),
    );
    for arguments in service.tries() {
        text.push_str(&format!("  curl {}\n", arguments.replace("{edge}", &edge)));
    }
    text.push_str("\nCtrl-C stops it in good order.\n\n");
    // A closed standard output is no reason to stop.
    let _ = stdout().write_all(text.as_bytes());
    let _ = stdout().flush();
}
