use std::{sync::Arc, time::Duration};

use greenwave_cache::{Cache, CacheConfig, Remote};
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::{
    Config, Error,
    model::{Order, Product, Status, User},
    request::{NewOrder, NewUser},
    store::{Store, StoreConfig},
};

/// How long a user is kept, in this process and, if there is one, in Redis, which tells of changes by others.
const USER_TTL: Duration = Duration::from_secs(3600);

/// How long a product is kept in this process.
const PRODUCT_TTL: Duration = Duration::from_secs(300);

/// What the shop does, whoever asks: reads through caches, writes through the store. A clone is another handle to it.
#[derive(Clone)]
pub struct Shop {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    /// Writes that run.
    writes: TaskTracker,
    /// None in a naive shop.
    caches: Option<Caches>,
}

struct Caches {
    users: Cache<i64, User>,
    products: Cache<i64, Product>,
}

impl Shop {
    /// Opens the database, brings its tables up to date, and makes the caches. Redis may be down.
    pub async fn open(config: &Config) -> Result<Shop, Error> {
        // Before the database is touched: a URL that is wrong now will not get better.
        let caches = if config.naive { None } else { Some(Caches::new(config.redis_url.as_deref())?) };
        let Config { pool, naive, sample_data, .. } = config.clone();
        let store = Store::open_at(&config.database, StoreConfig { pool, naive, sample_data }).await?;
        Ok(Shop { inner: Arc::new(Inner { store, writes: TaskTracker::new(), caches }) })
    }

    /// The database underneath.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// A user, up to an hour old. One that does not exist is looked for again each time.
    pub async fn user(&self, id: i64) -> Result<Option<Arc<User>>, Error> {
        let store = &self.inner.store;
        let Some(caches) = &self.inner.caches else { return Ok(store.user(id).await?.map(Arc::new)) };
        let load = || {
            let store = store.clone();
            async move { store.user(id).await }
        };
        Ok(caches.users.get_or_load(&id, load).await?)
    }

    /// A product, up to five minutes old.
    pub async fn product(&self, id: i64) -> Result<Option<Arc<Product>>, Error> {
        let store = &self.inner.store;
        let Some(caches) = &self.inner.caches else { return Ok(store.product(id).await?.map(Arc::new)) };
        let load = || {
            let store = store.clone();
            async move { store.product(id).await }
        };
        Ok(caches.products.get_or_load(&id, load).await?)
    }

    /// An order as it is now.
    pub async fn order(&self, id: i64) -> Result<Option<Order>, Error> {
        self.inner.store.order(id).await
    }

    /// The newest 20 orders of a customer as they are now, of one status or of all.
    pub async fn order_list(&self, customer: i64, status: Option<Status>) -> Result<Vec<Order>, Error> {
        self.inner.store.order_list(customer, status).await
    }

    /// Makes a user. No cache needs to hear of it: a user who was not there is in none.
    ///
    /// *Cancel safety:* once begun, it is carried to its end.
    pub async fn create_user(&self, new: NewUser) -> Result<User, Error> {
        let store = self.inner.store.clone();
        self.carry_through(async move { store.create_user(new).await }).await
    }

    /// Makes an order.
    ///
    /// *Cancel safety:* once begun, it is carried to its end.
    pub async fn create_order(&self, new: NewOrder) -> Result<Order, Error> {
        let store = self.inner.store.clone();
        self.carry_through(async move { store.create_order(new).await }).await
    }

    /// Waits until no write is under way that its caller has left.
    pub(crate) async fn settled(&self) {
        self.inner.writes.close();
        self.inner.writes.wait().await;
    }

    /// In a task of its own: a client that hangs up would otherwise cut a transaction off in the middle, and leave a
    /// connection to be tidied up.
    async fn carry_through<T: Send + 'static>(
        &self,
        write: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let task = self.inner.writes.spawn(write.in_current_span());
        task.await.unwrap_or_else(|error| Err(Error::Database(error.into())))
    }
}

impl Caches {
    fn new(redis_url: Option<&str>) -> Result<Caches, Error> {
        let products = CacheConfig { ttl: PRODUCT_TTL, ..CacheConfig::default() };
        // Without jitter: that the whole hour is kept is part of the API.
        let users =
            CacheConfig { ttl: USER_TTL, remote_ttl: USER_TTL, ttl_jitter: 0.0, ..CacheConfig::default() };
        let mut users = Cache::builder("user").config(users);
        if let Some(url) = redis_url {
            users = users.remote(Remote::connect(url).map_err(Error::RedisUrl)?);
        }
        Ok(Caches { users: users.build(), products: Cache::builder("product").config(products).build() })
    }
}
