//! How are a tenant's policies replaced? Each change with its record before it, whoever asks: the command or the API.

use std::collections::BTreeMap;

use bus::StoreError;
use bus::audit::Entry;
use bus::changes::{NotChanged, Recorder, entry};
use bus::policies::{Policies, StoredSet};
use rpc::TenantId;

use crate::policy::inquiry::InForce;

/// The sets of all tenants, and who replaces them.
#[derive(Clone)]
pub struct Shelf {
    /// Where they are.
    pub policies: Policies,
    /// In whose name they are replaced.
    pub recorder: Recorder,
}

impl Shelf {
    /// Makes `set` live in place of what is in force, with its record.
    ///
    /// # Errors
    /// [`StoreError::Contended`] when another set has become live meanwhile, and as [`Recorder::changes`].
    pub async fn replace(
        &self,
        tenant: TenantId,
        live: &InForce,
        mut set: StoredSet,
    ) -> Result<StoredSet, NotChanged<StoreError>> {
        // Without policies the built-in rule decides, and nobody else.
        set.external.take_if(|_| set.texts.is_empty());
        let none = BTreeMap::new();
        let mut what = becomes(live.0.as_ref().map_or(&none, |live| &live.texts), &set.texts);
        if set.external.as_ref() != live.external() {
            let point = set.external.as_ref().map_or("nobody".to_owned(), |it| it.point.to_string());
            what = format!("{what}{}{point} is asked besides", if what.is_empty() { "" } else { ", " });
        }
        let changed = Entry { version: Some(set.version), ..entry("policy.change", [], what) };
        let replace = self.policies.replace(tenant, &set);
        self.recorder.changes(vec![(tenant, changed)], replace).await?;
        Ok(set)
    }

    /// Casts a shadow beside what is in force, or takes away the one of that version.
    ///
    /// # Errors
    /// As [`replace`](Self::replace).
    pub async fn cast(
        &self,
        tenant: TenantId,
        live: &InForce,
        version: u64,
        shadow: Option<&StoredSet>,
    ) -> Result<(), NotChanged<StoreError>> {
        let what = match shadow {
            Some(shadow) => becomes(&live.texts(), &shadow.texts),
            None => "none".to_owned(),
        };
        let cast = Entry { version: Some(version), ..entry("policy.shadow", [], what) };
        self.recorder.changes(vec![(tenant, cast)], self.policies.cast_shadow(tenant, shadow)).await
    }
}

/// What becomes of each text, in words.
fn becomes(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> String {
    let removed = old.keys().filter(|name| !new.contains_key(*name)).map(|name| format!("{name} removed"));
    let others = new.iter().filter_map(|(name, text)| match old.get(name) {
        Some(old) if old == text => None,
        Some(_) => Some(format!("{name} changed")),
        None => Some(format!("{name} added")),
    });
    removed.chain(others).collect::<Vec<_>>().join(", ")
}
