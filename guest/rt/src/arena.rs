//! The arena: what vCPUs share. Memory that is zero at start.
//!
//! vCPU 0 places the static objects before any other vCPU is up. Records with the lifetime of a stack frame live in the
//! arena too, in a part for each vCPU: the vCPUs' own stacks are absent from each other's page tables. What comes and goes
//! carries a [`Mark`], so that a host can tell live memory from dead.

use core::marker::PhantomData;
use core::ops::Deref;
use core::ptr::{addr_of, addr_of_mut};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use stallbench_abi::arena::{self as abi, Life, MARK, Mark, Storage};
use stallbench_abi::event::{EventKind, text_at};
use stallbench_abi::layout::{ARENA, ARENA_SIZE};
use stallbench_abi::text;

use crate::mask::SharedMask;
use crate::{boot, cpu, event, this};

/// Bytes of the arena's stacks that each vCPU has.
const STACK_SIZE: u64 = 2048;

/// What stands at the start of the arena.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Root {
    /// First free byte behind the static objects.
    next: AtomicU64,
    /// Base of the arena's stacks.
    stacks: AtomicU64,
    /// The payload's own root.
    payload: AtomicU64,
    /// vCPUs that interrupts can be sent to.
    pub online: SharedMask,
    /// vCPUs that have still to come up.
    pub missing: AtomicU32,
    /// 1 once the case may begin.
    pub started: AtomicU32,
}

/// What can lie in the arena.
///
/// # Safety
///
/// All-zero bytes are a valid value, and every field is an atomic, or is written before the object is shared and never after.
pub unsafe trait Shared: 'static {}

// SAFETY: atomics, valid when zero.
unsafe impl Shared for AtomicU32 {}
// SAFETY: atomics, valid when zero.
unsafe impl Shared for AtomicU64 {}
// SAFETY: atomics, valid when zero.
unsafe impl Shared for SharedMask {}
// SAFETY: an array of what is.
unsafe impl<T: Shared, const N: usize> Shared for [T; N] {}

/// What stands at the start of the arena.
pub fn root() -> &'static Root {
    // SAFETY: the host maps the arena for as long as the guest runs, zeroed; zero is a valid `Root` and its fields are atomics.
    unsafe { &*(ARENA as *const Root) }
}

/// Prepares the arena. vCPU 0, alone.
pub(crate) fn set_up() {
    let root = root();
    root.next.store(ARENA + size_of::<Root>() as u64, Ordering::Relaxed);
    let stacks = place(boot::vcpus() as u64 * STACK_SIZE, 64);
    root.stacks.store(stacks, Ordering::Relaxed);
}

/// Takes bytes of the arena for good. vCPU 0, before the others are up.
fn place(size: u64, align: u64) -> u64 {
    let root = root();
    let base = root.next.load(Ordering::Relaxed).next_multiple_of(align);
    assert!(base + size <= ARENA + ARENA_SIZE, "the arena is full");
    root.next.store(base + size, Ordering::Relaxed);
    base
}

/// Places a static object. vCPU 0, before the others are up.
pub fn place_static<T: Shared>() -> &'static T {
    &place_array(1)[0]
}

/// Places an array of static objects. vCPU 0, before the others are up.
pub fn place_array<T: Shared>(len: usize) -> &'static [T] {
    let base = place((len * size_of::<T>()) as u64, align_of::<T>().max(64) as u64);
    // SAFETY: fresh, zeroed, aligned bytes that nothing else uses; `Shared` says that they are a valid array.
    unsafe { core::slice::from_raw_parts(base as *const T, len) }
}

/// Tells all vCPUs where the payload's root is. vCPU 0, before the others are up.
pub fn set_payload_root<T: Shared>(payload: &'static T) {
    root().payload.store(core::ptr::from_ref(payload) as u64, Ordering::Relaxed);
}

/// The payload's root.
///
/// # Safety
///
/// `T` is the type that [`set_payload_root`] was called with.
pub unsafe fn payload_root<T: Shared>() -> &'static T {
    // SAFETY: set before any other vCPU was up, static, and of this type, says the caller.
    unsafe { &*(root().payload.load(Ordering::Relaxed) as *const T) }
}

/// An array of the arena whose length is known when it is placed.
#[derive(Debug)]
#[repr(C)]
pub struct SharedArray<T> {
    base: AtomicU64,
    len: AtomicU64,
    of: PhantomData<T>,
}

// SAFETY: an address and a length; zero is an array of nothing.
unsafe impl<T: Shared> Shared for SharedArray<T> {}

impl<T: Shared> SharedArray<T> {
    /// Places it. vCPU 0, before the others are up.
    pub fn place(&self, len: usize) {
        self.base.store(place_array::<T>(len).as_ptr() as u64, Ordering::Relaxed);
        self.len.store(len as u64, Ordering::Relaxed);
    }

    /// One of its objects.
    pub fn get(&self, index: usize) -> &'static T {
        assert!((index as u64) < self.len.load(Ordering::Relaxed), "no such object in the arena");
        // SAFETY: `place` stored an array of the arena of this length and type, before the others were up.
        unsafe { &*(self.base.load(Ordering::Relaxed) as *const T).add(index) }
    }
}

/// Places memory for a pool whose objects carry marks. vCPU 0, before the others are up.
pub fn place_pool(size: u64) -> u64 {
    place(size, 64)
}

/// Marks an object as live.
pub fn mark_live(object: u64, size: usize, storage: Storage, name: &str) {
    let name = text::field::<8>(name);
    let mark = mark_of(object);
    let generation = this::next_generation();
    // SAFETY: the 32 bytes before an object of the arena are its mark; only its owner writes it.
    unsafe {
        addr_of_mut!((*mark).magic).write_volatile(MARK);
        addr_of_mut!((*mark).storage).write_volatile(storage);
        addr_of_mut!((*mark).owner).write_volatile(this::vcpu() as u32);
        addr_of_mut!((*mark).generation).write_volatile(generation);
        addr_of_mut!((*mark).size).write_volatile(size as u32);
        addr_of_mut!((*mark).name).write_volatile(name);
        addr_of_mut!((*mark).life).write_volatile(Life::LIVE);
    }
    event::record(EventKind::LIFE, Life::LIVE.0 | generation << 8, object, u64::from_le_bytes(name));
}

/// Marks an object as dead.
pub fn mark_dead(object: u64) {
    let mark = mark_of(object);
    // SAFETY: as in `mark_live`.
    let (name, generation) = unsafe {
        addr_of_mut!((*mark).owner).write_volatile(this::vcpu() as u32);
        addr_of_mut!((*mark).life).write_volatile(Life::DEAD);
        (addr_of!((*mark).name).read_volatile(), addr_of!((*mark).generation).read_volatile())
    };
    event::record(EventKind::LIFE, Life::DEAD.0 | generation << 8, object, u64::from_le_bytes(name));
}

fn mark_of(object: u64) -> *mut Mark {
    (object - size_of::<Mark>() as u64) as *mut Mark
}

/// The generation that the mark of an object says, and whether it lives; 0 for one without a mark.
fn generation_at(object: u64) -> (u32, bool) {
    let mark = mark_of(object).cast_const();
    // SAFETY: the bytes before an object lie in the arena, which stays mapped for ever; whatever stands there is read as numbers.
    unsafe {
        if addr_of!((*mark).magic).read_volatile() != MARK {
            return (0, false);
        }
        let lives = addr_of!((*mark).life).read_volatile() == Life::LIVE;
        (addr_of!((*mark).generation).read_volatile(), lives)
    }
}

/// Records that a step uses an object that is gone, if it is.
#[inline(never)]
fn touch(object: u64, generation: u32, step: &'static str) {
    if generation != 0 && generation_at(object) != (generation, true) {
        let step = text_at(step.as_ptr() as u64, step.len());
        event::record(EventKind::LIFE_BREACH, generation, object, step);
    }
}

/// A reference to the object that is there now, for another vCPU to [hold](Held::of).
pub fn reference<T: Shared>(object: &'static T) -> u64 {
    let address = core::ptr::from_ref(object) as u64;
    abi::reference(address, generation_at(address).0)
}

/// An object of the arena whose life somebody else may end, as it was when this reference to it was made.
///
/// A step that is about to use the object [touches](Self::touch) it. Nothing is done about an object that is gone: that the step
/// uses it all the same is the protocol's bug, which is recorded.
#[derive(Debug)]
pub struct Held<T: Shared> {
    object: &'static T,
    generation: u32,
}

impl<T: Shared> Held<T> {
    /// Holds an object by a [reference](OnStack::reference) that its owner handed on.
    ///
    /// # Safety
    ///
    /// The reference was made of a `T`.
    pub unsafe fn of(reference: u64) -> Self {
        let (address, generation) = abi::object_of(reference);
        // SAFETY: the arena stays mapped for ever; the type is the caller's word. What stands there once the object is dead are
        // atomics of whatever value: a late access is the protocol's bug, which the bench is about, and no undefined one.
        Self { object: unsafe { &*(address as *const T) }, generation }
    }

    /// Holds the object that is there now. One without a mark, as static objects are, can be held, and never dies.
    pub fn now(object: &'static T) -> Self {
        Self { object, generation: generation_at(core::ptr::from_ref(object) as u64).0 }
    }

    /// Address of the object.
    pub fn address(&self) -> u64 {
        core::ptr::from_ref(self.object) as u64
    }

    /// Its generation; 0 for an object without a mark.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Says that this step of the protocol, as in `ipi_handler B6`, uses the object now: recorded if it is no longer the one that
    /// is held. It reads the mark and writes nothing, as long as the object lives.
    pub fn touch(&self, step: &'static str) {
        touch(self.address(), self.generation, step);
    }
}

impl<T: Shared> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.object
    }
}

/// An object with the lifetime of a stack frame that other vCPUs can reach.
///
/// It dies with this guard, whoever still looks at it: that is the hazard that such records have.
#[derive(Debug)]
pub struct OnStack<T: Shared> {
    object: &'static T,
    used_before: u64,
}

/// Makes an object on this vCPU's part of the arena's stacks; its bytes are zero.
pub fn on_stack<T: Shared>(name: &str) -> OnStack<T> {
    const { assert!(align_of::<T>() <= 32) };
    let used = this::arena_stack_used();
    let used_before = used.get();
    let size = (size_of::<Mark>() + size_of::<T>()).next_multiple_of(32) as u64;
    assert!(used_before + size <= STACK_SIZE, "an arena stack is full");
    used.set(used_before + size);
    let base = root().stacks.load(Ordering::Relaxed) + this::vcpu() as u64 * STACK_SIZE + used_before;
    let object = base + size_of::<Mark>() as u64;
    // SAFETY: these bytes belong to this guard; what stood here is dead.
    unsafe { cpu::clear(object, size_of::<T>()) };
    mark_live(object, size_of::<T>(), Storage::STACK, name);
    // SAFETY: aligned bytes of the arena, zeroed, and `Shared` says that zero is a valid value. The memory itself stays mapped
    // for ever, so that a late access by another vCPU is the protocol's bug, which the bench is about, and no undefined one.
    let object = unsafe { &*(object as *const T) };
    OnStack { object, used_before }
}

impl<T: Shared> OnStack<T> {
    /// The object, for as long as the protocol thinks that it lives.
    pub fn leak(&self) -> &'static T {
        self.object
    }

    /// A reference to hand on, by which another vCPU [holds](Held::of) this object and no later one.
    pub fn reference(&self) -> u64 {
        reference(self.object)
    }
}

impl<T: Shared> Deref for OnStack<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.object
    }
}

impl<T: Shared> Drop for OnStack<T> {
    fn drop(&mut self) {
        mark_dead(core::ptr::from_ref(self.object) as u64);
        this::arena_stack_used().set(self.used_before);
    }
}
