use k8s_openapi::api::core::v1::{ContainerPort, HTTPGetAction};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

#[test]
fn thresholds_count_rows() {
    let probe = Probe { success_threshold: Some(2), failure_threshold: Some(3), ..Probe::default() };
    let mut counter = Counter::default();
    let answers = [true, true, false, false, true, false, false, false, true, true];
    let verdicts: Vec<Option<bool>> = answers.into_iter().map(|healthy| counter.count(&probe, healthy)).collect();
    let (up, down) = (Some(true), Some(false));
    assert_eq!(verdicts, [None, up, None, None, None, None, None, down, None, up]);
}

#[test]
fn ports_by_number_and_name() {
    let named = ContainerPort { name: Some("web".into()), container_port: 8080, ..ContainerPort::default() };
    let container = Container { ports: Some(vec![named]), ..Container::default() };
    assert_eq!(port(&container, &IntOrString::Int(80)), Some(80));
    assert_eq!(port(&container, &IntOrString::String("web".into())), Some(8080));
    assert_eq!(port(&container, &IntOrString::String("nope".into())), None);
    assert_eq!(port(&container, &IntOrString::Int(0)), None);
}

/// Answers each connection with the next text.
async fn serve(answers: Vec<&'static str>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    sampan_base::task::spawn("test server", async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await.expect("a request");
            stream.write_all(answer.as_bytes()).await.expect("an answer");
        }
    });
    port
}

fn target() -> Target {
    let clock = Clock::system();
    let fake = sampan_runtime::fake::Fake::new(clock.clone(), sampan_base::Dice::seeded(1));
    Target {
        runtime: Arc::new(fake),
        started_at: clock.now(),
        clock,
        container_id: "c".into(),
        container: Container::default(),
        address: Some("127.0.0.1".parse().expect("an address")),
    }
}

#[tokio::test]
async fn http_answers() {
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let bad = "HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy";
    let here = "HTTP/1.1 302 Found\r\nlocation: /next\r\ncontent-length: 0\r\n\r\n";
    let away = "HTTP/1.1 302 Found\r\nlocation: http://example.com/\r\ncontent-length: 0\r\n\r\n";
    let port = serve(vec![ok, bad, here, bad, away]).await;
    let action = HTTPGetAction { port: IntOrString::Int(port.into()), ..HTTPGetAction::default() };
    let failed = Answer::Failure("HTTP probe failed with statuscode: 503".into());
    assert_eq!(http::attempt(&target(), &action).await, Answer::Success);
    assert_eq!(http::attempt(&target(), &action).await, failed);
    assert_eq!(http::attempt(&target(), &action).await, failed, "a redirect on the same host is followed");
    assert_eq!(http::attempt(&target(), &action).await, Answer::Success, "one that leads away is not");
}
