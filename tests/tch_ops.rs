//! The operators from Rust, on tch tensors: forward and every gradient against
//! `linear` + `relu`, and against finite differences in fp64.

use hypatia::{fused_linear_relu, fused_linear_relu_backward, fused_mlp, Error};
use tch::nn::{self, Module};
use tch::{Device, Kind, Tensor};

/// Unit roundoff and the dtype's accumulation roundoff.
fn roundoffs(kind: Kind) -> (f64, f64) {
    match kind {
        Kind::Double => (f64::EPSILON / 2.0, f64::EPSILON / 2.0),
        Kind::Float => (f64::from(f32::EPSILON) / 2.0, f64::from(f32::EPSILON) / 2.0),
        Kind::Half => (2f64.powi(-11), f64::from(f32::EPSILON) / 2.0),
        Kind::BFloat16 => (2f64.powi(-8), f64::from(f32::EPSILON) / 2.0),
        other => panic!("no tolerance for {other:?}"),
    }
}

/// |got − want| ≤ 2(K+1)·u_acc·scale + 2·u·|want|, element by element, where
/// `scale` is Σ|a||b|, the size of what was summed: the standard bound for a
/// sum of K products in any order, doubled because tensor cores truncate.
fn assert_close(got: &Tensor, want: &Tensor, scale: &Tensor, k: i64, kind: Kind, what: &str) {
    let (u, u_acc) = roundoffs(kind);
    let bound = scale * (2.0 * (k + 1) as f64 * u_acc) + want.abs() * (2.0 * u) + f64::MIN_POSITIVE;
    let error = (got.to_kind(Kind::Double) - want).abs();
    let excess = (&error / &bound).max().double_value(&[]);
    assert!(excess <= 1.0, "{what}: error is {excess} times its bound");
}

/// The CPU, and the GPU where there is one.
fn devices() -> Vec<Device> {
    let gpu = Device::cuda_if_available();
    if gpu == Device::Cpu {
        vec![Device::Cpu]
    } else {
        vec![Device::Cpu, gpu]
    }
}

fn rand_on(shape: &[i64], kind: Kind, device: Device) -> Tensor {
    Tensor::randn(shape, (Kind::Double, device)).to_kind(kind)
}

fn rand(shape: &[i64], kind: Kind) -> Tensor {
    rand_on(shape, kind, Device::Cpu)
}

#[test]
fn forward_and_gradients_match_linear_relu() {
    tch::manual_seed(1);
    for device in devices() {
        for kind in [Kind::Double, Kind::Float, Kind::BFloat16, Kind::Half] {
            check_against_fp64(device, kind);
        }
    }
}

fn check_against_fp64(device: Device, kind: Kind) {
    for (shape, n) in [(vec![5, 7], 3), (vec![64, 128], 96), (vec![2, 3, 33], 17), (vec![9], 4)] {
        let k = *shape.last().unwrap();
        let m: i64 = shape[..shape.len() - 1].iter().product();
        let leaf = |t: Tensor| t.set_requires_grad(true);
        let (x, w, b) =
            [shape.as_slice(), &[n, k], &[n]].map(|s| leaf(rand_on(s, kind, device))).into();
        let y = fused_linear_relu(&x, &w, Some(&b)).unwrap();
        let dy = rand_on(&y.size(), kind, device);
        let grads = Tensor::run_backward(&[&y * &dy], &[&x, &w, &b], false, false);

        // The oracle, in fp64 from the same inputs and the same mask.
        let double = |t: &Tensor| t.detach().to_kind(Kind::Double);
        let (x64, w64, b64) = (double(&x), double(&w), double(&b));
        let linear = x64.linear(&w64, Some(&b64));
        let scale = x64.abs().linear(&w64.abs(), Some(&b64.abs()));
        assert_close(&y.detach(), &linear.relu(), &scale, k, kind, "y");
        let mask = y.detach().gt(0.0).to_kind(Kind::Double);
        let dz = (double(&dy) * mask).reshape([m, n]);
        let x2 = x64.reshape([m, k]);
        let check = |got: &Tensor, a: &Tensor, b: &Tensor, terms, what| {
            let want = a.matmul(b).reshape(got.size());
            let scale = a.abs().matmul(&b.abs()).reshape(got.size());
            assert_close(got, &want, &scale, terms, kind, what);
        };
        check(&grads[0], &dz, &w64, n, "grad_input");
        check(&grads[1], &dz.transpose(0, 1), &x2, m, "grad_weight");
        let ones = Tensor::ones([1, m], (Kind::Double, device));
        check(&grads[2], &ones, &dz, m, "grad_bias");
    }
}

#[test]
fn gradients_match_finite_differences() {
    tch::manual_seed(2);
    let (x, w, b) =
        (rand(&[4, 6], Kind::Double), rand(&[5, 6], Kind::Double), rand(&[5], Kind::Double));
    let dy = rand(&[4, 5], Kind::Double);
    let loss = |x: &Tensor, w: &Tensor, b: &Tensor| {
        (fused_linear_relu(x, w, Some(b)).unwrap() * &dy).sum(Kind::Double).double_value(&[])
    };
    let y = fused_linear_relu(&x, &w, Some(&b)).unwrap();
    let grads = fused_linear_relu_backward(&dy, &x, &w, &y, [true; 3]).unwrap();
    let h = 1e-6;
    for (which, tensor) in [&x, &w, &b].into_iter().enumerate() {
        let gradient = grads[which].as_ref().unwrap().flatten(0, -1);
        for i in 0..tensor.numel() as i64 {
            let moved = |by: f64| {
                let copy = tensor.copy();
                let _ = copy.flatten(0, -1).get(i).g_add_scalar_(by);
                let mut all = [&x, &w, &b].map(Tensor::shallow_clone);
                all[which] = copy;
                loss(&all[0], &all[1], &all[2])
            };
            let numeric = (moved(h) - moved(-h)) / (2.0 * h);
            let exact = gradient.double_value(&[i]);
            // Rounding of a loss of size ~30 over 2h, plus O(h²).
            assert!((numeric - exact).abs() < 1e-7, "argument {which}[{i}]: {numeric} {exact}");
        }
    }
}

#[test]
fn trains_like_nn_linear_and_relu() {
    tch::manual_seed(3);
    let vs = nn::VarStore::new(Device::Cpu);
    let layer = nn::linear(vs.root(), 20, 30, nn::LinearConfig::default());
    let x = rand(&[16, 20], Kind::Float);
    let bias = layer.bs.as_ref();
    let parameters = || [&layer.ws, bias.unwrap()];
    let plain = Tensor::run_backward(
        &[layer.forward(&x).relu().sum(Kind::Float)],
        &parameters(),
        false,
        false,
    );
    let fused = fused_linear_relu(&x, &layer.ws, bias).unwrap();
    let ours = Tensor::run_backward(&[fused.sum(Kind::Float)], &parameters(), false, false);
    for (ours, plain) in ours.iter().zip(&plain) {
        let difference = (ours - plain).abs().max().double_value(&[]);
        let size = plain.abs().max().double_value(&[]);
        assert!(difference <= 16.0 * f64::from(f32::EPSILON) * size, "{difference} of {size}");
    }
}

/// A chain against its layers one by one: the same operations on the CPU, and on
/// CUDA the same products with the sums in another order at most.
#[test]
fn a_chain_is_its_layers() {
    tch::manual_seed(4);
    for device in devices() {
        for relu_last in [false, true] {
            let leaf = |shape: &[i64]| {
                (rand_on(shape, Kind::Double, device) * 0.3).set_requires_grad(true)
            };
            let x = leaf(&[2, 5, 7]);
            let (w1, w2, w3) = (leaf(&[11, 7]), leaf(&[6, 11]), leaf(&[4, 6]));
            let (b1, b3) = (leaf(&[11]), leaf(&[4]));
            let layers = [(&w1, Some(&b1)), (&w2, None), (&w3, Some(&b3))];
            let y = fused_mlp(&x, &layers, relu_last).unwrap();
            let hidden = x.linear(&w1, Some(&b1)).relu().linear::<&Tensor>(&w2, None).relu();
            let last = hidden.linear(&w3, Some(&b3));
            let want = if relu_last { last.relu() } else { last };
            let leaves = [&x, &w1, &w2, &w3, &b1, &b3];
            let dy = rand_on(&y.size(), Kind::Double, device);
            let ours = Tensor::run_backward(&[&y * &dy], &leaves, false, false);
            let plain = Tensor::run_backward(&[&want * &dy], &leaves, false, false);
            for (got, want) in ours.iter().zip(&plain).chain([(&y, &want)]) {
                assert!(got.allclose(want, 1e-12, 1e-12, false), "{device:?} {relu_last}");
            }
        }
    }
}

#[test]
fn masks_skip_gradients() {
    let (x, w) = (rand(&[2, 3], Kind::Float), rand(&[4, 3], Kind::Float));
    let y = fused_linear_relu(&x, &w, None).unwrap();
    let [dx, dw, db] = fused_linear_relu_backward(&y, &x, &w, &y, [false, true, false]).unwrap();
    assert!(dx.is_none() && db.is_none());
    assert_eq!(dw.unwrap().size(), [4, 3]);
}

#[test]
fn errors_are_one_sentence() {
    let (x, w) = (rand(&[2, 3], Kind::Float), rand(&[4, 5], Kind::Float));
    let error = fused_linear_relu(&x, &w, None).unwrap_err();
    assert_eq!(
        error,
        Error::LibTorch(
            "hypatia::fused_linear_relu: expected weight of shape [N, 3] for input [2, 3], got \
             [4, 5]"
                .into()
        )
    );
    let error = fused_mlp(&x, &[], false).unwrap_err();
    let none = "hypatia::fused_mlp: expected weights of at least one layer, got none";
    assert_eq!(error, Error::LibTorch(none.into()));
    let w = rand(&[4, 3], Kind::Double);
    let text = fused_linear_relu(&x, &w, None).unwrap_err().to_string();
    assert!(text.contains("expected weight of input's dtype Float, got Double"), "{text}");
}

#[test]
fn many_threads_at_once() {
    let (x, w) = (rand(&[8, 16], Kind::Float), rand(&[12, 16], Kind::Float));
    let want = x.linear::<Tensor>(&w, None).relu();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            let (x, w, want) = (x.shallow_clone(), w.shallow_clone(), want.shallow_clone());
            scope.spawn(move || {
                for _ in 0..50 {
                    let y = fused_linear_relu(&x, &w, None).unwrap();
                    assert!(y.allclose(&want, 1e-6, 1e-6, false));
                }
            });
        }
    });
}
