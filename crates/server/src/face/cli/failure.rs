//! Why a verb gave up: what a person is told, and with which code the program exits.

use std::io;

use super::Status;
use super::text::clean;
use crate::data_dir::DataDirError;
use crate::exit_code::ExitCode;
use crate::face::client::ClientError;
use crate::truth::wal::WalError;

/// What a program gets that is killed for writing to a pipe that nobody reads: 128 + `SIGPIPE`.
const PIPE_STATUS: Status = 141;

/// Why a verb gave up.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The server said no, or said nothing.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The command line makes no sense, though it can be read.
    #[error("{detail}")]
    Usage {
        /// What is wrong.
        detail: String,
        /// What would be right.
        hint: String,
    },
    /// Standard output takes nothing more.
    #[error("cannot write to standard output")]
    Output(#[from] io::Error),
    /// A file or program of the user's does not work.
    #[error("{what}")]
    Local {
        /// What was tried, with the path.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// What was asked for was done and came out badly.
    #[error("{detail}")]
    Bad {
        /// What came out.
        detail: String,
        /// What to do about it.
        hint: String,
    },
    /// A data directory cannot be used or looked into, or `serve` or `demo` failed.
    #[error("{0:#}")]
    Hook(anyhow::Error),
}

impl Failure {
    /// The exit code.
    pub(super) fn status(&self) -> Status {
        match self {
            Self::Client(error) => of_client(error) as Status,
            Self::Usage { .. } => ExitCode::Usage as Status,
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => PIPE_STATUS,
            Self::Output(_) | Self::Local { .. } | Self::Bad { .. } => ExitCode::Failed as Status,
            Self::Hook(error) => of_hook(error) as Status,
        }
    }

    /// What is told on standard error; empty if there is nobody to tell.
    pub(super) fn told(&self) -> String {
        if let Self::Output(error) = self
            && error.kind() == io::ErrorKind::BrokenPipe
        {
            return String::new();
        }
        let mut text = format!("error: {}", clean(&self.to_string()));
        let chain = !matches!(self, Self::Hook(_) | Self::Client(ClientError::Problem { .. }));
        let mut cause = std::error::Error::source(self).filter(|_| chain);
        while let Some(error) = cause {
            let part = clean(&error.to_string());
            if !text.ends_with(&part) {
                text = format!("{text}: {part}");
            }
            cause = error.source();
        }
        if let Some(hint) = self.hint() {
            text = format!("{text}\nhint: {}", clean(&hint));
        }
        text
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Client(ClientError::Unreachable { .. }) => Some(
                "start a server with `outlive serve`, or name one with --server or OUTLIVE_SERVER"
                    .to_string(),
            ),
            Self::Client(ClientError::Problem { status: 401, .. }) => Some(
                "set OUTLIVE_TOKEN; on the server's machine, as its user, the token is found in its \
                 data directory (--data)"
                    .to_string(),
            ),
            Self::Client(ClientError::Problem { hint, .. }) => hint.clone(),
            Self::Usage { hint, .. } | Self::Bad { hint, .. } => {
                Some(hint.clone()).filter(|hint| !hint.is_empty())
            }
            Self::Client(ClientError::Broken { .. })
            | Self::Output(_)
            | Self::Local { .. }
            | Self::Hook(_) => None,
        }
    }
}

fn of_client(error: &ClientError) -> ExitCode {
    match error {
        ClientError::Unreachable { .. } | ClientError::Broken { .. } => ExitCode::Unreachable,
        ClientError::Problem { status: 401 | 403, .. } => ExitCode::Denied,
        ClientError::Problem { status: 404, .. } => ExitCode::NotFound,
        ClientError::Problem { .. } => ExitCode::Refused,
    }
}

fn of_hook(error: &anyhow::Error) -> ExitCode {
    if let Some(error) = error.downcast_ref() {
        return match error {
            DataDirError::Damaged { .. } => ExitCode::Damaged,
            DataDirError::InUse { .. } | DataDirError::Newer { .. } => ExitCode::Refused,
            DataDirError::Io { .. } | DataDirError::NotText(_) => ExitCode::Failed,
        };
    }
    match error.downcast_ref() {
        Some(WalError::Newer { .. }) => ExitCode::Refused,
        Some(WalError::OtherInstance { .. }) => ExitCode::Damaged,
        _ => ExitCode::Failed,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::face::client::Client;
    use crate::face::client::tests::nobody;

    fn problem(status: u16, hint: Option<&str>) -> Failure {
        let hint = hint.map(str::to_string);
        let (code, detail) = ("some_code".to_string(), "no\u{1b}[2Jpe".to_string());
        let body = Box::new(Value::Null);
        ClientError::Problem { status, code, detail, hint, body }.into()
    }

    #[test]
    fn every_refusal_has_its_exit_code() {
        for (status, code) in [
            (401, 126),
            (403, 126),
            (404, 122),
            (400, 121),
            (409, 121),
            (422, 121),
            (500, 121),
            (503, 121),
            (507, 121),
        ] {
            assert_eq!(problem(status, None).status(), code, "{status}");
        }
        let usage = Failure::Usage { detail: String::new(), hint: String::new() };
        assert_eq!(usage.status(), 2);
        assert_eq!(Failure::Hook(anyhow::anyhow!("x")).status(), 1);
    }

    #[test]
    fn a_data_directory_that_cannot_be_used_has_exit_codes_of_its_own() {
        let path = || std::path::PathBuf::from("/data");
        let in_use = DataDirError::InUse { path: path(), holder: "pid 7".to_string() };
        let damaged = DataDirError::Damaged { path: path(), problem: "x".to_string() };
        for (error, code) in
            [(in_use, 121), (DataDirError::Newer { path: path(), found: 9 }, 121), (damaged, 127)]
        {
            let failure = Failure::Hook(anyhow::Error::new(error).context("cannot start"));
            assert_eq!(failure.status(), code);
            assert!(failure.told().starts_with("error: cannot start: /data"), "{}", failure.told());
        }
    }

    #[test]
    fn a_problem_is_told_with_its_hint_and_without_control_characters() {
        assert_eq!(problem(409, Some("do this")).told(), "error: no [2Jpe\nhint: do this");
        assert_eq!(problem(409, None).told(), "error: no [2Jpe");
        assert!(problem(401, Some("x")).told().contains("OUTLIVE_TOKEN"));
    }

    #[test]
    fn a_server_that_is_not_there_is_named_with_what_to_do() {
        let server = nobody();
        let failure = Failure::from(Client::new(&server, None).get("/").expect_err("nobody"));
        let told = failure.told();
        assert_eq!(failure.status(), 120);
        assert!(told.starts_with(&format!("error: no server answers at {server}: ")), "{told}");
        assert!(told.contains("efused") && told.contains("`outlive serve`"), "{told}");
    }

    #[test]
    fn a_reader_that_went_away_is_no_error_to_tell() {
        let gone = Failure::Output(io::ErrorKind::BrokenPipe.into());
        assert_eq!((gone.told().as_str(), gone.status()), ("", 141));
        let full = Failure::Output(io::ErrorKind::StorageFull.into());
        assert!(full.told().starts_with("error: cannot write to standard output: "));
        assert_eq!(full.status(), 1);
    }
}
