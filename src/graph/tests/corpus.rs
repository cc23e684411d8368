//! Known shapes of models: what must come out, and that it computes the same.

use super::builder::Builder;
use super::interpreter::same;
use super::{kinds, optimize};

const FUSED: &str = "hypatia::fused_linear_relu";
const MLP: &str = "hypatia::fused_mlp";

/// Optimizes and compares; the kinds that compute, in order.
fn result(builder: &Builder) -> Vec<String> {
    let (edits, session) = optimize(&builder.block);
    if let Err(difference) = same(builder, &edits) {
        panic!("{difference}\n{}", session.report().json());
    }
    let report = session.report();
    assert!(report.cost_after <= report.cost_before, "{}", report.json());
    let deltas: f64 = report.rewrites.iter().map(|rewrite| rewrite.cost_delta).sum();
    let total = report.cost_after - report.cost_before;
    assert!((deltas - total).abs() < 1e-3, "{deltas} of {total}: {}", report.json());
    kinds(&builder.block, &edits)
}

fn check(builder: Builder, outputs: &[u32], expected: &[&str]) {
    let builder = builder.returns(outputs);
    assert_eq!(result(&builder), expected);
}

fn frozen_and_not(build: impl Fn(&mut Builder) -> u32, expected: &[&str]) {
    for frozen in [false, true] {
        let mut b = Builder::new(frozen);
        let y = build(&mut b);
        check(b, &[y], expected);
    }
}

#[test]
fn one_layer() {
    frozen_and_not(
        |b| {
            let x = b.input(&[3, 4]);
            b.layer(x, 5, 4)
        },
        &[FUSED],
    );
}

#[test]
fn a_layer_without_bias() {
    frozen_and_not(
        |b| {
            let x = b.input(&[2, 3, 4]);
            let y = b.bare_linear(x, 5, 4);
            b.relu(y)
        },
        &[FUSED],
    );
}

#[test]
fn a_chain_becomes_one_operator() {
    frozen_and_not(
        |b| {
            let mut x = b.input(&[3, 4]);
            for _ in 0..3 {
                x = b.layer(x, 4, 4);
            }
            b.linear(x, 2, 4)
        },
        &[MLP],
    );
}

#[test]
fn a_chain_is_cut_where_its_middle_is_read() {
    for frozen in [false, true] {
        let mut b = Builder::new(frozen);
        let x = b.input(&[3, 4]);
        let h = b.layer(x, 4, 4);
        let h = b.layer(h, 4, 4);
        let y = b.layer(h, 4, 4);
        let y = b.layer(y, 4, 4);
        check(b, &[h, y], &[MLP, MLP]);
    }
}

#[test]
fn every_spelling_of_a_layer() {
    for spelling in 0..6 {
        frozen_and_not(
            |b| {
                let x = b.input(&[3, 4]);
                let (w, bias) = (b.parameter(&[5, 4]), b.parameter(&[5]));
                let one = b.int(1);
                let y = match spelling {
                    0 => {
                        let wt = b.node("aten::t", &[w]);
                        b.node("aten::addmm", &[bias, x, wt, one, one])
                    }
                    1 => {
                        let wt = b.node("aten::t", &[w]);
                        let y = b.node("aten::matmul", &[x, wt]);
                        b.node("aten::add", &[y, bias, one])
                    }
                    2 => {
                        let wt = b.node("aten::t", &[w]);
                        let y = b.node("aten::mm", &[x, wt]);
                        b.node("aten::add", &[bias, y, one])
                    }
                    3 => {
                        let none = b.none();
                        let y = b.node("aten::linear", &[x, w, none]);
                        b.node("aten::add", &[y, bias, one])
                    }
                    4 => {
                        let y = b.node("aten::linear", &[x, w, bias]);
                        let zero = b.int(0);
                        return b.node("aten::threshold", &[y, zero, zero]);
                    }
                    _ => b.node("aten::linear", &[x, w, bias]),
                };
                b.relu(y)
            },
            &[FUSED],
        );
    }
}

#[test]
fn weights_that_are_not_transposed() {
    let build = |frozen| {
        let mut b = Builder::new(frozen);
        let x = b.input(&[2, 3, 4]);
        let (a, bias, one) = (b.parameter(&[4, 5]), b.parameter(&[5]), b.int(1));
        let y = b.node("aten::matmul", &[x, a]);
        let y = b.node("aten::add", &[y, bias, one]);
        let y = b.relu(y);
        (b, y)
    };
    let (b, y) = build(true);
    check(b, &[y], &[FUSED]);
    let (b, y) = build(false);
    check(b, &[y], &["aten::t", FUSED]);
}

#[test]
fn clamp_is_relu_only_where_nothing_trains() {
    for (frozen, expected) in
        [(true, vec![FUSED]), (false, vec!["aten::linear", "aten::clamp_min"])]
    {
        let mut b = Builder::new(frozen);
        let x = b.input(&[3, 4]);
        let (y, zero) = (b.linear(x, 5, 4), b.int(0));
        let y = b.node("aten::clamp_min", &[y, zero]);
        check(b, &[y], &expected);
    }
}

#[test]
fn what_is_not_a_layer_stays() {
    // A column of biases, a bias of another size, scaled sums, another limit.
    frozen_and_not(
        |b| {
            let x = b.input(&[3, 4]);
            let y = b.bare_linear(x, 3, 4);
            let (column, one) = (b.parameter(&[3, 1]), b.int(1));
            let y = b.node("aten::add", &[y, column, one]);
            b.relu(y)
        },
        &["aten::linear", "aten::add", "aten::relu"],
    );
    frozen_and_not(
        |b| {
            let x = b.input(&[3, 4]);
            let (w, bias) = (b.parameter(&[4, 5]), b.parameter(&[5]));
            let (one, two) = (b.int(1), b.int(2));
            let y = b.node("aten::addmm", &[bias, x, w, one, two]);
            b.relu(y)
        },
        &["aten::addmm", "aten::relu"],
    );
    frozen_and_not(
        |b| {
            let x = b.input(&[3, 4]);
            let (y, one) = (b.linear(x, 5, 4), b.int(1));
            b.node("aten::clamp_min", &[y, one])
        },
        &["aten::linear", "aten::clamp_min"],
    );
}

#[test]
fn a_pre_activation_with_two_readers_is_not_computed_twice() {
    for frozen in [false, true] {
        let mut b = Builder::new(frozen);
        let x = b.input(&[3, 4]);
        let y = b.linear(x, 5, 4);
        let z = b.relu(y);
        check(b, &[y, z], &["aten::linear", "aten::relu"]);
    }
}

#[test]
fn relu_moves_to_where_it_fuses() {
    frozen_and_not(
        |b| {
            let x = b.input(&[6, 4]);
            let (y, sizes) = (b.linear(x, 5, 4), b.ints(&[2, 15]));
            let y = b.node("aten::view", &[y, sizes]);
            b.relu(y)
        },
        &[FUSED, "aten::view"],
    );
    frozen_and_not(
        |b| {
            let (x, z) = (b.input(&[3, 4]), b.input(&[3, 2]));
            let (y, z) = (b.linear(x, 5, 4), b.linear(z, 5, 2));
            let y = b.cat(&[y, z], -1);
            b.relu(y)
        },
        &[FUSED, FUSED, "aten::cat"],
    );
    frozen_and_not(
        |b| {
            let x = b.input(&[6, 4]);
            let (y, dims, flag) = (b.linear(x, 5, 4), b.ints(&[-1]), b.flag(false));
            let y = b.node("aten::amax", &[y, dims, flag]);
            b.relu(y)
        },
        &[FUSED, "aten::amax"],
    );
}

#[test]
fn relu_twice_is_relu() {
    frozen_and_not(
        |b| {
            let x = b.input(&[3, 4]);
            let y = b.layer(x, 5, 4);
            b.relu(y)
        },
        &[FUSED],
    );
}

#[test]
fn results_that_were_apart_in_memory_stay_apart() {
    for frozen in [false, true] {
        // relu(relu(x)) = relu(x), but both are handed out.
        let mut b = Builder::new(frozen);
        let x = b.input(&[3, 4]);
        let y = b.layer(x, 5, 4);
        let z = b.relu(y);
        let b = b.returns(&[y, z]);
        result(&b);
        // Twins.
        let mut b = Builder::new(frozen);
        let x = b.input(&[3, 4]);
        let (w, bias) = (b.parameter(&[5, 4]), b.parameter(&[5]));
        let y = b.node("aten::linear", &[x, w, bias]);
        let z = b.node("aten::linear", &[x, w, bias]);
        let b = b.returns(&[y, z]);
        assert_eq!(result(&b), ["aten::linear", "aten::linear"]);
        // A value that is given and never negative.
        let mut b = Builder::new(frozen);
        let x = b.input(&[3, 4]);
        let y = b.wall("aten::sigmoid", &[x]);
        let z = b.relu(y);
        let b = b.returns(&[y, z]);
        assert_eq!(result(&b), ["aten::sigmoid", "aten::relu"]);
    }
}

#[test]
fn dropout() {
    // Off: as if it were not there.
    frozen_and_not(
        |b| {
            let x = b.input(&[3, 4]);
            let (y, off) = (b.linear(x, 5, 4), b.flag(false));
            let y = b.dropout(y, off);
            b.relu(y)
        },
        &[FUSED],
    );
    // On, or only known later.
    for dynamic in [false, true] {
        frozen_and_not(
            |b| {
                let x = b.input(&[3, 4]);
                let y = b.linear(x, 5, 4);
                let on = if dynamic { b.dynamic_flag() } else { b.flag(true) };
                let y = b.dropout(y, on);
                b.relu(y)
            },
            &[FUSED, "aten::dropout"],
        );
    }
    // Two draws are two draws, in their order.
    frozen_and_not(
        |b| {
            let x = b.input(&[3, 4]);
            let (y, on, one) = (b.layer(x, 5, 4), b.flag(true), b.int(1));
            let (p, q) = (b.dropout(y, on), b.dropout(y, on));
            let (p, q) = (b.relu(p), b.relu(q));
            b.node("aten::sub", &[q, p, one])
        },
        &[FUSED, "aten::dropout", "aten::dropout", "aten::sub"],
    );
}

#[test]
fn batch_norm_folds_into_a_matrix_and_nothing_else() {
    let build = |frozen: bool, view: bool| {
        let mut b = Builder::new(frozen);
        let x = b.input(&[6, 4]);
        let x = if view {
            let sizes = b.ints(&[-1, 4]);
            b.node("aten::view", &[x, sizes])
        } else {
            x
        };
        let y = b.linear(x, 4, 4);
        let y = b.batch_norm(y, 4, false);
        let y = b.relu(y);
        (b, y)
    };
    let (b, y) = build(true, true);
    check(b, &[y], &["aten::view", FUSED]);
    // Parameters that may be trained; a number of dimensions nobody knows.
    let rest = ["aten::linear", "aten::batch_norm", "aten::relu"];
    let (b, y) = build(false, true);
    check(b, &[y], &[&["aten::view"][..], &rest].concat());
    let (b, y) = build(true, false);
    check(b, &[y], &rest);
}

#[test]
fn batch_norm_on_duty_stays_even_unread() {
    let mut b = Builder::new(true);
    let x = b.input(&[6, 4]);
    let sizes = b.ints(&[-1, 4]);
    let x = b.node("aten::view", &[x, sizes]);
    let y = b.linear(x, 4, 4);
    b.batch_norm(y, 4, true);
    let z = b.relu(y);
    check(b, &[z], &["aten::view", "aten::linear", "aten::batch_norm", "aten::relu"]);
}

#[test]
fn batch_norm_with_another_reader_of_the_layer() {
    let mut b = Builder::new(true);
    let x = b.input(&[6, 4]);
    let (sizes, one) = (b.ints(&[-1, 4]), b.int(1));
    let x = b.node("aten::view", &[x, sizes]);
    let y = b.linear(x, 4, 4);
    let z = b.batch_norm(y, 4, false);
    let z = b.relu(z);
    let z = b.node("aten::add", &[z, y, one]);
    let b = b.returns(&[z]);
    result(&b);
}

#[test]
fn scales_and_shifts_fold() {
    let mut b = Builder::new(true);
    let x = b.input(&[3, 4]);
    let y = b.linear(x, 5, 4);
    let (scale, shift, one) = (b.parameter(&[5]), b.parameter(&[5]), b.int(1));
    let y = b.node("aten::mul", &[scale, y]);
    let y = b.node("aten::add", &[y, shift, one]);
    let two = b.float(2.0);
    let y = b.node("aten::div", &[y, two]);
    let y = b.node("aten::sub", &[y, two, one]);
    let y = b.relu(y);
    check(b, &[y], &[FUSED]);
    // Before a layer, where the columns are known.
    let mut b = Builder::new(true);
    let x = b.input(&[3, 4]);
    let y = b.layer(x, 5, 4);
    let (scale, shift, one) = (b.parameter(&[5]), b.parameter(&[5]), b.int(1));
    let y = b.node("aten::mul", &[y, scale]);
    let y = b.node("aten::add", &[shift, y, one]);
    let y = b.linear(y, 2, 5);
    check(b, &[y], &[MLP]);
}

#[test]
fn layers_fold_where_that_is_less_work() {
    let low_rank = |b: &mut Builder, hidden: i64| {
        let x = b.input(&[3, 16]);
        let y = b.linear(x, hidden, 16);
        b.linear(y, 8, hidden)
    };
    let mut b = Builder::new(true);
    let y = low_rank(&mut b, 16);
    check(b, &[y], &["aten::linear"]);
    let mut b = Builder::new(true);
    let y = low_rank(&mut b, 2);
    check(b, &[y], &["aten::linear", "aten::linear"]);
    let mut b = Builder::new(false);
    let y = low_rank(&mut b, 16);
    check(b, &[y], &["aten::linear", "aten::linear"]);
}

/// The end of a NeRF: fold the feature layer into the next one through the
/// concatenation; merging it with the density layer would preclude that.
#[test]
fn nerf() {
    let mut b = Builder::new(true);
    let (x, views) = (b.input(&[3, 32]), b.input(&[3, 3]));
    let h = b.layer(x, 32, 32);
    let alpha = b.linear(h, 1, 32);
    let feature = b.linear(h, 32, 32);
    let h = b.cat(&[feature, views], -1);
    let h = b.layer(h, 16, 35);
    let rgb = b.linear(h, 3, 16);
    let y = b.cat(&[rgb, alpha], -1);
    check(b, &[y], &[FUSED, "aten::cat", MLP, "aten::linear", "aten::cat"]);
}

#[test]
fn experts_on_one_input_merge() {
    let mut b = Builder::new(true);
    let x = b.input(&[3, 8]);
    let mut sum = b.layer(x, 4, 8);
    let one = b.int(1);
    for _ in 0..7 {
        let y = b.layer(x, 4, 8);
        sum = b.node("aten::add", &[sum, y, one]);
    }
    let b = b.returns(&[sum]);
    let kinds = result(&b);
    assert_eq!(kinds.iter().filter(|kind| *kind == FUSED).count(), 1, "{kinds:?}");
    // Handed out, they must not become views of one tensor.
    let mut b = Builder::new(true);
    let x = b.input(&[3, 8]);
    let experts: Vec<u32> = (0..8).map(|_| b.layer(x, 4, 8)).collect();
    let b = b.returns(&experts);
    let kinds = result(&b);
    assert_ne!(kinds.last().map(String::as_str), Some("aten::slice"), "{kinds:?}");
}

#[test]
fn sizes_do_not_keep_a_pre_activation() {
    frozen_and_not(
        |b| {
            let x = b.input(&[6, 4]);
            let y = b.linear(x, 5, 4);
            let zero = b.int(0);
            let rows = b.node("aten::size", &[y, zero]);
            let minus = b.int(-1);
            let sizes = b.node("prim::ListConstruct", &[rows, minus]);
            let y = b.relu(y);
            b.node("aten::view", &[y, sizes])
        },
        &[FUSED, "aten::size", "aten::view"],
    );
}

#[test]
fn walls_stay_in_order() {
    let mut b = Builder::new(false);
    let x = b.input(&[3, 4]);
    let y = b.layer(x, 4, 4);
    let y = b.wall("test::square_root", &[y]);
    let z = b.layer(y, 4, 4);
    let z = b.wall("test::square_root", &[z]);
    check(b, &[z], &[FUSED, "test::square_root", FUSED, "test::square_root"]);
}
