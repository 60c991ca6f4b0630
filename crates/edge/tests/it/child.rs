//! What the tests supervise: this same test binary, started again to run one "test" that is a service.

use std::convert::Infallible;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use greenwave_edge::{InstanceStatus, Supervisor, SupervisorBuilder, SupervisorConfig};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

const MODE: &str = "EDGE_TEST_CHILD";
const NAME: &str = "EDGE_TEST_INSTANCE";

/// A supervisor for children of that mode, with patience enough for a busy machine.
pub(crate) fn children(mode: &'static str, config: SupervisorConfig) -> SupervisorBuilder {
    let program = std::env::current_exe().unwrap().to_string_lossy().into_owned();
    let arguments = ["--exact", "child::process", "--nocapture", "--quiet"].map(String::from);
    let command = [vec![program], arguments.to_vec()].concat();
    Supervisor::new(SupervisorConfig { command, ..config })
        .env(move |instance| vec![(MODE.into(), mode.into()), (NAME.into(), instance.name.clone())])
        .logs(|_| ())
}

/// Looks at the instances until they are as wanted.
pub(crate) async fn until(
    supervisor: &Supervisor,
    wanted: impl Fn(&[InstanceStatus]) -> bool,
) -> Vec<InstanceStatus> {
    for _ in 0..2000 {
        let statuses = supervisor.instances();
        if wanted(&statuses) {
            return statuses;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("instances never were as wanted; at last they were {:#?}", supervisor.instances());
}

/// Not a test: the service, when the variable is set.
#[test]
fn process() {
    let Ok(mode) = std::env::var(MODE) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        match mode.as_str() {
            "serve" => serve(own_port().await, false).await,
            "stubborn" => serve(own_port().await, true).await,
            "socket" => serve(inherited("http"), false).await,
            "notify" => tell().await,
            "stall" => {
                tokio::spawn(stall());
                serve(own_port().await, false).await;
            }
            "crash" => {
                eprintln!("no database at db:5432");
                std::process::exit(7);
            }
            "deaf" => {
                eprintln!("warming up");
                std::future::pending().await
            }
            "worker" => work().await,
            other => panic!("no mode is called {other}"),
        }
    });
    std::process::exit(0);
}

async fn work() {
    println!("port {:?}", std::env::var("PORT").ok());
    let mut stdout = std::io::stdout();
    stdout.write_all(b"raw \xff\x00 bytes\n").unwrap();
    stdout.write_all(&[b'x'; 40_000]).unwrap();
    stdout.write_all(b"\n").unwrap();
    eprintln!("to stderr");
    signal(SignalKind::terminate()).unwrap().recv().await;
    println!("finished the last job");
}

async fn own_port() -> TcpListener {
    let port: u16 = std::env::var("PORT").unwrap().parse().unwrap();
    TcpListener::bind(("127.0.0.1", port)).await.unwrap()
}

/// The socket of that name, by systemd's protocol; `listenfd` gives none unless `LISTEN_PID` is this process.
fn inherited(name: &str) -> TcpListener {
    let names = std::env::var("LISTEN_FDNAMES").unwrap();
    let index = names.split(':').position(|known| known == name).unwrap();
    let mut sockets = listenfd::ListenFd::from_env();
    assert_eq!(sockets.len(), names.split(':').count());
    let listener = sockets.take_tcp_listener(index).unwrap().unwrap();
    listener.set_nonblocking(true).unwrap();
    TcpListener::from_std(listener).unwrap()
}

/// Says that it is ready while the gate is there, and that it is stopping when it is gone.
async fn tell() {
    let gate = std::env::var("GATE").unwrap();
    let there = async |wanted: bool| {
        while std::path::Path::new(&gate).exists() != wanted {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
    let say = |text: &str| socket.send_to(text.as_bytes(), std::env::var("NOTIFY_SOCKET").unwrap()).unwrap();
    println!("watchdog {:?}", std::env::var("WATCHDOG_USEC").ok());
    there(true).await;
    say("STATUS=warm\nREADY=1\n");
    there(false).await;
    say("STOPPING=1");
    std::future::pending().await
}

async fn serve(listener: TcpListener, stubborn: bool) {
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.unwrap();
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
                tokio::spawn(connection);
            }
            _ = terminate.recv() => if !stubborn { return },
        }
    }
}

/// The first instance stands still about once a second.
async fn stall() {
    for pause in [700, 500, 900].into_iter().cycle() {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        if std::env::var(NAME).unwrap().ends_with("-0") {
            std::thread::sleep(Duration::from_millis(150));
        }
    }
}

static SICK: AtomicBool = AtomicBool::new(false);

async fn answer(request: Request<Incoming>) -> Result<Response<Either<Full<Bytes>, Incoming>>, Infallible> {
    let text = match request.uri().path() {
        "/echo" => return Ok(Response::new(Either::Right(request.into_body()))),
        "/work" => {
            tokio::time::sleep(Duration::from_millis(3)).await;
            String::new()
        }
        "/exit" => std::process::exit(3),
        "/sick" => {
            SICK.store(true, Ordering::SeqCst);
            String::new()
        }
        "/health" if SICK.swap(false, Ordering::SeqCst) => {
            // Sick for one check, and well at the next.
            let mut response = Response::new(Either::Left(Full::default()));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            return Ok(response);
        }
        "/grow" => {
            // Written to, so that it is resident.
            std::mem::forget(vec![1_u8; 64 << 20]);
            String::new()
        }
        "/slow" => {
            tokio::time::sleep(Duration::from_millis(50)).await;
            std::env::var(NAME).unwrap()
        }
        "/version" => std::env::var("VERSION").unwrap_or_default(),
        "/length" => request.into_body().collect().await.map_or(0, |body| body.to_bytes().len()).to_string(),
        _ => std::env::var(NAME).unwrap(),
    };
    Ok(Response::new(Either::Left(Full::from(text))))
}
