//! Losses of rows of logits and their gradients, with a vocabulary that is loaded four words at a time and one that is not.

use burn::tensor::{DType, Int, Tensor};
use rwkvx_kernels::{cross_entropy_gradient, cross_entropy_rows};

use crate::cases::{Case, Guard};
use crate::guard::GuardDevice;

const ROWS: usize = 256;

/// Adds both passes over logits of `dtype`, the second in place and beside them.
pub(crate) fn cases(dtype: DType, cases: &mut Vec<Case>) {
    for vocab in [65536, 4099] {
        for (what, shared) in [("in place", false), ("beside the logits", true)] {
            let name = format!("cross entropy {what}, {}, V{vocab}", dtype.name());
            let run = move |device: &GuardDevice| {
                // The contents are never looked at.
                let logits = Tensor::<Guard, 2>::empty([ROWS, vocab], (device, dtype));
                let targets = Tensor::<Guard, 1, Int>::empty([ROWS], device);
                let shares = Tensor::<Guard, 1>::empty([ROWS], (device, DType::F32));
                let losses = cross_entropy_rows(logits.clone(), targets.clone());
                let other = shared.then(|| logits.clone());
                cross_entropy_gradient(logits, targets, losses, shares, 1e-4);
                drop(other);
            };
            let run = Box::new(run);
            cases.push(Case { name, run });
        }
    }
}
