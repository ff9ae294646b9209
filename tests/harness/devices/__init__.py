"""Clients that nobody here wrote, each behind the same small interface."""

from harness.devices.coap import CoapDevice
from harness.devices.device import Call, Device
from harness.devices.http import HttpDevice
from harness.devices.mqttjs import MqttJs, MqttJsWebSocket
from harness.devices.paho import PahoV5, PahoV311

# What a scenario runs over: as caller and as target.
PROTOCOLS: list[type[Device]] = [PahoV311, PahoV5, MqttJs, HttpDevice, CoapDevice]

__all__ = ["PROTOCOLS", "Call", "CoapDevice", "Device", "HttpDevice", "MqttJs", "MqttJsWebSocket", "PahoV5", "PahoV311"]
