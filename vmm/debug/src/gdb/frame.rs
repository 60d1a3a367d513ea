//! Packets of gdb's remote protocol as they come over a wire: `$BODY#CHECKSUM`, and the single byte of an interrupt (gdb manual,
//! E.1 Overview, E.10 Interrupts).

/// The longest packet that is taken, and that clients are told they may send.
pub(super) const LONGEST: usize = 0x4000;

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A packet whose checksum is right: what is between the dollar sign and the number sign.
    Packet(Vec<u8>),
    /// A packet that is damaged or too long.
    Damaged,
    /// Ctrl-C.
    Interrupt,
}

/// Puts bytes together.
#[derive(Debug, Default)]
pub(super) struct Frames {
    at: At,
    body: Vec<u8>,
    is_too_long: bool,
}

#[derive(Debug, Default)]
enum At {
    /// Between packets, where a byte 3 is an interrupt: acknowledgements and noise are dropped.
    #[default]
    Between,
    Body,
    Checksum(Option<u8>),
}

impl Frames {
    /// Takes a byte; what is complete with it.
    pub(super) fn push(&mut self, byte: u8) -> Option<Frame> {
        match (&self.at, byte) {
            (At::Between, 3) => return Some(Frame::Interrupt),
            // A packet that begins within another: the one before was cut off.
            (At::Between | At::Body, b'$') => self.begin(),
            (At::Between, _) => {}
            (At::Body, b'#') => self.at = At::Checksum(None),
            (At::Body, byte) if self.body.len() < LONGEST => self.body.push(byte),
            (At::Body, _) => self.is_too_long = true,
            (At::Checksum(None), byte) => self.at = At::Checksum(Some(byte)),
            (&At::Checksum(Some(high)), low) => return Some(self.end(high, low)),
        }
        None
    }

    /// A dollar sign: a packet begins, and what was before is forgotten.
    fn begin(&mut self) {
        self.body.clear();
        self.is_too_long = false;
        self.at = At::Body;
    }

    fn end(&mut self, high: u8, low: u8) -> Frame {
        self.at = At::Between;
        let body = std::mem::take(&mut self.body);
        let said = digit(high).zip(digit(low)).map(|(high, low)| high << 4 | low);
        match said == Some(checksum(&body)) && !self.is_too_long {
            true => Frame::Packet(body),
            false => Frame::Damaged,
        }
    }
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

fn checksum(body: &[u8]) -> u8 {
    body.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// A packet with that body, which has been escaped where it must.
pub(super) fn framed(body: &[u8]) -> Vec<u8> {
    let mut packet = vec![b'$'];
    packet.extend(body);
    packet.extend(format!("#{:02x}", checksum(body)).bytes());
    packet
}

/// Bytes as they stand in the body of a packet that carries them as they are (gdb manual, E.1).
pub(super) fn escaped(bytes: &[u8]) -> Vec<u8> {
    let of = |&byte: &u8| match byte {
        b'#' | b'$' | b'}' | b'*' => vec![b'}', byte ^ 0x20],
        byte => vec![byte],
    };
    bytes.iter().flat_map(of).collect()
}

/// What gdb prints while it waits for a stop.
pub(super) fn console(text: &str) -> Vec<u8> {
    let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    framed(format!("O{hex}").as_bytes())
}

#[cfg(test)]
mod test {
    use super::*;

    fn all(bytes: &[u8]) -> Vec<Frame> {
        let mut frames = Frames::default();
        bytes.iter().filter_map(|byte| frames.push(*byte)).collect()
    }

    #[test]
    fn packets_and_interrupts_come_out_of_noise() {
        let packet = |body: &[u8]| Frame::Packet(body.to_vec());
        assert_eq!(all(b"+-xyz\n$g#67+$?#3f"), [packet(b"g"), packet(b"?")]);
        assert_eq!(all(b"\x03$X1,1:\x03#23\x03"), [Frame::Interrupt, packet(b"X1,1:\x03"), Frame::Interrupt]);
        assert_eq!(all(b"$cut off$g#67"), [packet(b"g")]);
        assert_eq!(all(&framed(b"qSupported")), [packet(b"qSupported")]);
    }

    #[test]
    fn damaged_and_endless_packets_take_no_room() {
        assert_eq!(all(b"$g#68$g#zz$g#"), [Frame::Damaged, Frame::Damaged]);
        let mut frames = Frames::default();
        for byte in b"$".iter().chain(std::iter::repeat_n(&b'a', 10 * LONGEST)) {
            assert_eq!(frames.push(*byte), None);
        }
        assert!(frames.body.len() <= LONGEST);
        assert_eq!(b"#00".map(|byte| frames.push(byte))[2], Some(Frame::Damaged));
    }

    #[test]
    fn bytes_that_mean_something_are_escaped() {
        assert_eq!(escaped(b"a$#}*"), b"a}\x04}\x03}]}\x0a");
        assert_eq!(console("A\n"), b"$O410a#45");
    }
}
