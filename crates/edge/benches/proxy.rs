//! CPU of a proxied request beside nginx and HAProxy: `cargo bench -p greenwave-edge --bench proxy`.
//!
//! wrk asks over 64 connections for 200 bytes, through each proxy in turn, of the same two upstreams. What counts is the
//! CPU time of the proxy's own processes for each request; each ratio is the median of the rounds' own ratios, so that
//! what else the machine does falls on all alike. It needs nginx, haproxy and wrk: `apt install nginx-light haproxy wrk`.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use greenwave_edge::{Proxy, ProxyConfig, Upstreams, listen};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ANSWER: usize = 200;
const CLIENTS: usize = 64;
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
    let _upstreams = Server::start(&folder, "upstreams", nginx_upstreams(&upstreams), upstreams[0], nginx);
    println!("| ratio | threads | measured | wanted |\n|---|---|---|---|");
    for threads in [1, 2] {
        compare(&settings, &folder, upstreams, threads);
    }
    let bytes = idle_bytes(&settings, upstreams);
    println!("| memory of an idle connection, KiB | 1 | {:.1} | ≤ 16 |", bytes / 1024.0);
}

fn compare(settings: &Settings, folder: &TempDir, upstreams: [SocketAddr; 2], threads: usize) {
    let (a, b) = (free_address(), free_address());
    let peers = [
        Server::start(folder, "nginx", nginx_proxy(a, &upstreams, threads), a, nginx),
        Server::start(folder, "haproxy", haproxy_proxy(b, &upstreams, threads), b, haproxy),
        ours(upstreams, threads),
    ];
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

/// A process under measurement, and its children.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn start(
        folder: &TempDir,
        name: &str,
        config: String,
        address: SocketAddr,
        command: fn(&Path) -> Command,
    ) -> Self {
        let file = folder.path().join(format!("{name}-{}.conf", address.port()));
        fs::write(&file, config).unwrap();
        Self::spawn(command(&file), address)
    }

    fn spawn(mut command: Command, address: SocketAddr) -> Self {
        let program = command.get_program().to_owned();
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap_or_else(|error| {
            panic!("cannot start {}: {error}; apt install nginx-light haproxy wrk", program.display())
        });
        let server = Self { child, address };
        for _ in 0..500 {
            if let Ok(stream) = TcpStream::connect(address) {
                ask(&stream);
                return server;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{} does not listen on {address}", program.display());
    }

    /// CPU time in nanoseconds of all threads of the process and of its children.
    fn cpu(&self) -> f64 {
        processes(self.child.id()).iter().flat_map(|pid| tasks(*pid)).map(|task| on_cpu(&task)).sum()
    }

    fn cpu_of_a_request(&self, seconds: u32) -> f64 {
        let url = format!("http://{}/", self.address);
        wrk(&url, 1);
        let before = self.cpu();
        let requests = wrk(&url, seconds);
        (self.cpu() - before) / requests
    }

    fn resident_bytes(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix("kB").unwrap().trim().parse::<f64>().unwrap() * 1024.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A worker of nginx outlives a killed master: all of them are told.
        for pid in processes(self.child.id()) {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
        let _ = self.child.wait();
    }
}

fn ours(upstreams: [SocketAddr; 2], threads: usize) -> Server {
    let address = free_address();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(BE_PROXY, format!("{address} {threads} {} {}", upstreams[0], upstreams[1]));
    Server::spawn(command, address)
}

/// What an idle keep-alive connection of a client keeps resident.
fn idle_bytes(settings: &Settings, upstreams: [SocketAddr; 2]) -> f64 {
    let server = ours(upstreams, 1);
    let open = |count| -> Vec<TcpStream> {
        let connect = |_| TcpStream::connect(server.address).inspect(ask).unwrap();
        (0..count).map(connect).collect()
    };
    // What the first connections need once is not counted.
    let _first = open(100);
    let before = server.resident_bytes();
    let _idle = open(settings.idle_connections);
    (server.resident_bytes() - before) / settings.idle_connections as f64
}

/// One request over a connection that stays open.
fn ask(mut stream: &TcpStream) {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n").unwrap();
    let mut answer = [0; 4096];
    let read = stream.read(&mut answer).unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..read]));
}

/// Asks for so long; says how many answers came.
fn wrk(url: &str, seconds: u32) -> f64 {
    let output = Command::new("wrk")
        .args(["-t1", &format!("-c{CLIENTS}"), &format!("-d{seconds}s"), url])
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

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn nginx(config: &Path) -> Command {
    let mut command = Command::new("nginx");
    // Its own file, for nginx removes it when it ends.
    let directives = format!("daemon off; pid {};", config.with_extension("pid").display());
    command.args(["-g", &directives, "-e", "stderr", "-c"]).arg(config);
    command
}

fn haproxy(config: &Path) -> Command {
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(config);
    command
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
