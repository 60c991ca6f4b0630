//! The dashboard, in a real browser.

use std::{
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use fantoccini::{Client, ClientBuilder};
use greenwave_test_servers::Program;
use serde_json::json;
use tempfile::TempDir;

use crate::{
    any_command::up_with,
    client::{client, get},
    program::{Up, until},
};

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_instances_and_routes_and_updates_itself() {
    let folder = TempDir::new().unwrap();
    let up = Up::start(&folder, &[], &["--instances", "2"]);
    let browser = Browser::start(&folder).await;
    let page = &browser.page;
    page.goto(&up.dashboard).await.unwrap();

    for name in ["shop-0", "shop-1", "worker-0"] {
        appears(page, &format!("#instances tbody tr[data-name='{name}']"), "ready").await;
    }
    let updated = text(page, "#updated").await;
    let (service, http) = (up.service.clone(), client());
    let traffic = tokio::spawn(async move {
        loop {
            for path in ["/products/3", "/orders?customer_id=5", "/orders/9"] {
                let _ = get(&http, &format!("{service}{path}")).await;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    appears(page, "#routes tbody tr[data-route='/products/{id}']", "GET").await;
    appears(page, "#routes tbody tr[data-route='/orders']", "GET").await;
    assert_ne!(text(page, "#updated").await, updated, "the page stands still");
    let rate: f64 = text(page, "#rps").await.replace(',', "").parse().unwrap_or_default();
    assert!(rate > 0.0, "no rate is shown");

    up.kill_instance("shop-1").await;
    let deadline = Instant::now() + Duration::from_secs(60);
    while up.overview().await["instances"][1]["restarts"] != 1 {
        assert!(Instant::now() < deadline, "the restart is not counted");
    }
    appears(page, "#instances tbody tr[data-name='shop-1']", "ready").await;
    traffic.abort();
    browser.page.clone().close().await.unwrap();
}

#[tokio::test]
async fn a_token_is_demanded_and_the_page_of_another_host_is_refused() {
    let folder = TempDir::new().unwrap();
    let up = up_with(&folder, &[("GREENWAVE_DASHBOARD__TOKEN", "sesame")], &[]);
    let (status, _) = get(&client(), &up.dashboard).await.unwrap();
    assert_eq!(status, 401);
    let open = up_with(&folder, &[], &[]);
    assert_eq!(get(&client(), &open.dashboard).await.unwrap().0, 200);
    let rebound = open.dashboard.replace("127.0.0.1", "evil.localtest.invalid");
    let request = hyper::Request::get(&open.dashboard).header("host", rebound.trim_start_matches("http://"));
    let answer = client().request(request.body(Default::default()).unwrap()).await.unwrap();
    assert_eq!(answer.status(), 403);
}

/// Waits until an element has this text in it.
async fn appears(page: &Client, selector: &str, part: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let shown = text(page, selector).await;
        if shown.contains(part) {
            return;
        }
        assert!(Instant::now() < deadline, "{selector} shows {shown:?}, not {part:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn text(page: &Client, selector: &str) -> String {
    let script = "const found = document.querySelector(arguments[0]); return found ? found.textContent : ''";
    let value = page.execute(script, vec![json!(selector)]).await.unwrap();
    value.as_str().unwrap_or_default().to_owned()
}

/// A headless Chromium, driven by chromedriver.
struct Browser {
    driver: Child,
    page: Client,
}

impl Browser {
    async fn start(folder: &TempDir) -> Browser {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let driver = Command::new(Program::Chromedriver.path())
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("chromedriver listens", || TcpStream::connect(("127.0.0.1", port)).is_ok()).await;
        let profile = format!("--user-data-dir={}", folder.path().join("profile").display());
        let options = json!({
            "binary": Program::Chromium.path(),
            "args": ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
                "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", profile],
        });
        let capabilities = [("goog:chromeOptions".to_owned(), options)].into_iter().collect();
        let page = ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .unwrap();
        Browser { driver, page }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
