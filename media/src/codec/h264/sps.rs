//! The sequence parameter set (ITU-T H.264 section 7.3.2.1.1 and annex E), as far as packaging needs it.

#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use super::Error;
use crate::codec::bits::{BitReader, OutOfBits};

/// What we know of a sequence parameter set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sps {
    pub(super) profile_level_id: [u8; 3],
    /// seq_parameter_set_id, 0 to 31.
    pub(super) id: u32,
    pub(super) chroma_format_idc: u8,
    pub(super) bit_depth_luma_minus8: u8,
    pub(super) bit_depth_chroma_minus8: u8,
    pub(super) width: u16,
    pub(super) height: u16,
    pub(super) max_reorder_frames: Option<u8>,
}

const EXTENDED_SAR: u8 = 255;
/// Frames a decoded picture buffer can hold (ITU-T H.264 section A.3.1 j): no reorder depth exceeds it.
const DPB_FRAMES_MAX: u32 = 16;

/// Whether profile_idc has the chroma format and scaling lists in its SPS.
pub(super) const fn is_high(profile_idc: u8) -> bool {
    matches!(
        profile_idc,
        100 | 110 | 122 | 244 | 44 | 83 | 86 | 118 | 128 | 138 | 139 | 134 | 135
    )
}

impl Sps {
    /// From a NAL unit with its header byte.
    pub(super) fn parse(nal: &[u8]) -> Result<Self, Error> {
        let (_, rbsp) = nal.split_first().ok_or(Error::Truncated("SPS"))?;
        let mut reader = BitReader::rbsp(rbsp);
        Self::read(&mut reader).map_err(|error| match error {
            ReadError::OutOfBits => Error::Truncated("SPS"),
            ReadError::Invalid(what) => Error::InvalidSps(what),
        })
    }

    fn read(r: &mut BitReader<'_>) -> Result<Self, ReadError> {
        let profile_level_id = [r.byte()?, r.byte()?, r.byte()?];
        let [profile_idc, constraints, _] = profile_level_id;
        let id = at_most(r.ue()?, 31, "seq_parameter_set_id")?;

        let (mut chroma_format_idc, mut bit_depths, mut separate_planes) = (1, [0, 0], false);
        if is_high(profile_idc) {
            chroma_format_idc = at_most(r.ue()?, 3, "chroma_format_idc")?;
            if chroma_format_idc == 3 {
                separate_planes = r.flag()?;
            }
            bit_depths = [
                at_most(r.ue()?, 6, "bit_depth_luma_minus8")?,
                at_most(r.ue()?, 6, "bit_depth_chroma_minus8")?,
            ];
            r.skip(1)?; // qpprime_y_zero_transform_bypass_flag
            if r.flag()? {
                let lists = if chroma_format_idc == 3 { 12 } else { 8 };
                for list in 0..lists {
                    if r.flag()? {
                        skip_scaling_list(r, if list < 6 { 16 } else { 64 })?;
                    }
                }
            }
        }

        at_most(r.ue()?, 12, "log2_max_frame_num_minus4")?;
        let order_type = at_most(r.ue()?, 2, "pic_order_cnt_type")?;
        match order_type {
            0 => {
                at_most(r.ue()?, 12, "log2_max_pic_order_cnt_lsb_minus4")?;
            }
            1 => {
                r.skip(1)?; // delta_pic_order_always_zero_flag
                r.se()?; // offset_for_non_ref_pic
                r.se()?; // offset_for_top_to_bottom_field
                for _ in 0..at_most(r.ue()?, 255, "num_ref_frames_in_pic_order_cnt_cycle")? {
                    r.se()?; // offset_for_ref_frame
                }
            }
            _ => {}
        }

        r.ue()?; // max_num_ref_frames
        r.skip(1)?; // gaps_in_frame_num_value_allowed_flag
        let width_blocks = u64::from(r.ue()?).saturating_add(1);
        let height_units = u64::from(r.ue()?).saturating_add(1);
        let frames_only = r.flag()?;
        if !frames_only {
            r.skip(1)?; // mb_adaptive_frame_field_flag
        }
        r.skip(1)?; // direct_8x8_inference_flag
        let mut crop = [0_u32; 4]; // left, right, top, bottom
        if r.flag()? {
            for side in &mut crop {
                *side = r.ue()?;
            }
        }

        // Section 7.4.2.1.1: the crop is counted in chroma samples, and in field rows for interlaced video.
        let field_factor = if frames_only { 1 } else { 2 };
        let (unit_x, unit_y): (u64, u64) = match (chroma_format_idc, separate_planes) {
            (1, _) => (2, 2),
            (2, _) => (2, 1),
            _ => (1, 1),
        };
        let [left, right, top, bottom] = crop.map(u64::from);
        let cropped = |blocks: u64, unit: u64, first: u64, second: u64| {
            let size = blocks.saturating_mul(16);
            let cut = first.saturating_add(second).saturating_mul(unit);
            let rest = size.saturating_sub(cut);
            u16::try_from(rest)
                .ok()
                .filter(|rest| *rest > 0)
                .ok_or(ReadError::Invalid("picture size"))
        };
        let width = cropped(width_blocks, unit_x, left, right)?;
        let height = cropped(
            height_units.saturating_mul(field_factor),
            unit_y.saturating_mul(field_factor),
            top,
            bottom,
        )?;

        // A VUI that can't be read is taken as absent: some encoders write a broken one, and no decoder needs it.
        let announced = if r.flag()? {
            read_reorder_frames(r).unwrap_or(None)
        } else {
            None
        };
        Ok(Self {
            profile_level_id,
            id,
            chroma_format_idc: narrow(chroma_format_idc),
            bit_depth_luma_minus8: narrow(bit_depths[0]),
            bit_depth_chroma_minus8: narrow(bit_depths[1]),
            width,
            height,
            max_reorder_frames: announced
                .or_else(|| never_reorders(profile_idc, constraints, order_type).then_some(0)),
        })
    }
}

/// Whether output order is decoding order whatever the VUI says: the Baseline profile has no B slices (section A.2.1), picture order
/// count type 2 can't express reordering (section 8.2.1.3), and intra profiles have nothing to reorder (section E.2.1).
const fn never_reorders(profile_idc: u8, constraints: u8, order_type: u32) -> bool {
    let constraint_set3 = constraints & 0x10 != 0;
    let intra = matches!(profile_idc, 44 | 86 | 100 | 110 | 122 | 244) && constraint_set3;
    profile_idc == 66 || order_type == 2 || intra
}

enum ReadError {
    OutOfBits,
    Invalid(&'static str),
}

impl From<OutOfBits> for ReadError {
    fn from(_: OutOfBits) -> Self {
        Self::OutOfBits
    }
}

fn at_most(value: u32, most: u32, name: &'static str) -> Result<u32, ReadError> {
    if value <= most {
        Ok(value)
    } else {
        Err(ReadError::Invalid(name))
    }
}

/// Of a number that was checked to be small.
fn narrow(value: u32) -> u8 {
    u8::try_from(value).unwrap_or(u8::MAX)
}

/// Section 7.3.2.1.1.1.
fn skip_scaling_list(r: &mut BitReader<'_>, size: usize) -> Result<(), OutOfBits> {
    let (mut last, mut next) = (8_i32, 8_i32);
    for _ in 0..size {
        if next != 0 {
            let delta = r.se()?;
            next = last.wrapping_add(delta) & 0xff;
        }
        if next != 0 {
            last = next;
        }
    }
    Ok(())
}

/// The VUI (section E.1.1) up to max_num_reorder_frames.
fn read_reorder_frames(r: &mut BitReader<'_>) -> Result<Option<u8>, OutOfBits> {
    if r.flag()? && r.byte()? == EXTENDED_SAR {
        r.skip(32)?; // sar_width, sar_height
    }
    if r.flag()? {
        r.skip(1)?; // overscan_appropriate_flag
    }
    if r.flag()? {
        r.skip(4)?; // video_format, video_full_range_flag
        if r.flag()? {
            r.skip(24)?; // colour_primaries, transfer_characteristics, matrix_coefficients
        }
    }
    if r.flag()? {
        r.ue()?; // chroma_sample_loc_type_top_field
        r.ue()?; // chroma_sample_loc_type_bottom_field
    }
    if r.flag()? {
        r.skip(65)?; // num_units_in_tick, time_scale, fixed_frame_rate_flag
    }
    let nal_hrd = r.flag()?;
    if nal_hrd {
        skip_hrd(r)?;
    }
    let vcl_hrd = r.flag()?;
    if vcl_hrd {
        skip_hrd(r)?;
    }
    if nal_hrd || vcl_hrd {
        r.skip(1)?; // low_delay_hrd_flag
    }
    r.skip(1)?; // pic_struct_present_flag
    if !r.flag()? {
        return Ok(None);
    }
    r.skip(1)?; // motion_vectors_over_pic_boundaries_flag
    for _ in 0..4 {
        r.ue()?; // max_bytes_per_pic_denom to log2_max_mv_length_vertical
    }
    let frames = r.ue()?;
    Ok((frames <= DPB_FRAMES_MAX).then(|| narrow(frames)))
}

/// Section E.1.2.
fn skip_hrd(r: &mut BitReader<'_>) -> Result<(), OutOfBits> {
    let schedules = r.ue()?;
    if schedules > 31 {
        return Err(OutOfBits);
    }
    r.skip(8)?; // bit_rate_scale, cpb_size_scale
    for _ in 0..=schedules {
        r.ue()?; // bit_rate_value_minus1
        r.ue()?; // cpb_size_value_minus1
        r.skip(1)?; // cbr_flag
    }
    r.skip(20) // four delay and offset lengths
}
