//! Addresses on the command line: a number, a symbol, a register behind a dollar sign, with something added or taken away.

use crate::arguments::number;
use crate::error::CommandError;
use crate::nearest::did_you_mean;
use crate::place;
use crate::registers;
use crate::session::Session;

/// An address, and which memory it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// As the current vCPU's page tables map it.
    Linear(u64),
    /// Guest-physical.
    Physical(u64),
}

impl Address {
    /// The number.
    pub(crate) fn value(self) -> u64 {
        match self {
            Self::Linear(value) | Self::Physical(value) => value,
        }
    }

    /// The address so many bytes on; it wraps, as a processor's does.
    pub(crate) fn plus(self, offset: u64) -> Self {
        match self {
            Self::Linear(value) => Self::Linear(value.wrapping_add(offset)),
            Self::Physical(value) => Self::Physical(value.wrapping_add(offset)),
        }
    }
}

/// Reads an address; `phys:` before it makes it guest-physical.
pub(crate) fn address(session: &Session, text: &str) -> Result<Address, CommandError> {
    match text.strip_prefix("phys:") {
        Some(text) => value(session, text).map(Address::Physical),
        None => value(session, text).map(Address::Linear),
    }
}

/// Reads a value: `0x4000e0`, `lock_and_call+0x12`, `$rsp-8`.
pub(crate) fn value(session: &Session, text: &str) -> Result<u64, CommandError> {
    // Names of symbols may have these signs in them: what is behind has to be a number.
    let split = text.rfind(['+', '-']).filter(|&at| at > 0);
    if let Some(at) = split
        && let Some(offset) = number(&text[at + 1..])
    {
        let start = value(session, &text[..at])?;
        let adds = text.as_bytes()[at] == b'+';
        return Ok(if adds { start.wrapping_add(offset) } else { start.wrapping_sub(offset) });
    }
    if let Some(name) = text.strip_prefix('$') {
        return registers::value(session.vcpu()?, name);
    }
    match number(text) {
        Some(value) => Ok(value),
        None => match session.symbols().named(text) {
            // A word of the case goes before the last part of some function's path.
            Ok(symbol) if symbol.name != text => Ok(place::data(session, text).map_or(symbol.address, |(at, _)| at)),
            Ok(symbol) => Ok(symbol.address),
            Err(CommandError::UnknownSymbol { .. }) => {
                place::named(session, text)?.ok_or_else(|| unknown(session, text))
            }
            Err(error) => Err(error),
        },
    }
}

/// Nothing has that name, nor is it a number.
fn unknown(session: &Session, text: &str) -> CommandError {
    if text.starts_with("phys:") {
        return CommandError::Physical { text: text.to_owned() };
    }
    let words = place::words(session);
    let near = did_you_mean(text, words.iter().map(String::as_str).chain(session.symbols().names()));
    CommandError::UnknownSymbol { name: text.to_owned(), near }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::sample;

    #[test]
    fn address_is_a_number_a_register_or_a_symbol_with_an_offset() {
        let session = sample::session();
        let of = |text| value(&session, text).expect("it is one");
        assert_eq!(of("0x4000e0"), 0x40_00e0);
        assert_eq!(of("$rip"), sample::rip());
        assert_eq!(of("$RIP+0x10-1"), sample::rip() + 15);
        assert_eq!(of("_start+4"), of("_start") + 4);
        assert_eq!(of("0-1"), u64::MAX);
        assert_eq!(address(&session, "phys:0x1000").expect("it is one"), Address::Physical(0x1000));
    }

    #[test]
    fn what_does_not_exist_gets_the_nearest_names() {
        let session = sample::session();
        let error = |text| value(&session, text).expect_err("there is none").to_string();
        assert!(error("$rpi").starts_with("no register $rpi; did you mean ") && error("$rpi").contains("rip"));
        assert!(error("_strat").starts_with("neither a number nor a symbol: _strat; did you mean _start"));
        assert!(error("phys:0x1000").contains("is guest-physical"), "{}", error("phys:0x1000"));
        for text in ["", "$", "+", "-", "0x", "phys:", "$rip+", "a+0x"] {
            assert!(address(&session, text).is_err(), "{text}");
        }
    }
}
