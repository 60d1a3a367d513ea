//! Functions and labels of the guest, by name and by address.

use stallbench_state::program::Symbol;

use crate::error::CommandError;
use crate::nearest::did_you_mean;

/// A label has no size: what is told by it lies in the same page.
const PAGE: u64 = 4096;

/// Functions and labels, by ascending address.
#[derive(Debug, Default)]
pub(crate) struct Symbols(Vec<Symbol>);

impl Symbols {
    pub(crate) fn new(symbols: Vec<Symbol>) -> Self {
        Self(symbols)
    }

    /// All of them.
    pub(crate) fn all(&self) -> &[Symbol] {
        &self.0
    }

    /// The function in which an address lies, and the offset in it.
    pub(crate) fn at(&self, address: u64) -> Option<(&Symbol, u64)> {
        let behind = self.0.partition_point(|symbol| symbol.address <= address);
        let symbol = self.0.get(behind.checked_sub(1)?)?;
        let offset = address - symbol.address;
        let inside = if symbol.size == 0 { address / PAGE == symbol.address / PAGE } else { offset < symbol.size };
        inside.then_some((symbol, offset))
    }

    /// `function+0x12`, or `function` at its beginning.
    pub(crate) fn place(&self, address: u64) -> Option<String> {
        let (symbol, offset) = self.at(address)?;
        Some(if offset == 0 { symbol.name.clone() } else { format!("{}+{offset:#x}", symbol.name) })
    }

    /// The names of all.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|symbol| symbol.name.as_str())
    }

    /// The symbol of a name, or of the last parts of its path.
    pub(crate) fn named(&self, name: &str) -> Result<&Symbol, CommandError> {
        if let Some(symbol) = self.0.iter().find(|symbol| symbol.name == name) {
            return Ok(symbol);
        }
        let ends = |symbol: &&Symbol| symbol.name.strip_suffix(name).is_some_and(|path| path.ends_with("::"));
        let mut ending: Vec<&Symbol> = self.0.iter().filter(ends).collect();
        ending.dedup_by_key(|symbol| &symbol.name);
        match ending[..] {
            [symbol] => Ok(symbol),
            [] => Err(CommandError::UnknownSymbol { name: name.to_owned(), near: did_you_mean(name, self.names()) }),
            [first, ..] => {
                let (name, count, first) = (name.to_owned(), ending.len(), first.name.clone());
                Err(CommandError::Ambiguous { name, count, first })
            }
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn symbols() -> Symbols {
        let symbol = |name: &str, address, size| Symbol { name: name.into(), address, size };
        Symbols::new(vec![
            symbol("_start", 0x1000, 0),
            symbol("rt::apic::send", 0x1100, 0x20),
            symbol("rt::list::send", 0x1200, 0x20),
            symbol("rt::lock::lock", 0x1300, 0x20),
        ])
    }

    #[test]
    fn address_behind_a_function_belongs_to_none() {
        let symbols = symbols();
        assert_eq!(symbols.place(0x1100).as_deref(), Some("rt::apic::send"));
        assert_eq!(symbols.place(0x1110).as_deref(), Some("rt::apic::send+0x10"));
        assert_eq!(symbols.place(0x1120), None);
        assert_eq!(symbols.place(0x1008).as_deref(), Some("_start+0x8"));
        assert_eq!(symbols.place(0xfff), None);
        assert_eq!(symbols.place(u64::MAX), None);
    }

    #[test]
    fn last_parts_of_a_path_name_a_symbol_where_only_one_has_them() {
        let symbols = symbols();
        assert_eq!(symbols.named("lock").expect("one").address, 0x1300);
        assert_eq!(symbols.named("list::send").expect("one").address, 0x1200);
        assert!(matches!(symbols.named("send"), Err(CommandError::Ambiguous { count: 2, .. })));
        let error = symbols.named("lokc").expect_err("there is none").to_string();
        assert!(error.contains("did you mean rt::lock::lock"), "{error}");
    }
}
