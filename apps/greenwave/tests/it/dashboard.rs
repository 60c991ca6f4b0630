//! The dashboard, in a real browser.

use std::{
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use fantoccini::{Client, ClientBuilder};
use greenwave_jobs::{JobState, Queue};
use greenwave_test_servers::Program;
use serde_json::json;
use tempfile::TempDir;

use crate::{
    any_command::up_with,
    client::{client, get, send},
    jobs::push,
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

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_retried_and_cancelled_and_a_queue_is_paused_on_the_page() {
    let folder = TempDir::new().unwrap();
    let up = Up::start(&folder, &[], &["--instances", "1"]);
    // Nobody serves this queue.
    let queue = Queue::sqlite(folder.path().join("greenwave-data/shop.db")).unwrap();
    let ids = push(&queue, &["ada", "<b>bob</b>"]).await;
    assert!(queue.cancel(ids[0]).await.unwrap());

    let browser = Browser::start(&folder).await;
    let page = &browser.page;
    page.goto(&up.dashboard).await.unwrap();
    appears(page, "#links a[href='/jobs']", "Jobs").await;
    press(page, "#links a[href='/jobs']").await;
    let row = |at: usize| format!("#jobs tr[data-id='{}']", ids[at]);
    appears(page, &row(0), "dead (cancelled)").await;
    assert_eq!(text(page, &row(1)).await, "", "only the dead are listed");
    press(page, &row(0)).await;
    appears(page, "#details-text", "\"to\": \"ada\"").await;

    press(page, &format!("{} td:last-child button", row(0))).await;
    appears(page, "#said", "1 job retried").await;
    assert_eq!(queue.show(ids[0]).await.unwrap().unwrap().summary.state, JobState::Ready);
    appears(page, "#no-jobs", "No job").await;

    press(page, "#queues tr[data-queue='letters'] button").await;
    appears(page, "#queues tr[data-queue='letters']", "paused").await;
    assert_eq!(queue.paused().await.unwrap(), ["letters"]);
    press(page, "#queues tr[data-queue='letters'] button").await;
    appears(page, "#queues tr[data-queue='letters']", "open").await;
    assert!(queue.paused().await.unwrap().is_empty());

    let choose = "const state = document.querySelector('#state'); state.value = 'ready'; \
                  state.dispatchEvent(new Event('input'))";
    page.execute(choose, Vec::new()).await.unwrap();
    appears(page, &row(1), "<b>bob</b>").await;
    press(page, &format!("{} td:last-child button", row(1))).await;
    appears(page, "#said", "1 job cancelled").await;
    assert_eq!(queue.show(ids[1]).await.unwrap().unwrap().summary.state, JobState::Dead);
    browser.page.clone().close().await.unwrap();
}

#[tokio::test]
async fn jobs_are_not_touched_for_the_page_of_another_site() {
    let folder = TempDir::new().unwrap();
    let up = Up::start(&folder, &[], &["--instances", "1"]);
    let queue = Queue::sqlite(folder.path().join("greenwave-data/shop.db")).unwrap();
    let ids = push(&queue, &["ada"]).await;
    let body = json!({ "ids": ids }).to_string();
    let ask = |method: &str, action: &str, headers: &[(&str, &str)]| {
        let url = format!("{}/admin/jobs/{action}", up.dashboard);
        let request = hyper::Request::builder().method(method).uri(url);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let request = request.body(http_body_util::Full::from(body.clone())).unwrap();
        async move { send(&client(), request).await.unwrap().0.as_u16() }
    };
    let json = ("content-type", "application/json");
    for action in ACTIONS {
        assert_eq!(ask("POST", action, &[json, ("origin", "http://evil.example")]).await, 403, "{action}");
        let site = [json, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
        assert_eq!(ask("POST", action, &site).await, 403, "{action}");
        // A form can send no JSON, and a link no POST.
        let form = [("origin", up.dashboard.as_str()), ("content-type", "text/plain")];
        assert_eq!(ask("POST", action, &form).await, 415, "{action}");
        let link = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
        assert_eq!(ask("GET", action, &link).await, 405, "{action}");
    }
    assert_eq!(queue.show(ids[0]).await.unwrap().unwrap().summary.state, JobState::Ready);
    assert_eq!(ask("POST", "cancel", &[json, ("origin", up.dashboard.as_str())]).await, 200);
}

const ACTIONS: [&str; 5] = ["retry", "cancel", "discard", "pause", "resume"];

#[tokio::test]
async fn the_jobs_are_behind_the_token_and_their_database_is_not_shown() {
    let folder = TempDir::new().unwrap();
    let database = "postgres://ann:hunter2@127.0.0.1:1/secrets";
    let settings = [("GREENWAVE_DASHBOARD__TOKEN", "sesame"), ("GREENWAVE_JOBS__DATABASE", database)];
    let up = up_with(&folder, &settings, &[]);
    let ask = |method: &str, path: &str, token: &str| {
        let request = hyper::Request::builder().method(method).uri(format!("{}{path}", up.dashboard));
        let request = request.header("authorization", format!("Bearer {token}"));
        let request = request.header("content-type", "application/json");
        let request = request.body(http_body_util::Full::from(r#"{"ids":[1]}"#)).unwrap();
        async move { send(&client(), request).await.unwrap() }
    };
    for action in ACTIONS {
        assert_eq!(ask("POST", &format!("/admin/jobs/{action}"), "open").await.0, 401, "{action}");
    }
    for path in ["/jobs", "/admin/jobs", "/admin/jobs/queues", "/admin/jobs/1"] {
        assert_eq!(ask("GET", path, "open").await.0, 401, "{path}");
    }
    // The database is away, and the answers say so.
    for (method, path, status) in [
        ("GET", "/", 200),
        ("GET", "/jobs", 200),
        ("GET", "/metrics", 200),
        ("GET", "/admin/instances", 200),
        ("GET", "/admin/jobs", 503),
        ("POST", "/admin/jobs/cancel", 503),
    ] {
        let (answered, said) = ask(method, path, "sesame").await;
        assert_eq!(answered, status, "{path}: {said}");
        assert!(!said.contains("hunter2") && !said.contains("postgres://"), "{path}: {said}");
    }
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(!log.contains("hunter2") && !up.printed.contains("hunter2"), "{log}{}", up.printed);
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

/// Presses what is there, once it is.
async fn press(page: &Client, selector: &str) {
    let script =
        "const found = document.querySelector(arguments[0]); if (found) found.click(); return !!found";
    let deadline = Instant::now() + Duration::from_secs(60);
    while page.execute(script, vec![json!(selector)]).await.unwrap() != json!(true) {
        assert!(Instant::now() < deadline, "{selector} is not there");
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
