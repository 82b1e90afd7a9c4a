//! Who may come in: a token always, and no page of another site.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use subtle::ConstantTimeEq as _;

use super::{App, BODY_BYTES_MAX, Problem};

/// Lets nobody in without the token.
pub(super) async fn token(State(app): State<App>, request: Request, next: Next) -> Response {
    match check(request.headers(), &app.token) {
        Ok(()) => next.run(request).await,
        Err(problem) => {
            hear_out(request).await;
            problem.into_response()
        }
    }
}

/// Reads what the caller is still sending, to no purpose but that an answer reaches it: closing before resets the connection. Whoever
/// sends more than anything we take has to live with that.
pub(super) async fn hear_out(request: Request) {
    let mut left = BODY_BYTES_MAX;
    let mut body = request.into_body().into_data_stream();
    while let Some(Ok(bytes)) = body.next().await {
        let Some(less) = left.checked_sub(bytes.len()) else { return };
        left = less;
    }
}

/// Whether the caller shows the token.
pub(super) fn check(headers: &HeaderMap, token: &str) -> Result<(), Problem> {
    let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let shown = shown.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    if bool::from(shown.as_bytes().ct_eq(token.as_bytes())) {
        return Ok(());
    }
    let detail = if shown.is_empty() { "a token is missing" } else { "the token is wrong" };
    let problem = Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail);
    Err(problem.hint("Authorization: Bearer TOKEN; on this machine the token is in DATA/token"))
}

/// Refuses a browser that was sent here by a page of another site: its Origin, or the Host it believes in, is not ours.
pub(super) async fn origin(request: Request, next: Next) -> Response {
    if is_foreign(request.headers()) {
        hear_out(request).await;
        let detail = "this server answers only to its own address";
        return Problem::new(StatusCode::FORBIDDEN, "foreign_origin", detail).into_response();
    }
    next.run(request).await
}

fn is_foreign(headers: &HeaderMap) -> bool {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let host = header(header::HOST).unwrap_or_default();
    let elsewhere = header(header::ORIGIN).is_some_and(|o| o != format!("http://{host}"));
    elsewhere || !is_address(host)
}

/// An address or `localhost`: a name could have been pointed here by somebody else (DNS rebinding).
fn is_address(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, port)| {
        if port.bytes().all(|byte| byte.is_ascii_digit()) { name } else { host }
    });
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::is_address;

    #[test]
    fn only_addresses_and_localhost_are_hosts_of_ours() {
        for good in ["127.0.0.1:7878", "localhost", "localhost:1", "[::1]:7878", "10.0.0.7"] {
            assert!(is_address(good), "{good}");
        }
        for bad in ["evil.example", "evil.example:7878", "", "127.0.0.1.evil.example:7878"] {
            assert!(!is_address(bad), "{bad}");
        }
    }
}
