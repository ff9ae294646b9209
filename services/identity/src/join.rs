//! May this connection be a node, and what may it say and hear then? Asked by NATS, decided by secret and key. Pure.

use nkeys::KeyPair;
use rpc::{NodeId, NodeKey, Subjects};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::jwt::{self, JwtError};

/// Whom nodes come as.
const USER: &str = "ingress";
/// The NATS account that nodes are in.
const ACCOUNT: &str = "NODES";
/// A connection of this kind alone: no other server, no bridge to another protocol.
const KIND: &str = "Client";
const CONNECTION_TYPES: [&str; 2] = ["STANDARD", "WEBSOCKET"];

/// What nats-server asks: of its claims, those that matter here.
#[derive(Deserialize)]
struct Question {
    nats: Asked,
}

#[derive(Deserialize)]
struct Asked {
    server_id: Server,
    /// The key of the user that it wants to hear of: made up by the server for this very connection.
    user_nkey: String,
    #[serde(default)]
    client_info: Client,
    #[serde(default)]
    connect_opts: Shown,
}

#[derive(Deserialize)]
struct Server {
    id: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Client {
    host: String,
    kind: String,
}

/// What the connection shows.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Shown {
    user: String,
    pass: String,
    auth_token: String,
}

/// Why a connection is none of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Its user is neither known to NATS nor that of nodes.
    #[error("there is no such user, or not with that password")]
    User,
    /// It is no client.
    #[error("nodes are clients")]
    Kind,
    /// It does not have the secret.
    #[error("the password is not the join secret")]
    Secret,
    /// It shows no key, as a node of an older version.
    #[error("it shows no node key")]
    Key,
}

impl Refused {
    pub(crate) const ALL: [Refused; 4] = [Refused::User, Refused::Kind, Refused::Secret, Refused::Key];

    /// As its count is named.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Refused::User => "unknown_user",
            Refused::Kind => "no_client",
            Refused::Secret => "wrong_secret",
            Refused::Key => "no_key",
        }
    }
}

/// An answer for NATS.
#[derive(Debug)]
pub struct Answer {
    /// The answer itself.
    pub jwt: String,
    /// Which node it is, or why it is none; and where it comes from.
    pub admitted: Result<(NodeId, String), (Refused, String)>,
}

/// Knows what nodes show, and signs who they are.
pub struct Doorkeeper {
    secret: [u8; 32],
    issuer: KeyPair,
    subjects: Subjects,
    lifetime_s: u32,
}

impl Doorkeeper {
    /// Of nodes that show `secret` and use `subjects`, for `lifetime_s` seconds at most.
    pub fn new(secret: &str, issuer: KeyPair, subjects: Subjects, lifetime_s: u32) -> Self {
        Doorkeeper { secret: Sha256::digest(secret).into(), issuer, subjects, lifetime_s }
    }

    /// What NATS is answered, `now_s` seconds after 1970.
    ///
    /// # Errors
    /// When it asked something else: then it has no answer, and refuses the connection by itself.
    pub fn answer(&self, question: &[u8], now_s: u64) -> Result<Answer, JwtError> {
        let Question { nats: Asked { server_id, user_nkey, client_info, connect_opts } } =
            jwt::claims(question)?;
        let admitted = self.admit(&client_info, &connect_opts);
        let (jwt, error) = match admitted {
            Ok(node) => (self.user(node, &user_nkey, now_s)?, String::new()),
            Err(why) => (String::new(), why.to_string()),
        };
        let claims = Claims {
            iss: self.issuer.public_key(),
            sub: user_nkey,
            aud: server_id.id,
            name: None,
            iat: now_s,
            exp: None,
            nats: Response { jwt, error, kind: "authorization_response", version: 2 },
        };
        let host = client_info.host;
        let admitted = match admitted {
            Ok(node) => Ok((node, host)),
            Err(why) => Err((why, host)),
        };
        Ok(Answer { jwt: jwt::sign(&claims, &self.issuer)?, admitted })
    }

    fn admit(&self, client: &Client, shown: &Shown) -> Result<NodeId, Refused> {
        if shown.user != USER {
            return Err(Refused::User);
        }
        if client.kind != KIND {
            return Err(Refused::Kind);
        }
        // Compared by their digests, the time that it takes says nothing of the secret.
        if <[u8; 32]>::from(Sha256::digest(&shown.pass)) != self.secret {
            return Err(Refused::Secret);
        }
        let key: NodeKey = shown.auth_token.parse().map_err(|_| Refused::Key)?;
        Ok(key.id())
    }

    fn user(&self, node: NodeId, user_nkey: &str, now_s: u64) -> Result<String, JwtError> {
        let lasts_s = u64::from(self.lifetime_s);
        let sooner_s = lasts_s / 4 * (node.0 % 1_024) / 1_024;
        let claims = Claims {
            iss: self.issuer.public_key(),
            sub: user_nkey.to_owned(),
            aud: ACCOUNT.to_owned(),
            name: Some(format!("{USER}.{node}")),
            iat: now_s,
            exp: Some(now_s + lasts_s - sooner_s),
            nats: Rights {
                publish: Allowed { allow: publishes(&self.subjects, node) },
                subscribe: Allowed { allow: subscribes(&self.subjects, node) },
                subs: -1,
                data: -1,
                payload: -1,
                allowed_connection_types: CONNECTION_TYPES,
                kind: "user",
                version: 2,
            },
        };
        jwt::sign(&claims, &self.issuer)
    }
}

/// What a node may publish to.
fn publishes(subjects: &Subjects, node: NodeId) -> Vec<String> {
    let prefix = subjects.prefix();
    vec![
        subjects.authenticate(),
        subjects.list(),
        subjects.call(),
        subjects.claim(),
        subjects.release(),
        subjects.lease(),
        subjects.compare(),
        subjects.cancel(),
        format!("{prefix}.uplink.>"),
        format!("{prefix}.event.session.>"),
        format!("{prefix}.answer.*"),
        // An answer after its call's time, to the API that made the call.
        format!("{prefix}.late.*"),
        // The outcome of a delivery, to the router that asked; of an answer, to the node.
        "_R_.>".to_owned(),
        format!("{prefix}.reply.*.*"),
        // A message to itself, whose return says that NATS has what was sent before it.
        format!("{}.echo.*", subjects.inbox(node)),
    ]
}

/// What a node may subscribe to: what is for it, and what is for all.
fn subscribes(subjects: &Subjects, node: NodeId) -> Vec<String> {
    vec![
        subjects.node(node),
        format!("{}.>", subjects.inbox(node)),
        subjects.answer(node.tag()),
        subjects.takeover(node),
        subjects.claims_differ(node),
        subjects.devices_changed(),
        subjects.directory_loaded(),
        subjects.beat(),
        subjects.operate(node),
        subjects.operate_all(),
        subjects.inspect(USER),
        subjects.instruct(USER),
    ]
}

#[derive(Serialize)]
struct Claims<T> {
    iss: String,
    sub: String,
    aud: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    iat: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<u64>,
    nats: T,
}

#[derive(Serialize)]
struct Response {
    #[serde(skip_serializing_if = "String::is_empty")]
    jwt: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
    #[serde(rename = "type")]
    kind: &'static str,
    version: u8,
}

#[derive(Serialize)]
struct Rights {
    #[serde(rename = "pub")]
    publish: Allowed,
    #[serde(rename = "sub")]
    subscribe: Allowed,
    subs: i64,
    data: i64,
    payload: i64,
    allowed_connection_types: [&'static str; 2],
    #[serde(rename = "type")]
    kind: &'static str,
    version: u8,
}

#[derive(Serialize)]
struct Allowed {
    allow: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW_S: u64 = 2_000_000_000;
    const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn doorkeeper() -> Doorkeeper {
        Doorkeeper::new("secret", KeyPair::new_account(), Subjects::new("swb"), 4_096)
    }

    fn asked(connect_opts: Value, kind: &str) -> String {
        let claims = json!({"nats": {
            "server_id": {"name": "n", "id": "NSERVER"}, "user_nkey": "UUSER",
            "client_info": {"host": "10.0.0.7", "kind": kind}, "connect_opts": connect_opts,
        }});
        jwt::sign(&claims, &KeyPair::new_server()).unwrap()
    }

    fn shown(user: &str, pass: &str, key: &str) -> Value {
        json!({"user": user, "pass": pass, "auth_token": key, "protocol": 1})
    }

    #[test]
    fn a_node_has_the_rights_of_its_id_and_for_a_while() {
        let it = doorkeeper();
        let answer = it.answer(asked(shown("ingress", "secret", KEY), KIND).as_bytes(), NOW_S).unwrap();
        let node = KEY.parse::<NodeKey>().unwrap().id();
        assert_eq!(answer.admitted, Ok((node, "10.0.0.7".to_owned())));
        let response: Value = jwt::claims(answer.jwt.as_bytes()).unwrap();
        assert_eq!((&response["sub"], &response["aud"]), (&json!("UUSER"), &json!("NSERVER")));
        let user: Value = jwt::claims(response["nats"]["jwt"].as_str().unwrap().as_bytes()).unwrap();
        assert_eq!(
            (&user["sub"], &user["aud"], &user["iss"]),
            (&json!("UUSER"), &json!("NODES"), &response["iss"])
        );
        let lasts_s = user["exp"].as_u64().unwrap() - NOW_S;
        assert!((3_072..=4_096).contains(&lasts_s), "{lasts_s}");
        let heard = user["nats"]["sub"]["allow"].as_array().unwrap();
        assert!(heard.contains(&json!(format!("swb.node.{node}"))), "{heard:?}");
    }

    #[test]
    fn nobody_else_is_let_in() {
        let it = doorkeeper();
        let refused = |shown: Value, kind: &str| {
            let answer = it.answer(asked(shown, kind).as_bytes(), NOW_S).unwrap();
            let response: Value = jwt::claims(answer.jwt.as_bytes()).unwrap();
            assert_eq!(response["nats"].get("jwt"), None);
            assert!(!response["nats"]["error"].as_str().unwrap().is_empty());
            answer.admitted.unwrap_err().0
        };
        for user in ["router", "", "identity", "ingress2", "Ingress"] {
            assert_eq!(refused(shown(user, "secret", KEY), KIND), Refused::User);
        }
        for pass in ["", "Secret", "secret ", "secre"] {
            assert_eq!(refused(shown("ingress", pass, KEY), KIND), Refused::Secret);
        }
        for key in ["", "00", &KEY[1..], &KEY.replace('0', "x"), "5"] {
            assert_eq!(refused(shown("ingress", "secret", key), KIND), Refused::Key);
        }
        for kind in ["Leafnode", "Router", ""] {
            assert_eq!(refused(shown("ingress", "secret", KEY), kind), Refused::Kind);
        }
        assert_eq!(refused(json!({}), KIND), Refused::User);
    }

    #[test]
    fn what_is_no_question_has_no_answer() {
        for other in ["", "x", "a.b.c", &jwt::sign(&json!({"nats": {}}), &KeyPair::new_server()).unwrap()] {
            assert!(doorkeeper().answer(other.as_bytes(), NOW_S).is_err(), "{other}");
        }
    }

    /// With each `*` that stands for a node, the rights are those of the user that all nodes share elsewhere.
    #[test]
    fn they_are_the_rights_of_deploy_nats() {
        let shared = include_str!("../../../deploy/nats/permissions.conf");
        let user = shared.split("user: ingress\n").nth(1).unwrap();
        let listed = |after: &str| -> Vec<String> {
            let block = user.split(after).nth(1).unwrap().split(']').next().unwrap();
            let quoted = block.lines().filter_map(|line| line.trim().strip_prefix('"')?.strip_suffix('"'));
            quoted.map(str::to_owned).collect()
        };
        let (node, subjects) = (NodeId(0x0123_4567_89ab_cdef), Subjects::new("swb"));
        let shared_form =
            |mine: Vec<String>| -> Vec<String> {
                let tag = format!("swb.answer.{}", node.tag());
                mine.into_iter()
                    .map(|it| {
                        if it == tag { "swb.answer.*".to_owned() } else { it.replace(&node.to_string(), "*") }
                    })
                    .collect()
            };
        assert_eq!(shared_form(publishes(&subjects, node)), listed("publish: ["));
        // Within `swb.operate.*`.
        let mut heard = shared_form(subscribes(&subjects, node));
        let place = heard.iter().position(|it| it == "swb.operate.all").unwrap();
        heard.remove(place);
        assert_eq!(heard, listed("subscribe: ["));
    }
}
