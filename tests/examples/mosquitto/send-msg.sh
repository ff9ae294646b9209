#!/bin/sh
# Test Device A1 calls Test Device A2: prints A2's answer, or why there is none.
exec mosquitto_rr -h "${MQTT_HOST:-localhost}" -p "${MQTT_PORT:-1883}" \
    -u "${TOKEN:-A1_TEST_TOKEN}" \
    -e 'v1/devices/me/rpc/response/1' -t 'v1/devices/me/rpc/request/1' \
    -m '{"method":"sendMsg","params":{"deviceId":"'"${DEVICE_ID:-aa435e80-9fce-11e6-8080-808080808080}"'","timeout":2000,"oneway":false,"body":{"param1":"value1"}}}'
