#!/bin/sh
# Test Device A1 calls Test Device A2: prints A2's answer, or why there is none.
exec curl -sS \
    -d '{"method":"sendMsg","params":{"deviceId":"'"${DEVICE_ID:-aa435e80-9fce-11e6-8080-808080808080}"'","timeout":2000,"oneway":false,"body":{"param1":"value1"}}}' \
    "http://${HTTP_HOST:-localhost}:${HTTP_PORT:-8080}/api/v1/${TOKEN:-A1_TEST_TOKEN}/rpc"
