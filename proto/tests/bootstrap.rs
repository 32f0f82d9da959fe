//! The committed code under `src/gen` is what the `.proto` files generate. Needs no `protoc`.
//!
//! After a change of the `.proto`, run `HEADWATER_BLESS=1 cargo test -p headwater-proto --test bootstrap` and commit the result.

use std::fs;
use std::path::Path;

#[test]
fn generated_code_matches_the_proto_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = root.join("src/gen");
    let out = tempfile::tempdir().expect("a temporary directory");

    let descriptors = protox::compile(["replication.proto", "sessions.proto"], [root])
        .expect("valid .proto files");
    tonic_prost_build::configure()
        .bytes(".")
        .emit_rerun_if_changed(false)
        .out_dir(out.path())
        .compile_fds(descriptors)
        .expect("code generation");

    for package in ["replication", "sessions"] {
        let name = format!("headwater.{package}.v1.rs");
        let fresh = fs::read_to_string(out.path().join(&name)).expect("the generated file");
        if std::env::var_os("HEADWATER_BLESS").is_some() {
            fs::create_dir_all(&committed).expect("the directory of generated code");
            fs::write(committed.join(&name), &fresh).expect("writing the generated code");
        }
        let old = fs::read_to_string(committed.join(&name)).unwrap_or_default();
        assert!(
            old == fresh,
            "src/gen/{name} is not what {package}.proto generates: run HEADWATER_BLESS=1 cargo test -p headwater-proto --test bootstrap"
        );
    }
}
