//! The plan of a startup: which stage waits for which, and what becomes of one that fails or in which earlier starts died.
//!
//! Absent: what a stage does. Stages are names here; the server knows what stands behind them.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use crate::{limits, retry};

/// A step of a startup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    /// Its name.
    pub name: &'static str,
    /// The stages that must be over before it begins.
    pub depends_on: &'static [&'static str],
    /// Without it the server cannot work. Without another, what it would have brought is not available, and the rest works.
    pub critical: bool,
}

/// Why a list of stages is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A name that nobody bears.
    #[error("stage {stage} depends on {dependency}, which there is not")]
    Unknown {
        /// The stage.
        stage: &'static str,
        /// What it names.
        dependency: &'static str,
    },
    /// A name that two bear.
    #[error("two stages are called {0}")]
    Twice(&'static str),
    /// Stages that wait for each other, in a circle.
    #[error("stages wait for each other in a circle: {}", circle(.0))]
    Cycle(Vec<&'static str>),
}

fn circle(names: &[&str]) -> String {
    let mut text = names.join(" -> ");
    if let Some(first) = names.first() {
        text.push_str(" -> ");
        text.push_str(first);
    }
    text
}

/// Stages in an order in which each stands after all that it depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan(Vec<Stage>);

impl Plan {
    /// Sorts stages topologically; those that do not depend on each other stay in the order given.
    ///
    /// # Errors
    /// See [`PlanError`].
    pub fn new(stages: &[Stage]) -> Result<Self, PlanError> {
        let mut names = BTreeSet::new();
        if let Some(twice) = stages.iter().find(|stage| !names.insert(stage.name)) {
            return Err(PlanError::Twice(twice.name));
        }
        for stage in stages {
            if let Some(dependency) = stage.depends_on.iter().find(|name| !names.contains(**name)) {
                return Err(PlanError::Unknown { stage: stage.name, dependency });
            }
        }
        let mut left: Vec<Stage> = stages.to_vec();
        let mut sorted = Self(Vec::new());
        while !left.is_empty() {
            let over = sorted.0.iter().map(|stage| stage.name).collect();
            let Some(next) = left.iter().position(|stage| may_begin(stage, &over)) else {
                return Err(PlanError::Cycle(find_circle(&left)));
            };
            sorted.0.push(left.remove(next));
        }
        Ok(sorted)
    }

    /// All stages in order.
    pub fn stages(&self) -> &[Stage] {
        &self.0
    }

    /// The stages that may begin now: all they depend on is over, and they have not begun.
    pub fn next<'a>(
        &'a self,
        begun: &'a BTreeSet<&'static str>,
        over: &'a BTreeSet<&'static str>,
    ) -> impl Iterator<Item = Stage> + 'a {
        let waits = |stage: &&Stage| !begun.contains(stage.name) && may_begin(stage, over);
        self.0.iter().filter(waits).copied()
    }

    /// Every stage without which the server cannot work is over.
    pub fn is_ready(&self, over: &BTreeSet<&'static str>) -> bool {
        self.0.iter().all(|stage| !stage.critical || over.contains(stage.name))
    }
}

fn may_begin(stage: &Stage, over: &BTreeSet<&'static str>) -> bool {
    stage.depends_on.iter().all(|name| over.contains(name))
}

/// Of stages none of which may ever begin: follows dependencies until a name comes again.
fn find_circle(left: &[Stage]) -> Vec<&'static str> {
    let mut path: Vec<&'static str> = Vec::new();
    let mut at = left.first();
    while let Some(stage) = at {
        if let Some(from) = path.iter().position(|name| *name == stage.name) {
            return path.split_off(from);
        }
        path.push(stage.name);
        let waits_for = |other: &&Stage| stage.depends_on.contains(&other.name);
        at = left.iter().find(waits_for);
    }
    path
}

/// What becomes of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It is tried, after this pause.
    Try(Duration),
    /// The start goes on without it: what it would have brought is not available.
    Without,
    /// The start ends here.
    Stop,
}

impl Stage {
    /// Before its first try, when so many starts in a row have died in it.
    pub fn after_deaths(&self, deaths: u32) -> Next {
        if deaths < limits::STAGE_DEATHS_MAX { Next::Try(Duration::ZERO) } else { self.given_up() }
    }

    /// After so many failed tries in this start, at least one.
    pub fn after_failures(&self, failures: u32) -> Next {
        if failures < limits::STAGE_TRIES_MAX {
            let (first, longest) = (limits::STAGE_PAUSE, limits::STAGE_PAUSE_MAX);
            Next::Try(retry::backoff(first, longest, failures.saturating_sub(1)))
        } else {
            self.given_up()
        }
    }

    /// When it is not tried any more.
    pub fn given_up(&self) -> Next {
        if self.critical { Next::Stop } else { Next::Without }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString as _;
    use alloc::vec;

    use super::*;

    fn stage(name: &'static str, depends_on: &'static [&'static str]) -> Stage {
        Stage { name, depends_on, critical: false }
    }

    fn names<'a>(stages: impl IntoIterator<Item = &'a Stage>) -> Vec<&'static str> {
        stages.into_iter().map(|stage| stage.name).collect()
    }

    #[test]
    fn a_stage_stands_after_all_that_it_depends_on_and_else_where_it_was() {
        let stages =
            [stage("d", &["b", "c"]), stage("b", &["a"]), stage("a", &[]), stage("c", &["a"])];
        let plan = Plan::new(&stages).expect("a plan");
        assert_eq!(names(plan.stages()), ["a", "b", "c", "d"]);
    }

    #[test]
    fn a_circle_is_refused_with_its_names_and_no_others() {
        let stages = [
            stage("outside", &["b"]),
            stage("a", &["c"]),
            stage("b", &["a"]),
            stage("c", &["b"]),
            stage("free", &[]),
        ];
        let error = Plan::new(&stages).expect_err("a circle");
        assert_eq!(error, PlanError::Cycle(vec!["b", "a", "c"]));
        let told = "stages wait for each other in a circle: b -> a -> c -> b";
        assert_eq!(error.to_string(), told);
        let error = Plan::new(&[stage("self", &["self"])]).expect_err("a circle");
        assert_eq!(error, PlanError::Cycle(vec!["self"]));
    }

    #[test]
    fn an_unknown_dependency_and_a_name_used_twice_are_refused() {
        let error = Plan::new(&[stage("a", &["b"])]).expect_err("unknown");
        assert_eq!(error.to_string(), "stage a depends on b, which there is not");
        let error = Plan::new(&[stage("a", &[]), stage("a", &[])]).expect_err("twice");
        assert_eq!(error, PlanError::Twice("a"));
    }

    #[test]
    fn stages_that_do_not_depend_on_each_other_may_run_side_by_side() {
        let stages = [stage("a", &[]), stage("b", &["a"]), stage("c", &["a"]), stage("d", &["b"])];
        let plan = Plan::new(&stages).expect("a plan");
        let next = |begun: &[&'static str], over: &[&'static str]| {
            let (begun, over) = (begun.iter().copied().collect(), over.iter().copied().collect());
            plan.next(&begun, &over).map(|stage| stage.name).collect::<Vec<_>>()
        };
        assert_eq!(next(&[], &[]), ["a"]);
        assert_eq!(next(&["a"], &[]), [""; 0]);
        assert_eq!(next(&["a"], &["a"]), ["b", "c"]);
        assert_eq!(next(&["a", "b", "c"], &["a", "c"]), [""; 0]);
        assert_eq!(next(&["a", "b", "c"], &["a", "b"]), ["d"]);
    }

    #[test]
    fn the_server_is_ready_when_what_it_cannot_do_without_is_over() {
        let stages = [Stage { critical: true, ..stage("a", &[]) }, stage("b", &[])];
        let plan = Plan::new(&stages).expect("a plan");
        assert!(!plan.is_ready(&BTreeSet::from(["b"])));
        assert!(plan.is_ready(&BTreeSet::from(["a"])));
    }

    #[test]
    fn a_failing_stage_is_tried_again_after_1_2_and_4_seconds_and_then_given_up() {
        let critical = Stage { critical: true, ..stage("a", &[]) };
        for (stage, last) in [(critical, Next::Stop), (stage("a", &[]), Next::Without)] {
            let pause = |seconds| Next::Try(Duration::from_secs(seconds));
            let found = [1, 2, 3, 4, u32::MAX].map(|failures| stage.after_failures(failures));
            assert_eq!(found, [pause(1), pause(2), pause(4), last, last]);
            let found = [0, 2, 3, 4].map(|deaths| stage.after_deaths(deaths));
            assert_eq!(found, [pause(0), pause(0), last, last]);
        }
    }
}
