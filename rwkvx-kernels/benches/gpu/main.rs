//! The operators on a device, for `scripts/gpu/suite`: checked against the CPU bodies, and timed.
//!
//! `cargo bench -p rwkvx-kernels --features cuda --bench gpu -- --backend cuda check`. Every result is one line of JSON, printed as soon as
//! it is there.

mod attention;
mod check;
mod cross_entropy;
mod inputs;
mod time;
mod wkv7;

use std::path::PathBuf;
use std::process::ExitCode;

use burn::tensor::DType;
use burn_flex::Flex;
use clap::{Args, Parser, Subcommand, ValueEnum};
use rwkvx_kernels::KernelBackend;

#[derive(Parser)]
struct Arguments {
    #[arg(long, value_enum)]
    backend: BackendName,
    #[command(subcommand)]
    command: Command,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum BackendName {
    Flex,
    #[cfg(feature = "cuda")]
    Cuda,
    #[cfg(feature = "vulkan")]
    Vulkan,
}

#[derive(Subcommand)]
enum Command {
    /// Compares outputs and gradients with those of the CPU bodies in f32; fails if one is too far off.
    Check {
        /// Which element types.
        #[arg(long, value_enum, default_values = ["f32", "bf16", "f16"])]
        dtype: Vec<ElementType>,
    },
    /// Times the recurrence at one size.
    Wkv7(WkvTiming),
    /// Times the sparse attention at some lengths.
    Attention(AttentionTiming),
    /// Times losses and gradient of one piece of the head's logits.
    CrossEntropy(CrossEntropyTiming),
}

#[derive(Parser)]
struct CrossEntropyTiming {
    #[arg(long, default_value_t = 512)]
    rows: usize,
    #[arg(long, default_value_t = 65536)]
    vocab: usize,
    #[arg(long, value_enum)]
    dtype: ElementType,
    /// How many times to measure; less often what takes long.
    #[arg(long, default_value_t = 25)]
    measurements: usize,
}

#[derive(Parser)]
struct WkvTiming {
    /// Batch, time, heads, head size.
    #[arg(long, num_args = 4, required = true)]
    dims: Vec<usize>,
    #[command(flatten)]
    timing: Timing,
}

#[derive(Parser)]
struct AttentionTiming {
    /// Lengths of the sequence, or how much the cache holds before decoding.
    #[arg(long, required = true)]
    tokens: Vec<usize>,
    #[arg(long)]
    heads: usize,
    #[arg(long, default_value_t = 64)]
    head_size: usize,
    #[arg(long)]
    chunk_size: usize,
    #[arg(long)]
    top_k: usize,
    #[command(flatten)]
    timing: Timing,
}

#[derive(Args)]
struct Timing {
    #[arg(long, value_enum)]
    dtype: ElementType,
    #[arg(long, value_enum, required = true)]
    pass: Vec<Pass>,
    /// How many times to measure; less often what takes long.
    #[arg(long, default_value_t = 25)]
    measurements: usize,
    /// Where to write rows of the results for comparison: `PASS.safetensors`, of the attention `PASS-TOKENS.safetensors`.
    #[arg(long)]
    results: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum ElementType {
    F32,
    Bf16,
    F16,
}

impl From<ElementType> for DType {
    fn from(element: ElementType) -> Self {
        match element {
            ElementType::F32 => Self::F32,
            ElementType::Bf16 => Self::BF16,
            ElementType::F16 => Self::F16,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Pass {
    /// The forward pass for inference, from no state.
    Forward,
    /// The forward pass for training and the backward pass.
    Training,
    /// One token after another, each with the state or the cache that the last one left.
    Decode,
}

impl Pass {
    fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Training => "training",
            Self::Decode => "decode",
        }
    }
}

fn run<B: KernelBackend>(command: Command) -> ExitCode {
    match command {
        Command::Check { dtype } => check::check::<B>(dtype.into_iter().map(DType::from)),
        Command::Wkv7(timing) => wkv7::time::<B>(&timing),
        Command::Attention(timing) => attention::time::<B>(&timing),
        Command::CrossEntropy(timing) => cross_entropy::time::<B>(&timing),
    }
}

fn main() -> ExitCode {
    abort_with_the_device_thread();
    let arguments = Arguments::parse();
    match arguments.backend {
        BackendName::Flex => run::<Flex>(arguments.command),
        #[cfg(feature = "cuda")]
        BackendName::Cuda => run::<burn::backend::Cuda>(arguments.command),
        #[cfg(feature = "vulkan")]
        BackendName::Vulkan => run::<burn::backend::Vulkan>(arguments.command),
    }
}

/// A panic on CubeCL's device thread would leave this process reading stale buffers.
fn abort_with_the_device_thread() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        let thread = std::thread::current();
        if thread.name().is_some_and(|name| name.starts_with("DSD-")) {
            std::process::abort();
        }
    }));
}
