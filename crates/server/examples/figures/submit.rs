//! Submission: from sending a job until it is acknowledged, which means durable; beside the least that any durable queue on this
//! disk must do: write the same bytes and sync them.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Barrier;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use outlive_core::limits::SEGMENT_BYTES;
use serde_json::{Value, json};

use crate::Extent;
use crate::report::{Row, Samples, Unit};
use crate::rig::{Api, Rig, millis, wal_bytes};

/// Clients that submit at once.
const CLIENTS: usize = 64;

/// Submissions of one client between two rounds of the other measurement.
const ONE_ROUND: usize = 25;

/// The same for each of many clients.
const MANY_ROUND: usize = 10;

/// A file that is written as the write-ahead log is: filled with zeros before, then from its beginning to its end.
struct Raw {
    file: File,
    bytes: Vec<u8>,
    at: u64,
}

impl Raw {
    const LEN: u64 = SEGMENT_BYTES;
    const PIECE: usize = 64 << 10;

    fn new(path: &Path, bytes: usize) -> anyhow::Result<Self> {
        let file = File::options().create_new(true).read(true).write(true).open(path)?;
        // In pieces, so that the kernel caches it in the same units as it does a segment.
        let zeros = vec![0; Self::PIECE];
        for at in (0..Self::LEN).step_by(Self::PIECE) {
            file.write_all_at(&zeros, at)?;
        }
        file.sync_all()?;
        Ok(Self { file, bytes: vec![b'x'; bytes], at: 0 })
    }

    /// Writes so many records and syncs them once; in milliseconds.
    fn append(&mut self, records: usize) -> anyhow::Result<f64> {
        let bytes = self.bytes.repeat(records);
        if self.at + bytes.len() as u64 > Self::LEN {
            self.at = 0;
        }
        let begun = Instant::now();
        self.file.write_all_at(&bytes, self.at)?;
        self.file.sync_data()?;
        self.at += bytes.len() as u64;
        Ok(millis(begun.elapsed()))
    }
}

/// Measures it.
pub(crate) fn measure(extent: Extent) -> anyhow::Result<Vec<Row>> {
    let rig = Rig::start(1)?;
    let mut job = crate::rig::command_job(&["true"]);
    // Held, so that nothing runs beside; a prompt of the length that people write.
    job["hold"] = json!(true);
    job["prompt"] = json!("Make the tests of the parser pass. ".repeat(9).trim_end());
    let record = record_bytes(&rig, &job)?;
    let mut raw = Raw::new(&rig.path("raw"), record)?;
    let mut rows = one_client(&rig, &job, &mut raw, extent.pick(20, 2))?;
    rows.extend(many_clients(&rig, &job, &mut raw, extent.pick(20, 2))?);
    Ok(rows)
}

/// What one submission adds to the write-ahead log.
fn record_bytes(rig: &Rig, job: &Value) -> anyhow::Result<usize> {
    const PROBES: usize = 100;
    let wal = rig.data("wal");
    let before = wal_bytes(&wal)?;
    for _ in 0..PROBES {
        rig.api()?.submit(job)?;
    }
    let added = wal_bytes(&wal)?.saturating_sub(before);
    let each = usize::try_from(added)? / PROBES;
    ensure!(each > 0, "submissions left nothing in the write-ahead log");
    Ok(each)
}

fn one_client(rig: &Rig, job: &Value, raw: &mut Raw, rounds: usize) -> anyhow::Result<Vec<Row>> {
    let api = rig.api()?;
    let [mut floor, mut kept, mut fresh] = [const { Samples::new() }; 3];
    for _ in 0..rounds {
        for _ in 0..ONE_ROUND {
            floor.push(raw.append(1)?);
        }
        for _ in 0..ONE_ROUND {
            kept.push(submit(api, job)?);
        }
        for _ in 0..ONE_ROUND {
            fresh.push(submit(&api.apart(), job)?);
        }
    }
    let what = format!("write and fdatasync of {} bytes", raw.bytes.len());
    let row = |name: &str, samples: &Samples| {
        Row::new(name, Unit::Ms, samples).times(&what, Unit::Ms, samples, &floor)
    };
    Ok(vec![
        Row::new(what.clone(), Unit::Ms, &floor),
        row("submit, 1 client", &kept),
        row("submit, 1 client, a connection for each", &fresh),
    ])
}

fn submit(api: &Api, job: &Value) -> anyhow::Result<f64> {
    let begun = Instant::now();
    api.submit(job)?;
    Ok(millis(begun.elapsed()))
}

fn many_clients(rig: &Rig, job: &Value, raw: &mut Raw, rounds: usize) -> anyhow::Result<Vec<Row>> {
    let api = rig.api()?;
    let clients: Vec<Api> = (0..CLIENTS).map(|_| api.apart()).collect();
    for client in &clients {
        client.submit(job)?;
    }
    let [mut each, mut rate, mut together, mut single] = [const { Samples::new() }; 4];
    for _ in 0..rounds {
        for _ in 0..MANY_ROUND {
            together.push(raw.append(CLIENTS)?);
        }
        let all = (0..CLIENTS).map(|_| raw.append(1)).collect::<anyhow::Result<Vec<f64>>>()?;
        single.push(all.iter().sum());
        let (times, took) = round(&clients, job)?;
        rate.push(per_second(times.len(), took));
        each.extend(times);
    }
    let what = "each synced";
    let limits = [("each synced", &single), ("together", &together)].map(|(name, samples)| {
        let rate = Unit::PerSecond.show(per_second(CLIENTS, samples.median()));
        format!("{name}: {rate}")
    });
    Ok(vec![
        Row::new("64 records, written and synced together", Unit::Ms, &together),
        Row::new("64 records, each written and synced", Unit::Ms, &single),
        Row::new("submit, 64 clients", Unit::Ms, &each).times(what, Unit::Ms, &each, &single),
        Row::new("acknowledged, 64 clients", Unit::PerSecond, &rate).beside(limits.join(", ")),
    ])
}

/// Every client submits some jobs, all at once: the times of each, and of all together.
fn round(clients: &[Api], job: &Value) -> anyhow::Result<(Vec<f64>, f64)> {
    let go = Barrier::new(clients.len() + 1);
    std::thread::scope(|scope| {
        let work = |api| {
            go.wait();
            (0..MANY_ROUND).map(|_| submit(api, job)).collect::<anyhow::Result<Vec<f64>>>()
        };
        let threads: Vec<_> = clients.iter().map(|api| scope.spawn(move || work(api))).collect();
        go.wait();
        let begun = Instant::now();
        let mut times = Vec::new();
        for thread in threads {
            times.extend(thread.join().ok().context("a client has died")??);
        }
        Ok((times, millis(begun.elapsed())))
    })
}

fn per_second(count: usize, ms: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let count = count as f64;
    count * 1000.0 / ms
}
