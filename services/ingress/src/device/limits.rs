//! What holds for every device, whatever it speaks? The settings of `[device_api]` and `[ingress]` that rule it.

use boot::config::Settings;
use rpc::Rate;

use super::target::TargetLimits;
use crate::device_api::ApiLimits;

/// The limits of one device.
#[derive(Debug, Clone, Copy)]
pub struct DeviceLimits {
    /// What requests are checked against.
    pub api: ApiLimits,
    /// Calls that the device may have in flight as a caller.
    pub max_calls_per_caller: usize,
    /// How often the device may call.
    pub call_rate: Rate,
    /// How often the device may send telemetry or attributes.
    pub uplink_rate: Rate,
    /// How often one of its connections may send something.
    pub request_rate: Rate,
    /// What may wait for it, and be open at it, as a target.
    pub target: TargetLimits,
    /// Whether the messages that it reads as a target name the caller.
    pub tells_caller: bool,
}

impl From<&Settings> for DeviceLimits {
    fn from(settings: &Settings) -> Self {
        let (api, ingress) = (&settings.device_api, &settings.ingress);
        DeviceLimits {
            api: ApiLimits {
                default_timeout_ms: api.default_timeout_ms,
                max_timeout_ms: api.max_timeout_ms,
                default_connect_timeout_ms: api.default_connect_timeout_ms,
            },
            max_calls_per_caller: ingress.max_calls_in_flight_per_caller,
            call_rate: Rate {
                per_second: ingress.calls_per_second_per_device,
                burst: ingress.call_burst_per_device,
            },
            uplink_rate: Rate {
                per_second: ingress.uplinks_per_second_per_device,
                burst: ingress.uplink_burst_per_device,
            },
            request_rate: Rate {
                per_second: ingress.requests_per_second_per_connection,
                burst: ingress.requests_per_second_per_connection,
            },
            target: TargetLimits::from(ingress),
            tells_caller: api.tell_caller_in_body,
        }
    }
}

impl From<&boot::config::Ingress> for TargetLimits {
    fn from(settings: &boot::config::Ingress) -> Self {
        TargetLimits {
            max_waiting: settings.max_mailbox_calls,
            max_waiting_bytes: settings.max_outbound_bytes,
            max_open: settings.max_calls_in_flight_per_target,
        }
    }
}

#[cfg(test)]
impl DeviceLimits {
    /// Of the settings' defaults, without rates.
    pub(crate) fn for_tests() -> Self {
        let none = Rate { per_second: 0, burst: 0 };
        DeviceLimits {
            call_rate: none,
            uplink_rate: none,
            request_rate: none,
            ..DeviceLimits::from(&Settings::default())
        }
    }
}
