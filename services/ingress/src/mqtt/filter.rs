//! Which topics does a session hear? Its subscriptions, and how they match (MQTT 5 §4.7).

use bytestring::ByteString;
use rpc::UplinkKind;

use super::codec::QoS;
use crate::device::target::MAX_CALL_NUMBER;

const REQUEST: &str = "v1/devices/me/rpc/request/";
const RESPONSE: &str = "v1/devices/me/rpc/response/";
const ATTRIBUTES: &str = "v1/devices/me/attributes";
const ATTRIBUTES_REQUEST: &str = "v1/devices/me/attributes/request/";
const ATTRIBUTES_RESPONSE: &str = "v1/devices/me/attributes/response/";

/// What a client's PUBLISH is, by its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// A request to the server, under the caller's own id.
    Request(u32),
    /// The answer to the call of that number.
    Response(u32),
    /// Telemetry or attributes.
    Uplink(UplinkKind),
    /// The device asks which attributes are kept for it: none.
    AttributesRequest(u32),
    /// None of the device API's.
    Foreign,
}

impl Topic {
    /// Parses the topic of a PUBLISH.
    pub fn parse(topic: &str) -> Self {
        let numbered = |prefix: &str| topic.strip_prefix(prefix).and_then(call_number);
        match topic {
            "v1/devices/me/telemetry" => Topic::Uplink(UplinkKind::Telemetry),
            ATTRIBUTES => Topic::Uplink(UplinkKind::Attributes),
            _ => numbered(REQUEST)
                .map(Topic::Request)
                .or_else(|| numbered(RESPONSE).map(Topic::Response))
                .or_else(|| numbered(ATTRIBUTES_REQUEST).map(Topic::AttributesRequest))
                .unwrap_or(Topic::Foreign),
        }
    }
}

/// The topic on which a target reads call `number`.
pub fn request_topic(number: u32) -> ByteString {
    [REQUEST, &number.to_string()].concat().into()
}

/// The topic on which the answer to `number` is written or read.
pub fn response_topic(number: u32) -> ByteString {
    [RESPONSE, &number.to_string()].concat().into()
}

/// The topic on which request `number` for attributes is answered.
pub fn attributes_response_topic(number: u32) -> ByteString {
    format!("{ATTRIBUTES_RESPONSE}{number}").into()
}

/// True when a caller may have its answer on `topic`.
pub fn is_response_topic(topic: &str) -> bool {
    topic.len() > RESPONSE.len() && topic.starts_with(RESPONSE)
}

/// True for a filter that can make a device callable.
pub fn is_request_filter(filter: &str) -> bool {
    filter.starts_with(REQUEST)
}

/// The filters of one session.
#[derive(Debug, Default)]
pub struct Subscriptions {
    subscriptions: Vec<Subscription>,
}

#[derive(Debug, PartialEq, Eq)]
struct Subscription {
    space: Space,
    /// What follows the space's own levels.
    tail: Box<str>,
    qos: QoS,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Space {
    Request,
    Response,
    /// Answers to requests for attributes.
    AttributesResponse,
    /// Changes of attributes: granted for the SDKs' sake; there never is one.
    Attributes,
}

/// What became of a SUBSCRIBE's filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// Granted, with this quality of service.
    Granted(QoS),
    /// No filter of the device API.
    NotAllowed,
    /// As many as a session may have.
    Full,
}

impl Subscriptions {
    /// Adds a filter, or replaces the one that reads the same (§3.8.4).
    pub fn add(&mut self, filter: &str, qos: QoS, max: usize) -> Grant {
        let Some((space, tail)) = Space::parse(filter) else {
            return Grant::NotAllowed;
        };
        let qos = qos.less_value(QoS::AtLeastOnce);
        if let Some(same) = self.find(space, tail) {
            same.qos = qos;
        } else if self.subscriptions.len() >= max {
            return Grant::Full;
        } else {
            self.subscriptions.push(Subscription { space, tail: tail.into(), qos });
            self.subscriptions.shrink_to_fit();
        }
        Grant::Granted(qos)
    }

    /// Removes a filter; false when it was not there.
    pub fn remove(&mut self, filter: &str) -> bool {
        let before = self.subscriptions.len();
        if let Some((space, tail)) = Space::parse(filter) {
            self.subscriptions.retain(|it| it.space != space || *it.tail != *tail);
        }
        self.subscriptions.len() < before
    }

    /// True while a call could reach this session.
    pub fn callable(&self) -> bool {
        self.requests().any(|it| it.is_wildcard() || call_number(&it.tail).is_some())
    }

    /// True while a call of any number reaches this session.
    pub fn hears_any_call(&self) -> bool {
        self.requests().any(Subscription::is_wildcard)
    }

    /// True while the client acknowledges calls, or some of them.
    pub fn acknowledges_calls(&self) -> bool {
        self.requests().any(|it| it.qos != QoS::AtMostOnce)
    }

    /// The numbers of calls that this session listens to one by one.
    pub fn exact_calls(&self) -> impl Iterator<Item = u32> + '_ {
        self.requests().filter_map(|it| call_number(&it.tail))
    }

    /// The quality of service of call `number`, if a filter matches it.
    pub fn request_qos(&self, number: u32) -> Option<QoS> {
        self.qos(Space::Request, NumberText::of(number).as_str())
    }

    /// The quality of service of an answer on `topic`, if a filter matches it.
    pub fn response_qos(&self, topic: &str) -> Option<QoS> {
        self.qos(Space::Response, topic.strip_prefix(RESPONSE)?)
    }

    /// The quality of service of answers to requests for attributes, if they are listened to.
    pub fn attributes_response_qos(&self) -> Option<QoS> {
        self.qos(Space::AttributesResponse, "0")
    }

    /// Overlapping filters give one message, at the highest of their qualities of service (§3.3.4).
    fn qos(&self, space: Space, tail: &str) -> Option<QoS> {
        self.subscriptions
            .iter()
            .filter(|it| it.space == space && matches(&it.tail, tail))
            .map(|it| it.qos)
            .max()
    }

    fn requests(&self) -> impl Iterator<Item = &Subscription> {
        self.subscriptions.iter().filter(|it| it.space == Space::Request)
    }

    fn find(&mut self, space: Space, tail: &str) -> Option<&mut Subscription> {
        self.subscriptions.iter_mut().find(|it| it.space == space && *it.tail == *tail)
    }
}

impl Subscription {
    fn is_wildcard(&self) -> bool {
        matches!(&*self.tail, "+" | "#" | "+/#")
    }
}

impl Space {
    fn parse(filter: &str) -> Option<(Space, &str)> {
        if let Some(tail) = filter.strip_prefix(REQUEST) {
            return Some((Space::Request, tail));
        }
        if let Some(tail) = filter.strip_prefix(RESPONSE) {
            return Some((Space::Response, tail));
        }
        match filter.strip_prefix(ATTRIBUTES)? {
            "" => Some((Space::Attributes, "")),
            "/response/+" => Some((Space::AttributesResponse, "+")),
            _ => None,
        }
    }
}

/// Whether a valid filter matches a topic (§4.7.1). Neither begins with `$` here.
fn matches(filter: &str, topic: &str) -> bool {
    let mut filter = filter.split('/');
    let mut topic = topic.split('/');
    loop {
        match (filter.next(), topic.next()) {
            (Some("#"), _) => return true,
            (Some("+"), Some(_)) => {}
            (Some(level), Some(name)) if level == name => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

/// A call's number as the topic writes it: decimal, without sign or leading zeros, at most 31 bits.
fn call_number(text: &str) -> Option<u32> {
    let plain = text == "0" || (text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0'));
    if !plain {
        return None;
    }
    text.parse().ok().filter(|&number| number <= MAX_CALL_NUMBER)
}

/// A number's decimal text, without the heap.
struct NumberText {
    digits: [u8; 10],
    start: usize,
}

impl NumberText {
    fn of(mut number: u32) -> Self {
        let mut digits = [b'0'; 10];
        let mut start = digits.len();
        for (index, digit) in digits.iter_mut().enumerate().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
            start = index;
            if number == 0 {
                break;
            }
        }
        NumberText { digits, start }
    }

    fn as_str(&self) -> &str {
        self.digits.get(self.start..).and_then(|digits| std::str::from_utf8(digits).ok()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ANY: QoS = QoS::AtLeastOnce;

    fn subscribed(filters: &[&str]) -> Subscriptions {
        let mut subscriptions = Subscriptions::default();
        for filter in filters {
            assert!(matches!(subscriptions.add(filter, ANY, 16), Grant::Granted(_)), "{filter}");
        }
        subscriptions
    }

    #[test]
    fn topics_are_told_apart() {
        let table = [
            ("v1/devices/me/rpc/request/0", Topic::Request(0)),
            ("v1/devices/me/rpc/request/2147483647", Topic::Request(2_147_483_647)),
            ("v1/devices/me/rpc/response/17", Topic::Response(17)),
            ("v1/devices/me/telemetry", Topic::Uplink(UplinkKind::Telemetry)),
            ("v1/devices/me/attributes", Topic::Uplink(UplinkKind::Attributes)),
            ("v1/devices/me/attributes/request/1", Topic::AttributesRequest(1)),
            ("v1/devices/me/attributes/request/", Topic::Foreign),
            ("v1/devices/me/attributes/request/x", Topic::Foreign),
            ("v1/devices/me/attributes/response/1", Topic::Foreign),
            ("v1/devices/me/rpc/request/2147483648", Topic::Foreign),
            ("v1/devices/me/rpc/request/", Topic::Foreign),
            ("v1/devices/me/rpc/request/-1", Topic::Foreign),
            ("v1/devices/me/rpc/request/01", Topic::Foreign),
            ("v1/devices/me/rpc/request/1/2", Topic::Foreign),
            ("/v1/devices/me/telemetry", Topic::Foreign),
            ("V1/devices/me/telemetry", Topic::Foreign),
            ("v1/gateway/connect", Topic::Foreign),
            ("é", Topic::Foreign),
        ];
        for (topic, parsed) in table {
            assert_eq!(Topic::parse(topic), parsed, "{topic}");
        }
        assert_eq!(attributes_response_topic(7), "v1/devices/me/attributes/response/7");
        assert!(is_response_topic("v1/devices/me/rpc/response/x") && !is_response_topic(RESPONSE));
    }

    #[test]
    fn who_listens_for_attributes() {
        let table = [
            ("v1/devices/me/attributes/response/+", Some(ANY)),
            ("v1/devices/me/attributes", None),
            ("v1/devices/me/rpc/response/+", None),
        ];
        for (filter, qos) in table {
            assert_eq!(subscribed(&[filter]).attributes_response_qos(), qos, "{filter}");
        }
        let mut subscriptions =
            subscribed(&["v1/devices/me/attributes", "v1/devices/me/attributes/response/+"]);
        assert!(subscriptions.remove("v1/devices/me/attributes/response/+"));
        assert_eq!(subscriptions.attributes_response_qos(), None);
        assert!(subscriptions.remove("v1/devices/me/attributes"));
    }

    #[test]
    fn filters_are_granted_or_not() {
        let mut subscriptions = Subscriptions::default();
        for filter in [
            "v1/devices/me/rpc/request/+",
            "v1/devices/me/rpc/request/#",
            "v1/devices/me/rpc/request/5",
            "v1/devices/me/rpc/response/+",
            "v1/devices/me/rpc/response/+/x",
            "v1/devices/me/attributes",
            "v1/devices/me/attributes/response/+",
        ] {
            assert_eq!(
                subscriptions.add(filter, QoS::ExactlyOnce, 16),
                Grant::Granted(QoS::AtLeastOnce),
                "{filter}"
            );
        }
        for filter in
            ["#", "v1/devices/me/rpc/+/+", "v1/devices/me/#", "v1/devices/other/rpc/request/+", "$share/g/a"]
                .into_iter()
                .chain(["v1/devices/me/attributes/response/1", "v1/devices/me/attributes/+"])
        {
            assert_eq!(subscriptions.add(filter, ANY, 16), Grant::NotAllowed, "{filter}");
        }
        assert_eq!(subscriptions.add("v1/devices/me/rpc/request/6", ANY, 7), Grant::Full);
        // The same filter again takes no place.
        assert_eq!(
            subscriptions.add("v1/devices/me/rpc/request/5", QoS::AtMostOnce, 7),
            Grant::Granted(QoS::AtMostOnce)
        );
    }

    #[test]
    fn who_is_callable() {
        let table = [
            (&["v1/devices/me/rpc/request/+"][..], true),
            (&["v1/devices/me/rpc/request/#"], true),
            (&["v1/devices/me/rpc/request/+/#"], true),
            (&["v1/devices/me/rpc/request/5"], true),
            (&["v1/devices/me/rpc/request/five"], false),
            (&["v1/devices/me/rpc/request/+/x"], false),
            (&["v1/devices/me/rpc/response/+", "v1/devices/me/attributes"], false),
        ];
        for (filters, callable) in table {
            assert_eq!(subscribed(filters).callable(), callable, "{filters:?}");
        }
        let mut subscriptions = subscribed(&["v1/devices/me/rpc/request/+", "v1/devices/me/rpc/request/5"]);
        assert!(subscriptions.remove("v1/devices/me/rpc/request/+"));
        assert!(!subscriptions.remove("v1/devices/me/rpc/request/+"));
        assert!(subscriptions.callable() && !subscriptions.hears_any_call());
        assert_eq!(subscriptions.exact_calls().collect::<Vec<_>>(), [5]);
        assert_eq!((subscriptions.request_qos(5), subscriptions.request_qos(6)), (Some(ANY), None));
    }

    #[test]
    fn overlapping_filters_give_the_higher_quality() {
        let mut subscriptions = Subscriptions::default();
        subscriptions.add("v1/devices/me/rpc/response/+", QoS::AtMostOnce, 16);
        subscriptions.add("v1/devices/me/rpc/response/7", QoS::AtLeastOnce, 16);
        assert_eq!(subscriptions.response_qos("v1/devices/me/rpc/response/7"), Some(QoS::AtLeastOnce));
        assert_eq!(subscriptions.response_qos("v1/devices/me/rpc/response/8"), Some(QoS::AtMostOnce));
    }

    proptest! {
        #[test]
        fn numbers_read_as_they_are_written(number in 0u32..=MAX_CALL_NUMBER) {
            let text = NumberText::of(number);
            prop_assert_eq!(text.as_str(), number.to_string());
            prop_assert_eq!(Topic::parse(&request_topic(number)), Topic::Request(number));
            prop_assert_eq!(Topic::parse(&response_topic(number)), Topic::Response(number));
        }

        #[test]
        fn a_topic_matches_itself_and_its_wildcards(
            levels in proptest::collection::vec("[a-z0-9]{0,3}", 1..5),
            at in 0usize..5,
        ) {
            let topic = levels.join("/");
            prop_assert!(matches(&topic, &topic));
            prop_assert!(matches("#", &topic));
            let mut plus = levels.clone();
            let at = at % plus.len();
            plus[at] = "+".into();
            prop_assert!(matches(&plus.join("/"), &topic));
            plus.truncate(at);
            plus.push("#".into());
            prop_assert!(matches(&plus.join("/"), &topic));
            let deeper = topic.clone() + "/+";
            prop_assert!(!matches(&deeper, &topic));
        }
    }
}
