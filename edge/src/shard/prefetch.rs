//! Bringing a viewer's state near before it is its turn.
//!
//! A picture to a thousand viewers writes more than the second-level cache holds, so the state of each is back in memory when the next picture
//! comes. Fetching it piece by piece, each found by following the one before, cost more than everything else that is done for a
//! packet but encryption; asked for some viewers ahead, it is there in time.

/// Bytes of a cache line.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// Asks the processor for the cache lines of `value`. It only hints: nothing is read, so nothing can be wrong.
#[cfg(target_arch = "x86_64")]
#[expect(
    unsafe_code,
    reason = "the intrinsic takes a pointer; it never faults and reads nothing"
)]
pub(crate) fn prefetch<T: ?Sized>(value: &T) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

    let start = std::ptr::from_ref(value).cast::<i8>();
    for offset in (0..size_of_val(value)).step_by(LINE) {
        // SAFETY: SSE is part of x86_64, and a prefetch is defined for any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(offset)) };
    }
}

/// Other processors do without: theirs is not in stable Rust.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn prefetch<T: ?Sized>(_value: &T) {}
