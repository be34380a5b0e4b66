//! The operators under Burn's fusion.
//!
//! Fusion queues operations and looks for some to merge. Ours are fused by hand already, so each runs on the inner backend at once: its
//! inputs are resolved, which runs what was queued for them, and its results enter the queue as new tensors. What has no body here is
//! tensor operations, which fusion sees as any others.

use std::ops::Range;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Int, Shape, Tensor, TensorMetadata, TensorPrimitive};
use burn_fusion::stream::OperationStreams;
use burn_fusion::{Client, Fusion, FusionBackend, FusionTensor, NoOp, get_client};
use burn_ir::{InitOperationIr, OperationIr};

use crate::KernelBackend;
use crate::cross_entropy::RowLosses;
use crate::layer_norm::LayerNormGrads;
use crate::project::Product;
use crate::sample::{Draw, Sampled};
use crate::sparse_attention::{
    AttentionGradient, AttentionGrads, AttentionInputs, CachedRows, ChunkTopK,
};
use crate::time_mix::{
    HeadInputs, HeadOutputs, KeyInputs, Keys, OutputInputs, ShiftGrads, ShiftInputs, Shifted,
    TimeMixBackward, ValueInputs, Values,
};
use crate::wkv7::{Wkv7Gradient, Wkv7Grads, Wkv7Inputs, Wkv7Output};

impl<B: KernelBackend + FusionBackend> KernelBackend for Fusion<B> {
    const WKV7_GRADIENT: Option<Wkv7Gradient<Self>> = match B::WKV7_GRADIENT {
        Some(_) => Some(Wkv7Gradient {
            forward: |inputs| {
                let (output, saved) = (wkv7_gradient::<B>().forward)(inner_wkv7(inputs));
                (outer_wkv7(output), outer(saved))
            },
            backward: |inputs, saved, d_output, d_state| {
                let backward = wkv7_gradient::<B>().backward;
                let inputs = inner_wkv7(inputs);
                let grads = backward(
                    inputs,
                    inner(saved),
                    d_output.map(inner),
                    d_state.map(inner),
                );
                Wkv7Grads {
                    receptance: outer(grads.receptance),
                    log_decay: outer(grads.log_decay),
                    key: outer(grads.key),
                    value: outer(grads.value),
                    removal: outer(grads.removal),
                    replacement: outer(grads.replacement),
                    state: outer(grads.state),
                }
            },
        }),
        None => None,
    };

    const ATTENTION_GRADIENT: Option<AttentionGradient<Self>> = match B::ATTENTION_GRADIENT {
        Some(_) => Some(AttentionGradient {
            forward: |inputs| {
                let forward = attention_gradient::<B>().forward;
                let (output, saved) = forward(&inner_attention(inputs));
                (outer(output), outer(saved))
            },
            backward: |inputs, output, saved, d_output| {
                let backward = attention_gradient::<B>().backward;
                let inputs = inner_attention(inputs);
                let grads = backward(&inputs, inner(output), inner(saved), inner(d_output));
                AttentionGrads {
                    query: outer(grads.query),
                    key: outer(grads.key),
                    value: outer(grads.value),
                }
            },
        }),
        None => None,
    };

    const TIME_MIX_BACKWARD: Option<TimeMixBackward<Self>> = match B::TIME_MIX_BACKWARD {
        Some(_) => Some(TimeMixBackward {
            token_shift: |x, amounts, d_mixes| {
                let backward = time_mix_backward::<B>().token_shift;
                let grads = backward(inner(x), inner_all(amounts), inner_all(d_mixes));
                ShiftGrads {
                    x: outer(grads.x),
                    amounts: outer_all(grads.amounts),
                }
            },
            prepare_keys: |inputs, d| {
                let head_size = inputs.head_size;
                let d = Keys {
                    log_decay: inner(d.log_decay),
                    key: inner(d.key),
                    removal: inner(d.removal),
                    replacement: inner(d.replacement),
                };
                let grads = (time_mix_backward::<B>().prepare_keys)(inner_keys(inputs), d);
                KeyInputs {
                    decay: outer(grads.decay),
                    rate: outer(grads.rate),
                    key: outer(grads.key),
                    decay_bias: outer(grads.decay_bias),
                    rate_bias: outer(grads.rate_bias),
                    removal_scale: outer(grads.removal_scale),
                    rate_scale: outer(grads.rate_scale),
                    head_size,
                }
            },
            mix_value: |inputs, d_mixed| {
                let backward = time_mix_backward::<B>().mix_value;
                let grads = backward(inner_value(inputs), inner(d_mixed));
                ValueInputs {
                    value: outer(grads.value),
                    first: outer(grads.first),
                    amount: outer(grads.amount),
                    amount_bias: outer(grads.amount_bias),
                }
            },
            gate_output: |inputs, d_gated| {
                let backward = time_mix_backward::<B>().gate_output;
                let grads = backward(inner_output(inputs), inner(d_gated));
                OutputInputs {
                    output: outer(grads.output),
                    receptance: outer(grads.receptance),
                    key: outer(grads.key),
                    value: outer(grads.value),
                    gate: outer(grads.gate),
                    weight: outer(grads.weight),
                    bias: outer(grads.bias),
                    bonus: outer(grads.bonus),
                }
            },
        }),
        None => None,
    };

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
        outer_wkv7(B::wkv7(inner_wkv7(inputs)))
    }

    fn sparse_attention(
        query: Tensor<Self, 4>,
        key: Tensor<Self, 4>,
        value: Tensor<Self, 4>,
        shape: ChunkTopK,
    ) -> Tensor<Self, 4> {
        outer(B::sparse_attention(
            inner(query),
            inner(key),
            inner(value),
            shape,
        ))
    }

    fn write_rows(buffer: Tensor<Self, 4>, at: usize, rows: Tensor<Self, 4>) -> Tensor<Self, 4> {
        outer(B::write_rows(inner(buffer), at, inner(rows)))
    }

    fn mean_rows(
        buffer: &Tensor<Self, 4>,
        chunks: Range<usize>,
        chunk_size: usize,
    ) -> Tensor<Self, 4> {
        outer(B::mean_rows(&inner(buffer.clone()), chunks, chunk_size))
    }

    fn attend_cached(
        query: Tensor<Self, 4>,
        start: usize,
        rows: &CachedRows<Self>,
        shape: ChunkTopK,
    ) -> Tensor<Self, 4> {
        let rows = CachedRows {
            keys: inner(rows.keys.clone()),
            values: inner(rows.values.clone()),
            means: rows.means.clone().map(inner),
        };
        outer(B::attend_cached(inner(query), start, &rows, shape))
    }

    fn project_all(products: Vec<Product<Self>>) -> Vec<Tensor<Self, 2>> {
        let products = products.into_iter().map(|product| Product {
            x: inner(product.x),
            weight: inner(product.weight),
            layout: product.layout,
            then: product.then,
            plus: product.plus.map(inner),
        });
        outer_all(B::project_all(products.collect()))
    }

    fn layer_norm(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 1>,
        bias: Tensor<Self, 1>,
    ) -> Tensor<Self, 2> {
        outer(<B as KernelBackend>::layer_norm(
            inner(x),
            inner(weight),
            inner(bias),
        ))
    }

    fn layer_norm_backward(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 1>,
        d_normal: Tensor<Self, 2>,
    ) -> LayerNormGrads<Self> {
        let grads = B::layer_norm_backward(inner(x), inner(weight), inner(d_normal));
        LayerNormGrads {
            x: outer(grads.x),
            weight: outer(grads.weight),
            bias: outer(grads.bias),
        }
    }

    fn embedding_gradient(
        vocab: usize,
        ids: Tensor<Self, 1, Int>,
        d_rows: Tensor<Self, 2>,
    ) -> Tensor<Self, 2> {
        outer(B::embedding_gradient(vocab, inner_int(ids), inner(d_rows)))
    }

    fn token_shift(
        x: Tensor<Self, 3>,
        carry: Option<Tensor<Self, 2>>,
        amounts: Vec<Tensor<Self, 1>>,
    ) -> Vec<Tensor<Self, 2>> {
        outer_all(B::token_shift(
            inner(x),
            carry.map(inner),
            inner_all(amounts),
        ))
    }

    fn prepare_keys(inputs: KeyInputs<Self>) -> Keys<Self> {
        let keys = B::prepare_keys(inner_keys(inputs));
        Keys {
            log_decay: outer(keys.log_decay),
            key: outer(keys.key),
            removal: outer(keys.removal),
            replacement: outer(keys.replacement),
        }
    }

    fn mix_value(inputs: ValueInputs<Self>) -> Tensor<Self, 2> {
        outer(B::mix_value(inner_value(inputs)))
    }

    fn gate_output(inputs: OutputInputs<Self>) -> Tensor<Self, 2> {
        outer(B::gate_output(inner_output(inputs)))
    }

    fn norm_and_shift(
        inputs: ShiftInputs<Self, Vec<Tensor<Self, 1>>>,
    ) -> Shifted<Self, Vec<Tensor<Self, 2>>> {
        let shifted = B::norm_and_shift(ShiftInputs {
            x: inner(inputs.x),
            weight: inner(inputs.weight),
            bias: inner(inputs.bias),
            carry: inputs.carry.map(inner),
            amounts: inner_all(inputs.amounts),
        });
        Shifted {
            mixes: outer_all(shifted.mixes),
            carry: shifted.carry.map(outer),
        }
    }

    fn mix_heads(inputs: HeadInputs<Self>) -> HeadOutputs<Self> {
        let mixed = B::mix_heads(HeadInputs {
            receptance: inner(inputs.receptance),
            keys: inner_keys(inputs.keys),
            values: match inputs.values {
                Values::Projected(value) => Values::Projected(inner(value)),
                Values::Mixed(values) => Values::Mixed(inner_value(values)),
            },
            gate: inner(inputs.gate),
            weight: inner(inputs.weight),
            bias: inner(inputs.bias),
            bonus: inner(inputs.bonus),
            state: inputs.state.map(inner),
            batch: inputs.batch,
        });
        HeadOutputs {
            gated: outer(mixed.gated),
            state: outer(mixed.state),
        }
    }

    fn cross_entropy_rows(
        logits: Tensor<Self, 2>,
        targets: Tensor<Self, 1, Int>,
    ) -> RowLosses<Self> {
        let losses = B::cross_entropy_rows(inner(logits), inner_int(targets));
        RowLosses {
            nll: outer(losses.nll),
            largest: outer(losses.largest),
            largest_at: outer_int(losses.largest_at),
            log_sum: outer(losses.log_sum),
        }
    }

    fn cross_entropy_gradient(
        logits: Tensor<Self, 2>,
        targets: Tensor<Self, 1, Int>,
        losses: RowLosses<Self>,
        shares: Tensor<Self, 1>,
        l2_wrap: f64,
    ) -> Tensor<Self, 2> {
        let losses = RowLosses {
            nll: inner(losses.nll),
            largest: inner(losses.largest),
            largest_at: inner_int(losses.largest_at),
            log_sum: inner(losses.log_sum),
        };
        let (logits, targets, shares) = (inner(logits), inner_int(targets), inner(shares));
        outer(B::cross_entropy_gradient(
            logits, targets, losses, shares, l2_wrap,
        ))
    }

    fn sample(
        logits: Tensor<Self, 2>,
        counts: Option<Tensor<Self, 2>>,
        draws: &[Option<Draw>],
    ) -> Sampled<Self> {
        let sampled = B::sample(inner(logits), counts.map(inner), draws);
        Sampled {
            ids: outer_int(sampled.ids),
            counts: sampled.counts.map(outer),
        }
    }
}

/// Called only where the constant is set.
fn wkv7_gradient<B: KernelBackend>() -> Wkv7Gradient<B> {
    B::WKV7_GRADIENT.expect("the inner backend has hand-written passes")
}

/// Called only where the constant is set.
fn attention_gradient<B: KernelBackend>() -> AttentionGradient<B> {
    B::ATTENTION_GRADIENT.expect("the inner backend has hand-written passes")
}

/// Called only where the constant is set.
fn time_mix_backward<B: KernelBackend>() -> TimeMixBackward<B> {
    B::TIME_MIX_BACKWARD.expect("the inner backend has hand-written passes")
}

/// The tensor on the inner backend.
fn inner<B: FusionBackend, const D: usize>(tensor: Tensor<Fusion<B>, D>) -> Tensor<B, D> {
    let tensor = tensor.into_primitive().tensor();
    let client = tensor.client.clone();
    Tensor::from_primitive(TensorPrimitive::Float(
        client.resolve_tensor_float::<B>(tensor),
    ))
}

/// A tensor of the inner backend as a new one of the queue.
fn outer<B: FusionBackend, const D: usize>(tensor: Tensor<B, D>) -> Tensor<Fusion<B>, D> {
    let client = get_client::<B>(&tensor.device());
    let tensor: FloatTensor<B> = tensor.into_primitive().tensor();
    let (shape, dtype) = (tensor.shape(), tensor.dtype());
    let tensor = queued::<B>(&client, B::float_tensor_handle(tensor), shape, dtype);
    Tensor::from_primitive(TensorPrimitive::Float(tensor))
}

/// As [`inner`], of integers.
fn inner_int<B: FusionBackend, const D: usize>(
    tensor: Tensor<Fusion<B>, D, Int>,
) -> Tensor<B, D, Int> {
    let tensor = tensor.into_primitive();
    let client = tensor.client.clone();
    Tensor::from_primitive(client.resolve_tensor_int::<B>(tensor))
}

/// As [`outer`], of integers.
fn outer_int<B: FusionBackend, const D: usize>(
    tensor: Tensor<B, D, Int>,
) -> Tensor<Fusion<B>, D, Int> {
    let client = get_client::<B>(&tensor.device());
    let tensor = tensor.into_primitive();
    let (shape, dtype) = (tensor.shape(), tensor.dtype());
    let handle = B::int_tensor_handle(tensor);
    Tensor::from_primitive(queued::<B>(&client, handle, shape, dtype))
}

/// A buffer of the inner backend as a new tensor of the queue.
fn queued<B: FusionBackend>(
    client: &Client<B::FusionRuntime>,
    handle: B::Handle,
    shape: Shape,
    dtype: DType,
) -> FusionTensor<B::FusionRuntime> {
    let init = InitOperationIr::create(shape, dtype, || client.register_tensor_handle(handle));
    let operation = OperationIr::Init(init);
    let mut outputs = client.register(OperationStreams::default(), operation, NoOp::<B>::new());
    outputs.pop().expect("an initialisation has one output")
}

fn inner_all<B: FusionBackend, const D: usize>(
    tensors: Vec<Tensor<Fusion<B>, D>>,
) -> Vec<Tensor<B, D>> {
    tensors.into_iter().map(inner).collect()
}

fn outer_all<B: FusionBackend, const D: usize>(
    tensors: Vec<Tensor<B, D>>,
) -> Vec<Tensor<Fusion<B>, D>> {
    tensors.into_iter().map(outer).collect()
}

fn inner_wkv7<B: FusionBackend>(inputs: Wkv7Inputs<Fusion<B>>) -> Wkv7Inputs<B> {
    Wkv7Inputs {
        receptance: inner(inputs.receptance),
        log_decay: inner(inputs.log_decay),
        key: inner(inputs.key),
        value: inner(inputs.value),
        removal: inner(inputs.removal),
        replacement: inner(inputs.replacement),
        state: inputs.state.map(inner),
    }
}

fn inner_attention<B: FusionBackend>(inputs: &AttentionInputs<Fusion<B>>) -> AttentionInputs<B> {
    AttentionInputs {
        query: inner(inputs.query.clone()),
        key: inner(inputs.key.clone()),
        value: inner(inputs.value.clone()),
        shape: inputs.shape,
    }
}

fn outer_wkv7<B: FusionBackend>(outputs: Wkv7Output<B>) -> Wkv7Output<Fusion<B>> {
    Wkv7Output {
        output: outer(outputs.output),
        state: outer(outputs.state),
    }
}

fn inner_keys<B: FusionBackend>(inputs: KeyInputs<Fusion<B>>) -> KeyInputs<B> {
    KeyInputs {
        decay: inner(inputs.decay),
        rate: inner(inputs.rate),
        key: inner(inputs.key),
        decay_bias: inner(inputs.decay_bias),
        rate_bias: inner(inputs.rate_bias),
        removal_scale: inner(inputs.removal_scale),
        rate_scale: inner(inputs.rate_scale),
        head_size: inputs.head_size,
    }
}

fn inner_value<B: FusionBackend>(inputs: ValueInputs<Fusion<B>>) -> ValueInputs<B> {
    ValueInputs {
        value: inner(inputs.value),
        first: inner(inputs.first),
        amount: inner(inputs.amount),
        amount_bias: inner(inputs.amount_bias),
    }
}

fn inner_output<B: FusionBackend>(inputs: OutputInputs<Fusion<B>>) -> OutputInputs<B> {
    OutputInputs {
        output: inner(inputs.output),
        receptance: inner(inputs.receptance),
        key: inner(inputs.key),
        value: inner(inputs.value),
        gate: inner(inputs.gate),
        weight: inner(inputs.weight),
        bias: inner(inputs.bias),
        bonus: inner(inputs.bonus),
    }
}
