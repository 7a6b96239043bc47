//! Slices whose storage type is known at run time.

use half::{bf16, f16};

use crate::element::{DType, Element};

macro_rules! slices {
    ($($variant:ident $type:ty),*) => {
        /// A borrowed slice of any storage type. `&[E]`, `&Vec<E>` and `&[E; N]` convert into it.
        #[derive(Clone, Copy, Debug)]
        pub enum Slice<'a> {
            $(#[doc = concat!("Elements of type `", stringify!($type), "`.")] $variant(&'a [$type])),*
        }

        /// A mutably borrowed slice of any storage type.
        #[derive(Debug)]
        pub enum SliceMut<'a> {
            $(#[doc = concat!("Elements of type `", stringify!($type), "`.")] $variant(&'a mut [$type])),*
        }

        impl Slice<'_> {
            /// The number of elements.
            pub fn len(&self) -> usize {
                match self { $(Slice::$variant(slice) => slice.len()),* }
            }
            /// The storage type.
            pub fn dtype(&self) -> DType {
                match self { $(Slice::$variant(_) => DType::$variant),* }
            }
        }

        impl<'a> Slice<'a> {
            /// Length and type.
            pub(crate) fn kind(&self) -> (usize, DType) {
                (self.len(), self.dtype())
            }
            /// `len` elements from `start` on.
            pub(crate) fn part(&self, start: usize, len: usize) -> Slice<'a> {
                match self { $(Slice::$variant(slice) => Slice::$variant(&slice[start..start + len])),* }
            }
        }

        impl<'a> SliceMut<'a> {
            /// `len` elements from `start` on.
            pub(crate) fn part(self, start: usize, len: usize) -> SliceMut<'a> {
                match self { $(SliceMut::$variant(slice) => SliceMut::$variant(&mut slice[start..start + len])),* }
            }
            /// The first `at` elements, and the rest.
            pub(crate) fn split(self, at: usize) -> (SliceMut<'a>, SliceMut<'a>) {
                match self {
                    $(SliceMut::$variant(slice) => {
                        let (left, right) = slice.split_at_mut(at);
                        (SliceMut::$variant(left), SliceMut::$variant(right))
                    }),*
                }
            }
        }

        impl SliceMut<'_> {
            /// The number of elements.
            pub fn len(&self) -> usize {
                match self { $(SliceMut::$variant(slice) => slice.len()),* }
            }
            /// The storage type.
            pub fn dtype(&self) -> DType {
                match self { $(SliceMut::$variant(_) => DType::$variant),* }
            }
            /// The same elements, borrowed for reading.
            pub fn as_slice(&self) -> Slice<'_> {
                match self { $(SliceMut::$variant(slice) => Slice::$variant(slice)),* }
            }
            /// The same elements, borrowed again for a shorter time.
            pub fn reborrow(&mut self) -> SliceMut<'_> {
                match self { $(SliceMut::$variant(slice) => SliceMut::$variant(slice)),* }
            }
        }
    };
}

slices!(F32 f32, F64 f64, F16 f16, Bf16 bf16);

impl Slice<'_> {
    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl SliceMut<'_> {
    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'a, E: Element> From<&'a [E]> for Slice<'a> {
    fn from(slice: &'a [E]) -> Self {
        E::slice(slice)
    }
}

impl<'a, E: Element> From<&'a Vec<E>> for Slice<'a> {
    fn from(vec: &'a Vec<E>) -> Self {
        E::slice(vec)
    }
}

impl<'a, E: Element, const N: usize> From<&'a [E; N]> for Slice<'a> {
    fn from(array: &'a [E; N]) -> Self {
        E::slice(array)
    }
}

impl<'a, E: Element> From<&'a mut [E]> for SliceMut<'a> {
    fn from(slice: &'a mut [E]) -> Self {
        E::slice_mut(slice)
    }
}

impl<'a, E: Element> From<&'a mut Vec<E>> for SliceMut<'a> {
    fn from(vec: &'a mut Vec<E>) -> Self {
        E::slice_mut(vec)
    }
}

impl<'a, E: Element, const N: usize> From<&'a mut [E; N]> for SliceMut<'a> {
    fn from(array: &'a mut [E; N]) -> Self {
        E::slice_mut(array)
    }
}
