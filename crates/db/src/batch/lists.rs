//! Lists of rows by key, each no longer than its caller asks for.

use std::{collections::HashMap, fmt, future::Future, hash::Hash};

use super::{BatchError, BatchLoader};
use crate::BatchConfig;

/// Turns concurrent loads of lists by key into few calls: each customer's newest orders, each post's first comments.
///
/// It batches as [`BatchLoader`] does, and shares its promises. What it adds is a **limit per key**, without which one
/// customer of a million orders would make everybody's batch slow:
///
/// - The load function gets each key once, with the longest list that anybody wants of it, and returns rows in the
///   order in which they should be listed. They are grouped here; how the keys follow on each other is all the same.
/// - Each caller gets the first rows of its key, as many as it asked for and no more, whatever the function returned.
/// - A key without rows has an empty list.
///
/// On PostgreSQL, `LATERAL` reads each key's rows from an index and stops at its limit. A `row_number()` in their place
/// would read all the orders of each customer:
///
#[cfg_attr(feature = "postgres", doc = "```no_run")]
#[cfg_attr(not(feature = "postgres"), doc = "```ignore")]
/// # async fn example(pool: greenwave_db::postgres::Pool) -> Result<(), Box<dyn std::error::Error>> {
/// use greenwave_db::{BatchConfig, ListLoader};
///
/// // With an index on orders (customer_id, id).
/// let orders = ListLoader::new("orders", BatchConfig::default(), move |asked: Vec<(i64, u32)>| {
///     let pool = pool.clone();
///     async move {
///         let (customers, limits): (Vec<i64>, Vec<i64>) =
///             asked.into_iter().map(|(customer, limit)| (customer, i64::from(limit))).unzip();
///         let statement = "SELECT asked.customer_id, o.id
///                          FROM unnest($1::bigint[], $2::bigint[]) AS asked (customer_id, n)
///                          CROSS JOIN LATERAL (SELECT id FROM orders WHERE customer_id = asked.customer_id
///                                              ORDER BY id DESC LIMIT asked.n) AS o
///                          ORDER BY asked.customer_id, o.id DESC";
///         let rows: Vec<(i64, i64)> =
///             sqlx::query_as(statement).bind(customers).bind(limits).fetch_all(&pool).await?;
///         Ok::<_, sqlx::Error>(rows)
///     }
/// });
/// let newest: Vec<i64> = orders.load(7, 20).await?;
/// # Ok(()) }
/// ```
///
/// SQLite takes no limit from another table's row. There a statement costs no round trip, so one prepared statement is
/// run per key, all within one read:
///
#[cfg_attr(feature = "sqlite", doc = "```no_run")]
#[cfg_attr(not(feature = "sqlite"), doc = "```ignore")]
/// # async fn example(pool: greenwave_db::sqlite::Pool) -> Result<(), Box<dyn std::error::Error>> {
/// # use greenwave_db::{BatchConfig, ListLoader};
/// let orders = ListLoader::new("orders", BatchConfig::default(), move |asked: Vec<(i64, u32)>| {
///     let pool = pool.clone();
///     async move {
///         let read = pool.read(move |db| {
///             let statement = "SELECT id FROM orders WHERE customer_id = ?1 ORDER BY id DESC LIMIT ?2";
///             let mut statement = db.prepare_cached(statement)?;
///             let mut rows = Vec::new();
///             for (customer, limit) in asked {
///                 for id in statement.query_map((customer, limit), |row| row.get(0))? {
///                     rows.push((customer, id?));
///                 }
///             }
///             Ok(rows)
///         });
///         read.await
///     }
/// });
/// let newest: Vec<i64> = orders.load(7, 20).await?;
/// # Ok(()) }
/// ```
pub struct ListLoader<K, V, E> {
    /// Of a key and a limit. Callers with different limits are told apart only here.
    lists: BatchLoader<(K, u32), Vec<V>, E>,
}

impl<K, V, E> ListLoader<K, V, E>
where
    K: Hash + Eq + Clone + Send + 'static,
    V: Clone + Send + 'static,
    E: Send + Sync + 'static,
{
    /// A loader named `name` in metrics and errors, over a function that loads the rows of all the keys it is given,
    /// of each key as many as the number beside it.
    ///
    /// [`BatchConfig::max_batch`] counts keys, not rows.
    pub fn new<F, Fut>(name: &'static str, config: BatchConfig, load: F) -> Self
    where
        F: Fn(Vec<(K, u32)>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Vec<(K, V)>, E>> + Send + 'static,
    {
        let lists = BatchLoader::new(name, config, move |asked: Vec<(K, u32)>| {
            let longest = longest(&asked);
            let once = asked.iter().filter(|(key, limit)| longest.get(key) == Some(limit)).cloned().collect();
            let rows = load(once);
            async move {
                let rows = rows.await?;
                Ok(lists(&asked, &longest, rows))
            }
        });
        Self { lists }
    }

    /// Loads the first `limit` rows of `key`, together with whatever else is asked for; none if there are none.
    ///
    /// # Errors
    /// What the load function returned for this key, or why it could not run: see [`BatchError`].
    ///
    /// # Cancel safety
    /// Safe, as [`BatchLoader::load`] is.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub async fn load(&self, key: K, limit: u32) -> Result<Vec<V>, BatchError<E>> {
        Ok(self.lists.load((key, limit)).await?.unwrap_or_default())
    }

    /// Loads the first `limit` rows of each of these keys, in the order of the keys; on an idle loader, in one call.
    ///
    /// # Errors
    /// That of the first key that has one: see [`BatchError`].
    ///
    /// # Cancel safety
    /// Safe, as [`BatchLoader::load`] is.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub async fn load_many(
        &self,
        keys: impl IntoIterator<Item = K>,
        limit: u32,
    ) -> Result<Vec<Vec<V>>, BatchError<E>> {
        let lists = self.lists.load_many(keys.into_iter().map(|key| (key, limit))).await?;
        Ok(lists.into_iter().map(Option::unwrap_or_default).collect())
    }
}

/// The longest list wanted of each key.
fn longest<K: Hash + Eq + Clone>(asked: &[(K, u32)]) -> HashMap<K, u32> {
    let mut longest = HashMap::with_capacity(asked.len());
    for (key, limit) in asked {
        let most = longest.entry(key.clone()).or_insert(*limit);
        *most = (*most).max(*limit);
    }
    longest
}

/// Gives each key and limit its list.
fn lists<K: Hash + Eq + Clone, V: Clone>(
    asked: &[(K, u32)],
    longest: &HashMap<K, u32>,
    rows: Vec<(K, V)>,
) -> HashMap<(K, u32), Vec<V>> {
    let mut lists: HashMap<(K, u32), Vec<V>> = HashMap::with_capacity(asked.len());
    for (key, value) in rows {
        let Some(&limit) = longest.get(&key) else { continue };
        let list = lists.entry((key, limit)).or_default();
        if list.len() < limit as usize {
            list.push(value);
        }
    }
    for (key, limit) in asked {
        let Some(most) = longest.get(key).filter(|most| *most > limit) else { continue };
        if let Some(list) = lists.get(&(key.clone(), *most)) {
            let shorter = list.iter().take(*limit as usize).cloned().collect();
            lists.insert((key.clone(), *limit), shorter);
        }
    }
    lists
}

impl<K, V, E> Clone for ListLoader<K, V, E> {
    fn clone(&self) -> Self {
        Self { lists: self.lists.clone() }
    }
}

impl<K, V, E> fmt::Debug for ListLoader<K, V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ListLoader").field(&self.lists).finish()
    }
}
