use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    sync::{
        OnceLock,
        mpsc::{Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, getuid, kill_process};
use tempfile::TempDir;

use crate::{Program, REDIS_DATABASES, certificates};

/// Counts statements, for databases that create the extension.
const STATISTICS: &str = "shared_preload_libraries=pg_stat_statements";
const REDIS_CONFIG: &str = "redis.conf";
/// What a sentinel calls the primary that it watches.
pub(crate) const PRIMARY_NAME: &str = "main";
pub(crate) const START_DEADLINE: Duration = Duration::from_secs(30);

/// How long a server may take to end in good order.
const ENDS_WITHIN: Duration = Duration::from_secs(20);

#[derive(Clone, Copy)]
enum Kind {
    Postgres,
    Redis,
    RedisTls,
    /// Also Redis, watching others.
    Sentinel,
    Nats,
    Pgbouncer,
}

impl Kind {
    /// Of a program that refuses to be root.
    fn is_unprivileged(self) -> bool {
        matches!(self, Kind::Postgres | Kind::Pgbouncer)
    }
}

/// A private server, which ends when this value is dropped or the process ends.
///
/// Durable like a production server against its own death: what it acknowledged is there after [`Server::kill`] and
/// [`Server::start`] (PostgreSQL does not wait for the disk, which only a machine's crash could tell).
pub struct Server {
    kind: Kind,
    port: u16,
    folder: TempDir,
    child: Option<Child>,
    /// Of the address: the database's name, if it has one.
    database: String,
    /// PostgreSQL's, beside those of every server here.
    settings: Vec<String>,
}

impl Server {
    /// A PostgreSQL server; its URL names the database `postgres`.
    pub fn postgres() -> Server {
        Server::postgres_with(&[])
    }

    /// The same with settings of one's own, such as `fsync=on`, without which it does not wait for the disk.
    pub fn postgres_with(settings: &[&str]) -> Server {
        let mut server = Server::create(Kind::Postgres);
        server.settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let data = server.folder.path().join("data");
        let mut initdb = server.command(Program::Initdb);
        initdb.arg("-D").arg(&data).args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]);
        let output = initdb.output().expect("initdb starts");
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        server.started()
    }

    /// A Redis server that appends to its file every second.
    pub fn redis() -> Server {
        Server::redis_with(&[])
    }

    /// The same with lines of one's own in its `redis.conf`, such as `maxmemory 2mb` or `requirepass secret`.
    ///
    /// The URL names no user and no password.
    pub fn redis_with(lines: &[&str]) -> Server {
        Server::configured(Kind::Redis, |server| vec![format!("port {}", server.port)], lines)
    }

    /// A Redis server that speaks TLS alone, with a certificate for `127.0.0.1` by [`Server::certificate_authority`].
    pub fn redis_tls() -> Server {
        let tls = |server: &Server| {
            certificates::make(server.folder.path());
            vec![
                "port 0".to_owned(),
                format!("tls-port {}", server.port),
                format!("tls-cert-file {}", server.file(certificates::CERTIFICATE)),
                format!("tls-key-file {}", server.file(certificates::KEY)),
                format!("tls-ca-cert-file {}", server.file(certificates::AUTHORITY)),
                "tls-auth-clients no".to_owned(),
            ]
        };
        Server::configured(Kind::RedisTls, tls, &[])
    }

    /// One that asks `primary` and its replicas how they are, and replaces it once it is gone for 200 ms.
    pub(crate) fn sentinel(primary: &Server) -> Server {
        let watch = |server: &Server| {
            vec![
                format!("port {}", server.port),
                format!("sentinel monitor {PRIMARY_NAME} 127.0.0.1 {} 1", primary.port),
                format!("sentinel down-after-milliseconds {PRIMARY_NAME} 200"),
                format!("sentinel failover-timeout {PRIMARY_NAME} 1000"),
            ]
        };
        Server::configured(Kind::Sentinel, watch, &[])
    }

    fn configured(kind: Kind, own: impl FnOnce(&Server) -> Vec<String>, lines: &[&str]) -> Server {
        let server = Server::create(kind);
        let mut config = format!("bind 127.0.0.1\ndir {}\n", server.folder.path().display());
        if !matches!(kind, Kind::Sentinel) {
            // A primary does not wait for more replicas before it serves the first.
            config += "save \"\"\nappendonly yes\nrepl-diskless-sync-delay 0\n";
            config += &format!("databases {REDIS_DATABASES}\n");
        }
        for line in own(&server).iter().map(String::as_str).chain(lines.iter().copied()) {
            config += line;
            config.push('\n');
        }
        fs::write(server.file(REDIS_CONFIG), config).expect("the directory may be written");
        server.started()
    }

    /// A NATS server with JetStream.
    pub fn nats() -> Server {
        Server::create(Kind::Nats).started()
    }

    /// A PgBouncer before the database at `url`, in transaction mode: its clients share three connections.
    pub fn pgbouncer(url: &str) -> Server {
        let mut server = Server::create(Kind::Pgbouncer);
        let (base, database) = url.rsplit_once('/').expect("the URL names a database");
        let (_, address) = base.rsplit_once('@').expect("the URL names a user");
        let (host, port) = address.rsplit_once(':').expect("the URL names a port");
        server.database = database.to_owned();
        let folder = server.folder.path();
        let (users, own_port) = (folder.join("users"), server.port);
        fs::write(&users, "\"postgres\" \"\"\n").expect("the directory may be written");
        let config = format!(
            "[databases]\n* = host={host} port={port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {own_port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {}\n\
             pool_mode = transaction\ndefault_pool_size = 3\nmax_client_conn = 1000\n",
            users.display()
        );
        fs::write(folder.join("pgbouncer.ini"), config).expect("the directory may be written");
        server.started()
    }

    fn create(kind: Kind) -> Server {
        remove_leftovers();
        let prefix = format!("greenwave-test-{}-", process::id());
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir().expect("a temporary directory");
        if kind.is_unprivileged()
            && let Some((uid, gid)) = unprivileged()
        {
            chown(folder.path(), Some(uid), Some(gid)).expect("root may give the directory away");
        }
        Server {
            kind,
            port: free_port(),
            folder,
            child: None,
            database: "postgres".to_owned(),
            settings: Vec::new(),
        }
    }

    fn started(mut self) -> Server {
        self.start();
        self
    }

    /// Where clients connect.
    pub fn url(&self) -> String {
        match self.kind {
            Kind::Postgres | Kind::Pgbouncer => {
                format!("postgres://postgres@127.0.0.1:{}/{}", self.port, self.database)
            }
            Kind::Redis | Kind::Sentinel => format!("redis://127.0.0.1:{}", self.port),
            Kind::RedisTls => format!("rediss://127.0.0.1:{}", self.port),
            Kind::Nats => format!("nats://127.0.0.1:{}", self.port),
        }
    }

    /// The port it listens on, of 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The file with the certificate of whoever signed that of [`Server::redis_tls`], in PEM.
    ///
    /// rustls-native-certs trusts it in a process that has its path in `SSL_CERT_FILE`.
    pub fn certificate_authority(&self) -> PathBuf {
        self.folder.path().join(certificates::AUTHORITY)
    }

    /// Starts it, on the port and data it had before; returns once it answers. Does nothing when it runs.
    ///
    /// # Panics
    /// When it does not answer within half a minute, with what it printed.
    pub fn start(&mut self) {
        if self.child.is_some() {
            return;
        }
        let deadline = Instant::now() + START_DEADLINE;
        // A killed server's children may hold its port and memory for a moment longer: try again.
        loop {
            let mut child = spawn(self.start_command());
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
                if self.answers() {
                    self.child = Some(child);
                    return;
                }
                thread::sleep(Duration::from_millis(20));
            }
            let _ = child.kill();
            let _ = child.wait();
            assert!(Instant::now() < deadline, "a test server did not start:\n{}", self.log());
            thread::sleep(Duration::from_millis(100));
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Ends it in good order.
    pub fn stop(&mut self) {
        // SIGINT is PostgreSQL's fast shutdown, and ends the others too.
        self.end(Signal::INT);
    }

    /// Ends it and its children at once, by SIGKILL.
    pub fn kill(&mut self) {
        self.end(Signal::KILL);
    }

    /// Freezes it (SIGSTOP): connections stay open and nothing answers.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Ends a [`Server::pause`].
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// The processor time that it and its children have used, those that have ended included.
    pub fn cpu(&self) -> Duration {
        let Some(child) = &self.child else { return Duration::ZERO };
        let children = children_of(child.id()).into_iter();
        let running: u64 = children.map(|pid| ticks(pid.as_raw_nonzero().get().unsigned_abs(), false)).sum();
        // Linux counts in hundredths of a second, whatever the kernel's own clock.
        Duration::from_millis(10 * (ticks(child.id(), true) + running))
    }

    fn end(&mut self, signal: Signal) {
        self.resume();
        if signal == Signal::KILL {
            self.signal(signal);
        } else if let Some(child) = &self.child {
            let _ = kill_process(Pid::from_child(child), signal);
        }
        let Some(mut child) = self.child.take() else { return };
        // A server that will not end must not keep its test from ending.
        let deadline = Instant::now() + ENDS_WITHIN;
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Sends a signal to the server and its children; the server first, so that it cannot start new ones.
    fn signal(&self, signal: Signal) {
        let Some(child) = &self.child else { return };
        let _ = kill_process(Pid::from_child(child), signal);
        for pid in children_of(child.id()) {
            let _ = kill_process(pid, signal);
        }
    }

    fn start_command(&self) -> Command {
        let (folder, port) = (self.folder.path(), self.port.to_string());
        let mut command;
        match self.kind {
            Kind::Postgres => {
                command = self.command(Program::Postgres);
                command.arg("-D").arg(folder.join("data")).args(["-p", &port, "-h", "127.0.0.1"]);
                for setting in ["unix_socket_directories=", "fsync=off", "max_connections=300", STATISTICS] {
                    command.args(["-c", setting]);
                }
                for setting in &self.settings {
                    command.args(["-c", setting]);
                }
            }
            Kind::Redis | Kind::RedisTls | Kind::Sentinel => {
                command = self.command(Program::RedisServer);
                command.arg(folder.join(REDIS_CONFIG));
                if matches!(self.kind, Kind::Sentinel) {
                    command.arg("--sentinel");
                }
            }
            Kind::Nats => {
                command = self.command(Program::NatsServer);
                command.args(["-a", "127.0.0.1", "-p", &port, "-js", "-sd"]).arg(folder);
            }
            Kind::Pgbouncer => {
                command = self.command(Program::Pgbouncer);
                command.arg(folder.join("pgbouncer.ini"));
            }
        }
        let log = fs::File::options().create(true).append(true).open(self.log_file()).expect("a log file");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle")).stderr(log);
        command
    }

    /// A command that ends with this process and, where the program refuses to be root, runs as PostgreSQL's user.
    fn command(&self, program: Program) -> Command {
        let path = program.path();
        let mut command = if Path::new("/usr/bin/setpriv").exists() {
            let mut command = Command::new("/usr/bin/setpriv");
            command.arg("--pdeathsig=KILL").arg("--").arg(path);
            command
        } else {
            Command::new(path)
        };
        // Its own process group: Ctrl-C in the terminal is for the tests, which then end it.
        command.current_dir(self.folder.path()).process_group(0);
        if self.kind.is_unprivileged()
            && let Some((uid, gid)) = unprivileged()
        {
            command.uid(uid).gid(gid);
        }
        command
    }

    fn answers(&self) -> bool {
        match self.kind {
            Kind::Postgres | Kind::Pgbouncer => quiet(Program::Psql, &[&self.url(), "-qXc", "SELECT 1"]),
            // One that wants a password answers too; one that still loads its file does not.
            Kind::Redis | Kind::RedisTls | Kind::Sentinel => {
                let answer = self.redis_cli(&["PING"]);
                answer.is_ok_and(|answer| answer == "PONG" || answer.starts_with("NOAUTH"))
            }
            Kind::Nats => TcpStream::connect(("127.0.0.1", self.port)).is_ok(),
        }
    }

    /// What it answers to a command of Redis, or why it does not.
    pub(crate) fn redis_cli(&self, command: &[&str]) -> Result<String, String> {
        let mut client = Command::new(Program::RedisCli.path());
        client.args(["-u", &self.url(), "--raw"]);
        if let Kind::RedisTls = self.kind {
            client.arg("--cacert").arg(self.certificate_authority());
        }
        let output = client.args(command).output().expect("the client starts");
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Runs a program to its end.
///
/// # Panics
/// When it fails, with what it printed.
pub(crate) fn run(folder: &Path, program: Program, arguments: &[&str]) {
    let mut command = Command::new(program.path());
    let output = command.current_dir(folder).args(arguments).output().expect("the program starts");
    assert!(output.status.success(), "{program:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn quiet(program: Program, arguments: &[&str]) -> bool {
    let mut command = Command::new(program.path());
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Starts a child from a thread that lives as long as the process: the signal on a parent's death is sent when the
/// *thread* that started the child ends, and a test's thread ends early.
fn spawn(command: Command) -> Child {
    type Request = (Command, Sender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<Sender<Request>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, requests) = channel::<Request>();
        thread::spawn(move || {
            for (mut command, answer) in requests {
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (sender, answer) = channel();
    spawner.send((command, sender)).expect("the spawner lives");
    answer.recv().expect("the spawner answers").expect("the server's program starts")
}

/// The user that PostgreSQL is to run as: none when this process is not root.
fn unprivileged() -> Option<(u32, u32)> {
    if !getuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let ids = users.lines().find_map(|line| {
        let mut fields = line.strip_prefix("postgres:")?.split(':').skip(1);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    Some(ids.expect(
        "PostgreSQL does not run as root, and there is no user `postgres`: apt-get install -y postgresql",
    ))
}

/// The clock ticks that a process has used, with those of its ended children if asked.
fn ticks(pid: u32, ended: bool) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name, which is in parentheses and may hold anything, utime is the twelfth field.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11);
    fields.take(if ended { 4 } else { 2 }).filter_map(|field| field.parse::<u64>().ok()).sum()
}

fn children_of(parent: u32) -> Vec<Pid> {
    let file = format!("/proc/{parent}/task/{parent}/children");
    let list = fs::read_to_string(file).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// Removes the directories of test processes that were killed.
fn remove_leftovers() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix("greenwave-test-")) else {
            continue;
        };
        let Some((pid, _)) = rest.split_once('-') else { continue };
        if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
