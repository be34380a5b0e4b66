//! The one place where backends have names: which of them are compiled in, and how to run on one.

use clap::ValueEnum;
use rwkvx_kernels::KernelBackend;

use crate::Error;

/// The backends compiled in, the preferred one first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendName {
    /// NVIDIA GPUs
    #[cfg(feature = "cuda")]
    Cuda,
    /// GPUs through Vulkan
    #[cfg(feature = "vulkan")]
    Vulkan,
    /// GPUs through WebGPU
    #[cfg(all(feature = "wgpu", not(feature = "vulkan")))]
    Wgpu,
    /// CPU
    #[cfg(feature = "flex")]
    Flex,
    /// CPU, by ndarray
    #[cfg(feature = "ndarray")]
    Ndarray,
}

impl BackendName {
    /// The backend used where none is asked for.
    pub fn preferred() -> Self {
        Self::value_variants()[0]
    }

    /// Whether its tensors lie in the memory of the program.
    pub fn is_cpu(self) -> bool {
        match self {
            #[cfg(feature = "flex")]
            Self::Flex => true,
            #[cfg(feature = "ndarray")]
            Self::Ndarray => true,
            #[cfg(any(feature = "cuda", feature = "vulkan", feature = "wgpu"))]
            _ => false,
        }
    }
}

/// Work that runs on any backend.
pub trait Task {
    /// What it gives.
    type Output;

    /// Does it on `B`.
    fn run<B: KernelBackend>(self, device: &B::Device) -> Self::Output;
}

/// Runs a task on the default device of the backend asked for, else of the preferred one.
///
/// # Errors
/// If no device of a GPU backend answers.
pub fn run<T: Task>(name: Option<BackendName>, task: T) -> Result<T::Output, Error> {
    match name.unwrap_or_else(BackendName::preferred) {
        #[cfg(feature = "cuda")]
        BackendName::Cuda => {
            device::find_cuda_driver()?;
            device::run::<burn::backend::Cuda, T>("cuda", task)
        }
        #[cfg(feature = "vulkan")]
        BackendName::Vulkan => device::run::<burn::backend::Vulkan, T>("vulkan", task),
        #[cfg(all(feature = "wgpu", not(feature = "vulkan")))]
        BackendName::Wgpu => device::run::<burn::backend::Wgpu, T>("wgpu", task),
        #[cfg(feature = "flex")]
        BackendName::Flex => Ok(task.run::<burn::backend::Flex>(&Default::default())),
        #[cfg(feature = "ndarray")]
        BackendName::Ndarray => Ok(task.run::<burn::backend::NdArray>(&Default::default())),
    }
}

/// What GPU backends need before their first use.
#[cfg(any(feature = "cuda", feature = "vulkan", feature = "wgpu"))]
mod device {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use rwkvx_kernels::KernelBackend;

    use super::Task;
    use crate::Error;

    /// Runs a task on the default device of `B`, once that device has answered.
    pub(super) fn run<B: KernelBackend, T: Task>(
        name: &'static str,
        task: T,
    ) -> Result<T::Output, Error> {
        abort_when_its_thread_panics();
        let device = B::Device::default();
        // Burn panics where there is no device or driver.
        match catch_unwind(AssertUnwindSafe(|| B::sync(&device))) {
            Ok(Ok(())) => Ok(task.run::<B>(&device)),
            _ => Err(Error::Backend {
                name,
                reason: "no device answers".to_owned(),
            }),
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
    pub(super) fn find_cuda_driver() -> Result<(), Error> {
        let library = if cfg!(windows) {
            "nvcuda.dll"
        } else {
            "libcuda.so.1"
        };
        // SAFETY: the driver's library has no initialisers that touch this program; nothing is called in it.
        match unsafe { libloading::Library::new(library) } {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Backend {
                name: "cuda",
                reason: format!("there is no NVIDIA driver ({library} is not found)"),
            }),
        }
    }
}
