//! What the benchmarks beside other programs share: processes under measurement, and wrk as their client.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const CLIENTS: usize = 64;

/// A process under measurement, and its children. Its drop ends them.
pub(crate) struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    /// Starts it and waits for its first answer.
    pub(crate) fn spawn(mut command: Command, address: SocketAddr) -> Self {
        let program = command.get_program().to_owned();
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap_or_else(|error| {
            panic!("cannot start {}: {error}; apt install nginx-light haproxy varnish wrk", program.display())
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

    /// Starts nginx on a file, beside which it keeps its pid: it removes that file when it ends.
    pub(crate) fn nginx(file: &Path, address: SocketAddr) -> Self {
        let mut command = Command::new("nginx");
        let directives = format!("daemon off; pid {};", file.with_extension("pid").display());
        command.args(["-g", &directives, "-e", "stderr", "-c"]).arg(file);
        Self::spawn(command, address)
    }

    /// CPU time in nanoseconds.
    pub(crate) fn cpu_of_a_request(&self, seconds: u32) -> f64 {
        let url = format!("http://{}/", self.address);
        wrk(&url, 1);
        let before = self.cpu();
        let requests = wrk(&url, seconds);
        (self.cpu() - before) / requests
    }

    fn cpu(&self) -> f64 {
        processes(self.child.id()).iter().flat_map(|pid| tasks(*pid)).map(|task| on_cpu(&task)).sum()
    }

    /// What each of so many connections keeps resident, idle after a request.
    pub(crate) fn idle_bytes(&self, connections: usize) -> f64 {
        let connect = |_| {
            let stream = TcpStream::connect(self.address).unwrap();
            assert!(answers(&stream));
            stream
        };
        // What the first connections need once is not counted.
        let _first: Vec<TcpStream> = (0..100).map(connect).collect();
        let before = self.resident_bytes();
        let _idle: Vec<TcpStream> = (0..connections).map(connect).collect();
        (self.resident_bytes() - before) / connections as f64
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

/// Asks once, over a connection that stays open.
fn answers(mut stream: &TcpStream) -> bool {
    let mut answer = [0; 4096];
    let asked = stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n");
    let read = asked.and_then(|()| stream.read(&mut answer)).unwrap_or(0);
    answer[..read].starts_with(b"HTTP/1.1 200")
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

pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
