//! What becomes of a client's last words? A will on telemetry or attributes is handed up when its connection ends
//! without DISCONNECT (MQTT 5 §3.1.2.5); no session outlives its connection here, so no Will Delay does either.

use bytes::Bytes;
use rpc::UplinkKind;

use super::codec::{ConnectAckReason, Version, Will};
use super::filter::Topic;
use crate::device_api;

/// What is handed up if it comes to it; nothing where nobody would hear it, and 3.1.1 cannot be told so.
///
/// # Errors
/// With what an MQTT 5 client reads in its CONNACK.
pub(super) fn accept(
    version: Version,
    will: &Will,
) -> Result<Option<(UplinkKind, Bytes)>, (ConnectAckReason, &'static str)> {
    let refused = match Topic::parse(&will.topic) {
        // A copy: the payload is a part of the whole CONNECT's memory.
        Topic::Uplink(kind) if device_api::answer_is_json(&will.payload) => {
            return Ok(Some((kind, Bytes::copy_from_slice(&will.payload))));
        }
        Topic::Uplink(_) => (ConnectAckReason::PayloadFormatInvalid, "a will must be JSON in UTF-8"),
        Topic::Request(_) | Topic::Response(_) | Topic::AttributesRequest(_) | Topic::Foreign => {
            (ConnectAckReason::TopicNameInvalid, "a will goes to telemetry or attributes")
        }
    };
    match version {
        Version::V3 => Ok(None),
        Version::V5 => Err(refused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::codec::QoS;

    #[test]
    fn a_will_goes_to_telemetry_or_attributes_and_is_json() {
        let uplink = |kind| Ok(Some((kind, Bytes::from_static(b"{}"))));
        let table = [
            ("v1/devices/me/telemetry", "{}", uplink(UplinkKind::Telemetry)),
            ("v1/devices/me/attributes", "{}", uplink(UplinkKind::Attributes)),
            ("v1/devices/me/telemetry", "gone", Err(ConnectAckReason::PayloadFormatInvalid)),
            ("v1/devices/me/rpc/request/1", "{}", Err(ConnectAckReason::TopicNameInvalid)),
            ("v1/devices/me/rpc/response/1", "{}", Err(ConnectAckReason::TopicNameInvalid)),
            ("v1/devices/me/attributes/request/1", "{}", Err(ConnectAckReason::TopicNameInvalid)),
            ("elsewhere", "{}", Err(ConnectAckReason::TopicNameInvalid)),
        ];
        for (topic, payload, expected) in table {
            let (topic, payload) = (topic.into(), payload.into());
            let will = Will { topic, payload, qos: QoS::AtMostOnce, retain: false, delay_s: 5 };
            let said = accept(Version::V5, &will).map_err(|(reason, _)| reason);
            assert_eq!(said, expected, "{will:?}");
            assert_eq!(accept(Version::V3, &will), Ok(expected.unwrap_or(None)), "{will:?}");
        }
    }
}
