//! Kernels on their way to a GPU: compiled or loaded when first used, and launched on a caller's stream.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{CString, c_int};
use std::ptr::{from_ref, null, null_mut};
use std::sync::{Mutex, PoisonError, RwLock};

use crate::cache;
use crate::device::{Device, Stream};
use crate::driver::{LaunchAttribute, LaunchConfig, RELAXED, RawKernel, cuda};
use crate::error::Error;
use crate::kernels::{ChannelLaunch, Kernel, Launch};
use crate::nvrtc::Nvrtc;

/// The grid's side of a launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    pub(crate) blocks: u32,
    pub(crate) threads: u32,
    /// Blocks that share a row.
    pub(crate) cluster: u32,
}

impl Grid {
    /// For rows, in the shape of a kernel.
    pub(crate) fn of(launch: &Launch, rows: usize) -> Self {
        Grid { blocks: launch.blocks(rows), threads: launch.threads, cluster: launch.cluster }
    }

    /// For sums over channels.
    pub(crate) fn of_channels(launch: &ChannelLaunch) -> Self {
        Grid { blocks: launch.blocks, threads: launch.threads, cluster: launch.cluster }
    }
}

/// A loaded kernel. It is never unloaded.
#[derive(Clone, Copy)]
struct Ready(RawKernel);

// SAFETY: kernels may be launched from any thread, in every context of the process.
unsafe impl Send for Ready {}
// SAFETY: as above.
unsafe impl Sync for Ready {}

/// By kernel and architecture.
static READY: RwLock<Option<HashMap<(Kernel, i32), Ready>>> = RwLock::new(None);
/// Held by whoever loads a kernel, so that no two threads compile the same.
static LOADING: Mutex<()> = Mutex::new(());

impl Stream<'_> {
    /// Queues a kernel. `args` is the struct that its source takes.
    pub(crate) fn launch<A: Copy>(&self, kernel: &Kernel, args: &A, grid: Grid) -> Result<(), Error> {
        let device = self.device();
        let Ready(raw) = ready(device, kernel)?;
        let cluster = LaunchAttribute::cluster(grid.cluster);
        let config = LaunchConfig {
            grid: [grid.blocks, 1, 1],
            block: [grid.threads, 1, 1],
            shared_bytes: 0,
            stream: self.raw(),
            attributes: if grid.cluster > 1 { &cluster } else { null() },
            attribute_count: (grid.cluster > 1).into(),
        };
        let mut arguments = [from_ref(args).cast_mut().cast()];
        cuda!(device.driver(), launch(&config, raw, arguments.as_mut_ptr(), null_mut()))
    }
}

fn ready(device: &Device, kernel: &Kernel) -> Result<Ready, Error> {
    let (major, minor) = device.capability();
    let key = (*kernel, 10 * major + minor);
    let find =
        || READY.read().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(|ready| ready.get(&key).copied());
    if let Some(found) = find() {
        return Ok(found);
    }
    let _guard = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = find() {
        return Ok(found);
    }
    let loaded = load(device, kernel, key.1)?;
    READY.write().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().insert(key, loaded);
    Ok(loaded)
}

#[cold]
fn load(device: &Device, kernel: &Kernel, capability: i32) -> Result<Ready, Error> {
    let code = code(kernel, capability)?;
    let (driver, name) = (device.driver(), CString::new(kernel.name()).unwrap_or_default());
    let (mut library, mut loaded, mut mode) = (null_mut(), null_mut(), RELAXED as c_int);
    // Loading, which the driver puts off until a kernel's function is asked for, must not disturb a stream that is being
    // recorded.
    cuda!(driver, exchange_capture_mode(&mut mode))?;
    let load = || {
        let none = null_mut();
        cuda!(
            driver,
            load_library(&mut library, code.as_ptr().cast(), none, null_mut(), 0, null_mut(), null_mut(), 0)
        )?;
        cuda!(driver, library_kernel(&mut loaded, library, name.as_ptr()))?;
        cuda!(driver, kernel_function(&mut null_mut(), loaded))
    };
    let done = { load }();
    cuda!(driver, exchange_capture_mode(&mut mode))?;
    done.map(|()| Ready(loaded))
}

/// Code for GPUs of this capability: machine code, or PTX where NVRTC is older than the GPU.
fn code(kernel: &Kernel, capability: i32) -> Result<Vec<u8>, Error> {
    let nvrtc = Nvrtc::get()?;
    let arch = nvrtc.arch(capability);
    let (major, minor) = nvrtc.version();
    let compiler = format!("{arch} {major}.{minor} {}", Nvrtc::flags().join(" "));
    if let Some(code) = cache::read(kernel, &compiler) {
        return Ok(code);
    }
    let mut code = nvrtc.compile(kernel, &arch)?.code;
    if arch.starts_with("compute") && code.last() != Some(&0) {
        code.push(0); // the driver takes PTX as a C string
    }
    cache::write(kernel, &compiler, &code);
    Ok(code)
}
