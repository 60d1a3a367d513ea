//! What the first bytes of an instruction of 64-bit code say: its prefixes and the class of its opcode. It decodes no operand and
//! no length; what an instruction reads and writes is learned by executing it.

/// Most bytes of an instruction (SDM 2A 2.3.11).
pub(crate) const MOST_BYTES: usize = 15;

/// The first bytes of an instruction, looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opening {
    /// It has a LOCK prefix, or exchanges with memory, which is locked without one (SDM 2B, XCHG).
    pub(crate) locked: bool,
    /// Its class.
    pub(crate) class: Class,
}

/// What class an instruction is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// None of the others.
    Other,
    /// It may go to itself.
    Branch,
    /// It repeats, its address staying where it is.
    Repeated,
    /// `hlt`.
    Halt,
    /// A fence of this many bytes. It has no result; kvm_pvm executes the next instruction in the same step.
    Fence(usize),
    /// Its result is no function of a state, or no state holds it.
    Refused(&'static str),
}

const OPERAND_SIZE: u8 = 0x66;
const REPNE: u8 = 0xf2;
const REP: u8 = 0xf3;
const LOCK: u8 = 0xf0;

impl Opening {
    /// Of these bytes, which may end early.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let prefixes = bytes.iter().take_while(|byte| is_prefix(**byte)).count();
        let (before, rest) = bytes.split_at(prefixes);
        let class = class(before, rest);
        // 86 and 87: xchg. Without a memory operand it stores nothing, and then this says nothing.
        let exchange = matches!(rest.first(), Some(0x86 | 0x87));
        Self { locked: before.contains(&LOCK) || exchange, class }
    }
}

/// Legacy prefixes and REX (SDM 2A 2.1.1, 2.2.1).
fn is_prefix(byte: u8) -> bool {
    matches!(byte, OPERAND_SIZE | 0x67 | REPNE | REP | LOCK | 0x2e | 0x36 | 0x3e | 0x26 | 0x64 | 0x65 | 0x40..=0x4f)
}

fn class(prefixes: &[u8], rest: &[u8]) -> Class {
    let repeats = prefixes.contains(&REP) || prefixes.contains(&REPNE);
    let modrm = || rest.get(1).copied().unwrap_or(0);
    match rest.first() {
        Some(0xf4) => Class::Halt,
        Some(0xa4..=0xa7 | 0xaa..=0xaf) if repeats => Class::Repeated,
        Some(0x70..=0x7f | 0xe0..=0xe3 | 0xe8 | 0xe9 | 0xeb | 0xc2 | 0xc3) => Class::Branch,
        Some(0xff) => match modrm() >> 3 & 7 {
            2 | 4 => Class::Branch,
            3 | 5 => Class::Refused("a far branch"),
            _ => Class::Other,
        },
        // Single steps use TF themselves: whether the guest has set it is lost.
        Some(0x9d) => Class::Refused("a load of the flags"),
        Some(0x8e) => Class::Refused("a load of a segment register"),
        Some(0xca | 0xcb | 0xcf) => Class::Refused("a far return"),
        Some(0xcc..=0xce | 0xf1) => Class::Refused("a software interrupt"),
        Some(0x6c..=0x6f | 0xe4..=0xe7 | 0xec..=0xef) => Class::Refused("an access to a port"),
        Some(0x0f) => two_bytes(prefixes, &rest[1..]).map_or(Class::Other, |length| match length {
            Class::Fence(length) => Class::Fence(prefixes.len() + 1 + length),
            class => class,
        }),
        _ => Class::Other,
    }
}

/// Opcodes behind 0F (SDM 2D A.3); the length of a fence is that from here on.
fn two_bytes(prefixes: &[u8], rest: &[u8]) -> Option<Class> {
    let modrm = rest.get(1).copied().unwrap_or(0);
    let (register, in_register) = (modrm >> 3 & 7, modrm >> 6 == 3);
    Some(match rest.first()? {
        0x80..=0x8f => Class::Branch,
        0x00 | 0x01 | 0x05 | 0x06 | 0x07 | 0x34 | 0x35 => Class::Refused("a system instruction"),
        0x20..=0x23 => Class::Refused("an access to a control or debug register"),
        0x30 | 0x32 => Class::Refused("an access to a model-specific register"),
        0x31 => Class::Refused("rdtsc"),
        0x33 => Class::Refused("rdpmc"),
        0xa1 | 0xa9 | 0xb2 | 0xb4 | 0xb5 => Class::Refused("a load of a segment register"),
        0xc7 if in_register && register >= 6 => Class::Refused("rdrand, rdseed or rdpid"),
        0xae if in_register && register >= 5 => fence(prefixes),
        _ => return None,
    })
}

/// With a mandatory prefix the opcode of a fence is that of something else (SDM 2D table A-6).
fn fence(prefixes: &[u8]) -> Class {
    match prefixes.iter().any(|prefix| matches!(*prefix, OPERAND_SIZE | REPNE | REP | LOCK)) {
        true => Class::Refused("an instruction that waits"),
        false => Class::Fence(2),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn class_of(bytes: &[u8]) -> Class {
        Opening::of(bytes).class
    }

    #[test]
    fn locked_are_the_prefix_and_exchanges() {
        assert!(Opening::of(&[0xf0, 0xff, 0x03]).locked, "lock inc");
        assert!(Opening::of(&[0x48, 0x87, 0x03]).locked, "xchg");
        assert!(!Opening::of(&[0x89, 0x03]).locked, "mov");
        assert!(!Opening::of(&[0x0f, 0xb1, 0x0b]).locked, "cmpxchg without lock");
        assert!(!Opening::of(&[0xb8, 0xf0, 0, 0, 0]).locked, "mov eax, 0xf0");
    }

    #[test]
    fn branches_may_go_to_themselves() {
        let branches: [&[u8]; 8] = [
            &[0xeb, 0xfe],
            &[0x75, 0xfe],
            &[0x0f, 0x84, 0, 0, 0, 0],
            &[0xe2, 0xfe],
            &[0xff, 0x23],
            &[0xff, 0xd0],
            &[0xc3],
            &[0xe8, 0, 0, 0, 0],
        ];
        for branch in branches {
            assert_eq!(class_of(branch), Class::Branch, "{branch:x?}");
        }
        assert_eq!(class_of(&[0xff, 0x03]), Class::Other, "inc");
        assert_eq!(class_of(&[0x0f, 0xb1, 0x0b]), Class::Other, "cmpxchg");
    }

    #[test]
    fn string_instructions_repeat_with_a_prefix_only() {
        assert_eq!(class_of(&[0xf3, 0x48, 0xab]), Class::Repeated);
        assert_eq!(class_of(&[0xf2, 0xae]), Class::Repeated);
        assert_eq!(class_of(&[0x48, 0xab]), Class::Other);
        assert_eq!(class_of(&[0xf3, 0x90]), Class::Other, "pause");
    }

    #[test]
    fn fences_have_their_length() {
        assert_eq!(class_of(&[0x0f, 0xae, 0xf0]), Class::Fence(3));
        assert_eq!(class_of(&[0x48, 0x0f, 0xae, 0xe8]), Class::Fence(4));
        assert_eq!(class_of(&[0x0f, 0xae, 0x3b]), Class::Other, "clflush");
        assert!(matches!(class_of(&[0x66, 0x0f, 0xae, 0xf0]), Class::Refused(_)), "tpause");
    }

    #[test]
    fn what_is_no_function_of_a_state_is_refused() {
        let refused: [&[u8]; 11] = [
            &[0x0f, 0x31],
            &[0x0f, 0xc7, 0xf0],
            &[0xf3, 0x0f, 0xc7, 0xf8],
            &[0x0f, 0x01, 0xf9],
            &[0x0f, 0x01, 0xf8],
            &[0x0f, 0x30],
            &[0x0f, 0x20, 0xc0],
            &[0xec],
            &[0x8e, 0xd8],
            &[0xcc],
            &[0x9d],
        ];
        for bytes in refused {
            assert!(matches!(class_of(bytes), Class::Refused(_)), "{bytes:x?}");
        }
        assert_eq!(class_of(&[0x0f, 0xc7, 0x0b]), Class::Other, "cmpxchg8b");
        assert_eq!(class_of(&[0xf4]), Class::Halt);
    }

    #[test]
    fn bytes_that_end_early_are_nothing_of_all_that() {
        for bytes in [&[][..], &[0x0f], &[0xf3], &[0xf0, 0x48], &[0xff]] {
            assert_eq!(class_of(bytes), Class::Other, "{bytes:x?}");
        }
    }
}
