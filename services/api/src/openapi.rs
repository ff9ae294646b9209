//! What does a machine read of the API? OpenAPI 3.1, made of the handlers; `openapi.json` is the same, and a test
//! compares the two, so that a change of the API is seen as one.

use utoipa::Modify;
use utoipa::OpenApi;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Switchboard: calls of applications",
        description = "Call devices from programs, with a key of `switchboard app add`. Every problem says in `seen` \
                       whether the device may have executed the call.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
        version = "1"
    ),
    tags(
        (name = "calls", description = "Calling devices"),
        (name = "devices", description = "Which devices there are, and which are connected"),
        (name = "events", description = "Who comes and goes, and what changes, as it happens"),
        (name = "tenants", description = "Tenants: an application's own, or all of them"),
        (name = "customers", description = "Customers, whose devices may call each other"),
        (name = "apps", description = "Applications and their keys"),
        (name = "policies", description = "Who may call whom: a tenant's policies, asked and replaced"),
        (name = "audit", description = "Who did what"),
        (name = "thingsboard", description = "The same by ThingsBoard's paths, bodies and statuses")
    ),
    modifiers(&Keys)
)]
struct Frame;

struct Keys;

impl Modify for Keys {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("key", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
        let header = ApiKeyValue::with_description("X-Authorization", "`ApiKey swbk_…`, or `Bearer swbk_…`");
        components.add_security_scheme("thingsboard", SecurityScheme::ApiKey(ApiKey::Header(header)));
    }
}

/// What the document says beside its paths.
pub(crate) fn frame() -> utoipa::openapi::OpenApi {
    Frame::openapi()
}

/// The document of this version.
pub fn document() -> utoipa::openapi::OpenApi {
    crate::routes::described().split_for_parts().1
}

/// A document as it is served and kept.
pub fn text(document: &utoipa::openapi::OpenApi) -> String {
    document.to_pretty_json().unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_beside_the_code_is_this_one() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
        let now = text(&document());
        if std::env::var_os("UPDATE_OPENAPI").is_some() {
            std::fs::write(file, &now).unwrap();
        }
        let kept = std::fs::read_to_string(file).unwrap_or_default();
        assert!(
            kept == now,
            "the API has changed: UPDATE_OPENAPI=1 cargo test -p switchboard-api writes {file}"
        );
    }

    #[test]
    fn no_two_operations_have_one_id() {
        let document: serde_json::Value = serde_json::from_str(&text(&document())).unwrap();
        let methods = document["paths"].as_object().unwrap().values().flat_map(|it| it.as_object().unwrap());
        let mut ids = std::collections::BTreeSet::new();
        for (_, operation) in methods {
            assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{operation}");
        }
    }
}
