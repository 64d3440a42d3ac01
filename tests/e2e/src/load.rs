//! A small load generator: one new connection per request at a steady rate, every failure counted and named. Standard
//! library only, so that nothing between the test and the kernel retries or reuses a connection.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What is asked for, and how often.
#[derive(Clone, Debug)]
pub struct Load {
    pub address: SocketAddr,
    /// The path, with a leading slash.
    pub path: String,
    /// Requests that may be open at the same time.
    pub workers: u32,
    /// Requests a second, over all workers.
    pub rate: u32,
    /// After this long without an answer a request has failed.
    pub patience: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub requests: u64,
    /// Failed requests by what went wrong.
    pub failures: BTreeMap<String, u64>,
    /// Answers by the pod and version that gave them, for bodies of `images/hello`.
    pub answers: BTreeMap<String, u64>,
    pub took: Duration,
    /// Of the requests that were answered.
    pub latencies: Vec<Duration>,
}

impl Report {
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// The latency that a share of the requests (0 to 1) stayed below.
    pub fn quantile(&self, share: f64) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let last = sorted.len().saturating_sub(1);
        sorted.get((last as f64 * share).round() as usize).copied().unwrap_or_default()
    }
}

impl Load {
    pub fn new(address: SocketAddr, path: &str) -> Self {
        Self { address, path: path.into(), workers: 8, rate: 200, patience: Duration::from_secs(10) }
    }

    /// Keeps the load up while `work` runs, and returns what both gave.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> (T, Report) {
        let stop = AtomicBool::new(false);
        let next = AtomicU64::new(0);
        let report = Mutex::new(Report::default());
        let started = Instant::now();
        let result = std::thread::scope(|scope| {
            // Also when the work panics: else the workers would never end.
            let _guard = Stop(&stop);
            for _ in 0..self.workers {
                scope.spawn(|| self.work(started, &stop, &next, &report));
            }
            work()
        });
        let mut report = report.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        report.took = started.elapsed();
        (result, report)
    }

    /// Request number n is due n/rate seconds after the start; a late worker does not skip its turn.
    fn work(&self, started: Instant, stop: &AtomicBool, next: &AtomicU64, report: &Mutex<Report>) {
        while !stop.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let due = started + Duration::from_secs_f64(number as f64 / f64::from(self.rate));
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let asked = Instant::now();
            let answer = get(self.address, &self.path, self.patience);
            let took = asked.elapsed();
            let mut report = report.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            report.requests += 1;
            match answer {
                Ok(body) => {
                    report.latencies.push(took);
                    if let Some(who) = who(&body) {
                        *report.answers.entry(who).or_default() += 1;
                    }
                }
                Err(error) => *report.failures.entry(error.to_string()).or_default() += 1,
            }
        }
    }
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One request on a connection of its own. Anything but a complete answer of status 200 is an error.
pub fn get(address: SocketAddr, path: &str, patience: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    // In one piece: a server may answer, and close, after the first.
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        return Err(io::Error::other(format!("closed after {} bytes", answer.len())));
    };
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    if status != "200" {
        return Err(io::Error::other(format!("status {status}")));
    }
    let length =
        head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    if length.is_some_and(|length: usize| length != body.len()) {
        return Err(io::Error::other("the body is not complete"));
    }
    Ok(body.to_owned())
}

/// `pod (version v)` of an answer of `images/hello`.
fn who(body: &str) -> Option<String> {
    let answer: serde_json::Value = serde_json::from_str(body).ok()?;
    Some(format!("{} (version {})", answer["pod"].as_str()?, answer["version"].as_str()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A server that gives these answers, one a connection, and then refuses.
    fn server(answers: &'static [&'static str]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("an address");
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().expect("accept");
                let mut request = [0; 512];
                let _ = stream.read(&mut request);
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        address
    }

    #[test]
    fn only_a_complete_answer_counts() {
        const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let address = server(&[GOOD, "HTTP/1.1 503 No\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", ""]);
        let ask = || get(address, "/", Duration::from_secs(5)).map_err(|error| error.to_string());
        assert_eq!(ask(), Ok("ok".into()));
        assert_eq!(ask(), Err("status 503".into()));
        assert_eq!(ask(), Err("the body is not complete".into()));
        assert_eq!(ask(), Err("closed after 0 bytes".into()));
        assert!(ask().is_err());
    }

    #[test]
    fn load_counts_answers_and_failures() {
        const ONE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 26\r\n\r\n{\"pod\":\"a\",\"version\":\"1\"}\n";
        let address = server(&[ONE, ONE]);
        let load = Load { workers: 1, rate: 100, ..Load::new(address, "/") };
        let started = Instant::now();
        let ((), report) = load.during(|| std::thread::sleep(Duration::from_millis(200)));
        assert!(started.elapsed() < Duration::from_secs(5));
        assert_eq!(report.answers, [("a (version 1)".to_owned(), 2)].into());
        assert_eq!(report.requests, 2 + report.failed());
        assert!(report.failed() > 0, "{report:?}");
        assert_eq!(report.latencies.len(), 2);
    }
}
