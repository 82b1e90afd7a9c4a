//! The short run of the fuzzers: the same decoders, driven with mutated examples by a generator with a seed.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use super::DECODERS;
use crate::truth::disk::sim::scramble;

/// Mutants of each decoder's examples; `OUTLIVE_LONG=1`: a hundred times as many.
const MUTANTS: u64 = 2_000;

/// Numbers, words and bytes at which readers stumble.
const AWKWARD: &[&[u8]] = &[
    b"0",
    b"-1",
    b"18446744073709551615",
    b"18446744073709551616",
    b"9223372036854775807",
    b"4294967295",
    b"1e999",
    b"-0.0",
    b"null",
    b"true",
    b"{}",
    b"[]",
    b"\"\"",
    b"\"\\ud800\"",
    b"\xFF\xFE",
    b"\r\n",
    b"\n\n",
    b"..",
    b"/",
    b"\0",
    b"%00",
    "\u{1F980}".as_bytes(),
];

struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = scramble(self.0);
        usize::try_from(self.0 % (limit.max(1) as u64)).expect("below a usize")
    }
}

/// Where a number stands in the bytes: the `nth` of them.
fn number(bytes: &[u8], nth: usize) -> Option<std::ops::Range<usize>> {
    let starts: Vec<usize> = (0..bytes.len())
        .filter(|at| bytes[*at].is_ascii_digit() && (*at == 0 || !bytes[at - 1].is_ascii_digit()))
        .collect();
    let start = *starts.get(nth % starts.len().max(1))?;
    let end = (start..bytes.len()).find(|at| !bytes[*at].is_ascii_digit()).unwrap_or(bytes.len());
    Some(start..end)
}

fn mutated(examples: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = examples[dice.below(examples.len())].clone();
    for _ in 0..=dice.below(3) {
        let at = dice.below(bytes.len());
        let len = dice.below(bytes.len() - at + 1).min(64);
        let awkward = AWKWARD[dice.below(AWKWARD.len())];
        match dice.below(9) {
            0 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
            1 if at < bytes.len() => bytes[at] = [0, 1, 127, 128, 254, 255][dice.below(6)],
            2 => bytes.truncate(at),
            3 => drop(bytes.splice(at..at + len, [])),
            4 => drop(bytes.splice(at..at, bytes[at..at + len].to_vec())),
            5 => drop(bytes.splice(at..at, awkward.iter().copied())),
            6 => {
                let nth = dice.below(usize::MAX);
                if let Some(range) = number(&bytes, nth) {
                    drop(bytes.splice(range, awkward.iter().copied()));
                }
            }
            7 => {
                let other = &examples[dice.below(examples.len())];
                bytes.truncate(at);
                bytes.extend(&other[dice.below(other.len())..]);
            }
            _ => {
                let byte = u8::try_from(dice.below(256)).expect("a byte");
                bytes.insert(at, byte);
            }
        }
    }
    bytes
}

// Proves I10 and I9 for every decoder: no bytes make it panic, and what it takes it takes for what it is.
#[test]
fn no_decoder_stumbles_over_mutated_examples() {
    let mutants = if std::env::var_os("OUTLIVE_LONG").is_some() { 100 * MUTANTS } else { MUTANTS };
    let mut stumbled = Vec::new();
    for decoder in DECODERS {
        let examples = (decoder.examples)();
        let stumbles =
            |bytes: &Vec<u8>| catch_unwind(AssertUnwindSafe(|| (decoder.decode)(bytes))).is_err();
        let mutants = (0..mutants).map(|seed| mutated(&examples, &mut Dice(seed)));
        let mut tried = 0;
        let counted = examples.iter().cloned().chain(mutants).inspect(|_| tried += 1);
        let found = counted.into_iter().find(stumbles);
        println!("{}: {tried} tried", decoder.name);
        stumbled.extend(found.map(|bytes| format!("{}: {}", decoder.name, bytes.escape_ascii())));
    }
    assert!(stumbled.is_empty(), "{stumbled:#?}");
}

/// Examples must be good, or their mutants would all be refused at the door.
#[test]
fn the_examples_are_what_they_are_examples_of() {
    use outlive_core::spec::{Reading, Spec, decode_json};
    let of = |name| (super::find(name).examples)();
    assert!(of("keep_files").iter().any(|it| matches!(decode_json::<Spec>(it), Reading::Valid(_))));
    let read =
        |it: &Vec<u8>| serde_json::from_slice::<outlive_core::event::Transaction>(it).is_ok();
    assert!(of("transaction").iter().all(read));
    for config in of("config").iter().take(1) {
        let text = std::str::from_utf8(config).expect("text");
        crate::config::Config::default().take(text, "x").expect("good");
    }
}

/// Writes the examples where a fuzzer begins with them, if it is asked to.
#[test]
fn examples_are_written_out_for_the_fuzzers() {
    let Some(corpus) = std::env::var_os("OUTLIVE_CORPUS") else { return };
    for decoder in DECODERS {
        let dir = Path::new(&corpus).join(decoder.name);
        fs::create_dir_all(&dir).expect("made");
        for (n, example) in (decoder.examples)().into_iter().enumerate() {
            fs::write(dir.join(format!("example-{n}")), example).expect("written");
        }
    }
}
