//! The image: freestanding when the image's build script builds it with `--cfg guest_image`, an empty host program otherwise,
//! so that the tools that build the whole workspace need no special case.
#![cfg_attr(guest_image, no_std)]
#![cfg_attr(guest_image, no_main)]

#[cfg(not(guest_image))]
fn main() {
    eprintln!("this is a host build of the guest payload; `stallbench run` runs the image that is built for ring 0");
}

#[cfg(guest_image)]
mod mem;

#[cfg(guest_image)]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    stallbench_rt::epitaph::panic(info)
}

/// Where the first instructions of every vCPU end.
#[cfg(guest_image)]
#[unsafe(no_mangle)]
extern "C" fn stallbench_main(vcpu: u64) -> ! {
    stallbench_rt::bring_up::run(vcpu as usize, &stallbench_payload::PAYLOAD)
}
