//! The memory of CPU tensors as f32 slices.

use std::ops::Deref;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorPrimitive};

/// A backend whose tensors lie in this process's memory.
pub(crate) trait HostMemory: Backend {
    /// Row-major f32 values that keep their tensor alive.
    type Values: Deref<Target = [f32]> + Send + Sync;

    /// The values of a float tensor; copies only what is not row-major f32 already.
    fn values<const D: usize>(tensor: Tensor<Self, D>) -> Self::Values;

    /// An f32 tensor of these values.
    fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<Self, D>;

    /// Changes the values of an f32 tensor, in place if nothing else shares its memory.
    fn change<const D: usize>(
        tensor: Tensor<Self, D>,
        change: impl FnOnce(&mut [f32]),
    ) -> Tensor<Self, D>;
}

#[cfg(feature = "flex")]
mod flex {
    use burn_flex::{Flex, FlexTensor};

    use super::*;

    /// A contiguous f32 tensor.
    pub(crate) struct FlexValues(FlexTensor);

    impl Deref for FlexValues {
        type Target = [f32];

        fn deref(&self) -> &[f32] {
            let elements = self.0.layout().num_elements();
            &self.0.storage()[self.0.layout().start_offset()..][..elements]
        }
    }

    impl HostMemory for Flex {
        type Values = FlexValues;

        fn values<const D: usize>(tensor: Tensor<Self, D>) -> FlexValues {
            let tensor = tensor.cast(DType::F32).into_primitive().tensor();
            FlexValues(if tensor.is_contiguous() {
                tensor
            } else {
                tensor.to_contiguous()
            })
        }

        fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<Self, D> {
            let data = burn::tensor::TensorData::new(values, shape);
            Tensor::from_primitive(TensorPrimitive::Float(FlexTensor::from_data(data)))
        }

        fn change<const D: usize>(
            tensor: Tensor<Self, D>,
            change: impl FnOnce(&mut [f32]),
        ) -> Tensor<Self, D> {
            let tensor = tensor.into_primitive().tensor();
            // `to_contiguous` returns a second handle, so the first must be gone for the memory to be unshared.
            let mut contiguous = tensor.to_contiguous();
            drop(tensor);
            change(contiguous.storage_mut());
            Tensor::from_primitive(TensorPrimitive::Float(contiguous))
        }
    }
}

#[cfg(feature = "ndarray")]
mod ndarray {
    use burn_ndarray::{NdArray, NdArrayTensor, SharedArray};

    use super::*;

    /// A standard-layout f32 array.
    pub(crate) struct NdArrayValues(SharedArray<f32>);

    impl Deref for NdArrayValues {
        type Target = [f32];

        fn deref(&self) -> &[f32] {
            self.0
                .as_slice()
                .expect("brought to standard layout by `values`")
        }
    }

    /// An f32 tensor's array in standard layout; copies if it was not.
    fn standard(tensor: NdArrayTensor) -> SharedArray<f32> {
        let NdArrayTensor::F32(storage) = tensor else {
            panic!("expected an f32 tensor, found another element type");
        };
        let array = storage.into_shared();
        if array.is_standard_layout() {
            array
        } else {
            array.as_standard_layout().into_owned().into_shared()
        }
    }

    impl HostMemory for NdArray<f32> {
        type Values = NdArrayValues;

        fn values<const D: usize>(tensor: Tensor<Self, D>) -> NdArrayValues {
            NdArrayValues(standard(tensor.cast(DType::F32).into_primitive().tensor()))
        }

        fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<Self, D> {
            let data = burn::tensor::TensorData::new(values, shape);
            Tensor::from_primitive(TensorPrimitive::Float(NdArrayTensor::from_data(data)))
        }

        fn change<const D: usize>(
            tensor: Tensor<Self, D>,
            change: impl FnOnce(&mut [f32]),
        ) -> Tensor<Self, D> {
            let mut array = standard(tensor.into_primitive().tensor());
            change(array.as_slice_mut().expect("standard layout"));
            Tensor::from_primitive(TensorPrimitive::Float(array.into()))
        }
    }
}
