//! A removal that was accepted is carried out, whatever dies between the record and the rename.

use std::fs;

use serde_json::json;

use crate::rig::Rig;

/// A server that died where a removed thing would have been moved away. What is removed is named by its path; `LAST` is the last job.
fn dies_before_the_trash(prepare: impl Fn(&Rig), remove: &str) -> Rig {
    let mut rig = Rig::new();
    rig.start();
    rig.repo();
    prepare(&rig);
    rig.kill();
    rig.set("OUTLIVE_CRASH", "fleet.before_discard:1");
    let client = rig.start();
    let last = client.get("/api/jobs").expect("there").json().expect("JSON");
    let id = last["jobs"][0]["id"].as_str().unwrap_or_default();
    // The server may die before the answer gets out: the removal is on record all the same.
    drop(client.delete(&remove.replace("LAST", id)));
    rig.wait_dead();
    rig.unset("OUTLIVE_CRASH");
    rig
}

// Proves I12: the rename is the commit of the deletion, and it is done at the next start if not before.
#[test]
fn a_removed_job_whose_server_died_before_the_trash_is_cleared_away_at_the_next_start() {
    let ids = std::cell::RefCell::new(Vec::new());
    let two_jobs = |rig: &Rig| {
        let [stays, gone] = [(); 2].map(|()| rig.submit_script("echo x"));
        for id in [&gone, &stays] {
            rig.wait_ended(id);
        }
        ids.borrow_mut().extend([gone, stays]);
    };
    let mut rig = dies_before_the_trash(two_jobs, "/api/jobs/LAST");
    let ids = ids.borrow();
    let [gone, stays] = [0, 1].map(|n: usize| rig.data().join("jobs").join(&ids[n]));
    assert!(gone.exists(), "the server died too late");
    let foreign = rig.data().join("jobs/aaaaaaaaaaaa");
    fs::create_dir(&foreign).expect("made");
    for _ in 0..2 {
        rig.start();
        rig.wait_away(&gone);
        rig.wait_empty(&rig.data().join("trash"));
        assert!(stays.exists() && foreign.exists(), "only what was removed goes");
        let asked = rig.client().get(&format!("/api/jobs/{}", ids[0]));
        assert_eq!(asked.expect_err("it is gone").code(), Some("unknown_job"));
        rig.kill();
    }
}

#[test]
fn a_removed_repo_whose_server_died_before_the_trash_is_never_taken_for_a_new_one_of_its_name() {
    for again in [false, true] {
        let mut rig = dies_before_the_trash(|_| {}, "/api/repos/r");
        let copy = rig.data().join("repos/r");
        assert!(copy.join("README.md").exists(), "the server died too late");
        if again {
            // The name is used anew before anything was cleared away, and that server dies too.
            rig.set("OUTLIVE_CRASH", "fleet.before_discard:1");
            rig.spawn();
            rig.wait_dead();
            rig.unset("OUTLIVE_CRASH");
        }
        rig.start();
        assert!(!copy.exists(), "it is gone before the API answers");
        let source = rig.make_repo("other");
        fs::write(source.join("other.txt"), "another").expect("written");
        let body = json!({ "name": "r", "source": source });
        rig.client().post("/api/repos", &body).expect("registered");
        let repo = rig.client().get("/api/repos/r?wait=true").expect("there").json();
        assert_eq!(repo.expect("JSON")["phase"], "ready");
        assert!(copy.join("other.txt").exists(), "it is the new one");
    }
}
