//! Threads in a forked process: those of the library's pool are left behind, and a call that waited for them would wait
//! forever. So a child has a pool of its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use isonorm::{Cpu, Pool};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

static IS_CHILD: AtomicBool = AtomicBool::new(false);
/// The pool of this process, where it is a child. Locked by threads that hold the GIL alone, as a fork does.
static OWN: Mutex<Option<&'static Own>> = Mutex::new(None);

struct Own(rayon::ThreadPool);

impl Pool for Own {
    fn threads(&self) -> usize {
        self.0.current_num_threads()
    }

    fn run(&self, threads: usize, work: &(dyn Fn() + Sync)) {
        self.0.in_place_scope(|scope| {
            (1..threads).for_each(|_| scope.spawn(|_| work()));
            work();
        });
    }
}

/// Where norms run in this process.
pub(crate) fn cpu() -> PyResult<Cpu<'static>> {
    if !IS_CHILD.load(Ordering::Relaxed) {
        return Ok(Cpu::new());
    }
    let mut own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(own) = *own {
        return Ok(Cpu::new().pool(own));
    }
    let pool = rayon::ThreadPoolBuilder::new().build().map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
    let pool: &'static Own = Box::leak(Box::new(Own(pool))); // once a fork, as long as the process
    *own = Some(pool);
    Ok(Cpu::new().pool(pool))
}

#[pyfunction]
fn after_fork() {
    IS_CHILD.store(true, Ordering::Relaxed);
    *OWN.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// Has `after_fork` called in every child, on systems that fork.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let os = module.py().import("os")?;
    if os.hasattr("register_at_fork")? {
        let options = pyo3::types::PyDict::new(module.py());
        options.set_item("after_in_child", wrap_pyfunction!(after_fork, module)?)?;
        os.call_method("register_at_fork", (), Some(&options))?;
    }
    Ok(())
}
