//! What becomes of jobs and repos when records are lost: whoever may have been concerned is held, the others go on (I10).
//!
//! Where a record's header can be read it names whom it concerns. Where not, the records that follow tell by their links who lost
//! nothing; of whom none follows, the directory may tell, and who cannot be proved to be whole is held. Nothing is touched here.

use outlive_core::event::{job_entity, repo_entity};
use outlive_core::ids::{JobId, Lsn, RepoName};
use outlive_core::job::{Job, Phase};
use outlive_core::record::EntityKind;
use outlive_core::repo::RepoPhase;
use outlive_core::state::{Removal, State};

use crate::data_dir::Paths;
use crate::truth::wal::Lost;
use crate::world::remains;

/// Holds what lost something, or may have; and takes up, for people to see, what directories tell of it.
pub fn hold(state: &mut State, lost: &[Lost], paths: &Paths, instance: &str, owner: &str) {
    let place = Place { paths, instance };
    if let Some(last) = lost.iter().max_by_key(|lost| *lost.lsns.start()) {
        let why = format!("{}, and nothing proves that none of them concerned it", last.why);
        for entity in doubtful(state, *last.lsns.start(), &place) {
            state.set_unavailable(entity, why.clone());
        }
    }
    for (id, accepted) in strangers(state, lost, &place) {
        let why = format!(
            "record {accepted}, its acceptance, cannot be read: {}",
            why_of(lost, accepted)
        );
        state.set_unavailable(job_entity(&id), why);
    }
    for name in unknown_repos(state, lost, &place) {
        let why = lost.first().map_or_else(String::new, |lost| lost.why.clone());
        let why = format!("its source copy is there, its registration cannot be read: {why}");
        state.set_unavailable(repo_entity(&name), why);
    }
    let jobs: Vec<JobId> = state
        .all_unavailable()
        .filter(|(entity, _)| entity.kind == EntityKind::Job)
        .filter_map(|(entity, _)| JobId::parse(&entity.name).ok())
        .collect();
    for id in jobs {
        state.recall(&id, &remains::of_job(paths, instance, &id), owner);
    }
    if let Some(last) = remains::last_operation(paths).filter(|_| !lost.is_empty()) {
        state.operation_was_seen(last);
    }
}

/// Where directories are, and whose.
struct Place<'a> {
    paths: &'a Paths,
    instance: &'a str,
}

/// Who is not proved to have lost nothing by records that were lost from `lost` on: no record after them speaks of it.
fn doubtful(state: &State, lost: Lsn, place: &Place<'_>) -> Vec<outlive_core::record::EntityKey> {
    let jobs = state.jobs().filter(|job| job.changed < lost && !is_as_it_was(job, place));
    let jobs = jobs.map(|job| job_entity(&job.id));
    let repos = state.repos().filter(|repo| repo.changed < lost);
    let repos = repos.filter(|repo| {
        repo.phase == RepoPhase::Ready
            && !remains::has_copy(place.paths, place.instance, &repo.name)
    });
    let repos = repos.map(|repo| repo_entity(&repo.name));
    let removed = state.removals().filter_map(|removal| match removal {
        // Its name may have been used again.
        Removal::Repo(name)
            if state.last_lsn(&repo_entity(&name)) < lost
                && remains::has_copy(place.paths, place.instance, &name) =>
        {
            Some(repo_entity(&name))
        }
        Removal::Job(_) | Removal::Repo(_) => None,
    });
    jobs.chain(repos).chain(removed).collect()
}

/// A job that has ended does nothing by itself; and what a person asked of it since would have left its traces.
fn is_as_it_was(job: &Job, place: &Place<'_>) -> bool {
    if !matches!(job.phase, Phase::Ended { .. }) {
        return false;
    }
    match remains::attempts(place.paths, place.instance, &job.id) {
        Some(attempts) => attempts <= job.attempts.len(),
        None => job.attempts.is_empty(),
    }
}

/// Jobs that have a directory, and whose acceptance is among what was lost.
fn strangers(state: &State, lost: &[Lost], place: &Place<'_>) -> Vec<(JobId, Lsn)> {
    if lost.is_empty() {
        return Vec::new();
    }
    let mut found = remains::jobs(place.paths, place.instance);
    found.retain(|(id, accepted)| {
        let entity = job_entity(id);
        let known = state.job(id).is_some()
            || state.unavailable(&entity).is_some()
            || state.last_lsn(&entity) != Lsn::NONE;
        !known && lost.iter().any(|lost| lost.lsns.contains(accepted))
    });
    found
}

fn unknown_repos(state: &State, lost: &[Lost], place: &Place<'_>) -> Vec<RepoName> {
    if lost.is_empty() {
        return Vec::new();
    }
    let mut found = remains::repos(place.paths, place.instance);
    found.retain(|name| {
        let entity = repo_entity(name);
        state.last_lsn(&entity) == Lsn::NONE && state.unavailable(&entity).is_none()
    });
    found
}

fn why_of(lost: &[Lost], lsn: Lsn) -> &str {
    lost.iter().find(|lost| lost.lsns.contains(&lsn)).map_or("", |lost| &lost.why)
}
