//! `outlive wal`: what a data directory's write-ahead log holds, and whether all of it can be read. Needs no server, takes no lock,
//! and touches nothing, so a running server's may be looked into too.
//!
//! Absent: mending. That is what the next start does.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use outlive_core::ids::Lsn;
use outlive_core::record::Record;
use outlive_core::time::Timestamp;
use serde_json::{Value, json};

use super::failure::Failure;
use super::text::{bytes, clean};
use super::{SUCCESS, Status, note};
use crate::clock::rfc3339;
use crate::data_dir::{self, DataDirError, Paths};
use crate::exit_code::ExitCode;
use crate::truth::disk::RealDisk;
use crate::truth::wal::{
    CheckpointSeen, Config, Damage, Inventory, SegmentSeen, dump, instance_in, verify,
};

/// Looks into a data directory's write-ahead log: without a server, without a lock, and without touching anything.
#[derive(Debug, Args)]
#[command(after_help = "\
Exits with 0 if everything can be read, with 127 if something is damaged, with 121 if a newer version wrote it.
A torn last group is no damage: it was never acknowledged, and the next start cuts it.

Examples:
  outlive wal --verify /var/lib/outlive
  outlive wal --json /var/lib/outlive | jq -c 'select(.line == \"record\")'")]
pub(super) struct Wal {
    #[command(flatten)]
    how: How,
    /// The data directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct How {
    /// Say what there is, and what of it is damaged
    #[arg(long)]
    verify: bool,
    /// Print it for programs: a JSON document on each line, first every record, then the rest
    #[arg(long)]
    json: bool,
}

impl Wal {
    pub(super) fn run(self) -> Result<Status, Failure> {
        let hook = |error: DataDirError| Failure::Hook(error.into());
        let paths = Paths::new(&self.dir);
        let (instance, unnamed) = match data_dir::read_instance(&paths) {
            Ok(instance) => {
                (*uuid::Uuid::parse_str(&instance.instance).unwrap_or_default().as_bytes(), None)
            }
            // Then the files themselves must tell whose they are.
            Err(error @ DataDirError::Damaged { .. }) => {
                let instance = instance_in(&RealDisk, &paths.wal());
                (instance.unwrap_or_default(), Some(error.to_string()))
            }
            Err(error) => return Err(hook(error)),
        };
        let nonce = || 0;
        let config =
            Config::new(Arc::new(RealDisk), paths.wal(), paths.quarantine(), instance, nonce);
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        let found = if self.how.json {
            print_records(&config, &mut out)?;
            let found = look(&config)?;
            lines(&found, unnamed.as_deref())
                .iter()
                .try_for_each(|line| writeln!(out, "{line}"))?;
            found
        } else {
            let found = look(&config)?;
            write!(out, "{}", report(&found, unnamed.as_deref()))?;
            found
        };
        out.flush()?;
        if let Some(holder) = data_dir::holder(&paths) {
            note(&format!(
                "a server is running on it ({holder}): what it was just writing may look torn"
            ));
        }
        let damaged = unnamed.is_some() || is_damaged(&found);
        Ok(if damaged { ExitCode::Damaged as Status } else { SUCCESS })
    }
}

fn look(config: &Config) -> Result<Inventory, Failure> {
    verify(config).map_err(|error| Failure::Hook(error.into()))
}

fn is_damaged(found: &Inventory) -> bool {
    !found.report.damage.is_empty() || found.report.damage_unlisted > 0
}

/// As they are read: a large write-ahead log does not have to fit into memory.
fn print_records(config: &Config, out: &mut impl Write) -> Result<(), Failure> {
    let mut written = Ok(());
    let each = |file: &Path, offset: u64, record: Record| {
        if written.is_ok() {
            written = writeln!(out, "{}", record_line(file, offset, &record));
        }
    };
    dump(config, each).map_err(|error| Failure::Hook(error.into()))?;
    Ok(written?)
}

fn record_line(file: &Path, offset: u64, record: &Record) -> Value {
    let entities: Vec<String> = record.links.iter().map(|link| link.entity.to_string()).collect();
    let mut line = json!({
        "line": "record", "lsn": record.lsn, "synced_through": record.synced_through,
        "entities": entities, "file": file, "offset": offset,
    });
    match serde_json::from_slice::<Value>(&record.body) {
        Ok(body) => {
            let at = body["at"].as_u64().map(|at| rfc3339(Timestamp(at)));
            line["at"] = at.into();
            line["events"] = body["events"].clone();
        }
        Err(error) => line["problem"] = format!("its body is no JSON: {error}").into(),
    }
    line
}

/// Everything but the records, for programs.
fn lines(found: &Inventory, unnamed: Option<&str>) -> Vec<Value> {
    let mut lines = Vec::new();
    for it in &found.checkpoints {
        lines.push(json!({
            "line": "checkpoint", "file": it.path, "lsn": it.lsn, "entities": it.entries,
            "whole": it.whole, "used": it.used,
        }));
    }
    for it in &found.segments {
        lines.push(json!({
            "line": "segment", "file": it.path, "records": it.records,
            "first_lsn": it.lsns.map(|(first, _)| first), "last_lsn": it.lsns.map(|(_, last)| last),
            "used_bytes": it.used_bytes, "room_bytes": it.room_bytes, "readable": it.readable,
        }));
        for (offset, lsn, synced) in &it.seals {
            lines.push(json!({
                "line": "seal", "file": it.path, "offset": offset, "lsn": lsn, "synced_through": synced,
            }));
        }
    }
    lines.extend(found.report.damage.iter().map(damage_line));
    lines.extend(unnamed.map(|why| json!({ "line": "damage", "what": why })));
    let report = &found.report;
    lines.extend(report.cut_at.as_ref().map(|(file, offset)| {
        json!({ "line": "torn", "file": file, "offset": offset, "bytes": report.cut_bytes })
    }));
    lines.push(json!({
        "line": "verdict", "damaged": unnamed.is_some() || is_damaged(found),
        "last_lsn": report.last_lsn, "synced_through": report.synced_through,
        "checkpoint_lsn": report.checkpoint_lsn, "damaged_places": report.damage.len(),
        "damaged_places_not_listed": report.damage_unlisted, "torn_bytes": report.cut_bytes,
        "doubtful_records": report.rewritten_records, "temporary_files": found.temps,
    }));
    lines
}

fn damage_line(damage: &Damage) -> Value {
    let entities = damage.entities.as_ref();
    let lost = !damage.lsns.is_empty();
    json!({
        "line": "damage", "file": damage.file, "offset": damage.offset, "bytes": damage.bytes,
        "what": damage.what, "harmless": damage.harmless,
        "first_lsn": lost.then_some(damage.lsns.start()), "last_lsn": lost.then_some(damage.lsns.end()),
        "entities": entities.map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>()),
    })
}

/// Everything but the records, for people.
fn report(found: &Inventory, unnamed: Option<&str>) -> String {
    let mut lines: Vec<String> = found.checkpoints.iter().map(of_checkpoint).collect();
    lines.extend(found.segments.iter().flat_map(of_segment));
    lines.extend(
        found
            .temps
            .iter()
            .map(|path| format!("{}: was being made; the next start removes it", name(path))),
    );
    let report = &found.report;
    if let Some((file, offset)) = &report.cut_at {
        let (name, torn) = (name(file), bytes(report.cut_bytes));
        lines.push(format!(
            "{name} at byte {offset}: a torn last group of {torn}, never acknowledged; the next start cuts it"
        ));
    }
    if report.rewritten_records > 0 {
        let (count, synced) = (report.rewritten_records, report.synced_through);
        lines.push(format!(
            "{count} records after record {synced} are not known to be on disk; the next start writes them again"
        ));
    }
    lines.extend(unnamed.map(|why| format!("! {}", clean(why))));
    lines.extend(report.damage.iter().map(of_damage));
    if report.damage_unlisted > 0 {
        lines.push(format!("! and {} damaged places more", report.damage_unlisted));
    }
    let last = report.last_lsn;
    let places = report.damage.len() + report.damage_unlisted + usize::from(unnamed.is_some());
    lines.push(match places {
        0 if last == Lsn::NONE => "whole: there is no record".to_string(),
        0 => format!("whole: everything up to record {last} can be read"),
        1 => format!("damaged: 1 place; the last record is {last}"),
        _ => format!("damaged: {places} places; the last record is {last}"),
    });
    clean_lines(&lines)
}

fn clean_lines(lines: &[String]) -> String {
    lines.iter().map(|line| clean(line) + "\n").collect()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn of_checkpoint(seen: &CheckpointSeen) -> String {
    let state = match (seen.whole, seen.used) {
        (true, true) => "whole; the next start begins with it",
        (true, false) => "whole",
        (false, true) => "damaged; the next start begins with it all the same",
        (false, false) => "damaged; not used",
    };
    let (name, entries, lsn) = (name(&seen.path), seen.entries, seen.lsn);
    format!("{name}: checkpoint of everything up to record {lsn}, {entries} entities; {state}")
}

fn of_segment(seen: &SegmentSeen) -> Vec<String> {
    let (name, used, room) = (name(&seen.path), bytes(seen.used_bytes), bytes(seen.room_bytes));
    let holds = match seen.lsns {
        _ if !seen.readable => "no copy of its header can be read".to_string(),
        None => "no record".to_string(),
        Some((first, last)) if first == last => format!("record {first}"),
        Some((first, last)) => format!("{} records, {first} to {last}", seen.records),
    };
    let mut lines = vec![format!("{name}: segment, {holds}; {used} of {room} used")];
    lines.extend(seen.seals.iter().map(|(offset, lsn, _)| {
        format!(
            "{name} at byte {offset}: seal; an earlier start cut a torn group after record {lsn}"
        )
    }));
    lines
}

fn of_damage(damage: &Damage) -> String {
    let (file, offset) = (damage.file.display(), damage.offset);
    let size = if damage.bytes == 0 { String::new() } else { format!(", {}", bytes(damage.bytes)) };
    let (first, last) = (damage.lsns.start(), damage.lsns.end());
    let lost = match (&damage.entities, damage.harmless) {
        (_, true) => "; it costs nothing".to_string(),
        (_, false) if damage.lsns.is_empty() => String::new(),
        (entities, false) => {
            let records = if first == last {
                format!("; record {first} is lost")
            } else {
                format!("; records {first} to {last} are lost")
            };
            let whose = match entities.as_deref() {
                None => ", nobody can say whose".to_string(),
                Some([]) => String::new(),
                Some(entities) => {
                    let names: Vec<String> = entities.iter().map(ToString::to_string).collect();
                    format!(", of {}", names.join(", "))
                }
            };
            records + &whose
        }
    };
    format!("! {file} at byte {offset}{size}: {}{lost}", damage.what)
}
