//! Builds the guest image for ring 0 with a nested cargo and exports its path as `GUEST_ELF`; that of a compressed copy, which every
//! dump has in it, as `GUEST_ELF_PACKED`.
//!
//! No target beyond the host's own is needed: the `guest` profile's fat LTO generates the precompiled libcore anew, from its
//! bitcode and without SSE, and link.ld makes a static image of it. `x86_64-unknown-none` is used where it is installed.
//!
//! `STALLBENCH_GUEST_ELF=FILE` takes a ready image instead; `STALLBENCH_GUEST_TARGET=none|host|TRIPLE` forces the target.

use std::env;
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The bare-metal target, for those who have it.
const BARE: &str = "x86_64-unknown-none";

/// How hard the copy is compressed: it is done once.
const LEVEL: u8 = 10;

/// The package of the guest and its binary.
const PAYLOAD: &str = "stallbench-payload";

/// What the image is made of, from the workspace's root.
const INPUTS: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "guest/abi/Cargo.toml",
    "guest/abi/src",
    "guest/rt/Cargo.toml",
    "guest/rt/src",
    "guest/payload/Cargo.toml",
    "guest/payload/build.rs",
    "guest/payload/link.ld",
    "guest/payload/src",
];

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    match image().and_then(|elf| Ok((pack(&elf)?, elf))) {
        Ok((packed, elf)) => {
            println!("cargo::rustc-env=GUEST_ELF={}", elf.display());
            println!("cargo::rustc-env=GUEST_ELF_PACKED={}", packed.display());
            ExitCode::SUCCESS
        }
        Err(e) => {
            e.to_string().lines().for_each(|line| println!("cargo::error={line}"));
            ExitCode::FAILURE
        }
    }
}

/// The path of the image's compressed copy.
fn pack(elf: &Path) -> Outcome<PathBuf> {
    let packed = Path::new(&variable("OUT_DIR")?).join("payload.zlib");
    fs::write(&packed, miniz_oxide::deflate::compress_to_vec_zlib(&fs::read(elf)?, LEVEL))?;
    Ok(packed)
}

/// The path of the image: a ready one, or a new one.
fn image() -> Outcome<PathBuf> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=STALLBENCH_GUEST_ELF");
    println!("cargo::rerun-if-env-changed=STALLBENCH_GUEST_TARGET");
    if let Some(ready) = env::var_os("STALLBENCH_GUEST_ELF") {
        let ready = std::path::absolute(&ready)?;
        println!("cargo::rerun-if-changed={}", ready.display());
        return if ready.is_file() { Ok(ready) } else { Err(format!("no guest image {}", ready.display()).into()) };
    }
    let root = Path::new(&variable("CARGO_MANIFEST_DIR")?).join("../..").canonicalize()?;
    for input in INPUTS.iter().map(|input| root.join(input)).filter(|input| input.exists()) {
        println!("cargo::rerun-if-changed={}", input.display());
    }
    build(&root)
}

/// Runs the nested cargo.
fn build(root: &Path) -> Outcome<PathBuf> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let target = target(&rustc)?;
    let target_dir = Path::new(&variable("OUT_DIR")?).join("guest-target");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(leaks)) {
        cargo.env_remove(name);
    }
    cargo
        .current_dir(root)
        // Comes before rustflags of any configuration file.
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(root, &target).join("\x1f"))
        .env("RUSTC", &rustc)
        .args(["build", "--quiet", "--offline", "--profile", "guest", "--package", PAYLOAD, "--bin", PAYLOAD])
        .args(["--target", &target])
        .arg("--target-dir")
        .arg(&target_dir);
    let output = cargo.output().map_err(|e| format!("cannot start cargo for the guest image: {e}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("the guest image does not build for {target}\n{errors}").into());
    }
    Ok(target_dir.join(&target).join("guest").join(PAYLOAD))
}

/// Code generation of the image: integer instructions alone, at a fixed address, no red zone under an interrupt frame, frame
/// pointers for backtraces, and the same bytes and file names wherever the sources lie.
fn rustflags(root: &Path, target: &str) -> Vec<String> {
    let mut flags = vec![
        format!("--remap-path-prefix={}=/stallbench", root.display()),
        "--cfg=guest_image".into(),
        "-Crelocation-model=static".into(),
        "-Cforce-frame-pointers=yes".into(),
        "-Cno-redzone=yes".into(),
    ];
    if target == BARE {
        // Its default is the kernel code model, for the top 2 GiB; the image is linked low.
        flags.push("-Ccode-model=small".into());
    } else {
        // rustc warns that the target's ABI has SSE in it (rust-lang/rust#116344): no float is ever passed here, and the
        // gate decodes every instruction of the image. Other warnings come up when the guest is checked for the host.
        flags.extend(["-Ctarget-feature=-sse".into(), "-Awarnings".into()]);
    }
    flags
}

/// Whether a variable is of the outer build alone: its flags, wrappers, profile and target must not reach the guest.
fn leaks(name: &str) -> bool {
    const KEPT: &[&str] = &["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_MAKEFLAGS"];
    const OUTER: &[&str] = &[
        "TARGET",
        "HOST",
        "PROFILE",
        "OPT_LEVEL",
        "DEBUG",
        "NUM_JOBS",
        "OUT_DIR",
        "LLVM_PROFILE_FILE",
        "CLIPPY_ARGS",
        "MIRI_BE_RUSTC",
    ];
    const PREFIXES: &[&str] = &["CARGO_", "RUSTC", "RUSTFLAGS", "RUSTDOC", "DEP_"];
    !KEPT.contains(&name) && (OUTER.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
}

/// The target that the image is built for.
fn target(rustc: &OsStr) -> Outcome<String> {
    match env::var("STALLBENCH_GUEST_TARGET").as_deref() {
        Ok("none") => Ok(BARE.into()),
        Ok("host") => host(),
        Ok("" | "auto") | Err(_) if has_libcore(rustc, BARE) => Ok(BARE.into()),
        Ok("" | "auto") | Err(_) => host(),
        Ok(triple) => Ok(triple.into()),
    }
}

/// The VMM's own target, whose libcore is certainly there.
fn host() -> Outcome<String> {
    let target = env::var("TARGET")?;
    let fits = target.starts_with("x86_64-") && target.contains("-linux");
    if fits { Ok(target) } else { Err(format!("no guest image can be built with {target}: install {BARE}").into()) }
}

fn has_libcore(rustc: &OsStr, target: &str) -> bool {
    let Ok(output) = Command::new(rustc).args(["--print", "target-libdir", "--target", target]).output() else {
        return false;
    };
    let directory = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success()
        && std::fs::read_dir(directory).is_ok_and(|entries| {
            entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
        })
}

fn variable(name: &str) -> Outcome<OsString> {
    env::var_os(name).ok_or_else(|| format!("no {name}: this is run by cargo").into())
}
