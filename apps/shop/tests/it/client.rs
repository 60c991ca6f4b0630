//! A plain HTTP client, which looks at every answer's content type.

use std::net::SocketAddr;

use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, body::Bytes, body::Incoming, header};
use hyper_util::{
    client::legacy::{Client as Legacy, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

#[derive(Clone)]
pub(crate) struct Client {
    base: String,
    client: Legacy<HttpConnector, Full<Bytes>>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Client {
        Client {
            base: format!("http://{address}"),
            client: Legacy::builder(TokioExecutor::new()).build_http(),
        }
    }

    pub(crate) fn address(&self) -> &str {
        self.base.trim_start_matches("http://")
    }

    pub(crate) async fn send(&self, method: Method, path: &str, body: &[u8]) -> Response<Incoming> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(body.to_vec()))
            .unwrap();
        self.client.request(request).await.unwrap()
    }

    /// Status and JSON of an answer.
    pub(crate) async fn call(&self, method: Method, path: &str, body: &[u8]) -> (u16, Value) {
        let response = self.send(method.clone(), path, body).await;
        let status = response.status().as_u16();
        let kind = response.headers().get(header::CONTENT_TYPE).cloned();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let kind = kind.as_ref().and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        assert_eq!(kind.split(';').next(), Some("application/json"), "{method} {path}: {status} {text}");
        let value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{method} {path}: {e}: {text}"));
        (status, value)
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, value) = self.call(Method::GET, path, b"").await;
        assert_eq!(status, 200, "GET {path}: {value}");
        value
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Value {
        let (status, value) = self.call(Method::POST, path, body.to_string().as_bytes()).await;
        assert_eq!(status, 201, "POST {path} {body}: {value}");
        value
    }

    /// Expects a failure of this status and code, with a message.
    pub(crate) async fn fails(&self, method: Method, path: &str, body: &str, status: u16, code: &str) {
        let (got, value) = self.call(method.clone(), path, body.as_bytes()).await;
        let shown: String = format!("{method} {path} {body}").chars().take(200).collect();
        assert_eq!(got, status, "{shown}: {value}");
        assert_eq!(value["error"], code, "{shown}: {value}");
        assert!(value["message"].as_str().is_some_and(|message| !message.is_empty()), "{shown}: {value}");
        assert_eq!(value.as_object().unwrap().len(), 2, "{shown}: {value}");
    }
}
