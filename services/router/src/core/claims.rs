//! Whose is a device? Decided over what stands there: the newest session wins, and no clock says which that is, except
//! of one that asks again.

use rpc::faults::{Fault, is};
use rpc::{Claim, ClaimRequest, Generation};

/// What is to be done with a claim that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It stands already.
    Stands(Generation),
    /// It is to be written over what stands there, with this generation.
    Write(Generation),
    /// A newer session's stands.
    TakenOver,
}

/// Decides over `request`, given what stands there. `fresh` is the generation of a session that becomes callable now.
pub fn decide(request: &ClaimRequest, standing: Option<&Claim>, fresh: Generation) -> Decision {
    let own = request.generation;
    let Some(standing) = standing else { return Decision::Write(own.unwrap_or(fresh)) };
    let session = (request.node, request.session);
    let is_own = (standing.node, standing.session) == session;
    match own {
        // Asked again, since the answer was lost.
        None if is_own => Decision::Stands(standing.generation),
        // It gave up there, and its next session was faster. A clock that is wrong costs the device another try.
        None if request.is_again && standing.since_ms > request.since_ms => Decision::TakenOver,
        None => Decision::Write(fresh),
        Some(own) if is_own && own <= standing.generation => Decision::Stands(standing.generation),
        // Equal ones can only be of a time before the store was lost: either may win, as long as all agree which.
        Some(own) if (standing.generation, standing.node, standing.session) > (own, session.0, session.1) => {
            match is(Fault::ReclaimAlwaysWins) {
                true => Decision::Write(own),
                false => Decision::TakenOver,
            }
        }
        Some(own) => Decision::Write(own),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;
    use rpc::{DeviceId, Holder, NodeId, Protocol, SessionId, Stamp, TicketKeys};
    use uuid::Uuid;

    /// A node asks for the claim of a session, with a ticket of its own.
    pub(in crate::core) fn asked(
        device: DeviceId,
        node: u64,
        session: u64,
        generation: Option<u64>,
    ) -> ClaimRequest {
        let (node, session) = (NodeId(node), SessionId(session));
        let keys = TicketKeys::default().rotated([0; 32], 0).unwrap();
        let ticket = keys.sign(Holder { device, node, visit: 1 }, Stamp::of_digest(&[0; 32]), 0).unwrap();
        let generation = generation.map(Generation);
        ClaimRequest {
            device,
            node,
            session,
            protocol: Protocol::Mqtt,
            generation,
            until: None,
            visit: 1,
            ticket,
            since_ms: None,
            is_again: false,
        }
    }

    fn request(node: u64, session: u64, generation: Option<u64>) -> ClaimRequest {
        asked(DeviceId(Uuid::nil()), node, session, generation)
    }

    fn claim(node: u64, session: u64, generation: u64) -> Claim {
        let (node, session, generation) = (NodeId(node), SessionId(session), Generation(generation));
        Claim { node, session, protocol: Protocol::Mqtt, generation, since_ms: None }
    }

    fn began_at(ms: u64, claim: Claim) -> Option<Claim> {
        Some(Claim { since_ms: Some(ms), ..claim })
    }

    #[test]
    fn table() {
        let began = |ms, is_again| ClaimRequest { since_ms: Some(ms), is_again, ..request(1, 1, None) };
        let write = |generation| Decision::Write(Generation(generation));
        let stands = |generation| Decision::Stands(Generation(generation));
        let cases = [
            ("nothing stands", request(1, 1, None), None, write(9)),
            ("nothing stands any more", request(1, 1, Some(4)), None, write(4)),
            ("over another", request(1, 1, None), Some(claim(2, 1, 8)), write(9)),
            ("asked twice", request(1, 1, None), Some(claim(1, 1, 5)), stands(5)),
            ("claimed again", request(1, 1, Some(5)), Some(claim(1, 1, 5)), stands(5)),
            ("its older writing", request(1, 1, Some(5)), Some(claim(1, 1, 4)), write(5)),
            ("a newer one stands", request(1, 1, Some(5)), Some(claim(2, 1, 6)), Decision::TakenOver),
            ("an older one stands", request(1, 1, Some(5)), Some(claim(2, 1, 4)), write(5)),
            (
                "its own next session stands",
                request(1, 1, Some(5)),
                Some(claim(1, 2, 6)),
                Decision::TakenOver,
            ),
            ("a later one stands", began(1, false), began_at(2, claim(2, 1, 8)), write(9)),
            ("a later one, asked again", began(1, true), began_at(2, claim(2, 1, 8)), Decision::TakenOver),
            ("an earlier one, asked again", began(2, true), began_at(1, claim(2, 1, 8)), write(9)),
            ("one of no time, asked again", began(2, true), Some(claim(2, 1, 8)), write(9)),
        ];
        for (what, request, standing, expected) in cases {
            assert_eq!(decide(&request, standing.as_ref(), Generation(9)), expected, "{what}");
        }
    }

    proptest! {
        #[test]
        fn of_two_that_claim_again_exactly_one_wins(
            a in (0u64..3, 0u64..3, 0u64..3), b in (0u64..3, 0u64..3, 0u64..3),
        ) {
            prop_assume!((a.0, a.1) != (b.0, b.1));
            let over = |one: (u64, u64, u64), other: (u64, u64, u64)| {
                let standing = claim(other.0, other.1, other.2);
                decide(&request(one.0, one.1, Some(one.2)), Some(&standing), Generation(9)) != Decision::TakenOver
            };
            prop_assert!(over(a, b) != over(b, a));
            if a.2 != b.2 {
                prop_assert_eq!(over(a, b), a.2 > b.2, "the newer one");
            }
        }
    }
}
