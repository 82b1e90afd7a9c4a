//! What is not available: a list of resources, each with its cause and its remedy. Never a feature that is switched off.

use std::collections::BTreeMap;

use outlive_core::limits::LOST_LISTED_MAX;
use outlive_core::record::{EntityKey, EntityKind};
use outlive_core::state::State;
use serde::{Deserialize, Serialize};

/// A resource that is not available. Everything else works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Degraded {
    /// What kind of thing it is.
    pub kind: Kind,
    /// Which one.
    pub resource: String,
    /// Why, with all causes.
    pub cause: String,
    /// Since when that is known (RFC 3339).
    pub since: String,
    /// What makes it available again. None of it needs a restart.
    pub remedy: String,
}

/// Kinds of resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The whole data directory: it is a copy that nobody has adopted.
    Copy,
    /// Room for new work.
    Disk,
    /// A job whose records are damaged.
    Job,
    /// A repo whose records are damaged.
    Repo,
    /// Anything else whose records are damaged.
    Records,
    /// What a stage of the startup would have brought.
    Stage,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Copy, Self::Disk, Self::Job, Self::Repo, Self::Records, Self::Stage];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Disk => "disk",
            Self::Job => "job",
            Self::Repo => "repo",
            Self::Records => "records",
            Self::Stage => "stage",
        }
    }
}

/// The verb that takes it up again; its files and processes are left alone until then.
fn remedy_of(entity: &EntityKey) -> String {
    let name = &entity.name;
    match entity.kind {
        EntityKind::Job => format!(
            "`outlive repair {name}` takes it up again as its directory and what can be read tell"
        ),
        EntityKind::Repo => format!(
            "`outlive repo repair {name}` makes it usable again (with --source if nobody knows where it comes from)"
        ),
        EntityKind::Operation => {
            "none is needed: whoever waits for it is told, and it is forgotten".into()
        }
        EntityKind::Server => {
            "none is needed: the next change that is written down makes it good".into()
        }
        EntityKind::Stats => {
            "none is needed: it counts on from here; what it had counted before is lost".into()
        }
        EntityKind::Delivery | EntityKind::Other(_) => {
            "none in this version: it is kept as it is for one that knows it".into()
        }
    }
}

impl Degraded {
    /// It is an entity whose records are damaged.
    pub fn is_of_records(&self) -> bool {
        matches!(self.kind, Kind::Job | Kind::Repo | Kind::Records)
    }

    /// A copied data directory.
    pub fn copy(cause: String, since: String) -> Self {
        let remedy = "make sure that its original does not run any more, then `outlive adopt-data`: \
                      until then nothing is launched, judged, ended, or cleared away";
        let resource = "the data directory".into();
        Self { kind: Kind::Copy, resource, cause, since, remedy: remedy.into() }
    }

    /// No room for new work.
    pub fn disk(missing: String, since: String) -> Self {
        let remedy = "free some space: what was accepted goes on by itself then";
        Self {
            kind: Kind::Disk,
            resource: "disk".into(),
            cause: missing,
            since,
            remedy: remedy.into(),
        }
    }

    /// Everything whose records cannot be read, as far as it is listed. Since when: as it is `known`, or else `since`.
    pub fn all_lost(state: &State, known: &[Self], since: &str) -> Vec<Self> {
        let known = known.iter().filter(|it| it.is_of_records());
        let known: BTreeMap<&str, &str> =
            known.map(|it| (it.resource.as_str(), it.since.as_str())).collect();
        let entities = state.all_unavailable().take(LOST_LISTED_MAX);
        let mut all: Vec<Self> = entities
            .map(|(entity, cause)| {
                let resource = entity.to_string();
                let since = known.get(resource.as_str()).copied().unwrap_or(since);
                Self::lost(entity, cause.clone(), since.to_string())
            })
            .collect();
        let more = state.all_unavailable().count() - all.len();
        if more > 0 {
            all.push(Self {
                kind: Kind::Records,
                resource: format!("{more} more"),
                cause: "their records cannot be read".into(),
                since: since.to_string(),
                remedy:
                    "`outlive list --phase unknown` names the jobs, `outlive repo list` the repos"
                        .into(),
            });
        }
        all
    }

    /// An entity whose records cannot be read.
    pub fn lost(entity: &EntityKey, cause: String, since: String) -> Self {
        let kind = match entity.kind {
            EntityKind::Job => Kind::Job,
            EntityKind::Repo => Kind::Repo,
            _ => Kind::Records,
        };
        Self { kind, resource: entity.to_string(), cause, since, remedy: remedy_of(entity) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state_without(jobs: usize) -> State {
        let mut state = State::default();
        for n in 0..jobs {
            let entity = EntityKey::new(EntityKind::Job, format!("job{n:05}"));
            state.set_unavailable(entity, "lost".into());
        }
        state
    }

    #[test]
    fn what_is_lost_is_listed_with_since_when_it_is_known() {
        let state = state_without(2);
        let first = Degraded::all_lost(&state, &[], "then");
        assert_eq!(first.len(), 2);
        let again = Degraded::all_lost(&state, &first[..1], "now");
        let since: Vec<&str> = again.iter().map(|it| it.since.as_str()).collect();
        assert_eq!(since, ["then", "now"]);
        assert!(again[0].remedy.starts_with("`outlive repair job00000` "), "{}", again[0].remedy);
    }

    // Proves I9.
    #[test]
    fn a_flood_of_losses_is_counted_and_not_listed() {
        let all = Degraded::all_lost(&state_without(LOST_LISTED_MAX + 7), &[], "then");
        assert_eq!(all.len(), LOST_LISTED_MAX + 1);
        assert_eq!(all.last().map(|it| it.resource.as_str()), Some("7 more"));
        assert_eq!(
            Degraded::all_lost(&state_without(LOST_LISTED_MAX), &[], "x").len(),
            LOST_LISTED_MAX
        );
    }
}
