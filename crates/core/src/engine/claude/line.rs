//! One line of Claude Code's `stream-json`, and what follows from it.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::super::{Item, Limit, Reading, SessionSign, Usage};
use super::shape::{
    Answer, Closing, Head, ModelUsage, RateLimit, RateLimitEvent, Retry, Scalar, Tokens,
};
use super::sign_in_error;
use crate::evidence::AgentResult;
use crate::limits;
use crate::time::Timestamp;

/// Reads a complete line, its newline taken off.
pub(in crate::engine) fn read_line(line: &[u8], reading: &mut Reading, items: &mut Vec<Item>) {
    if !read_record(line, reading, items) {
        let mut raw = line.to_vec();
        raw.push(b'\n');
        items.push(Item::Raw(raw));
    }
}

/// Reads what stands after the last newline: a whole record, text, or a record torn by a kill.
pub(in crate::engine) fn read_last_line(line: &[u8], reading: &mut Reading, items: &mut Vec<Item>) {
    if read_record(line, reading, items) {
        return;
    }
    items.push(match line.first() {
        Some(b'{') => Item::Note(format!("cut off in a record, {} bytes", line.len())),
        _ => Item::Raw(line.to_vec()),
    });
}

/// Whether the line is a JSON object; what matters of it has been taken.
fn read_record(line: &[u8], reading: &mut Reading, items: &mut Vec<Item>) -> bool {
    let Ok(head) = serde_json::from_slice::<Head>(line) else { return false };
    match (head.kind.text(), head.subtype.text()) {
        (Some("system"), Some("init")) => {
            goes_on(reading);
            reading.session = head.session_id.into_text();
            // Announced again in a run that was closed before: what was stored stays stored.
            reading.sign = reading.sign.or(Some(SessionSign::Announced));
        }
        (Some("system"), Some("api_retry")) => items.push(Item::Note(retry(line))),
        (Some("rate_limit_event"), _) => {
            let event = serde_json::from_slice::<RateLimitEvent>(line).unwrap_or_default();
            reading.refused_until = refused_until(&event.rate_limit_info);
        }
        (Some("user"), _) => goes_on(reading),
        // A line of a known kind and of an unknown shape is passed over, like one of an unknown kind.
        (Some("assistant"), _) => {
            goes_on(reading);
            if let Ok(answer) = serde_json::from_slice::<Answer>(line) {
                read_answer(answer, items);
            }
        }
        (Some("result"), subtype) => {
            let success = subtype == Some("success");
            if let Ok(closing) = serde_json::from_slice::<Closing>(line) {
                read_closing(closing, success, head.session_id.into_text(), reading, items);
            }
        }
        _ => {}
    }
    true
}

/// A closing record that is followed by more work was not the closing one.
fn goes_on(reading: &mut Reading) {
    reading.result = None;
    reading.limit = None;
}

fn retry(line: &[u8]) -> String {
    let retry = serde_json::from_slice::<Retry>(line).unwrap_or_default();
    let number = |n: &Scalar| n.number().map_or_else(|| "?".to_string(), |n| n.to_string());
    let error = retry.error.text().unwrap_or("an error");
    format!("try {} of {} again after {error}", number(&retry.attempt), number(&retry.max_retries))
}

fn read_answer(answer: Answer, items: &mut Vec<Item>) {
    // The CLI puts an error of the API into words of the model; the closing record tells it as what it is.
    if answer.is_api_error_message.is_true() {
        return;
    }
    for block in answer.message.content {
        match (block.kind.text(), block.text, block.name) {
            (Some("text"), Scalar::Text(text), _) => items.push(Item::Text(text)),
            (Some("tool_use"), _, Scalar::Text(name)) => {
                items.push(Item::ToolUse { name, summary: block.input.summary() });
            }
            _ => {}
        }
    }
}

fn read_closing(
    closing: Closing,
    subtype_success: bool,
    session: Option<String>,
    reading: &mut Reading,
    items: &mut Vec<Item>,
) {
    // Both must say so: a failed request comes as subtype `success` with `is_error` true.
    let success = subtype_success && closing.is_error.is_false();
    reading.limit = limit(&closing, success, reading.refused_until);
    let errors: Vec<String> =
        closing.errors.unwrap_or_default().into_iter().filter_map(Scalar::into_text).collect();
    let refused = errors.iter().find_map(|error| sign_in_error(error));
    reading.sign = refused.or(Some(SessionSign::Closed));
    let mut text = closing.result.into_text().unwrap_or_else(|| errors.join("; "));
    truncate(&mut text, limits::AGENT_RESULT_BYTES_MAX);
    if !success {
        let shown =
            if text.is_empty() { "the agent reports a failure".to_string() } else { text.clone() };
        items.push(Item::Error(shown));
    }
    let told = closing.since_last.map_or_else(
        || usage_of_run(closing.usage.as_ref(), &closing.total_cost_usd),
        |models| Some(usage_by_model(&models, reading.usage)),
    );
    reading.usage = told.or(reading.usage);
    reading.session = session.or_else(|| reading.session.take());
    reading.result = Some(AgentResult { success, text });
}

/// Until when an account may ask nothing more, if it may not and if that was said.
fn refused_until(info: &RateLimit) -> Option<Timestamp> {
    let rejected = info.status.text() == Some("rejected");
    let seconds = Some(info.resets_at.count()).filter(|seconds| rejected && *seconds > 0);
    seconds.map(|seconds| Timestamp(seconds.saturating_mul(1000)))
}

/// A refusal that passes by itself, by the status that the closing record gives it.
fn limit(closing: &Closing, success: bool, refused_until: Option<Timestamp>) -> Option<Limit> {
    match closing.api_error_status.count() {
        _ if success => None,
        TOO_MANY_REQUESTS => Some(Limit::Usage { resets_at: refused_until }),
        OVERLOADED => Some(Limit::Overload),
        _ => None,
    }
}

/// The vendor's statuses for "not now".
const TOO_MANY_REQUESTS: u64 = 429;
const OVERLOADED: u64 = 529;

/// 2.1.330 and later: per model, since the closing record before; so the records of one run add up.
fn usage_by_model(models: &BTreeMap<String, ModelUsage>, before: Option<Usage>) -> Usage {
    let mut usage = before.unwrap_or_default();
    let mut cost = usage.cost_micros.unwrap_or(0);
    for model in models.values() {
        for tokens in [&model.input, &model.cache_read, &model.cache_creation] {
            usage.input_tokens = usage.input_tokens.saturating_add(tokens.count());
        }
        usage.output_tokens = usage.output_tokens.saturating_add(model.output.count());
        cost = cost.saturating_add(micros(&model.cost_usd).unwrap_or(0));
    }
    usage.cost_micros = Some(cost);
    usage
}

/// Earlier versions: `usage` and `total_cost_usd` are of this run. (2.1.330's `total_cost_usd` is of the whole conversation,
/// which is why it is not looked at when there is something better.)
fn usage_of_run(tokens: Option<&Tokens>, cost: &Scalar) -> Option<Usage> {
    let tokens = tokens?;
    let input = [&tokens.input, &tokens.cache_read, &tokens.cache_creation];
    Some(Usage {
        input_tokens: input.iter().fold(0, |sum, tokens| tokens.count().saturating_add(sum)),
        output_tokens: tokens.output.count(),
        cost_micros: micros(cost),
    })
}

/// Dollars to millionths, rounded.
fn micros(dollars: &Scalar) -> Option<u64> {
    let dollars = dollars.number().filter(|dollars| dollars.is_finite() && *dollars >= 0.0)?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative, and a float cast to an integer stops at its bounds"
    )]
    let micros = (dollars * 1e6 + 0.5) as u64;
    Some(micros)
}

/// Cuts a text at a character's boundary.
fn truncate(text: &mut String, bytes_max: usize) {
    text.truncate(text.floor_char_boundary(bytes_max));
}
