//! The fields that are read of Claude Code's records. Every other field may be there or not, and every one of these may have
//! an unexpected shape: then it counts as absent. No tree of values is built, so a line costs no more memory than its length.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::limits;

#[derive(Debug, Deserialize)]
pub(super) struct Head {
    #[serde(default, rename = "type")]
    pub(super) kind: Scalar,
    #[serde(default)]
    pub(super) subtype: Scalar,
    #[serde(default)]
    pub(super) session_id: Scalar,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Retry {
    #[serde(default)]
    pub(super) attempt: Scalar,
    #[serde(default)]
    pub(super) max_retries: Scalar,
    #[serde(default)]
    pub(super) error: Scalar,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RateLimitEvent {
    #[serde(default)]
    pub(super) rate_limit_info: RateLimit,
}

/// How an account stands with its limits.
#[derive(Debug, Default, Deserialize)]
pub(super) struct RateLimit {
    #[serde(default)]
    pub(super) status: Scalar,
    /// Seconds after 1970.
    #[serde(default, rename = "resetsAt")]
    pub(super) resets_at: Scalar,
}

#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    pub(super) message: Message,
    #[serde(default)]
    pub(super) is_api_error_message: Scalar,
}

#[derive(Debug, Deserialize)]
pub(super) struct Message {
    pub(super) content: Vec<Block>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Block {
    #[serde(default, rename = "type")]
    pub(super) kind: Scalar,
    #[serde(default)]
    pub(super) text: Scalar,
    #[serde(default)]
    pub(super) name: Scalar,
    #[serde(default)]
    pub(super) input: ToolInput,
}

#[derive(Debug, Deserialize)]
pub(super) struct Closing {
    #[serde(default)]
    pub(super) is_error: Scalar,
    /// The HTTP status with which the model refused last.
    #[serde(default)]
    pub(super) api_error_status: Scalar,
    #[serde(default)]
    pub(super) result: Scalar,
    pub(super) errors: Option<Vec<Scalar>>,
    #[serde(default)]
    pub(super) total_cost_usd: Scalar,
    pub(super) usage: Option<Tokens>,
    #[serde(rename = "model_usage_since_last_result")]
    pub(super) since_last: Option<BTreeMap<String, ModelUsage>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Tokens {
    #[serde(default, rename = "input_tokens")]
    pub(super) input: Scalar,
    #[serde(default, rename = "cache_read_input_tokens")]
    pub(super) cache_read: Scalar,
    #[serde(default, rename = "cache_creation_input_tokens")]
    pub(super) cache_creation: Scalar,
    #[serde(default, rename = "output_tokens")]
    pub(super) output: Scalar,
}

#[derive(Debug, Deserialize)]
pub(super) struct ModelUsage {
    #[serde(default, rename = "inputTokens")]
    pub(super) input: Scalar,
    #[serde(default, rename = "cacheReadInputTokens")]
    pub(super) cache_read: Scalar,
    #[serde(default, rename = "cacheCreationInputTokens")]
    pub(super) cache_creation: Scalar,
    #[serde(default, rename = "outputTokens")]
    pub(super) output: Scalar,
    #[serde(default, rename = "costUSD")]
    pub(super) cost_usd: Scalar,
}

/// A field of which only a simple value is of use. Anything else may stand there without harm, and costs no memory.
#[derive(Debug, Default)]
pub(super) enum Scalar {
    #[default]
    Other,
    Bool(bool),
    Count(u64),
    Number(f64),
    Text(String),
}

impl Scalar {
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn into_text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn number(&self) -> Option<f64> {
        match self {
            #[expect(clippy::cast_precision_loss, reason = "dollars and tries, far below 2^53")]
            Self::Count(count) => Some(*count as f64),
            Self::Number(number) => Some(*number),
            _ => None,
        }
    }

    pub(super) fn count(&self) -> u64 {
        match self {
            Self::Count(count) => *count,
            _ => 0,
        }
    }

    pub(super) fn is_true(&self) -> bool {
        matches!(self, Self::Bool(true))
    }

    pub(super) fn is_false(&self) -> bool {
        matches!(self, Self::Bool(false))
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
        Ok(Scalar::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Scalar, E> {
        Ok(Scalar::Count(value))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Scalar, E> {
        Ok(Scalar::Other)
    }

    fn visit_f64<E>(self, value: f64) -> Result<Scalar, E> {
        Ok(Scalar::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Scalar, E> {
        Ok(Scalar::Text(value.to_string()))
    }

    fn visit_unit<E>(self) -> Result<Scalar, E> {
        Ok(Scalar::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Scalar, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }
}

/// The fields of a tool's input that say what it is used for.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ToolInput {
    #[serde(default)]
    command: Scalar,
    #[serde(default)]
    file_path: Scalar,
    #[serde(default)]
    notebook_path: Scalar,
    #[serde(default)]
    path: Scalar,
    #[serde(default)]
    pattern: Scalar,
    #[serde(default)]
    query: Scalar,
    #[serde(default)]
    url: Scalar,
    #[serde(default)]
    description: Scalar,
}

impl ToolInput {
    /// The first of them, most telling first, in one line and without control characters.
    pub(super) fn summary(&self) -> String {
        let Self { command, file_path, notebook_path, path, pattern, query, url, description } =
            self;
        let fields = [command, file_path, notebook_path, pattern, path, query, url, description];
        let Some(text) = fields.into_iter().find_map(Scalar::text) else { return String::new() };
        let mut chars = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
        let mut summary: String = chars.by_ref().take(limits::TOOL_SUMMARY_CHARS_MAX).collect();
        if chars.next().is_some() {
            summary.push('…');
        }
        summary
    }
}
