//! The memory of CPU tensors as f32 slices.

use std::ops::Deref;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorPrimitive, bf16, f16};

use crate::project::cpu::Int8;

/// A row-major matrix of weights as it lies in memory.
pub(crate) enum Matrix<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
    Int8(Int8<'a>),
}

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

    /// Reads a matrix of weights in the number format it has, or in f32 if the backend knows no other.
    fn read_matrix<T>(tensor: Tensor<Self, 2>, read: impl FnOnce(Matrix<'_>) -> T) -> T {
        read(Matrix::F32(&Self::values(tensor.dequantize())))
    }
}

#[cfg(feature = "flex")]
mod flex {
    use burn::tensor::TensorMetadata;
    use burn::tensor::quantization::QuantLevel;
    use burn_flex::{Flex, FlexQTensor, FlexTensor};

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

    /// Weights in 8 bits with a scale for every few elements of a row.
    fn int8(weights: &FlexQTensor) -> Option<Int8<'_>> {
        let DType::QFloat(scheme) = weights.dtype() else {
            return None;
        };
        let QuantLevel::Block(block) = scheme.level else {
            return None;
        };
        let group = block.num_elements();
        let values = weights.tensor();
        let columns = values.layout().shape()[1];
        let in_order = values.is_contiguous() && values.layout().start_offset() == 0;
        (in_order && columns.is_multiple_of(group)).then(|| Int8 {
            values: values.storage(),
            scales: weights.scales(),
            group,
        })
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

        fn read_matrix<T>(tensor: Tensor<Self, 2>, read: impl FnOnce(Matrix<'_>) -> T) -> T {
            match tensor.into_primitive() {
                TensorPrimitive::QFloat(weights) => match int8(&weights) {
                    Some(weights) => read(Matrix::Int8(weights)),
                    None => {
                        let weights = Tensor::from_primitive(TensorPrimitive::QFloat(weights));
                        read(Matrix::F32(&Self::values::<2>(weights.dequantize())))
                    }
                },
                TensorPrimitive::Float(weights) => {
                    let weights = if weights.is_contiguous() {
                        weights
                    } else {
                        weights.to_contiguous()
                    };
                    let start = weights.layout().start_offset();
                    let end = start + weights.layout().num_elements();
                    match weights.dtype() {
                        DType::F32 => read(Matrix::F32(&weights.storage()[start..end])),
                        DType::BF16 => read(Matrix::Bf16(&weights.storage()[start..end])),
                        DType::F16 => read(Matrix::F16(&weights.storage()[start..end])),
                        _ => {
                            let weights = Tensor::from_primitive(TensorPrimitive::Float(weights));
                            read(Matrix::F32(&Self::values::<2>(weights)))
                        }
                    }
                }
            }
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
