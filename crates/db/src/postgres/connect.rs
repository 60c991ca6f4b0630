//! From a URL to connection options, and from a failed wait to its cause.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sqlx::{ConnectOptions, Connection, PgConnection, postgres::PgConnectOptions};
use tokio::{sync::Mutex, time::timeout};

use crate::Error;

/// How long what a probe found answers for later callers too.
const PROBE_HOLDS_FOR: Duration = Duration::from_secs(1);
/// How long a probe may take.
const PROBE_DEADLINE: Duration = Duration::from_millis(500);

/// The parameters of a URL that sqlx knows, beside `options[…]`.
const PARAMETERS: [&str; 18] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

pub(super) fn parse(url: &str, transaction_pooling: bool) -> Result<PgConnectOptions, Error> {
    let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"));
    let rest = rest.ok_or(Error::Url(None))?;
    // A password with a bare `/`, `?` or `#` ends the authority early, and its remainder would be taken, and
    // printed, as the name of the database.
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    if rest[authority_end..].contains('@') {
        return Err(Error::Url(None));
    }
    check_parameters(rest)?;
    let options: PgConnectOptions = url.parse().map_err(|error| Error::Url(Some(error)))?;
    // Our executor reports statements; sqlx's own log would count them twice.
    let options = options.disable_statement_logging();
    if !transaction_pooling {
        return Ok(options);
    }
    if options.get_options().is_some() {
        let must = "false where the URL has `options`, which a pooling proxy refuses";
        return Err(Error::Config { field: "transaction_pooling", must });
    }
    // Nor does PgBouncer take this one at the start; and what is prepared on one of the server's connections is not
    // there on the next.
    Ok(options.extra_float_digits(None).statement_cache_capacity(0))
}

/// Refuses parameters that sqlx does not know: it would ignore them, and log them with their values.
fn check_parameters(rest: &str) -> Result<(), Error> {
    let before_fragment = rest.split('#').next().unwrap_or(rest);
    let Some((_, query)) = before_fragment.split_once('?') else { return Ok(()) };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let name = pair.split('=').next().unwrap_or(pair);
        let is_option = ["options[", "options%5B", "options%5b"].iter().any(|start| name.starts_with(start));
        if PARAMETERS.contains(&name) || is_option {
            continue;
        }
        // What is no `name=value` may be the rest of a password.
        let name = pair.split_once('=').ok_or(Error::Url(None))?.0;
        return Err(Error::UrlParameter { name: name.to_owned() });
    }
    Ok(())
}

/// What may be shown of the options.
pub(super) fn server_name(options: &PgConnectOptions) -> Arc<str> {
    let database = options.get_database().unwrap_or(options.get_username());
    match options.get_socket() {
        Some(socket) => format!("{} (database {database})", socket.display()).into(),
        None => format!("{}:{}/{database}", options.get_host(), options.get_port()).into(),
    }
}

/// Finds out, with a connection beside the pool, whether the server is to blame for a failed wait.
///
/// One probe runs at a time and its answer serves all who wait: a server in trouble is not made to answer one
/// connection more for every failed caller.
pub(super) struct Diagnosis {
    options: PgConnectOptions,
    deadline: Duration,
    last: Mutex<Option<(Instant, Option<Arc<sqlx::Error>>)>>,
}

impl Diagnosis {
    pub(super) fn new(options: PgConnectOptions, connection_timeout: Duration) -> Self {
        Self { options, deadline: PROBE_DEADLINE.min(connection_timeout), last: Mutex::new(None) }
    }

    /// What connecting fails with; `None` if it works.
    pub(super) async fn probe(&self) -> Option<Arc<sqlx::Error>> {
        let mut last = self.last.lock().await;
        if let Some((at, outcome)) = &*last
            && at.elapsed() < PROBE_HOLDS_FOR
        {
            return outcome.clone();
        }
        let outcome = match timeout(self.deadline, self.connect()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(Arc::new(error)),
            Err(elapsed) => Some(Arc::new(sqlx::Error::Io(elapsed.into()))),
        };
        *last = Some((Instant::now(), outcome.clone()));
        outcome
    }

    async fn connect(&self) -> Result<(), sqlx::Error> {
        let connection: PgConnection = self.options.connect().await?;
        connection.close().await
    }
}
