use greenwave_db::{BatchConfig, BatchLoader, postgres::Pool};

use super::reads;
use crate::model::{Order, Product, User};

/// Rows by key, many callers' in one statement.
pub(super) struct Batches {
    pub(super) users: BatchLoader<i64, User, sqlx::Error>,
    pub(super) products: BatchLoader<i64, Product, sqlx::Error>,
    pub(super) orders: BatchLoader<i64, Order, sqlx::Error>,
}

impl Batches {
    pub(super) fn new(pool: &Pool) -> Batches {
        let pools = (pool.clone(), pool.clone(), pool.clone());
        let config = BatchConfig::default;
        Batches {
            users: BatchLoader::new("users", config(), move |ids| {
                let pool = pools.0.clone();
                async move { reads::users(&pool, ids).await }
            }),
            products: BatchLoader::new("products", config(), move |ids| {
                let pool = pools.1.clone();
                async move { reads::products(&pool, ids).await }
            }),
            orders: BatchLoader::new("orders", config(), move |ids| {
                let pool = pools.2.clone();
                async move { reads::orders(&pool, ids).await }
            }),
        }
    }
}
