//! The residual add in front of a norm: `r = T_r(x + residual)`, kept, and then normalized.

use std::ops::Range;

use arrayvec::ArrayVec;

use crate::apply::{Convert, LINE};
use crate::element::{Compute, Element};
use crate::forward::Task;
use crate::isa::Isa;
use crate::level::{Kernel, Level};
use crate::order::LANES;
use crate::params::widen_slice;
use crate::rows::{AnyIn, AnyOut, In, Out};
use crate::slice::{Slice, SliceMut};
use crate::tiles::{TILE, tiles};

/// The fused add.
pub(crate) struct Residual<'a> {
    /// `None`: the residual is what r holds.
    pub(crate) residual: Option<AnyIn<'a>>,
    pub(crate) r: AnyOut<'a>,
}

impl Residual<'_> {
    /// Rows of r, those of a block of the rows that end with `end`. Where `near` has room and all types are r's, r
    /// goes past the caches and into `near` too; returns whether it did.
    pub(crate) fn add<T: Element>(
        &mut self,
        task: &Task<'_, T::Compute>,
        rows: Range<usize>,
        end: usize,
        x: AnyIn<'_>,
        near: &mut [T],
    ) -> bool {
        if let (Some(x), Some(r)) = (x.of::<T>(), self.r.of::<T>()) {
            match self.residual.map(|residual| residual.of::<T>()) {
                Some(Some(residual)) if near.is_empty() => {
                    T::Compute::enter(task.level, AddRows { x, residual, r, rows });
                    return false;
                }
                Some(Some(residual)) => {
                    T::Compute::enter(task.level, AddPast { x, residual, r, near, rows, end });
                    return true;
                }
                None => {
                    add_rows_in_place(task.level, x, r, rows);
                    return false;
                }
                Some(None) => {}
            }
        }
        rows.for_each(|row| self.add_by_tiles::<T>(task, row, x));
        false
    }

    fn add_by_tiles<T: Element>(&mut self, task: &Task<'_, T::Compute>, row: usize, x: AnyIn<'_>) {
        for columns in tiles(task.hidden()) {
            let x = x.row(row, columns.clone());
            if let Some(residual) = &self.residual {
                let residual = residual.row(row, columns.clone());
                add_tile::<T>(task.level, x, residual, self.r.row(row, columns));
                continue;
            }
            let mut own = ArrayVec::<T, TILE>::new();
            if let Some(from) = T::of(&self.r.as_in().row(row, columns.clone())) {
                own.extend(from.iter().copied());
            }
            add_tile::<T>(task.level, x, T::slice(&own), self.r.row(row, columns));
        }
    }
}

/// Tensors of r's type are added as they are; others are widened first.
fn add_tile<T: Element>(level: Level, x: Slice<'_>, residual: Slice<'_>, r: SliceMut<'_>) {
    let Some(r) = T::of_mut(r) else { return };
    if let (Some(x), Some(residual)) = (T::of(&x), T::of(&residual)) {
        return T::Compute::enter(level, Add { x, residual, r });
    }
    let [mut a, mut b] = [[T::Compute::ZERO; TILE]; 2];
    let (a, b) = (&mut a[..r.len()], &mut b[..r.len()]);
    widen_any::<T::Compute>(level, x, a);
    widen_any::<T::Compute>(level, residual, b);
    T::Compute::enter(level, Add { x: &*a, residual: &*b, r });
}

/// `from` in the compute type.
pub(crate) fn widen_any<C: Compute>(level: Level, from: Slice<'_>, to: &mut [C]) {
    match (C::of(&from), &from) {
        (None, Slice::Bf16(x)) if C::DTYPE == crate::DType::F32 => {
            if let Some(y) = f32::of_mut(C::slice_mut(to)) {
                f32::enter(level, Convert { x, y });
            }
        }
        _ => widen_slice(from, to),
    }
}

/// One stretch of one row.
struct Add<'a, X, R> {
    x: &'a [X],
    residual: &'a [X],
    r: &'a mut [R],
}

impl<C, X, R> Kernel<C> for Add<'_, X, R>
where
    C: Compute,
    X: Element<Compute = C>,
    R: Element<Compute = C>,
{
    type Output = ();

    #[inline(always)]
    fn eval<S: Isa<C>>(self, isa: S) {
        add_row(isa, self.x, self.residual, self.r);
    }
}

#[inline(always)]
fn add_row<C, S, X, R>(isa: S, x: &[X], residual: &[X], r: &mut [R])
where
    C: Compute,
    S: Isa<C>,
    X: Element<Compute = C>,
    R: Element<Compute = C>,
{
    let (x, x_tail) = x.as_chunks::<LANES>();
    let (residual, residual_tail) = residual.as_chunks::<LANES>();
    let (r, r_tail) = r.as_chunks_mut::<LANES>();
    let split = X::DTYPE == R::DTYPE;
    // Slices of one length: the loop has no bounds check.
    let count = x.len();
    let (residual, r) = (&residual[..count], &mut r[..count]);
    for at in 0..count {
        if split {
            R::store_split(isa, isa.add(X::load_split(isa, &x[at]), X::load_split(isa, &residual[at])), &mut r[at]);
        } else {
            R::store(isa, isa.add(X::load(isa, &x[at]), X::load(isa, &residual[at])), &mut r[at]);
        }
    }
    add_tail(x_tail, residual_tail, r_tail);
}

#[inline(always)]
fn add_tail<X: Element, R: Element<Compute = X::Compute>>(x: &[X], residual: &[X], r: &mut [R]) {
    let (x, residual) = (&x[..r.len()], &residual[..r.len()]);
    for at in 0..r.len() {
        r[at] = R::narrow(x[at].widen() + residual[at].widen());
    }
}

/// A block of rows.
struct AddRows<'a, T> {
    x: In<'a, T>,
    residual: In<'a, T>,
    r: Out<'a, T>,
    rows: Range<usize>,
}

impl<C: Compute, T: Element<Compute = C>> Kernel<C> for AddRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Isa<C>>(mut self, isa: S) {
        for row in self.rows {
            add_row(isa, self.x.row(row), self.residual.row(row), self.r.row_mut(row));
        }
    }
}

/// Adds rows of x to those of r, of one type.
pub(crate) fn add_rows_in_place<T: Element>(level: Level, x: In<'_, T>, r: Out<'_, T>, rows: Range<usize>) {
    T::Compute::enter(level, AddInPlace { x, r, rows });
}

/// A block of rows whose residual is what r holds.
struct AddInPlace<'a, T> {
    x: In<'a, T>,
    r: Out<'a, T>,
    rows: Range<usize>,
}

impl<C: Compute, T: Element<Compute = C>> Kernel<C> for AddInPlace<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Isa<C>>(mut self, isa: S) {
        for row in self.rows {
            let (x, x_tail) = self.x.row(row).as_chunks::<LANES>();
            let (r, r_tail) = self.r.row_mut(row).as_chunks_mut::<LANES>();
            let count = x.len();
            let r = &mut r[..count];
            for at in 0..count {
                T::store_split(isa, isa.add(T::load_split(isa, &x[at]), T::load_split(isa, &r[at])), &mut r[at]);
            }
            for at in 0..r_tail.len() {
                r_tail[at] = T::narrow(x_tail[at].widen() + r_tail[at].widen());
            }
        }
    }
}

/// A block of rows: r past the caches, and a copy of it for the norm; meanwhile the next block is asked for.
struct AddPast<'a, T> {
    x: In<'a, T>,
    residual: In<'a, T>,
    r: Out<'a, T>,
    near: &'a mut [T],
    rows: Range<usize>,
    end: usize,
}

impl<C: Compute, T: Element<Compute = C>> Kernel<C> for AddPast<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Isa<C>>(mut self, isa: S) {
        let (block, mut near) = (self.rows.len(), self.near);
        for row in self.rows {
            let soon = (row + block).min(self.end - 1);
            let (soon_x, soon_residual) = (self.x.distance(row, soon), self.residual.distance(row, soon));
            let (x, residual, r) = (self.x.row(row), self.residual.row(row), self.r.row_mut(row));
            let (own, rest) = near.split_at_mut(r.len());
            near = rest;
            // Stores past the caches want whole lines: chunks begin where one does.
            let head = r.as_ptr().align_offset(LINE).min(r.len());
            add_tail(&x[..head], &residual[..head], &mut r[..head]);
            own[..head].copy_from_slice(&r[..head]);
            let (x, x_tail) = x[head..].as_chunks::<LANES>();
            let (residual, residual_tail) = residual[head..].as_chunks::<LANES>();
            let (r, r_tail) = r[head..].as_chunks_mut::<LANES>();
            let (own, own_tail) = own[head..].as_chunks_mut::<LANES>();
            let count = x.len();
            let (residual, r, own) = (&residual[..count], &mut r[..count], &mut own[..count]);
            for at in 0..count {
                isa.prefetch_second(&x[at], soon_x);
                isa.prefetch_second(&residual[at], soon_residual);
                let sum = isa.add(T::load_split(isa, &x[at]), T::load_split(isa, &residual[at]));
                T::store_split(isa, sum, &mut own[at]);
                T::store_past_split(isa, sum, &mut r[at]);
            }
            add_tail(x_tail, residual_tail, own_tail);
            r_tail.copy_from_slice(own_tail);
        }
    }
}
