//! Which addresses are meant by networks in CIDR notation (RFC 4632 §3.1, RFC 4291 §2.3)?

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use toml::de::DeValue;

use super::value::Value;

/// Networks after commas, as `10.0.0.0/8, fd00::/8`; a lone address is a network of its own. None by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<Network>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    bits: u8,
}

impl Networks {
    /// Whether one of them has this address. An IPv4 address written as IPv6 counts as what it is.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|it| network(address, it.bits) == Some(it.address))
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for Networks {
    type Err = String;

    /// # Errors
    /// With what was expected.
    fn from_str(text: &str) -> Result<Self, String> {
        Self::from_text(text).ok_or_else(Self::expected)
    }
}

/// The first address of the network of `bits` bits in which `address` lies. None when it has not so many.
pub fn network(address: IpAddr, bits: u8) -> Option<IpAddr> {
    let bits = u32::from(bits);
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32u32.checked_sub(bits)?).unwrap_or(0);
            Some(Ipv4Addr::from_bits(address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128u32.checked_sub(bits)?).unwrap_or(0);
            Some(Ipv6Addr::from_bits(address.to_bits() & mask).into())
        }
    }
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(it, bits)| (it, Some(bits)));
        let address: IpAddr = address.parse().ok()?;
        let bits = match bits {
            Some(bits) if bits.bytes().all(|it| it.is_ascii_digit()) => bits.parse().ok()?,
            Some(_) => return None,
            None if address.is_ipv4() => 32,
            None => 128,
        };
        // Of the addresses in it the first, so that nobody means another than he wrote.
        (address.to_canonical() == address && network(address, bits) == Some(address))
            .then_some(Self { address, bits })
    }
}

impl Value for Networks {
    fn expected() -> String {
        "networks by their first address, as 10.0.0.0/8 or fd00::/8, or addresses, several after commas; \
         empty: none"
            .to_owned()
    }

    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        Self::from_text(value.as_str()?)
    }

    fn from_text(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::default());
        }
        text.split(',').map(|it| Network::parse(it.trim())).collect::<Option<_>>().map(Self)
    }

    fn to_toml(&self) -> Option<String> {
        let texts: Vec<_> = self.0.iter().map(|it| format!("{}/{}", it.address, it.bits)).collect();
        (!texts.is_empty()).then(|| format!("\"{}\"", texts.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_and_what_is_not() {
        let networks =
            Networks::from_text("10.0.0.0/8, 192.0.2.7 ,fd00::/8,2001:db8::1, 0.0.0.0/32").unwrap();
        for inside in ["10.255.0.1", "192.0.2.7", "fdff::1", "2001:db8::1", "::ffff:10.0.0.1", "0.0.0.0"] {
            assert!(networks.contains(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["11.0.0.0", "192.0.2.8", "fe00::", "2001:db8::2", "::10.0.0.1", "0.0.0.1"] {
            assert!(!networks.contains(outside.parse().unwrap()), "{outside}");
        }
        let all = Networks::from_text("0.0.0.0/0,::/0").unwrap();
        assert!(all.contains([1, 2, 3, 4].into()) && all.contains(Ipv6Addr::LOCALHOST.into()));
        let none = Networks::from_text("").unwrap();
        assert!(none.is_empty() && !none.contains([127, 0, 0, 1].into()));
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in [
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0/8",
            "010.0.0.0/8",
            "fd00::/129",
            "fd00::1/8",
            "host",
            "10.0.0.0/8,",
            ",",
            " ",
            "::ffff:10.0.0.0/104",
            "10.0.0.0/8;fd00::/8",
        ] {
            assert_eq!(Networks::from_text(text), None, "{text}");
        }
    }

    #[test]
    fn they_are_shown_as_they_are_read() {
        let shown = Networks::from_text("10.0.0.0/8,::1").unwrap().to_toml().unwrap();
        assert_eq!(shown, "\"10.0.0.0/8, ::1/128\"");
        assert_eq!(Networks::default().to_toml(), None);
    }
}
