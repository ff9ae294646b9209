//! How does NATS ask one of us who a connection is? By its auth callout, which has subjects of its own (ADR-26).

use rpc::Subjects;

use crate::{Bus, BusError, Requests};

/// Where every nats-server asks, in the account that its configuration names.
const CALLOUT: &str = "$SYS.REQ.USER.AUTH";
/// How the inboxes begin that a nats-server makes for itself.
const SERVERS_INBOX: &str = "$SYS._INBOX.";

impl Bus {
    /// What NATS asks about connections, as a member of a queue group. These alone are answered to an inbox of a
    /// nats-server: no other question may have that for its reply.
    ///
    /// # Errors
    /// As [`serve`](Self::serve).
    pub async fn serve_callouts(&self, queue: &str) -> Result<Requests, BusError> {
        Ok(self.serve(CALLOUT, Some(queue)).await?.answered_where(is_servers_inbox))
    }
}

fn is_servers_inbox(_: &Subjects, subject: &str) -> bool {
    subject.starts_with(SERVERS_INBOX)
}
