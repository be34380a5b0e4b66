//! What a time mix does around its matrix products and its recurrence, element by element:
//!
//! * [`token_shift`] mixes every token with the one before it, once per projection;
//! * [`prepare_keys`] turns projections into what the recurrence takes;
//! * [`mix_value`] moves the values towards those of layer 0;
//! * [`gate_output`] norms what the recurrence gives, adds the current token's bonus and gates it;
//!
//! and two that put them together with their neighbours, which a single token of each text goes through at once on a GPU: [`norm_and_shift`], from the
//! stream to the projections, and [`mix_heads`], from there to the output projection.
//!
//! In tensor operations each is a dozen passes over memory and more in the gradient. Written by hand each is one pass, which
//! reads its inputs once and writes its outputs once; the gradient saves nothing but the inputs. The traffic stated with each
//! operator counts passes over a tensor of `[rows, channels]`; vectors and statistics are left out.
//!
//! Sequences are `[rows, channels]` with `rows = batch * time` and the channels of a head side by side. The vectors, which
//! are parameters, may have another float type than the sequences.

pub(crate) mod autodiff;
#[cfg(feature = "cpu")]
pub(crate) mod cpu;
#[cfg(feature = "cube")]
pub(crate) mod cube;
mod heads;
mod keys;
mod output;
pub(crate) mod reference;
mod shift;
mod value;

pub use heads::{HeadInputs, HeadOutputs, Values, mix_heads};
pub use keys::{KeyInputs, Keys, prepare_keys};
pub use output::{OutputInputs, gate_output};
pub use shift::{ShiftBackward, ShiftGrads, ShiftInputs, Shifted, norm_and_shift, token_shift};
pub use value::{ValueInputs, mix_value};

use burn::tensor::{Tensor, backend::Backend};

/// A backend's own backward passes for training, hooked into the gradient graph by `Autodiff`.
///
/// Each takes the inputs of its operator and the gradients of the outputs, and gives the gradients of the inputs, in a structure of
/// the same fields.
#[derive(Debug)]
pub struct TimeMixBackward<B: Backend> {
    /// Of [`token_shift`] without carry.
    pub token_shift: ShiftBackward<B>,
    /// Of [`prepare_keys`].
    pub prepare_keys: fn(KeyInputs<B>, Keys<B>) -> KeyInputs<B>,
    /// Of [`mix_value`].
    pub mix_value: fn(ValueInputs<B>, Tensor<B, 2>) -> ValueInputs<B>,
    /// Of [`gate_output`].
    pub gate_output: fn(OutputInputs<B>, Tensor<B, 2>) -> OutputInputs<B>,
}
