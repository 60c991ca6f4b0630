//! CPU of a cache hit beside nginx and Varnish: `cargo bench -p greenwave-edge --bench http_cache`.
//!
//! wrk asks over 64 connections for 200 bytes that each cache has kept: nginx's `proxy_cache` on a tmpfs, Varnish in
//! memory, ours in memory. They take turns; what counts is the CPU time of the cache's own processes for each request, and
//! each ratio is the median of the rounds' own. It needs nginx, varnishd and wrk: `apt install nginx-light varnish wrk`.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

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
        (0..rounds).map(|_| caches.each_ref().map(|cache| cache.cpu_of_a_hit(seconds))).collect();
    println!("| ratio | measured | wanted |\n|---|---|---|");
    for (name, peer, wanted) in [("nginx, proxy_cache on tmpfs", 0, "1.5"), ("Varnish", 1, "2.5")] {
        let mut ratios: Vec<f64> = measured.iter().map(|round| round[peer] / round[2]).collect();
        ratios.sort_by(f64::total_cmp);
        println!("| {name} ÷ ours, CPU a hit | {:.2} | ≥ {wanted} |", ratios[ratios.len() / 2]);
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

/// A process under measurement, and its children.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn spawn(mut command: Command, address: SocketAddr) -> Self {
        let program = command.get_program().to_owned();
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap_or_else(|error| {
            panic!("cannot start {}: {error}; apt install nginx-light varnish wrk", program.display())
        });
        let server = Self { child, address };
        for _ in 0..1000 {
            if TcpStream::connect(address).is_ok_and(|stream| answers(&stream)) {
                return server;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{} does not answer on {address}", program.display());
    }

    fn cpu_of_a_hit(&self, seconds: u32) -> f64 {
        let url = format!("http://{}/", self.address);
        wrk(&url, 1);
        let before = self.cpu();
        let requests = wrk(&url, seconds);
        (self.cpu() - before) / requests
    }

    /// CPU time in nanoseconds of all threads of the process and of its children.
    fn cpu(&self) -> f64 {
        processes(self.child.id()).iter().flat_map(|pid| tasks(*pid)).map(|task| on_cpu(&task)).sum()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for pid in processes(self.child.id()) {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
        let _ = self.child.wait();
    }
}

fn answers(mut stream: &TcpStream) -> bool {
    let mut answer = [0; 4096];
    let asked = stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n");
    let read = asked.and_then(|()| stream.read(&mut answer)).unwrap_or(0);
    answer[..read].starts_with(b"HTTP/1.1 200")
}

/// Asks for so long; says how many answers came.
fn wrk(url: &str, seconds: u32) -> f64 {
    let output = Command::new("wrk")
        .args(["-t1", "-c64", &format!("-d{seconds}s"), url])
        .output()
        .expect("cannot start wrk; apt install wrk");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!text.contains("Non-2xx") && !text.contains("Socket errors"), "{text}");
    let line = text.lines().find(|line| line.contains("requests in")).unwrap_or_else(|| panic!("{text}"));
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn processes(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    for task in tasks(pid) {
        let children = fs::read_to_string(task.join("children")).unwrap_or_default();
        all.extend(children.split_whitespace().map(|child| child.parse::<u32>().unwrap()));
    }
    all
}

fn tasks(pid: u32) -> Vec<PathBuf> {
    let folder = fs::read_dir(format!("/proc/{pid}/task"));
    folder.into_iter().flatten().map(|task| task.unwrap().path()).collect()
}

fn on_cpu(task: &Path) -> f64 {
    let text = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
    text.split(' ').next().and_then(|time| time.parse().ok()).unwrap_or(0.0)
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
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
    let mut command = Command::new("nginx");
    // A pid file of its own, for nginx removes it when it ends.
    let directives = format!("daemon off; pid {};", file.with_extension("pid").display());
    command.args(["-g", &directives, "-e", "stderr", "-c"]).arg(file);
    Server::spawn(command, address)
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
