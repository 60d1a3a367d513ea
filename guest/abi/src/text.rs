//! Text in fixed-size fields: UTF-8, padded with zero bytes.

/// Makes a field of `N` bytes from `text`, at compile time; text that does not fit is a compile error there.
pub const fn field<const N: usize>(text: &str) -> [u8; N] {
    let bytes = text.as_bytes();
    assert!(bytes.len() <= N, "text does not fit its field");
    let mut field = [0; N];
    let mut i = 0;
    while i < bytes.len() {
        field[i] = bytes[i];
        i += 1;
    }
    field
}

/// The text in a field: up to its first zero byte and its first byte that is not UTF-8.
pub fn of(field: &[u8]) -> &str {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    match core::str::from_utf8(&field[..end]) {
        Ok(text) => text,
        Err(e) => core::str::from_utf8(&field[..e.valid_up_to()]).unwrap_or_default(),
    }
}

#[cfg(test)]
mod test {
    use super::{field, of};

    #[test]
    fn field_and_back_is_the_same() {
        assert_eq!(of(&field::<8>("gate")), "gate");
        assert_eq!(of(&field::<4>("gate")), "gate");
    }

    #[test]
    fn bytes_that_are_no_text_end_it() {
        assert_eq!(of(&[b'a', 0xff, b'b']), "a");
        assert_eq!(of(&[]), "");
    }
}
