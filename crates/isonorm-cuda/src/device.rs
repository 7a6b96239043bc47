//! GPUs, streams, and memory of the crate's own. A caller's streams and memory serve as well: `Stream::from_raw`,
//! `Slice::from_raw`.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::ptr::null_mut;

use isonorm::Element;

use crate::driver::{Address, CAPABILITY, Context, Driver, RawStream, cuda};
use crate::error::Error;
use crate::memory::{Slice, SliceMut};

/// A GPU in one context: the primary one, which PyTorch and other libraries share, or the caller's.
#[derive(Clone, Copy)]
pub struct Device {
    driver: &'static Driver,
    context: Context,
    ordinal: usize,
    capability: (i32, i32),
}

// SAFETY: contexts may be used from any thread.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({}, {}.{})", self.ordinal, self.capability.0, self.capability.1)
    }
}

impl Device {
    /// How many GPUs there are.
    pub fn count() -> Result<usize, Error> {
        let mut count = 0;
        cuda!(Driver::get()?, device_count(&mut count))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// GPU number `ordinal`, in its primary context.
    ///
    /// # Errors
    ///
    /// Where there is no driver, no GPU, none of this number, or one that is older than Ampere.
    pub fn new(ordinal: usize) -> Result<Self, Error> {
        let (driver, count) = (Driver::get()?, Self::count()?);
        if count == 0 {
            return Err(Error::NoDevice);
        }
        if ordinal >= count {
            return Err(Error::Ordinal { found: ordinal, count });
        }
        let mut context = null_mut();
        cuda!(driver, primary_context(&mut context, ordinal as c_int))?;
        Self::in_context(driver, context, ordinal)
    }

    /// The GPU of the context that is current on this thread, in that context.
    ///
    /// # Errors
    ///
    /// [`Error::NoContext`] where none is current; else as [`Device::new`].
    pub fn current() -> Result<Self, Error> {
        let driver = Driver::get()?;
        let (mut context, mut ordinal) = (null_mut(), 0);
        cuda!(driver, current_context(&mut context))?;
        if context.is_null() {
            return Err(Error::NoContext);
        }
        cuda!(driver, current_device(&mut ordinal))?;
        Self::in_context(driver, context, ordinal as usize)
    }

    fn in_context(driver: &'static Driver, context: Context, ordinal: usize) -> Result<Self, Error> {
        let mut capability = [0; 2];
        for (value, attribute) in capability.iter_mut().zip(CAPABILITY) {
            cuda!(driver, device_attribute(value, attribute, ordinal as c_int))?;
        }
        let [major, minor] = capability;
        if major < 8 {
            return Err(Error::TooOld { device: ordinal, major, minor });
        }
        Ok(Device { driver, context, ordinal, capability: (major, minor) })
    }

    /// Its number.
    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// Its compute capability: (9, 0) for Hopper.
    pub fn capability(&self) -> (i32, i32) {
        self.capability
    }

    pub(crate) fn driver(&self) -> &'static Driver {
        self.driver
    }

    /// Runs `work` while the device's context is current, and puts back the one that was.
    #[inline]
    pub(crate) fn within<T>(&self, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let mut current = null_mut();
        cuda!(self.driver, current_context(&mut current))?;
        if current == self.context {
            return work();
        }
        cuda!(self.driver, push_context(self.context))?;
        let done = work();
        cuda!(self.driver, pop_context(&mut current))?;
        done
    }

    /// Memory with the elements of `from`; complete when this returns.
    pub fn upload<E: Element>(&self, from: &[E]) -> Result<Buffer, Error> {
        let mut buffer = self.allocate(size_of_val(from))?;
        buffer.write(from)?;
        Ok(buffer)
    }

    /// Memory of `bytes` bytes, whose values are whatever they are.
    pub fn allocate(&self, bytes: usize) -> Result<Buffer, Error> {
        let mut address = 0;
        if bytes > 0 {
            self.within(|| cuda!(self.driver, allocate(&mut address, bytes)))?;
        }
        Ok(Buffer { device: *self, address, bytes })
    }
}

/// Where launches queue up.
#[derive(Debug)]
pub struct Stream<'a> {
    device: Device,
    raw: RawStream,
    is_own: bool,
    of: PhantomData<&'a ()>,
}

// SAFETY: streams may be used from any thread.
unsafe impl Send for Stream<'_> {}
// SAFETY: as above.
unsafe impl Sync for Stream<'_> {}

impl Stream<'static> {
    /// A new stream.
    pub fn new(device: Device) -> Result<Self, Error> {
        let mut raw = null_mut();
        device.within(|| cuda!(device.driver, new_stream(&mut raw, 0)))?;
        Ok(Stream { device, raw, is_own: true, of: PhantomData })
    }

    /// The device's default stream.
    pub fn default(device: Device) -> Self {
        Stream { device, raw: null_mut(), is_own: false, of: PhantomData }
    }
}

impl Stream<'_> {
    /// A stream of the caller's: a `CUstream` or `cudaStream_t`.
    ///
    /// # Safety
    ///
    /// It is a stream of the device's context and outlives the value.
    pub unsafe fn from_raw(device: Device, raw: *mut c_void) -> Self {
        Stream { device, raw, is_own: false, of: PhantomData }
    }

    /// The GPU that it is of.
    pub fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn raw(&self) -> RawStream {
        self.raw
    }

    /// Waits for everything that was launched on it.
    pub fn synchronize(&self) -> Result<(), Error> {
        self.device.within(|| cuda!(self.device.driver, synchronize(self.raw)))
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        if self.is_own {
            // What is queued still runs. A failure could only be reported by whoever waits for that.
            let _ = self.device.within(|| cuda!(self.device.driver, delete_stream(self.raw)));
        }
    }
}

/// Memory of a GPU, freed in the end, which waits for what uses it.
#[derive(Debug)]
pub struct Buffer {
    device: Device,
    address: Address,
    bytes: usize,
}

impl Buffer {
    /// Its length.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its elements, of type `E`.
    pub fn slice<E: Element>(&self) -> Slice<'_> {
        // SAFETY: the memory is the buffer's, which outlives the slice.
        unsafe { Slice::from_raw(self.pointer(), self.bytes / size_of::<E>(), E::DTYPE) }
    }

    /// The same, to be written.
    pub fn slice_mut<E: Element>(&mut self) -> SliceMut<'_> {
        // SAFETY: as above, and the borrow is the only one.
        unsafe { SliceMut::from_raw(self.pointer(), self.bytes / size_of::<E>(), E::DTYPE) }
    }

    fn pointer(&self) -> *mut c_void {
        std::ptr::without_provenance_mut(self.address as usize)
    }

    /// Copies the elements of `from` to its beginning, as many as there is room for; complete when this returns.
    pub fn write<E: Element>(&mut self, from: &[E]) -> Result<(), Error> {
        let (driver, bytes) = (self.device.driver, self.bytes.min(size_of_val(from)));
        if bytes == 0 {
            return Ok(());
        }
        self.device.within(|| {
            cuda!(driver, to_device(self.address, from.as_ptr().cast(), bytes, null_mut()))?;
            cuda!(driver, synchronize(null_mut()))
        })
    }

    /// Its elements, after everything that was launched on `stream`.
    pub fn read<E: Element>(&self, stream: &Stream<'_>) -> Result<Vec<E>, Error> {
        let (driver, count) = (self.device.driver, self.bytes / size_of::<E>());
        let mut elements = vec![E::default(); count];
        if count > 0 {
            let bytes = count * size_of::<E>();
            self.device.within(|| {
                cuda!(driver, to_host(elements.as_mut_ptr().cast(), self.address, bytes, stream.raw))?;
                cuda!(driver, synchronize(stream.raw))
            })?;
        }
        Ok(elements)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.address != 0 {
            // The driver waits for what uses it. A failure could only be one of an earlier call.
            let _ = self.device.within(|| cuda!(self.device.driver, free(self.address)));
        }
    }
}
