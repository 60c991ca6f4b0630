use std::future::Future;
use std::time::Duration;

use tokio::time::timeout;

use crate::Error;

/// How long one statement may take. Longer means that the network or the server hangs.
const STATEMENT: Duration = Duration::from_secs(30);

pub(crate) async fn in_time<T>(statement: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    within(STATEMENT, statement).await
}

pub(crate) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    timeout(limit, call).await.map_err(|_| Error::Timeout(limit))?
}
