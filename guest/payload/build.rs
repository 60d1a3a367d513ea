//! Linker inputs of the image; code-generation flags come from the build script that nests this build.

fn main() {
    println!("cargo:rerun-if-changed=link.ld");
    if std::env::var_os("CARGO_CFG_GUEST_IMAGE").is_none() {
        return;
    }
    let Ok(dir) = std::env::var("CARGO_MANIFEST_DIR") else { return };
    // x86_64-unknown-none links with rust-lld directly, a *-linux-* target through cc.
    let freestanding = std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none");
    let arguments: &[&str] = if freestanding {
        &["-static", "--build-id=none"]
    } else {
        &["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"]
    };
    for argument in arguments {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
    println!("cargo:rustc-link-arg-bins=-T{dir}/link.ld");
}
