//! NVRTC, NVIDIA's run-time compiler: CUDA C++ to machine code, without a GPU or a driver.

use std::ffi::{CStr, CString};

use cubecl::cuda::install;
use cudarc::nvrtc::{result, sys};

/// What `ptxas` reports of a kernel; bytes and registers are per thread, shared memory per block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) registers: u32,
    pub(crate) static_shared: usize,
    pub(crate) stack: usize,
    pub(crate) spill_stores: usize,
    pub(crate) spill_loads: usize,
}

/// Whether the library and the headers are there; the error says how to get them.
pub(crate) fn available() -> Result<(), String> {
    const REMEDY: &str = "run `scripts/nvrtc`";
    // SAFETY: only looks the library up.
    if !unsafe { sys::is_culib_present() } {
        return Err(format!("NVRTC cannot be loaded: {REMEDY}"));
    }
    let headers = install::cuda_path().map(|path| path.join("include/cuda_runtime.h"));
    match headers {
        Some(path) if path.exists() => Ok(()),
        _ => Err(format!("the CUDA headers are missing: {REMEDY}")),
    }
}

/// Compiles for a real architecture (`sm_90a`), so that `ptxas` runs too, with the options of CubeCL's CUDA runtime. The error is the
/// compiler's log.
pub(crate) fn compile(source: &str, architecture: &str) -> Result<Usage, String> {
    let source = CString::new(source).map_err(|e| e.to_string())?;
    let options = [
        format!("--gpu-architecture={architecture}"),
        format!("--include-path={}", install::include_path().display()),
        format!("--include-path={}", install::cccl_include_path().display()),
        "-lineinfo".into(),
        "--ptxas-options=-v".into(),
    ];
    let program = result::create_program(&source, None).map_err(|e| format!("NVRTC: {e}"))?;
    // SAFETY: `program` is live until `destroy_program`, and `source` outlives it.
    unsafe {
        let compiled = result::compile_program(program, &options);
        let log = result::get_program_log(program).map_err(|e| format!("NVRTC: {e}"));
        result::destroy_program(program).map_err(|e| format!("NVRTC: {e}"))?;
        let log = CStr::from_ptr(log?.as_ptr()).to_string_lossy().into_owned();
        match compiled {
            Ok(()) => usage(&log).ok_or(format!("no report of ptxas in the log: {log}")),
            Err(_) => Err(log),
        }
    }
}

/// Reads `ptxas -v`:
///
/// ```text
///     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
/// ptxas info    : Used 72 registers, used 1 barriers, 4096 bytes smem
/// ```
///
/// Device functions that are not inlined report a stack of their own, so the largest counts.
fn usage(log: &str) -> Option<Usage> {
    let mut found = Usage::default();
    let (mut frames, mut registers) = (false, false);
    for line in log.lines() {
        let before = |unit: &str| {
            line.split(", ")
                .find_map(|part| part.trim_end().strip_suffix(unit))
                .and_then(|part| part.split_whitespace().last())
                .and_then(|number| number.parse::<usize>().ok())
        };
        if let Some(stack) = before("bytes stack frame") {
            frames = true;
            found.stack = found.stack.max(stack);
            found.spill_stores += before("bytes spill stores")?;
            found.spill_loads += before("bytes spill loads")?;
        }
        if let Some(used) = before("registers") {
            registers = true;
            found.registers = found.registers.max(used as u32);
            found.static_shared += before("bytes smem").unwrap_or(0);
        }
    }
    (frames && registers).then_some(found)
}

#[test]
fn a_report_of_ptxas_is_read_in_full() {
    let log = "ptxas info    : 0 bytes gmem\n\
        ptxas info    : Compiling entry function 'f' for 'sm_90a'\n\
        ptxas info    : Function properties for f\n    \
        24 bytes stack frame, 16 bytes spill stores, 12 bytes spill loads\n\
        ptxas info    : Used 72 registers, used 1 barriers, 24 bytes cumulative stack size, 4096 bytes smem\n\
        ptxas info    : Compile time = 0.000 ms\n";
    let expected = Usage {
        registers: 72,
        static_shared: 4096,
        stack: 24,
        spill_stores: 16,
        spill_loads: 12,
    };
    assert_eq!(usage(log), Some(expected));
    assert_eq!(usage("ptxas info    : 0 bytes gmem\n"), None);
}
