//! Words that reports show by name.

use core::ptr::addr_of_mut;
use core::sync::atomic::AtomicU32;

use stallbench_abi::layout::GHOST;
use stallbench_abi::shared::{GhostPage, NamedWord, WORD_SLOTS};
use stallbench_abi::text;

/// Names a word of the protocol; a second word of that name takes the place of the first. The initiator alone calls it.
pub fn name(name: &str, word: &AtomicU32) {
    let field = text::field::<16>(name);
    // SAFETY: the ghost page is mapped for as long as the guest runs; this makes an address, no reference.
    let words = unsafe { addr_of_mut!((*ghost()).words).cast::<NamedWord>() };
    for slot in 0..WORD_SLOTS {
        // SAFETY: a slot of the ghost page, which only the initiator writes and the host reads.
        unsafe {
            let slot = words.add(slot);
            let taken = addr_of_mut!((*slot).address).read_volatile() != 0;
            if taken && addr_of_mut!((*slot).name).read_volatile() != field {
                continue;
            }
            addr_of_mut!((*slot).name).write_volatile(field);
            addr_of_mut!((*slot).width).write_volatile(4);
            addr_of_mut!((*slot).address).write_volatile(core::ptr::from_ref(word) as u64);
            return;
        }
    }
    panic!("no slot is left for the word {name}");
}

fn ghost() -> *mut GhostPage {
    GHOST as *mut GhostPage
}
