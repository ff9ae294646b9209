#!/bin/sh
# Which devices may Test Device A1 call? Prints the answer of getDevices.
exec mosquitto_rr -h "${MQTT_HOST:-localhost}" -p "${MQTT_PORT:-1883}" \
    -u "${TOKEN:-A1_TEST_TOKEN}" \
    -e 'v1/devices/me/rpc/response/1' -t 'v1/devices/me/rpc/request/1' \
    -m '{"method":"getDevices","params":{}}'
