//! The house rules that neither the compiler nor clippy can keep, as ordinary tests.
//!
//! Each rule is a function from files to complaints, tried on small made-up files in its own module and on the repository
//! here. A complaint says what to do. Nothing here knows Rust's grammar: comments, texts and braces are told apart, no more.

mod manners;
mod paper;
mod planted;
mod size;
#[path = "../common/source.rs"]
mod source;
mod supply;
mod tree;
mod walls;
mod words;

use tree::{File, Repository};

/// A rule over all files.
type Rule = fn(&[File]) -> Vec<String>;

/// Fails with every complaint at once.
#[track_caller]
fn none_of(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n  {}\n", complaints.join("\n  "));
}

/// Applies a rule to the repository.
#[track_caller]
fn holds(rule: Rule) {
    none_of(&rule(&Repository::read().files));
}

#[test]
fn no_source_file_has_more_than_500_production_lines() {
    holds(size::files);
}

#[test]
fn no_test_function_has_more_than_120_lines() {
    holds(size::test_functions);
}

#[test]
fn every_source_file_opens_with_its_purpose() {
    holds(manners::headers);
}

#[test]
fn no_module_hides_in_a_mod_rs() {
    holds(manners::no_mod_rs);
}

#[test]
fn every_source_file_is_part_of_its_crate() {
    holds(manners::no_forgotten_files);
}

#[test]
fn nothing_is_allowed_ignored_or_left_to_do() {
    holds(manners::no_loose_ends);
}

#[test]
fn no_file_speaks_of_the_machine_it_was_written_on() {
    holds(manners::no_machine);
}

#[test]
fn no_file_holds_invisible_characters() {
    holds(manners::only_visible_characters);
}

#[test]
fn no_merge_was_left_half_done() {
    holds(manners::no_conflict_markers);
}

#[test]
fn every_script_can_be_executed() {
    none_of(&manners::scripts(&Repository::read()));
}

#[test]
fn one_word_means_one_thing() {
    holds(words::banned);
}

// Proves I4.
#[test]
fn the_core_knows_no_world() {
    holds(walls::core);
}

#[test]
fn the_supervisor_has_no_runtime() {
    holds(walls::supervisor);
}

#[test]
fn unsafe_code_stands_in_one_file() {
    holds(walls::unsafe_code);
}

#[test]
fn the_rooms_of_the_server_know_only_whom_they_may() {
    holds(walls::rooms);
}

#[test]
fn every_crate_obeys_the_one_set_of_lints() {
    holds(walls::lints);
}

#[test]
fn every_invariant_is_cited_by_a_test() {
    let files = Repository::read().files;
    for (invariant, tests) in paper::proofs(&files) {
        println!("{invariant}: {}", tests.join(", "));
    }
    none_of(&paper::invariants(&files, paper::NOT_YET_PROVEN));
}

#[test]
fn the_code_map_names_every_file_and_no_other() {
    holds(paper::code_map);
}

#[test]
fn the_formats_were_read_again_when_a_codec_changed() {
    holds(paper::formats);
}

#[test]
fn every_planted_bug_has_a_test_and_none_is_in_the_product() {
    holds(planted::planted);
}

#[test]
fn every_crash_point_has_a_name_of_its_own() {
    let points = source::crash_points();
    println!("{} crash points", points.len());
    none_of(&manners::crash_points(&points, manners::CRASH_POINTS_AT_LEAST));
}

#[test]
fn the_dependencies_stay_few_and_come_from_one_place() {
    holds(supply::lock);
}

#[test]
fn every_dependency_has_a_licence_that_we_accept() {
    let allowed = supply::allowed(&Repository::read().files);
    none_of(&supply::licences(&supply::metadata(), &allowed));
}
