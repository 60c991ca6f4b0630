//! The edge's response cache: pages that say that they may be a second old, each time from the service, and from the
//! edge's memory.
//!
//! A page is an HTTP answer of a service that reads its customers from the database, by primary key, with
//! `Cache-Control: max-age=1`. Both arms' proxies are before the same service and differ in the cache alone; the one
//! that has it asks the service for each page once a second.
//!
//! Service, edges and client are in this process, so that its CPU time is all that a page costs. It holds what the
//! client costs too, which no cache saves.

use greenwave_edge::{CacheConfig, OverloadConfig, ProxyConfig};
use tokio::net::TcpListener;

use super::Source;
use super::http::{self, Client};
use super::rows::Rows;
use crate::{Arm, Arms, BoxError, Experiment, Setup, Workload};

/// How many customers a page shows.
const PAGE: i64 = 10;

/// How many pages are popular.
const POPULAR: i64 = 100;

/// The experiment on these customers.
#[must_use]
pub fn experiment(source: Source) -> Experiment {
    let question = "How many more pages do a service and its edge answer when the edge keeps for a second what may be kept?";
    Experiment::new("edge-cache", "The edge's cache", question, move |setup| set_up(setup, source.clone()))
        .unit("pages")
}

async fn set_up(setup: Setup, source: Source) -> Result<Arms, BoxError> {
    let rows = Rows::new(&setup, &source).await?;
    let popular = POPULAR.min(rows.customers / PAGE);
    setup.fact("page", format!("{PAGE} customers, one of {popular} pages, with Cache-Control: max-age=1"));
    setup.fact("service, edge and client", "in this process");

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let served = tokio::spawn(http::serve(listener, move |head| page(rows.clone(), head)));
    setup.on_end("stop the service", async move {
        served.abort();
        Ok(())
    });

    let behind = |cache| {
        // What an overloaded service refuses is not what is asked here.
        let overload = OverloadConfig { enabled: false, ..OverloadConfig::default() };
        Client::of_proxy(&setup, [address], ProxyConfig { cache, overload, ..ProxyConfig::default() })
    };
    let before = behind(CacheConfig { max_bytes: 0, ..CacheConfig::default() })?;
    let after = behind(CacheConfig::default())?;
    for number in 0..popular {
        let path = path(number);
        if before.get(&path).await? != after.get(&path).await? {
            return Err(format!("the two proxies differ over {path}").into());
        }
    }
    Ok(Arms {
        before: Arm::new("from the service", pages(before, popular)),
        after: Arm::new("from the edge's cache", pages(after, popular)),
    })
}

fn pages(client: Client, popular: i64) -> Workload {
    Workload::over(client, move |client, mut call| async move {
        std::hint::black_box(client.get(&path(call.pick(0..popular))).await?);
        Ok(())
    })
}

fn path(number: i64) -> String {
    format!("/pages/{number}")
}

/// The service's answer to a request with this head.
async fn page(rows: Rows, head: String) -> Result<Vec<u8>, BoxError> {
    let path = head.split(' ').nth(1).and_then(|path| path.strip_prefix("/pages/"));
    let number: i64 = path.ok_or("there are pages only")?.parse()?;
    let mut customers = Vec::new();
    for id in number * PAGE + 1..=(number + 1) * PAGE {
        customers.push(rows.customer(id).await?.ok_or("a customer is missing")?);
    }
    let body = serde_json::to_string(&customers)?;
    let fields = "Content-Type: application/json\r\nCache-Control: max-age=1";
    Ok(format!("HTTP/1.1 200 OK\r\n{fields}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes())
}
