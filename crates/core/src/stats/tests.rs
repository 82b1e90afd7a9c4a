//! The histogram's error, and what happens at the bounds.

use proptest::prelude::*;

use super::*;

#[test]
fn keys_are_read_as_they_are_written() {
    let name = || Some("a/b".to_string());
    let keys = [
        Key::Total,
        Key::Engine(None),
        Key::Engine(name()),
        Key::Repo(name()),
        Key::Repo(None),
        Key::Owner(name()),
        Key::Owner(Some(String::new())),
        Key::Day(Day(20_000)),
    ];
    for key in keys {
        assert_eq!(Key::parse(&key.entity_name()), Some(key));
    }
    for text in ["", "total/x", "day", "day/x", "job/x"] {
        assert_eq!(Key::parse(text), None, "{text}");
    }
}

#[test]
fn buckets_are_in_order_and_their_middles_are_in_them() {
    let mut last = 0;
    for value in (0..5000).chain((13..64).flat_map(|n| [(1 << n) - 1, 1 << n])).chain([u64::MAX]) {
        let bucket = bucket_of(value);
        assert!(bucket >= last && bucket < 496, "{value}");
        assert_eq!(bucket_of(middle_of(bucket)), bucket, "{value}");
        last = bucket;
    }
}

#[test]
fn without_values_there_is_nothing_to_tell() {
    let spread = Spread::default();
    assert_eq!((spread.mean(), spread.percentile(50)), (None, None));
}

#[test]
fn names_beyond_the_limit_are_counted_together_and_taken_out_from_there() {
    let mut stats = Stats::default();
    let key = |n: usize| Key::Repo(Some(n.to_string()));
    for n in 0..limits::STATS_NAMES_MAX + 5 {
        stats.change(Lsn(1), key(n), |row| row.accepted += 1);
    }
    assert_eq!(stats.rows().count(), limits::STATS_NAMES_MAX + 1);
    let others = |stats: &Stats| stats.row(&Key::Repo(None)).map(|row| row.accepted);
    assert_eq!(others(&stats), Some(5));
    stats.change(Lsn(2), key(limits::STATS_NAMES_MAX), |row| row.accepted -= 1);
    assert_eq!(others(&stats), Some(4));
    let long = "x".repeat(limits::STATS_NAME_BYTES_MAX + 1);
    stats.change(Lsn(3), Key::Owner(Some(long)), |row| row.accepted += 1);
    assert_eq!(stats.row(&Key::Owner(None)).map(|row| row.accepted), Some(1));
}

#[test]
fn the_oldest_day_makes_room_and_one_that_is_older_gets_none() {
    let mut stats = Stats::default();
    let mut count = |day: u32| stats.change(Lsn(1), Key::Day(Day(day)), |row| row.accepted += 1);
    let most = u32::try_from(limits::STATS_DAYS_MAX).expect("small");
    (100..100 + most).for_each(&mut count);
    count(99);
    count(5000);
    let days: Vec<_> = stats.rows().map(|(key, _)| key.clone()).collect();
    assert_eq!(days.len(), limits::STATS_DAYS_MAX);
    assert_eq!(
        (days.first(), days.last()),
        (Some(&Key::Day(Day(101))), Some(&Key::Day(Day(5000))))
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_percentile_is_within_a_sixteenth_of_the_true_one(
        values in prop::collection::vec(prop_oneof![0..100_u64, 0..10_000_000_u64, any::<u64>().prop_map(|n| n >> 8)], 1..200),
        gone in prop::collection::vec(0..1_000_000_u64, 0..20),
        percent in 1..=100_u64,
    ) {
        let mut spread = Spread::default();
        for value in gone.iter().chain(&values) {
            spread.add(*value);
        }
        for value in &gone {
            spread.take(*value);
        }
        let mut sorted = values.clone();
        sorted.sort_unstable();
        let rank = (values.len() as u64 * percent).div_ceil(100).max(1);
        let exact = sorted[usize::try_from(rank).expect("small") - 1];
        let told = spread.percentile(percent).expect("there are values");
        prop_assert!(told.abs_diff(exact) <= exact / 16, "{told} for {exact}");
        prop_assert_eq!(spread.count, values.len() as u64);
        prop_assert_eq!(spread.sum, values.iter().sum::<u64>());
    }
}
