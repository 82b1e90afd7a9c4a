//! The one fuzz target, compiled once for each decoder: its name is that of the binary.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    (outlive::fuzzed::find(env!("CARGO_BIN_NAME")).decode)(bytes);
});
