//! The trait that a backend implements to run the kernels.

use std::ops::Range;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Int, Tensor, backend::Backend};

use crate::cross_entropy::{self, RowLosses};
use crate::embedding;
use crate::known_gradient;
use crate::layer_norm::{self, LayerNormGrads};
use crate::pointwise::{self, Pointwise};
use crate::project::{self, Product, WeightLayout};
use crate::sample::{self, Draw, Sampled};
use crate::sparse_attention::{self, AttentionGradient, CachedRows, ChunkTopK};
use crate::time_mix::{
    self, HeadInputs, HeadOutputs, KeyInputs, Keys, OutputInputs, ShiftInputs, Shifted,
    TimeMixBackward, ValueInputs,
};
use crate::wkv7::{self, Wkv7Gradient, Wkv7Inputs, Wkv7Output};

/// Adds up tensors of one shape that are each on a device of its own; every device has the sum afterwards.
pub type AllReduce<B> = fn(Vec<FloatTensor<B>>) -> Vec<FloatTensor<B>>;

/// A Burn backend that can run the RWKV-X operators.
///
/// Every method has a body in tensor operations, which is the operator's definition: `impl KernelBackend for MyBackend {}`
/// is complete and correct. A backend overrides a method to be fast, and sets the constants to bring hand-written
/// backward passes; where a constant is `None`, `Autodiff<MyBackend>` differentiates the definition.
///
/// Callers use the functions of the crate and [`KvCache`](crate::KvCache), which check shapes first; the methods may rely on those
/// checks.
pub trait KernelBackend: Backend {
    /// Hand-written forward and backward passes of the recurrence for training.
    const WKV7_GRADIENT: Option<Wkv7Gradient<Self>> = None;

    /// Hand-written forward and backward passes of the attention for training.
    const ATTENTION_GRADIENT: Option<AttentionGradient<Self>> = None;

    /// Whether [`project`](crate::project()) reads weights of 8 bits as they are. Where it does not, they are better widened once than at every use.
    const READS_INT8: bool = false;

    /// Hand-written backward passes of what a time mix does element by element.
    const TIME_MIX_BACKWARD: Option<TimeMixBackward<Self>> = None;

    /// Sums over devices, where the backend connects them. `None` on CPUs, whose devices are one, and on GPUs between which Burn moves nothing.
    const ALL_REDUCE: Option<AllReduce<Self>> = None;

    /// Bytes that a device holds for this program; `None` where tensors lie in the program's own memory.
    fn memory_in_use(_device: &Self::Device) -> Option<u64> {
        None
    }

    /// Does `work` on the stream that all threads share which do theirs through this. A GPU has a stream per thread otherwise, and memory that one
    /// has let go of stays with its stream.
    fn on_one_stream<T>(work: impl FnOnce() -> T) -> T {
        work()
    }

    /// The RWKV-7 recurrence over a whole piece of sequence; see [`wkv7`](crate::wkv7()).
    fn wkv7(inputs: Wkv7Inputs<Self>) -> Wkv7Output<Self> {
        wkv7::reference::wkv7(inputs)
    }

    /// Chunk top-k attention over a whole sequence; see [`sparse_attention`](crate::sparse_attention()).
    fn sparse_attention(
        query: Tensor<Self, 4>,
        key: Tensor<Self, 4>,
        value: Tensor<Self, 4>,
        shape: ChunkTopK,
    ) -> Tensor<Self, 4> {
        sparse_attention::reference::sparse_attention(query, key, value, shape)
    }

    /// Lets full attention teach the choice of chunks; see [`teach_choice`](crate::teach_choice). Nothing to do where there are no gradients.
    fn teach_choice(
        query: Tensor<Self, 4>,
        key: Tensor<Self, 4>,
        _chunk_size: usize,
        _weight: f64,
    ) -> [Tensor<Self, 4>; 2] {
        [query, key]
    }

    /// Writes `rows` `[batch, time, heads, head_size]` into `buffer` `[batch, heads, capacity, head_size]` at time `at`.
    ///
    /// A cache owns its buffers alone, so this can and should happen in place.
    fn write_rows(buffer: Tensor<Self, 4>, at: usize, rows: Tensor<Self, 4>) -> Tensor<Self, 4> {
        sparse_attention::reference::write_rows(buffer, at, rows)
    }

    /// Mean rows of some chunks of `buffer` `[batch, heads, capacity, head_size]`, as `[batch, heads, chunks, head_size]` in f32.
    fn mean_rows(
        buffer: &Tensor<Self, 4>,
        chunks: Range<usize>,
        chunk_size: usize,
    ) -> Tensor<Self, 4> {
        let [batch, heads, _, head_size] = buffer.dims();
        let times = chunks.start * chunk_size..chunks.end * chunk_size;
        let rows = buffer
            .clone()
            .slice([0..batch, 0..heads, times, 0..head_size]);
        sparse_attention::reference::chunk_means(rows, chunk_size)
    }

    /// Attention of the queries at times `start..start + T` to the rows of a cache that already holds theirs.
    ///
    /// `query` is `[batch, T, heads, head_size]`, and so is the result.
    fn attend_cached(
        query: Tensor<Self, 4>,
        start: usize,
        rows: &CachedRows<Self>,
        shape: ChunkTopK,
    ) -> Tensor<Self, 4> {
        sparse_attention::reference::attend(query, start, rows, shape)
    }

    /// How many multiprocessors the device has, or 0 where that is not known or says nothing of how matrix products are shared out.
    fn multiprocessors(_device: &Self::Device) -> usize {
        0
    }

    /// Rows times weights in whatever number format; see [`project`](crate::project()).
    fn project(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        layout: WeightLayout,
    ) -> Tensor<Self, 2> {
        project::reference::project(x, weight, layout)
    }

    /// Several products at once; see [`project_all`](crate::project_all).
    fn project_all(products: Vec<Product<Self>>) -> Vec<Tensor<Self, 2>> {
        project::reference::project_all(products)
    }

    /// The norm of rows; see [`layer_norm`](crate::layer_norm()).
    fn layer_norm(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 1>,
        bias: Tensor<Self, 1>,
    ) -> Tensor<Self, 2> {
        layer_norm::reference::layer_norm(x, weight, bias)
    }

    /// The gradients of [`layer_norm`](Self::layer_norm) from that of its result.
    fn layer_norm_backward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 1>,
        d_normal: Tensor<Self, 2>,
    ) -> LayerNormGrads<Self> {
        layer_norm::reference::backward(x, weight, d_normal)
    }

    /// Rows of a table; see [`embedding`](crate::embedding()).
    fn embedding(weight: Tensor<Self, 2>, ids: Tensor<Self, 1, Int>) -> Tensor<Self, 2> {
        embedding::reference::embedding(weight, ids)
    }

    /// The gradient of a table of `vocab` rows from that of the rows that `ids` named.
    fn embedding_gradient(
        vocab: usize,
        ids: Tensor<Self, 1, Int>,
        d_rows: Tensor<Self, 2>,
    ) -> Tensor<Self, 2> {
        embedding::reference::gradient(vocab, ids, d_rows)
    }

    /// A function of each element; see [`sigmoid`](crate::sigmoid) and [`tanh`](crate::tanh).
    fn pointwise(function: Pointwise, x: FloatTensor<Self>) -> FloatTensor<Self> {
        pointwise::reference::forward::<Self>(function, x)
    }

    /// The gradient of the argument of [`pointwise`](Self::pointwise), from its result `y` and the gradient of that.
    fn pointwise_backward(
        function: Pointwise,
        y: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        pointwise::reference::backward::<Self>(function, y, dy)
    }

    /// Mixes of every token with the one before it; see [`token_shift`](crate::token_shift).
    fn token_shift(
        x: Tensor<Self, 3>,
        carry: Option<Tensor<Self, 2>>,
        amounts: Vec<Tensor<Self, 1>>,
    ) -> Vec<Tensor<Self, 2>> {
        time_mix::reference::token_shift(x, carry, amounts)
    }

    /// From projections to what the recurrence takes; see [`prepare_keys`](crate::prepare_keys).
    fn prepare_keys(inputs: KeyInputs<Self>) -> Keys<Self> {
        time_mix::reference::prepare_keys(inputs)
    }

    /// The value residual; see [`mix_value`](crate::mix_value).
    fn mix_value(inputs: ValueInputs<Self>) -> Tensor<Self, 2> {
        time_mix::reference::mix_value(inputs)
    }

    /// From the recurrence to the output projection; see [`gate_output`](crate::gate_output).
    fn gate_output(inputs: OutputInputs<Self>) -> Tensor<Self, 2> {
        time_mix::reference::gate_output(inputs)
    }

    /// From the stream to the projections; see [`norm_and_shift`](crate::norm_and_shift).
    fn norm_and_shift(
        inputs: ShiftInputs<Self, Vec<Tensor<Self, 1>>>,
    ) -> Shifted<Self, Vec<Tensor<Self, 2>>> {
        time_mix::reference::norm_and_shift(inputs)
    }

    /// From the projections to the output projection; see [`mix_heads`](crate::mix_heads).
    fn mix_heads(inputs: HeadInputs<Self>) -> HeadOutputs<Self> {
        time_mix::reference::mix_heads(inputs)
    }

    /// The losses of rows of logits; see [`cross_entropy_rows`](crate::cross_entropy_rows).
    fn cross_entropy_rows(
        logits: Tensor<Self, 2>,
        targets: Tensor<Self, 1, Int>,
    ) -> RowLosses<Self> {
        cross_entropy::reference::cross_entropy_rows(logits, targets)
    }

    /// The gradient of the logits; see [`cross_entropy_gradient`](crate::cross_entropy_gradient).
    fn cross_entropy_gradient(
        logits: Tensor<Self, 2>,
        targets: Tensor<Self, 1, Int>,
        losses: RowLosses<Self>,
        shares: Tensor<Self, 1>,
        l2_wrap: f64,
    ) -> Tensor<Self, 2> {
        cross_entropy::reference::cross_entropy_gradient(logits, targets, losses, shares, l2_wrap)
    }

    /// A token of each row of logits; see [`sample`](crate::sample()).
    fn sample(
        logits: Tensor<Self, 2>,
        counts: Option<Tensor<Self, 2>>,
        draws: &[Option<Draw>],
    ) -> Sampled<Self> {
        sample::reference::sample(logits, counts, draws)
    }

    /// A number with a gradient that is known; see [`with_gradient`](crate::with_gradient).
    fn with_gradient<const D: usize>(
        value: Tensor<Self, 1>,
        x: Tensor<Self, D>,
        gradient: Tensor<Self, D>,
    ) -> Tensor<Self, 1> {
        known_gradient::reference(value, x, gradient)
    }
}

impl<B: KernelBackend, C: CheckpointStrategy> KernelBackend for Autodiff<B, C> {
    fn memory_in_use(device: &Self::Device) -> Option<u64> {
        B::memory_in_use(device)
    }

    fn on_one_stream<T>(work: impl FnOnce() -> T) -> T {
        B::on_one_stream(work)
    }

    fn multiprocessors(device: &Self::Device) -> usize {
        B::multiprocessors(device)
    }

    fn wkv7(inputs: Wkv7Inputs<Self>) -> Wkv7Output<Self> {
        match B::WKV7_GRADIENT {
            Some(gradient) => wkv7::autodiff::wkv7::<B, C>(gradient, inputs),
            None => wkv7::reference::wkv7(inputs),
        }
    }

    fn sparse_attention(
        query: Tensor<Self, 4>,
        key: Tensor<Self, 4>,
        value: Tensor<Self, 4>,
        shape: ChunkTopK,
    ) -> Tensor<Self, 4> {
        match B::ATTENTION_GRADIENT {
            Some(gradient) => sparse_attention::autodiff::sparse_attention::<B, C>(
                gradient, query, key, value, shape,
            ),
            None => sparse_attention::reference::sparse_attention(query, key, value, shape),
        }
    }

    fn teach_choice(
        query: Tensor<Self, 4>,
        key: Tensor<Self, 4>,
        chunk_size: usize,
        weight: f64,
    ) -> [Tensor<Self, 4>; 2] {
        sparse_attention::teach::autodiff::<B, C>(query, key, chunk_size, weight)
    }

    fn project(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        layout: WeightLayout,
    ) -> Tensor<Self, 2> {
        project::autodiff::project::<B, C>(x, weight, layout)
    }

    fn layer_norm(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 1>,
        bias: Tensor<Self, 1>,
    ) -> Tensor<Self, 2> {
        layer_norm::autodiff::layer_norm::<B, C>(x, weight, bias)
    }

    fn embedding(weight: Tensor<Self, 2>, ids: Tensor<Self, 1, Int>) -> Tensor<Self, 2> {
        embedding::autodiff::embedding::<B, C>(weight, ids)
    }

    fn pointwise(function: Pointwise, x: FloatTensor<Self>) -> FloatTensor<Self> {
        pointwise::autodiff::apply::<B, C>(function, x)
    }

    fn token_shift(
        x: Tensor<Self, 3>,
        carry: Option<Tensor<Self, 2>>,
        amounts: Vec<Tensor<Self, 1>>,
    ) -> Vec<Tensor<Self, 2>> {
        time_mix::autodiff::token_shift(x, carry, amounts)
    }

    fn prepare_keys(inputs: KeyInputs<Self>) -> Keys<Self> {
        time_mix::autodiff::prepare_keys(inputs)
    }

    fn mix_value(inputs: ValueInputs<Self>) -> Tensor<Self, 2> {
        time_mix::autodiff::mix_value(inputs)
    }

    fn gate_output(inputs: OutputInputs<Self>) -> Tensor<Self, 2> {
        time_mix::autodiff::gate_output(inputs)
    }

    fn with_gradient<const D: usize>(
        value: Tensor<Self, 1>,
        x: Tensor<Self, D>,
        gradient: Tensor<Self, D>,
    ) -> Tensor<Self, 1> {
        known_gradient::autodiff(value, x, gradient)
    }
}

#[cfg(feature = "cube")]
impl<R, F, I, BT> KernelBackend for burn_cubecl::CubeBackend<R, F, I, BT>
where
    R: burn_cubecl::CubeRuntime,
    F: burn_cubecl::FloatElement,
    I: burn_cubecl::IntElement,
    BT: burn_cubecl::BoolElement,
    Self: crate::cube::CubeMemory,
{
    const WKV7_GRADIENT: Option<Wkv7Gradient<Self>> = Some(wkv7::cube::gradient());

    const ATTENTION_GRADIENT: Option<AttentionGradient<Self>> =
        Some(sparse_attention::cube::gradient());

    const TIME_MIX_BACKWARD: Option<TimeMixBackward<Self>> = Some(time_mix::cube::backward());

    const ALL_REDUCE: Option<AllReduce<Self>> = crate::cube::devices::all_reduce::<Self>();

    fn memory_in_use(device: &Self::Device) -> Option<u64> {
        crate::cube::bytes_reserved::<Self>(device)
    }

    fn on_one_stream<T>(work: impl FnOnce() -> T) -> T {
        cubecl::stream_id::StreamId { value: 0 }.executes(work)
    }

    fn wkv7(inputs: Wkv7Inputs<Self>) -> Wkv7Output<Self> {
        wkv7::cube::wkv7(inputs)
    }

    fn sparse_attention(
        query: Tensor<Self, 4>,
        key: Tensor<Self, 4>,
        value: Tensor<Self, 4>,
        shape: ChunkTopK,
    ) -> Tensor<Self, 4> {
        sparse_attention::cube::sparse_attention(query, key, value, shape)
    }

    fn mean_rows(
        buffer: &Tensor<Self, 4>,
        chunks: Range<usize>,
        chunk_size: usize,
    ) -> Tensor<Self, 4> {
        sparse_attention::cube::mean_rows(buffer, chunks, chunk_size)
    }

    fn attend_cached(
        query: Tensor<Self, 4>,
        start: usize,
        rows: &CachedRows<Self>,
        shape: ChunkTopK,
    ) -> Tensor<Self, 4> {
        sparse_attention::cube::attend_cached(query, start, rows, shape)
    }

    fn multiprocessors(device: &Self::Device) -> usize {
        crate::cube::multiprocessors::<Self>(device)
    }

    fn project(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        layout: WeightLayout,
    ) -> Tensor<Self, 2> {
        project::cube::project(x, weight, layout)
    }

    fn project_all(products: Vec<Product<Self>>) -> Vec<Tensor<Self, 2>> {
        project::cube::project_all(products)
    }

    fn layer_norm(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 1>,
        bias: Tensor<Self, 1>,
    ) -> Tensor<Self, 2> {
        layer_norm::cube::layer_norm(x, weight, bias)
    }

    fn layer_norm_backward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 1>,
        d_normal: Tensor<Self, 2>,
    ) -> LayerNormGrads<Self> {
        layer_norm::cube::backward(x, weight, d_normal)
    }

    fn embedding_gradient(
        vocab: usize,
        ids: Tensor<Self, 1, Int>,
        d_rows: Tensor<Self, 2>,
    ) -> Tensor<Self, 2> {
        embedding::cube::gradient(vocab, ids, d_rows)
    }

    fn token_shift(
        x: Tensor<Self, 3>,
        carry: Option<Tensor<Self, 2>>,
        amounts: Vec<Tensor<Self, 1>>,
    ) -> Vec<Tensor<Self, 2>> {
        time_mix::cube::token_shift(x, carry, amounts)
    }

    fn prepare_keys(inputs: KeyInputs<Self>) -> Keys<Self> {
        time_mix::cube::prepare_keys(inputs)
    }

    fn mix_value(inputs: ValueInputs<Self>) -> Tensor<Self, 2> {
        time_mix::cube::mix_value(inputs)
    }

    fn gate_output(inputs: OutputInputs<Self>) -> Tensor<Self, 2> {
        time_mix::cube::gate_output(inputs)
    }

    fn norm_and_shift(
        inputs: ShiftInputs<Self, Vec<Tensor<Self, 1>>>,
    ) -> Shifted<Self, Vec<Tensor<Self, 2>>> {
        time_mix::cube::norm_and_shift(inputs)
    }

    fn mix_heads(inputs: HeadInputs<Self>) -> HeadOutputs<Self> {
        time_mix::cube::mix_heads(inputs)
    }

    fn cross_entropy_rows(
        logits: Tensor<Self, 2>,
        targets: Tensor<Self, 1, Int>,
    ) -> RowLosses<Self> {
        cross_entropy::cube::cross_entropy_rows(logits, targets)
    }

    fn cross_entropy_gradient(
        logits: Tensor<Self, 2>,
        targets: Tensor<Self, 1, Int>,
        losses: RowLosses<Self>,
        shares: Tensor<Self, 1>,
        l2_wrap: f64,
    ) -> Tensor<Self, 2> {
        cross_entropy::cube::cross_entropy_gradient(logits, targets, losses, shares, l2_wrap)
    }

    fn sample(
        logits: Tensor<Self, 2>,
        counts: Option<Tensor<Self, 2>>,
        draws: &[Option<Draw>],
    ) -> Sampled<Self> {
        sample::cube::sample(logits, counts, draws)
    }
}

/// Replaces the definitions of a backend whose tensors lie in this process's memory by the CPU bodies.
#[cfg(feature = "cpu")]
macro_rules! impl_cpu {
    ($backend:ty, reads_int8: $reads_int8:literal) => {
        impl KernelBackend for $backend {
            const READS_INT8: bool = $reads_int8;

            const WKV7_GRADIENT: Option<Wkv7Gradient<Self>> = Some(wkv7::cpu::gradient());

            const ATTENTION_GRADIENT: Option<AttentionGradient<Self>> =
                Some(sparse_attention::cpu::gradient());

            const TIME_MIX_BACKWARD: Option<TimeMixBackward<Self>> =
                Some(time_mix::cpu::backward());

            fn wkv7(inputs: Wkv7Inputs<Self>) -> Wkv7Output<Self> {
                wkv7::cpu::wkv7(inputs)
            }

            fn sparse_attention(
                query: Tensor<Self, 4>,
                key: Tensor<Self, 4>,
                value: Tensor<Self, 4>,
                shape: ChunkTopK,
            ) -> Tensor<Self, 4> {
                sparse_attention::cpu::sparse_attention(query, key, value, shape)
            }

            fn write_rows(
                buffer: Tensor<Self, 4>,
                at: usize,
                rows: Tensor<Self, 4>,
            ) -> Tensor<Self, 4> {
                sparse_attention::cpu::write_rows(buffer, at, rows)
            }

            fn mean_rows(
                buffer: &Tensor<Self, 4>,
                chunks: Range<usize>,
                chunk_size: usize,
            ) -> Tensor<Self, 4> {
                sparse_attention::cpu::mean_rows(buffer, chunks, chunk_size)
            }

            fn attend_cached(
                query: Tensor<Self, 4>,
                start: usize,
                rows: &CachedRows<Self>,
                shape: ChunkTopK,
            ) -> Tensor<Self, 4> {
                sparse_attention::cpu::attend_cached(query, start, rows, shape)
            }

            fn project(
                x: Tensor<Self, 2>,
                weight: Tensor<Self, 2>,
                layout: WeightLayout,
            ) -> Tensor<Self, 2> {
                project::cpu::project(x, weight, layout)
            }

            fn layer_norm(
                x: Tensor<Self, 2>,
                weight: Tensor<Self, 1>,
                bias: Tensor<Self, 1>,
            ) -> Tensor<Self, 2> {
                layer_norm::cpu::layer_norm(x, weight, bias)
            }

            fn layer_norm_backward(
                x: Tensor<Self, 2>,
                weight: Tensor<Self, 1>,
                d_normal: Tensor<Self, 2>,
            ) -> LayerNormGrads<Self> {
                layer_norm::cpu::backward(x, weight, d_normal)
            }

            fn pointwise(function: Pointwise, x: FloatTensor<Self>) -> FloatTensor<Self> {
                pointwise::cpu::forward::<Self>(function, x)
            }

            fn pointwise_backward(
                function: Pointwise,
                y: FloatTensor<Self>,
                dy: FloatTensor<Self>,
            ) -> FloatTensor<Self> {
                pointwise::cpu::backward::<Self>(function, y, dy)
            }

            fn token_shift(
                x: Tensor<Self, 3>,
                carry: Option<Tensor<Self, 2>>,
                amounts: Vec<Tensor<Self, 1>>,
            ) -> Vec<Tensor<Self, 2>> {
                time_mix::cpu::token_shift(x, carry, amounts)
            }

            fn prepare_keys(inputs: KeyInputs<Self>) -> Keys<Self> {
                time_mix::cpu::prepare_keys(inputs)
            }

            fn mix_value(inputs: ValueInputs<Self>) -> Tensor<Self, 2> {
                time_mix::cpu::mix_value(inputs)
            }

            fn gate_output(inputs: OutputInputs<Self>) -> Tensor<Self, 2> {
                time_mix::cpu::gate_output(inputs)
            }

            fn cross_entropy_rows(
                logits: Tensor<Self, 2>,
                targets: Tensor<Self, 1, Int>,
            ) -> RowLosses<Self> {
                cross_entropy::cpu::cross_entropy_rows(logits, targets)
            }

            fn cross_entropy_gradient(
                logits: Tensor<Self, 2>,
                targets: Tensor<Self, 1, Int>,
                losses: RowLosses<Self>,
                shares: Tensor<Self, 1>,
                l2_wrap: f64,
            ) -> Tensor<Self, 2> {
                cross_entropy::cpu::cross_entropy_gradient(logits, targets, losses, shares, l2_wrap)
            }
        }
    };
}

#[cfg(feature = "flex")]
impl_cpu!(burn_flex::Flex, reads_int8: true);

#[cfg(feature = "ndarray")]
impl_cpu!(burn_ndarray::NdArray<f32>, reads_int8: false);
