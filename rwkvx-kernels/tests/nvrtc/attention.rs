//! Uses of the sparse attention.

use burn::backend::Autodiff;
use burn::tensor::{DType, Tensor, backend::Backend};
use rwkvx_kernels::{ChunkTopK, KvCache, sparse_attention};

use crate::cases::{Case, Guard};
use crate::guard::GuardDevice;

type Train = Autodiff<Guard>;

pub(crate) fn cases(dtype: DType, head_size: usize, cases: &mut Vec<Case>) {
    let mut add = |what: &str, run: Box<dyn Fn(&GuardDevice) + Sync>| {
        let name = format!("attention {what}, {}, N{head_size}", dtype.name());
        cases.push(Case { name, run });
    };
    for (chunk_size, top_k) in [(2048, 3), (128, 8)] {
        let shape = ChunkTopK { chunk_size, top_k };
        let dims = [1, 65536, 12, head_size];
        add(
            &format!("backward, {chunk_size} x {top_k}"),
            Box::new(move |device| {
                let [query, key, value] = qkv::<Train>(dims, dtype, device);
                let output = sparse_attention(query, key, value, shape);
                output.cast(DType::F32).sum().backward();
            }),
        );
        add(
            &format!("prefill in pieces and decoding, {chunk_size} x {top_k}"),
            Box::new(move |device| {
                let [batch, _, heads, _] = dims;
                let options = (device, dtype);
                let mut cache = KvCache::<Guard>::new(batch, heads, head_size, shape, options);
                for time in [8192, 1000, 1] {
                    let [query, key, value] = qkv([batch, time, heads, head_size], dtype, device);
                    cache.attend(query, key, value);
                }
            }),
        );
    }
}

fn qkv<B: Backend<Device = GuardDevice>>(
    dims: [usize; 4],
    dtype: DType,
    device: &GuardDevice,
) -> [Tensor<B, 4>; 3] {
    std::array::from_fn(|_| Tensor::empty(dims, (device, dtype)).require_grad())
}
