//! Request bodies: JSON objects, read strictly. A field that is not known is refused with the nearest one that is.

use axum::body::Bytes;
use axum::http::{HeaderMap, header};
use outlive_core::engine::nearest;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::problem::Problem;

/// Reads a body as a `T`, whose fields are `known`.
///
/// # Errors
/// Not declared as JSON, not JSON, not an object, an unknown field, or a field of the wrong kind.
pub(super) fn read<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: &Bytes,
    known: &[&'static str],
) -> Result<T, Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if kind.is_none_or(|kind| kind.split(';').next() != Some("application/json")) {
        let detail = "the body must be declared as JSON";
        return Err(Problem::bad("not_json", detail).hint("Content-Type: application/json"));
    }
    let value: Value = serde_json::from_slice(body)
        .map_err(|error| Problem::bad("not_json", format!("the body is not JSON: {error}")))?;
    let Value::Object(object) = &value else {
        return Err(Problem::bad("not_json", "the body must be a JSON object"));
    };
    if let Some(name) = object.keys().find(|name| !known.contains(&name.as_str())) {
        return Err(unknown_field(name, known));
    }
    serde_json::from_value(value)
        .map_err(|error| Problem::bad("bad_field", format!("the body makes no sense: {error}")))
}

fn unknown_field(name: &str, known: &[&'static str]) -> Problem {
    let problem = Problem::bad("unknown_field", format!("there is no field `{name}`"));
    let hint = nearest(name, known).map_or_else(
        || format!("known fields: {}", known.join(", ")),
        |near| format!("did you mean `{near}`?"),
    );
    problem.hint(hint).with("field", name)
}
