//! How does the description show the bodies of calls? They are read by `request`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

/// A body with the members of a call and with further ones, all of them in one object that has no others.
macro_rules! body {
    ($(#[$doc:meta])* $name:ident { $($further:tt)* }) => {
        $(#[$doc])*
        #[derive(Deserialize, ToSchema)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        #[allow(dead_code, reason = "it describes what `request` reads")]
        pub(crate) struct $name {
            $($further)*
            /// What a device reads as `method`; `onMsg` when not given.
            #[schema(min_length = 1, max_length = 255)]
            method: Option<String>,
            /// What it reads as `params`, byte for byte.
            params: Option<Value>,
            /// Milliseconds that a call may take, from when it begins.
            #[schema(minimum = 1, maximum = 60000)]
            timeout: Option<u32>,
            /// Milliseconds that a device which is not connected may be waited for; at most `timeout`.
            #[schema(minimum = 0, maximum = 60000)]
            connect_timeout: Option<u32>,
            /// No answer is wanted: a call ends when its device's connection has taken it.
            oneway: Option<bool>,
        }
    };
}

body!(
    /// A call.
    CallBody {}
);

body!(
    /// The same call of many devices.
    GroupBody {
        /// Whom: `devices`, or `labels`, `customer` or both.
        targets: TargetsBody,
        /// Calls in flight at a time; 50.
        #[schema(minimum = 1, maximum = 1000)]
        parallel: Option<u32>,
        /// With more targets nobody is called; 1000.
        #[schema(minimum = 1, maximum = 10000)]
        max: Option<u32>,
        /// It ends with so many answers.
        #[schema(minimum = 1, maximum = 10000)]
        quorum: Option<u32>,
    }
);

/// Whom a group call means.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "it describes what `request` reads")]
struct TargetsBody {
    /// These devices, by id or name.
    #[schema(min_items = 1, max_items = 10000)]
    devices: Option<Vec<String>>,
    /// All that the application reaches with all of these labels.
    labels: Option<BTreeMap<String, String>>,
    /// All that it reaches of this customer, by its id.
    customer: Option<String>,
}
