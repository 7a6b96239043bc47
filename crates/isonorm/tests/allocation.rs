//! A forward call on slices allocates nothing.
#![allow(unsafe_code)] // a global allocator that counts

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::bf16;
use isonorm::{
    BatchNorm, Cpu, GroupNorm, InstanceNorm, Io, LayerNorm, Level, PlaneIo, Planes, PlanesMut, Recipe, RmsNorm, Rows,
    RowsMut, Running, Stats,
};

/// Of all threads.
static ALL: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static OWN: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() {
    ALL.fetch_add(1, Ordering::Relaxed);
    let _ = OWN.try_with(|own| own.set(own.get() + 1));
}

// SAFETY: hands every call on to `System`; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's obligations are `System`'s.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's obligations are `System`'s.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's obligations are `System`'s.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Allocations of this thread during the second of two calls.
fn allocations(mut call: impl FnMut()) -> usize {
    call();
    let before = OWN.get();
    call();
    OWN.get() - before
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![1u8; 100]))), 1);
    assert_eq!(allocations(|| ()), 0);
}

#[test]
fn a_forward_call_on_slices_allocates_nothing() {
    let (rows, hidden) = (7, 1500);
    let x = vec![0.5f32; rows * hidden];
    let (weight, bias) = (vec![1.5f32; hidden], vec![0.25f32; hidden]);
    let (mut y, mut narrow) = (x.clone(), vec![bf16::ZERO; x.len()]);
    let half: Vec<bf16> = x.iter().map(|v| bf16::from_f32(*v)).collect();
    let tiny: Vec<f32> = x.iter().map(|v| v * 1e-30).collect();
    let mut stats = vec![Stats::<f32>::default(); rows];
    for level in Level::available() {
        let cpu = Cpu::new().threads(1).level(level);
        let (rms, layer) = (RmsNorm::new(hidden).on(cpu), LayerNorm::new(hidden).on(cpu));
        let count = allocations(|| {
            rms.forward(&x, &mut y).expect("valid");
            rms.weight(&weight).forward(&x, &mut y).expect("valid");
            rms.weight(&weight).recipe(Recipe::Llama).forward(&half, &mut narrow).expect("valid");
            rms.weight(&weight).weight_offset(1.0).forward(&x, &mut narrow).expect("valid");
            rms.bias(&bias).partial(9).eps(0.0).forward(&tiny, &mut y).expect("valid");
            layer.forward(&x, &mut y).expect("valid");
            layer.weight(&weight).bias(&bias).forward(&half, &mut narrow).expect("valid");
            layer.apply(Io::new(&x, &mut y).stats(&mut stats)).expect("valid");
            layer.apply(Io::in_place(&mut y)).expect("valid");
        });
        assert_eq!(count, 0, "allocations on {level}");
    }
}

#[test]
fn residual_adds_and_strided_rows_allocate_nothing() {
    let (rows, hidden) = (6, 40);
    let x = vec![0.5f32; rows * hidden];
    let [mut r, mut y] = [x.clone(), x.clone()];
    let (shape, strides) = ([3, 2], [-80, 40]);
    let count = allocations(|| {
        let norm = RmsNorm::new(hidden).on(Cpu::new().threads(1));
        norm.apply(Io::add(&x, &x, &mut r, &mut y)).expect("valid");
        norm.apply(Io::add_in_place(&mut y, &mut r)).expect("valid");
        let to = RowsMut::strided(&mut y, 160, &shape, &strides);
        norm.forward(Rows::strided(&x, 160, &shape, &strides), to).expect("valid");
    });
    assert_eq!(count, 0);
}

#[test]
fn results_past_the_caches_allocate_nothing() {
    let hidden = 4096;
    let x = vec![0.5f32; 1100 * hidden];
    let mut y = x.clone();
    let norm = RmsNorm::new(hidden).on(Cpu::new().threads(1));
    assert_eq!(allocations(|| norm.forward(&x, &mut y).expect("valid")), 0);
}

/// With threads the pool may allocate its tasks: a few, however many rows there are.
#[test]
fn threads_allocate_no_more_than_their_tasks() {
    let hidden = 4096;
    let x = vec![0.5f32; 512 * hidden];
    let mut y = x.clone();
    for threads in [2, 4] {
        let norm = RmsNorm::new(hidden).on(Cpu::new().threads(threads));
        norm.forward(&x, &mut y).expect("valid");
        let count = allocations(|| norm.forward(&x, &mut y).expect("valid"));
        println!(
            "{threads} threads, 512 x 4096: {count} allocations of the caller, {} of all so far",
            ALL.load(Ordering::Relaxed)
        );
        assert!(count <= 4 * threads, "{count} allocations with {threads} threads");
    }
}

#[test]
fn a_forward_call_on_planes_allocates_nothing() {
    for (samples, channels, spatial) in [(20, 33, 1), (5, 70, 49), (3, 6, 300)] {
        let x = vec![0.5f32; samples * channels * spatial];
        let (mut y, mut narrow) = (x.clone(), vec![bf16::ZERO; x.len()]);
        let (weight, mut mean, mut var) = (vec![1.5f32; channels], vec![0.0f32; channels], vec![1.0f32; channels]);
        for level in Level::available() {
            let cpu = Cpu::new().threads(1).level(level);
            let batch = BatchNorm::new(channels).weight(&weight).on(cpu);
            let (group, instance) = (GroupNorm::new(1, channels).on(cpu), InstanceNorm::new(channels).on(cpu));
            macro_rules! calls {
                ($layout:ident) => {{
                    macro_rules! io {
                        ($y:expr) => {
                            PlaneIo::new(
                                Planes::$layout(&x, channels, spatial),
                                PlanesMut::$layout($y, channels, spatial),
                            )
                        };
                    }
                    batch.train(io!(&mut y), Some(Running::new(&mut mean, &mut var))).expect("valid");
                    batch.train(io!(&mut narrow), None).expect("valid");
                    batch.evaluate(io!(&mut y), &mean, &var).expect("valid");
                    group.weight(&weight).apply(io!(&mut narrow)).expect("valid");
                    instance.apply(PlaneIo::in_place(PlanesMut::$layout(&mut y, channels, spatial))).expect("valid");
                }};
            }
            let count = allocations(|| {
                calls!(channels_first);
                calls!(channels_last);
            });
            assert_eq!(count, 0, "{samples} x {channels} x {spatial}, level {level}");
        }
    }
}
