//! Names of things: small types that cannot be mistaken for one another.

use alloc::string::{String, ToString as _};
use core::fmt;
use core::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use crate::limits;

/// Why a text is not a name of the asked kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {rule}")]
pub struct BadName {
    /// The kind of name that was wanted, as a person would say it.
    pub what: &'static str,
    /// The rule that was broken.
    pub rule: &'static str,
}

/// A job's id: 12 characters of `a-z2-7`, chosen at random by the server (60 bits).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(String);

impl JobId {
    /// How many characters an id has.
    pub const LEN: usize = 12;
    const ALPHABET: &'static [u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

    /// Makes an id of random bits; the lowest 60 are used.
    pub fn from_random(bits: u64) -> Self {
        let letter = |i: usize| {
            let index = (bits >> (5 * i)) & 31;
            char::from(*Self::ALPHABET.get(index as usize).unwrap_or(&b'a'))
        };
        Self((0..Self::LEN).map(letter).collect())
    }

    /// Reads a full id.
    pub fn parse(text: &str) -> Result<Self, BadName> {
        let good = text.len() == Self::LEN && text.bytes().all(|b| Self::ALPHABET.contains(&b));
        let rule = "has 12 characters of a-z and 2-7";
        if good { Ok(Self(text.to_string())) } else { Err(BadName { what: "a job id", rule }) }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for JobId {
    type Error = BadName;
    fn try_from(text: String) -> Result<Self, BadName> {
        Self::parse(&text)
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> Self {
        id.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The name of a registered repository: 1 to 64 of `a-z A-Z 0-9 . _ -`, not starting with a dot or dash.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RepoName(String);

impl RepoName {
    /// Reads a name.
    pub fn parse(text: &str) -> Result<Self, BadName> {
        let good = !text.is_empty()
            && text.len() <= limits::REPO_NAME_BYTES_MAX
            && !text.starts_with(['.', '-'])
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        let rule = "has 1 to 64 of a-z, A-Z, 0-9, '.', '_', '-', and starts with a letter or digit";
        if good { Ok(Self(text.to_string())) } else { Err(BadName { what: "a repo name", rule }) }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RepoName {
    type Error = BadName;
    fn try_from(text: String) -> Result<Self, BadName> {
        Self::parse(&text)
    }
}

impl From<RepoName> for String {
    fn from(name: RepoName) -> Self {
        name.0
    }
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A conversation of a job: a UUID that we choose, and the agent CLI's own id where it lets us.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(pub String);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// One launch of a job's agent, counted from 1 over the whole job.
pub type AttemptNo = NonZeroU32;

/// A position in the write-ahead log. The first record has 1; 0 means "none".
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Before every record.
    pub const NONE: Self = Self(0);

    /// The position after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A supervised piece of our own work (clone, workspace copy), by the lsn that planned it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OperationId(pub u64);

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A process, so named that no later process can be taken for it (I6).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRef {
    /// `/proc/sys/kernel/random/boot_id` when it was seen.
    pub boot_id: String,
    /// Inode of `/proc/self/ns/pid` of whoever saw it.
    pub pid_namespace: u64,
    /// The pid in that namespace.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`: clock ticks after boot at which it started.
    pub start_ticks: u64,
}
