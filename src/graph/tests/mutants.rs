//! Every guard of every rule is needed: without it, some block comes out wrong.

use std::panic::{catch_unwind, AssertUnwindSafe};

use super::builder::Builder;
use super::interpreter::same;
use super::random::difference;
use super::session;
use crate::graph::rules::RULES;

/// Guards whose absence no result of the interpreter can show, and why.
const ELSEWHERE: [(&str, &str); 7] = [
    ("linear_from_addmm/bias", "what fuses or folds refuses such a bias as well"),
    ("linear_from_matmul/matrix", "what fuses refuses such a weight as well"),
    ("fold_batch_norm/constant", "a fold of what trains would go stale: tested on LibTorch"),
    ("linear_relu/weight", "the operator would refuse the dtype or layout: tested on LibTorch"),
    ("linear_relu/bias", "the operator would refuse the bias: tested on LibTorch"),
    ("relu_from_clamp/training", "only the gradient at exactly 0 differs: tested on LibTorch"),
    ("merge_parallel/readers", "readers that mind strides: tested on LibTorch"),
];

/// Blocks for guards that random ones seldom meet.
fn aimed(guard: &str) -> Option<Builder> {
    let mut b = Builder::new(true);
    let y = match guard {
        "fold_batch_norm/rank" => {
            let x = b.input(&[2, 4, 4]);
            let y = b.linear(x, 4, 4);
            b.batch_norm(y, 4, false)
        }
        "transposed/matrix" => {
            // Two swaps of three dimensions are not the identity.
            let x = b.input(&[2, 3, 4]);
            let (zero, one, two) = (b.int(0), b.int(1), b.int(2));
            let y = b.node("aten::transpose", &[x, zero, one]);
            b.node("aten::transpose", &[y, one, two])
        }
        "fold_through_cat/last dimension" => {
            let (x, v) = (b.input(&[2, 8]), b.input(&[2, 4]));
            let y = b.linear(x, 4, 8);
            let y = b.cat(&[y, v], 0);
            b.linear(y, 2, 4)
        }
        "fold_input_shift/columns" | "fold_input_scale/columns" => {
            let x = b.input(&[3, 1]);
            let (c, one) = (b.parameter(&[4]), b.int(1));
            let y = if guard.starts_with("fold_input_shift") {
                b.node("aten::add", &[x, c, one])
            } else {
                b.node("aten::mul", &[x, c])
            };
            b.linear(y, 2, 4)
        }
        "relu_of_nonnegative/nonnegative" => {
            let x = b.input(&[3, 4]);
            let y = b.layer(x, 4, 4);
            let c = b.float(-1.0);
            let y = b.node("aten::mul", &[y, c]);
            b.relu(y)
        }
        _ => return None,
    };
    Some(b.returns(&[y]))
}

/// Guards that only decide whether a rewrite pays; the last one states what
/// costs decide anyway, because a draw made twice would be wrong.
const COSTS: [&str; 3] =
    ["fold_linears/operations", "fold_through_cat/operations", "relu_past_dropout/one user"];

#[test]
fn every_guard_is_needed() {
    let mut idle = vec![];
    for rule in RULES {
        for guard in rule.guards {
            let name = format!("{}/{guard}", rule.name);
            if COSTS.contains(&name.as_str()) || ELSEWHERE.iter().any(|(other, _)| *other == name) {
                continue;
            }
            let shown = match aimed(&name) {
                Some(builder) => {
                    let with = session().optimize(builder.block.clone()).expect("well-formed");
                    assert_eq!(same(&builder, &with), Ok(()), "{name}");
                    let mut without = session().without_guard(&name);
                    match without.optimize(builder.block.clone()) {
                        Ok(edits) => {
                            let compare = AssertUnwindSafe(|| same(&builder, &edits).is_err());
                            catch_unwind(compare).unwrap_or(true)
                                || without.report().stop_reason.starts_with("unsound")
                        }
                        Err(_) => true,
                    }
                }
                // A wrong graph may also trip the interpreter.
                None => (0..20_000).any(|seed| {
                    catch_unwind(|| difference(seed, Some(&name)).is_some()).unwrap_or(true)
                }),
            };
            if !shown {
                idle.push(name);
            }
        }
    }
    assert_eq!(idle, Vec::<String>::new(), "guards that nothing misses");
}

#[test]
fn names_are_unique_and_sketched() {
    for (n, rule) in RULES.iter().enumerate() {
        assert!(rule.sketch.len() > 20, "{}", rule.name);
        assert!(RULES[..n].iter().all(|other| other.name != rule.name), "{}", rule.name);
    }
}
