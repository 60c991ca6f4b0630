use std::fmt;
use std::sync::Arc;

/// Where the traceparent of a push comes from.
#[derive(Clone, Default)]
pub(crate) struct Traceparent(Option<Arc<dyn Fn() -> Option<String> + Send + Sync>>);

impl Traceparent {
    pub(crate) fn new(current: impl Fn() -> Option<String> + Send + Sync + 'static) -> Self {
        Traceparent(Some(Arc::new(current)))
    }

    /// The current one, if there is one and it may be what it says: 55 characters in the format of today, more in a
    /// later one.
    pub(crate) fn current(&self) -> Option<String> {
        let current = self.0.as_ref()?()?;
        (current.len() <= MAX_BYTES && current.bytes().all(|byte| byte.is_ascii_graphic())).then_some(current)
    }
}

/// What comes from outside is not stored without a bound.
const MAX_BYTES: usize = 256;

impl fmt::Debug for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Traceparent" } else { "None" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_traceparent_is_not_stored() {
        let current = |text: String| Traceparent::new(move || Some(text.clone())).current();
        let real = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(current(real.to_owned()).as_deref(), Some(real));
        assert_eq!(current("x".repeat(257)), None);
        assert_eq!(current("a\0b".to_owned()), None);
        assert_eq!(Traceparent::default().current(), None);
    }
}
