//! Compiles every CUDA kernel that the operators launch, without a GPU, and judges what the compiler reports.
//!
//! `scripts/nvrtc` fetches the compiler and runs this. `NVRTC_REPORT=FILE.json` writes the table for programs too.

mod attention;
mod cases;
mod cross_entropy;
mod faulty;
mod guard;
mod layers;
mod nvrtc;
mod report;
mod sample;
mod time_mix;

use std::sync::Arc;

use cases::Case;
use guard::{Architecture, GuardDevice, take_launched};
use report::Row;

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
            if !rows.iter().any(|row| Arc::ptr_eq(&row.kernel, &kernel)) {
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
    let cases = cases::all();
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
