//! Size, time and determinism.

use std::time::Instant;

use super::builder::Builder;
use super::interpreter::same;
use super::{kinds, optimize, session};
use crate::graph::saturate::Limits;

fn chain(layers: usize, frozen: bool) -> Builder {
    let mut b = Builder::new(frozen);
    let mut x = b.input(&[1, 2]);
    for _ in 0..layers {
        x = b.layer(x, 2, 2);
    }
    b.returns(&[x])
}

#[test]
fn long_chains_fuse_whole_and_in_linear_time() {
    for frozen in [false, true] {
        let mut times = vec![];
        for layers in [10, 100, 1000, 10_000] {
            let b = chain(layers, frozen);
            let start = Instant::now();
            let (edits, session) = optimize(&b.block);
            times.push((layers, start.elapsed()));
            assert_eq!(
                kinds(&b.block, &edits),
                ["hypatia::fused_mlp"],
                "{}",
                session.report().stop_reason
            );
            assert_eq!(session.report().stop_reason, "saturated");
        }
        println!("{times:?}");
    }
}

#[test]
fn long_residual_stacks_fuse_whole() {
    let mut b = Builder::new(false);
    let mut x = b.input(&[1, 2]);
    let one = b.int(1);
    for _ in 0..128 {
        let y = b.layer(x, 2, 2);
        x = b.node("aten::add", &[x, y, one]);
    }
    let b = b.returns(&[x]);
    let (edits, _) = optimize(&b.block);
    let fused =
        kinds(&b.block, &edits).iter().filter(|k| *k == "hypatia::fused_linear_relu").count();
    assert_eq!(fused, 128);
    assert_eq!(same(&b, &edits), Ok(()));
}

#[test]
fn a_chain_of_constant_layers_becomes_one() {
    let mut b = Builder::new(true);
    let mut x = b.input(&[1, 3]);
    for _ in 0..300 {
        x = b.linear(x, 3, 3);
    }
    let b = b.returns(&[x]);
    let (edits, session) = optimize(&b.block);
    assert_eq!(kinds(&b.block, &edits), ["aten::linear"], "{}", session.report().stop_reason);
}

#[test]
fn sums_of_many_terms_do_not_blow_up() {
    let mut b = Builder::new(true);
    let x = b.input(&[1, 2]);
    let one = b.int(1);
    let mut sum = b.linear(x, 2, 2);
    for _ in 0..12 {
        let y = b.linear(x, 2, 2);
        sum = b.node("aten::add", &[sum, y, one]);
    }
    let b = b.returns(&[sum]);
    let start = Instant::now();
    let (edits, session) = optimize(&b.block);
    assert_eq!(session.report().stop_reason, "saturated");
    assert!(start.elapsed().as_secs() < 5);
    assert_eq!(same(&b, &edits), Ok(()));
}

#[test]
fn a_limit_is_reported_and_never_costs() {
    let b = chain(200, true);
    let limits = Limits { growth: 0, least: 20, rounds: 64 };
    let mut session = session().with_limits(limits);
    let edits = session.optimize(b.block.clone()).expect("well-formed");
    let report = session.report();
    assert!(report.stop_reason.starts_with("term limit, most by "), "{}", report.stop_reason);
    assert!(report.cost_after <= report.cost_before);
    assert_eq!(same(&b, &edits), Ok(()));
}

#[test]
fn results_are_the_same_every_time() {
    for seed in [3, 7, 11] {
        let Some(b) = super::random::block(seed) else { continue };
        let first = optimize(&b.block);
        for _ in 0..5 {
            let again = optimize(&b.block);
            assert_eq!(first.0, again.0);
            assert_eq!(first.1.report().json(), again.1.report().json());
            assert_eq!(first.1.dot(), again.1.dot());
        }
    }
}

#[test]
fn malformed_records_are_refused() {
    let b = chain(2, false);
    let mut missing = b.block.clone();
    missing.nodes[2].inputs[0] = 10_000;
    let mut early = b.block.clone();
    early.nodes.reverse();
    let mut twice = b.block.clone();
    let last = twice.nodes.len() - 1;
    twice.nodes[last].outputs = twice.nodes[last - 1].outputs.clone();
    let mut nowhere = b.block.clone();
    nowhere.outputs = vec![99_999];
    for (block, text) in [
        (missing, "reads value 10000"),
        (early, "before it is made"),
        (twice, "a second time"),
        (nowhere, "the block's result"),
    ] {
        let error = session().optimize(block).expect_err(text);
        assert!(error.contains(text), "{error}");
    }
}
