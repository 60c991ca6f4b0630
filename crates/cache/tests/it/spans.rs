use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex},
};

use greenwave_cache::Cache;
use tracing::{
    Instrument, Subscriber,
    field::{Field, Visit},
    info_span,
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{
    Layer, Registry,
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
};

use crate::support::{Failed, Gate, Source};

/// What was said about the loads: their fields, their parents, and who followed them.
#[derive(Clone, Default)]
struct Loads(Arc<Mutex<Vec<String>>>);

struct Fields<'a>(&'a mut BTreeMap<&'static str, String>);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }
}

impl<S: Subscriber + for<'s> LookupSpan<'s>> Layer<S> for Loads {
    fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, context: Context<'_, S>) {
        if attributes.metadata().name() == "cache.load" {
            let mut fields = BTreeMap::new();
            attributes.record(&mut Fields(&mut fields));
            let parent = context.current_span().metadata().map(|span| span.name());
            self.0.lock().unwrap().push(format!("{fields:?} in {parent:?}"));
        }
    }

    fn on_record(&self, _: &Id, values: &Record<'_>, _: Context<'_, S>) {
        let mut fields = BTreeMap::new();
        values.record(&mut Fields(&mut fields));
        self.0.lock().unwrap().push(format!("{fields:?}"));
    }

    fn on_follows_from(&self, span: &Id, follows: &Id, context: Context<'_, S>) {
        let name = |id| context.span(id).map(|span| span.name());
        self.0.lock().unwrap().push(format!("{:?} follows {:?}", name(span), name(follows)));
    }
}

#[tokio::test]
async fn a_loads_span_tells_who_began_it_and_how_many_waited() {
    let loads = Loads::default();
    let _subscriber = tracing::subscriber::set_default(Registry::default().with(loads.clone()));
    let (cache, gate) = (Cache::<u64, u64>::builder("test").build(), Gate::new());
    let leader = cache
        .get_or_load(&1, || Source::default().load_behind(gate.clone(), 7))
        .instrument(info_span!("leader"));
    let waiters = async {
        gate.arrival().await;
        let wait = || cache.get_or_load(&1, || Source::default().load(8)).instrument(info_span!("waiter"));
        tokio::join!(wait(), wait(), async { gate.open() })
    };
    let (leader, _) = tokio::join!(leader, waiters);
    assert_eq!(leader.unwrap().as_deref(), Some(&7));
    cache.settled().await;
    assert_eq!(
        *loads.0.lock().unwrap(),
        [
            r#"{"cache": "\"test\""} in Some("leader")"#,
            r#"Some("waiter") follows Some("cache.load")"#,
            r#"Some("waiter") follows Some("cache.load")"#,
            r#"{"waiters": "2"}"#,
        ]
    );
}

#[tokio::test]
async fn a_load_runs_in_its_span() {
    let _subscriber = tracing::subscriber::set_default(Registry::default());
    let name = || async { Ok::<_, Failed>(tracing::Span::current().metadata().map(|span| span.name())) };
    let cache = Cache::<u64, &'static str>::builder("test").build();
    assert_eq!(cache.get_or_load(&1, name).await.unwrap().as_deref(), Some(&"cache.load"));
}
