//! Supervises two instances of itself and sends ten requests through the proxy.
//!
//! ```text
//! cargo run --example balance
//! ```

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::time::Duration;

use greenwave_edge::{Proxy, ProxyConfig, Supervisor, SupervisorConfig, listen};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

const INSTANCE: &str = "BALANCE_INSTANCE";

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::var(INSTANCE) {
        Ok(name) => be_instance(&name),
        Err(_) => tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(supervise()),
    }
}

/// The supervised service: any program will do that listens on `PORT`.
fn be_instance(name: &str) -> Result<(), Box<dyn Error>> {
    let port: u16 = std::env::var("PORT")?.parse()?;
    println!("listens on port {port}");
    for stream in std::net::TcpListener::bind(("127.0.0.1", port))?.incoming() {
        let stream = stream?;
        let head_lines =
            BufReader::new(&stream).lines().take_while(|line| matches!(line, Ok(line) if !line.is_empty()));
        // A health check connects and leaves without a word.
        if head_lines.count() > 0 {
            let length = name.len();
            write!(
                &stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{name}"
            )?;
        }
    }
    Ok(())
}

async fn supervise() -> Result<(), Box<dyn Error>> {
    let program = std::env::current_exe()?.to_string_lossy().into_owned();
    let config = SupervisorConfig { command: vec![program], instances: 2, ..Default::default() };
    let supervisor = Supervisor::new(config)
        .env(|instance| vec![(INSTANCE.to_owned(), instance.name.clone())])
        .logs(|line| println!("{} | {}", line.instance, line.text()))
        .start()?;
    supervisor.ready(Duration::from_secs(10)).await?;

    let cancel = CancellationToken::new();
    let listeners = listen("127.0.0.1:0".parse()?, 1)?;
    let address = listeners[0].local_addr()?;
    let proxy = Proxy::new(ProxyConfig::default(), supervisor.upstreams())?;
    let proxy = tokio::spawn(proxy.serve(listeners, cancel.clone()));
    for number in 1..=10 {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: example\r\nConnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        println!("request {number:2}: {}", answer.lines().last().unwrap_or("no answer"));
    }

    cancel.cancel();
    proxy.await??;
    supervisor.shutdown().await;
    Ok(())
}
