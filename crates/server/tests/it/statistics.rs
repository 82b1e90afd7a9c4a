//! Statistics are exact over deaths of the server: the sums are those of the ends that were acknowledged.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::crashes::tell;
use crate::rig::Rig;

const JOBS: usize = 60;
const KILLS: usize = 6;

fn stats(rig: &Rig) -> Value {
    rig.client().get("/api/stats").expect("there").json().expect("JSON")
}

/// A job that ends in one of four ways, by its number.
fn body(n: usize) -> Value {
    let script = ["true", "exit 3", "kill -9 $$", "sleep 600"][n % 4];
    let argv = ["sh", "-c", script];
    json!({ "repo": "r", "engine": "command", "engine_options": { "argv": argv } })
}

/// What became of all jobs, by the jobs themselves.
fn ends(rig: &Rig, ids: &[String]) -> BTreeMap<String, u64> {
    let mut ends = BTreeMap::new();
    for id in ids {
        let kind = rig.wait_ended(id)["outcome"]["kind"].as_str().expect("it ended").to_string();
        *ends.entry(kind).or_insert(0) += 1;
    }
    ends
}

// Proves I1 and I3: what was acknowledged is counted, once, whatever dies.
#[test]
fn the_sums_are_those_of_the_acknowledged_ends_over_deaths_of_the_server() {
    let mut rig = Rig::new();
    rig.set("OUTLIVE_RUNNING_MAX", "4");
    // Checkpoints in between: rows are read from there and from records after them.
    rig.set("OUTLIVE_CHECKPOINT_RECORDS", "40");
    rig.start();
    rig.repo();
    let ids: Vec<String> = (0..JOBS).map(|n| rig.submit(&body(n))).collect();
    for kill in 0..KILLS {
        // Among them, wherever they are: some run, some have ended, some wait.
        let middle = &ids[JOBS * (kill + 1) / (KILLS + 2)];
        let sleeps = rig.job(middle)["engine_options"]["argv"][2] == "sleep 600";
        if sleeps {
            rig.client().post(&format!("/api/jobs/{middle}/cancel"), &json!({})).expect("taken");
        }
        rig.wait_for(middle, |job| job["phase"] != "queued");
        rig.kill();
        rig.start();
        // Everybody who sleeps is cancelled, or nothing would ever end.
        for id in ids.iter().skip(3).step_by(4).take(JOBS * (kill + 1) / 4 / KILLS) {
            rig.client().post(&format!("/api/jobs/{id}/cancel"), &json!({})).ok();
        }
    }
    let mut expected = ends(&rig, &ids);
    // Some are taken up again and end in another way, or are removed: once each, all the same.
    for id in ids.iter().skip(1).step_by(16) {
        rig.client().post(&format!("/api/jobs/{id}/retry"), &json!({})).expect("taken");
    }
    rig.kill();
    rig.start();
    assert_eq!(ends(&rig, &ids), expected, "they ended as before");
    rig.client().delete(&format!("/api/jobs/{}", ids[0])).expect("removed");
    rig.kill();
    rig.start();
    let told = stats(&rig);
    let jobs = &told["total"]["jobs"];
    for kind in ["completed", "failed", "timed_out", "cancelled", "interrupted"] {
        let count = expected.remove(kind).unwrap_or(0);
        assert_eq!(jobs[kind], count, "{kind}: {told:#}");
    }
    assert_eq!((&jobs["accepted"], &jobs["ended"]), (&json!(JOBS), &json!(JOBS)), "{told:#}");
    for (map, name) in [("engines", "command"), ("repos", "r"), ("owners", "local")] {
        assert_eq!(told[map][name], told["total"], "{map}");
    }
    let by_day = told["days"].as_object().expect("days").values();
    let ended: u64 = by_day.filter_map(|day| day["jobs"]["ended"].as_u64()).sum();
    assert_eq!((ended, &told["incomplete"]), (JOBS as u64, &json!([])));
    tell(&format!("statistics: {JOBS} jobs over {} deaths of the server, exact", KILLS + 2));
}
