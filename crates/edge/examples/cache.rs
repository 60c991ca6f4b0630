//! A caching proxy in front of a service that runs already:
//!
//! ```text
//! cargo run --example cache -- 127.0.0.1:8000
//! ```
//!
//! It prints the address on which it listens, and then once a second what the cache has done, when that changed. With
//! `--stale-if-error 1m` it gives stale answers for so long when the service fails.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use greenwave_edge::{CacheConfig, Proxy, ProxyConfig, Upstreams, listen};
use tokio_util::sync::CancellationToken;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (service, stale_if_error) = match &arguments[..] {
        [service] => (service, Duration::ZERO),
        [service, option, time] if option == "--stale-if-error" => {
            (service, humantime_serde::re::humantime::parse_duration(time)?)
        }
        _ => return Err("usage: cache ADDRESS [--stale-if-error TIME]".into()),
    };
    let service: SocketAddr = service.parse()?;
    let cache = CacheConfig { stale_if_error, ..Default::default() };
    let config = ProxyConfig { threads: 2, cache, ..Default::default() };
    let proxy = Proxy::new(config, Upstreams::fixed([service]).into_watch())?;
    let listeners = listen("127.0.0.1:0".parse()?, 2)?;
    println!("{}", listeners[0].local_addr()?);

    let cache = proxy.cache();
    let report = async {
        let mut before = cache.stats();
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let stats = cache.stats();
            if stats != before {
                println!("{stats:?}");
            }
            before = stats;
        }
    };
    tokio::select! {
        ended = proxy.serve(listeners, CancellationToken::new()) => Ok(ended?),
        never = report => never,
    }
}
