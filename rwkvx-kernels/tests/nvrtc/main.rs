//! Compiles every CUDA kernel that the operators launch, without a GPU, and judges what the compiler reports.
//!
//! `scripts/nvrtc` fetches the compiler and runs this. `NVRTC_REPORT=FILE.json` writes the table for programs too.

mod faulty;
mod guard;
mod nvrtc;
mod report;

use burn::backend::Autodiff;
use burn::tensor::{DType, Tensor, backend::Backend};
use rwkvx_kernels::{Wkv7Inputs, Wkv7Output, wkv7};

use guard::{Architecture, GuardDevice, GuardRuntime, take_launched};
use report::Row;

type Guard = burn_cubecl::CubeBackend<GuardRuntime, f32, i32, u8>;
type Train = Autodiff<Guard>;

/// One use of an operator.
struct Case {
    name: String,
    run: Box<dyn Fn(&GuardDevice) + Sync>,
}

/// Every use for which the operators have a kernel of their own.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, dtype) in [
        ("f32", DType::F32),
        ("bf16", DType::BF16),
        ("f16", DType::F16),
    ] {
        for head_size in [32, 64, 128] {
            let mut add = |use_of: &str, run: Box<dyn Fn(&GuardDevice) + Sync>| {
                let name = format!("wkv7 {use_of}, {name}, N{head_size}");
                cases.push(Case { name, run });
            };
            add(
                "forward",
                Box::new(move |device| {
                    wkv7(inputs::<Guard>([4, 1024, 8, head_size], dtype, device));
                }),
            );
            add(
                "of one token",
                Box::new(move |device| {
                    wkv7(inputs::<Guard>([8, 1, 40, head_size], dtype, device));
                }),
            );
            for (use_of, dims) in [
                ("backward", [4, 1024, 8, head_size]),
                ("backward at a ragged length", [2, 1001, 8, head_size]),
                ("backward over one long sequence", [1, 65536, 12, head_size]),
            ] {
                add(
                    use_of,
                    Box::new(move |device| backward(inputs(dims, dtype, device))),
                );
            }
        }
    }
    cases
}

/// Sequences `[batch, time, heads, head_size]` of `dtype`, and a state in f32.
fn inputs<B: Backend<Device = GuardDevice>>(
    dims @ [batch, _, heads, head_size]: [usize; 4],
    dtype: DType,
    device: &GuardDevice,
) -> Wkv7Inputs<B> {
    let sequence = || Tensor::empty(dims, (device, dtype)).require_grad();
    Wkv7Inputs {
        receptance: sequence(),
        log_decay: sequence(),
        key: sequence(),
        value: sequence(),
        removal: sequence(),
        replacement: sequence(),
        // [batch, heads, value, key]
        state: Some(Tensor::empty([batch, heads, head_size, head_size], device).require_grad()),
    }
}

fn backward(inputs: Wkv7Inputs<Train>) {
    let Wkv7Output { output, state } = wkv7(inputs);
    (output.cast(DType::F32).sum() + state.sum()).backward();
}

/// Runs every case and returns the kernels launched, each once, and the names of the cases that launched none of ours.
fn compile_all(cases: &[Case], architecture: Architecture) -> (Vec<Row>, Vec<String>) {
    let device = GuardDevice(architecture);
    let (mut rows, mut without) = (Vec::<Row>::new(), Vec::new());
    for case in cases {
        (case.run)(&device);
        let launched = take_launched(&device);
        if launched.is_empty() {
            without.push(format!("{}: {}", architecture.name(), case.name));
        }
        for kernel in launched {
            if !rows.iter().any(|r| std::sync::Arc::ptr_eq(&r.kernel, &kernel)) {
                let case = case.name.clone();
                rows.push(Row { case, kernel });
            }
        }
    }
    (rows, without)
}

#[test]
fn every_kernel_compiles_to_sound_machine_code() {
    nvrtc::available().unwrap_or_else(|error| panic!("{error}"));
    let cases = cases();
    let (mut rows, mut without) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        let cases = &cases;
        let runs = Architecture::ALL.map(|a| scope.spawn(move || compile_all(cases, a)));
        for run in runs {
            let (more_rows, more_without) = run.join().expect("a case panicked");
            rows.extend(more_rows);
            without.extend(more_without);
        }
    });

    println!("{}", report::table(&rows));
    if let Some(path) = std::env::var_os("NVRTC_REPORT") {
        let json = format!("{:#}\n", report::json(&rows));
        std::fs::write(&path, json).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
    let mut faults: Vec<String> = without
        .into_iter()
        .map(|case| format!("{case}: launched no kernel of ours"))
        .collect();
    for row in &rows {
        for fault in report::faults(&row.kernel) {
            let (kernel, target) = (&row.kernel.name, row.kernel.architecture.name());
            faults.push(format!("{target}: {kernel} ({}) {fault}", row.case));
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}
