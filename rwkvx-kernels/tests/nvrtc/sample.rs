//! The choice of tokens, with a vocabulary that is loaded four words at a time and one that is not.

use burn::tensor::{DType, Tensor};
use rwkvx_kernels::{Draw, sample};

use crate::cases::{Case, Guard};
use crate::guard::GuardDevice;

const ROWS: usize = 64;

/// Adds the choice by logits of `dtype`, with and without counts.
pub(crate) fn cases(dtype: DType, cases: &mut Vec<Case>) {
    for vocab in [65536, 4099] {
        for (what, counted) in [("with penalties", true), ("without penalties", false)] {
            let name = format!("sample {what}, {}, V{vocab}", dtype.name());
            let run = move |device: &GuardDevice| {
                // The contents are never looked at.
                let logits = Tensor::<Guard, 2>::empty([ROWS, vocab], (device, dtype));
                let counts = Tensor::<Guard, 2>::empty([ROWS, vocab], (device, DType::F32));
                let draw = Draw {
                    temperature: 1.0,
                    top_p: 0.7,
                    top_k: 100,
                    presence_penalty: 0.1,
                    frequency_penalty: 0.1,
                    penalty_decay: 0.996,
                    uniform: 0,
                };
                sample(logits, counted.then_some(counts), &[Some(draw); ROWS]);
            };
            let run = Box::new(run);
            cases.push(Case { name, run });
        }
    }
}
