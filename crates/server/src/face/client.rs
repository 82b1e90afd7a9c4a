//! The blocking HTTP client of the command line, and of the tests.
//!
//! Absent: TLS (it talks to its own machine), redirects and proxies (the token must not travel), kept connections (a server
//! that was killed would leave dead ones), and a bound on how long an answer takes: some wait for a job on purpose.

pub mod sse;
pub mod target;

use std::io::Read;
use std::time::{Duration, Instant};

use serde_json::Value;
use ureq::http;

/// An answer that is read whole: far above any job's JSON or list.
const BODY_BYTES_MAX: u64 = 256 << 20;

/// A machine that swallows packets is as good as none.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);

/// The code with which a server says that it is not ready to answer yet, and that nothing was done.
const RECOVERING: &str = "recovering";

/// How long a server that recovers is waited for: it has written that it will be there in a moment.
const RECOVERING_PATIENCE: Duration = Duration::from_secs(30);

/// Between two questions to a server that recovers.
const RECOVERING_PAUSE: Duration = Duration::from_millis(50);

/// Why there is no answer, or a "no".
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there: nothing was sent.
    #[error("no server answers at {server}")]
    Unreachable {
        /// The address that was tried.
        server: String,
        /// What came of it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server said no, and why.
    #[error("{detail}")]
    Problem {
        /// The HTTP status.
        status: u16,
        /// The stable code; empty if the answer was no problem document.
        code: String,
        /// For people.
        detail: String,
        /// What to do about it.
        hint: Option<String>,
        /// The whole document; null if there was none.
        body: Box<Value>,
    },
    /// The connection ended too early: what was asked may have been done or not.
    #[error("the connection to {server} broke")]
    Broken {
        /// The server.
        server: String,
        /// What came instead of an answer.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ClientError {
    /// It will be gone when the server is back: nobody answers, the answer broke off, or the server is stopping.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Broken { .. } => true,
            Self::Problem { code, .. } => code == "stopping" || code == RECOVERING,
        }
    }

    /// The stable code of a problem.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Problem { code, .. } => Some(code),
            Self::Unreachable { .. } | Self::Broken { .. } => None,
        }
    }
}

/// An answer, whole.
#[derive(Debug)]
pub struct Reply {
    /// The HTTP status: 200 to 299.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
    headers: http::HeaderMap,
    server: String,
}

impl Reply {
    /// The body as JSON.
    ///
    /// # Errors
    /// [`ClientError::Broken`]: it is none.
    pub fn json(&self) -> Result<Value, ClientError> {
        serde_json::from_slice(&self.body).map_err(|error| ClientError::Broken {
            server: self.server.clone(),
            source: error.into(),
        })
    }

    /// A header, if it is there and is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// An answer that is read as it comes. Its end without an error is the end that the server meant.
pub struct Stream {
    /// The HTTP status: 200, or 206 for a range.
    pub status: u16,
    reader: ureq::BodyReader<'static>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("status", &self.status).finish_non_exhaustive()
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.reader.read(buffer)
    }
}

/// A way to one server.
#[derive(Clone)]
pub struct Client {
    agent: ureq::Agent,
    server: String,
    token: Option<String>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The token is nobody's business.
        f.debug_struct("Client").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the server at `HOST:PORT` (or `http://HOST:PORT`). Nothing is sent yet.
    pub fn new(server: impl AsRef<str>, token: Option<String>) -> Self {
        let server = server.as_ref().trim();
        let server = server.strip_prefix("http://").unwrap_or(server).trim_end_matches('/');
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .max_idle_connections(0)
            .timeout_connect(Some(CONNECT_TIME_MAX))
            .user_agent(concat!("outlive/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: config.into(), server: server.to_string(), token }
    }

    /// Whom it talks to.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Asks for what is at a path, whole.
    ///
    /// # Errors
    /// See [`ClientError`]; so for all requests.
    pub fn get(&self, path: &str) -> Result<Reply, ClientError> {
        self.whole(self.send("GET", path, &[], None)?)
    }

    /// Sends JSON.
    pub fn post(&self, path: &str, body: &Value) -> Result<Reply, ClientError> {
        self.post_with(path, body, &[])
    }

    /// Sends JSON with headers, as `("idempotency-key", "…")`.
    pub fn post_with(
        &self,
        path: &str,
        body: &Value,
        headers: &[(&str, &str)],
    ) -> Result<Reply, ClientError> {
        self.whole(self.send("POST", path, headers, Some(body))?)
    }

    /// Changes what is at a path.
    pub fn patch(&self, path: &str, body: &Value) -> Result<Reply, ClientError> {
        self.whole(self.send("PATCH", path, &[], Some(body))?)
    }

    /// Deletes what is at a path.
    pub fn delete(&self, path: &str) -> Result<Reply, ClientError> {
        self.whole(self.send("DELETE", path, &[], None)?)
    }

    /// Asks for what is at a path, to be read as it comes; headers as `("range", "bytes=7-")`.
    pub fn stream(&self, path: &str, headers: &[(&str, &str)]) -> Result<Stream, ClientError> {
        let answer = self.send("GET", path, headers, None)?;
        let status = answer.status().as_u16();
        Ok(Stream { status, reader: answer.into_body().into_reader() })
    }

    /// Sends, as often as the server answers that it is recovering and has done nothing.
    #[expect(clippy::disallowed_methods, reason = "a server cannot call its client")]
    fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<http::Response<ureq::Body>, ClientError> {
        let begun = Instant::now();
        loop {
            let answer = self.send_once(method, path, headers, body);
            let recovers = answer.as_ref().is_err_and(|error| error.code() == Some(RECOVERING));
            if !recovers || begun.elapsed() > RECOVERING_PATIENCE {
                return answer;
            }
            std::thread::sleep(RECOVERING_PAUSE);
        }
    }

    fn send_once(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<http::Response<ureq::Body>, ClientError> {
        let uri = format!("http://{}{path}", self.server);
        let mut request = http::Request::builder().method(method).uri(uri);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = match body {
            Some(body) => request
                .header("content-type", "application/json")
                .body(body.to_string())
                .map_err(ureq::Error::Http)
                .and_then(|request| self.agent.run(request)),
            None => request
                .body(())
                .map_err(ureq::Error::Http)
                .and_then(|request| self.agent.run(request)),
        };
        let answer = answer.map_err(|error| self.failed(error))?;
        if answer.status().is_success() { Ok(answer) } else { Err(self.refused(answer)) }
    }

    fn failed(&self, error: ureq::Error) -> ClientError {
        let server = self.server.clone();
        let unreachable = is_before_sending(&error);
        let source: Box<dyn std::error::Error + Send + Sync> = match error {
            // Said by the system, and better than by the library.
            ureq::Error::Io(error) => error.into(),
            error => error.into(),
        };
        if unreachable {
            return ClientError::Unreachable { server, source };
        }
        ClientError::Broken { server, source }
    }

    fn whole(&self, answer: http::Response<ureq::Body>) -> Result<Reply, ClientError> {
        let (parts, mut body) = answer.into_parts();
        let body = body.with_config().limit(BODY_BYTES_MAX).read_to_vec();
        let body = body.map_err(|error| self.failed(error))?;
        let server = self.server.clone();
        Ok(Reply { status: parts.status.as_u16(), body, headers: parts.headers, server })
    }

    fn refused(&self, answer: http::Response<ureq::Body>) -> ClientError {
        let reply = match self.whole(answer) {
            Ok(reply) => reply,
            Err(error) => return error,
        };
        let body = reply.json().unwrap_or_default();
        let text = |name: &str| body.get(name).and_then(Value::as_str).map(str::to_string);
        let stranger = || {
            let (server, status) = (&self.server, reply.status);
            format!(
                "{server} answered with status {status} and no reason: is it an Outlive server?"
            )
        };
        ClientError::Problem {
            status: reply.status,
            code: text("code").unwrap_or_default(),
            detail: text("detail").unwrap_or_else(stranger),
            hint: text("hint"),
            body: Box::new(body),
        }
    }
}

/// The server cannot have seen anything of the request.
fn is_before_sending(error: &ureq::Error) -> bool {
    use std::io::ErrorKind;
    match error {
        ureq::Error::Io(error) => matches!(
            error.kind(),
            ErrorKind::ConnectionRefused
                | ErrorKind::HostUnreachable
                | ErrorKind::NetworkUnreachable
                | ErrorKind::AddrNotAvailable
        ),
        ureq::Error::Timeout(what) => {
            matches!(what, ureq::Timeout::Connect | ureq::Timeout::Resolve)
        }
        ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::BadUri(_)
        | ureq::Error::Http(_) => true,
        _ => false,
    }
}

/// One piece of a path, or a value of a query, with everything escaped that could mean more.
pub fn escape(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}

#[cfg(test)]
pub(crate) mod tests;
