//! PyTorch's own threads, as the core's [`Pool`]: they follow `torch.set_num_threads`, and do not compete with others.
#![allow(unsafe_code)]

use std::ffi::c_void;

use isonorm::{Cpu, Pool};

use super::shim::shim;

/// Where all operators run.
pub(super) fn cpu() -> Cpu<'static> {
    Cpu::new().pool(&TorchPool)
}

pub(super) struct TorchPool;

impl Pool for TorchPool {
    fn threads(&self) -> usize {
        let (Some(count), Some(_)) = (shim().torch_get_num_threads, shim().torch_parallel_for) else { return 1 };
        let mut threads = 1;
        // SAFETY: writes the number to a local.
        let status = unsafe { count(&mut threads) };
        if status == 0 { threads as usize } else { 1 }
    }

    fn run(&self, threads: usize, work: &(dyn Fn() + Sync)) {
        let Some(parallel_for) = shim().torch_parallel_for else { return work() };
        let context = (&raw const work).cast_mut().cast();
        // SAFETY: `work` lives until all calls have returned, which is when `parallel_for` does.
        let status = unsafe { parallel_for(0, threads as i64, 1, call_work, context) };
        if status != 0 {
            work(); // the calls share the work: what is done is not done twice
        }
    }
}

/// A chunk of `parallel_for`: one call, however many of the threads it stands for. A panic would abort the process at
/// this border; kernels do not panic, and libtorch could not carry it on.
unsafe extern "C" fn call_work(_: i64, _: i64, context: *mut c_void) {
    // SAFETY: the context is the address of `run`'s `work`.
    let work = unsafe { &*context.cast::<&(dyn Fn() + Sync)>() };
    work();
}
