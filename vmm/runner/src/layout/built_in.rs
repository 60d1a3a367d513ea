//! The layouts inside the binary, of real machines, by the words of knob `layout`.

use std::sync::Arc;

use stallbench_abi::knob::{self, Values};

use super::Layout;

macro_rules! built_in {
    ($($name:literal),* $(,)?) => {
        /// The layout files inside the binary: name and text. A file is named as its word.
        pub static TEXTS: &[(&str, &str)] = &[$((
            $name,
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/layouts/", $name, ".toml")),
        )),*];
    };
}

built_in![
    "surface-book-3",
    "aptio-j1900",
    "openssd-host",
    "thinkpad-r50p",
    "emachines-mvp3",
    "asus-trl-dls",
    "x86-64-8g",
    "athlon64-x2",
];

/// The built-in layout of a word's code. A test reads them all, so each is valid.
pub fn of_word(code: u8) -> Option<Arc<Layout>> {
    let Values::Words(words) = knob::LAYOUT.values else { return None };
    let name = words.iter().find(|word| word.code == code)?.word;
    let (_, text) = TEXTS.iter().find(|(built_in, _)| *built_in == name)?;
    Layout::parse(name, text).ok().map(Arc::new)
}
