//! How do programs call that were written for ThingsBoard? By its REST paths, with its bodies and statuses.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use boot::clock::unix_ms;
use rpc::Outcome;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Server;
use crate::answer::{Problem, Version, thingsboard_ended, thingsboard_error};
use crate::request;

/// ThingsBoard's routes.
pub(crate) fn routes() -> OpenApiRouter<Arc<Server>> {
    OpenApiRouter::new()
        .routes(routes!(oneway))
        .routes(routes!(twoway))
        .routes(routes!(oneway_v1))
        .routes(routes!(twoway_v1))
}

/// What all of them begin with.
pub(crate) const PATHS: &str = "/api/";

/// A call as ThingsBoard has it; other members are passed over.
#[derive(ToSchema)]
#[allow(dead_code, reason = "it describes what `request` reads")]
struct ThingsBoardCall {
    #[schema(min_length = 1, max_length = 255)]
    method: String,
    params: Option<serde_json::Value>,
    /// Milliseconds; 10000 when neither it nor `expirationTime`, an end in milliseconds since 1970, is given.
    #[schema(minimum = 1, maximum = 60000)]
    timeout: Option<u32>,
}

macro_rules! route {
    ($name:ident, $path:literal, $oneway:literal, $version:expr, $doc:literal) => {
        #[doc = $doc]
        #[utoipa::path(
            post,
            path = $path,
            tag = "thingsboard",
            params(("device" = Uuid, Path, description = "The device's id")),
            request_body(content = ThingsBoardCall, content_type = "application/json"),
            responses(
                (status = 200, description = "The device's answer; nothing where none is wanted"),
                (status = 400, description = "The body is not what it must be"),
                (status = 401, description = "No key, none that lives, or one that may not"),
                (status = 404, description = "No such device, for this application"),
                (status = 406, description = "The device's answer is not JSON"),
                (status = 408, description = "The body did not come in time; v1: no answer in time"),
                (status = 409, description = "v1: the device is not connected"),
                (status = 413, description = "The body is too large, or is for the device"),
                (status = 429, description = "A limit is reached"),
                (status = 502, description = "The device's answer is too large"),
                (status = 503, description = "A service is missing, or failed"),
                (status = 504, description = "v2: the device is not connected, or did not answer in time"),
            ),
            security(("key" = []), ("thingsboard" = [])),
        )]
        async fn $name(
            State(server): State<Arc<Server>>,
            Path(device): Path<String>,
            headers: HeaderMap,
            body: Body,
        ) -> Response {
            call(&server, &device, &headers, body, $oneway, $version).await
        }
    };
}

route!(
    oneway,
    "/api/rpc/oneway/{device}",
    true,
    Version::V2,
    "Call a device without an answer, as ThingsBoard has it"
);
route!(twoway, "/api/rpc/twoway/{device}", false, Version::V2, "Call a device, as ThingsBoard has it");
route!(
    oneway_v1,
    "/api/plugins/rpc/oneway/{device}",
    true,
    Version::V1,
    "The same, as ThingsBoard had it before"
);
route!(
    twoway_v1,
    "/api/plugins/rpc/twoway/{device}",
    false,
    Version::V1,
    "The same, as ThingsBoard had it before"
);

async fn call(
    server: &Server,
    device: &str,
    headers: &HeaderMap,
    body: Body,
    oneway: bool,
    version: Version,
) -> Response {
    let refused = |problem: Problem| {
        // It knows no 422.
        let status = match problem.status() {
            StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
            other => other,
        };
        thingsboard_error(status, &problem.text(), unix_ms())
    };
    let caller = match server.let_in(headers).await {
        Ok(caller) => caller,
        Err(problem) => return refused(problem),
    };
    let Ok(target) = device.parse().map(rpc::Target::Id) else {
        return thingsboard_error(
            StatusCode::BAD_REQUEST,
            &format!("Invalid UUID string: {device}"),
            unix_ms(),
        );
    };
    let wanted = server
        .read(body)
        .await
        .and_then(|body| Ok(request::thingsboard(&body, oneway, &server.limits, unix_ms())?));
    let wanted = match wanted {
        Ok(wanted) => wanted,
        Err(problem) => return refused(problem),
    };
    let ended = server.perform(&caller, target, wanted, headers).await;
    if ended.outcome == Outcome::Denied
        && let Err(problem) = server.still(&caller).await
    {
        return refused(problem);
    }
    thingsboard_ended(version, &ended, unix_ms())
}
