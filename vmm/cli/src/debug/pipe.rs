//! Lines of commands out of a pipe. One that cannot be followed costs no other.

use std::io::{self, BufRead, Read};

/// Most bytes of a line, without its end.
const LONGEST: u64 = 1 << 16;

/// The next line, or what is wrong with it; `None` where there is none.
pub(super) fn next(input: &mut impl BufRead) -> io::Result<Option<Result<String, String>>> {
    let mut line = Vec::new();
    // One byte more, for its end.
    Read::take(&mut *input, LONGEST + 1).read_until(b'\n', &mut line)?;
    let is_whole = line.ends_with(b"\n");
    if line.is_empty() {
        return Ok(None);
    }
    if !is_whole && line.len() as u64 > LONGEST {
        input.skip_until(b'\n')?;
        return Ok(Some(Err(format!("a line is longer than {LONGEST} bytes"))));
    }
    Ok(Some(String::from_utf8(line).map_err(|_| "a line is not UTF-8".to_owned())))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn line_that_cannot_be_followed_costs_no_other() {
        let longest = "x".repeat(LONGEST as usize);
        let input = [format!("vcpus\n{longest}\n{longest}y\n").as_bytes(), b"\xff\nbt\n", longest.as_bytes()].concat();
        let mut input = &input[..];
        let mut next = || next(&mut input).unwrap();
        assert_eq!(next(), Some(Ok("vcpus\n".into())));
        assert_eq!(next(), Some(Ok(format!("{longest}\n"))));
        assert_eq!(next(), Some(Err("a line is longer than 65536 bytes".into())));
        assert_eq!(next(), Some(Err("a line is not UTF-8".into())));
        assert_eq!(next(), Some(Ok("bt\n".into())));
        assert_eq!((next(), next()), (Some(Ok(longest.clone())), None));
    }
}
