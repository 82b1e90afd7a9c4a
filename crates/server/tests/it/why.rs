//! `why` and `stats` as people ask for them, of a server that died and started again.

use serde_json::{Value, json};

use crate::rig::Rig;

fn decisions(rig: &Rig, id: &str) -> Vec<Value> {
    let told = rig.client().get(&format!("/api/jobs/{id}/why")).expect("there").json();
    told.expect("JSON")["decisions"].as_array().expect("a list").clone()
}

fn said(rig: &Rig, arguments: &[&str]) -> String {
    let output = rig.command().args(arguments).output().expect("runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

// Proves I3: the story is in the records, so a start changes nothing of it and adds what it decided.
#[test]
fn a_jobs_story_is_told_over_deaths_of_the_server_with_the_start_that_decided() {
    let mut rig = Rig::new();
    rig.start();
    rig.repo();
    let gate = rig.make_gate("gate");
    let id = rig.submit_script(&format!("read x < {}; exit 3", gate.display()));
    rig.wait_phase(&id, "running");
    rig.wait_kept(&id);
    let before = decisions(&rig, &id);
    for _ in 0..2 {
        rig.kill();
        rig.start();
    }
    rig.open_gate("gate");
    rig.wait_ended(&id);
    let story = decisions(&rig, &id);
    assert_eq!(story.get(..before.len()), Some(&*before), "what was told stays told");
    let whats: Vec<&str> = story.iter().filter_map(|line| line["what"].as_str()).collect();
    assert_eq!(whats[..3], ["accepted", "workspace being made", "workspace made"]);
    assert_eq!((whats[3], whats[whats.len() - 1]), ("attempt 1 launched", "ended: failed"));
    let adopted = story.iter().filter(|line| line["what"] == "attempt 1: adopted");
    let starts: Vec<&Value> = adopted.map(|line| &line["start"]).collect();
    assert_eq!(starts, [&json!(2), &json!(3)], "{story:#?}");
    let adopted = story.iter().find(|line| line["start"] == 2).expect("just found");
    let because = adopted["because"].as_str().expect("words");
    let (agent, keeper) = ("; agent pid ", " by supervisor pid ");
    assert!(because.starts_with("keeper.lock is held") && because.contains(agent), "{because}");
    assert!(because.contains(keeper), "{because}");
    assert_eq!(adopted["rule"], "row 2 of docs/recovery.md");
    let lsns: Vec<u64> = story.iter().filter_map(|line| line["lsn"].as_u64()).collect();
    assert!(lsns.len() == story.len() && lsns.is_sorted(), "{lsns:?}");
    let startup = rig.client().get("/api/admin/startup-log").expect("there").json().expect("JSON");
    assert_eq!(startup["current"]["number"], 3, "one count of starts");

    let text = said(&rig, &["why", &id]);
    assert!(text.contains("accepted: from local: engine command, repo r"), "{text}");
    assert_eq!(text.lines().count(), story.len() + 1);
    let text = said(&rig, &["stats"]);
    assert!(text.contains("all jobs") && text.contains("command"), "{text}");
}

#[test]
fn the_count_of_starts_goes_on_where_the_startup_log_was_lost() {
    let mut rig = Rig::new();
    for name in ["one", "two"] {
        rig.start();
        rig.repo_from(name, name);
        rig.kill();
    }
    std::fs::remove_file(rig.data().join("startup-log.json")).expect("it was there");
    rig.start();
    let startup = rig.client().get("/api/admin/startup-log").expect("there").json().expect("JSON");
    assert_eq!(startup["current"]["number"], 3);
}
