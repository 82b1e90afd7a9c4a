//! Files that a supervisor, an agent, an earlier server or a person wrote.

use std::fmt::Debug;

use outlive_core::engine;
use outlive_core::ids::{ProcessRef, SessionId};
use outlive_core::spec::{
    Ending, Freeze, Outcome, Proof, Reading, SLOT_BYTES, Sentinel, Spec, Started, StopCause,
    StopRequest, TreeEmpty, VERSION, decode_json, decode_slot, encode_slot,
};
use outlive_core::time::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::Config;
use crate::data_dir::Instance;
use crate::startup::told::{Start, StartupLog};

/// What can be read means the same when it is written and read again.
fn json<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    if let Reading::Valid(read) = decode_json::<T>(bytes) {
        let text = serde_json::to_vec(&read).expect("no odd keys");
        assert_eq!(decode_json::<T>(&text), Reading::Valid(read));
    }
}

pub(super) fn keep(bytes: &[u8]) {
    json::<Spec>(bytes);
    json::<Started>(bytes);
    json::<Sentinel>(bytes);
    json::<ProcessRef>(bytes);
    json::<Instance>(bytes);
}

fn process() -> ProcessRef {
    ProcessRef { boot_id: "b".into(), pid_namespace: 1, pid: 7, start_ticks: 9 }
}

fn bytes_of<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("no odd keys")
}

pub(super) fn keeps() -> Vec<Vec<u8>> {
    let started = Started {
        version: VERSION,
        at: Timestamp(1),
        agent: process(),
        keeper: process(),
        cgroups: vec!["/sys/fs/cgroup/x".into()],
        deadline_boot_ms: Some(9),
        pipes: Some([1, 2]),
        output_from: [0, 0],
        namespace: None,
        unenforced: vec![],
    };
    let sentinel = Sentinel {
        version: VERSION,
        job: "j".into(),
        attempt: 1,
        engine: "demo".into(),
        host: "h".into(),
        keeper: process(),
        agent: process(),
        at: Timestamp(1),
    };
    let spec = br#"{"version":1,"job":"j","attempt":1,"engine":"demo","mark":"m","argv":["sh"],"cwd":"/",
        "env":[["A","new"]],"env_remove":["B"],"stdin":null,"stdout":"/o","stderr":"/e",
        "capture":"file","timeout_ms":5,"grace_ms":6,"heartbeat_ms":7,"output_bytes_max":null,"memory_bytes_max":1,
        "pids_max":null,"freeze_below_bytes":0,"idle_output_ms":null,"cgroup":"c"}"#;
    let instance = br#"{"instance":"u","machine":"m","format_version":1}"#;
    vec![
        bytes_of(&started),
        bytes_of(&sentinel),
        bytes_of(&process()),
        spec.to_vec(),
        instance.to_vec(),
    ]
}

fn slot<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    drop(decode_slot::<T>(bytes));
    // The content alone: its checksum would keep everything else out.
    let Reading::Valid(read) = decode_json::<T>(bytes) else { return };
    if let Ok(slot) = encode_slot(&read) {
        assert_eq!(decode_slot::<T>(&slot), Reading::Valid(read));
    }
}

pub(super) fn slots(bytes: &[u8]) {
    slot::<Outcome>(bytes);
    slot::<TreeEmpty>(bytes);
    slot::<StopRequest>(bytes);
    slot::<Freeze>(bytes);
    if let Reading::Valid(freeze) = decode_json::<Freeze>(bytes) {
        assert!(freeze.paused_ms(u64::MAX) >= freeze.total_ms);
    }
}

pub(super) fn slot_files() -> Vec<Vec<u8>> {
    let outcome = Outcome {
        version: VERSION,
        ending: Ending::LaunchFailed { errno: 2, what: "x".into() },
        at: Timestamp(1),
        stop: Some(StopCause::Timeout),
        oom: false,
        cpu_ms: 1,
        peak_memory_bytes: 1,
        output_to: [1, 2],
    };
    let (at, proof, output_to) = (Timestamp(3), Proof::Cgroup, [1, 2]);
    let empty = TreeEmpty { version: VERSION, at, proof, killed: 0, output_to };
    let stop = StopRequest { version: VERSION, cause: StopCause::Cancel, grace_ms: 5 };
    let whole = encode_slot(&outcome).expect("it fits").to_vec();
    vec![bytes_of(&outcome), bytes_of(&empty), bytes_of(&stop), whole, vec![0; SLOT_BYTES]]
}

pub(super) fn startup_log(bytes: &[u8]) {
    let Ok(read) = serde_json::from_slice::<StartupLog>(bytes) else { return };
    let text = bytes_of(&read);
    let back: StartupLog = serde_json::from_slice(&text).expect("our own bytes");
    assert_eq!(bytes_of(&back), text);
}

pub(super) fn startup_logs() -> Vec<Vec<u8>> {
    let start =
        || Start { number: 3, started_at: "2026-01-01T00:00:00Z".into(), ..Start::default() };
    vec![bytes_of(&StartupLog { current: start(), history: vec![start()] })]
}

pub(super) fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut config = Config::default();
    match config.take(text, "outlive.toml") {
        Ok(()) => assert!(config.running_max >= 1 && config.checkpoint_records >= 1),
        Err(error) => assert!(error.to_string().starts_with("outlive.toml: ")),
    }
}

pub(super) fn configs() -> Vec<Vec<u8>> {
    let whole = "listen = \"127.0.0.1:1\"\nrunning_max = 3\ngrace_s = 5\nmin_free_bytes = 0\nfreeze_free_bytes = 1\n\
        checkpoint_records = 9\nhung_margin_s = 3\nlimit_wait_max_s = 60\nstop_patience_ms = 100\n\
        [heartbeat]\ninterval_s = 1\nstale_s = 2\ndead_s = 3\nstall_s = 4\n[programs]\nclaude = \"/bin/claude\"\n";
    vec![whole.into(), b"ruuning_max = 2".to_vec()]
}

/// However the output is cut into pieces, it says the same.
pub(super) fn agent_output(bytes: &[u8]) {
    for engine in engine::all() {
        let read = |size: usize| {
            let (mut reader, mut items) = (engine.reader(), Vec::new());
            for piece in bytes.chunks(size.max(1)) {
                reader.feed(piece, &mut items);
            }
            let reading = reader.finish(&mut items);
            let mut text = Vec::new();
            for item in &items {
                item.write_to(&mut text);
            }
            (reading, text)
        };
        let whole = read(bytes.len());
        assert_eq!(read(1), whole, "engine {}", engine.name);
        assert_eq!(read(7), whole, "engine {}", engine.name);
        assert!(engine.can_resume || engine.sign_in_stderr(bytes).is_none());
    }
}

pub(super) fn agent_outputs() -> Vec<Vec<u8>> {
    let session = SessionId("0b2e-4f".into());
    let init = format!(
        "{{\"type\":\"system\",\"subtype\":\"init\",\"session_id\":\"{session}\",\"model\":\"m\",\"tools\":[\"Bash\"]}}\n"
    );
    let assistant = "{\"type\":\"assistant\",\"message\":{\"id\":\"m1\",\"content\":[{\"type\":\"text\",\"text\":\"hi\"},\
        {\"type\":\"tool_use\",\"name\":\"Bash\",\"input\":{\"command\":\"ls\"}}],\"usage\":{\"input_tokens\":3,\"output_tokens\":5}}}\n";
    let result = "{\"type\":\"result\",\"subtype\":\"success\",\"is_error\":false,\"result\":\"done\",\"session_id\":\"x\",\
        \"total_cost_usd\":0.25,\"usage\":{\"input_tokens\":3,\"output_tokens\":5,\"cache_read_input_tokens\":7}}\n";
    let limit = "{\"type\":\"result\",\"subtype\":\"success\",\"is_error\":true,\"result\":\"Claude AI usage limit reached|1800000000\"}\n";
    let overload = "{\"type\":\"result\",\"is_error\":true,\"api_error_status\":529,\"result\":\"API Error: 529 overloaded_error\"}";
    let all = [&init, assistant, result].concat();
    vec![
        all.into(),
        limit.into(),
        overload.into(),
        b"No conversation found with session ID: x\n".to_vec(),
        b"not json\n{\"type\":7}\n[]\n".to_vec(),
    ]
}
