//! The composite index: the shop's order list without and with
//! `orders (customer_id, status, created_at DESC, id DESC)`.
//!
//! The list asks for the newest 20 orders of a customer that have one status. With the index the database
//! goes to these orders and stops at 20. Without it, it reads the table. (A list of all statuses is three
//! such lists in one statement, written for the index; without it the table would be read three times, which
//! would flatter the index.)
//!
//! Both arms are copies of one seeded database, and the statement is the same. Before the rounds both are
//! asked for the same lists, and a difference between their answers ends the experiment.

use greenwave_shop::model::Status;
use greenwave_shop::store::Store;

use super::Source;
use super::shops::{self, Copies};
use crate::{Arm, Arms, BoxError, Call, Experiment, Setup, Workload};

/// How many lists are compared before the rounds.
const COMPARED: u64 = 20;

/// The experiment on these orders.
#[must_use]
pub fn experiment(source: Source) -> Experiment {
    let question =
        "How many more order lists does the shop answer when an index leads to a customer's newest orders?";
    Experiment::new("index", "The composite index", question, move |setup| set_up(setup, source.clone()))
        .unit("order lists")
}

async fn set_up(setup: Setup, source: Source) -> Result<Arms, BoxError> {
    let Copies { before, after, size } = shops::copies(&setup, &source, false).await?;
    before.drop_order_index().await?;
    after.create_order_index().await?;
    for number in 0..COMPARED {
        let (customer, status) = choose(&mut Call::new(setup.seed(), number), size.users);
        let (without, with) =
            tokio::try_join!(before.order_list(customer, status), after.order_list(customer, status))?;
        if without != with {
            return Err(format!("the index changes the list of customer {customer}").into());
        }
    }
    setup.fact("request", "the newest 20 orders of a random customer that have a random status");
    let lists = |store: Store| {
        Workload::over(store, move |store, mut call| async move {
            let (customer, status) = choose(&mut call, size.users);
            store.order_list(customer, status).await?;
            Ok(())
        })
    };
    Ok(Arms {
        before: Arm::new("without the index", lists(before)),
        after: Arm::new("with the index", lists(after)),
    })
}

/// The customer of a request, and the status.
fn choose(call: &mut Call, customers: i64) -> (i64, Option<Status>) {
    let customer = call.pick(1..=customers);
    let status = call.pick(0..Status::ALL.len());
    (customer, Status::ALL.get(status).copied())
}
