//! The API's rules, one after the other, on both databases.

use std::collections::{BTreeMap, HashSet};

use greenwave_shop::model::Timestamp;
use hyper::Method;
use serde_json::{Value, json};

use crate::fixture::{Fixture, Kind, SIZE, eventually};

/// Makes a test on each database of each check.
macro_rules! on_both_databases {
    ($($name:ident)*) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $name() {
                super::$name(&super::Fixture::start(super::Kind::Sqlite).await).await;
            })*
        }
        mod postgres {
            $(#[tokio::test]
            async fn $name() {
                super::$name(&super::Fixture::start(super::Kind::Postgres).await).await;
            })*
        }
    };
}

on_both_databases! {
    the_service_says_that_it_is_well
    users_are_as_the_database_has_them
    products_are_as_the_database_has_them
    orders_are_as_the_database_has_them
    lists_are_the_newest_20_orders_as_the_database_has_them
    what_does_not_exist_is_not_found
    bad_query_strings_are_refused
    a_cached_user_outlives_a_change_of_the_row
    a_cached_product_outlives_a_change_of_the_row
    an_order_is_made_with_its_effects
    orders_of_the_same_products_at_once_lose_nothing
    bad_orders_are_refused_and_write_nothing
    a_user_is_made_and_greeted_once
    of_users_with_one_email_at_once_one_is_made
    bad_users_are_refused_and_write_nothing
}

/// The checks that hold for a shop without caches too.
pub(crate) async fn all_but_caches(fixture: &Fixture) {
    the_service_says_that_it_is_well(fixture).await;
    users_are_as_the_database_has_them(fixture).await;
    products_are_as_the_database_has_them(fixture).await;
    orders_are_as_the_database_has_them(fixture).await;
    lists_are_the_newest_20_orders_as_the_database_has_them(fixture).await;
    what_does_not_exist_is_not_found(fixture).await;
    bad_query_strings_are_refused(fixture).await;
    an_order_is_made_with_its_effects(fixture).await;
    orders_of_the_same_products_at_once_lose_nothing(fixture).await;
    bad_orders_are_refused_and_write_nothing(fixture).await;
    a_user_is_made_and_greeted_once(fixture).await;
    of_users_with_one_email_at_once_one_is_made(fixture).await;
    bad_users_are_refused_and_write_nothing(fixture).await;
}

/// The first, the last, and some between.
fn ids(top: i64, count: i64) -> impl Iterator<Item = i64> {
    [1, top].into_iter().chain((1..=count).map(move |n| 2 + n * 7919 % (top - 2)))
}

async fn the_service_says_that_it_is_well(fixture: &Fixture) {
    assert_eq!(fixture.client().get("/health").await, json!({"status": "ok"}));
}

async fn users_are_as_the_database_has_them(fixture: &Fixture) {
    for id in ids(SIZE.users, 20) {
        let want = fixture.db().user(id).await;
        assert_eq!(fixture.client().get(&format!("/users/{id}")).await, want);
        assert_eq!(fixture.client().get(&format!("/users/{id}")).await, want, "again");
    }
}

async fn products_are_as_the_database_has_them(fixture: &Fixture) {
    for id in ids(SIZE.products, 20) {
        let want = fixture.db().product(id).await;
        assert_eq!(fixture.client().get(&format!("/products/{id}")).await, want);
        assert_eq!(fixture.client().get(&format!("/products/{id}")).await, want, "again");
    }
}

async fn orders_are_as_the_database_has_them(fixture: &Fixture) {
    for id in ids(SIZE.orders, 40) {
        assert_eq!(fixture.client().get(&format!("/orders/{id}")).await, fixture.db().order(id).await);
    }
}

async fn lists_are_the_newest_20_orders_as_the_database_has_them(fixture: &Fixture) {
    let busy = SIZE.users / 100;
    let mut full = 0;
    for customer in (1..=busy).chain(ids(SIZE.users, 12)) {
        for status in [None, Some("pending"), Some("confirmed"), Some("shipped")] {
            let mut path = format!("/orders?customer_id={customer}");
            if let Some(status) = status {
                path += &format!("&status={status}");
            }
            let got = fixture.client().get(&path).await;
            let want = fixture.db().orders(customer, status).await;
            assert_eq!(got, json!({ "orders": want }), "{path}");
            full += usize::from(want.as_array().unwrap().len() == 20);
        }
    }
    assert!(full >= busy as usize, "only {full} lists of 20");
    assert_eq!(fixture.client().get("/orders?customer_id=900000000").await, json!({"orders": []}));
}

async fn what_does_not_exist_is_not_found(fixture: &Fixture) {
    for path in ["/users", "/products", "/orders"] {
        for id in
            ["999999999", "0", "-1", "abc", "1x", "+1", "1.0", "%31%20", "%ff", "99999999999999999999999"]
        {
            fixture.client().fails(Method::GET, &format!("{path}/{id}"), "", 404, "not_found").await;
        }
    }
    for path in ["/", "/nothing-here", "/users/", "/users/1/orders", "/orders/1/"] {
        fixture.client().fails(Method::GET, path, "", 404, "not_found").await;
    }
}

async fn bad_query_strings_are_refused(fixture: &Fixture) {
    for query in [
        "",
        "?",
        "?status=pending",
        "?customer_id",
        "?customer_id=",
        "?customer_id=abc",
        "?customer_id=0",
        "?customer_id=-4",
        "?customer_id=1.0",
        "?customer_id=1&customer_id=2",
        "?customer_id=99999999999999999999",
        "?customer_id=1&status=lost",
        "?customer_id=1&status=Pending",
        "?customer_id=1&status=",
    ] {
        fixture.client().fails(Method::GET, &format!("/orders{query}"), "", 422, "invalid").await;
    }
    // What is not known is nobody's business.
    fixture.client().get("/orders?customer_id=1&page=x").await;
}

async fn a_cached_user_outlives_a_change_of_the_row(fixture: &Fixture) {
    let path = "/users/77";
    let before = fixture.client().get(path).await;
    fixture.db().execute("UPDATE users SET name = 'changed' WHERE id = 77").await;
    assert_eq!(fixture.client().get(path).await, before);
    if let Some(url) = &fixture.data.redis {
        // The copy in Redis too: it is there, with its hour.
        let ttl = redis(url, &["TTL", "user:77"]);
        let ttl: i64 = ttl.parse().unwrap_or_else(|_| panic!("{ttl}"));
        assert!((3500..=3600).contains(&ttl), "{ttl}");
        assert_eq!(redis(url, &["EXISTS", "user:999999"]), "0");
    }
}

async fn a_cached_product_outlives_a_change_of_the_row(fixture: &Fixture) {
    let path = "/products/77";
    let before = fixture.client().get(path).await;
    fixture.db().execute("UPDATE products SET name = 'changed' WHERE id = 77").await;
    assert_eq!(fixture.client().get(path).await, before);
}

async fn an_order_is_made_with_its_effects(fixture: &Fixture) {
    let (client, db) = (fixture.client(), fixture.db());
    let customer = 123;
    let items = json!([
        {"product_id": 150, "quantity": 1000},
        {"product_id": 3, "quantity": 2, "ignored": null},
        {"product_id": 99, "quantity": 1},
    ]);
    let before = stocks(fixture, &[150, 3, 99]).await;
    let started = Timestamp::now().millis();
    let order =
        client.post("/orders", &json!({"customer_id": customer, "items": items, "ignored": true})).await;
    let id = order["id"].as_i64().unwrap();
    assert_eq!(order, db.order(id).await);
    assert_eq!(order["status"], "pending");
    assert_eq!(order["customer"]["id"], customer);
    let products: Vec<_> =
        order["items"].as_array().unwrap().iter().map(|item| &item["product_id"]).collect();
    assert_eq!(products, [3, 99, 150]);
    let price = |item: &Value| item["price_cents"].as_i64().unwrap() * item["quantity"].as_i64().unwrap();
    let total: i64 = order["items"].as_array().unwrap().iter().map(price).sum();
    assert_eq!(order["total_cents"], total);
    let made = Timestamp::parse(order["created_at"].as_str().unwrap()).unwrap().millis();
    assert!((started - 5_000..=Timestamp::now().millis() + 5_000).contains(&made), "{order}");

    assert_eq!(client.get(&format!("/orders/{id}")).await, order);
    for status in ["", "&status=pending"] {
        let list = client.get(&format!("/orders?customer_id={customer}{status}")).await;
        assert_eq!(list["orders"][0], order, "{status}");
    }
    expect_effects(fixture, &[order], before).await;
}

async fn orders_of_the_same_products_at_once_lose_nothing(fixture: &Fixture) {
    let hot = [11, 22, 33];
    let before = stocks(fixture, &hot).await;
    let requests = (0..64).map(|i| {
        let mut items: Vec<Value> =
            (0..3).map(|k| json!({"product_id": hot[k], "quantity": 1 + (i + k) % 3})).collect();
        items.rotate_left(i % 3);
        let client = fixture.client().clone();
        tokio::spawn(
            async move { client.post("/orders", &json!({"customer_id": 1 + i, "items": items})).await },
        )
    });
    let mut orders = Vec::new();
    for request in requests.collect::<Vec<_>>() {
        orders.push(request.await.unwrap());
    }
    let ids: HashSet<_> = orders.iter().map(|order| order["id"].as_i64().unwrap()).collect();
    assert_eq!(ids.len(), 64);
    expect_effects(fixture, &orders, before).await;
}

pub(crate) async fn stocks(fixture: &Fixture, products: &[i64]) -> BTreeMap<i64, i64> {
    let mut stocks = BTreeMap::new();
    for &product in products {
        stocks.insert(product, fixture.db().stock(product).await);
    }
    stocks
}

/// Of these new orders: each has one notification, and stock fell by what they hold; also a moment later.
async fn expect_effects(fixture: &Fixture, orders: &[Value], before: BTreeMap<i64, i64>) {
    let ids: Vec<String> = orders.iter().map(|order| order["id"].to_string()).collect();
    let count = format!(
        "SELECT count(*) FROM notifications WHERE kind = 'order_created' AND order_id IN ({})",
        ids.join(",")
    );
    let mut want = before;
    for item in orders.iter().flat_map(|order| order["items"].as_array().unwrap()) {
        *want.get_mut(&item["product_id"].as_i64().unwrap()).unwrap() -= item["quantity"].as_i64().unwrap();
    }
    let products: Vec<i64> = want.keys().copied().collect();
    eventually("notifications", orders.len() as i64, || fixture.db().int(&count)).await;
    eventually("stock", want.clone(), || stocks(fixture, &products)).await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert_eq!(fixture.db().int(&count).await, orders.len() as i64);
    assert_eq!(stocks(fixture, &products).await, want);
}

async fn bad_orders_are_refused_and_write_nothing(fixture: &Fixture) {
    let count = "SELECT (SELECT count(*) FROM orders) + (SELECT count(*) FROM order_items)";
    let before = fixture.db().int(count).await;
    let item = json!({"product_id": 5, "quantity": 1});
    let many: Vec<Value> = (1..=51).map(|p| json!({"product_id": p, "quantity": 1})).collect();
    for body in [
        json!({}),
        json!({"customer_id": 1}),
        json!({"customer_id": 1, "items": []}),
        json!({"customer_id": 1, "items": "none"}),
        json!({"customer_id": 1, "items": [7]}),
        json!({"customer_id": 1, "items": [[5, 1]]}),
        json!({"items": [item]}),
        json!({"customer_id": "1", "items": [item]}),
        json!({"customer_id": null, "items": [item]}),
        json!({"customer_id": 0, "items": [item]}),
        json!({"customer_id": 1.5, "items": [item]}),
        json!({"customer_id": 999_999_999, "items": [item]}),
        json!({"customer_id": 1, "items": [{"product_id": 5}]}),
        json!({"customer_id": 1, "items": [{"quantity": 1}]}),
        json!({"customer_id": 1, "items": [{"product_id": 5, "quantity": 0}]}),
        json!({"customer_id": 1, "items": [{"product_id": 5, "quantity": -1}]}),
        json!({"customer_id": 1, "items": [{"product_id": 5, "quantity": "1"}]}),
        json!({"customer_id": 1, "items": [{"product_id": 5, "quantity": 1.5}]}),
        json!({"customer_id": 1, "items": [{"product_id": 5, "quantity": 1001}]}),
        json!({"customer_id": 1, "items": [{"product_id": 999_999_999, "quantity": 1}]}),
        json!({"customer_id": 1, "items": [item, {"product_id": 999_999_999, "quantity": 1}]}),
        json!({"customer_id": 1, "items": [item, item]}),
        json!({"customer_id": 1, "items": many}),
        json!([1, [[5, 1]]]),
    ] {
        fixture.client().fails(Method::POST, "/orders", &body.to_string(), 422, "invalid").await;
    }
    malformed(fixture, "/orders").await;
    assert_eq!(fixture.db().int(count).await, before);
    fixture.client().post("/orders", &json!({"customer_id": 1, "items": many[..50]})).await;
}

async fn malformed(fixture: &Fixture, path: &str) {
    for body in
        ["", "{\"customer_id\": 1", "{'name': 1}", "hello", "{} {}", "{\"customer_id\": \"1\", \"items\": ["]
    {
        fixture.client().fails(Method::POST, path, body, 400, "bad_request").await;
    }
    for body in ["[]", "7", "null", "\"text\""] {
        fixture.client().fails(Method::POST, path, body, 422, "invalid").await;
    }
}

async fn a_user_is_made_and_greeted_once(fixture: &Fixture) {
    let (client, db) = (fixture.client(), fixture.db());
    let new = json!({"name": "Ada Łovelace ✓", "email": "ada@example.org"});
    let user = client.post("/users", &new).await;
    let id = user["id"].as_i64().unwrap();
    assert_eq!(user, db.user(id).await);
    assert_eq!((&user["name"], &user["email"]), (&new["name"], &new["email"]));
    assert_eq!(client.get(&format!("/users/{id}")).await, user);
    client
        .fails(Method::POST, "/users", r#"{"name": "O", "email": "ada@example.org"}"#, 409, "conflict")
        .await;
    // As it is written: another case is another address.
    client.post("/users", &json!({"name": "Ada", "email": "Ada@example.org"})).await;
    let sent = format!(
        "SELECT count(*) FROM emails WHERE user_id = {id} AND kind = 'welcome' AND address = 'ada@example.org'"
    );
    eventually("the email", 1, || db.int(&sent)).await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert_eq!(db.int(&format!("SELECT count(*) FROM emails WHERE user_id = {id}")).await, 1);
}

async fn of_users_with_one_email_at_once_one_is_made(fixture: &Fixture) {
    let requests = (0..16).map(|i| {
        let client = fixture.client().clone();
        let body = json!({"name": format!("Racer {i}"), "email": "race@example.org"}).to_string();
        tokio::spawn(async move { client.call(Method::POST, "/users", body.as_bytes()).await.0 })
    });
    let mut statuses = Vec::new();
    for request in requests.collect::<Vec<_>>() {
        statuses.push(request.await.unwrap());
    }
    statuses.sort_unstable();
    let mut want = vec![409; 16];
    want[0] = 201;
    assert_eq!(statuses, want);
}

async fn bad_users_are_refused_and_write_nothing(fixture: &Fixture) {
    let count = "SELECT count(*) FROM users";
    let before = fixture.db().int(count).await;
    let email = "bad@example.org";
    for body in [
        json!({}),
        json!({"name": "No Email"}),
        json!({"email": email}),
        json!({"name": "", "email": email}),
        json!({"name": "✓".repeat(101), "email": email}),
        json!({"name": 7, "email": email}),
        json!({"name": null, "email": email}),
        json!({"name": "nul \0", "email": email}),
        json!({"name": "Bad", "email": "nobody"}),
        json!({"name": "Bad", "email": "a@b"}),
        json!({"name": "Bad", "email": "a b@example.org"}),
        json!({"name": "Bad", "email": "a@b@example.org"}),
        json!({"name": "Bad", "email": "@example.org"}),
        json!({"name": "Bad", "email": "a@.org"}),
        json!({"name": "Bad", "email": "a@example."}),
        json!({"name": "Bad", "email": "nul\0@example.org"}),
        json!({"name": "Bad", "email": 7}),
        json!({"name": "Bad", "email": format!("{}@example.org", "x".repeat(250))}),
        json!(["Bad", email]),
    ] {
        fixture.client().fails(Method::POST, "/users", &body.to_string(), 422, "invalid").await;
    }
    malformed(fixture, "/users").await;
    assert_eq!(fixture.db().int(count).await, before);
}

fn redis(url: &str, command: &[&str]) -> String {
    let program = greenwave_test_servers::Program::RedisCli.path();
    let output = std::process::Command::new(program).args(["-u", url]).args(command).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
