//! Addresses and sizes as people and kernels write them: `0xc0000000`, `3072MB`, `512KB`, `2GB`, `65536`.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Visitor};

/// A number of bytes, or the value of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number(pub u64);

/// Reads a number with its unit; nothing when it is none, or larger than any.
pub(super) fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(&hex.replace('_', ""), 16).ok();
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "K" | "KB" | "KIB" => 1 << 10,
        "M" | "MB" | "MIB" => 1 << 20,
        "G" | "GB" | "GIB" => 1 << 30,
        _ => return None,
    };
    digits.trim().parse::<u64>().ok()?.checked_mul(unit)
}

/// A number of bytes for people: `3 MiB`.
pub(super) fn in_words(bytes: u64) -> String {
    match bytes {
        0 => "0".to_owned(),
        bytes if bytes.trailing_zeros() >= 30 => format!("{} GiB", bytes >> 30),
        bytes if bytes.trailing_zeros() >= 20 => format!("{} MiB", bytes >> 20),
        bytes if bytes.trailing_zeros() >= 10 => format!("{} KiB", bytes >> 10),
        bytes => format!("{bytes} bytes"),
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberVisitor)
    }
}

struct NumberVisitor;

impl Visitor<'_> for NumberVisitor {
    type Value = Number;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number from 0 on, or a text such as \"0xc0000000\", \"512KB\", \"256MB\"")
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Number, E> {
        u64::try_from(number).map(Number).map_err(|_| E::invalid_value(serde::de::Unexpected::Signed(number), &self))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Number, E> {
        parse(text).map(Number).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn numbers_of_all_spellings_are_read() {
        assert_eq!(parse("0xC000_0000"), Some(0xc000_0000));
        assert_eq!(
            (parse(" 512KB"), parse("2048MB "), parse("1 GB")),
            (Some(512 << 10), Some(2048 << 20), Some(1 << 30))
        );
        assert_eq!((parse("4096"), parse("0")), (Some(4096), Some(0)));
        for wrong in ["", "x", "0x", "MB", "12TB", "-1", "99999999999999GB", "1.5MB"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn bytes_are_told_in_the_largest_whole_unit() {
        assert_eq!(
            [in_words(3 << 20), in_words(4 << 30), in_words(1536), in_words(5)],
            ["3 MiB", "4 GiB", "1536 bytes", "5 bytes"]
        );
    }
}
