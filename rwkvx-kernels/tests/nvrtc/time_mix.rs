//! What a time mix does element by element, at C = 768 and at a size that leaves nothing to load four at a time.

use burn::backend::Autodiff;
use burn::tensor::{DType, Tensor, backend::Backend};
use rwkvx_kernels::{
    HeadInputs, KernelBackend, KeyInputs, OutputInputs, ShiftInputs, ValueInputs, Values,
    gate_output, mix_heads, mix_value, norm_and_shift, prepare_keys, token_shift,
};

use crate::cases::{Case, Guard};
use crate::guard::GuardDevice;

type Train = Autodiff<Guard>;

/// Adds every operator, forward and backward, with sequences of `dtype` and parameters in f32.
pub(crate) fn cases(dtype: DType, cases: &mut Vec<Case>) {
    for (heads, size) in [(12, 64), (3, 5)] {
        let inputs = move |device: &GuardDevice| Inputs {
            rows: 8 * 512,
            heads,
            size,
            dtype,
            device: device.clone(),
        };
        let mut add = |what: &str, run: Box<dyn Fn(&GuardDevice) + Sync>| {
            let name = format!("time mix {what}, {}, H{heads} N{size}", dtype.name());
            cases.push(Case { name, run });
        };
        add(
            "forward",
            Box::new(move |device| {
                inputs(device).outputs::<Guard>();
            }),
        );
        add(
            "backward",
            Box::new(move |device| {
                let sums = inputs(device).outputs::<Train>().into_iter();
                let loss = sums.map(|output| output.cast(DType::F32).sum());
                let loss = loss.reduce(|a, b| a + b).expect("there are outputs");
                loss.backward();
            }),
        );
        add(
            "single tokens",
            Box::new(move |device| inputs(device).single_tokens()),
        );
    }
}

/// Makes inputs whose contents are never looked at.
struct Inputs {
    rows: usize,
    heads: usize,
    size: usize,
    dtype: DType,
    device: GuardDevice,
}

impl Inputs {
    fn sequence<B: Backend<Device = GuardDevice>>(&self) -> Tensor<B, 2> {
        let dims = [self.rows, self.heads * self.size];
        Tensor::empty(dims, (&self.device, self.dtype)).require_grad()
    }

    fn parameter<B: Backend<Device = GuardDevice>>(&self) -> Tensor<B, 1> {
        let dims = [self.heads * self.size];
        Tensor::empty(dims, (&self.device, DType::F32)).require_grad()
    }

    /// Outputs of all operators.
    fn outputs<B: KernelBackend<Device = GuardDevice>>(&self) -> Vec<Tensor<B, 2>> {
        let x = self
            .sequence::<B>()
            .reshape([8, self.rows / 8, self.heads * self.size]);
        let [one] = token_shift(x.clone(), None, [self.parameter()]);
        let six = token_shift(x, None, [(); 6].map(|()| self.parameter()));
        let keys = prepare_keys(KeyInputs {
            decay: self.sequence(),
            rate: self.sequence(),
            key: self.sequence(),
            decay_bias: self.parameter(),
            rate_bias: self.parameter(),
            removal_scale: self.parameter(),
            rate_scale: self.parameter(),
            head_size: self.size,
        });
        let value = mix_value(ValueInputs {
            value: self.sequence(),
            first: self.sequence(),
            amount: self.sequence(),
            amount_bias: self.parameter(),
        });
        let output = gate_output(OutputInputs {
            output: self.sequence(),
            receptance: self.sequence(),
            key: self.sequence(),
            value: self.sequence(),
            gate: self.sequence(),
            weight: self.parameter(),
            bias: self.parameter(),
            bonus: self.parameter().reshape([self.heads, self.size]),
        });
        let keys = [keys.log_decay, keys.key, keys.removal, keys.replacement];
        six.into_iter()
            .chain(keys)
            .chain([one, value, output])
            .collect()
    }

    /// Every row is the only token of a text.
    fn single_tokens(&self) {
        let channels = self.heads * self.size;
        norm_and_shift(ShiftInputs {
            x: self.sequence::<Guard>().reshape([self.rows, 1, channels]),
            weight: self.parameter(),
            bias: self.parameter(),
            carry: Some(self.sequence()),
            amounts: [(); 6].map(|()| self.parameter()),
        });
        let mixed = Values::Mixed(ValueInputs {
            value: self.sequence(),
            first: self.sequence(),
            amount: self.sequence(),
            amount_bias: self.parameter(),
        });
        for values in [Values::Projected(self.sequence()), mixed] {
            mix_heads::<Guard>(HeadInputs {
                receptance: self.sequence(),
                keys: KeyInputs {
                    decay: self.sequence(),
                    rate: self.sequence(),
                    key: self.sequence(),
                    decay_bias: self.parameter(),
                    rate_bias: self.parameter(),
                    removal_scale: self.parameter(),
                    rate_scale: self.parameter(),
                    head_size: self.size,
                },
                values,
                gate: self.sequence(),
                weight: self.parameter(),
                bias: self.parameter(),
                bonus: self.parameter().reshape([self.heads, self.size]),
                state: None,
                batch: self.rows,
            });
        }
    }
}
