//! Claude Code's output, read whole, in pieces, torn, and with nonsense in it.

use std::borrow::ToOwned;
use std::string::{String, ToString};
use std::vec::Vec;

use proptest::prelude::*;

use crate::engine::{Item, Limit, Reading, SessionSign, Usage, find};
use crate::evidence::AgentResult;
use crate::limits;

const INIT: &str = r#"{"type":"system","subtype":"init","cwd":"/w","session_id":"5e55","tools":["Bash","Edit"],"model":"claude-opus-5-5","permissionMode":"bypassPermissions","claude_code_version":"2.1.330"}"#;
const TOOL: &str = r#"{"type":"assistant","message":{"id":"msg_1","role":"assistant","content":[{"type":"tool_use","id":"toolu_1","name":"Bash","input":{"command":"echo hello > f.txt","description":"scripted"}}],"stop_reason":null,"usage":{"input_tokens":11,"output_tokens":1}},"session_id":"5e55"}"#;
const TOOL_RESULT: &str = r#"{"type":"user","message":{"role":"user","content":[{"tool_use_id":"toolu_1","type":"tool_result","content":"(Bash completed with no output)","is_error":false}]},"session_id":"5e55","tool_use_result":{"stdout":"","stderr":""}}"#;
const TEXT: &str = r#"{"type":"assistant","message":{"id":"msg_2","role":"assistant","content":[{"type":"text","text":"chunk-1 chunk-2 DONE user_turns=1 first=make it"}],"stop_reason":null},"parent_tool_use_id":null,"session_id":"5e55"}"#;
const CLOSING: &str = r#"{"duration_api_ms":305,"stop_reason":"end_turn","session_id":"5e55","total_cost_usd":0.000672,"usage":{"input_tokens":22,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":24,"service_tier":"standard"},"permission_denials":[],"is_error":false,"num_turns":2,"subtype":"success","api_error_status":null,"result":"chunk-1 chunk-2 DONE user_turns=1 first=make it","type":"result","model_usage_since_last_result":{"claude-opus-5-5":{"inputTokens":22,"outputTokens":24,"cacheReadInputTokens":3,"cacheCreationInputTokens":2,"costUSD":0.0005679999999999999}}}"#;
/// 2.1.197: `type` first, and nothing per model since the last record.
const OLD_CLOSING: &str = r#"{"type":"result","subtype":"success","is_error":false,"num_turns":2,"result":"DONE","session_id":"5e55","total_cost_usd":0.00079,"usage":{"input_tokens":22,"output_tokens":24}}"#;
const RETRY: &str = r#"{"type":"system","subtype":"api_retry","attempt":1,"max_retries":10,"retry_delay_ms":501,"error_status":500,"error":"server_error","session_id":"5e55"}"#;
const API_ERROR: &str = r#"{"type":"assistant","message":{"model":"<synthetic>","role":"assistant","content":[{"type":"text","text":"API Error: 500 scripted 500."}]},"session_id":"5e55","error":"server_error","is_api_error_message":true}"#;
/// Subtype `success`, and a failure.
const FAILED: &str = r#"{"total_cost_usd":0,"usage":{"input_tokens":0,"output_tokens":0},"is_error":true,"subtype":"success","api_error_status":500,"result":"API Error: 500 scripted 500.","type":"result","session_id":"5e55","model_usage_since_last_result":{}}"#;
const NO_CONVERSATION: &str = r#"{"type":"result","subtype":"error_during_execution","is_error":true,"num_turns":0,"session_id":"5e55","total_cost_usd":0,"usage":{"input_tokens":0,"output_tokens":0},"errors":["No conversation found with session ID: 5e55"]}"#;
const INTERRUPTED: &str = r#"{"type":"result","subtype":"error_during_execution","is_error":true,"session_id":"5e55","total_cost_usd":0,"errors":["[ede_diagnostic] result_type=user"]}"#;

fn joined(lines: &[&str]) -> Vec<u8> {
    lines.iter().flat_map(|line| line.bytes().chain([b'\n'])).collect()
}

/// Reads the output in pieces that end at the given places.
fn read(output: &[u8], cuts: &[usize]) -> (Vec<Item>, Reading) {
    let mut reader = find("claude").expect("known").reader();
    let mut items = Vec::new();
    let mut from = 0;
    for to in cuts.iter().copied().chain([output.len()]) {
        reader.feed(&output[from..to], &mut items);
        from = to;
    }
    let reading = reader.finish(&mut items);
    (items, reading)
}

fn bytes(items: &[Item]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for item in items {
        item.write_to(&mut bytes);
    }
    bytes
}

fn text(items: &[Item]) -> String {
    String::from_utf8(bytes(items)).expect("UTF-8")
}

#[test]
fn a_run_with_a_tool_reads_as_text_result_usage_and_cost() {
    let (items, reading) = read(&joined(&[INIT, TOOL, TOOL_RESULT, TEXT, CLOSING]), &[]);
    let answer = "chunk-1 chunk-2 DONE user_turns=1 first=make it";
    assert_eq!(text(&items), std::format!("[Bash] echo hello > f.txt\n{answer}\n"));
    let expected = Reading {
        result: Some(AgentResult { success: true, text: answer.to_string() }),
        usage: Some(Usage { input_tokens: 27, output_tokens: 24, cost_micros: Some(568) }),
        session: Some("5e55".to_string()),
        sign: Some(SessionSign::Closed),
        limit: None,
        refused_until: None,
    };
    assert_eq!(reading, expected);
    assert!(!reading.not_opened());
}

#[test]
fn an_older_version_gives_its_cost_per_run() {
    let (_, reading) = read(&joined(&[INIT, TEXT, OLD_CLOSING]), &[]);
    let usage = Usage { input_tokens: 22, output_tokens: 24, cost_micros: Some(790) };
    assert_eq!(reading.usage, Some(usage));
    assert!(reading.result.is_some_and(|result| result.success));
}

#[test]
fn closing_records_of_one_run_add_up_and_the_last_decides() {
    let (_, reading) = read(&joined(&[INIT, TEXT, CLOSING, INIT, TEXT, CLOSING, FAILED]), &[]);
    let usage = Usage { input_tokens: 54, output_tokens: 48, cost_micros: Some(1136) };
    assert_eq!(reading.usage, Some(usage));
    assert!(reading.result.is_some_and(|result| !result.success));
}

#[test]
fn a_record_that_more_work_followed_is_not_the_closing_one() {
    for more in [INIT, TOOL, TOOL_RESULT, TEXT] {
        let (_, reading) = read(&joined(&[INIT, TEXT, CLOSING, more]), &[]);
        assert_eq!(reading.result, None, "{more}");
    }
    // What says nothing of work leaves it standing.
    for more in [RETRY, r#"{"type":"system","subtype":"status"}"#, r#"{"type":"new"}"#, "warning"] {
        let (_, reading) = read(&joined(&[INIT, TEXT, CLOSING, more]), &[]);
        assert!(reading.result.is_some(), "{more}");
    }
}

#[test]
fn subtype_success_with_an_error_is_a_failure() {
    let (items, reading) = read(&joined(&[INIT, RETRY, API_ERROR, FAILED]), &[]);
    assert_eq!(
        text(&items),
        "(try 1 of 10 again after server_error)\nerror: API Error: 500 scripted 500.\n"
    );
    let failure = AgentResult { success: false, text: "API Error: 500 scripted 500.".to_string() };
    assert_eq!(reading.result, Some(failure));
    let unsure = CLOSING.replace(r#""is_error":false,"#, "");
    let (_, reading) = read(&joined(&[INIT, &unsure]), &[]);
    assert!(reading.result.is_some_and(|result| !result.success), "unsaid is not success");
}

#[test]
fn a_failure_without_words_is_still_shown() {
    let (items, reading) = read(&joined(&[INIT, INTERRUPTED]), &[]);
    assert!(reading.result.is_some_and(|result| !result.success));
    assert!(text(&items).starts_with("error: "));
    let silent = INTERRUPTED.replace("[ede_diagnostic] result_type=user", "");
    assert_eq!(text(&read(&joined(&[&silent]), &[]).0), "error: the agent reports a failure\n");
}

#[test]
fn an_unknown_conversation_is_seen_on_either_stream() {
    let (_, reading) = read(&joined(&[NO_CONVERSATION]), &[]);
    assert_eq!(reading.sign, Some(SessionSign::NotFound));
    assert!(reading.not_opened());
    let claude = find("claude").expect("known");
    for (stderr, sign) in [
        ("", None),
        ("warning: something\n", None),
        ("No conversation found with session ID: 5e55\n", Some(SessionSign::NotFound)),
        ("x\nError: Session ID 5e55 is already in use.\n", Some(SessionSign::InUse)),
    ] {
        assert_eq!(claude.sign_in_stderr(stderr.as_bytes()), sign, "{stderr}");
    }
    let command = find("command").expect("known");
    assert_eq!(command.sign_in_stderr(b"No conversation found"), None);
}

#[test]
fn a_conversation_is_stored_for_certain_once_a_run_in_it_was_closed() {
    for (lines, sign) in [
        (&[][..], None),
        (&["text"], None),
        (&[INIT], Some(SessionSign::Announced)),
        (&[INIT, TOOL, TOOL_RESULT, TEXT], Some(SessionSign::Announced)),
        (&[INIT, TEXT, CLOSING], Some(SessionSign::Closed)),
        (&[INIT, API_ERROR, FAILED], Some(SessionSign::Closed)),
        (&[INIT, TEXT, CLOSING, INIT, TOOL], Some(SessionSign::Closed)),
    ] {
        assert_eq!(read(&joined(lines), &[]).1.sign, sign, "{lines:?}");
    }
}

#[test]
fn what_is_no_record_is_shown_and_what_is_unknown_is_not() {
    let odd = [
        "npm warn something",
        "",
        r#"{"type":"new_kind","x":[1,{"y":null}]}"#,
        r#"{"type":7,"subtype":[]}"#,
        r#"{"type":"assistant","message":"not an object"}"#,
        r#"{"type":"assistant","message":{"content":[{"type":"thinking","thinking":"hm"}]}}"#,
        r#"{"type":"assistant","message":{"content":[{"type":"tool_use","name":"Odd","input":{"command":["a"],"n":-1}}]}}"#,
        r#"{"type":"system"}"#,
        "{broken",
        "17",
    ];
    let (items, reading) = read(&joined(&odd), &[]);
    assert_eq!(text(&items), "npm warn something\n\n[Odd]\n{broken\n17\n");
    assert_eq!(reading.result, None);
    let (items, _) = read(b"caf\xe9\n", &[]);
    assert_eq!(items, [Item::Raw(b"caf\xe9\n".to_vec())]);
}

#[test]
fn a_tool_is_shown_in_one_short_line() {
    let long = "x".repeat(limits::TOOL_SUMMARY_CHARS_MAX + 1);
    for (input, shown) in [
        (serde_json::json!({"description": "d", "command": "a\nb\t\u{1b}[31m"}), "a b  [31m"),
        (serde_json::json!({"file_path": "/w/f.rs", "old_string": "a"}), "/w/f.rs"),
        (serde_json::json!({"command": long}), &*(long[1..].to_owned() + "…")),
        (serde_json::json!({}), ""),
    ] {
        let record = serde_json::json!({"type": "assistant", "message": {"content": [
            {"type": "tool_use", "name": "Tool", "input": input}]}});
        let (items, _) = read(&joined(&[&record.to_string()]), &[]);
        assert_eq!(text(&items), std::format!("{}\n", std::format!("[Tool] {shown}").trim_end()));
    }
}

#[test]
fn a_torn_last_line_is_held_back_and_then_told() {
    let mut reader = find("claude").expect("known").reader();
    let mut items = Vec::new();
    reader.feed(&joined(&[INIT, TEXT])[..INIT.len() + 40], &mut items);
    assert_eq!(items, []);
    assert_eq!(reader.reading().sign, Some(SessionSign::Announced));
    let reading = reader.finish(&mut items);
    assert_eq!(text(&items), "(cut off in a record, 39 bytes)\n");
    assert_eq!(reading.result, None);
    // Whole but for its newline, a record counts; plain text is shown as it is.
    let (items, reading) = read(CLOSING.as_bytes(), &[]);
    assert!(items.is_empty() && reading.result.is_some());
    assert_eq!(text(&read(b"half a wo", &[]).0), "half a wo");
}

// Proves I9: a reader's memory does not grow with what an agent writes.
#[test]
fn an_endless_line_is_cut_and_the_next_one_is_read() {
    let max = limits::OUTPUT_LINE_BYTES_MAX;
    for (length, cut) in [(max, false), (max + 1, true), (2 * max, true)] {
        let mut output = std::vec![b'x'; length];
        output.push(b'\n');
        output.extend(joined(&[TEXT, CLOSING]));
        for cuts in [&[][..], &[1, max - 1, max, max + 1], &[max + 1]] {
            let (items, reading) = read(&output, cuts);
            let shown = text(&items[..1]);
            assert_eq!(shown.contains("[cut: a line of more than 8388608 bytes]\n"), cut);
            assert_eq!(shown.len() < 5000, cut, "{length}");
            assert!(matches!(&items[1..], [Item::Text(_)]));
            assert!(reading.result.is_some());
        }
    }
    let mut reader = find("claude").expect("known").reader();
    let mut items = Vec::new();
    for _ in 0..3 {
        reader.feed(&std::vec![b'y'; max], &mut items);
        assert!(reader.held_bytes() <= max);
    }
    reader.finish(&mut items);
    assert_eq!(items.len(), 1);
}

#[test]
fn closing_words_are_kept_up_to_a_limit() {
    let words = "ä".repeat(limits::AGENT_RESULT_BYTES_MAX);
    let record = serde_json::json!({"type": "result", "subtype": "success", "is_error": false,
        "result": std::format!("x{words}")});
    let (_, reading) = read(&joined(&[&record.to_string()]), &[]);
    let kept = reading.result.expect("a record").text.len();
    assert_eq!(kept, limits::AGENT_RESULT_BYTES_MAX - 1, "cut between characters");
}

#[test]
fn other_engines_pass_every_byte_through_at_once() {
    for name in ["command", "demo"] {
        let mut reader = find(name).expect("known").reader();
        let mut items = Vec::new();
        for piece in [&b"no newline"[..], b"", b"\xff\n{\"type\":\"result\"}"] {
            reader.feed(piece, &mut items);
        }
        assert_eq!(bytes(&items), b"no newline\xff\n{\"type\":\"result\"}");
        assert_eq!(reader.finish(&mut items), Reading::default());
    }
}

#[test]
fn odd_costs_are_no_costs() {
    for (cost, micros) in [
        ("0.0000005", Some(1)),
        ("0", Some(0)),
        ("12", Some(12_000_000)),
        ("1e300", Some(u64::MAX)),
        ("-1", None),
        ("-1.5", None),
        ("null", None),
        ("\"1\"", None),
    ] {
        let record = OLD_CLOSING.replace("0.00079", cost);
        let (_, reading) = read(&joined(&[&record]), &[]);
        assert_eq!(reading.usage.and_then(|usage| usage.cost_micros), micros, "{cost}");
    }
}

fn a_line() -> impl Strategy<Value = Vec<u8>> {
    let known = [
        INIT,
        TOOL,
        TOOL_RESULT,
        TEXT,
        CLOSING,
        OLD_CLOSING,
        RETRY,
        API_ERROR,
        FAILED,
        NO_CONVERSATION,
        INTERRUPTED,
        "plain text",
        "",
        "{broken",
    ];
    prop_oneof![
        8 => prop::sample::select(known.to_vec()).prop_map(|line| line.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..40),
    ]
}

proptest! {
    #[test]
    fn the_pieces_in_which_output_comes_change_nothing(
        lines in prop::collection::vec(a_line(), 0..12),
        torn in prop::option::of(0usize..2000),
        places in prop::collection::vec(0.0f64..=1.0, 0..20),
    ) {
        let mut output: Vec<u8> = lines.into_iter().flat_map(|mut line| {
            line.push(b'\n');
            line
        }).collect();
        output.truncate(output.len().saturating_sub(torn.unwrap_or(0)));
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss,
            reason = "a place somewhere in some kilobytes")]
        let mut cuts: Vec<usize> = places.iter().map(|p| (p * output.len() as f64) as usize).collect();
        cuts.sort_unstable();
        let every_byte: Vec<usize> = (0..output.len()).collect();
        let whole = read(&output, &[]);
        prop_assert_eq!(&read(&output, &cuts), &whole);
        prop_assert_eq!(&read(&output, &every_byte), &whole);
    }

    #[test]
    fn no_bytes_make_it_panic(output in prop::collection::vec(any::<u8>(), 0..300)) {
        let (items, _) = read(&output, &[]);
        bytes(&items);
    }
}

/// As 2.1.330 wrote them, shortened.
const REJECTED: &str = r#"{"type":"rate_limit_event","rate_limit_info":{"status":"rejected","resetsAt":1795889907,"rateLimitType":"five_hour","isUsingOverage":false},"session_id":"5e55"}"#;
const LIMIT_CLOSING: &str = r#"{"stop_reason":"stop_sequence","terminal_reason":"api_error","is_error":true,"subtype":"success","api_error_status":429,"result":"You've hit your 5-hour limit · resets 6:18pm (UTC)","type":"result","session_id":"5e55"}"#;

#[test]
fn limits_are_read_from_the_closing_record_and_their_end_from_the_event_before_it() {
    let closing = |status: &str| LIMIT_CLOSING.replace("429", status);
    let allowed = REJECTED.replace("rejected", "allowed_warning");
    let (rate, overload, error) = (closing("429"), closing("529"), closing("500"));
    let resets_at = Some(crate::time::Timestamp(1_795_889_907_000));
    for (lines, limit) in [
        ([INIT, REJECTED, rate.as_str()], Some(Limit::Usage { resets_at })),
        ([INIT, allowed.as_str(), rate.as_str()], Some(Limit::Usage { resets_at: None })),
        ([INIT, INIT, overload.as_str()], Some(Limit::Overload)),
        ([INIT, REJECTED, error.as_str()], None),
        ([INIT, REJECTED, CLOSING], None),
    ] {
        let (_, reading) = read(&joined(&lines), &[]);
        assert_eq!(reading.limit, limit, "{lines:?}");
    }
    // It went on after all.
    assert_eq!(read(&joined(&[INIT, REJECTED, &rate, TEXT]), &[]).1.limit, None);
    // Without a closing record the agent did not give up: it was ended.
    assert_eq!(read(&joined(&[INIT, REJECTED]), &[]).1.limit, None);
}
