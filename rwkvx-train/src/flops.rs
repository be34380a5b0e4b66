//! Operations of a training step, counted from the sizes: 2 for each multiplication and addition of the matrix products, the recurrence and the attention.
//! What is done element by element is left out, and so is what `recompute` does a second time.

use rwkvx_model::RwkvXConfig;

use crate::config::{LongCeChoice, StageConfig};
use crate::phase::Phase;

/// Operations of a part of the model per token, forward.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// Products with weights: as many again for the gradient of the input, and as many for that of the weights.
    products: f64,
    /// The mixing of tokens: twice as many on the way back.
    mixing: f64,
}

impl Part {
    fn forward(self) -> f64 {
        self.products + self.mixing
    }

    fn backward(self, trains: bool) -> f64 {
        self.products * if trains { 2.0 } else { 1.0 } + 2.0 * self.mixing
    }
}

/// Operations per token that a stage trains on, forward, backward and LongCE's short passes.
pub fn per_token(model: &RwkvXConfig, phase: Phase, stage: &StageConfig) -> f64 {
    let trains_rwkv = !phase.freezes_rwkv();
    let mut total = head(model).forward() + head(model).backward(trains_rwkv);
    let mut reached = trains_rwkv;
    for layer in 0..model.n_layer {
        let part = recurrent(model, layer);
        total += part.forward();
        if reached {
            total += part.backward(trains_rwkv);
        }
        if phase.is_hybrid() && model.sparse_after(layer).is_some() {
            reached = true;
            let part = sparse(model, stage.context);
            total += part.forward() + part.backward(true);
        }
    }
    total + short_passes(model, phase, stage)
}

/// Operations of LongCE's short passes per token of the sequence; 0 without LongCE.
pub fn short_passes(model: &RwkvXConfig, phase: Phase, stage: &StageConfig) -> f64 {
    let Some(longce) = stage.longce.map(LongCeChoice::settings) else {
        return 0.0;
    };
    let read = longce.tokens_read(stage.context) as f64;
    let served = longce.tokens_served(stage.context) as f64;
    let window = longce.context + longce.stride;
    let layers = (0..model.n_layer).map(|layer| {
        let sparse = phase.is_hybrid() && model.sparse_after(layer).is_some();
        recurrent(model, layer).forward()
            + if sparse {
                self::sparse(model, window).forward()
            } else {
                0.0
            }
    });
    (layers.sum::<f64>() * read + head(model).forward() * served) / stage.context as f64
}

fn recurrent(model: &RwkvXConfig, layer: usize) -> Part {
    let c = model.channels as f64;
    let value_rank = if layer == 0 { 0 } else { model.value_rank };
    let ranks = (model.decay_rank + model.rate_rank + value_rank + model.gate_rank) as f64;
    Part {
        products: 2.0 * (12.0 * c * c + 2.0 * c * ranks),
        // Per value of the state: decay, the product with the removal key, two outer products, the product with the receptance.
        mixing: 9.0 * c * model.head_size as f64,
    }
}

fn sparse(model: &RwkvXConfig, context: usize) -> Part {
    let c = model.channels as f64;
    let (keys, scores) = attended(model, context);
    Part {
        products: 2.0 * 12.0 * c * c,
        mixing: 4.0 * c * keys + 2.0 * c * scores,
    }
}

fn head(model: &RwkvXConfig) -> Part {
    Part {
        products: 2.0 * (model.channels * model.vocab_size) as f64,
        mixing: 0.0,
    }
}

/// Keys that a query attends to, and chunks that it scores, on average over a sequence.
fn attended(model: &RwkvXConfig, context: usize) -> (f64, f64) {
    let (mut keys, mut scores) = (0, 0);
    for (chunk, start) in (0..context).step_by(model.chunk_size).enumerate() {
        let queries = model.chunk_size.min(context - start);
        keys += queries * (queries + 1) / 2;
        keys += queries * chunk.min(model.top_k - 1) * model.chunk_size;
        scores += queries * chunk;
    }
    (keys as f64 / context as f64, scores as f64 / context as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets;

    #[test]
    fn a_base_costs_six_operations_per_weight_and_the_recurrence() {
        let config = presets::preset("rwkvx-0.2b").unwrap();
        let stage = config.stages.stage1.unwrap();
        let base = RwkvXConfig {
            n_sparse: 0,
            ..config.model
        };
        let c = base.channels;
        // All parameters but the embedding and the vectors.
        let weights = base.parameters() - base.vocab_size * c - 4 * c - 12 * 19 * c + c;
        let recurrence = 3 * 12 * 9 * c * base.head_size;
        let found = per_token(&base, Phase::Base, &stage);
        assert_eq!(found, (6 * weights + recurrence) as f64);
    }

    #[test]
    fn what_is_frozen_below_the_first_sparse_block_runs_forward_only() {
        let config = presets::preset("rwkvx-0.2b").unwrap();
        let stage = config.stages.stage1.unwrap();
        let aligned = per_token(&config.model, Phase::Stage1, &stage);
        let whole = per_token(&config.model, Phase::Stage2, &stage);
        let (recurrent, head) = (recurrent(&config.model, 1), head(&config.model));
        // No gradient of weights in 12 blocks and the head, and none at all in the three below.
        let below = 3.0 * (recurrent.products + 2.0 * recurrent.mixing);
        // Layer 0 has no value residual.
        let value_residual = 2.0 * 2.0 * (config.model.channels * config.model.value_rank) as f64;
        let saved = 12.0 * recurrent.products + head.products + below - 2.0 * value_residual;
        assert!(
            (whole - aligned - saved).abs() < 1.0,
            "{} {saved}",
            whole - aligned
        );
    }

    #[test]
    fn attended_keys_are_counted_query_by_query() {
        let model = RwkvXConfig {
            n_sparse: 1,
            chunk_size: 8,
            top_k: 3,
            ..RwkvXConfig::rwkv7(50, 64, 2)
        };
        for context in [1, 7, 8, 9, 40, 53] {
            let mut expected = (0, 0);
            for query in 0..context {
                let own = query / 8;
                expected.0 += query % 8 + 1 + own.min(2) * 8;
                expected.1 += own;
            }
            let (keys, scores) = attended(&model, context);
            let context = context as f64;
            assert!((keys * context - expected.0 as f64).abs() < 1e-6);
            assert!((scores * context - expected.1 as f64).abs() < 1e-6);
        }
    }
}
