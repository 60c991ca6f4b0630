//! The document says what the server does.

use expect_test::expect;
use serde_json::Value;

use crate::fixture::{Fixture, Kind};

#[tokio::test]
async fn the_document_lists_every_route() {
    let fixture = Fixture::start(Kind::Sqlite).await;
    let document = fixture.client().get("/openapi.json").await;
    assert_eq!(document, serde_json::to_value(greenwave_shop::http::openapi()).unwrap());
    let mut lines = String::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let statuses: Vec<&str> =
                operation["responses"].as_object().unwrap().keys().map(String::as_str).collect();
            lines += &format!("{} {path}: {}\n", method.to_uppercase(), statuses.join(" "));
        }
    }
    expect![[r#"
        GET /health: 200
        GET /orders: 200 422 503
        POST /orders: 201 400 422 503
        GET /orders/{id}: 200 404 503
        GET /products/{id}: 200 404 503
        POST /users: 201 400 409 422 503
        GET /users/{id}: 200 404 503
    "#]]
    .assert_eq(&lines);
}

#[tokio::test]
async fn answers_have_the_documented_fields() {
    let fixture = Fixture::start(Kind::Sqlite).await;
    let document = fixture.client().get("/openapi.json").await;
    for (schema, path) in [("User", "/users/1"), ("Product", "/products/1"), ("Order", "/orders/1")] {
        let answer = fixture.client().get(path).await;
        let described = &document["components"]["schemas"][schema];
        let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let (mut got, mut want) = (names(&answer), names(&described["properties"]));
        got.sort();
        want.sort();
        assert_eq!(got, want, "{schema}");
        assert_eq!(described["required"].as_array().unwrap().len(), got.len(), "{schema}: all are required");
    }
}
