//! What is asked of a kernel, and the table of all of them.

use std::fmt::Write;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::guard::Kernel;

/// Registers of a multiprocessor, all of which one block may take.
const REGISTERS: u32 = 64 * 1024;

/// Bytes per thread that any kernel may spill: far from the limit of registers, ptxas parks up to four numbers if that lets another block in.
const PARKED: usize = 16;

/// How often, over the code, it may read back each of them.
const READ_BACK: usize = 4;

/// Kernels that may spill more, by name, threads and bytes. The plain backward pass holds 32, 64 or 128 numbers of the state's gradient per
/// thread; on CUDA the tiled one takes its place in bf16.
const SPILLING: [(&str, u32, usize); 3] = [
    ("wkv7_backward_f_", 64, 32),
    ("wkv7_backward_f_", 128, 128),
    ("wkv7_backward_f_", 256, 1600),
];

/// A kernel and the case that launched it first.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) case: String,
    pub(crate) kernel: Arc<Kernel>,
}

/// Why the kernel would fail or crawl on a device; empty is good.
pub(crate) fn faults(kernel: &Kernel) -> Vec<String> {
    let usage = match &kernel.usage {
        Ok(usage) => usage,
        Err(error) => return vec![format!("does not compile: {error}")],
    };
    let mut faults = Vec::new();
    let (shared, allowed) = (
        usage.static_shared + kernel.dynamic_shared,
        kernel.architecture.max_shared(),
    );
    if shared > allowed {
        faults.push(format!(
            "takes {shared} bytes of shared memory of {allowed}"
        ));
    }
    let allowed = SPILLING
        .iter()
        .find(|(name, threads, _)| kernel.name.starts_with(name) && kernel.threads == *threads)
        .map_or(PARKED, |(.., bytes)| *bytes);
    if usage.spill_stores > allowed || usage.spill_loads > READ_BACK * allowed {
        faults.push(format!(
            "spills registers: {} bytes stored, {} loaded",
            usage.spill_stores, usage.spill_loads
        ));
    }
    if usage.stack > allowed {
        faults.push(format!(
            "keeps {} bytes per thread in local memory",
            usage.stack
        ));
    }
    // Registers are handed out to whole warps, eight per thread at a time.
    let registers = usage.registers.next_multiple_of(8) * kernel.threads.next_multiple_of(32);
    if registers > REGISTERS {
        faults.push(format!("takes {registers} registers of {REGISTERS}"));
    }
    faults
}

/// A Markdown table.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut table = String::from(
        "| kernel | first launched by | for | threads | registers | shared B, static + dynamic | spilled B, stored / loaded | stack B |\n\
         | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for Row { case, kernel } in rows {
        let name = &kernel.name;
        let architecture = kernel.architecture.name();
        let threads = kernel.threads;
        let figures = match &kernel.usage {
            Ok(u) => format!(
                "{} | {} + {} | {} / {} | {}",
                u.registers,
                u.static_shared,
                kernel.dynamic_shared,
                u.spill_stores,
                u.spill_loads,
                u.stack
            ),
            Err(_) => "failed | | | ".into(),
        };
        let _ = writeln!(
            table,
            "| {name} | {case} | {architecture} | {threads} | {figures} |"
        );
    }
    table
}

/// The same for programs.
pub(crate) fn json(rows: &[Row]) -> Value {
    rows.iter()
        .map(|Row { case, kernel }| {
            let usage = kernel.usage.as_ref().ok();
            json!({
                "kernel": kernel.name,
                "case": case,
                "architecture": kernel.architecture.name(),
                "threads": kernel.threads,
                "registers": usage.map(|u| u.registers),
                "static_shared_bytes": usage.map(|u| u.static_shared),
                "dynamic_shared_bytes": kernel.dynamic_shared,
                "spill_store_bytes": usage.map(|u| u.spill_stores),
                "spill_load_bytes": usage.map(|u| u.spill_loads),
                "stack_bytes": usage.map(|u| u.stack),
                "faults": faults(kernel),
            })
        })
        .collect()
}
