//! Names of servers, looked up again and again.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::telemetry::PROXY_TARGET;

/// A look-up that takes longer has failed.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between two look-ups at least, and until the next one while there was none that succeeded.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// Looks a name up every `interval` and tells its addresses, in order, whenever they are others than before. A failed
/// look-up, or one without addresses, changes nothing.
pub(crate) async fn follow<L: Future<Output = io::Result<Vec<SocketAddr>>>>(
    name: &str,
    interval: Duration,
    mut lookup: impl FnMut() -> L,
    mut changed: impl FnMut(&[SocketAddr]),
) {
    let mut known = Vec::new();
    loop {
        match timeout(LOOKUP_TIMEOUT, lookup()).await {
            Ok(Ok(mut addresses)) if !addresses.is_empty() => {
                addresses.sort_unstable();
                addresses.dedup();
                if addresses != known {
                    tracing::info!(target: PROXY_TARGET, name, ?addresses, "a name has other addresses than before");
                    changed(&addresses);
                    known = addresses;
                }
            }
            Ok(Ok(_)) => tracing::warn!(target: PROXY_TARGET, name, "a name has no address"),
            Ok(Err(error)) => {
                tracing::warn!(target: PROXY_TARGET, name, %error, "a name could not be looked up")
            }
            Err(_) => {
                tracing::warn!(target: PROXY_TARGET, name, within = ?LOOKUP_TIMEOUT, "a name was not looked up in time")
            }
        }
        sleep(if known.is_empty() { MIN_INTERVAL } else { interval.max(MIN_INTERVAL) }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_changes_are_told_and_failures_change_nothing() {
        let address = |last| SocketAddr::from(([10, 0, 0, last], 80));
        let mut answers = vec![
            Ok(vec![address(2)]),
            Err(io::Error::other("no such name")),
            Ok(Vec::new()),
            Ok(vec![address(2), address(1), address(1)]),
            Ok(vec![address(1), address(2)]),
            Err(io::Error::other("the resolver is away")),
        ];
        let mut told = Vec::new();
        let lookup = || {
            let answer = answers.pop();
            async {
                match answer {
                    Some(answer) => answer,
                    None => std::future::pending().await,
                }
            }
        };
        let following =
            follow("api", Duration::from_secs(10), lookup, |addresses| told.push(addresses.to_vec()));
        assert!(timeout(Duration::from_secs(120), following).await.is_err());
        assert_eq!(told, [vec![address(1), address(2)], vec![address(2)]]);
    }
}
