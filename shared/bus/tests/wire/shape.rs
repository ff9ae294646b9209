//! Can a decoder that was made for one message read another? By its shape: what stands at each place.

use minicbor::data::Type;
use minicbor::{Decoder, Encoder};
use serde_json::Value;

/// A value in CBOR, as much of it as heads have.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Cbor {
    Null,
    Bool(bool),
    Int(u64),
    Bytes(Vec<u8>),
    Text(String),
    Array(Vec<Cbor>),
    Map(Vec<(Cbor, Cbor)>),
}

impl Cbor {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut decoder = Decoder::new(bytes);
        let it = Cbor::next(&mut decoder);
        assert_eq!(decoder.position(), bytes.len());
        it
    }

    fn next(from: &mut Decoder<'_>) -> Self {
        match from.datatype().unwrap() {
            Type::Null => {
                from.null().unwrap();
                Cbor::Null
            }
            Type::Bool => Cbor::Bool(from.bool().unwrap()),
            Type::Bytes => Cbor::Bytes(from.bytes().unwrap().to_vec()),
            Type::String => Cbor::Text(from.str().unwrap().to_owned()),
            Type::Array => {
                let length = from.array().unwrap().unwrap();
                Cbor::Array((0..length).map(|_| Cbor::next(from)).collect())
            }
            Type::Map => {
                let length = from.map().unwrap().unwrap();
                Cbor::Map((0..length).map(|_| (Cbor::next(from), Cbor::next(from))).collect())
            }
            _ => Cbor::Int(from.u64().unwrap()),
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut to = Encoder::new(Vec::new());
        self.write(&mut to);
        to.into_writer()
    }

    fn write(&self, to: &mut Encoder<Vec<u8>>) {
        match self {
            Cbor::Null => to.null().map(|_| ()),
            Cbor::Bool(it) => to.bool(*it).map(|_| ()),
            Cbor::Int(it) => to.u64(*it).map(|_| ()),
            Cbor::Bytes(it) => to.bytes(it).map(|_| ()),
            Cbor::Text(it) => to.str(it).map(|_| ()),
            Cbor::Array(all) => to.array(all.len() as u64).map(|to| all.iter().for_each(|it| it.write(to))),
            Cbor::Map(all) => to.map(all.len() as u64).map(|to| {
                all.iter().for_each(|(key, value)| {
                    key.write(to);
                    value.write(to);
                });
            }),
        }
        .unwrap();
    }

    fn kind(&self) -> &'static str {
        match self {
            Cbor::Null => "nothing",
            Cbor::Bool(_) => "a bool",
            Cbor::Int(_) => "a number",
            Cbor::Bytes(_) => "bytes",
            Cbor::Text(_) => "a text",
            Cbor::Array(_) => "an array",
            Cbor::Map(_) => "a map",
        }
    }
}

/// Why a decoder of `before` does not read `now`, which is of the same type; `at` is where they stand.
pub(crate) fn misread(at: &str, before: &Cbor, now: &Cbor) -> Option<String> {
    let Cbor::Array(were) = before else {
        let is_same = before.kind() == now.kind();
        return (!is_same)
            .then(|| format!("{at}: {} where the previous build reads {}", now.kind(), before.kind()));
    };
    let Cbor::Array(are) = now else {
        return Some(format!("{at}: {} where the previous build reads an array", now.kind()));
    };
    let at_each =
        were.iter().enumerate().map(|(place, was)| (format!("{at}, place {place}"), was, are.get(place)));
    at_each.into_iter().find_map(|(at, was, is)| misread(&at, was, is.unwrap_or(&Cbor::Null)))
}

/// The same for JSON.
pub(crate) fn misread_json(at: &str, before: &Value, now: &Value) -> Option<String> {
    match (before, now) {
        (Value::Object(were), Value::Object(are)) => were.iter().find_map(|(key, was)| match are.get(key) {
            Some(is) => misread_json(&format!("{at}.{key}"), was, is),
            None => Some(format!("{at}.{key} is not there, and the previous build reads it")),
        }),
        // Words of a closed list: one more is one that is not known.
        (Value::Array(were), Value::Array(are)) if are.iter().all(Value::is_string) => {
            let new = are.iter().find(|is| !were.contains(is))?;
            Some(format!("{at}: {new}, which the previous build does not know"))
        }
        (Value::Array(were), Value::Array(are)) => {
            were.iter().zip(are).find_map(|(was, is)| misread_json(&format!("{at}[]"), was, is))
        }
        _ => {
            let is_same = std::mem::discriminant(before) == std::mem::discriminant(now);
            (!is_same).then(|| format!("{at}: {now} where the previous build reads the like of {before}"))
        }
    }
}
