//! A plain HTTP client.

use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode, body::Bytes};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

pub(crate) type Http = Client<HttpConnector, Full<Bytes>>;

pub(crate) fn client() -> Http {
    Client::builder(TokioExecutor::new()).build_http()
}

pub(crate) async fn get(
    client: &Http,
    url: &str,
) -> Result<(StatusCode, String), hyper_util::client::legacy::Error> {
    send(client, Request::get(url).body(Full::default()).unwrap()).await
}

pub(crate) async fn post(
    client: &Http,
    url: &str,
    body: &Value,
) -> Result<(StatusCode, String), hyper_util::client::legacy::Error> {
    let request = Request::post(url).header("content-type", "application/json");
    send(client, request.body(Full::from(body.to_string())).unwrap()).await
}

pub(crate) async fn send(
    client: &Http,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, String), hyper_util::client::legacy::Error> {
    let answer = client.request(request).await?;
    let status = answer.status();
    // An answer that is cut short is no answer.
    let body = answer.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// The first event of a stream that passes `test`.
pub(crate) async fn first_event(url: &str, test: impl Fn(&Value) -> bool) -> Value {
    let answer = client().get(url.parse().unwrap()).await.unwrap();
    let (mut body, mut text) = (answer.into_body(), String::new());
    loop {
        let frame = body.frame().await.expect("the stream goes on").unwrap();
        text.push_str(&String::from_utf8_lossy(&frame.into_data().unwrap_or_default()));
        while let Some((event, rest)) = text.split_once("\n\n") {
            let data = event.lines().find_map(|line| line.strip_prefix("data:"));
            if let Some(value) = data.and_then(|data| serde_json::from_str::<Value>(data).ok()).filter(&test)
            {
                return value;
            }
            text = rest.to_owned();
        }
    }
}
