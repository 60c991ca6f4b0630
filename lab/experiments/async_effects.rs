//! Effects after the answer: the shop's `POST /orders`, whose notification and lower stock are written inside the
//! request, and the same deferred by an event.
//!
//! Before, the naive shop: the order and its effects in one transaction, statement by statement. After, the order and
//! its event in one statement; two durable subscriptions handle the events of a fifth of a second together, each in a
//! transaction that also says that they are handled.
//!
//! Deferred work is paid for as well: CPU time counts until every effect is there, and a PostgreSQL server's own is in
//! it. That server must be on this machine. (The naive shop has no composite index on its orders, which makes its
//! inserts cheaper.)
//!
//! An order without its notification after a round ends the experiment.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use greenwave_shop::request::{NewItem, NewOrder};
use greenwave_shop::store::Store;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Source;
use super::shops::{self, Copies};
use crate::{Arm, Arms, BoxError, Call, Experiment, Setup, Workload};

/// How long effects may take to be there.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the kernel counts the CPU time of other processes in, on Linux: hundredths of a second.
const TICK: Duration = Duration::from_millis(10);

/// The experiment on these orders.
#[must_use]
pub fn experiment(source: Source) -> Experiment {
    let question = "What does an order cost when its effects are done in batches after the answer?";
    Experiment::new("async-effects", "Effects after the answer", question, move |setup| {
        set_up(setup, source.clone())
    })
    .unit("orders")
}

async fn set_up(setup: Setup, source: Source) -> Result<Arms, BoxError> {
    let Copies { before, after, size } = shops::copies(&setup, &source, true).await?;
    let server = match &source.database {
        Some(url) => Some(shops::postmaster(url).await?),
        None => None,
    };
    let what = if server.is_some() { "this process and the database's server" } else { "this process" };
    setup.fact("CPU time", format!("of {what}, until all effects are there"));
    setup.fact("request", "an order of 1 to 5 random products by a random customer");

    let cancel = CancellationToken::new();
    let (store, stop) = (after.clone(), cancel.clone());
    let effects = tokio::spawn(async move { store.run_effects(stop).await });
    setup.on_end("stop the handlers of events", async move {
        cancel.cancel();
        Ok(effects.await??)
    });

    let (customers, products) = (size.users, size.products);
    let arm = |label: &str, store: Store| {
        let orders = Workload::over(store.clone(), move |store, mut call| async move {
            store.create_order(choose(&mut call, customers, products)).await?;
            Ok(())
        });
        let store = Arc::new(store);
        let arm = Arm::new(label, orders).settle(move || settle(Arc::clone(&store), size.orders));
        match server {
            Some(server) => arm.cpu_of(move || cpu_of(server)),
            None => arm,
        }
    };
    Ok(Arms {
        before: arm("effects inside the request", before),
        after: arm("effects after the answer", after),
    })
}

fn choose(call: &mut Call, customers: i64, products: i64) -> NewOrder {
    let customer_id = call.pick(1..=customers);
    let (first, step) = (call.pick(0..products), call.pick(1..products / 5));
    let item = |n| (1 + (first + n * step) % products, n);
    let items = (0..call.pick(1..=5)).map(item);
    let items = items.map(|(product_id, n)| NewItem { product_id, quantity: 1 + n as i32 % 3 }).collect();
    NewOrder { customer_id, items }
}

/// Waits until every order that was made since the seed has its effects.
async fn settle(store: Arc<Store>, seeded: i64) -> Result<(), BoxError> {
    let settled = timeout(PATIENCE, async {
        while store.waiting_effects().await? > 0 {
            sleep(Duration::from_millis(50)).await;
        }
        Ok::<(), BoxError>(())
    });
    settled.await.unwrap_or_else(|_elapsed| Err("the effects of some orders did not come".into()))?;
    match store.orders_without_notification(seeded).await? {
        0 => Ok(()),
        lost => Err(format!("{lost} orders have no notification").into()),
    }
}

/// The CPU time that a server has used, by its first process's id: its own and that of its children, ended ones too.
fn cpu_of(postmaster: u32) -> Duration {
    let (mut ticks, own) = (0, stat(postmaster));
    if let Some(own) = own {
        ticks += own.used + own.ended_children;
    }
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let id = process.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(stat) = id.and_then(stat)
            && stat.parent == postmaster
        {
            ticks += stat.used;
        }
    }
    TICK * u32::try_from(ticks).unwrap_or(u32::MAX)
}

struct Stat {
    parent: u32,
    used: u64,
    ended_children: u64,
}

fn stat(process: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name stands in brackets, and may hold anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
    Some(Stat {
        parent: u32::try_from(number(1)?).ok()?,
        used: number(11)? + number(12)?,
        ended_children: number(13)? + number(14)?,
    })
}
