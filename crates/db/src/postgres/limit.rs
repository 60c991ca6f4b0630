//! How long a statement may run.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::Poll,
    time::{Duration, Instant},
};

use tokio::time::{Sleep, sleep_until};

use super::connector::after;
use crate::Error;

/// Rings when a statement has run for too long. One that is set anew for each costs less than a new one: until it
/// rings, setting it later takes no lock.
pub(super) type Alarm = Pin<Box<Sleep>>;

pub(super) fn alarm() -> Alarm {
    Box::pin(sleep_until(Instant::now().into()))
}

/// Waits for an answer of the server, for as long as is `left` of `limit`; if that is zero, for ever.
///
/// When the time is up, what was sent is still under way on the connection.
pub(super) async fn within<T>(
    alarm: &mut Alarm,
    limit: Duration,
    left: Duration,
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let mut answer = pin!(answer);
    if limit.is_zero() {
        return answer.await;
    }
    alarm.as_mut().reset(after(Instant::now(), left).into());
    poll_fn(|context| match answer.as_mut().poll(context) {
        Poll::Pending => alarm.as_mut().poll(context).map(|()| Err(Error::TooLong { limit }.into_sqlx())),
        answered => answered,
    })
    .await
}
