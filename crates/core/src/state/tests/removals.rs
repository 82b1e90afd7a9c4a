//! What was removed is remembered until its directory is surely gone.

use alloc::vec::Vec;
use core::time::Duration;

use super::{Look, Rig, add_repo, model, repo, restored};
use crate::effect::Effect;
use crate::limits;
use crate::request::Request;
use crate::state::Removal;

fn removals(rig: &Rig) -> Vec<Removal> {
    restored(&rig.state).removals().collect()
}

#[test]
fn a_removal_is_remembered_for_a_day_over_every_start() {
    let mut rig = Rig::with_repo(0);
    rig.add_repo("s");
    rig.end_clone("s", &Look::Exited(0));
    let id = rig.submit();
    rig.granted(Request::Remove { job: id.clone() });
    rig.granted(Request::RemoveRepo(repo("s")));
    let both = [Removal::Job(id.clone()), Removal::Repo(repo("s"))];
    assert_eq!(removals(&rig), both);
    let effects = rig.last_effects();
    assert!(effects.contains(&Effect::TrashJob { job: id }));
    assert!(effects.contains(&Effect::TrashRepo { name: repo("s") }));
    rig.pass(limits::REMOVAL_KEPT.saturating_sub(Duration::from_millis(1)));
    assert_eq!(removals(&rig), both);
    rig.pass(Duration::from_millis(1));
    assert_eq!(removals(&rig), []);
    model::check_history(&rig);
}

#[test]
fn a_name_that_is_used_again_is_not_a_removed_one() {
    let mut rig = Rig::with_repo(0);
    for _ in 0..3 {
        rig.granted(Request::RemoveRepo(repo("r")));
        rig.granted(add_repo("r"));
        assert_eq!(removals(&rig), []);
        rig.end_clone("r", &Look::Exited(0));
    }
    rig.pass(limits::REMOVAL_KEPT + limits::REMOVAL_KEPT);
    assert!(super::is_ready(&rig.state, "r"));
    model::check_history(&rig);
}
