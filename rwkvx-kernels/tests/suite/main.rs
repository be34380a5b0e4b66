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

/// Instantiates generic test functions for every combination of backend and body.
macro_rules! on_all_bodies {
    ($($test:ident),+ $(,)?) => {
        mod flex {
            $(#[test] fn $test() { super::$test::<crate::support::Native<burn_flex::Flex>>() })+
        }
        mod ndarray {
            $(#[test] fn $test() { super::$test::<crate::support::Native<burn_ndarray::NdArray<f32>>>() })+
        }
        #[cfg(feature = "cuda")]
        mod cuda {
            $(#[test] fn $test() { super::$test::<crate::support::Native<burn::backend::Cuda>>() })+
        }
        #[cfg(feature = "vulkan")]
        mod vulkan {
            $(#[test] fn $test() { super::$test::<crate::support::Native<crate::Vulkan>>() })+
        }
        mod flex_reference {
            $(#[test] fn $test() { super::$test::<crate::support::Defined<burn_flex::Flex>>() })+
        }
        mod ndarray_reference {
            $(#[test] fn $test() { super::$test::<crate::support::Defined<burn_ndarray::NdArray<f32>>>() })+
        }
    };
}
pub(crate) use on_all_bodies;
