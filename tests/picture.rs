//! The picture of README.md: a session of the debugger on a real stall, the one in fixtures/dumps/deadlock.core, as a terminal shows
//! it. `STALLBENCH_BLESS=1 cargo test --test picture` makes it anew.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::Path;
use std::process::Command;

use anstyle::RgbColor;
use anstyle_svg::Term;

/// What is typed. Nothing of it changes what the next prints.
const TYPED: [&str; 3] = ["vcpus", "waits", "verdict"];
const DUMP: &str = "fixtures/dumps/deadlock.core";
const PICTURE: &str = "docs/debugger.svg";

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// What the debugger prints, with the colours that a terminal gets.
fn printed(command: &str) -> String {
    let mut debug = Command::new(env!("CARGO_BIN_EXE_stallbench"));
    debug.args(["debug", "--dump", DUMP, "-c", command]).current_dir(root()).env("CLICOLOR_FORCE", "1");
    let output = debug.output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn session() -> String {
    let prompts = TYPED.iter().map(|command| format!("vcpu0> {command}\n{}", printed(command)));
    format!("$ stallbench debug --dump {DUMP}\n{}", prompts.collect::<String>())
}

#[test]
fn picture_is_what_a_terminal_shows() {
    // Dark on light: the palette's red is hard to read on black.
    let terminal = Term::new().fg_color(RgbColor(0x24, 0x29, 0x2f).into()).bg_color(RgbColor(0xf6, 0xf8, 0xfa).into());
    let picture = terminal.render_svg(&session());
    let path = root().join(PICTURE);
    if std::env::var_os("STALLBENCH_BLESS").is_some() {
        fs::write(&path, &picture).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == picture,
        "{PICTURE} is not what the debugger prints: STALLBENCH_BLESS=1 cargo test --test picture makes it anew"
    );
}
