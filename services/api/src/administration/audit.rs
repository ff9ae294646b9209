//! Who did what? A tenant's records, in pages.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::http::StatusCode;
use axum::response::Response;
use bus::StoreError;
use bus::audit::{Book, From, Limits, Record, Stored, hash};
use rpc::{DeviceId, Role};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Head, Unseen, shown, unavailable};
use crate::Server;
use crate::answer::Problem;

pub(super) fn routes() -> OpenApiRouter<Arc<Server>> {
    OpenApiRouter::new().routes(routes!(list))
}

/// A record: `number`, `atMs`, `user`, `kind`, `who`, `from`, `devices`, `what`, `why`, `previous`, as it stands in the
/// tenant's chain of that book.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = AuditRecord)]
struct View {
    /// Its place in the stream.
    sequence: u64,
    /// The SHA-256 of its bytes, which the record after it names.
    hash: String,
    /// With `raw`: its bytes, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    raw: Option<String>,
    /// With `raw`: the NATS user of its subject, which the record names as `user`.
    #[serde(skip_serializing_if = "Option::is_none")]
    written_by: Option<String>,
    #[serde(flatten)]
    #[schema(value_type = Object)]
    record: Option<Record>,
}

impl View {
    fn of(stored: &Stored, is_raw: bool) -> Self {
        View {
            sequence: stored.sequence,
            hash: hash(&stored.bytes),
            raw: is_raw.then(|| String::from_utf8_lossy(&stored.bytes).into_owned()),
            written_by: is_raw.then(|| stored.user.clone()),
            record: stored.record(),
        }
    }
}

/// A page of records, in the order in which they were written.
#[derive(Serialize, ToSchema)]
struct Records {
    records: Vec<View>,
    /// `after` of the next page; not there: this was the last. A page may hold fewer than `limit` and not be the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<u64>,
    /// With `raw`: what the stream says of itself, which tells a cut that is due from one that is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<LimitsView>,
}

/// How far back a stream goes.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = AuditLimits)]
struct LimitsView {
    /// The place of its first message.
    first_sequence: u64,
    /// Milliseconds for which it keeps a record; 0: for ever.
    max_age_ms: u64,
    /// It is as full as it may be.
    is_full: bool,
    /// Milliseconds since 1970.
    now_ms: u64,
}

impl std::convert::From<Limits> for LimitsView {
    fn from(Limits { first_sequence, max_age_ms, is_full, now_ms }: Limits) -> Self {
        LimitsView { first_sequence, max_age_ms, is_full, now_ms }
    }
}

/// Which records.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "it describes what `list` reads")]
struct Asked {
    /// `changes` of the registry and policies, or `denials`: two streams, in each a chain. Not given, as `kind` needs
    #[param(nullable = false, pattern = "^(changes|denials)$")]
    book: Option<String>,
    /// Only of this kind, as `device.rename`, or `device` with all below it
    #[param(nullable = false)]
    kind: Option<String>,
    /// Only about this device, by its id
    #[param(format = Uuid, nullable = false)]
    device: Option<String>,
    /// Only those written since, in milliseconds since 1970
    #[param(maximum = 253402300799999_u64, nullable = false)]
    since: Option<u64>,
    /// At most so many, 1 to 500; 100
    #[param(minimum = 1, maximum = 500, nullable = false)]
    limit: Option<u32>,
    /// `next` of the page before
    #[param(nullable = false)]
    after: Option<u64>,
    /// With the bytes of each record, and what the stream says of itself, for who checks the chain
    #[param(nullable = false)]
    raw: Option<bool>,
}

/// Read the audit of a tenant (observer)
#[utoipa::path(get, path = "/v1/audit",
    operation_id = "list_audit", tag = "audit", params(Asked, super::params::OfTenant),
    responses((status = 200, description = "A page, the oldest first", body = Records), Unseen),
    security(("key" = [])))]
async fn list(head: Head) -> Result<Response, Problem> {
    let known = ["book", "kind", "device", "since", "limit", "after", "tenant", "raw"];
    let (keeper, query) = head.keeper(Role::Observer, &known).await?;
    keeper.whole()?;
    let (tenant, limit) = (keeper.tenant(&query)?, query.limit()?);
    let device = query.0.get("device").map(|it| it.parse::<DeviceId>()).transpose();
    let device = device.map_err(|_| Problem::parameter("device", "the UUID of a device"))?;
    let kind = query.0.get("kind");
    let book = query.0.get("book").map(|it| it.parse::<Book>()).transpose();
    let book = book.map_err(|()| Problem::parameter("book", "changes or denials"))?;
    let book = book.or(kind.map(|kind| Book::of_kind(kind))).unwrap_or_default();
    let log = keeper.changes.recorder.log(book);
    let is_raw = match query.0.get("raw").map(String::as_str) {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(Problem::parameter("raw", "true or false")),
    };
    let after = query.number("after", 0..=MAX_SEQUENCE)?;
    let from = match (after, query.number("since", 0..=MAX_SINCE_MS)?) {
        (Some(after), _) => From::Sequence(after + 1),
        (None, Some(since_ms)) => From::Time(UNIX_EPOCH + Duration::from_millis(since_ms)),
        (None, None) => From::Sequence(1),
    };
    let page = match log.page(Some(tenant), from).await {
        Ok(page) => page,
        // Nothing was ever recorded.
        Err(StoreError::Missing(_)) => {
            return Ok(shown(
                StatusCode::OK,
                &Records { records: Vec::new(), next: None, limits: None },
                None,
            ));
        }
        Err(error) => return Err(unread(error)),
    };
    let fits = |stored: &Stored| match stored.record() {
        Some(Record { entry, .. }) => {
            kind.is_none_or(|kind| entry.is_of(kind)) && device.is_none_or(|it| entry.devices.contains(&it))
        }
        None => kind.is_none() && device.is_none(),
    };
    let mut fitting = page.records.iter().filter(|stored| fits(stored));
    let records: Vec<_> = fitting.by_ref().take(limit).map(|stored| View::of(stored, is_raw)).collect();
    let next = match (fitting.next(), records.last()) {
        (Some(_), Some(last)) => Some(last.sequence),
        _ if page.is_last => None,
        _ => Some(page.next.saturating_sub(1)),
    };
    let limits = match is_raw {
        true => Some(log.limits().await.map_err(unread)?.into()),
        false => None,
    };
    Ok(shown(StatusCode::OK, &Records { records, next, limits }, None))
}

fn unread(error: StoreError) -> Problem {
    tracing::warn!(%error, "the audit cannot be read");
    unavailable()
}

/// As far as a signed number of JSON goes.
const MAX_SEQUENCE: u64 = i64::MAX as u64;
/// The year 9999, in milliseconds since 1970.
const MAX_SINCE_MS: u64 = 253_402_300_799_999;
