//! The real Claude Code, called as its engine says and read by its parser, against a model of our own.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use outlive_core::engine::{
    Engine, Item, Launch, Opening, Reading, SessionSign, Verdict, find, verdict,
};
use outlive_core::ids::{AttemptNo, SessionId};
use outlive_core::spec::Ending;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::fake_model::FakeModel;

const PACKAGE: &str = "@anthropic-ai/claude-code-linux-x64";
const VERSION: &str = "2.1.330";

/// The real CLI: its native program, not the wrapper, which forwards no signal.
pub(crate) fn claude_program() -> PathBuf {
    const DEFAULT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/agents");
    let agents = std::env::var_os("OUTLIVE_TEST_AGENTS").filter(|dir| !dir.is_empty());
    let agents = agents.map_or(PathBuf::from(DEFAULT), PathBuf::from);
    let installed = agents.join("node_modules").join(PACKAGE).join("claude");
    let program = std::env::var_os("OUTLIVE_TEST_CLAUDE").map_or(installed, PathBuf::from);
    assert!(
        program.is_file(),
        "these tests run the real Claude Code, and {} is not there; to install it:\n  \
         npm install --prefix target/agents --ignore-scripts {PACKAGE}@{VERSION}\n\
         or set OUTLIVE_TEST_CLAUDE to the native program of that version",
        program.display()
    );
    program
}

/// A job's place in the world, as far as an engine needs one.
struct Bench {
    dir: PathBuf,
    model: FakeModel,
    /// Stands where a proxy would: whoever connects wanted to reach another host than the model.
    elsewhere: TcpListener,
    session: SessionId,
    runs: u32,
}

/// What a test asks of an attempt.
#[derive(Clone, Copy)]
struct Ask<'a> {
    prompt: &'a str,
    turn: u32,
    model: Option<&'a str>,
    opening: Opening,
    interrupted: bool,
}

impl Ask<'_> {
    const FIRST: Ask<'static> = Ask {
        prompt: "say something",
        turn: 1,
        model: None,
        opening: Opening::Fresh,
        interrupted: false,
    };
}

/// A finished attempt.
struct Ended {
    ending: Ending,
    text: String,
    reading: Reading,
}

impl Ended {
    fn verdict(&self) -> Verdict {
        verdict(claude(), Some(&self.ending), self.reading.result.as_ref())
    }
}

/// A running attempt; killed if a test gives up on it.
struct Running {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn claude() -> &'static Engine {
    find("claude").expect("known")
}

impl Bench {
    fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("outlive-claude-{}", uuid::Uuid::new_v4()));
        for part in ["home", "workspace"] {
            fs::create_dir_all(dir.join(part)).expect("a new directory");
        }
        let session = SessionId(uuid::Uuid::new_v4().to_string());
        let elsewhere = TcpListener::bind("127.0.0.1:0").expect("a free port");
        elsewhere.set_nonblocking(true).expect("a listener");
        Self { dir, model: FakeModel::start(), elsewhere, session, runs: 0 }
    }

    /// Starts it as a supervisor would: the command line as given, files for all three streams.
    fn start(&mut self, ask: &Ask<'_>) -> Running {
        self.runs += 1;
        let program = claude_program();
        let options = serde_json::Map::new();
        let launch = Launch {
            session: &self.session,
            turn: ask.turn,
            attempt: AttemptNo::new(self.runs).expect("counted from 1"),
            prompt: ask.prompt,
            model: ask.model,
            options: &options,
            opening: ask.opening,
            interrupted: ask.interrupted,
            program: program.to_str(),
            exe: "",
        };
        let line = claude().command_line(&launch).expect("good options");
        let path = |name: &str| self.dir.join(format!("{}.{name}", self.runs));
        fs::write(path("in"), line.stdin.expect("a prompt")).expect("written");
        let (program, arguments) = line.argv.split_first().expect("a program");
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(self.dir.join("workspace"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.dir.join("home"))
            .envs(line.env)
            .envs(self.model.env())
            .env("HTTPS_PROXY", format!("http://{}", self.elsewhere.local_addr().expect("bound")))
            .env("NO_PROXY", "127.0.0.1")
            .stdin(Stdio::from(File::open(path("in")).expect("just written")))
            .stdout(Stdio::from(File::create(path("out")).expect("new")))
            .stderr(Stdio::from(File::create(path("err")).expect("new")));
        let child = command.spawn().expect("it starts");
        Running { child, out: path("out"), err: path("err") }
    }

    fn run(&mut self, ask: &Ask<'_>) -> Ended {
        self.start(ask).end()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.dir).ok();
    }
}

impl Running {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// Waits for its end, not for ever, and reads what it left.
    fn end(mut self) -> Ended {
        let pidfd = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).expect("ours");
        let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&patience));
        assert_eq!(ready, Ok(1), "it does not end; its output is in {}", self.out.display());
        let status = self.child.wait().expect("ours");
        let ending = match (status.code(), status.signal()) {
            (Some(code), _) => Ending::Exited(code),
            (None, signal) => Ending::Signaled(signal.expect("neither exited nor killed")),
        };
        let stdout = fs::read(&self.out).expect("there");
        let stderr = fs::read(&self.err).expect("there");
        let mut items: Vec<Item> = Vec::new();
        let mut reader = claude().reader();
        // In pieces that respect nothing, as a follower gets them.
        for piece in stdout.chunks(1000) {
            reader.feed(piece, &mut items);
        }
        let mut reading = reader.finish(&mut items);
        reading.sign = claude().sign_in_stderr(&stderr).or(reading.sign);
        let mut text = Vec::new();
        for item in &items {
            item.write_to(&mut text);
        }
        Ended { ending, text: String::from_utf8(text).expect("UTF-8"), reading }
    }
}

#[test]
fn claude_runs_a_tool_and_a_second_turn_goes_on_in_the_same_conversation() {
    let mut bench = Bench::new();
    let prompt = "make it [[tool=echo hello > f.txt]] [[chunks=2]]";
    let first = bench.run(&Ask { prompt, ..Ask::FIRST });
    assert!(first.verdict().success, "{:?}", first.verdict());
    let answer = "chunk-1 chunk-2 DONE user_turns=1 first=make it";
    assert_eq!(first.text, format!("[Bash] echo hello > f.txt\n{answer}\n"));
    assert_eq!(first.reading.result.as_ref().expect("a record").text, answer);
    assert_eq!(first.reading.session.as_ref(), Some(&bench.session.0));
    let made = fs::read_to_string(bench.dir.join("workspace/f.txt")).expect("made by the tool");
    assert_eq!(made, "hello\n");

    let opening = claude().opening([first.reading.sign].into_iter()).expect("there");
    assert_eq!(opening, Opening::Resume);
    let second =
        bench.run(&Ask { prompt: "and again [[chunks=1]]", turn: 2, opening, ..Ask::FIRST });
    assert!(second.verdict().success, "{:?}", second.verdict());
    assert_eq!(second.text, "chunk-1 DONE user_turns=2 first=make it\n");
    let (one, two) = (first.reading.usage.expect("told"), second.reading.usage.expect("told"));
    assert_eq!((one.input_tokens, one.output_tokens), (22, 23), "two requests");
    assert_eq!((two.input_tokens, two.output_tokens), (11, 2), "one request");
    let (one, two) = (one.cost_micros.expect("told"), two.cost_micros.expect("told"));
    assert!(0 < two && two < one, "of this run, not of the conversation: {one}, then {two}");
    assert_eq!(bench.model.requests().len(), 3);
    let stranger = bench.elsewhere.accept().map(|_| ()).map_err(|error| error.kind());
    assert_eq!(stranger, Err(ErrorKind::WouldBlock), "it spoke to nobody but the model");
}

#[test]
fn claude_killed_in_its_second_turn_goes_on_in_the_same_conversation() {
    let mut bench = Bench::new();
    let first = bench.run(&Ask { prompt: "begin", ..Ask::FIRST });
    assert!(first.verdict().success, "{:?}", first.verdict());
    let ask =
        Ask { prompt: "go on [[gate=middle]]", turn: 2, opening: Opening::Resume, ..Ask::FIRST };
    let running = bench.start(&ask);
    bench.model.wait_until_held("middle");
    running.signal(Signal::KILL);
    let killed = running.end();
    assert_eq!(killed.ending, Ending::Signaled(9));
    assert_eq!(killed.reading.result, None);
    assert!(!killed.verdict().success);

    let signs = [killed.reading.sign, first.reading.sign];
    assert_eq!(claude().opening(signs.into_iter()), Ok(Opening::Resume));
    bench.model.open_gate("middle");
    let resumed = bench.run(&Ask { interrupted: true, ..ask });
    assert!(resumed.verdict().success, "{:?}", resumed.verdict());
    assert!(resumed.text.ends_with("first=begin\n"), "{}", resumed.text);
    let last = bench.model.requests().pop().expect("asked");
    let again = last.prompts.last().expect("asked something");
    assert!(again.starts_with("You were interrupted") && again.ends_with(ask.prompt), "{again}");
}

/// Whether the conversation is stored by then is a race inside the CLI. Either way the signs lead to the end.
#[test]
fn claude_killed_in_its_first_turn_comes_to_its_end_by_following_the_signs() {
    let mut bench = Bench::new();
    let ask = Ask { prompt: "long work [[gate=middle]]", ..Ask::FIRST };
    let running = bench.start(&ask);
    bench.model.wait_for_request(1);
    bench.model.wait_until_held("middle");
    running.signal(Signal::KILL);
    let mut ended = running.end();
    assert_eq!(ended.reading.sign, Some(SessionSign::Announced));
    bench.model.open_gate("middle");
    let mut signs = vec![ended.reading.sign];
    while !ended.verdict().success {
        assert!(bench.runs < 3, "one wrong guess at most: {signs:?}");
        let opening = claude().opening(signs.iter().copied()).expect("nothing was lost");
        ended = bench.run(&Ask { opening, interrupted: true, ..ask });
        assert_eq!(ended.verdict().success, !ended.reading.not_opened(), "{:?}", ended.verdict());
        signs.insert(0, ended.reading.sign);
    }
    let last = bench.model.requests().pop().expect("asked");
    assert!(last.prompts.last().is_some_and(|prompt| prompt.ends_with(ask.prompt)));
}

#[test]
fn claude_killed_before_it_stored_a_conversation_starts_afresh() {
    let mut bench = Bench::new();
    let running = bench.start(&Ask::FIRST);
    running.signal(Signal::KILL);
    let killed = running.end();
    assert_eq!(killed.reading.sign, None);
    let opening = claude().opening([killed.reading.sign].into_iter()).expect("nothing was lost");
    assert_eq!(opening, Opening::Fresh);
    let ended = bench.run(&Ask { opening, ..Ask::FIRST });
    assert!(ended.verdict().success, "{:?}", ended.verdict());
}

#[test]
fn a_conversation_opened_in_the_wrong_way_says_so_and_is_put_right() {
    let mut bench = Bench::new();
    let mut signs = Vec::new();
    for (opening, not_opened) in [
        (Opening::Resume, true),
        (Opening::Fresh, false),
        (Opening::Fresh, true),
        (Opening::Resume, false),
    ] {
        let ended = bench.run(&Ask { opening, ..Ask::FIRST });
        let told = format!("{opening:?} after {signs:?}: {:?}", ended.verdict());
        assert_eq!(ended.reading.not_opened(), not_opened, "{told}");
        assert_eq!(ended.verdict().success, !not_opened, "{told}");
        if not_opened {
            assert_eq!(ended.ending, Ending::Exited(1), "{told}");
        }
        signs.insert(0, ended.reading.sign);
        let other = if opening == Opening::Fresh { Opening::Resume } else { Opening::Fresh };
        let next = claude().opening(signs.iter().copied()).expect("nothing was lost");
        assert_eq!(next, if not_opened { other } else { Opening::Resume }, "{told}");
    }
    assert_eq!(bench.model.requests().len(), 2, "what was not opened asked nothing");
}

#[test]
fn an_error_of_the_api_is_a_failure_whatever_the_record_calls_it() {
    let mut bench = Bench::new();
    let ended = bench.run(&Ask { prompt: "fail [[status=500]]", ..Ask::FIRST });
    assert_eq!(ended.ending, Ending::Exited(1));
    let verdict = ended.verdict();
    assert!(!verdict.success && verdict.disagreement.is_none(), "{verdict:?}");
    assert!(verdict.reason.starts_with("API Error: 500 scripted 500"), "{verdict:?}");
    assert!(ended.text.starts_with("(try 1 of 1 again after server_error)\nerror: API Error"));
    assert_eq!(ended.text.matches("API Error").count(), 1, "told once: {}", ended.text);
}

#[test]
fn claude_ended_by_sigint_exits_0_and_is_not_believed() {
    let mut bench = Bench::new();
    let running = bench.start(&Ask { prompt: "long work [[gate=never]]", ..Ask::FIRST });
    bench.model.wait_until_held("never");
    running.signal(Signal::INT);
    let ended = running.end();
    assert_eq!(ended.ending, Ending::Exited(0));
    let verdict = ended.verdict();
    assert!(!verdict.success, "{verdict:?}");
    let disagreement = verdict.disagreement.expect("exit code and record disagree");
    assert!(disagreement.starts_with("exit code 0, but the agent reported: "), "{disagreement}");
}

#[test]
fn the_model_and_the_longest_prompt_arrive_as_they_were_given() {
    let mut bench = Bench::new();
    let prompt = "é$(id)`\n".repeat(outlive_core::limits::PROMPT_BYTES_MAX / 9) + "end";
    let ended = bench.run(&Ask { prompt: &prompt, model: Some("some-other-model"), ..Ask::FIRST });
    assert!(ended.verdict().success, "{:?}", ended.verdict());
    let request = bench.model.requests().pop().expect("asked");
    assert_eq!(request.body["model"], "some-other-model");
    assert!(request.prompts == [prompt], "the prompt was changed on its way");
}
