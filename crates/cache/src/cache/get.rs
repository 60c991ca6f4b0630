use std::{
    future::Future,
    hash::Hash,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use super::Inner;
use crate::memory::Look;

type Elsewhere<'c, V> = Pin<Box<dyn Future<Output = Option<Arc<V>>> + Send + 'c>>;

/// Looks into memory when it is first polled, and waits for the remote if there is nothing.
///
/// An async function would do the same. But one that may wait for a remote has a large frame, a jump to where it stopped
/// and much that may have to be dropped: with these a hit would cost a quarter more. So what waits is in a box, small
/// beside the round trip that it waits for.
pub(super) struct Get<'c, K, V> {
    inner: &'c Inner<K, V>,
    /// Until it is looked for.
    key: Option<&'c K>,
    elsewhere: Option<Elsewhere<'c, V>>,
}

impl<'c, K, V> Get<'c, K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    pub(super) fn new(inner: &'c Inner<K, V>, key: &'c K) -> Get<'c, K, V> {
        Get { inner, key: Some(key), elsewhere: None }
    }

    #[inline(never)]
    fn go_elsewhere(&mut self, key: &'c K, look: Look<V>) {
        self.elsewhere = Some(Box::pin(self.inner.get_elsewhere(key, look)));
    }
}

impl<K, V> Future for Get<'_, K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    type Output = Option<Arc<V>>;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Arc<V>>> {
        if let Some(key) = self.key.take() {
            match self.inner.memory.read(key) {
                Ok(value) => {
                    self.inner.metrics.hits.increment(1);
                    return Poll::Ready(value);
                }
                Err(look) => self.go_elsewhere(key, look),
            }
        }
        match &mut self.elsewhere {
            Some(elsewhere) => elsewhere.as_mut().poll(context),
            // Nobody asks again what was ready.
            None => Poll::Pending,
        }
    }
}
