//! Sets of vCPUs.

use core::fmt;

use stallbench_abi::image::VcpuMask;
use stallbench_abi::layout::MASK_WORDS;

/// A set of vCPUs, none of them beyond [`stallbench_abi::layout::MAX_VCPUS`].
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct VcpuSet(VcpuMask);

impl VcpuSet {
    /// No vCPU.
    pub const EMPTY: Self = Self([0; MASK_WORDS]);

    /// The members of a mask that a guest wrote, of those that a machine with `vcpus` vCPUs has.
    pub fn of_mask(mask: VcpuMask, vcpus: usize) -> Self {
        let mut set = Self(mask);
        for (word, bits) in set.0.iter_mut().zip(Self::all(vcpus).0) {
            *word &= bits;
        }
        set
    }

    /// vCPUs 0 to `vcpus - 1`.
    pub fn all(vcpus: usize) -> Self {
        (0..vcpus).collect()
    }

    /// Adds a vCPU; one that no mask can name is left out.
    pub fn insert(&mut self, vcpu: usize) {
        if let Some(word) = self.0.get_mut(vcpu / 64) {
            *word |= 1 << (vcpu % 64);
        }
    }

    /// The set without a vCPU.
    pub fn without(mut self, vcpu: usize) -> Self {
        if let Some(word) = self.0.get_mut(vcpu / 64) {
            *word &= !(1 << (vcpu % 64));
        }
        self
    }

    /// Whether a vCPU is in it.
    pub fn contains(&self, vcpu: usize) -> bool {
        self.0.get(vcpu / 64).is_some_and(|word| word & 1 << (vcpu % 64) != 0)
    }

    /// The vCPUs in both.
    pub fn and(mut self, other: Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(word, bits)| *word &= bits);
        self
    }

    /// The vCPUs in either.
    pub fn or(mut self, other: Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(word, bits)| *word |= bits);
        self
    }

    /// The vCPUs in this and not in the other.
    pub fn minus(mut self, other: Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(word, bits)| *word &= !bits);
        self
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        *self == Self::EMPTY
    }

    /// The only member, where there is just one.
    pub fn single(&self) -> Option<usize> {
        self.iter().next().filter(|_| self.len() == 1)
    }

    /// The members, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + use<> {
        let words = self.0;
        (0..MASK_WORDS * 64).filter(move |vcpu| words[vcpu / 64] & 1 << (vcpu % 64) != 0)
    }
}

impl FromIterator<usize> for VcpuSet {
    fn from_iter<I: IntoIterator<Item = usize>>(vcpus: I) -> Self {
        let mut set = Self::EMPTY;
        vcpus.into_iter().for_each(|vcpu| set.insert(vcpu));
        set
    }
}

impl fmt::Debug for VcpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// As `vcpu1, vcpu2`; where all that lie between two are in it, and they are many, as `vcpu1 to vcpu63`.
impl fmt::Display for VcpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.iter().next().unwrap_or_default(), self.iter().last().unwrap_or_default());
        if self.len() > 4 && last - first + 1 == self.len() {
            return write!(f, "vcpu{first} to vcpu{last}");
        }
        for (i, vcpu) in self.iter().enumerate() {
            write!(f, "{}vcpu{vcpu}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn members_beyond_the_machine_are_dropped() {
        let set = VcpuSet::of_mask([u64::MAX; MASK_WORDS], 3);
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(set.len(), 3);
    }

    #[test]
    fn members_in_a_row_are_told_by_the_first_and_the_last() {
        let shown = |members: &[usize]| members.iter().copied().collect::<VcpuSet>().to_string();
        assert_eq!(shown(&[1, 2, 3, 4]), "vcpu1, vcpu2, vcpu3, vcpu4");
        assert_eq!(shown(&(1..200).collect::<Vec<_>>()), "vcpu1 to vcpu199");
        assert_eq!(shown(&[0, 2, 3, 4, 5]), "vcpu0, vcpu2, vcpu3, vcpu4, vcpu5");
    }

    #[test]
    fn vcpu_that_no_mask_can_name_is_left_out() {
        let mut set = VcpuSet::EMPTY;
        set.insert(MASK_WORDS * 64);
        assert!(set.is_empty() && !set.contains(usize::MAX));
    }

    #[test]
    fn single_is_the_only_member() {
        assert_eq!([3].into_iter().collect::<VcpuSet>().single(), Some(3));
        assert_eq!(VcpuSet::all(2).single(), None);
        assert_eq!(VcpuSet::EMPTY.single(), None);
        assert_eq!(VcpuSet::all(2).to_string(), "vcpu0, vcpu1");
    }
}
