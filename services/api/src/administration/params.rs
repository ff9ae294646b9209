//! What do paths and queries of administration have in common? Their parameters, as the description has them.

#![allow(dead_code, reason = "they describe what is read elsewhere")]

use utoipa::IntoParams;

/// A page.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// At most so many, 1 to 500; 100
    #[param(minimum = 1, maximum = 500, nullable = false)]
    limit: Option<u32>,
    /// `next` of the page before
    #[param(nullable = false)]
    after: Option<String>,
}

/// A tenant.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct OfTenant {
    /// The id of a tenant, for applications that keep all tenants; the application's own when not given
    #[param(format = Uuid, nullable = false)]
    tenant: Option<String>,
}

/// What for.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Reason {
    /// What for, for the audit: at most 500 characters
    #[param(max_length = 500, nullable = false)]
    reason: Option<String>,
}

/// The state that a change is for.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub(super) struct State {
    /// The `ETag` of what was read: of another state nothing is changed (412)
    #[param(
        rename = "If-Match",
        nullable = false,
        example = "\"0123456789abcdef\"",
        pattern = "^(\\*|\"[0-9a-f]{1,32}\")$"
    )]
    if_match: Option<String>,
}

macro_rules! named {
    ($name:ident, $field:ident, $doc:literal) => {
        #[doc = $doc]
        #[derive(IntoParams)]
        #[into_params(parameter_in = Path)]
        pub(super) struct $name {
            #[doc = $doc]
            $field: String,
        }
    };
}

named!(Tenant, tenant, "The tenant's id or name");
named!(Customer, customer, "The customer's id, or its name in the tenant");
named!(Device, device, "The device's id, or its name in the application's tenant");
named!(App, app, "The application's id, or its name in the tenant");
