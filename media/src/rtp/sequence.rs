//! Numbers that wrap on the wire, as `u64` that don't: 16-bit sequence numbers and 32-bit timestamps.

/// The `u64` nearest to `reference` whose low 16 bits are `wire`. Of two equally near, the higher; never negative.
pub fn extend_u16(reference: u64, wire: u16) -> u64 {
    let _ = (reference, wire);
    todo!()
}

/// The `u64` nearest to `reference` whose low 32 bits are `wire`. Of two equally near, the higher; never negative.
pub fn extend_u32(reference: u64, wire: u32) -> u64 {
    let _ = (reference, wire);
    todo!()
}

/// Extends the 16-bit numbers of one sequence as they arrive, reordered or not.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwrapper {
    newest: Option<u64>,
}

impl Unwrapper {
    /// `wire` as a number that doesn't wrap. The first comes out as it is plus 65,536, so that reordering before it stays
    /// non-negative.
    pub fn unwrap(&mut self, wire: u16) -> u64 {
        let _ = (self.newest, wire);
        todo!()
    }
}
