//! Which backends this binary was built with, and how to run on one of them. No other file names a backend.

use rwkvx_kernels::KernelBackend;

/// A backend compiled into this binary, fastest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum BackendName {
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

/// Work that runs on any backend.
pub(crate) trait Task {
    /// What it gives.
    type Output;

    /// Does it on `B`.
    fn run<B: KernelBackend>(self, device: B::Device) -> Self::Output;
}

impl BackendName {
    /// The fastest one compiled in.
    pub(crate) fn fastest() -> Option<Self> {
        use clap::ValueEnum;
        Self::value_variants().first().copied()
    }

    /// Runs `task` on this backend's default device.
    pub(crate) fn run<T: Task>(self, task: T) -> T::Output {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda => on_default_device::<burn::backend::Cuda, T>(task),
            #[cfg(feature = "vulkan")]
            Self::Vulkan => on_default_device::<burn::backend::Vulkan, T>(task),
            #[cfg(all(feature = "wgpu", not(feature = "vulkan")))]
            Self::Wgpu => on_default_device::<burn::backend::Wgpu, T>(task),
            #[cfg(feature = "flex")]
            Self::Flex => on_default_device::<burn::backend::Flex, T>(task),
            #[cfg(feature = "ndarray")]
            Self::Ndarray => on_default_device::<burn::backend::NdArray, T>(task),
        }
    }
}

fn on_default_device<B: KernelBackend, T: Task>(task: T) -> T::Output {
    task.run::<B>(B::Device::default())
}
