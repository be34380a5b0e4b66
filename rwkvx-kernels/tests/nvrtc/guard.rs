//! A CubeCL runtime without a device: every kernel of ours that is launched goes through the real CUDA compiler to machine code, and
//! nothing is executed.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use cubecl::bytes::Bytes;
use cubecl::cuda::{CudaCompiler, CudaRuntime};
use cubecl::device::{Device, DeviceId, DeviceService, ServerUtilitiesHandle};
use cubecl::future::DynFut;
use cubecl::ir::features::{AtomicUsage, Plane, Tma, TypeUsage};
use cubecl::ir::{
    BarrierLevel, DeviceProperties, ElemType, FloatKind, HardwareProperties,
    MemoryDeviceProperties, OpaqueType, SemanticType, StorageType, TargetProperties, Type,
    VectorSize,
};
use cubecl::prelude::*;
use cubecl::profile::{ProfileDuration, TimingMethod};
use cubecl::server::*;
use cubecl::stream_id::StreamId;
use cubecl::zspace::{Shape, Strides, striding::has_pitched_row_major_strides};
use cubecl::{CubeTask, MemoryAllocationMode, MemoryUsage, backtrace::BackTrace};
use cubecl_cpp::cuda::{arch::CudaArchitecture, mma::CudaWmmaCompiler};
use cubecl_cpp::shared::{
    CompilationOptions, CppSupportedFeatures, register_mma_features, register_wmma_features,
};
use cubecl_cpp::{DialectWmmaCompiler, register_supported_types};
use cubecl_runtime::allocator::PitchedMemoryLayoutPolicy;
use cubecl_runtime::logging::ServerLogger;
use cubecl_runtime::memory_management::ManagedMemoryHandle;
use cubecl_runtime::storage::{ComputeStorage, ManagedResource};
use cubecl_runtime::timestamp_profiler::TimestampProfiler;
use cubecl_runtime::validation::{validate_cube_dim, validate_units};

use crate::nvrtc::{self, Usage};

/// Paths of the kernels that are compiled: the crate's, and this test's own.
const OURS: [&str; 2] = ["rwkvx_kernels::", concat!(env!("CARGO_CRATE_NAME"), "::")];

/// What kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Architecture {
    /// A100
    Sm80,
    /// H100, H200
    Sm90a,
}

impl Architecture {
    pub(crate) const ALL: [Self; 2] = [Self::Sm80, Self::Sm90a];

    /// The name that the compiler knows it by.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sm80 => "sm_80",
            Self::Sm90a => "sm_90a",
        }
    }

    /// Shared memory that a block can ask for, in bytes.
    pub(crate) fn max_shared(self) -> usize {
        match self {
            Self::Sm80 => 163 * 1024,
            Self::Sm90a => 227 * 1024,
        }
    }

    fn version(self) -> u32 {
        match self {
            Self::Sm80 => 80,
            Self::Sm90a => 90,
        }
    }
}

/// A kernel and what compiling it gave.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// The function, as in the generated source.
    pub(crate) name: String,
    pub(crate) architecture: Architecture,
    /// Threads of a block.
    pub(crate) threads: u32,
    /// Shared memory given at launch, in bytes.
    pub(crate) dynamic_shared: usize,
    /// The error says which step failed.
    pub(crate) usage: Result<Usage, String>,
}

/// Our kernels that each thread launched since its last [`take_launched`].
static LAUNCHED: Mutex<Vec<(StreamId, Arc<Kernel>)>> = Mutex::new(Vec::new());

/// Takes what this thread launched on `device`, each kernel once.
pub(crate) fn take_launched(device: &GuardDevice) -> Vec<Arc<Kernel>> {
    let client = GuardRuntime::client(device);
    cubecl::future::block_on(client.sync()).expect("the guard's queue never fails");
    let stream = StreamId::current();
    let mut launched = LAUNCHED.lock().expect("no thread panics while it appends");
    let mut mine: Vec<Arc<Kernel>> = Vec::new();
    for (_, kernel) in launched.extract_if(.., |(of, _)| *of == stream) {
        if !mine.iter().any(|known| Arc::ptr_eq(known, &kernel)) {
            mine.push(kernel);
        }
    }
    mine
}

#[derive(Debug, Clone)]
pub(crate) struct GuardRuntime;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct GuardDevice(pub(crate) Architecture);

impl Default for GuardDevice {
    fn default() -> Self {
        Self(Architecture::Sm80)
    }
}

/// Any number that no other runtime of the process uses.
const DEVICE_TYPE: u16 = 77;

impl Device for GuardDevice {
    fn from_id(id: DeviceId) -> Self {
        Self(Architecture::ALL[id.index_id as usize])
    }

    fn to_id(&self) -> DeviceId {
        DeviceId {
            type_id: DEVICE_TYPE,
            index_id: self.0 as u16,
        }
    }
}

impl burn::tensor::backend::DeviceOps for GuardDevice {}

impl Runtime for GuardRuntime {
    type Compiler = CudaCompiler;
    type Server = GuardServer;
    type Device = GuardDevice;

    fn client(device: &GuardDevice) -> ComputeClient<Self> {
        ComputeClient::load(device)
    }

    fn name(_: &ComputeClient<Self>) -> &'static str {
        "cuda"
    }

    fn require_array_lengths() -> bool {
        CudaRuntime::require_array_lengths()
    }

    fn max_cube_count() -> (u32, u32, u32) {
        CudaRuntime::max_cube_count()
    }

    fn can_read_tensor(shape: &Shape, strides: &Strides) -> bool {
        has_pitched_row_major_strides(shape, strides)
    }

    fn target_properties() -> TargetProperties {
        CudaRuntime::target_properties()
    }

    fn enumerate_devices(_: u16, _: &()) -> Vec<DeviceId> {
        Architecture::ALL.map(|a| GuardDevice(a).to_id()).to_vec()
    }
}

/// Named, but never made.
type CudaStorage = <<CudaRuntime as Runtime>::Server as ComputeServer>::Storage;

/// The device's end of the queue.
#[derive(Debug)]
pub(crate) struct GuardServer {
    architecture: Architecture,
    options: CompilationOptions,
    compiled: HashMap<KernelId, Arc<Kernel>>,
    /// A reference to every buffer, as a memory pool has: a tensor whose handle nobody else holds would be taken for one
    /// that may be overwritten, and other kernels would be launched than on a device.
    buffers: Vec<ManagedMemoryHandle>,
    profiler: TimestampProfiler,
    utilities: Arc<ServerUtilities<Self>>,
}

impl GuardServer {
    fn compile(&self, kernel: &dyn CubeTask<CudaCompiler>, mode: ExecutionMode) -> Kernel {
        let id = kernel.id();
        let mut report = Kernel {
            name: kernel.name().into(),
            architecture: self.architecture,
            threads: id.cube_dim.num_elems(),
            dynamic_shared: 0,
            usage: Err(String::new()),
        };
        let properties = &self.utilities.properties;
        let valid = validate_cube_dim(properties, &id).and(validate_units(properties, &id));
        if let Err(error) = valid {
            report.usage = Err(format!("{error:?}"));
            return report;
        }
        // A kernel that cannot be expanded panics.
        let expanded = catch_unwind(AssertUnwindSafe(|| {
            let address = kernel.address_type();
            kernel.compile(&mut CudaCompiler::default(), &self.options, mode, address)
        }));
        report.usage = match expanded {
            Err(panic) => Err(format!("expansion panicked: {}", message(&*panic))),
            Ok(Err(error)) => Err(format!("CubeCL: {error:?}")),
            Ok(Ok(compiled)) => {
                report.name = compiled.entrypoint_name;
                report.dynamic_shared = compiled.repr.map_or(0, |r| r.shared_memory_size());
                nvrtc::compile(&compiled.source, self.architecture.name())
            }
        };
        report
    }
}

/// What a panic said.
fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

impl DeviceService for GuardServer {
    fn init(id: DeviceId) -> Self {
        let GuardDevice(architecture) = GuardDevice::from_id(id);
        let (properties, options) = properties(architecture);
        let policy = PitchedMemoryLayoutPolicy::new(properties.memory.alignment as usize);
        let logger = Arc::new(ServerLogger::default());
        Self {
            architecture,
            options,
            compiled: HashMap::new(),
            buffers: Vec::new(),
            profiler: TimestampProfiler::default(),
            utilities: Arc::new(ServerUtilities::new(properties, logger, (), policy)),
        }
    }

    fn utilities(&self) -> ServerUtilitiesHandle {
        self.utilities.clone()
    }
}

impl ServerCommunication for GuardServer {
    const SERVER_COMM_ENABLED: bool = false;
}

impl ComputeServer for GuardServer {
    type Kernel = Box<dyn CubeTask<CudaCompiler>>;
    type Info = ();
    type MemoryLayoutPolicy = PitchedMemoryLayoutPolicy;
    type Storage = CudaStorage;

    fn initialize_memory(&mut self, memory: ManagedMemoryHandle, _: u64, _: StreamId) {
        self.buffers.push(memory);
    }

    unsafe fn launch(
        &mut self,
        kernel: Self::Kernel,
        _: CubeCount,
        _: KernelArguments,
        mode: ExecutionMode,
        stream: StreamId,
    ) {
        if !OURS.iter().any(|path| kernel.name().starts_with(path)) {
            return;
        }
        let id = kernel.id();
        let report = match self.compiled.get(&id) {
            Some(report) => report.clone(),
            None => Arc::new(self.compile(&*kernel, mode)),
        };
        self.compiled.insert(id, report.clone());
        LAUNCHED
            .lock()
            .expect("no thread panics while it reads")
            .push((stream, report));
    }

    /// Zeros.
    fn read(
        &mut self,
        descriptors: Vec<CopyDescriptor>,
        _: StreamId,
    ) -> DynFut<Result<Vec<Bytes>, ServerError>> {
        let zeros = descriptors
            .iter()
            .map(|d| vec![0; d.shape.iter().product::<usize>() * d.elem_size])
            .map(Bytes::from_bytes_vec)
            .collect();
        Box::pin(async move { Ok(zeros) })
    }

    fn write(&mut self, _: Vec<(CopyDescriptor, Bytes)>, _: StreamId) {}

    fn sync(&mut self, _: StreamId) -> DynFut<Result<(), ServerError>> {
        Box::pin(async { Ok(()) })
    }

    fn flush(&mut self, _: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    fn get_resource(
        &mut self,
        _: Binding,
        _: StreamId,
    ) -> Result<ManagedResource<<CudaStorage as ComputeStorage>::Resource>, ServerError> {
        Err(ServerError::Generic {
            reason: "there is no memory behind the guard".into(),
            backtrace: BackTrace::capture(),
        })
    }

    fn logger(&self) -> Arc<ServerLogger> {
        self.utilities.logger.clone()
    }

    fn utilities(&self) -> Arc<ServerUtilities<Self>> {
        self.utilities.clone()
    }

    fn memory_usage(&mut self, _: StreamId) -> Result<MemoryUsage, ServerError> {
        Ok(MemoryUsage {
            number_allocs: 0,
            bytes_in_use: 0,
            bytes_padding: 0,
            bytes_reserved: 0,
        })
    }

    fn memory_cleanup(&mut self, _: StreamId) {}

    fn allocation_mode(&mut self, _: MemoryAllocationMode, _: StreamId) {}

    fn start_profile(&mut self, _: StreamId) -> Result<ProfilingToken, ServerError> {
        Ok(self.profiler.start())
    }

    fn end_profile(
        &mut self,
        _: StreamId,
        token: ProfilingToken,
    ) -> Result<ProfileDuration, ProfileError> {
        self.profiler.stop(token)
    }
}

/// What CubeCL's CUDA runtime reads off a device, for these architectures.
fn properties(architecture: Architecture) -> (DeviceProperties, CompilationOptions) {
    let hopper = architecture == Architecture::Sm90a;
    let memory = MemoryDeviceProperties {
        max_page_size: 16 << 30,
        alignment: 512,
    };
    let hardware = HardwareProperties {
        load_width: 128,
        plane_size_min: 32,
        plane_size_max: 32,
        max_bindings: 1024,
        max_shared_memory_size: architecture.max_shared(),
        max_cube_count: (i32::MAX as u32, u16::MAX as u32, u16::MAX as u32),
        max_units_per_cube: 1024,
        max_cube_dim: (1024, 1024, 64),
        num_streaming_multiprocessors: Some(if hopper { 132 } else { 108 }),
        num_tensor_cores: Some(4),
        min_tensor_cores_dim: Some(8),
        num_cpu_cores: None,
        max_vector_size: VectorSize::MAX,
    };
    let mut properties =
        DeviceProperties::new(Default::default(), memory, hardware, TimingMethod::System);
    let halves =
        [FloatKind::F16, FloatKind::BF16].map(|kind| StorageType::Scalar(ElemType::Float(kind)));
    let atomic = |kind| Type::new(StorageType::Atomic(ElemType::Float(kind)));

    register_supported_types(&mut properties);
    properties.register_type_usage(ElemType::Float(FloatKind::TF32), TypeUsage::Conversion);
    for ty in [
        atomic(FloatKind::F64),
        atomic(FloatKind::F16),
        atomic(FloatKind::F16).with_vector_size(2),
    ] {
        properties.register_atomic_type_usage(ty, AtomicUsage::Add | AtomicUsage::LoadStore);
    }
    properties.register_semantic_type(SemanticType::Pipeline);
    for level in [BarrierLevel::Unit, BarrierLevel::Cube] {
        properties.register_type_usage(OpaqueType::Barrier(level), TypeUsage::Buffer);
    }
    let features = &mut properties.features;
    features.plane |= Plane::Ops | Plane::Sync | Plane::NonUniformControlFlow;
    features.copy_async = true;
    features.memory_reinterpret = true;
    features.alignment = true;
    features.matmul.ldmatrix.extend(halves);
    if hopper {
        features.matmul.stmatrix.extend(halves);
        features.tma.insert(Tma::Base);
        features.cube_cluster = true;
        properties.register_semantic_type(SemanticType::TensorMap);
        for width in [2, 4] {
            let ty = atomic(FloatKind::F32).with_vector_size(width);
            properties.register_atomic_type_usage(ty, AtomicUsage::Add | AtomicUsage::LoadStore);
        }
    }
    let version = CudaArchitecture {
        version: architecture.version(),
    };
    register_wmma_features(
        CudaWmmaCompiler::supported_wmma_combinations(&version),
        &mut properties,
    );
    register_mma_features(
        CudaWmmaCompiler::supported_mma_combinations(&version),
        &mut properties,
    );
    let options = CompilationOptions {
        warp_size: 32,
        supports_features: CppSupportedFeatures {
            grid_constants: true,
            fast_math: true,
            fast_tanh: true,
            clusters: hopper,
            elect_sync: hopper,
        },
    };
    (properties, options)
}
