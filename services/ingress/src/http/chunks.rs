//! Does a chunked body announce more than may come (RFC 9112 §7.1)? hyper takes any size, and waits for it; this
//! follows the bytes beside it, and says so as soon as the size stands there. Pure.
//!
//! Only where a body begins in what is read after the last answer is it followed: behind a pipelined request it is not,
//! and then its time limit alone holds.

use super::exchange::BodyFault;

/// Bytes of all extensions of one body's chunks, which mean nothing here.
const MAX_EXTENSION_BYTES: usize = 256;

/// Hexadecimal digits of a size, leading zeros included.
const MAX_DIGITS: usize = 16;

/// Where in a connection's bytes we are.
#[derive(Debug, Default)]
pub(super) struct Framing {
    /// The request whose head or body this is, counted from 0.
    request: u64,
    part: Part,
}

#[derive(Debug, Default)]
enum Part {
    #[default]
    Unknown,
    /// Bytes of the blank line that ends it; whether there was text before.
    Head {
        matched: usize,
        has_text: bool,
    },
    Body(Chunks),
}

impl Framing {
    /// Bytes of the head of request number `request`, and what came behind it. Says what is wrong with its body, should
    /// it be chunked.
    pub(super) fn head(&mut self, bytes: &[u8], request: u64, max_bytes: usize) -> Option<BodyFault> {
        if self.request != request || matches!(self.part, Part::Unknown) {
            (self.request, self.part) = (request, Part::Head { matched: 0, has_text: false });
        }
        let mut rest = bytes.iter();
        while let Part::Head { matched, has_text } = &mut self.part {
            let byte = *rest.next()?;
            *matched = match (byte, *matched) {
                (b'\r', 0 | 2) | (b'\n', 1 | 3) => *matched + 1,
                (b'\r', _) => 1,
                _ => 0,
            };
            *has_text |= !matches!(byte, b'\r' | b'\n');
            if *matched == 4 {
                // Blank lines before a request are none of it (§2.2).
                self.part = match has_text {
                    true => Part::Body(Chunks::new(max_bytes)),
                    false => Part::Head { matched: 0, has_text: false },
                };
            }
        }
        self.body(rest.as_slice(), request)
    }

    /// Further bytes of the body of request number `request`.
    pub(super) fn body(&mut self, bytes: &[u8], request: u64) -> Option<BodyFault> {
        match &mut self.part {
            Part::Body(chunks) if self.request == request => chunks.follow(bytes).err(),
            Part::Unknown | Part::Head { .. } | Part::Body(_) => {
                self.part = Part::Unknown;
                None
            }
        }
    }
}

#[derive(Debug)]
struct Chunks {
    /// Bytes that may still be announced.
    may_come: u64,
    extension_bytes: usize,
    at: At,
}

#[derive(Debug, Clone, Copy)]
enum At {
    Size {
        value: u64,
        digits: usize,
    },
    Extension {
        value: u64,
    },
    /// Of a chunk, its line ends included.
    Bytes(u64),
    /// Behind the last chunk: trailers, which hyper limits.
    End,
}

const START: At = At::Size { value: 0, digits: 0 };

impl Chunks {
    fn new(max_bytes: usize) -> Self {
        Chunks { may_come: max_bytes as u64, extension_bytes: 0, at: START }
    }

    fn follow(&mut self, mut bytes: &[u8]) -> Result<(), BodyFault> {
        while let [byte, rest @ ..] = bytes {
            self.at = match self.at {
                At::End => return Ok(()),
                At::Bytes(left) => {
                    let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    bytes = bytes.get(here..).unwrap_or_default();
                    match left - here as u64 {
                        0 => At::Size { value: 0, digits: 0 },
                        left => At::Bytes(left),
                    }
                }
                At::Size { value, digits } => {
                    bytes = rest;
                    self.size(*byte, value, digits)?
                }
                At::Extension { value } => {
                    bytes = rest;
                    self.extension_bytes += 1;
                    match byte {
                        b'\n' => self.chunk(value)?,
                        _ if self.extension_bytes > MAX_EXTENSION_BYTES => return Err(BodyFault::TooLarge),
                        _ => At::Extension { value },
                    }
                }
            };
        }
        Ok(())
    }

    fn size(&mut self, byte: u8, value: u64, digits: usize) -> Result<At, BodyFault> {
        let Some(digit) = char::from(byte).to_digit(16) else {
            return match byte {
                // Whether it is well-formed is hyper's to say.
                b'\r' | b' ' | b'\t' | b';' if digits > 0 => Ok(At::Extension { value }),
                _ => Err(BodyFault::Broken),
            };
        };
        if digits >= MAX_DIGITS {
            return Err(BodyFault::Broken);
        }
        let value = value << 4 | u64::from(digit);
        if value > self.may_come {
            return Err(BodyFault::TooLarge);
        }
        Ok(At::Size { value, digits: digits + 1 })
    }

    fn chunk(&mut self, bytes: u64) -> Result<At, BodyFault> {
        self.may_come -= bytes;
        // The line end behind the size is no extension.
        self.extension_bytes = self.extension_bytes.saturating_sub(1);
        Ok(if bytes == 0 { At::End } else { At::Bytes(bytes + 2) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEAD: &str = "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    const MAX: usize = 1_000;

    /// What is wrong with a body, however its bytes and its head's are cut.
    fn fault(body: &str) -> Option<BodyFault> {
        let text = format!("{HEAD}{body}");
        let faults: Vec<_> = [1, 2, 7, 1_000_000]
            .into_iter()
            .map(|piece| {
                let mut framing = Framing::default();
                text.as_bytes().chunks(piece).find_map(|bytes| framing.head(bytes, 0, MAX))
            })
            .collect();
        assert!(faults.iter().all(|it| *it == faults[0]), "{body:?}: {faults:?}");
        faults[0]
    }

    #[test]
    fn sizes_are_read_as_they_stand_there() {
        let chunk = |size: usize| format!("{size:X}\r\n{}\r\n", "x".repeat(size));
        for (body, expected) in [
            ("".to_owned(), None),
            ("0\r\n\r\n".to_owned(), None),
            (format!("{}{}0\r\n\r\n", chunk(600), chunk(400)), None),
            ("3e8\r\n".to_owned(), None),
            ("3e9".to_owned(), Some(BodyFault::TooLarge)),
            ("FFFFFFFFFFFFFFFF".to_owned(), Some(BodyFault::TooLarge)),
            (format!("{}191", chunk(600)), Some(BodyFault::TooLarge)),
            ("0000000000000001\r\nx\r\n".to_owned(), None),
            ("00000000000000001".to_owned(), Some(BodyFault::Broken)),
            ("\r\n".to_owned(), Some(BodyFault::Broken)),
            ("-1\r\n".to_owned(), Some(BodyFault::Broken)),
            ("x".to_owned(), Some(BodyFault::Broken)),
            (format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(255)), None),
            (format!("1;{}", "e".repeat(257)), Some(BodyFault::TooLarge)),
            ("1;a=b\r\nx\r\n".repeat(100), Some(BodyFault::TooLarge)),
            // Trailers are not followed, nor what comes behind the end.
            ("0\r\nTrailer: not hexadecimal\r\n\r\nGET".to_owned(), None),
        ] {
            assert_eq!(fault(&body), expected, "{body:?}");
        }
    }

    #[test]
    fn a_head_is_found_behind_blank_lines_and_behind_another_request() {
        let mut framing = Framing::default();
        assert_eq!(framing.head(b"\r\n\r\n\r\nGET / HTTP/1.1\r\n\r\n", 0, MAX), None);
        assert_eq!(framing.head(HEAD.as_bytes(), 1, MAX), None);
        assert_eq!(framing.body(b"FFFF", 1), Some(BodyFault::TooLarge));
        assert_eq!(framing.head(HEAD.as_bytes(), 2, MAX), None);
        // Of a request whose head was read with another's, nothing is known.
        assert_eq!(framing.body(b"FFFF", 3), None);
        assert_eq!(framing.body(b"FFFF", 3), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(pieces in proptest::collection::vec((any::<bool>(), "[0-9a-f;\r\nx]{0,30}"), 0..20)) {
            let mut framing = Framing::default();
            for (number, (head, bytes)) in pieces.iter().enumerate() {
                let request = number as u64 / 3;
                let _ = match head {
                    true => framing.head(bytes.as_bytes(), request, MAX),
                    false => framing.body(bytes.as_bytes(), request),
                };
            }
        }
    }
}
