//! The one place where chance comes in: ids that nobody has, and secrets.

use outlive_core::ids::{JobId, SessionId};

/// Random bytes of the operating system.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .expect("the kernel's random source works once the system has booted");
    bytes
}

/// A job id that nobody has.
pub fn job_id() -> JobId {
    JobId::from_random(u64::from_le_bytes(bytes()))
}

/// A conversation id that nobody has.
pub fn session_id() -> SessionId {
    SessionId(uuid::Builder::from_random_bytes(bytes()).into_uuid().to_string())
}

/// A token: 256 bits in hexadecimal digits.
pub fn token() -> String {
    hex(&bytes::<32>())
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a text takes any text");
        text
    })
}
