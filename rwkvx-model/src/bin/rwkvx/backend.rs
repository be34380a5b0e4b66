//! The one place where backends have names.

use clap::ValueEnum;
use rwkvx_kernels::KernelBackend;

#[cfg(not(any(
    feature = "cuda",
    feature = "vulkan",
    feature = "wgpu",
    feature = "flex",
    feature = "ndarray"
)))]
compile_error!("enable a backend feature: cuda, vulkan, wgpu, flex or ndarray");

/// The backends compiled in, the preferred one first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendName {
    #[cfg(feature = "cuda")]
    Cuda,
    #[cfg(feature = "vulkan")]
    Vulkan,
    #[cfg(feature = "wgpu")]
    Wgpu,
    #[cfg(feature = "flex")]
    Flex,
    #[cfg(feature = "ndarray")]
    Ndarray,
}

/// Something to do on any backend.
pub(crate) trait Task {
    /// Does it on this one.
    fn run<B: KernelBackend>(self, device: &B::Device) -> anyhow::Result<()>;
}

/// Runs a task on the backend asked for, else on the preferred one.
pub(crate) fn run(name: Option<BackendName>, task: impl Task) -> anyhow::Result<()> {
    match name.unwrap_or(BackendName::value_variants()[0]) {
        #[cfg(feature = "cuda")]
        BackendName::Cuda => {
            device::find_cuda_driver()?;
            device::run::<burn::backend::Cuda>("cuda", task)
        }
        #[cfg(feature = "vulkan")]
        BackendName::Vulkan => device::run::<burn::backend::Vulkan>("vulkan", task),
        #[cfg(feature = "wgpu")]
        BackendName::Wgpu => device::run::<burn::backend::Wgpu>("wgpu", task),
        #[cfg(feature = "flex")]
        BackendName::Flex => task.run::<burn::backend::Flex>(&Default::default()),
        #[cfg(feature = "ndarray")]
        BackendName::Ndarray => task.run::<burn::backend::NdArray>(&Default::default()),
    }
}

/// What GPU backends need before their first use.
#[cfg(any(feature = "cuda", feature = "vulkan", feature = "wgpu"))]
mod device {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use rwkvx_kernels::KernelBackend;

    use super::Task;

    /// Runs a task on the default device of `B`, once that device has answered.
    pub(super) fn run<B: KernelBackend>(name: &str, task: impl Task) -> anyhow::Result<()> {
        abort_when_its_thread_panics();
        let device = B::Device::default();
        // Burn panics where there is no device or driver.
        match catch_unwind(AssertUnwindSafe(|| B::sync(&device))) {
            Ok(Ok(())) => task.run::<B>(&device),
            _ => anyhow::bail!(
                "--backend {name}: no device answers; install its driver or choose another backend"
            ),
        }
    }

    /// CubeCL runs a device on a thread of its own. When that thread panics, reads go on returning stale data, so the
    /// program must not.
    fn abort_when_its_thread_panics() {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            print(panic);
            if std::thread::current()
                .name()
                .is_some_and(|name| name.starts_with("DSD-"))
            {
                eprintln!("error: the device failed; try --backend with another name");
                std::process::abort();
            }
        }));
    }

    /// The CUDA backend panics where there is no driver; this is the error to give instead.
    #[cfg(feature = "cuda")]
    pub(super) fn find_cuda_driver() -> anyhow::Result<()> {
        let library = if cfg!(windows) {
            "nvcuda.dll"
        } else {
            "libcuda.so.1"
        };
        // SAFETY: the driver's library has no initialisers that touch this program; nothing is called in it.
        match unsafe { libloading::Library::new(library) } {
            Ok(_) => Ok(()),
            Err(_) => anyhow::bail!(
                "--backend cuda: no NVIDIA driver ({library} is not found); install it or choose another backend"
            ),
        }
    }
}
