//! The demo's HTTP server: says who answers, ends on SIGTERM after its open requests. Standard library only.
//!
//! | path | answer |
//! | --- | --- |
//! | `/` | pod, version, greeting and the secret file's content, as JSON |
//! | `/healthz` | `ok` |
//! | `/slow?ms=500` | as `/`, after that time |
//!
//! Environment: `PORT` (8080), `POD_NAME` (else the host name), `VERSION`, `GREETING`, `SECRET_FILE`.

use std::env;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::IntoRawFd as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

const REQUEST_BYTES_MAX: u64 = 16 << 10;
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the signal handler writes.
static WAKE: AtomicI32 = AtomicI32::new(-1);
static STOPPING: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
    fn write(fd: i32, data: *const u8, length: usize) -> isize;
}

extern "C" fn on_signal(_: i32) {
    // SAFETY: write is safe in a signal handler, and the byte outlives the call.
    unsafe { write(WAKE.load(Ordering::Relaxed), b"x".as_ptr(), 1) };
}

fn main() -> io::Result<()> {
    let port = env::var("PORT").ok().and_then(|text| text.parse().ok()).unwrap_or(8080);
    // The IPv6 socket takes IPv4 too; where there is no IPv6, IPv4 alone.
    let listener =
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)))?;
    let address = listener.local_addr()?;
    stop_on_signals(address)?;
    println!("hello listens on {address}");

    let open = Arc::new(Open::default());
    while !STOPPING.load(Ordering::SeqCst) {
        match listener.accept() {
            Ok((stream, _)) => open.serve(stream),
            Err(error) => eprintln!("accept: {error}"),
        }
    }
    // Whoever has connected is still served.
    listener.set_nonblocking(true)?;
    while let Ok((stream, _)) = listener.accept() {
        stream.set_nonblocking(false)?;
        open.serve(stream);
    }
    drop(listener);
    println!("hello stops when {} open requests are done", open.count.load(Ordering::SeqCst));
    open.wait();
    Ok(())
}

/// SIGTERM and SIGINT set the flag and wake the main thread up with a connection of our own.
fn stop_on_signals(mut address: SocketAddr) -> io::Result<()> {
    const SIGINT: i32 = 2;
    const SIGTERM: i32 = 15;
    let (mut reader, writer) = UnixStream::pair()?;
    WAKE.store(writer.into_raw_fd(), Ordering::Relaxed);
    // SAFETY: the handler only writes to a descriptor.
    unsafe {
        signal(SIGTERM, on_signal);
        signal(SIGINT, on_signal);
    }
    address.set_ip(if address.is_ipv6() { Ipv6Addr::LOCALHOST.into() } else { [127, 0, 0, 1].into() });
    thread::spawn(move || {
        let _ = reader.read(&mut [0]);
        STOPPING.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(address);
    });
    Ok(())
}

/// The requests being answered.
#[derive(Default)]
struct Open {
    count: AtomicUsize,
    lock: Mutex<()>,
    done: Condvar,
}

impl Open {
    fn serve(self: &Arc<Self>, stream: TcpStream) {
        self.count.fetch_add(1, Ordering::SeqCst);
        let open = Arc::clone(self);
        thread::spawn(move || {
            // A client that went away is its own business.
            let _ = answer(stream);
            let _guard = open.lock.lock();
            open.count.fetch_sub(1, Ordering::SeqCst);
            open.done.notify_all();
        });
    }

    fn wait(&self) {
        let Ok(mut guard) = self.lock.lock() else { return };
        while self.count.load(Ordering::SeqCst) > 0 {
            match self.done.wait(guard) {
                Ok(next) => guard = next,
                Err(_) => return,
            }
        }
    }
}

fn answer(stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = BufReader::new(stream.try_clone()?.take(REQUEST_BYTES_MAX));
    let mut first = String::new();
    if request.read_line(&mut first)? == 0 {
        return Ok(());
    }
    let mut header = String::new();
    while request.read_line(&mut header)? > 2 {
        header.clear();
    }
    let target = first.split_whitespace().nth(1).unwrap_or("/");
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (status, content_type, body) = match path {
        "/" => ("200 OK", "application/json", who()),
        "/healthz" => ("200 OK", "text/plain", "ok\n".to_owned()),
        "/slow" => {
            let pause = query.split('&').find_map(|pair| pair.strip_prefix("ms=")?.parse().ok()).unwrap_or(1000);
            #[allow(clippy::disallowed_methods, reason = "slowness is what is asked for")]
            thread::sleep(Duration::from_millis(pause));
            ("200 OK", "application/json", who())
        }
        _ => ("404 Not Found", "text/plain", "not found\n".to_owned()),
    };
    let length = body.len();
    let mut stream = stream;
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )?;
    stream.flush()
}

fn who() -> String {
    let variable = |name: &str| env::var(name).unwrap_or_default();
    let read = |path: &str| std::fs::read_to_string(path).map(|text| text.trim_end().to_owned()).unwrap_or_default();
    let pod = env::var("POD_NAME").unwrap_or_else(|_| read("/proc/sys/kernel/hostname"));
    let secret = env::var("SECRET_FILE").map(|path| read(&path)).unwrap_or_default();
    let fields =
        [("pod", pod), ("version", variable("VERSION")), ("greeting", variable("GREETING")), ("secret", secret)];
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{}", quoted(value))).collect();
    format!("{{{}}}\n", fields.join(","))
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\u{0}'..='\u{1f}' => quoted.push_str(&format!("\\u{:04x}", u32::from(character))),
            _ => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}
