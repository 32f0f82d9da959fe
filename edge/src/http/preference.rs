//! What a player asks for in the query of its WHEP URL.

use std::sync::Arc;

use headwater_media::id::Bitrate;

use super::error::Problem;
use crate::shard::Preference;

/// A rendition's name is not longer than this (bytes).
const NAME_MAX: usize = 64;

/// Reads `rendition=720p` (pin it; `auto`: the best that fits) and `bandwidth=2500` (what the link is thought to carry, in kbit/s: where to
/// start). Other parameters are somebody else's.
///
/// # Errors
/// If a value makes no sense (400).
pub(super) fn read(query: &str) -> Result<Preference, Problem> {
    let mut preference = Preference::default();
    for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        match name {
            "rendition" => preference.layers.pinned = rendition(value)?,
            "bandwidth" => {
                let kilobits: u32 = value
                    .parse()
                    .map_err(|_| Problem::malformed("bandwidth: not a whole number of kbit/s"))?;
                preference.assumed = Some(Bitrate(u64::from(kilobits) * 1000));
            }
            _ => {}
        }
    }
    Ok(preference)
}

/// A rendition by its name; `None` is `auto`.
///
/// # Errors
/// If it can't be one (400).
pub(super) fn rendition(name: &str) -> Result<Option<Arc<str>>, Problem> {
    let clean = name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if !clean || name.len() > NAME_MAX {
        return Err(Problem::malformed(
            "rendition: a name like source or 720p, or auto",
        ));
    }
    Ok((!name.is_empty() && name != "auto").then(|| name.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::Layers;

    #[test]
    fn a_rendition_is_pinned_by_name_and_a_bandwidth_is_kilobits() {
        let read = |query| read(query).map_err(|problem| problem.to_string());
        assert_eq!(read(""), Ok(Preference::default()));
        assert_eq!(
            read("token=a=b&rendition=480p&bandwidth=1200"),
            Ok(Preference {
                layers: Layers {
                    pinned: Some("480p".into()),
                    ..Layers::default()
                },
                assumed: Some(Bitrate(1_200_000)),
            })
        );
        assert_eq!(read("rendition=auto"), Ok(Preference::default()));
        for bad in [
            "rendition=a%20b",
            "bandwidth=fast",
            "bandwidth=-1",
            "bandwidth=99999999999",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
