//! Memory of a supervisor while many are alive: what it costs (its own pages) and its share of what all have in common.

use std::collections::BTreeMap;
use std::fs;

use anyhow::Context as _;
use outlive_core::ids::ProcessRef;

use crate::Extent;
use crate::machine::field;
use crate::report::{Row, Samples, Unit};
use crate::rig::Rig;

/// Measures it.
pub(crate) fn measure(extent: Extent) -> anyhow::Result<Vec<Row>> {
    let count = extent.pick(500, 20);
    let rig = Rig::start(count)?;
    rig.run_sleepers(count)?;
    let supervisors = rig.supervisors();
    let column = |name: &str| column(&supervisors, name);
    let pss = pss(&supervisors)?;
    let beside = format!("{} supervisors alive", supervisors.len());
    let mut rows = vec![
        Row::new("supervisor, PSS", Unit::KiB, &pss).beside(beside).goal(Unit::KiB, &pss, 1024.0),
        Row::new("its own, written (private dirty)", Unit::KiB, &column("Private_Dirty")?),
        Row::new("its own, not written (private clean)", Unit::KiB, &column("Private_Clean")?),
        Row::new("shared, counted whole (mostly the program)", Unit::KiB, &column("Shared_Clean")?),
    ];
    let mut places: BTreeMap<String, Samples> = BTreeMap::new();
    for supervisor in &supervisors {
        for (place, kib) in private_dirty(supervisor)? {
            places.entry(place).or_default().push(kib);
        }
    }
    let mut places: Vec<_> = places.into_iter().filter(|(_, kib)| kib.median() > 0.0).collect();
    places.sort_by(|(_, a), (_, b)| b.median().total_cmp(&a.median()));
    let row = |(place, kib)| Row::new(format!("of its own, written: {place}"), Unit::KiB, &kib);
    rows.extend(places.into_iter().map(row));
    Ok(rows)
}

/// The proportional set size of each.
pub(crate) fn pss(supervisors: &[ProcessRef]) -> anyhow::Result<Samples> {
    column(supervisors, "Pss")
}

fn column(supervisors: &[ProcessRef], name: &str) -> anyhow::Result<Samples> {
    supervisors.iter().map(|supervisor| kib(supervisor, name)).collect()
}

fn kib(process: &ProcessRef, name: &str) -> anyhow::Result<f64> {
    let path = format!("/proc/{}/smaps_rollup", process.pid);
    let value = field(&path, name).with_context(|| format!("no {name} in {path}"))?;
    number(&value).with_context(|| format!("{name} in {path} is {value}"))
}

fn number(value: &str) -> Option<f64> {
    value.split_whitespace().next()?.parse().ok()
}

/// Written pages by what they belong to.
fn private_dirty(process: &ProcessRef) -> anyhow::Result<BTreeMap<String, f64>> {
    let text = fs::read_to_string(format!("/proc/{}/smaps", process.pid))?;
    let mut places = BTreeMap::new();
    let mut place = String::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if !first.ends_with(':') {
            let rights = words.next().unwrap_or_default();
            let name = words.nth(3).unwrap_or("anonymous");
            let name = name.rsplit('/').next().unwrap_or(name);
            place = format!("{name} {rights}");
        } else if first == "Private_Dirty:" {
            let kib = words.next().and_then(number).unwrap_or(0.0);
            *places.entry(place.clone()).or_insert(0.0) += kib;
        }
    }
    Ok(places)
}
