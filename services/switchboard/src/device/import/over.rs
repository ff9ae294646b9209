//! How does an import go over an API? Device by device, as the API adds one: the same again changes nothing.

use std::collections::HashSet;
use std::future::Future;
use std::time::Duration;

use anyhow::bail;
use bus::changes::Change;
use bus::registry::NewDevice;
use futures::stream::{self, StreamExt};
use hyper::StatusCode;
use rpc::DeviceId;
use serde::Deserialize;

use super::plan::{Plan, sorted};
use super::report::Report;
use crate::common::api::{Api, problem};
use crate::common::registrar::{self, Registrar};
use crate::device::rows::{Fault, Place};

/// Requests in flight at a time.
const IN_FLIGHT: usize = 16;
/// When an application that has reached its limit tries again, as the API asks.
const BUSY_PAUSE: Duration = Duration::from_secs(1);
const ANSWER_WAIT: Duration = Duration::from_secs(30);

/// How an API has taken a device.
enum Taken {
    Added,
    Refused(&'static str, String),
}

/// What an API refuses.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Problem {
    title: String,
    detail: Option<String>,
    field: Option<String>,
}

/// The parts of a row that may be at fault.
const FIELDS: [&str; 6] = ["id", "name", "customer", "type", "labels", "token"];

impl Plan {
    /// Writes it all over an API, or as far as it comes until `stop`; `done` hears of each device. Those of `standing`
    /// were there before.
    ///
    /// # Errors
    /// When the API does not answer, or takes no such change of this key.
    pub(super) async fn apply_over(
        &self,
        registrar: &Registrar,
        api: &Api,
        standing: &HashSet<DeviceId>,
        stop: impl Future<Output = ()>,
        mut done: impl FnMut(),
    ) -> anyhow::Result<Report> {
        let mut report = self.begun();
        for (place, change) in self.places() {
            if let Err(error) = registrar.change(change).await {
                report.faults.push(Fault { place, field: "row", expected: format!("{error:#}") });
            }
        }
        let adding = stream::iter(self.devices.iter().zip(&self.origins).enumerate()).take_until(stop);
        let add = async |(number, (device, origin))| (number, origin, device, add(api, device).await);
        let mut adding = std::pin::pin!(adding.map(add).buffer_unordered(IN_FLIGHT));
        while let Some((number, origin, device, taken)) = adding.next().await {
            report.left -= 1;
            match taken? {
                Taken::Added if !standing.contains(&device.id) => report.created.push(number),
                Taken::Added if origin.is_resumed => report.resumed.push(number),
                Taken::Added => report.unchanged += 1,
                Taken::Refused(field, expected) => {
                    report.refused.insert(number);
                    report.faults.push(Fault { place: origin.place.clone(), field, expected });
                }
            }
            done();
        }
        Ok(sorted(report))
    }

    /// The tenants and customers that are to be made, in this order.
    fn places(&self) -> impl Iterator<Item = (Place, Change)> {
        let tenants = self.tenants.iter().cloned();
        let tenants = tenants.map(|(place, id, tenant)| (place, Change::AddTenant(id, tenant)));
        let customers = self.customers.iter().cloned();
        tenants.chain(customers.map(|(place, id, customer)| (place, Change::AddCustomer(id, customer))))
    }
}

/// Adds a device; one that stands there so already is taken, too.
async fn add(api: &Api, device: &NewDevice) -> anyhow::Result<Taken> {
    let (method, path, body) = registrar::addition(device);
    let path = api.reasoned(&path);
    loop {
        let answer = api.exchange(method.clone(), &path, Some(body.to_string()), ANSWER_WAIT).await?;
        let Problem { title, detail, field } = serde_json::from_slice(answer.body()).unwrap_or_default();
        let field = field.and_then(|field| FIELDS.into_iter().find(|known| *known == field));
        let taken = match answer.status() {
            StatusCode::TOO_MANY_REQUESTS => {
                tokio::time::sleep(BUSY_PAUSE).await;
                continue;
            }
            StatusCode::CREATED => Taken::Added,
            StatusCode::CONFLICT if field.is_some() => {
                Taken::Refused(field.unwrap_or("row"), "free: another device has it already".to_owned())
            }
            StatusCode::UNPROCESSABLE_ENTITY | StatusCode::NOT_FOUND | StatusCode::CONFLICT => {
                Taken::Refused(field.unwrap_or("row"), detail.unwrap_or(title))
            }
            StatusCode::FORBIDDEN if title.contains("scope") => {
                Taken::Refused("customer", detail.unwrap_or(title))
            }
            _ => bail!("a device could not be added: {}", problem(answer.body())),
        };
        return Ok(taken);
    }
}
