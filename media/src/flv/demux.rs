//! FLV tag bodies to configurations and access units.
