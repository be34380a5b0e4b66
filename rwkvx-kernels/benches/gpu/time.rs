//! How long calls take, and what they compute.

use std::path::Path;
use std::time::Instant;

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use safetensors::tensor::{Dtype, TensorView};

use crate::check::numbers;

/// Calls before the first measurement, beside the one that is timed roughly.
const WARM_UP: usize = 3;
/// One measurement lasts at least this long, in seconds, so that waiting for the device weighs little.
const SHORTEST: f64 = 0.01;
/// But holds no more calls than this.
const MOST_CALLS: f64 = 1000.0;
/// All measurements of a call together last about as long at most, in seconds,
const LONGEST: f64 = 1.0;
/// but there are so many at least.
const FEWEST_MEASUREMENTS: usize = 5;
/// As many tokens of a sequence are written for comparison as hold about this many numbers.
const NUMBERS_KEPT: usize = 1 << 18;

/// Seconds per call, each a mean over as many calls as fill a measurement.
pub(crate) fn measure<B: Backend>(
    device: &B::Device,
    measurements: usize,
    mut call: impl FnMut(),
) -> Vec<f64> {
    seconds::<B>(device, WARM_UP, &mut call);
    let one = seconds::<B>(device, 1, &mut call);
    let calls = (SHORTEST / one).clamp(1.0, MOST_CALLS) as usize;
    let most = (LONGEST / (calls as f64 * one)) as usize;
    let measurements = measurements.min(most.max(FEWEST_MEASUREMENTS));
    (0..measurements)
        .map(|_| seconds::<B>(device, calls, &mut call))
        .collect()
}

/// Seconds per call, a mean over `calls`.
pub(crate) fn seconds<B: Backend>(
    device: &B::Device,
    calls: usize,
    call: &mut impl FnMut(),
) -> f64 {
    let start = Instant::now();
    (0..calls).for_each(|_| call());
    B::sync(device).expect("the device computes");
    start.elapsed().as_secs_f64() / calls as f64
}

/// Some tokens of a sequence `[batch, time, heads, head_size]`, evenly spread from the first to the last.
pub(crate) fn kept_rows<B: Backend>(sequence: Tensor<B, 4>) -> Tensor<B, 4> {
    let [batch, time, heads, head_size] = sequence.dims();
    let last = time.min((NUMBERS_KEPT / (batch * heads * head_size)).max(1)) - 1;
    let rows: Vec<i64> = (0..=last)
        .map(|i| ((time - 1) * i / last.max(1)) as i64)
        .collect();
    let device = sequence.device();
    let rows = Tensor::<B, 1, Int>::from_data(TensorData::from(&rows[..]), &device);
    sequence.select(1, rows)
}

/// Writes results to be compared, in f32.
pub(crate) fn write<B: Backend>(path: &Path, results: Vec<(&'static str, Tensor<B, 4>)>) {
    let results: Vec<_> = results
        .into_iter()
        .map(|(name, x)| (name, Stored::of(x)))
        .collect();
    let views = results.iter().map(|(name, stored)| (name, stored.view()));
    safetensors::serialize_to_file(views, None, path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// A tensor as it is written, in f32.
struct Stored {
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Stored {
    fn of<B: Backend>(tensor: Tensor<B, 4>) -> Self {
        let shape = tensor.dims().to_vec();
        let bytes = numbers(tensor).into_iter().flat_map(f32::to_le_bytes);
        Self {
            shape,
            bytes: bytes.collect(),
        }
    }

    fn view(&self) -> TensorView<'_> {
        TensorView::new(Dtype::F32, self.shape.clone(), &self.bytes)
            .expect("as many bytes as the shape says")
    }
}
