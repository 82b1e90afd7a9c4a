//! Planted bugs: the test of the tests. Each makes one promise false, and `scripts/planted` sees that a test notices.
//!
//! Without the feature `planted`, which nothing but that script turns on, every one of them is a constant `false`: the program that
//! people get has neither the bugs nor a way to ask for them.

/// Whether this bug is planted: the environment names it (`OUTLIVE_PLANTED`).
#[cfg(feature = "planted")]
pub fn planted(bug: &str) -> bool {
    extern crate std;
    static NAMED: std::sync::OnceLock<Option<std::string::String>> = std::sync::OnceLock::new();
    let named = NAMED.get_or_init(|| std::env::var("OUTLIVE_PLANTED").ok());
    named.as_deref() == Some(bug)
}

/// No bug is planted.
#[cfg(not(feature = "planted"))]
#[inline]
pub const fn planted(_bug: &str) -> bool {
    false
}
