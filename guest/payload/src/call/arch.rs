//! The architecture's part: which interrupts a call sends (x86 of 2.6.28 and later).

use stallbench_abi::knob::flip;
use stallbench_abi::layout::vector;
use stallbench_rt::apic;
use stallbench_rt::boot;
use stallbench_rt::mask::Mask;

use crate::flip as flips;

/// arch_send_call_function_single_ipi().
pub(super) fn send_call_function_single(target: usize) {
    if flips::is(flip::NO_IPI) {
        return;
    }
    apic::send(target, vector::CALL_FUNCTION_SINGLE);
}

/// arch_send_call_function_ipi(): the shorthand where the targets are all there are, else one by one
/// (native_send_call_func_ipi()).
pub(super) fn send_call_function(targets: Mask) {
    if flips::is(flip::NO_IPI) {
        return;
    }
    let all_others = targets == super::others() && targets.count() as usize == boot::vcpus() - 1;
    if all_others {
        apic::send_all_but_self(vector::CALL_FUNCTION);
    } else {
        for target in targets.iter() {
            apic::send(target, vector::CALL_FUNCTION);
        }
    }
}
