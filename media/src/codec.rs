//! Just enough of each codec's bitstream to package it: no decoding.

pub mod aac;
pub(crate) mod bits;
pub mod h264;
pub mod opus;
