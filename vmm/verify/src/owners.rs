//! Whose cells a byte is in: those of a component are its own to read and to write.

use core::ops::Range;

use stallbench_state::certificate::{Certificate, Span};

/// All cells of a certificate, and all memory that is set aside.
#[derive(Debug)]
pub(crate) struct Owners {
    /// Ascending; they do not overlap.
    spans: Vec<Owned>,
}

/// Bytes that are one component's, or anybody's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owned {
    pub(crate) bytes: Range<u64>,
    /// Its index. `None`: they may hold anything, and anybody may change them.
    pub(crate) component: Option<usize>,
}

impl Owners {
    /// Of a certificate that is well formed.
    pub(crate) fn of(certificate: &Certificate) -> Self {
        let owned = |component, span: &Span| Owned { bytes: range(span), component };
        let mut spans: Vec<Owned> = Vec::new();
        for (index, component) in certificate.components.iter().enumerate() {
            spans.extend(component.cells.iter().map(|span| owned(Some(index), span)));
        }
        spans.extend(certificate.aside.iter().map(|span| owned(None, span)));
        spans.sort_unstable_by_key(|owned| owned.bytes.start);
        Self { spans }
    }

    /// The parts of these bytes that are somebody's, with whose they are.
    pub(crate) fn within(&self, bytes: Range<u64>) -> impl Iterator<Item = (Range<u64>, &Owned)> {
        let first = self.spans.partition_point(|owned| owned.bytes.end <= bytes.start);
        let overlapping = self.spans[first..].iter().take_while({
            let end = bytes.end;
            move |owned| owned.bytes.start < end
        });
        overlapping.map(move |owned| (owned.bytes.start.max(bytes.start)..owned.bytes.end.min(bytes.end), owned))
    }

    /// Whose this byte is.
    pub(crate) fn of_byte(&self, address: u64) -> Option<&Owned> {
        let first = self.spans.partition_point(|owned| owned.bytes.end <= address);
        self.spans.get(first).filter(|owned| owned.bytes.start <= address)
    }

    /// All of them.
    pub(crate) fn all(&self) -> &[Owned] {
        &self.spans
    }
}

/// The bytes of a span that is well formed.
pub(crate) fn range(span: &Span) -> Range<u64> {
    span.address.0..span.address.0 + span.size
}

#[cfg(test)]
mod test {
    use super::*;
    use stallbench_state::certificate::{Component, Memory, VERSION, Word};

    fn owners() -> Owners {
        let span = |address, size| Span { address: Word(address), size };
        let components = vec![Component { cells: vec![span(0x108, 8), span(0x100, 4)], ..Component::default() }];
        Owners::of(&Certificate {
            stallbench_certificate: VERSION,
            payload: String::new(),
            run: String::new(),
            vcpus: Vec::new(),
            components,
            aside: vec![span(0x104, 2)],
            memory: Memory::default(),
        })
    }

    #[test]
    fn byte_belongs_to_the_component_that_names_it() {
        let owners = owners();
        let of = |address| owners.of_byte(address).map(|owned| owned.component);
        let expected =
            [(0xff, None), (0x100, Some(Some(0))), (0x103, Some(Some(0))), (0x104, Some(None)), (0x106, None)];
        for (address, owner) in expected {
            assert_eq!(of(address), owner, "{address:#x}");
        }
        assert_eq!((of(0x107), of(0x10f), of(0x110)), (None, Some(Some(0)), None));
    }

    #[test]
    fn access_meets_all_parts_that_are_somebodys() {
        let owners = owners();
        let parts: Vec<_> = owners.within(0x102..0x10a).map(|(part, owned)| (part, owned.component)).collect();
        assert_eq!(parts, [(0x102..0x104, Some(0)), (0x104..0x106, None), (0x108..0x10a, Some(0))]);
        assert_eq!(owners.within(0x106..0x108).count(), 0);
    }
}
