//! The client against peers that answer, refuse, break off and stay away: real sockets, answers written byte by byte.

use std::io::{BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::mpsc;

use serde_json::json;

use super::{Client, ClientError, escape};

/// Listens on a port of its own, gives each connection in turn one of these answers and closes it; tells what was asked.
pub(crate) fn peer(answers: Vec<String>) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let (tell, asked) = mpsc::channel();
    std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().expect("a connection");
            let request = read_request(&mut BufReader::new(&stream));
            stream.write_all(answer.as_bytes()).expect("answered");
            drop(stream);
            // The test may have heard enough.
            drop(tell.send(request));
        }
    });
    (address, asked)
}

fn read_request(reader: &mut impl std::io::BufRead) -> String {
    let mut text = String::new();
    let mut length = 0;
    loop {
        let before = text.len();
        reader.read_line(&mut text).expect("a request");
        let line = text[before..].trim_end();
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a body");
    text + &String::from_utf8(body).expect("UTF-8")
}

/// A whole answer.
pub(crate) fn answer(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}\r\n{body}")
}

/// A chunked answer; whole, or broken off before its last chunk.
pub(crate) fn chunked(status: &str, chunks: &[&str], whole: bool) -> String {
    let chunks = chunks.iter().map(|chunk| format!("{:x}\r\n{chunk}\r\n", chunk.len()));
    let chunks: String = chunks.collect();
    let last = if whole { "0\r\n\r\n" } else { "" };
    format!("HTTP/1.1 {status}\r\ntransfer-encoding: chunked\r\n\r\n{chunks}{last}")
}

/// An address at which nobody listens.
pub(crate) fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").to_string()
}

#[test]
fn a_request_carries_token_json_and_headers() {
    let (server, asked) = peer(vec![answer("201 Created", "location: /x\r\n", "{\"id\":7}")]);
    let client = Client::new(server, Some("s3cret".to_string()));
    let reply = client.post_with("/api/jobs", &json!({ "a": 1 }), &[("idempotency-key", "k")]);
    let reply = reply.expect("an answer");
    assert_eq!((reply.status, reply.header("location")), (201, Some("/x")));
    assert_eq!(reply.json().expect("JSON"), json!({ "id": 7 }));
    let asked = asked.recv().expect("asked");
    assert!(asked.starts_with("POST /api/jobs HTTP/1.1\r\n"), "{asked}");
    assert!(asked.ends_with("\r\n\r\n{\"a\":1}"), "{asked}");
    for header in
        ["authorization: Bearer s3cret", "content-type: application/json", "idempotency-key: k"]
    {
        assert!(asked.contains(&format!("\r\n{header}\r\n")), "{header} in {asked}");
    }
}

#[test]
fn a_problem_document_is_read_and_any_other_refusal_is_told() {
    let document = r#"{"code":"unknown_job","detail":"there is no job x","hint":"look"}"#;
    let (server, _asked) = peer(vec![
        answer("404 Not Found", "content-type: application/problem+json\r\n", document),
        answer("502 Bad Gateway", "", "<html>"),
    ]);
    let client = Client::new(server, None);
    match client.get("/api/jobs/x") {
        Err(ClientError::Problem { status: 404, code, detail, hint, .. }) => {
            assert_eq!((code.as_str(), detail.as_str()), ("unknown_job", "there is no job x"));
            assert_eq!(hint.as_deref(), Some("look"));
        }
        other => panic!("{other:?}"),
    }
    match client.get("/") {
        Err(ClientError::Problem { status: 502, code, detail, .. }) => {
            assert!(code.is_empty() && detail.contains("is it an Outlive server?"), "{detail}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_redirect_is_a_refusal_so_that_no_token_travels() {
    let (server, _asked) =
        peer(vec![answer("302 Found", "location: http://127.0.0.1:1/elsewhere\r\n", "")]);
    let got = Client::new(server, Some("s3cret".to_string())).get("/");
    assert!(matches!(got, Err(ClientError::Problem { status: 302, .. })), "{got:?}");
}

#[test]
fn a_peer_that_stays_away_and_one_that_breaks_off_are_told_apart() {
    let got = Client::new(nobody(), None).post("/", &json!({}));
    assert!(matches!(got, Err(ClientError::Unreachable { .. })), "{got:?}");
    let short = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab".to_string();
    let (server, _asked) = peer(vec![String::new(), short, chunked("200 OK", &["ab"], false)]);
    let client = Client::new(server, None);
    for _ in 0..3 {
        let got = client.post("/", &json!({}));
        assert!(matches!(got, Err(ClientError::Broken { .. })), "{got:?}");
    }
}

#[test]
fn a_stream_gives_what_came_and_then_tells_whether_it_was_whole() {
    let (server, _asked) =
        peer(vec![chunked("200 OK", &["ab", "c"], true), chunked("200 OK", &["ab"], false)]);
    let client = Client::new(server, None);
    let mut got = Vec::new();
    let read = client.stream("/", &[]).expect("an answer").read_to_end(&mut got);
    assert_eq!((read.ok(), got.as_slice()), (Some(3), b"abc".as_slice()));
    got.clear();
    let read = client.stream("/", &[]).expect("an answer").read_to_end(&mut got);
    assert_eq!((read.ok(), got.as_slice()), (None, b"ab".as_slice()));
}

#[test]
fn what_could_mean_more_is_escaped() {
    assert_eq!(escape("ab-1._~"), "ab-1._~");
    assert_eq!(escape("../x?y=1&z #ä%"), "..%2Fx%3Fy%3D1%26z%20%23%C3%A4%25");
}
