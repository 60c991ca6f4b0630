//! CPU of a proxied request beside nginx and HAProxy: `cargo bench -p greenwave-edge --bench proxy`.
//!
//! wrk asks over 64 connections for 200 bytes, through each proxy in turn, of the same two upstreams. What counts is the
//! CPU time of the proxy's own processes for each request; each ratio is the median of the rounds' own ratios, so that
//! what else the machine does falls on all alike. It needs nginx, haproxy and wrk: `apt install nginx-light haproxy wrk`.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use common::{Server, free_address, median};
use greenwave_edge::{Proxy, ProxyConfig, Upstreams, listen};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ANSWER: usize = 200;
/// Set in the process that is our proxy: its address, its threads, and the upstreams.
const BE_PROXY: &str = "EDGE_BENCH_PROXY";

struct Settings {
    rounds: usize,
    seconds: u32,
    idle_connections: usize,
}

fn main() {
    if let Ok(orders) = std::env::var(BE_PROXY) {
        return be_proxy(&orders);
    }
    // `cargo test --benches` runs this too, only to see that it works.
    let trial = !std::env::args().any(|argument| argument == "--bench");
    let settings = match trial {
        true => Settings { rounds: 1, seconds: 1, idle_connections: 100 },
        false => Settings { rounds: 7, seconds: 4, idle_connections: 4000 },
    };
    let folder = tempfile::tempdir().unwrap();
    let upstreams = [free_address(), free_address()];
    let config = file(&folder, "upstreams", nginx_upstreams(&upstreams));
    let _upstreams = Server::nginx(&config, upstreams[0]);
    println!("| ratio | threads | measured | wanted |\n|---|---|---|---|");
    for threads in [1, 2] {
        compare(&settings, &folder, upstreams, threads);
    }
    let kib = ours(upstreams, 1).idle_bytes(settings.idle_connections) / 1024.0;
    println!("| memory of an idle connection, KiB | 1 | {kib:.1} | ≤ 16 |");
}

fn compare(settings: &Settings, folder: &TempDir, upstreams: [SocketAddr; 2], threads: usize) {
    let (a, b) = (free_address(), free_address());
    let nginx = file(folder, &format!("nginx-{threads}"), nginx_proxy(a, &upstreams, threads));
    let mut haproxy = Command::new("haproxy");
    haproxy.arg("-db").arg("-f").arg(file(folder, "haproxy", haproxy_proxy(b, &upstreams, threads)));
    let peers = [Server::nginx(&nginx, a), Server::spawn(haproxy, b), ours(upstreams, threads)];
    let mut rounds: Vec<[f64; 3]> = Vec::new();
    for _ in 0..settings.rounds {
        rounds.push(peers.each_ref().map(|peer| peer.cpu_of_a_request(settings.seconds)));
    }
    for (name, peer, wanted) in [("nginx", 0, "1.0"), ("HAProxy", 1, "1.05")] {
        let ratio = median(rounds.iter().map(|round| round[peer] / round[2]));
        println!("| {name} ÷ ours, CPU a request | {threads} | {ratio:.2} | ≥ {wanted} |");
    }
}

fn be_proxy(orders: &str) {
    let mut words = orders.split(' ');
    let address: SocketAddr = words.next().unwrap().parse().unwrap();
    let threads: usize = words.next().unwrap().parse().unwrap();
    let upstreams = Upstreams::fixed(words.map(|word| word.parse().unwrap()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = ProxyConfig { threads, ..Default::default() };
    runtime.block_on(async {
        let proxy = Proxy::new(config, upstreams.into_watch()).unwrap();
        proxy.serve(listen(address, threads).unwrap(), CancellationToken::new()).await.unwrap();
    });
}

fn ours(upstreams: [SocketAddr; 2], threads: usize) -> Server {
    let address = free_address();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(BE_PROXY, format!("{address} {threads} {} {}", upstreams[0], upstreams[1]));
    Server::spawn(command, address)
}

fn file(folder: &TempDir, name: &str, text: String) -> PathBuf {
    let file = folder.path().join(name).with_extension("conf");
    fs::write(&file, text).unwrap();
    file
}

const NGINX: &str = "error_log stderr crit; worker_rlimit_nofile 8192;
events { worker_connections 4096; }";

fn nginx_upstreams(addresses: &[SocketAddr]) -> String {
    let body = "x".repeat(ANSWER);
    let server =
        |address| format!("server {{ listen {address} reuseport; location / {{ return 200 \"{body}\"; }} }}");
    let servers: String = addresses.iter().map(server).collect();
    format!(
        "{NGINX}\nworker_processes 1;\nhttp {{ access_log off; keepalive_requests 100000000; {servers} }}"
    )
}

fn nginx_proxy(address: SocketAddr, upstreams: &[SocketAddr], threads: usize) -> String {
    let servers: String = upstreams.iter().map(|upstream| format!("server {upstream};")).collect();
    format!(
        "{NGINX}
worker_processes {threads};
http {{
  access_log off; keepalive_requests 100000000;
  upstream service {{ {servers} keepalive 256; keepalive_requests 100000000; }}
  server {{
    listen {address} reuseport;
    location / {{
      proxy_pass http://service;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_set_header Host $host;
      proxy_set_header X-Real-IP $remote_addr;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;
    }}
  }}
}}"
    )
}

fn haproxy_proxy(address: SocketAddr, upstreams: &[SocketAddr], threads: usize) -> String {
    let server = |(number, upstream): (usize, &SocketAddr)| format!("  server s{number} {upstream}\n");
    let servers: String = upstreams.iter().enumerate().map(server).collect();
    format!(
        "global
  nbthread {threads}
  maxconn 8192
defaults
  mode http
  timeout connect 2s
  timeout client 60s
  timeout server 60s
  http-reuse always
  option forwardfor
frontend clients
  bind {address}
  default_backend service
backend service
  balance leastconn
{servers}"
    )
}
