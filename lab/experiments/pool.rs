//! The pool: the shop's customers by primary key, through sqlx's `PgPool` and through
//! `greenwave_db::postgres::Pool`.
//!
//! Both read one database over as many connections. sqlx's pool has its defaults otherwise, with which a
//! query costs it three round trips: it pings the connection, queries, and pings again before it takes the
//! connection back. Ours pings after idleness only.
//!
//! Both are sqlx's executors over sqlx's connections, and the statement is the same. Before the rounds both
//! are asked for the same customers, and a difference between their answers ends the experiment.

use greenwave_db::postgres::Pool;
use sqlx::postgres::PgPoolOptions;
use sqlx::{Executor, Postgres};

use super::{Source, shops};
use crate::{Arm, Arms, BoxError, Call, Experiment, Setup, Workload};

/// How many customers are compared before the rounds.
const COMPARED: u64 = 20;

/// The experiment on these customers. It needs [`Source::database`].
#[must_use]
pub fn experiment(source: Source) -> Experiment {
    let question = "How many more queries does PostgreSQL (--database) answer when the pool spends one round trip on each?";
    Experiment::new("pool", "The connection pool", question, move |setup| set_up(setup, source.clone()))
        .unit("queries")
}

async fn set_up(setup: Setup, source: Source) -> Result<Arms, BoxError> {
    let Some(server) = &source.database else {
        return Err("this pool saves round trips to a PostgreSQL server: \
                    give one as --database postgres://USER:PASSWORD@HOST:PORT/DATABASE"
            .into());
    };
    let (url, size) = shops::on_postgres(&setup, &source, server).await?;
    let config = shops::pool_config(setup.concurrency());
    setup.fact("connections", format!("{} of each pool", config.max_connections));
    let options = PgPoolOptions::new()
        .max_connections(config.max_connections)
        .acquire_timeout(config.connection_timeout);
    let theirs = options.connect(&url).await?;
    let ours = Pool::connect(&url, config).await?;
    for number in 0..COMPARED {
        let id = choose(&mut Call::new(setup.seed(), number), size.users);
        if name(&theirs, id).await? != name(&ours, id).await? {
            return Err(format!("the pools differ over the name of customer {id}").into());
        }
    }
    setup.fact("query", "the name of a random customer, by primary key");
    Ok(Arms {
        before: Arm::new("sqlx's PgPool", lookups(theirs, size.users)),
        after: Arm::new("greenwave_db's Pool", lookups(ours, size.users)),
    })
}

fn lookups<P>(pool: P, customers: i64) -> Workload
where
    P: Clone + Send + Sync + 'static,
    for<'p> &'p P: Executor<'p, Database = Postgres>,
{
    Workload::over(pool, move |pool, mut call| async move {
        name(&pool, choose(&mut call, customers)).await?;
        Ok(())
    })
}

async fn name<'p>(pool: impl Executor<'p, Database = Postgres>, id: i64) -> sqlx::Result<String> {
    sqlx::query_scalar("SELECT name FROM users WHERE id = $1").bind(id).fetch_one(pool).await
}

fn choose(call: &mut Call, customers: i64) -> i64 {
    call.pick(1..=customers)
}
