//! Until when is a certificate good? Its notAfter (RFC 5280 §4.1.2.5), read out of its DER.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::{Date, Month, PrimitiveDateTime, Time};

/// DER's tags of what is read past or into (X.690 §8).
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// When the first of the certificates in `pem` ends, in seconds from 1970. None when there is none.
pub fn first_expiry_s(pem: &[u8]) -> Option<i64> {
    let certificates = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok);
    certificates.filter_map(|it| expiry_s(&it)).min()
}

/// Seconds from 1970 until the certificate's end. None when it is no certificate.
fn expiry_s(certificate: &[u8]) -> Option<i64> {
    let (SEQUENCE, certificate, _) = next(certificate)? else { return None };
    let (SEQUENCE, mut fields, _) = next(certificate)? else { return None };
    if let (VERSION, _, rest) = next(fields)? {
        fields = rest;
    }
    // Serial number, signature algorithm, issuer; then validity.
    for _ in 0..3 {
        (_, _, fields) = next(fields)?;
    }
    let (SEQUENCE, validity, _) = next(fields)? else { return None };
    let (_, _, not_after) = next(validity)?;
    let (tag, text, _) = next(not_after)?;
    seconds(tag, std::str::from_utf8(text).ok()?)
}

/// The first element of `der`: its tag, what is in it, and what follows it.
fn next(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, length], rest) = der.split_first_chunk()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        // So many bytes of length follow.
        0x81..=0x84 => {
            let (length, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// `YYMMDDHHMMSSZ` until 2049, `YYYYMMDDHHMMSSZ` from then on.
fn seconds(tag: u8, text: &str) -> Option<i64> {
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = text.split_at_checked(2)?;
            let year: i32 = year.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = text.split_at_checked(4)?;
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    let digits =
        rest.strip_suffix('Z').filter(|it| it.len() == 10 && it.bytes().all(|it| it.is_ascii_digit()))?;
    let part = |number: usize| digits.get(2 * number..2 * number + 2)?.parse::<u8>().ok();
    let month = Month::try_from(part(0)?).ok()?;
    let date = Date::from_calendar_date(year, month, part(1)?).ok()?;
    let time = Time::from_hms(part(2)?, part(3)?, part(4)?).ok()?;
    Some(PrimitiveDateTime::new(date, time).assume_utc().unix_timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn element(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = content.len();
        let length =
            if length < 128 { vec![length as u8] } else { vec![0x82, (length >> 8) as u8, length as u8] };
        [&[tag][..], &length, content].concat()
    }

    fn certificate(version: bool, tag: u8, not_after: &str) -> Vec<u8> {
        let version = if version { element(VERSION, &element(2, &[2])) } else { Vec::new() };
        let validity = [element(UTC_TIME, b"250101000000Z"), element(tag, not_after.as_bytes())].concat();
        let fields =
            [version, element(2, &[1]), element(SEQUENCE, &[]), element(SEQUENCE, &[7; 200])].concat();
        let fields = [fields, element(SEQUENCE, &validity), element(SEQUENCE, b"the subject")].concat();
        element(SEQUENCE, &[element(SEQUENCE, &fields), element(SEQUENCE, &[])].concat())
    }

    #[test]
    fn both_kinds_of_time_are_read() {
        for (tag, text, seconds) in [
            (UTC_TIME, "300131235959Z", 1_896_134_399),
            (UTC_TIME, "700101000000Z", 0),
            (GENERALIZED_TIME, "20500101000000Z", 2_524_608_000),
            (GENERALIZED_TIME, "99991231235959Z", 253_402_300_799),
        ] {
            for version in [true, false] {
                assert_eq!(expiry_s(&certificate(version, tag, text)), Some(seconds), "{text}");
            }
        }
        for (tag, text) in
            [(UTC_TIME, "300131235959"), (UTC_TIME, "300231000000Z"), (4, "300131235959Z"), (UTC_TIME, "é")]
        {
            assert_eq!(expiry_s(&certificate(true, tag, text)), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..64), cut in 0usize..320) {
            let whole = certificate(true, UTC_TIME, "300131235959Z");
            prop_assert!(cut >= whole.len() || expiry_s(&whole[..cut]).is_none());
            expiry_s(&bytes);
            bytes.insert(0, SEQUENCE);
            expiry_s(&bytes);
        }
    }
}
