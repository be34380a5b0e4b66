//! Kernels with one fault each, which the guard must find.

use cubecl::prelude::*;

use crate::guard::{Architecture, GuardDevice, GuardRuntime, take_launched};
use crate::report::faults;

/// 256 KiB, more than any of the architectures has.
#[cube(launch)]
fn takes_too_much_shared_memory(y: &mut Array<f32>) {
    let mut shared = SharedMemory::<f32>::new(65536usize);
    shared[UNIT_POS as usize] = y[UNIT_POS as usize];
    sync_cube();
    y[UNIT_POS as usize] = shared[(UNIT_POS + 1) as usize];
}

/// Registers cannot be indexed at run time.
#[cube(launch)]
fn keeps_an_array_in_local_memory(y: &mut Array<f32>) {
    let mut array = Array::<f32>::new(64usize);
    for i in 0..y.len() {
        array[i % 64] += y[i];
    }
    y[0] = array[y.len() % 64];
}

#[cube(launch)]
fn cannot_be_expanded(y: &mut Array<f32>, #[comptime] tile: usize) {
    comptime!(assert!(tile == 16, "no such tile"));
    y[0] = 0.0;
}

#[cube(launch)]
fn adds_one(y: &mut Array<f32>) {
    y[UNIT_POS as usize] += 1.0;
}

/// The faults of the kernel that `launch` launches, on every architecture.
fn found(
    launch: impl Fn(&ComputeClient<GuardRuntime>, CubeCount, CubeDim, ArrayArg<GuardRuntime>),
) -> Vec<String> {
    Architecture::ALL
        .into_iter()
        .flat_map(|architecture| {
            let device = GuardDevice(architecture);
            let client = GuardRuntime::client(&device);
            let buffer = client.empty(1024);
            // SAFETY: nothing is executed.
            let y = unsafe { ArrayArg::from_raw_parts(buffer, 256) };
            launch(&client, CubeCount::Static(1, 1, 1), CubeDim::new_1d(256), y);
            let launched = take_launched(&device);
            assert_eq!(launched.len(), 1);
            faults(&launched[0])
        })
        .collect()
}

#[track_caller]
fn assert_all(found: Vec<String>, start: &str) {
    assert_eq!(found.len(), Architecture::ALL.len(), "{found:?}");
    assert!(found.iter().all(|f| f.starts_with(start)), "{found:?}");
}

#[test]
fn a_sound_kernel_has_no_faults() {
    let found = found(adds_one::launch);
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn too_much_shared_memory_is_a_fault() {
    let found = found(takes_too_much_shared_memory::launch);
    assert_all(found, "takes 262144 bytes of shared memory");
}

#[test]
fn an_array_in_local_memory_is_a_fault() {
    let found = found(keeps_an_array_in_local_memory::launch);
    assert_all(found, "keeps 256 bytes");
}

#[test]
fn a_kernel_that_cannot_be_expanded_is_a_fault() {
    let found = found(|client, count, dim, y| cannot_be_expanded::launch(client, count, dim, y, 7));
    assert_all(found, "does not compile: expansion panicked: no such tile");
}

#[test]
fn a_source_that_is_no_cuda_is_an_error_with_the_log() {
    let error = crate::nvrtc::compile("__global__ void f() { nothing(); }", "sm_80");
    assert!(error.unwrap_err().contains("\"nothing\" is undefined"));
}
