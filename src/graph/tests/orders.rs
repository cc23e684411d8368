//! Global choice: never worse than any order of a greedy rewriter, and as good
//! as trying everything.

use super::builder::Builder;
use super::dag::{cheapest, greedy, names, Rewriter};
use super::interpreter::record;
use super::random::{block, describe};
use super::session;
use crate::graph::ops;

/// Predicted µs after the optimizer, nodes that stay not counted.
fn optimized(builder: &Builder) -> f64 {
    let mut session = session();
    session.optimize(builder.block.clone()).expect("well-formed");
    let walls = builder.block.nodes.iter().filter(|node| {
        node.kind.starts_with("test::") || ops::lookup(&node.kind).is_some() && !node.movable
    });
    session.report().cost_after - walls.count() as f64 * 1.5
}

/// The end of a NeRF: density and feature layers on one input, the feature
/// layer's result joined with the views for the next.
fn nerf(width: i64, views: i64) -> Builder {
    let mut b = Builder::new(true);
    let (x, v) = (b.input(&[3, width]), b.input(&[3, views]));
    let h = b.layer(x, width, width);
    let alpha = b.linear(h, 1, width);
    let feature = b.linear(h, width, width);
    let h = b.cat(&[feature, v], -1);
    let h = b.layer(h, width / 2, width + views);
    let rgb = b.linear(h, 3, width / 2);
    let y = b.cat(&[rgb, alpha], -1);
    b.returns(&[y])
}

fn permutations(items: &[usize]) -> Vec<Vec<usize>> {
    if items.len() < 2 {
        return vec![items.to_vec()];
    }
    let mut out = vec![];
    for (n, first) in items.iter().enumerate() {
        let mut rest = items.to_vec();
        rest.remove(n);
        for mut tail in permutations(&rest) {
            tail.insert(0, *first);
            out.push(tail);
        }
    }
    out
}

#[test]
fn the_nerf_tail_beats_every_order_of_a_greedy_rewriter() {
    let b = nerf(256, 27);
    let (rewriter, start) = Rewriter::new(&b.block);
    let rules: Vec<usize> =
        ["linear_relu", "merge_parallel", "fold_through_cat", "fold_linears", "fused_mlp"]
            .iter()
            .map(|name| names().iter().position(|known| known == name).expect("a rule"))
            .collect();
    let ours = optimized(&b);
    let costs: Vec<f64> =
        permutations(&rules).iter().map(|order| greedy(&rewriter, &start, order)).collect();
    let best = costs.iter().copied().fold(f64::MAX, f64::min);
    let worst = costs.iter().copied().fold(0.0, f64::max);
    println!(
        "NeRF tail: {:.2} µs as it came, greedy {best:.2} to {worst:.2} over {} orders, ours {ours:.2}",
        rewriter.cost(&start),
        costs.len()
    );
    assert!(ours <= best + 1e-6, "{ours} against {best}");
    assert!(ours < worst - 1e-6, "{ours} against {worst}");
}

#[test]
fn small_graphs_are_as_cheap_as_trying_everything() {
    let (mut compared, mut improved, mut too_many) = (0, 0, 0);
    for seed in 0..4000 {
        let Some(mut b) = block(seed) else { continue };
        // With sizes, so that costs do not depend on which form is known.
        record(&mut b).expect("it ran before");
        let computing = b.block.nodes.iter().filter(|n| ops::lookup(&n.kind).is_some()).count();
        if computing > 12 {
            continue;
        }
        let (rewriter, start) = Rewriter::new(&b.block);
        let Some((best, graph)) = cheapest(&rewriter, &start, 400) else {
            too_many += 1;
            continue;
        };
        let ours = optimized(&b);
        // Results that must stay apart in memory may cost more than the
        // cheapest graph, which knows nothing of memory.
        let escaping = b.block.outputs.len() > 1;
        if !escaping {
            assert!(
                ours <= best + 1e-6,
                "seed {seed}: {ours} against {best}\n{}\n{graph:?}",
                describe(seed)
            );
        }
        compared += usize::from(!escaping);
        improved += usize::from(best < rewriter.cost(&start) - 1e-6);
    }
    println!(
        "{compared} graphs compared, {improved} could be improved, {too_many} have too many forms"
    );
    assert!(compared > 500 && improved > 200, "{compared} {improved}");
}
