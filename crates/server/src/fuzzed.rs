//! Every decoder of bytes that somebody else may have written or damaged, as a function that panics where it does wrong.
//!
//! `scripts/fuzz` drives them with cargo-fuzz; the unit test here drives the same ones with mutated examples, in every check.
//! Compiled for those two only.

mod files;
mod strangers;
#[cfg(test)]
mod tests;
mod wal;

/// A decoder, and examples of what it reads.
#[derive(Debug, Clone, Copy)]
pub struct Decoder {
    /// Its name, which is that of its fuzz target.
    pub name: &'static str,
    /// Decodes, and holds the result to what must be true of it.
    pub decode: fn(&[u8]),
    /// Good bytes, to begin with.
    pub examples: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const DECODERS: &[Decoder] = &[
    Decoder { name: "frame", decode: wal::frame, examples: wal::frames },
    Decoder { name: "file_header", decode: wal::file_header, examples: wal::file_headers },
    Decoder { name: "wal", decode: wal::directory, examples: wal::directories },
    Decoder { name: "checkpoint_entry", decode: wal::entry, examples: wal::entries },
    Decoder { name: "transaction", decode: wal::transaction, examples: wal::transactions },
    Decoder { name: "keep_files", decode: files::keep, examples: files::keeps },
    Decoder { name: "slots", decode: files::slots, examples: files::slot_files },
    Decoder { name: "startup_log", decode: files::startup_log, examples: files::startup_logs },
    Decoder { name: "config", decode: files::config, examples: files::configs },
    Decoder { name: "agent_output", decode: files::agent_output, examples: files::agent_outputs },
    Decoder { name: "names", decode: strangers::names, examples: strangers::some_names },
    Decoder { name: "body", decode: strangers::body, examples: strangers::bodies },
    Decoder { name: "query", decode: strangers::query, examples: strangers::queries },
    Decoder { name: "range", decode: strangers::range, examples: strangers::ranges },
    Decoder { name: "events", decode: strangers::events, examples: strangers::event_streams },
];

/// The decoder of that name.
pub fn find(name: &str) -> Decoder {
    let found = DECODERS.iter().find(|decoder| decoder.name == name);
    *found.expect("each fuzz target is named after a decoder")
}
