//! How is a WebSocket frame read and written (RFC 6455 §5)? Pure: bytes in, pieces of payload out, as they come.

use bytes::{BufMut, BytesMut};

/// The longest payload of a control frame (§5.5).
pub const MAX_CONTROL_BYTES: usize = 125;

/// Why a WebSocket is closed (§7.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCode {
    /// All is done.
    Normal = 1000,
    /// The client broke the protocol.
    ProtocolError = 1002,
    /// The client sent text: MQTT is binary (MQTT-6.0.0-1).
    Unsupported = 1003,
}

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// A part of the stream of bytes.
    Payload(BytesMut),
    /// To be answered with [`pong`].
    Ping(BytesMut),
    /// Of no interest.
    Pong,
    /// The client closes, with its code.
    Close(Option<u16>),
}

/// Reads a client's frames.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Inside a binary frame: what is left of it.
    left: u64,
    mask: [u8; 4],
    /// How far into the mask the next byte is.
    offset: usize,
    /// A message of several frames has begun.
    fragmented: bool,
}

struct Head {
    bytes: usize,
    last: bool,
    opcode: u8,
    length: u64,
    mask: [u8; 4],
}

impl Decoder {
    /// Takes the next piece out of `inbound`. None when more must come first; then at most a head and a control
    /// frame's payload are left in it.
    ///
    /// # Errors
    /// With the code to close with.
    pub fn next(&mut self, inbound: &mut BytesMut) -> Result<Option<Piece>, CloseCode> {
        loop {
            if self.left > 0 {
                if inbound.is_empty() {
                    return Ok(None);
                }
                let take = usize::try_from(self.left).unwrap_or(usize::MAX).min(inbound.len());
                let mut payload = inbound.split_to(take);
                unmask(&mut payload, self.mask, self.offset);
                self.offset = (self.offset + take) % 4;
                self.left -= take as u64;
                return Ok(Some(Piece::Payload(payload)));
            }
            let Some(head) = head(inbound)? else { return Ok(None) };
            if head.opcode & 0x8 != 0 {
                return control(&head, inbound);
            }
            match (head.opcode, self.fragmented) {
                (0x0, true) | (0x2, false) => {}
                (0x1, false) => return Err(CloseCode::Unsupported),
                _ => return Err(CloseCode::ProtocolError),
            }
            self.fragmented = !head.last;
            let _ = inbound.split_to(head.bytes);
            (self.left, self.mask, self.offset) = (head.length, head.mask, 0);
        }
    }
}

/// A frame's head, if all of it is there.
fn head(inbound: &[u8]) -> Result<Option<Head>, CloseCode> {
    let (&[first, second], rest) = match inbound.split_first_chunk::<2>() {
        Some(split) => split,
        None => return Ok(None),
    };
    // §5.2: no extension was agreed on. §5.1: a client masks.
    if first & 0x70 != 0 || second & 0x80 == 0 {
        return Err(CloseCode::ProtocolError);
    }
    let (length, rest, shortest) = match second & 0x7f {
        126 => match rest.split_first_chunk::<2>() {
            Some((length, rest)) => (u64::from(u16::from_be_bytes(*length)), rest, 126),
            None => return Ok(None),
        },
        127 => match rest.split_first_chunk::<8>() {
            Some((length, rest)) => (u64::from_be_bytes(*length), rest, 65_536),
            None => return Ok(None),
        },
        length => (u64::from(length), rest, 0),
    };
    // §5.2: the highest bit is 0, and the shortest form is used.
    if length > i64::MAX as u64 || length < shortest {
        return Err(CloseCode::ProtocolError);
    }
    let Some((mask, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
    let bytes = inbound.len() - rest.len();
    Ok(Some(Head { bytes, last: first & 0x80 != 0, opcode: first & 0x0f, length, mask: *mask }))
}

/// A control frame is taken whole.
fn control(head: &Head, inbound: &mut BytesMut) -> Result<Option<Piece>, CloseCode> {
    let length = usize::try_from(head.length).unwrap_or(usize::MAX);
    if !head.last || length > MAX_CONTROL_BYTES {
        return Err(CloseCode::ProtocolError);
    }
    if inbound.len() < head.bytes + length {
        return Ok(None);
    }
    let mut payload = inbound.split_to(head.bytes + length).split_off(head.bytes);
    unmask(&mut payload, head.mask, 0);
    match head.opcode {
        0x8 => match payload.split_first_chunk::<2>() {
            Some((code, _)) => match u16::from_be_bytes(*code) {
                // §7.4: those that are defined and may be sent, and the ranges of libraries and applications.
                code @ (1000..=1003 | 1007..=1014 | 3000..=4999) => Ok(Some(Piece::Close(Some(code)))),
                _ => Err(CloseCode::ProtocolError),
            },
            None if payload.is_empty() => Ok(Some(Piece::Close(None))),
            None => Err(CloseCode::ProtocolError),
        },
        0x9 => Ok(Some(Piece::Ping(payload))),
        0xa => Ok(Some(Piece::Pong)),
        _ => Err(CloseCode::ProtocolError),
    }
}

fn unmask(payload: &mut [u8], mask: [u8; 4], offset: usize) {
    let mut mask = mask;
    mask.rotate_left(offset % 4);
    let mut chunks = payload.chunks_exact_mut(4);
    for chunk in &mut chunks {
        for (byte, mask) in chunk.iter_mut().zip(mask) {
            *byte ^= mask;
        }
    }
    for (byte, mask) in chunks.into_remainder().iter_mut().zip(mask) {
        *byte ^= mask;
    }
}

/// Writes a binary frame.
pub fn binary(payload: &[u8], out: &mut BytesMut) {
    frame(0x82, payload, out);
}

/// Writes the answer to a ping (§5.5.3), its payload at most [`MAX_CONTROL_BYTES`].
pub fn pong(payload: &[u8], out: &mut BytesMut) {
    frame(0x8a, payload, out);
}

/// Writes the last frame (§5.5.1).
pub fn close(code: u16, out: &mut BytesMut) {
    frame(0x88, &code.to_be_bytes(), out);
}

/// §5.1: a server does not mask.
fn frame(first: u8, payload: &[u8], out: &mut BytesMut) {
    out.reserve(10 + payload.len());
    out.put_u8(first);
    match payload.len() {
        length @ 0..=125 => out.put_u8(length as u8),
        length @ 126..=65_535 => {
            out.put_u8(126);
            out.put_u16(length as u16);
        }
        length => {
            out.put_u8(127);
            out.put_u64(length as u64);
        }
    }
    out.put_slice(payload);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A client's frame.
    fn masked(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
        let mut unmasked = BytesMut::new();
        frame(first, payload, &mut unmasked);
        let head = unmasked.len() - payload.len();
        let mut wire = unmasked.to_vec();
        wire[1] |= 0x80;
        wire.splice(head..head, mask);
        for (index, byte) in wire[head + 4..].iter_mut().enumerate() {
            *byte ^= mask[index % 4];
        }
        wire
    }

    fn read(wire: &[u8]) -> Result<Vec<Piece>, CloseCode> {
        let (mut decoder, mut inbound) = (Decoder::default(), BytesMut::from(wire));
        let mut pieces = Vec::new();
        while let Some(piece) = decoder.next(&mut inbound)? {
            pieces.push(piece);
        }
        Ok(pieces)
    }

    #[test]
    fn the_standards_examples() {
        // §5.7, as far as a client sends it, with the opcode of binary.
        let hello = [0x82, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(read(&hello).unwrap(), [Piece::Payload("Hello".into())]);
        let mut out = BytesMut::new();
        pong(b"Hello", &mut out);
        assert_eq!(&out[..], [0x8a, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
        for (length, head) in
            [(256, &[0x82, 0x7e, 1, 0][..]), (65_536, &[0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0][..])]
        {
            let mut out = BytesMut::new();
            binary(&vec![0; length], &mut out);
            assert_eq!((&out[..head.len()], out.len()), (head, head.len() + length));
        }
    }

    #[test]
    fn control_frames_may_stand_between_the_parts_of_a_message() {
        let wire = [
            masked(0x02, b"ab", [1, 2, 3, 4]),
            masked(0x89, b"you there?", [5, 6, 7, 8]),
            masked(0x8a, b"", [0; 4]),
            masked(0x00, b"", [9; 4]),
            masked(0x80, b"cd", [9; 4]),
            masked(0x82, b"ef", [0; 4]),
            masked(0x88, &[0x03, 0xe8], [1; 4]),
        ];
        let expected = [
            Piece::Payload("ab".into()),
            Piece::Ping("you there?".into()),
            Piece::Pong,
            Piece::Payload("cd".into()),
            Piece::Payload("ef".into()),
            Piece::Close(Some(1000)),
        ];
        assert_eq!(read(&wire.concat()).unwrap(), expected);
        assert_eq!(read(&masked(0x88, b"", [1; 4])).unwrap(), [Piece::Close(None)]);
    }

    #[test]
    fn what_is_no_frame_of_ours_is_refused_with_a_code() {
        let mut unmasked = BytesMut::new();
        binary(b"x", &mut unmasked);
        let table = [
            (masked(0x81, b"text", [0; 4]), CloseCode::Unsupported),
            (unmasked.to_vec(), CloseCode::ProtocolError),
            (masked(0xc2, b"compressed", [0; 4]), CloseCode::ProtocolError),
            (masked(0x80, b"continues nothing", [0; 4]), CloseCode::ProtocolError),
            ([masked(0x02, b"a", [0; 4]), masked(0x82, b"b", [0; 4])].concat(), CloseCode::ProtocolError),
            (masked(0x83, b"reserved", [0; 4]), CloseCode::ProtocolError),
            (masked(0x8b, b"reserved", [0; 4]), CloseCode::ProtocolError),
            (masked(0x09, b"a ping in parts", [0; 4]), CloseCode::ProtocolError),
            (masked(0x89, &[0; 126], [0; 4]), CloseCode::ProtocolError),
            (masked(0x88, &[3], [0; 4]), CloseCode::ProtocolError),
            (vec![0x82, 0xfe, 0, 125, 0, 0, 0, 0], CloseCode::ProtocolError),
            (vec![0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], CloseCode::ProtocolError),
        ];
        for (wire, code) in table {
            assert_eq!(read(&wire), Err(code), "{wire:x?}");
        }
    }

    #[test]
    fn a_code_that_none_may_send_is_not_taken() {
        let closes = |code: u16| read(&masked(0x88, &code.to_be_bytes(), [0; 4]));
        for code in [1000, 1001, 1003, 1007, 1014, 3000, 4999] {
            assert_eq!(closes(code), Ok(vec![Piece::Close(Some(code))]));
        }
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, u16::MAX] {
            assert_eq!(closes(code), Err(CloseCode::ProtocolError), "{code}");
        }
    }

    proptest! {
        #[test]
        fn payload_survives_however_it_is_cut(
            frames in proptest::collection::vec(
                (proptest::collection::vec(any::<u8>(), 0..300), any::<[u8; 4]>()), 1..20,
            ),
            cuts in proptest::collection::vec(1usize..40, 1..50),
        ) {
            let sent: Vec<u8> = frames.iter().flat_map(|(payload, _)| payload.clone()).collect();
            let wire: Vec<u8> = frames.iter().flat_map(|(payload, mask)| masked(0x82, payload, *mask)).collect();
            let (mut decoder, mut inbound, mut read) = (Decoder::default(), BytesMut::new(), Vec::new());
            let (mut wire, mut cuts) = (&wire[..], cuts.iter().cycle());
            while !wire.is_empty() {
                let (part, rest) = wire.split_at((*cuts.next().unwrap()).min(wire.len()));
                wire = rest;
                inbound.extend_from_slice(part);
                while let Some(piece) = decoder.next(&mut inbound).unwrap() {
                    let Piece::Payload(payload) = piece else { panic!() };
                    read.extend_from_slice(&payload);
                }
                prop_assert!(inbound.len() < 14);
            }
            prop_assert_eq!(read, sent);
        }

        #[test]
        fn no_bytes_panic_or_pile_up(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let (mut decoder, mut inbound) = (Decoder::default(), BytesMut::from(&bytes[..]));
            while let Ok(Some(_)) = decoder.next(&mut inbound) {}
            prop_assert!(decoder.next(&mut inbound).is_err() || inbound.len() < 14 + MAX_CONTROL_BYTES);
        }
    }
}
