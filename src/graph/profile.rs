//! What the machine can do, as far as predicted times need it.

use super::facts::dtypes;
use super::records::Options;

/// Times in µs, rates per µs. The sum over a graph's nodes is a prediction of
/// one call's wall time.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// `cpu`, `gpu`, `h100`
    pub name: &'static str,
    /// Multiply-adds per µs: fp32, fp64, 16-bit.
    pub products: [f64; 3],
    /// Bytes per µs.
    pub bytes: f64,
    /// One matrix product through the framework.
    pub product_us: f64,
    /// One of ours.
    pub fused_us: f64,
    /// A call of `fused_mlp`, beside its layers.
    pub mlp_us: f64,
    /// Each of its layers.
    pub layer_us: f64,
    /// An element-wise operator.
    pub pointwise_us: f64,
    /// A view.
    pub view_us: f64,
    /// Asking for a size.
    pub metadata_us: f64,
    /// Whether ReLU after a product costs a pass over memory even when fused.
    pub relu_pass: bool,
}

/// NVIDIA H100, from the figures of `docs/performance.md` and an H100 SXM's
/// rates under load.
const H100: Profile = Profile {
    name: "h100",
    products: [25e6, 25e6, 300e6],
    bytes: 2.4e6,
    product_us: 9.0,
    fused_us: 8.5,
    mlp_us: 8.0,
    layer_us: 2.5,
    pointwise_us: 5.0,
    view_us: 1.5,
    metadata_us: 0.5,
    relu_pass: false,
};

/// Any other GPU: a quarter of that, the same host.
const GPU: Profile =
    Profile { name: "gpu", products: [7e6, 0.25e6, 50e6], bytes: 0.6e6, layer_us: 4.0, ..H100 };

/// A CPU of two cores, where nothing was measured. The ratios between calls
/// are those of TorchScript on torch 2.11 (`docs/performance.md`).
const CPU: Profile = Profile {
    name: "cpu",
    products: [60e3, 30e3, 30e3],
    bytes: 15e3,
    product_us: 2.65,
    fused_us: 3.1,
    mlp_us: 0.5,
    layer_us: 2.0,
    pointwise_us: 0.85,
    view_us: 0.5,
    metadata_us: 0.12,
    relu_pass: true,
};

impl Profile {
    /// For the machine that `options` names.
    pub fn new(options: &Options) -> Self {
        match options.device.as_str() {
            "h100" => H100,
            "cuda" => GPU,
            _ => Self::cpu(options),
        }
    }

    fn cpu(options: &Options) -> Self {
        let mut profile = CPU;
        if options.cpu_gflops > 0.0 {
            // 2 FLOP a product; 1 GFLOP/s is 10³ FLOP/µs.
            let rate = options.cpu_gflops * 1e3 / 2.0;
            profile.products = [rate, rate / 2.0, rate / 2.0];
        }
        if options.cpu_gbytes > 0.0 {
            profile.bytes = options.cpu_gbytes * 1e3;
        }
        if options.cpu_dispatch_us > 0.0 {
            let factor = options.cpu_dispatch_us / CPU.pointwise_us;
            for time in [
                &mut profile.product_us,
                &mut profile.fused_us,
                &mut profile.mlp_us,
                &mut profile.layer_us,
                &mut profile.pointwise_us,
                &mut profile.view_us,
                &mut profile.metadata_us,
            ] {
                *time *= factor;
            }
        }
        profile
    }

    /// Products per µs in `dtype`.
    pub fn products(&self, dtype: i32) -> f64 {
        match dtype {
            dtypes::DOUBLE => self.products[1],
            dtypes::HALF | dtypes::BFLOAT16 => self.products[2],
            _ => self.products[0],
        }
    }
}
