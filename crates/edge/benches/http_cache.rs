//! CPU of a cache hit beside nginx and Varnish: `cargo bench -p greenwave-edge --bench http_cache`.
//!
//! wrk asks over 64 connections for 200 bytes that each cache has kept: nginx's `proxy_cache` on a tmpfs, Varnish in
//! memory, ours in memory. They take turns; what counts is the CPU time of the cache's own processes for each request, and
//! each ratio is the median of the rounds' own. It needs nginx, varnishd and wrk: `apt install nginx-light varnish wrk`.

#![allow(clippy::unwrap_used)]

#[allow(dead_code)] // Memory is measured by the other one.
mod common;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use common::{Server, free_address, median};
use greenwave_edge::{Proxy, ProxyConfig, Upstreams, listen};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Set in the process that is our proxy: its address and the upstream's.
const BE_PROXY: &str = "EDGE_BENCH_CACHE";

fn main() {
    if let Ok(orders) = std::env::var(BE_PROXY) {
        return be_proxy(&orders);
    }
    // `cargo test --benches` runs this too, only to see that it works.
    let trial = !std::env::args().any(|argument| argument == "--bench");
    let (rounds, seconds) = if trial { (1, 1) } else { (7, 4) };
    // A tmpfs, where there is one.
    let folder =
        if Path::new("/dev/shm").is_dir() { tempfile::tempdir_in("/dev/shm") } else { tempfile::tempdir() };
    let folder = folder.unwrap();
    let origin = free_address();
    let _origin = nginx(folder.path(), "origin", origin, &nginx_origin(origin));
    let cache = free_address();
    let caches = [
        nginx(folder.path(), "cache", cache, &nginx_cache(cache, origin, folder.path())),
        varnish(folder.path(), origin),
        ours(origin),
    ];
    let measured: Vec<[f64; 3]> =
        (0..rounds).map(|_| caches.each_ref().map(|cache| cache.cpu_of_a_request(seconds))).collect();
    println!("| ratio | measured | wanted |\n|---|---|---|");
    for (name, peer, wanted) in [("nginx, proxy_cache on tmpfs", 0, "1.5"), ("Varnish", 1, "2.5")] {
        let ratio = median(measured.iter().map(|round| round[peer] / round[2]));
        println!("| {name} ÷ ours, CPU a hit | {ratio:.2} | ≥ {wanted} |");
    }
}

fn be_proxy(orders: &str) {
    let (address, upstream) = orders.split_once(' ').unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let upstreams = Upstreams::fixed([upstream.parse().unwrap()]).into_watch();
        let proxy = Proxy::new(ProxyConfig { threads: 1, ..Default::default() }, upstreams).unwrap();
        let listeners = listen(address.parse().unwrap(), 1).unwrap();
        proxy.serve(listeners, CancellationToken::new()).await.unwrap();
    });
}

fn ours(origin: SocketAddr) -> Server {
    let address = free_address();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(BE_PROXY, format!("{address} {origin}"));
    Server::spawn(command, address)
}

fn varnish(folder: &Path, origin: SocketAddr) -> Server {
    let address = free_address();
    let file = folder.join("cache.vcl");
    let (host, port) = (origin.ip(), origin.port());
    fs::write(&file, format!("vcl 4.1; backend default {{ .host = \"{host}\"; .port = \"{port}\"; }}"))
        .unwrap();
    let mut command = Command::new("varnishd");
    command.args(["-F", "-j", "none", "-s", "malloc,64m", "-a", &address.to_string(), "-f"]).arg(file);
    command.arg("-n").arg(folder.join("varnish"));
    Server::spawn(command, address)
}

fn nginx(folder: &Path, name: &str, address: SocketAddr, config: &str) -> Server {
    let file = folder.join(format!("{name}.conf"));
    let head = "error_log stderr crit; worker_processes 1; events { worker_connections 4096; }";
    // A worker of another user could not enter the folder.
    let user = if fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) { "user root;" } else { "" };
    fs::write(
        &file,
        format!("{user} {head} http {{ access_log off; keepalive_requests 100000000; {config} }}"),
    )
    .unwrap();
    Server::nginx(&file, address)
}

fn nginx_origin(address: SocketAddr) -> String {
    let body = "x".repeat(200);
    format!(
        "server {{ listen {address}; location / {{
            add_header Cache-Control max-age=86400; add_header ETag '\"a\"'; return 200 \"{body}\"; }} }}"
    )
}

fn nginx_cache(address: SocketAddr, origin: SocketAddr, folder: &Path) -> String {
    let path = folder.join("nginx").display().to_string();
    format!(
        "proxy_cache_path {path} keys_zone=kept:10m levels=1:2 use_temp_path=off;
        server {{ listen {address} reuseport; location / {{
            proxy_pass http://{origin}; proxy_cache kept; proxy_cache_lock on; proxy_cache_revalidate on;
            add_header X-Cache-Status $upstream_cache_status; }} }}"
    )
}
