//! A follower against a server that is killed under it: real sockets, answers that break off, a second server elsewhere.

use std::fs;

use serde_json::json;

use super::*;
use crate::face::client::tests::{answer, chunked, nobody, peer};

/// A data directory whose server can be moved.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new(server: &str) -> Self {
        let place = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        place.move_to(server);
        place
    }

    fn move_to(&self, server: &str) {
        fs::write(self.dir.path().join("address"), format!("{server}\n")).expect("written");
    }

    fn target(&self) -> Target {
        Target::new(None, None, self.dir.path().to_path_buf())
    }
}

/// Notes what is written, and moves the server when it has seen enough of it.
struct Sink<'a> {
    seen: Vec<u8>,
    after: usize,
    then: Box<dyn FnMut() + 'a>,
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.seen.extend_from_slice(bytes);
        if self.seen.len() == self.after {
            (self.then)();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn ended() -> String {
    let job = json!({ "id": "abc", "phase": "ended", "outcome": { "kind": "completed" } });
    answer("200 OK", "", &job.to_string())
}

#[test]
fn raw_output_goes_on_at_the_right_byte_at_a_server_that_came_back_elsewhere() {
    let (first, asked_first) = peer(vec![chunked("200 OK", &["0123", "45"], false)]);
    let rest = chunked("206 Partial Content", &["6789"], true);
    let (second, asked_second) = peer(vec![rest, ended()]);
    let place = Place::new(&first);
    let target = place.target();
    let then = Box::new(|| place.move_to(&second));
    let mut sink = Sink { seen: Vec::new(), after: 6, then };
    let job = Follower::quiet(&target).output("abc", Form::Raw, &mut sink).expect("followed");
    assert_eq!(sink.seen, b"0123456789");
    assert_eq!(at(&job, "/outcome/kind"), "completed");
    assert!(!asked_first.recv().expect("asked").contains("range:"));
    let asked = asked_second.recv().expect("asked");
    assert!(asked.contains("\r\nrange: bytes=6-\r\n"), "{asked}");
}

#[test]
fn text_is_asked_for_anew_and_what_was_shown_is_not_shown_again() {
    let (first, _asked) = peer(vec![chunked("200 OK", &["hello "], false)]);
    let whole = chunked("200 OK", &["hel", "lo wor", "ld"], true);
    let (second, asked_second) = peer(vec![whole, ended()]);
    let place = Place::new(&first);
    let target = place.target();
    let then = Box::new(|| place.move_to(&second));
    let mut sink = Sink { seen: Vec::new(), after: 6, then };
    Follower::quiet(&target).output("abc", Form::Text, &mut sink).expect("followed");
    assert_eq!(String::from_utf8_lossy(&sink.seen), "hello world");
    assert!(!asked_second.recv().expect("asked").contains("range:"));
}

#[test]
fn an_answer_that_ends_before_the_job_is_taken_up_again() {
    let running = answer("200 OK", "", r#"{"phase":"running"}"#);
    let (server, _asked) = peer(vec![
        chunked("200 OK", &["a"], true),
        running,
        chunked("206 Partial Content", &["b"], true),
        ended(),
    ]);
    let place = Place::new(&server);
    let mut seen = Vec::new();
    Follower::quiet(&place.target()).output("abc", Form::Raw, &mut seen).expect("followed");
    assert_eq!(seen, b"ab");
}

#[test]
fn a_held_job_is_followed_when_it_is_let_go() {
    let held = answer("200 OK", "", r#"{"phase":"held"}"#);
    let events =
        "event: job\ndata: {\"phase\":\"held\"}\n\nevent: job\ndata: {\"phase\":\"queued\"}\n\n";
    let (server, asked) = peer(vec![
        chunked("200 OK", &[], true),
        held,
        chunked("200 OK", &[events], true),
        chunked("200 OK", &["x"], true),
        ended(),
    ]);
    let place = Place::new(&server);
    let mut seen = Vec::new();
    Follower::quiet(&place.target()).output("abc", Form::Raw, &mut seen).expect("followed");
    assert_eq!(seen, b"x");
    let paths: Vec<String> =
        asked.iter().map(|asked| asked.split(' ').nth(1).unwrap_or_default().to_string()).collect();
    let output = "/api/jobs/abc/output?stream=stdout&format=raw&follow=true";
    assert_eq!(paths, [output, "/api/jobs/abc", "/api/jobs/abc/events", output, "/api/jobs/abc"]);
}

#[test]
fn an_end_is_waited_for_over_a_restart() {
    let running = "event: job\nid: 3\ndata: {\"phase\":\"running\"}\n\n";
    let over = "event: job\nid: 9\ndata: {\"phase\":\"unknown\"}\n\n";
    let (server, _asked) = peer(vec![
        chunked("200 OK", &[running], false),
        answer("503 Service Unavailable", "", r#"{"code":"stopping","detail":"x"}"#),
        chunked("200 OK", &[running, over], true),
    ]);
    let place = Place::new(&server);
    let job = Follower::quiet(&place.target()).end("abc").expect("waited");
    assert_eq!(at(&job, "/phase"), "unknown");
}

#[test]
fn a_refusal_ends_the_following_at_once_and_an_absence_after_a_while() {
    let gone = answer("404 Not Found", "", r#"{"code":"unknown_job","detail":"gone"}"#);
    let (server, _asked) = peer(vec![gone]);
    let place = Place::new(&server);
    let failure = Follower::quiet(&place.target()).end("abc").expect_err("gone");
    assert_eq!(failure.status(), 122);
    place.move_to(&nobody());
    let target = place.target();
    let mut follower = Follower::quiet(&target);
    follower.patience = Patience::new(std::time::Duration::ZERO);
    assert_eq!(follower.end("abc").expect_err("away").status(), 120);
}

#[test]
fn a_server_that_answers_and_breaks_off_again_and_again_is_given_up_and_one_that_lasted_is_not() {
    let running = chunked("200 OK", &["event: job\ndata: {\"phase\":\"running\"}\n\n"], false);
    let over = chunked("200 OK", &["event: job\ndata: {\"phase\":\"ended\"}\n\n"], true);
    let mut answers = vec![running; 9];
    answers.push(over);
    let (server, _asked) = peer(answers);
    let place = Place::new(&server);
    let target = place.target();
    let mut follower = Follower::quiet(&target);
    follower.patience = Patience::new(Duration::from_millis(150));
    assert_eq!(follower.end("abc").expect_err("never works").status(), 120);
    let answered = |ago| Contact { answered: Instant::now().checked_sub(ago), progressed: false };
    assert!(answered(STEADY).was_good());
    assert!(!answered(STEADY / 2).was_good() && !Contact::default().was_good());
}

#[test]
fn a_reader_that_went_away_ends_the_following() {
    struct Gone;
    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (server, _asked) = peer(vec![chunked("200 OK", &["x"], true)]);
    let place = Place::new(&server);
    let failure = Follower::quiet(&place.target()).output("abc", Form::Text, &mut Gone);
    assert_eq!(failure.expect_err("nobody reads").told(), "");
}
