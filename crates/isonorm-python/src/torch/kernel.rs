//! From the dispatcher's stack of untyped values to typed arguments, and back.
#![allow(unsafe_code)]

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, CString};
use std::panic::{AssertUnwindSafe, catch_unwind};

use isonorm::DType;

use super::device::Emulated;
use super::failure::Failure;
use super::shim::{Handle, shim};
use super::tensor::Tensor;

/// An operator and its kernel for the CPU.
pub(super) trait Kernel {
    /// Name and signature, in PyTorch's notation.
    const SCHEMA: &CStr;
    /// The types of the arguments, in the schema's order.
    type Arguments: FromStack;
    /// The types of the results.
    type Results: IntoStack;
    /// What it computes.
    fn run(arguments: Self::Arguments) -> Result<Self::Results, Failure>;
}

/// An argument in the encoding of a `StableIValue`.
pub(super) trait Value {
    /// Takes over what `word` stands for.
    ///
    /// # Safety
    ///
    /// `word` is what the dispatcher put onto the stack for an argument of this type, and is taken once.
    unsafe fn take(word: u64) -> Self;
}

impl Value for f64 {
    unsafe fn take(word: u64) -> f64 {
        f64::from_bits(word)
    }
}

impl Value for i64 {
    unsafe fn take(word: u64) -> i64 {
        word as i64
    }
}

impl Value for bool {
    unsafe fn take(word: u64) -> bool {
        word as u8 != 0 // only the low byte is written
    }
}

/// An argument of type `ScalarType`: libtorch's code of a type.
#[derive(Clone, Copy)]
pub(super) struct Dtype(i32);

impl Dtype {
    /// The type, of one that norms have.
    pub(super) fn known(self) -> Result<DType, Failure> {
        let found = shim().dtypes.iter().find(|(code, _)| *code == self.0);
        found.map(|(_, dtype)| *dtype).ok_or_else(|| Failure::new("isonorm: a dtype that norms do not have"))
    }
}

impl Value for Dtype {
    unsafe fn take(word: u64) -> Dtype {
        Dtype(word as u32 as i32) // only the low half is written
    }
}

impl Value for Tensor {
    unsafe fn take(word: u64) -> Tensor {
        // SAFETY: the word is a handle whose share in the tensor is the kernel's.
        unsafe { Tensor::from_handle(word as Handle) }
    }
}

impl Value for Option<Tensor> {
    unsafe fn take(word: u64) -> Option<Tensor> {
        if word == 0 {
            return None;
        }
        let held = word as *mut u64;
        // SAFETY: a value that is there is a pointer to a word on libtorch's heap.
        let inner = unsafe { *held };
        // SAFETY: the word is read, and nobody else has it.
        unsafe { free(held) };
        // SAFETY: the inner word is the encoding of a tensor.
        Some(unsafe { Tensor::take(inner) })
    }
}

/// Gives a word back to libtorch's heap.
///
/// # Safety
///
/// `word` came from there and is not used again.
unsafe fn free(word: *mut u64) {
    match shim().torch_delete_stable_ivalue {
        // SAFETY: by the caller's word.
        Some(delete) => _ = unsafe { delete(word) },
        // Before 2.13 there is no function for it; C++'s `delete` of a word is `free` on the systems torch runs on.
        // SAFETY: by the caller's word.
        None => unsafe { libc_free(word.cast()) },
    }
}

unsafe extern "C" {
    #[link_name = "free"]
    fn libc_free(word: *mut std::ffi::c_void);
}

/// Arguments that are taken from the stack all at once, so that each has an owner before anything can fail.
pub(super) trait FromStack: Sized {
    /// How many they are.
    const COUNT: usize;
    /// Takes them over.
    ///
    /// # Safety
    ///
    /// `stack` has the values of an operator with arguments of these types.
    unsafe fn take(stack: &[u64]) -> Self;
}

macro_rules! from_stack {
    ($($type:ident)*) => {
        impl<$($type: Value),*> FromStack for ($($type,)*) {
            const COUNT: usize = [$(stringify!($type)),*].len();
            #[allow(unused_assignments)]
            unsafe fn take(stack: &[u64]) -> Self {
                let mut at = 0;
                ($({
                    let word = stack[at];
                    at += 1;
                    // SAFETY: by the caller's word; each is taken once.
                    unsafe { $type::take(word) }
                },)*)
            }
        }
    };
}
from_stack!(A);
from_stack!(A B);
from_stack!(A B C);
from_stack!(A B C D);
from_stack!(A B C D E);
from_stack!(A B C D E F);
from_stack!(A B C D E F G);
from_stack!(A B C D E F G H);
from_stack!(A B C D E F G H I);
from_stack!(A B C D E F G H I J);
from_stack!(A B C D E F G H I J K);
from_stack!(A B C D E F G H I J K L);
from_stack!(A B C D E F G H I J K L M);

/// Results: tensors that the dispatcher takes over.
pub(super) trait IntoStack {
    /// Puts them onto the stack.
    fn put(self, stack: &mut [u64]);
}

impl IntoStack for () {
    fn put(self, _: &mut [u64]) {}
}

impl IntoStack for Tensor {
    fn put(self, stack: &mut [u64]) {
        [self].put(stack);
    }
}

impl<const N: usize> IntoStack for [Tensor; N] {
    fn put(self, stack: &mut [u64]) {
        for (word, tensor) in stack.iter_mut().zip(self) {
            *word = tensor.into_handle() as u64;
        }
    }
}

/// What the dispatcher calls.
///
/// # Safety
///
/// `stack` holds `inputs` values of `K`'s schema, and has room for `outputs`.
pub(super) unsafe extern "C-unwind" fn boxed<K: Kernel>(stack: *mut u64, inputs: u64, outputs: u64) {
    if catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: by the caller's word.
        let stack = unsafe { std::slice::from_raw_parts_mut(stack, inputs.max(outputs) as usize) };
        debug_assert_eq!(K::Arguments::COUNT, inputs as usize);
        // SAFETY: the operator was registered with `K::SCHEMA`, whose types these are.
        let arguments = unsafe { K::Arguments::take(stack) };
        K::run(arguments).map(|results| results.put(stack)).map_err(Failure::into_text)
    }))
    .unwrap_or_else(|panic| Err(text_of(&*panic)))
    .map_err(keep)
    .is_err()
    {
        throw();
    }
}

/// The same for an emulated GPU, whose tensors are on the CPU.
///
/// # Safety
///
/// As for [`boxed`].
pub(super) unsafe extern "C-unwind" fn boxed_emulated<K: Kernel>(stack: *mut u64, inputs: u64, outputs: u64) {
    let _emulated = Emulated::new();
    // SAFETY: by the caller's word.
    unsafe { boxed::<K>(stack, inputs, outputs) };
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    format!("isonorm has a bug, please report it: {}", text.unwrap_or("a panic"))
}

thread_local! {
    /// The text of the error that is being thrown: no frame that the exception passes may own it.
    static TEXT: RefCell<CString> = RefCell::default();
}

fn keep(text: String) {
    let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
    TEXT.with(|kept| *kept.borrow_mut() = text);
}

/// Throws the text that was kept, as libtorch's own exception.
#[cold]
fn throw() {
    let text = TEXT.with(|kept| kept.borrow().as_ptr());
    let check = shim().aoti_torch_check;
    // SAFETY: all are C strings; the text lives until the next error on this thread. The exception passes through
    // frames that may unwind and own nothing.
    unsafe { check(false, c"isonorm".as_ptr(), c"isonorm".as_ptr(), 0, text) };
}
