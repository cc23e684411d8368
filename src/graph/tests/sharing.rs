//! Which results share memory is part of what a block does.

use super::builder::Builder;
use super::interpreter::same;
use super::random::difference;
use super::session;

/// Optimizes a block that returns `results`, and a chain that makes rewriting it
/// pay in any case.
fn assert_the_same_to_callers(mut b: Builder, x: u32, results: &[u32]) {
    let mut y = x;
    for _ in 0..6 {
        y = b.layer(y, 4, 4);
    }
    let b = b.returns(&[results, &[y]].concat());
    let edits = session().optimize(b.block.clone()).expect("well-formed");
    assert_eq!(same(&b, &edits), Ok(()));
    assert!(edits.changed);
}

#[test]
fn one_copy_serves_all_that_shared_it() {
    // Two equal results apart from each other; a third is one of them.
    let mut b = Builder::new(true);
    let x = b.input(&[2, 4]);
    let z = b.linear(x, 4, 4);
    let (first, second) = (b.relu(z), b.relu(z));
    let off = b.flag(false);
    let passed = b.dropout(second, off);
    assert_the_same_to_callers(b, x, &[first, second, passed]);
}

#[test]
fn twins_in_one_container_stay_two() {
    // Something that nothing is known of holds both: they may share memory as
    // far as it goes, yet each was made by a node of its own.
    let mut b = Builder::new(true);
    let x = b.input(&[2, 4]);
    let z = b.linear(x, 4, 4);
    let twins = [b.relu(z), b.relu(z)];
    for twin in twins {
        b.block.values[twin as usize].storage = 0;
    }
    assert_the_same_to_callers(b, x, &twins);
}

#[test]
fn who_reads_the_second_twin_first_gets_it() {
    let mut b = Builder::new(true);
    let x = b.input(&[2, 4]);
    let w = b.parameter(&[4, 4]);
    let none = b.none();
    let (first, second) =
        (b.node("aten::linear", &[x, w, none]), b.node("aten::linear", &[x, w, none]));
    let held = b.wall("test::square_root", &[second]);
    let also = b.wall("test::square_root", &[first]);
    assert_the_same_to_callers(b, x, &[second, first, held, also]);
}

#[test]
fn a_seed_that_once_failed() {
    assert_eq!(difference(213_654, None), None);
}
