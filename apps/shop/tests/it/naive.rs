//! The shop with every technique switched off answers the same.

use std::time::Duration;

use serde_json::json;
use sqlx::postgres::PgListener;

use crate::{
    checks,
    database::Database,
    fixture::{Fixture, Kind, Running, Works},
};

async fn check(kind: Kind) {
    let fixture = Fixture::naive(kind).await;
    checks::all_but_caches(&fixture).await;

    // Effects are inside the request, so they are there when it is answered.
    let order = json!({"customer_id": 5, "items": [{"product_id": 7, "quantity": 3}]});
    let before = fixture.db().stock(7).await;
    let id = fixture.client().post("/orders", &order).await["id"].to_string();
    assert_eq!(fixture.db().stock(7).await, before - 3);
    let count = format!("SELECT count(*) FROM notifications WHERE order_id = {id}");
    assert_eq!(fixture.db().int(&count).await, 1);

    // No cache: a change is seen at once.
    fixture.client().get("/products/7").await;
    fixture.db().execute("UPDATE products SET name = 'changed' WHERE id = 7").await;
    assert_eq!(fixture.client().get("/products/7").await["name"], "changed");

    // No index; it comes back with the techniques.
    let index = match kind {
        Kind::Postgres => {
            "SELECT count(*) FROM pg_indexes WHERE indexname = 'orders_customer_status_created'"
        }
        Kind::Sqlite => "SELECT count(*) FROM sqlite_schema WHERE name = 'orders_customer_status_created'",
    };
    assert_eq!(fixture.db().int(index).await, 0);
    fixture.shop.stop().await;
    let shop = Running::start(&fixture.data.config(), Works::Everything).await;
    assert_eq!(fixture.data.db.int(index).await, 1);
    shop.stop().await;
}

#[tokio::test]
async fn on_sqlite_a_naive_shop_answers_the_same() {
    check(Kind::Sqlite).await;
}

#[tokio::test]
async fn on_postgres_a_naive_shop_answers_the_same() {
    check(Kind::Postgres).await;
}

#[tokio::test]
async fn a_naive_shop_wakes_no_worker() {
    let fixture = Fixture::naive(Kind::Postgres).await;
    let Database::Postgres(pool) = fixture.db() else { panic!() };
    let mut listener = PgListener::connect_with(pool).await.unwrap();
    listener.listen("greenwave_jobs").await.unwrap();
    fixture.client().post("/users", &json!({"name": "Ada", "email": "ada@example.org"})).await;
    let heard = tokio::time::timeout(Duration::from_secs(1), listener.recv()).await;
    assert!(heard.is_err(), "{heard:?}");
}
