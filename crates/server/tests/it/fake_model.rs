//! A stand-in for the vendor's API on loopback, so that the real agent CLI runs without an account or a network.
//!
//! It speaks the streaming Messages API and does what the *last user prompt* of a request says, so that each job of a test
//! chooses its own behaviour:
//!
//! ```text
//! [[chunks=N]]       the answer is streamed in N pieces (3)
//! [[tool=SHELL]]     first a call of the Bash tool with this command; may stand several times, done in order
//! [[status=500]]     every request fails with this status
//! [[limited=S:NAME]] every request fails with status S until the test opens the gate; 429 as a subscription's limit has it,
//!                    over at [`RESETS_AT`]
//! [[gate=NAME]]      the answer stops before its last piece until the test opens the gate
//! ```
//!
//! The answer ends in `DONE user_turns=N first=PROMPT`, by which a resumed conversation proves itself. Nothing here waits for
//! time, but every wait of a test is bounded. Not here: authentication, other vendors, answers that are not streamed.

use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::watch;

/// How long a test waits for something that must happen. Only a broken one gets near it.
const PATIENCE: Duration = Duration::from_mins(1);

/// When the usage limit of `[[limited=429:…]]` is over, in seconds after 1970: far away.
pub(crate) const RESETS_AT: u64 = 4_000_000_000;

/// The running stand-in; stops when dropped.
pub(crate) struct FakeModel {
    shared: Arc<Shared>,
    address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

/// One request to the model.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// What was sent.
    pub(crate) body: Value,
    /// The user's prompts in it, the oldest first, without what the CLI adds of its own.
    pub(crate) prompts: Vec<String>,
}

#[derive(Default)]
struct Seen {
    requests: Vec<Request>,
    open: HashSet<String>,
    held: HashSet<String>,
}

struct Shared {
    seen: Mutex<Seen>,
    /// For tests, which wait as threads.
    changed: Condvar,
    /// For answers, which wait as tasks.
    opened: watch::Sender<()>,
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("no holder panics")
    }

    /// An answer waits here; whoever tests can see that it does.
    async fn pass(&self, gate: &str) {
        let mut opened = self.opened.subscribe();
        self.seen().held.insert(gate.to_owned());
        self.changed.notify_all();
        while !self.seen().open.contains(gate) {
            if opened.changed().await.is_err() {
                return;
            }
        }
    }
}

impl FakeModel {
    /// Starts it on a free port.
    pub(crate) fn start() -> Self {
        let shared = Arc::new(Shared {
            seen: Mutex::default(),
            changed: Condvar::new(),
            opened: watch::channel(()).0,
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_io()
            .build()
            .expect("a runtime");
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"));
        let listener = listener.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let router = Router::new()
            .route("/v1/messages", axum::routing::post(answer))
            .fallback(|| async { StatusCode::OK })
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(&shared));
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { shared, address, runtime: Some(runtime) }
    }

    /// Where it listens; the CLI's `ANTHROPIC_BASE_URL`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What the CLI needs in its environment to come here instead of to its vendor.
    pub(crate) fn env(&self) -> [(&'static str, String); 3] {
        [
            ("ANTHROPIC_BASE_URL", self.url()),
            ("ANTHROPIC_API_KEY", "none".to_owned()),
            // Its ten retries take three minutes.
            ("CLAUDE_CODE_MAX_RETRIES", "1".to_owned()),
        ]
    }

    /// Lets every answer pass this gate, now and later.
    pub(crate) fn open_gate(&self, gate: &str) {
        self.shared.seen().open.insert(gate.to_owned());
        self.shared.opened.send_replace(());
    }

    /// Waits until an answer stands before this gate, all its pieces but the last sent.
    pub(crate) fn wait_until_held(&self, gate: &str) {
        self.wait(&format!("an answer at gate {gate}"), |seen| seen.held.contains(gate));
    }

    /// Waits until the model has been asked `n` times since the start.
    pub(crate) fn wait_for_request(&self, n: usize) {
        self.wait(&format!("request {n}"), |seen| seen.requests.len() >= n);
    }

    /// What the model was asked so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.seen().requests.clone()
    }

    fn wait(&self, what: &str, done: impl Fn(&Seen) -> bool) {
        let waited =
            self.shared.changed.wait_timeout_while(self.shared.seen(), PATIENCE, |s| !done(s));
        let (seen, timeout) = waited.expect("no holder panics");
        let requests = seen.requests.len();
        drop(seen);
        assert!(!timeout.timed_out(), "waited for {what} in vain; {requests} requests came");
    }
}

impl Drop for FakeModel {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn answer(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let Ok(body) = serde_json::from_slice::<Value>(&body) else {
        return failure(400, "not JSON");
    };
    if body["stream"] != json!(true) {
        return failure(501, "only streams are spoken here");
    }
    let (prompts, tool_results) = conversation(&body);
    let plan = plan(&prompts, tool_results);
    let model = body["model"].clone();
    shared.seen().requests.push(Request { body, prompts });
    shared.changed.notify_all();
    match plan {
        Plan::Limited(status, gate, _) if !shared.seen().open.contains(&gate) => limited(status),
        Plan::Stream(message) | Plan::Limited(_, _, message) => {
            stream_of(shared, message.pieces(&model))
        }
        Plan::Status(status) => failure(status, &format!("scripted {status}")),
    }
}

/// "Not now", as the vendor says it to a subscriber.
fn limited(status: u16) -> Response {
    let mut refusal = failure(status, "scripted: not now");
    if status == 429 {
        let headers = [("status", "rejected".to_owned()), ("reset", RESETS_AT.to_string())];
        for (name, value) in headers {
            let name = format!("anthropic-ratelimit-unified-{name}");
            let name = header::HeaderName::try_from(name).expect("a good name");
            refusal.headers_mut().insert(name, value.parse().expect("a good value"));
        }
        let claim = "anthropic-ratelimit-unified-representative-claim";
        refusal.headers_mut().insert(claim, header::HeaderValue::from_static("five_hour"));
    }
    refusal
}

fn failure(status: u16, message: &str) -> Response {
    let kind = match status {
        401 => "authentication_error",
        429 => "rate_limit_error",
        529 => "overloaded_error",
        _ => "api_error",
    };
    let body = json!({"type": "error", "error": {"type": kind, "message": message}});
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// The user's prompts, and how many tool results followed the last of them.
fn conversation(body: &Value) -> (Vec<String>, usize) {
    let mut prompts = Vec::new();
    let mut tool_results = 0;
    for message in body["messages"].as_array().into_iter().flatten() {
        if message["role"] != json!("user") {
            continue;
        }
        let blocks: Vec<&Value> = message["content"].as_array().into_iter().flatten().collect();
        let results = blocks.iter().filter(|block| block["type"] == json!("tool_result")).count();
        let texts = blocks.iter().filter_map(|block| block["text"].as_str());
        let text: Vec<String> =
            texts.chain(message["content"].as_str()).map(without_reminders).collect();
        let text = text.join("\n").trim().to_owned();
        if results > 0 {
            tool_results += results;
        } else if !text.is_empty() {
            prompts.push(text);
            tool_results = 0;
        }
    }
    (prompts, tool_results)
}

/// The CLI mixes reminders of its own into the user's words.
fn without_reminders(text: &str) -> String {
    let mut parts = text.split("<system-reminder>");
    let mut own = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        own.push_str(part.split_once("</system-reminder>").map_or("", |(_, after)| after));
    }
    own
}

/// The values of a directive, in order.
fn directives<'a>(prompt: &'a str, name: &str) -> Vec<&'a str> {
    let start = format!("[[{name}=");
    let found = prompt.split(start.as_str()).skip(1);
    found.filter_map(|rest| rest.split_once("]]").map(|(value, _)| value)).collect()
}

fn without_directives(prompt: &str) -> String {
    let mut parts = prompt.split("[[");
    let mut own = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        own.push_str(part.split_once("]]").map_or(part, |(_, after)| after));
    }
    own.trim().to_owned()
}

enum Plan {
    Status(u16),
    /// This status until this gate is open.
    Limited(u16, String, Message),
    Stream(Message),
}

fn plan(prompts: &[String], tool_results: usize) -> Plan {
    let last = prompts.last().map_or("", String::as_str);
    let number = |name| directives(last, name).first().and_then(|value| value.parse::<u16>().ok());
    if let Some(status) = number("status") {
        return Plan::Status(status);
    }
    if let Some(command) = directives(last, "tool").get(tool_results) {
        return Plan::Stream(Message::Tool((*command).to_owned()));
    }
    let mut words: Vec<String> =
        (1..=number("chunks").unwrap_or(3)).map(|n| format!("chunk-{n} ")).collect();
    let first: String = prompts
        .first()
        .map(|p| without_directives(p))
        .unwrap_or_default()
        .chars()
        .take(40)
        .collect();
    words.push(format!("DONE user_turns={} first={first}", prompts.len()));
    let gate = directives(last, "gate").first().map(|gate| (*gate).to_owned());
    let message = Message::Text { words, gate };
    let limited = directives(last, "limited").first().and_then(|value| value.split_once(':'));
    match limited.and_then(|(status, gate)| Some((status.parse().ok()?, gate.to_owned()))) {
        Some((status, gate)) => Plan::Limited(status, gate, message),
        None => Plan::Stream(message),
    }
}

enum Message {
    Tool(String),
    Text { words: Vec<String>, gate: Option<String> },
}

enum Piece {
    Event(String),
    Gate(String),
}

/// An event of the stream.
fn event(data: &Value) -> Piece {
    let mut text = String::new();
    let kind = data["type"].as_str().unwrap_or_default();
    // Writing to a string cannot fail.
    write!(text, "event: {kind}\ndata: {data}\n\n").expect("a string grows");
    Piece::Event(text)
}

impl Message {
    fn pieces(self, model: &Value) -> VecDeque<Piece> {
        let usage = json!({"input_tokens": 11, "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0, "output_tokens": 1});
        let id = uuid::Uuid::new_v4().simple().to_string();
        let mut pieces = VecDeque::from([event(&json!({"type": "message_start", "message": {
            "id": format!("msg_{id}"), "type": "message", "role": "assistant", "model": model,
            "content": [], "stop_reason": null, "stop_sequence": null, "usage": usage}}))]);
        let start = |block: Value| {
            event(&json!({"type": "content_block_start", "index": 0, "content_block": block}))
        };
        let delta = |delta: Value| {
            event(&json!({"type": "content_block_delta", "index": 0, "delta": delta}))
        };
        let (stop_reason, tokens) = match self {
            Self::Tool(command) => {
                let input = json!({"command": command, "description": "scripted"}).to_string();
                pieces.push_back(start(json!({"type": "tool_use", "id": format!("toolu_{id}"),
                    "name": "Bash", "input": {}})));
                let whole = json!({"type": "input_json_delta", "partial_json": input});
                pieces.push_back(delta(whole));
                ("tool_use", 20)
            }
            Self::Text { words, gate } => {
                pieces.push_back(start(json!({"type": "text", "text": ""})));
                let tokens = words.len();
                pieces.extend(
                    words.iter().map(|word| delta(json!({"type": "text_delta", "text": word}))),
                );
                if let Some(gate) = gate {
                    pieces.insert(pieces.len() - 1, Piece::Gate(gate));
                }
                ("end_turn", tokens)
            }
        };
        pieces.push_back(event(&json!({"type": "content_block_stop", "index": 0})));
        pieces.push_back(event(&json!({"type": "message_delta",
            "delta": {"stop_reason": stop_reason, "stop_sequence": null},
            "usage": {"output_tokens": tokens}})));
        pieces.push_back(event(&json!({"type": "message_stop"})));
        pieces
    }
}

fn stream_of(shared: Arc<Shared>, pieces: VecDeque<Piece>) -> Response {
    let events = stream::unfold((shared, pieces), |(shared, mut pieces)| async move {
        let text = match pieces.pop_front()? {
            Piece::Event(text) => text,
            Piece::Gate(gate) => {
                shared.pass(&gate).await;
                String::new()
            }
        };
        Some((Ok::<_, Infallible>(text), (shared, pieces)))
    });
    let kind = [(header::CONTENT_TYPE, "text/event-stream")];
    (kind, Body::from_stream(events)).into_response()
}
