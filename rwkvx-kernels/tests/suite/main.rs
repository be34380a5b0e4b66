//! Tests of the operators against golden data, against plain recurrences and against themselves, on the CPU backends and, with the
//! features `cuda` and `vulkan`, on a device.

mod attention_golden;
mod attention_properties;
mod cache;
mod contracts;
mod cross_entropy;
mod embedding;
#[cfg(all(feature = "vulkan", feature = "fusion"))]
mod fusion;
mod layer_norm;
mod oracle;
mod pointwise;
mod project;
mod sample;
mod single_tokens;
mod support;
mod teach_choice;
mod time_mix;
mod wkv7_golden;
mod wkv7_properties;

/// Without Burn's fusion, whether its feature is on or not.
#[cfg(feature = "vulkan")]
type Vulkan = burn_cubecl::CubeBackend<burn::backend::wgpu::WgpuRuntime, f32, i32, u8>;

/// Instantiates generic test functions for every combination of CPU backend and body; where a device is compiled in, for that
/// alone, since all of them together take minutes to compile. (`nvrtc` brings CUDA, and runs nothing on it.)
macro_rules! on_all_bodies {
    ($($test:ident),+ $(,)?) => {
        #[cfg(not(any(feature = "cuda", feature = "vulkan")))]
        mod flex {
            $(#[test] fn $test() { super::$test::<crate::support::Native<burn_flex::Flex>>() })+
        }
        #[cfg(not(any(feature = "cuda", feature = "vulkan")))]
        mod ndarray {
            $(#[test] fn $test() { super::$test::<crate::support::Native<burn_ndarray::NdArray<f32>>>() })+
        }
        #[cfg(all(feature = "cuda", not(feature = "nvrtc")))]
        mod cuda {
            $(#[test] fn $test() { super::$test::<crate::support::Native<burn::backend::Cuda>>() })+
        }
        #[cfg(feature = "vulkan")]
        mod vulkan {
            $(#[test] fn $test() { super::$test::<crate::support::Native<crate::Vulkan>>() })+
        }
        #[cfg(not(any(feature = "cuda", feature = "vulkan")))]
        mod flex_reference {
            $(#[test] fn $test() { super::$test::<crate::support::Defined<burn_flex::Flex>>() })+
        }
        #[cfg(not(any(feature = "cuda", feature = "vulkan")))]
        mod ndarray_reference {
            $(#[test] fn $test() { super::$test::<crate::support::Defined<burn_ndarray::NdArray<f32>>>() })+
        }
    };
}
pub(crate) use on_all_bodies;
